"""What frozen features cost. Needs the extra `backbones`.

    python benchmarks/features.py
    python benchmarks/features.py --size 2048 --detections 500 --name efficientnet_lite0

Times are CPU seconds on one thread, of a random image and random detections, with random weights in ResNets. The bare
network sees the very batches that ``per_patch`` cuts, made beforehand. A second table tells why ``augment.views`` are
fixed: the cost of features of augmented patches, drawn anew and from the cache.

What networks make of either mode tells ``accuracy.py``, how soon a run begins ``dashboards.py``:

    python benchmarks/accuracy.py --split valid "features=efficientnet_lite0 features.mode=per_patch augment=none" \\
        "features=efficientnet_lite0 features.mode=dense augment=none"
    python benchmarks/dashboards.py features=efficientnet_lite0
"""

import argparse
import resource
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from common import cpu_seconds
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits
from torch import Tensor

from grace_lightning.augment import RandomEdgeCrop
from grace_lightning.features import Backbone, node_patches
from grace_lightning.graph import edge_geometry, encode_geometry, from_detections

PATCH = 224
"""Pixels to a side of a patch, as many samples: the image is neither enlarged nor reduced."""


def backbone(name: str, folder: str, **options: Any) -> Backbone:
    """Make features with their network built: of efficientnet_lite0 with weights, of others with random ones."""
    weights = None
    if name != "efficientnet_lite0":
        import timm

        weights = str(Path(folder, f"{name}.pt"))
        torch.save(timm.create_model(name, pretrained=False, num_classes=0).state_dict(), weights)
    features = Backbone(name, weights, **options).eval()  # type: ignore[arg-type]
    features(random_image(PATCH, PATCH, 3))
    return features


def random_image(height: int, width: int, detections: int) -> Any:
    """Make one image as :class:`grace_lightning.features.Images` has it."""
    generator = torch.Generator().manual_seed(0)
    pos = torch.rand(detections, 2, generator=generator) * torch.tensor([width - 1.0, height - 1.0])
    image, graph = torch.randn(1, height, width, generator=generator), from_detections(pos)[0]
    attr = encode_geometry(edge_geometry(graph.pos, graph.edges))
    only = [(image, graph.pos, graph.edges)]
    return SimpleNamespace(edge_index=graph.edges, edge_attr=attr, seeds=[0], images=lambda: only)


@torch.no_grad()
def bare_seconds(features: Backbone, data: Any) -> float:
    """Return what the network alone costs: patches are cut, grey and normalised before the clock runs."""
    network = features.network
    ((image, positions, _),) = data.images()

    def batch(pos: Tensor) -> Tensor:
        grey = (0.5 + node_patches(image, pos, size=PATCH - 1, samples=PATCH) / 6).clamp(0, 1)
        return ((grey - network.mean) / network.deviation).contiguous(memory_format=torch.channels_last)

    parts = torch.split(positions, features.batch_size)
    return sum(cpu_seconds(partial(network.trunk.forward_features, batch(pos))) for pos in parts)


def costs(name: str, size: int, detections: int, micrograph: list[int]) -> Table:
    data = random_image(size, size, detections)
    options: dict[str, Any] = {"scale": PATCH, "patch": 1.0, "input_size": PATCH, "cache": False}
    with tempfile.TemporaryDirectory() as folder:
        dense, per_patch = (backbone(name, folder, mode=mode, **options) for mode in ("dense", "per_patch"))
    large = cpu_seconds(partial(dense, random_image(*micrograph, detections)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # before anything else takes memory
    whole, bare, patches = (
        cpu_seconds(partial(dense, data)),
        bare_seconds(per_patch, data),
        cpu_seconds(partial(per_patch, data)),
    )
    title = f"{name}, {size} x {size} pixels, {detections} detections, patches of {PATCH} pixels"
    table = Table("", "CPU s", "compared", "goal", title=title)
    table.add_row("bare network, the same batches", f"{bare:.1f}", "", "")
    table.add_row("per_patch", f"{patches:.1f}", f"{patches / bare:.2f} times the bare network", "at most 1.2")
    table.add_row("dense", f"{whole:.1f}", f"{patches / whole:.1f} times as fast as per_patch", "at least 4")
    table.add_row(f"dense, {micrograph[1]} x {micrograph[0]}", f"{large:.1f}", f"{peak:.2f} GiB at most", "below 4")
    return table


def views(size: int, detections: int) -> Table:
    title = f"Augmented features of {detections} detections, {size} x {size} pixels"
    table = Table("", "anew, CPU s", "from the cache", title=title)
    data, augment = random_image(size, size, detections), RandomEdgeCrop()
    for name in ("resnet18", "efficientnet_lite0"):
        with tempfile.TemporaryDirectory() as folder:
            features = backbone(name, folder, cache_dir=folder)
            anew, kept = (cpu_seconds(partial(features, data, augment)) for _ in range(2))
        table.add_row(name, f"{anew:.2f}", f"{kept:.3f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="resnet50")
    parser.add_argument("--size", type=int, default=4096, help="side of the image in pixels")
    parser.add_argument("--detections", type=int, default=2_000)
    parser.add_argument("--micrograph", type=int, nargs=2, default=[4092, 5760], help="rows and columns of another one")
    parser.add_argument("--views", type=int, nargs=2, default=[1024, 250], help="side and detections, second table")
    args = parser.parse_args()
    console = Console()
    console.print(costs(args.name, args.size, args.detections, args.micrograph))
    console.print(views(*args.views))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with threadpool_limits(1):
        main()
