"""How well a configuration does, over several seeds: average precision of nodes and edges, filaments, and CPU seconds.

Filaments are compared as sets of nodes: F1 at an intersection over union above .5, and mean best intersection over
union of a true one.

    python benchmarks/accuracy.py                                   # the defaults, table of infer
    python benchmarks/accuracy.py --split valid "augment=none" "augment=default" "augment=strong"
    python benchmarks/accuracy.py --folds 4 --seeds 0               # more images, which tell more about filaments

Every argument is one configuration: overrides of ``grace-train``, separated by spaces. With ``--split valid`` the
infer folder is not looked at: that is the table to tune by, though it flatters, since the best epoch is chosen on the
same images. So it is with ``--folds``: the images of train and valid together, each scored by a network that was
trained on those of other folds. Every run has one thread.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from common import trained
from rich.console import Console
from rich.table import Column, Table
from threadpoolctl import threadpool_limits


def keys(train: Path, valid: Path, infer: Path) -> list[str]:
    folders = {"train": train, "valid": valid, "infer": infer}
    return ["data=folders", *(f"data.{name}_image_dir='{folder.resolve()}'" for name, folder in folders.items())]


def dealt(data: Path, folds: int, folder: Path) -> Iterator[list[str]]:
    """Keys of a run for each fold, with links to its images in ``folder``."""
    files = [file for part in ("train", "valid") for file in (data / part).iterdir()]
    names = sorted({file.name.split(".")[0] for file in files if file.suffix == ".grace"})
    for fold in range(folds):
        parts = [folder / str(fold) / part for part in ("train", "held_out")]
        for part, held_out in zip(parts, (False, True), strict=True):
            part.mkdir(parents=True)
            chosen = {name for k, name in enumerate(names) if (k % folds == fold) == held_out}
            for file in files:
                if file.name.split(".")[0] in chosen:
                    (part / file.name).symlink_to(file.resolve())
        yield keys(parts[0], parts[1], parts[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default="../shared/data/roots", help="folder of train, valid and infer")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", choices=["infer", "valid"], default="infer", help="images that the table is about")
    parser.add_argument("--folds", type=int, help="of the images of train and valid, instead of --split")
    parser.add_argument("configurations", nargs="*", default=[""])
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        if args.folds:
            runs = list(dealt(args.data, args.folds, Path(folder)))
        else:
            runs = [keys(args.data / "train", args.data / "valid", args.data / args.split)]
        Console(width=120).print(table_of(runs, args))


def table_of(data: list[list[str]], args: argparse.Namespace) -> Table:
    images = f"{args.folds} folds" if args.folds else args.split
    title = f"{images}: average precision and filaments, mean over runs of seeds {args.seeds} ± standard deviation"
    columns = ("nodes", "edges", "filaments F1", "best IoU", "CPU s per run")
    table = Table(Column(overflow="fold"), *columns, title=title, title_justify="left")
    for overrides in args.configurations:
        runs = []
        for keys_of_run, seed in product(data, args.seeds):
            metrics, seconds = trained([*keys_of_run, *overrides.split(), f"seed={seed}"])
            precision = [metrics[head]["average_precision"] for head in ("nodes", "edges")]
            filaments = [metrics["objects"]["exact"][key] or 0.0 for key in ("f1_50", "mean_best_iou")]
            runs.append((*precision, *filaments, seconds))
            print(overrides, seed, *(f"{value:.4f}" for value in runs[-1]), file=sys.stderr, flush=True)
        *scores, seconds = zip(*runs, strict=True)
        spread = [f"{statistics.mean(values):.4f} ± {statistics.pstdev(values):.4f}" for values in scores]
        table.add_row(overrides or "defaults", *spread, f"{statistics.mean(seconds):.0f}")
    return table


if __name__ == "__main__":
    torch.set_num_threads(1)
    with threadpool_limits(1):
        main()
