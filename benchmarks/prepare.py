"""What it costs to make a network's input from detections: one thread, random detections, features=statistics.

    python benchmarks/prepare.py
    python benchmarks/prepare.py --nodes 1000 --size 2048 --repeats 20

All times are CPU seconds, the least of several repeats. The total is everything from positions to features, with the
graph Laplacian times them. The image is flattened once, when it is read, whatever the number of detections, so its row
stands outside the total; the detections' patches are cut from the flattened image.
"""

import argparse

import torch
from common import cpu_seconds
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits
from torch import Tensor

from grace_lightning.data import graph_data
from grace_lightning.features import Statistics
from grace_lightning.features.common import with_laplacian
from grace_lightning.flatten import flattened
from grace_lightning.graph import Sample, edge_geometry, encode_geometry, from_detections

GOAL = {1_000: 0.05, 10_000: 0.5}
ORIGINAL = {1_000: 1.5, 10_000: 17.0}


def measure(image: Tensor, count: int, repeats: int) -> dict[str, float]:
    """Return CPU seconds by part."""
    features, all_features = Statistics(), Statistics(laplacian=True)
    pos = torch.rand(count, 2, generator=torch.Generator().manual_seed(0)) * (image.shape[-1] - 1)
    graph, _ = from_detections(pos)
    data = graph_data(Sample("random", image, graph))
    x = features.nodes(data)
    parts = {
        "Delaunay graph": lambda: from_detections(pos),
        "edge geometry, encoded": lambda: encode_geometry(edge_geometry(graph.pos, graph.edges)),
        "patches and statistics": lambda: features.nodes(data),
        "Laplacian times features": lambda: with_laplacian(x, graph.edges),
        "total": lambda: all_features(graph_data(Sample("random", image, from_detections(pos)[0]))),
    }
    return {name: cpu_seconds(part, 1 + repeats) for name, part in parts.items()}  # one to warm up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1_000, 10_000], metavar="N")
    parser.add_argument("--size", type=int, default=4096, help="side of the image in pixels")
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()

    raw = torch.randn(1, args.size, args.size, generator=torch.Generator().manual_seed(0))
    image = flattened(raw, Statistics().sigma)
    columns = [measure(image, count, args.repeats) for count in args.nodes]

    table = Table("CPU seconds", *(f"N = {count:,}" for count in args.nodes))
    for name in columns[0]:
        table.add_row(name, *(f"{column[name]:.5f}" for column in columns), end_section=name == "total")
    for name, known in (("goal, at most", GOAL), ("the original", ORIGINAL)):
        table.add_row(name, *(f"{known[count]:.4g}" if count in known else "-" for count in args.nodes))
    Console().print(table)
    seconds = cpu_seconds(lambda: flattened(raw, Statistics().sigma), min(3, args.repeats))
    print(f"once per image, not in the total: flattening {args.size} x {args.size} pixels {seconds:.3f} s")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with threadpool_limits(1):
        main()
