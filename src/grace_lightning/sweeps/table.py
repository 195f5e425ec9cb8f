"""The runs of a sweep in one table, the best one first."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from grace_lightning.sweeps.jobs import RESULT

TABLE = "results.csv"
"""File in a sweep's folder."""

ENDED = ("done", "pruned")

LOST = "ended without saying why: killed, out of memory, or still running"

SHOWN = {
    "valid/edge_average_precision": "valid edge AP",
    "infer/node_average_precision": "infer node AP",
    "infer/edge_average_precision": "infer edge AP",
    "infer/filament_f1_50": "filament F1",
    "infer/filament_mean_best_iou": "best IoU",
}
"""Metrics in the printed table, beside the objective, and their headings; the file has all."""

Row = dict[str, Any]


def collect(folders: Iterable[Path]) -> list[Row]:
    """What became of every run below ``folders``, the best one first.

    Runs without an objective come after those that have one, failed ones last.

    Returns
    -------
    contents of the runs' ``result.json`` (see :func:`grace_lightning.sweeps.run_job`) and ``run``, the folder; of a
    run that has no such file the status is *lost*
    """
    rows = [_read(path.parents[1]) for folder in folders for path in folder.rglob(".hydra/overrides.yaml")]

    def rank(row: Row) -> tuple[Any, ...]:
        value = row["metrics"].get(row["objective"])
        order = (row["job"] if isinstance(row["job"], int) else -1, row["run"])
        return row["status"] not in ENDED, value is None, -(value or 0.0), order

    return sorted(rows, key=rank)


def _read(run: Path) -> Row:
    try:
        row: Row = json.loads((run / RESULT).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        overrides = OmegaConf.to_container(OmegaConf.load(run / ".hydra" / "overrides.yaml"))
        row = {"job": None, "overrides": overrides, "objective": None, "metrics": {}, "seconds": None}
        row |= {"status": "lost", "message": LOST}
    # as a path from here, where it lies below
    row["run"] = os.path.relpath(run) if run.resolve().is_relative_to(Path.cwd()) else str(run)
    return row


def telling(rows: Sequence[Row]) -> list[list[str]]:
    """Of each row the overrides that not all rows have; of a single row all."""
    common = set.intersection(*(set(row["overrides"]) for row in rows)) if len(rows) > 1 else set()
    return [[override for override in row["overrides"] if override not in common] for row in rows]


def write_table(rows: Sequence[Row], path: Path) -> None:
    """Write ``results.csv``.

    Columns: ``rank``, ``status``, ``overrides`` (those that differ between runs), the objective, ``seconds``, ``run``
    (the folder), ``message`` (why a run has no result), one for every key that differs, and all other metrics.
    """
    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    objectives = [name for name in names if name in {row["objective"] for row in rows}]
    others = [name for name in names if name not in objectives]
    overrides = [dict(override.partition("=")[::2] for override in own) for own in telling(rows)]
    keys = list(dict.fromkeys(key for own in overrides for key in own))
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="") as file:
        head = ["rank", "status", "overrides", *objectives, "seconds", "run", "message", *keys, *others]
        writer = csv.writer(file)
        writer.writerow(head)
        for rank, (row, own) in enumerate(zip(rows, overrides, strict=True), start=1):
            joined = " ".join(f"{key}={value}" for key, value in own.items())
            first = [rank if row["status"] in ENDED else None, row["status"], joined]
            first += [row["metrics"].get(name) for name in objectives]
            about = [row["seconds"], row["run"], row["message"], *(own.get(key) for key in keys)]
            writer.writerow([*first, *about, *(row["metrics"].get(name) for name in others)])
    os.replace(part, path)


def print_table(rows: Sequence[Row]) -> None:
    """The table on the terminal: overrides, the main metrics, time, folder, and why a run has no result."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    names = dict.fromkeys(row["objective"] for row in rows if row["objective"] in row["metrics"])
    names |= {name: None for name in SHOWN if any(name in row["metrics"] for row in rows)}
    table = Table(title="best run first", title_justify="left", title_style="")
    table.add_column("overrides", overflow="fold", ratio=2)
    for name in names:
        table.add_column(SHOWN.get(name, name.replace("/", " ").replace("_", " ")), justify="right")
    table.add_column("time", justify="right")
    table.add_column("run", overflow="fold")
    bad = any(row["status"] != "done" for row in rows)
    if bad:
        table.add_column("status", overflow="fold", ratio=3)
    for row, own in zip(rows, telling(rows), strict=True):
        values = [row["metrics"].get(name) for name in names]
        cells = ["-" if value is None else f"{value:.3f}" for value in values]
        status = [row["status"] + (f": {row['message']}" if row["message"] else "")] if bad else []
        table.add_row(" ".join(map(rounded, own)), *cells, duration(row["seconds"]), row["run"], *status)
    if not console.is_terminal:  # a file has no width to keep to
        console = Console(width=max(console.width, 200))
    console.print(table, markup=False)


def rounded(override: str) -> str:
    """The override, with four digits of a number that has more."""
    key, _, value = override.partition("=")
    try:
        return f"{key}={float(value):.4g}" if len(value) > 6 else override
    except ValueError:
        return override


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds: ``1:02:03``, ``2:03``, ``0:03``."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
