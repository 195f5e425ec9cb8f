"""How well and how fast filaments are linked, on simulated detections whose true labels are blurred into probabilities.

    python benchmarks/link.py                               # all three tables
    python benchmarks/link.py --seeds 0 1 --tables accuracy --scenes crossing bundles

A blur of d leaves probabilities as a calibrated classifier gives them whose log-likelihood ratios are normal, of mean
d^2 / 2 for positives and -d^2 / 2 for negatives and of variance d^2, independent for every node and every edge; its
ROC curve has an area of .98 at d = 3. ``crossing`` are 8 straight lines and 150 false detections, ``default`` is the
simulator as it is, ``bundles`` has 8 filaments of which many run along another one. ``+`` adds edges between nodes two
Delaunay edges and up to 2.5 filament widths apart.

accuracy   F1@0.5 and mean best intersection over union of the filaments' node sets, by linker
costs      the same, mean over all scenes, with one parameter changed
time       CPU seconds, one thread, of graphs laid side by side
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.optimize import linear_sum_assignment
from scipy.special import expit, logit
from threadpoolctl import threadpool_limits

from grace_lightning.graph import Filament, Graph, Label, adjacency, delaunay
from grace_lightning.link import Components, Programme
from grace_lightning.simulate import Simulator, image_generator
from grace_lightning.truth import label_by_mask

Linker = Callable[..., list[Filament]]

PLAIN = {"num_blobs": 0, "p_carbon": 0.0}
SIMULATORS = {
    "crossing": Simulator(num_filaments=8, shapes=("line",), p_touching=0.0, **PLAIN),
    "default": Simulator(),
    "bundles": Simulator(num_filaments=8, p_touching=0.5),
}
BLURS = {"": (None, 4.0, 3.0, 2.5, 2.25), "+": (None, 3.0)}
REACH = 2.5  # filament widths
VARIATIONS: dict[str, tuple[float, float]] = {
    "end_cost": (3.0, 5.0),
    "bend_cost": (20.0, 40.0),
    "turn_cost": (30.0, 60.0),
    "crossing_cost": (0.0, 1.0),
    "min_probability": (0.02, 0.1),
    "max_gap": (2.0, 5.0),
    "min_length": (2.0, 4.0),
    "min_relative_probability": (0.0, 0.95),
    "min_filament_probability": (0.5, 0.8),
}
GOAL = {1_000: 0.5, 10_000: 8.0}


@dataclass
class Scene:
    """A labelled graph and its true filaments."""

    graph: Graph
    truth: list[frozenset[int]]


def with_longer_edges(graph: Graph, annotation: torch.Tensor, reach: float) -> Graph:
    two_steps = adjacency(graph.edges.numpy(), graph.num_nodes).astype(np.int64)
    further = torch.from_numpy(np.stack(sp.triu(two_steps @ two_steps, 1).nonzero()).astype(np.int64))
    near = (graph.pos[further[0]] - graph.pos[further[1]]).norm(dim=1) <= reach
    edges = torch.unique(torch.cat([graph.edges, further[:, near]], dim=1), dim=1)
    return label_by_mask(Graph(graph.pos, edges), annotation)


def simulated(names: list[str], seeds: list[int]) -> dict[str, list[Scene]]:
    scenes: dict[str, list[Scene]] = {f"{name}{edges}": [] for edges in BLURS for name in names}
    for name in names:
        simulator = SIMULATORS[name]
        for seed in seeds:
            simulation = simulator(name, image_generator(seed, name))
            truth = [frozenset(nodes) for nodes in simulation.instances.values() if len(nodes) > 1]
            graph, annotation = simulation.sample.graph, simulation.sample.annotation
            scenes[name].append(Scene(graph, truth))
            longer = with_longer_edges(graph, annotation, REACH * simulator.scale)
            scenes[f"{name}+"].append(Scene(longer, truth))
    return scenes


def blurred(label: torch.Tensor, blur: float | None, rng: np.random.Generator) -> NDArray[np.float64]:
    true = label.numpy() == Label.TRUE_POSITIVE
    if blur is None:
        return true.astype(np.float64)
    ratio = np.where(true, 1, -1) * blur**2 / 2 + blur * rng.standard_normal(len(true))
    return expit(logit(true.mean()) + ratio)


def inputs(scenes: list[Scene], blur: float | None) -> Iterator[tuple[Scene, tuple]]:
    for k, scene in enumerate(scenes):
        rng = np.random.default_rng(k)
        graph = scene.graph
        probability = blurred(graph.label("node"), blur, rng), blurred(graph.label("edge"), blur, rng)
        yield scene, (graph.pos, graph.edges, *probability)


def score(linker: Linker, scenes: list[Scene], blur: float | None) -> tuple[float, float]:
    """F1@0.5 over all scenes together, and mean best IoU of a true filament."""
    hits, total, best = 0, 0, []
    for scene, given in inputs(scenes, blur):
        found = [frozenset(filament.members.tolist()) for filament in linker(*given)]
        iou = np.array([[len(t & f) / len(t | f) for f in found] for t in scene.truth]).reshape(-1, len(found))
        hits += int((iou[linear_sum_assignment(-iou)] > 0.5).sum())
        total += len(found) + len(scene.truth)
        best += iou.max(axis=1, initial=0).tolist()
    return 2 * hits / total, float(np.mean(best))


def blurred_scenes(scenes: dict[str, list[Scene]]) -> list[tuple[str, float | None]]:
    return [(name, blur) for name in scenes for blur in BLURS["+" if name.endswith("+") else ""]]


def accuracy(scenes: dict[str, list[Scene]], nodes: list[int]) -> Table:
    linkers = {"Components()": Components(), "Programme()": Programme()}
    table = Table("scene", "blur d", *linkers, title="F1@0.5 / mean best IoU", title_justify="left")
    for name, blur in blurred_scenes(scenes):
        scores = ["{:.3f} / {:.3f}".format(*score(linker, scenes[name], blur)) for linker in linkers.values()]
        table.add_row(name, "perfect" if blur is None else f"{blur:g}", *scores)
    return table


def costs(scenes: dict[str, list[Scene]], nodes: list[int]) -> Table:
    table = Table("Programme", "F1@0.5", "mean best IoU", title="mean over all scenes", title_justify="left")
    changes = [{}] + [{name: value} for name, values in VARIATIONS.items() for value in values]
    for change in changes:
        f1, iou = np.mean(
            [score(Programme(**change), scenes[name], blur) for name, blur in blurred_scenes(scenes)], axis=0
        )
        name = ", ".join(f"{key}={value:g}" for key, value in change.items()) or "defaults"
        table.add_row(name, f"{f1:.3f}", f"{iou:.3f}")
    return table


def side_by_side(scenes: list[Scene], nodes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions and node labels of scenes in a row, repeated until there are enough, and the first of them kept."""
    sizes = [scene.graph.num_nodes for scene in scenes]
    count = next(k for k in range(1, nodes) if sum(sizes[j % len(sizes)] for j in range(k)) >= nodes)
    chosen = [scenes[j % len(scenes)].graph for j in range(count)]
    columns = int(np.ceil(count**0.5))
    pos = [g.pos + 1100 * torch.tensor([j % columns, j // columns]) for j, g in enumerate(chosen)]
    return torch.cat(pos)[:nodes], torch.cat([g.label("node") for g in chosen])[:nodes]


def cpu_seconds(scenes: list[Scene], nodes: int, blur: float | None) -> float:
    pos, label = side_by_side(scenes, nodes)
    edges = delaunay(pos)
    length = (pos[edges[0]] - pos[edges[1]]).norm(dim=1)
    edge_label = ((label[edges] == 1).all(dim=0) & (length < 30)).long()
    rng, linker = np.random.default_rng(0), Programme()
    given = pos, edges, blurred(label, blur, rng), blurred(edge_label, blur, rng)
    start = time.process_time()
    linker(*given)
    return time.process_time() - start


def times(scenes: dict[str, list[Scene]], nodes: list[int]) -> Table:
    table = Table("CPU seconds", "blur d", *(f"N = {count:,}" for count in nodes))
    for name in filter(SIMULATORS.__contains__, scenes):
        for blur in (None, 3.0, 2.5):
            seconds = [f"{cpu_seconds(scenes[name], count, blur):.2f}" for count in nodes]
            table.add_row(name, "perfect" if blur is None else f"{blur:g}", *seconds)
    table.add_row("goal, at most", "", *(f"{GOAL[count]:g}" if count in GOAL else "-" for count in nodes))
    return table


def main() -> None:
    tables = {"accuracy": accuracy, "costs": costs, "time": times}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[30, 31, 32, 33, 34, 35])
    parser.add_argument("--tables", nargs="+", choices=tables, default=list(tables))
    parser.add_argument("--scenes", nargs="+", choices=SIMULATORS, default=list(SIMULATORS))
    parser.add_argument("--nodes", type=int, nargs="+", default=list(GOAL), metavar="N", help="of the table of time")
    args = parser.parse_args()

    scenes = simulated(args.scenes, args.seeds)
    for name in args.tables:
        Console().print(tables[name](scenes, args.nodes))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with threadpool_limits(1):
        main()
