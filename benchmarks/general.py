"""How well the general network finds filaments in images alone: simulated kinds, and images with traced filaments.

Filaments are compared as curves: the truth is dealt into points a filament width apart, a filament is the set of points
near its curve, and a true and a found one match if they share more than half of all their points. Filaments away from
all truth count as false, unless the truth may be incomplete.

    python benchmarks/general.py                                # by kind and contrast
    python benchmarks/general.py --estimated                    # width and polarity estimated from each scene alone
    python benchmarks/general.py --curve                        # by link.min_filament_probability
    python benchmarks/general.py --told                         # if every detection and edge were told rightly
    python benchmarks/general.py --rival                        # by ridge-detector (PyPI), the better of two settings
    python benchmarks/general.py --traced ../shared/data/wild   # images with X.polylines.json, which may be incomplete
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.optimize import linear_sum_assignment
from scipy.spatial import KDTree
from torch import Tensor

from grace_lightning.estimate import estimate
from grace_lightning.graph import HEADS, Label, Sample, from_detections
from grace_lightning.io import find_images, read_image, stem
from grace_lightning.predictor import Predictor, load_networks
from grace_lightning.scenes import CONTRASTS, KINDS, AnyScene
from grace_lightning.simulate import image_generator, in_image, resampled
from grace_lightning.truth import draw_lines, label_by_mask, nodes_of_lines, with_truth

Line = NDArray[np.floating]
WIDEST = 1.3
"""A detection this many widths' half from a line is on it: what is true of filaments that differ in width."""

THRESHOLDS = (0.0, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)


class Scene(NamedTuple):
    """An image with its true filaments."""

    image: Tensor  # (1, H, W) float32
    lines: list[Line]  # (P, 2) pixels each
    scale: float  # width of a filament, pixels
    polarity: str
    complete: bool = True  # whether these are all filaments


Finder = Callable[[Scene], list[Line]]


def simulated(kind: str, contrast: str, count: int, size: int) -> Iterator[Scene]:
    simulator = AnyScene(kinds=[kind], contrast=CONTRASTS[contrast], size=(size, size))
    for k in range(count):
        drawn = simulator("x", image_generator(99, f"{kind} {k}"))
        lines = [line[in_image(line, (size, size))] for line in drawn.centre_lines]
        said = drawn.sample.metadata
        yield Scene(drawn.sample.image, lines, said["scale"], said["polarity"])


def traced(folder: Path) -> Iterator[tuple[str, Scene]]:
    for truth in sorted(folder.rglob("*.polylines.json")):
        name, content = truth.name.removesuffix(".polylines.json"), json.loads(truth.read_text())
        lines = [np.array(line, float) for line in (content["filaments"] if isinstance(content, dict) else content)]
        image = read_image(next(path for path in find_images(truth.parent) if stem(path) == name))
        yield name, Scene(image, lines, np.nan, "", complete=False)


def as_estimated(scene: Scene) -> Scene:
    seen = estimate([scene.image])
    return scene._replace(scale=seen.scale, polarity=seen.polarity)


def matches(found: Sequence[Line], scene: Scene, scale: float) -> NDArray[np.integer]:
    """Return how many filaments match, were found, and are true, (3,)."""
    if not scene.lines:
        return np.array([0, len(found), 0])
    points = np.concatenate([resampled(line)[:: max(1, round(2 * scale))] for line in scene.lines])
    apart = np.unique(np.rint(points / (0.6 * scale)), axis=0, return_index=True)[1]  # one point of a crossing

    def near(lines: Sequence[Line], reach: float) -> NDArray[np.bool_]:
        rows = [KDTree(resampled(line)).query(points[apart])[0] <= reach for line in lines]
        return np.array(rows, bool).reshape(len(lines), len(apart))

    true, mine = near(scene.lines, 0.5 * scale), near(found, 0.75 * scale)
    counted = len(found) if scene.complete else int((mine.sum(axis=1) > 1).sum())
    shared = (true[:, None] & mine).sum(axis=2)
    overlap = shared / np.maximum((true[:, None] | mine).sum(axis=2), 1)
    pairs = linear_sum_assignment(-overlap)
    return np.array([(overlap[pairs] > 0.5).sum(), counted, len(true)])


def general(checkpoint: str, keys: Sequence[str] = ()) -> Finder:
    networks = load_networks(checkpoint)
    changes = {key: float(value) for key, value in (pair.split("=") for pair in keys)}

    def find(scene: Scene) -> list[Line]:
        predictor = Predictor.of_networks(networks, scale=scene.scale, polarity=scene.polarity)  # type: ignore[arg-type]
        predictor.linker = replace(predictor.linker, **changes)  # type: ignore[type-var]
        return [filament.path for filament in predictor(scene.image).filaments if len(filament.path) > 1]

    return find


