"""What a training epoch costs: one thread, whole graphs, six random images of 220 nodes, features=statistics.

    python benchmarks/epoch.py
    python benchmarks/epoch.py --models gcn --augment default --size 1500

Everything but the images is as ``grace-train`` makes it, batch size, trainer and metrics included; validation,
checkpoints, progress bar and logger are off. Augmentation turns the images and lays copies of annotated filaments on
them, which takes time that grows with their size. The memory is what the process holds when the last epoch begins, and
how much more that is than after the sixth.
"""

import argparse
import resource
import statistics
import time
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from common import compose
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits
from torch_geometric.loader import DataLoader

from grace_lightning.callbacks import FreeMemory
from grace_lightning.checkpoint import build_module
from grace_lightning.config import build
from grace_lightning.data import EpochSampler, GraceDataset
from grace_lightning.graph import Graph, Sample, delaunay
from grace_lightning.tasks.common import quiet_lightning
from grace_lightning.tasks.train import build_augmentation
from grace_lightning.truth import label_by_mask, with_truth

WARM_UP = 2
"""Epochs that are not counted."""
GOAL = {"gcn": 0.1}
ORIGINAL = {"gcn": 0.81, "gat": 1.45}


class EpochClock(pl.Callback):
    """CPU time and memory at the start of every epoch and at the end of the last."""

    def __init__(self) -> None:
        self.ticks: list[float] = []
        self.memory: list[float] = []  # MB

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the time, and the memory that is in use."""
        self.ticks.append(time.process_time())
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.memory.append(pages * resource.getpagesize() / 1e6)

    on_train_end = on_train_epoch_start


def random_sample(number: int, nodes: int, size: int) -> Sample:
    generator = torch.Generator().manual_seed(number)
    pos = torch.rand(nodes, 2, generator=generator) * (size - 1)
    rows = torch.arange(size)[:, None].expand(size, size)
    annotation = torch.where(rows % (size // 5) < size // 25, 1 + rows // (size // 5), 0)  # five filaments or six
    graph = label_by_mask(Graph(pos, delaunay(pos)), annotation)
    return with_truth(Sample(f"random_{number}", torch.randn(1, size, size, generator=generator), graph, annotation))


def measure(model: str, augment: str, samples: list[Sample], epochs: int) -> tuple[list[float], list[float]]:
    """Return CPU seconds of each epoch, and the memory at the start of each, MB."""
    keys = [f"model={model}", f"augment={augment}", f"trainer.max_epochs={WARM_UP + epochs}"]
    config = OmegaConf.to_container(compose("train", "features=statistics", "run_dir=.", *keys), resolve=True)
    pl.seed_everything(config["seed"], verbose=False)
    features = build(config["features"], "features")
    augmentation, _ = build_augmentation(config["augment"])
    dataset = GraceDataset(range(len(samples)), samples.__getitem__, augmentation)
    module = build_module(config, features, augmentation.patches)
    module.fit_to(dataset.graph(k) for k in range(len(dataset)))
    clock = EpochClock()
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = build(config["trainer"], "trainer", callbacks=[FreeMemory(), clock], **off)
    sampler = EpochSampler(dataset, config["seed"], lambda: trainer.current_epoch, shuffle=True)
    trainer.fit(module, DataLoader(dataset, config["data"]["batch_size"], sampler=sampler))
    seconds = [after - before for before, after in zip(clock.ticks, clock.ticks[1:], strict=False)]
    return seconds[WARM_UP:], clock.memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["gcn", "gat"])
    parser.add_argument("--augment", nargs="+", default=["none", "default"])
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--nodes", type=int, default=220)
    parser.add_argument("--size", type=int, default=512, help="side of the images in pixels")
    parser.add_argument("--epochs", type=int, default=10, help=f"that count, after {WARM_UP} that do not")
    args = parser.parse_args()

    quiet_lightning()
    warnings.filterwarnings("ignore", ".*no `val_dataloader`.*")
    samples = [random_sample(k, args.nodes, args.size) for k in range(args.images)]
    table = Table("model", "augment", "CPU s per epoch", "least", "most", "goal", "the original", "MB", "more")
    for model in args.models:
        for augment in args.augment:
            times, memory = measure(model, augment, samples, args.epochs)
            summary = [f"{pick(times):.3f}" for pick in (statistics.median, min, max)]
            known = [str(values.get(model, "-")) for values in (GOAL, ORIGINAL)]
            held = f"{memory[-1]:.0f}", f"{memory[-1] - memory[min(6, len(memory) - 1)]:+.0f}"
            table.add_row(model, augment, *summary, *known, *held)
    Console().print(table)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with threadpool_limits(1):
        main()
