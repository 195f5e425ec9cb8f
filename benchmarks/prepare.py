"""What it costs to make a network's input from detections: one thread, random detections, features=statistics.

    python benchmarks/prepare.py
    python benchmarks/prepare.py --nodes 1000 --size 2048 --repeats 20

All times are CPU seconds, the least of several repeats. The total is one run of ``from_detections`` and ``prepare``
from beginning to end. The image is flattened once, when it is read, whatever the number of detections, so its row
stands outside the total; the detections' patches are cut from the flattened image.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import hydra
import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits
from torch import Tensor

from grace_lightning.config import build, config_dir
from grace_lightning.data import GraphData, prepare
from grace_lightning.features import Statistics, crop_patches, encode_geometry, laplacian, patch_statistics
from grace_lightning.graph import Sample, delaunay, edge_geometry, from_detections

TARGET = {1_000: 0.05, 10_000: 0.5}
ORIGINAL = {1_000: 1.5, 10_000: 17.0}
MEMORY_NODES = (1_000, 10_000, 100_000)


class Extracted:
    """A feature kind that has done its work already: what ``prepare`` costs on top of it is the Data."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        self.values = values

    def extract(self, sample: Sample, augment: Any = None) -> dict[str, Tensor]:
        """What was extracted before."""
        return self.values


def cpu_seconds(function: Callable[[], Any], repeats: int) -> float:
    """The least CPU time of ``repeats`` calls, after one that warms up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def random_positions(count: int, size: int) -> Tensor:
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(0)) * (size - 1)


def measure(features: Statistics, image: Tensor, count: int, repeats: int) -> dict[str, float]:
    """CPU seconds by part."""
    pos = random_positions(count, image.shape[-1])
    graph, _ = from_detections(pos)
    sample = Sample("random", image, graph)
    extracted = features.extract(sample)
    matrix, x = laplacian(graph.edges, count), extracted["x"][:, :4].numpy()

    def total() -> GraphData:
        return prepare(Sample("random", image, from_detections(pos)[0]), features)

    parts: dict[str, Callable[[], Any]] = {
        "Delaunay graph": lambda: from_detections(pos),
        "edge geometry, encoded": lambda: encode_geometry(edge_geometry(graph.pos, graph.edges)),
        "sparse Laplacian": lambda: laplacian(graph.edges, count),
        "Laplacian times features": lambda: matrix @ x,
        "patches and statistics": lambda: patch_statistics(crop_patches(image, graph.pos, features.patch_size)),
        "Data": lambda: prepare(sample, Extracted(extracted)),  # type: ignore[arg-type]
        "total": total,
    }
    return {name: cpu_seconds(part, repeats) for name, part in parts.items()}


def laplacian_bytes(count: int, size: int) -> int:
    matrix = laplacian(delaunay(random_positions(count, size)), count)
    return matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1_000, 10_000], metavar="N")
    parser.add_argument("--size", type=int, default=4096, help="side of the image in pixels")
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()

    torch.set_num_threads(1)
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose("train", ["features=statistics", "features.laplacian=true"]))
    features: Statistics = build(config["features"], "features")
    raw = torch.randn(1, args.size, args.size, generator=torch.Generator().manual_seed(0))
    image = features.preprocess(raw)
    columns = [measure(features, image, count, args.repeats) for count in args.nodes]

    table = Table("CPU seconds", *(f"N = {count:,}" for count in args.nodes))
    for name in columns[0]:
        table.add_row(name, *(f"{column[name]:.5f}" for column in columns), end_section=name in ("Data", "total"))
    for name, known in (("goal, at most", TARGET), ("the original", ORIGINAL)):
        table.add_row(name, *(f"{known[count]:.4g}" if count in known else "-" for count in args.nodes))
    console = Console()
    console.print(table)
    flatten = cpu_seconds(lambda: features.preprocess(raw), 3)
    console.print(f"once per image, not in the total: flattening {args.size} x {args.size} pixels {flatten:.3f} s")

    memory = Table("Laplacian", "bytes", "per node")
    for count in MEMORY_NODES:
        total = laplacian_bytes(count, args.size)
        memory.add_row(f"N = {count:,}", f"{total:,}", f"{total / count:.1f}")
    console.print(memory)


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