def told(checkpoint: str) -> Finder:
    """Link what is true: what is missed then, the detections or the linking miss, or filaments hide each other."""
    networks = load_networks(checkpoint)

    def find(scene: Scene) -> list[Line]:
        predictor = Predictor.of_networks(networks, scale=scene.scale, polarity=scene.polarity)  # type: ignore[arg-type]
        width, size = WIDEST * scene.scale, (scene.image.shape[1], scene.image.shape[2])
        annotation = draw_lines(scene.lines, width, size)
        graph = label_by_mask(from_detections(predictor.detect(scene.image)[0])[0], annotation)
        sample = Sample("x", scene.image, graph, annotation)
        graph = with_truth(sample, nodes_of_lines(graph, scene.lines, width)).graph
        true = {head: (graph.label(head) == Label.TRUE_POSITIVE).float() for head in HEADS}
        return [filament.path for filament in predictor.link(graph, true) if len(filament.path) > 1]

    return find


def rival(low: int, high: int) -> Finder:
    from ridge_detector import RidgeDetector

    def find(scene: Scene) -> list[Line]:
        image = scene.image[0].numpy()
        darkest, brightest = np.quantile(image, [0.005, 0.995])
        grey = (255 * np.clip((image - darkest) / max(brightest - darkest, 1e-9), 0, 1)).astype(np.uint8)
        width, dark = max(2, round(scene.scale)), scene.polarity == "dark"
        detector = RidgeDetector([width], low, high, min_len=5 * width, dark_line=dark, estimate_width=False)
        detector.detect_lines(np.stack([grey] * 3, axis=-1))
        lines = [np.stack([contour.col, contour.row], axis=1) for contour in detector.contours]
        return [line for line in lines if len(line) > 1]

    return find


def ratios(counts: NDArray[np.integer]) -> str:
    hits, found, true = counts.tolist()
    return f"{2 * hits / max(found + true, 1):.2f} ({hits / max(found, 1):.2f}, {hits / max(true, 1):.2f})"


def by_kind(find: Finder, args: argparse.Namespace) -> dict[str, list[str]]:
    """Return the row of each kind of scenes, and of all together; a column for each contrast."""
    counts = np.zeros((len(args.kinds) + 1, len(args.contrasts), 3), int)
    for (row, kind), (column, contrast) in product(enumerate(args.kinds), enumerate(args.contrasts)):
        for scene in simulated(kind, contrast, args.scenes, args.size):
            given = as_estimated(scene) if args.estimated else scene
            counts[[row, -1], column] += matches(find(given), scene, scene.scale)
    return {kind: list(map(ratios, cells)) for kind, cells in zip([*args.kinds, "all"], counts, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="general")
    parser.add_argument("--scenes", type=int, default=6, help="of each kind and contrast")
    parser.add_argument("--size", type=int, default=512, help="rows and columns of a scene, pixels")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--contrasts", nargs="+", default=list(CONTRASTS), choices=CONTRASTS)
    parser.add_argument("--keys", nargs="*", default=[], help="of the linker, such as end_cost=3")
    parser.add_argument("--estimated", action="store_true")
    parser.add_argument("--curve", action="store_true")
    parser.add_argument("--told", action="store_true")
    parser.add_argument("--rival", action="store_true")
    parser.add_argument("--traced", type=Path)
    args = parser.parse_args()
    console = Console(width=120)
    finders = {args.checkpoint: general(args.checkpoint, args.keys)}
    if args.curve:
        keys = [f"min_filament_probability={value}" for value in THRESHOLDS]
        finders = {key: general(args.checkpoint, [*args.keys, key]) for key in keys}
    if args.told:
        finders = {"told": told(args.checkpoint)}
    if args.rival:
        finders = {f"ridge-detector, {low} to {high}": rival(low, high) for low, high in ((100, 200), (40, 120))}
    if args.curve:
        table = Table("", *args.contrasts, title="F1 (precision, recall), all kinds", title_justify="left")
        for key, find in finders.items():
            table.add_row(key, *by_kind(find, args)["all"])
        console.print(table)
        return
    for title, find in finders.items():
        if args.traced is None:
            table = Table("kind", *args.contrasts, title=f"{title}: F1 (precision, recall)", title_justify="left")
            for kind, cells in by_kind(find, args).items():
                table.add_row(kind, *cells, style="bold" if kind == "all" else None)
            console.print(table)
            continue
        table = Table("image", "width", "polarity", "F1 (precision, recall)", title=title, title_justify="left")
        for name, scene in traced(args.traced):
            given = as_estimated(scene)
            counts = matches(find(given), scene, given.scale)
            table.add_row(name, f"{given.scale:g}", given.polarity, ratios(counts))
        console.print(table)


if __name__ == "__main__":
    main()
