"""How much annotation a training needs, from nothing and from the general network: scores by the number of images.

Networks are trained on the first images of train, with every seed beginning at another one, and the best epoch is
scored on the images that chose it, those of valid.

    python benchmarks/start.py                                      # about two hours
    python benchmarks/start.py --images 1 --seeds 0 "init=general trainer.max_epochs=20"

Every argument is one configuration: overrides of ``grace-train``, separated by spaces. Every run has one thread.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from accuracy import keys
from common import trained
from rich.console import Console
from rich.table import Column, Table
from threadpoolctl import threadpool_limits


def linked(train: Path, count: int, seed: int, folder: Path) -> Path:
    """Return a folder with links to so many images of ``train``, others for another seed."""
    names = sorted(file.stem for file in train.glob("*.grace"))
    chosen = {names[(2 * seed + k) % len(names)] for k in range(count)}
    folder.mkdir()
    for file in train.iterdir():
        if file.name.split(".")[0] in chosen:
            (folder / file.name).symlink_to(file.resolve())
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default="../shared/data/roots", help="folder of train and valid")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 2, 4, 6], help="to train on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("configurations", nargs="*", default=["init=null", "init=general"])
    args = parser.parse_args()

    title = f"mean over runs of seeds {args.seeds} ± standard deviation"
    columns = ("filaments F1", "best IoU", "node AP", "edge AP", "CPU s per run")
    table = Table("images", *columns, Column(overflow="fold"), title=title, title_justify="left")
    for overrides in args.configurations:
        for count in args.images:
            runs = []
            for seed in args.seeds:
                with tempfile.TemporaryDirectory() as folder:
                    train = linked(args.data / "train", count, seed, Path(folder) / "train")
                    valid = args.data / "valid"
                    metrics, seconds = trained([*keys(train, valid, valid), *overrides.split(), f"seed={seed}"])
                found = [metrics["objects"]["exact"][key] or 0.0 for key in ("f1_50", "mean_best_iou")]
                found += [metrics[head]["average_precision"] for head in ("nodes", "edges")]
                runs.append((*found, seconds))
                row = " ".join(f"{value:.4f}" for value in runs[-1])
                print(overrides, count, seed, row, file=sys.stderr, flush=True)
            *scores, seconds = zip(*runs, strict=True)
            spread = [f"{statistics.mean(values):.3f} ± {statistics.pstdev(values):.3f}" for values in scores]
            table.add_row(str(count), *spread, f"{statistics.mean(seconds):.0f}", overrides)
    Console(width=120).print(table)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with threadpool_limits(1):
        main()
