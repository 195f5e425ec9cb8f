"""Whether the micrographs that are suggested for annotation teach more than others: scores by how they were chosen.

From a pool of simulated micrographs of one kind and all contrasts some are chosen, a network is trained on these from
the general one, and others score it.

    python benchmarks/suggest.py                                     # about an hour
    python benchmarks/suggest.py --ways random doubt --seeds 0
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accuracy import keys
from common import trained
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from grace_lightning import io
from grace_lightning.predictor import Predictor, load_networks
from grace_lightning.scenes import AnyScene
from grace_lightning.simulate import simulate_folder
from grace_lightning.tasks.suggest import doubt, suggest

Values = NDArray[np.floating]

WAYS: dict[str, Callable[[list[Values], int, int], list[int]]] = {
    "random": lambda p, count, seed: np.random.default_rng(seed).permutation(len(p))[:count].tolist(),
    "mean doubt": lambda p, count, seed: np.argsort([-doubt(v) / max(len(v), 1) for v in p])[:count].tolist(),
    "doubt": lambda p, count, seed: suggest(p, count),
}
"""By name, how rows of the pool are chosen by the probabilities of each micrograph's detections, for a seed."""


def probabilities(folder: Path) -> list[Values]:
    """Return what the general network says of the detections of each micrograph of a folder."""
    networks, said = load_networks("general"), []
    for path in io.find_images(folder):
        metadata = io.read_grace(path.with_suffix(".grace")).metadata
        predictor = Predictor.of_networks(networks, scale=metadata["scale"], polarity=metadata["polarity"])
        pos, _ = io.read_points(path.with_suffix(".h5"))
        said.append(predictor(io.read_image(path), pos).node_probability.numpy())
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="cryo")
    parser.add_argument("--pool", type=int, default=60, help="micrographs to choose from")
    parser.add_argument("--chosen", type=int, default=10)
    parser.add_argument("--scored", type=int, default=24, help="micrographs that score")
    parser.add_argument("--size", type=int, default=512, help="rows and columns, pixels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--overrides", default="trainer.max_epochs=30")
    args = parser.parse_args()

    simulator = AnyScene(size=(args.size, args.size), kinds=[args.kind], scale=[8.0, 12.0], polarity="dark")
    results: dict[str, list[tuple[float, ...]]] = {way: [] for way in args.ways}
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as root:
            parts = {name: Path(root) / name for name in ("pool", "scored")}
            for count, (name, folder) in zip((args.pool, args.scored), parts.items(), strict=True):
                simulate_folder(simulator, folder, num_images=count, seed=seed, prefix=name)
            said, images = probabilities(parts["pool"]), io.find_images(parts["pool"])
            for way in args.ways:
                chosen = {images[row].stem for row in WAYS[way](said, args.chosen, seed)}
                folder = Path(root) / way
                folder.mkdir()
                for file in parts["pool"].iterdir():
                    if file.name.split(".")[0] in chosen:
                        (folder / file.name).symlink_to(file)
                typed = ["init=general", "data.scale=10", "data.polarity=dark", f"seed={seed}", *args.overrides.split()]
                metrics, _ = trained([*keys(folder, parts["scored"], parts["scored"]), *typed])
                found = metrics["objects"]["exact"]["f1_50"] or 0.0
                results[way].append((found, *(metrics[head]["average_precision"] for head in ("nodes", "edges"))))
                print(seed, way, results[way][-1], flush=True)
    table = Table("chosen by", "filaments F1", "node AP", "edge AP", title=f"{args.chosen} of {args.pool}, {args.kind}")
    for way, runs in results.items():
        columns = [f"{statistics.mean(v):.3f} ± {statistics.pstdev(v):.3f}" for v in zip(*runs, strict=True)]
        table.add_row(way, *columns)
    Console(width=100).print(table)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with threadpool_limits(1):
        main()
