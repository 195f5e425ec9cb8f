"""How well a configuration does, over several seeds: average precision of nodes and edges, filaments, and CPU seconds.

Filaments are compared as sets of nodes: F1 at an intersection over union above .5, and mean best intersection over
union of a true one.

    python benchmarks/accuracy.py                                   # the defaults, table of infer
    python benchmarks/accuracy.py --split valid "augment=none" "augment=default" "augment=strong"

Every argument is one configuration: overrides for ``grace-train``, separated by spaces. With ``--split valid`` the
infer folder is not looked at: that is the table to tune by, though it flatters, since the best epoch is chosen on the
same images. Every run has one thread.
"""

import argparse
import statistics
import sys
from pathlib import Path

from reference import trained
from rich.console import Console
from rich.table import Column, Table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default="../shared/data/roots", help="folder of train, valid and infer")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", choices=["infer", "valid"], default="infer", help="images that the table is about")
    parser.add_argument("configurations", nargs="*", default=[""])
    args = parser.parse_args()

    folders = {"train": "train", "valid": "valid", "infer": args.split}
    data = ["data=folders", *(f"data.{n}_image_dir='{(args.data / f).resolve()}'" for n, f in folders.items())]
    title = f"{args.split}: average precision and filaments, mean over seeds {args.seeds} ± standard deviation"
    table = Table(
        Column(overflow="fold"),
        "nodes",
        "edges",
        "filaments F1",
        "best IoU",
        "CPU s per run",
        title=title,
        title_justify="left",
    )
    for overrides in args.configurations:
        runs = []
        for seed in args.seeds:
            metrics, seconds = trained([*data, *overrides.split(), f"seed={seed}"])
            precision = [metrics[head]["average_precision"] for head in ("nodes", "edges")]
            filaments = [metrics["objects"]["exact"][key] or 0.0 for key in ("f1_50", "mean_best_iou")]
            runs.append((*precision, *filaments, seconds))
            print(overrides, seed, *(f"{value:.4f}" for value in runs[-1]), file=sys.stderr, flush=True)
        *scores, seconds = zip(*runs, strict=True)
        spread = [f"{statistics.mean(values):.4f} ± {statistics.pstdev(values):.4f}" for values in scores]
        table.add_row(overrides or "defaults", *spread, f"{statistics.mean(seconds):.0f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
