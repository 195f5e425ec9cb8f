"""How well the persistence length of worm-like chains is recovered, from paths with jitter and from images.

    python benchmarks/persistence.py                # a minute
    python benchmarks/persistence.py --images 8     # and from as many simulated micrographs, by the general network

Chains turn by a variance of ds / P in each step ds. All lengths are in pixels; filaments are 20 pixels wide.
"""

import argparse

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.ndimage import distance_transform_edt, gaussian_filter

from grace_lightning import Predictor
from grace_lightning.graph import Filament
from grace_lightning.measure import cosines, stiffness

WIDTH = 20.0


def chain(persistence: float, length: float, generator: np.random.Generator) -> np.ndarray:
    """Return points a pixel apart along a chain in a plane."""
    angle = generator.uniform(0, 2 * np.pi) + generator.normal(0, persistence**-0.5, int(length)).cumsum()
    return np.column_stack([np.cos(angle), np.sin(angle)]).cumsum(axis=0)


def traced(persistence: float, jitter: float, generator: np.random.Generator) -> list[Filament]:
    """Return twenty filaments of 200 to 1,500 pixels, with nodes that jitter by so many pixels."""
    paths = [chain(persistence, generator.uniform(200, 1500), generator)[:: int(WIDTH)] for _ in range(20)]
    jittered = [(path + generator.normal(0, jitter, path.shape)).astype(np.float32) for path in paths]
    return [Filament(path, np.ones(len(path), np.float32), nodes := np.arange(len(path)), nodes) for path in jittered]


def found(persistence: float, size: int, predictor: Predictor, generator: np.random.Generator) -> list[Filament]:
    """Draw six chains into a noisy image and return the filaments that are found."""
    free = np.ones((size, size), np.bool_)
    for _ in range(6):
        path = chain(persistence, generator.uniform(0.5, 1.0) * size, generator)
        x, y = np.round(path - path.mean(axis=0) + generator.uniform(0.2, 0.8, 2) * size).astype(int).T
        inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
        free[y[inside], x[inside]] = False
    image = -gaussian_filter((distance_transform_edt(free) < WIDTH / 2).astype(np.float32), 2)
    return predictor(image + generator.normal(0, 0.5, image.shape)).filaments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=float, nargs="+", default=[100, 300, 1000, 3000, 10000, 100000])
    parser.add_argument("--samples", type=int, default=20, help="of 20 filaments each")
    parser.add_argument("--images", type=int, default=0, help="to find filaments in")
    parser.add_argument("--size", type=int, default=1024, help="side of these, pixels")
    args = parser.parse_args()
    ways = {f"nodes that jitter by {jitter:g}": jitter for jitter in (0.0, 2.0, 4.0)}
    table = Table("true", *ways, *(["found in images"] if args.images else []), title="persistence length and its 95 %")
    predictor = Predictor.from_checkpoint("general", scale=WIDTH, polarity="dark")
    for true in args.lengths:
        generator, cells = np.random.default_rng(0), [f"{true:,.0f}"]
        samples = [[traced(true, jitter, generator) for _ in range(args.samples)] for jitter in ways.values()]
        if args.images:
            samples.append([found(true, args.size, predictor, generator) for _ in range(args.images)])
        for sample in samples:
            sums, pairs = np.swapaxes([np.sum(cosines(filaments, WIDTH), axis=1) for filaments in sample], 0, 1)
            length, low, high = stiffness(sums, pairs, WIDTH)
            cells.append(f"{length:,.0f} ({low:,.0f} to {high:,.0f})")
        table.add_row(*cells)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
