"""Many runs with one command: how each of them ended, and a table of them all, the best first.

Quick to import, since every command does: what a run or a table needs is imported by the functions.
"""

import json
import logging
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from grace_lightning.errors import InputError
from grace_lightning.files import one_line, replacing, short, write_json

RESULT = "result.json"  # in the folder of a run
TABLE = "results.csv"  # in the folder of a sweep
ENDED = ("done", "pruned")  # statuses of runs that came to a result

SHOWN = {
    "valid/edge_average_precision": "valid edge AP",
    "infer/node_average_precision": "infer node AP",
    "infer/edge_average_precision": "infer edge AP",
    "infer/filament_f1_50": "filament F1",
    "infer/filament_mean_best_iou": "best IoU",
}
"""Metrics that are printed beside the objective, and their headings; the file has all metrics."""

log = logging.getLogger(__name__)

sweep_folders: list[Path] = []
"""The folder of the sweep that runs in this process, then the folders of earlier sweeps of the same study."""


class Sweep(Callback):
    """Note the folder of the sweep for :func:`finish`; Hydra calls this in the command's own process."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        sweep_folders[:] = [Path(config.hydra.sweep.dir).absolute()]


def in_sweep() -> bool:
    """Return whether this process runs a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def run_job(task: Callable[[DictConfig], dict[str, Any]], cfg: DictConfig) -> dict[str, Any]:
    """Run ``task`` and write ``result.json`` into its folder, however it ends; return its content.

    The statuses are *done*; *pruned*: stopped early because other runs were better; *refused*: the configuration or the
    data are wrong; *failed*: any other exception, with its traceback in the log file of the run; *interrupted*: by
    Ctrl-C or a signal, which end the sweep as well.
    """
    hydra = HydraConfig.get()
    begin = time.monotonic()
    result: dict[str, Any] = {"job": hydra.job.num, "overrides": list(hydra.overrides.task), "objective": cfg.objective}
    result |= {"status": "done", "message": None, "metrics": {}}
    try:
        found = task(cfg)
        result["metrics"] = flat_metrics(found)
        if found.get("pruned"):
            result |= {"status": "pruned", "message": found["pruned"]}
        elif result["metrics"].get(cfg.objective) is None:
            result["message"] = f"objective: {cfg.objective} is undefined for this run"
    except (InputError, OmegaConfBaseException) as error:
        result |= {"status": "refused", "message": one_line(error)}
        log.error("%s", result["message"])
    except Exception as error:
        result |= {"status": "failed", "message": f"{type(error).__name__}: {one_line(error)}"}
        log.exception("this run failed; the sweep goes on")
    except BaseException:
        result |= {"status": "interrupted", "message": "Ctrl-C or a signal"}
        raise
    finally:
        result["seconds"] = round(time.monotonic() - begin, 3)
        write_json(Path(hydra.runtime.output_dir) / RESULT, result)
    return result


def flat_metrics(results: dict[str, Any]) -> dict[str, float | None]:
    """Give every metric of a training, by set as ``grace-train`` returns them, one name.

    ``valid/node_f1``, ``infer/edge_auroc``, ... and, of the filaments linked in the inference images, as sets of nodes
    ``infer/filament_f1_50``, ... and as masks ``infer/mask_f1_50``, ...; None where a metric is undefined.
    """
    flat: dict[str, float | None] = {}
    for part in ("valid", "infer"):
        scores = results.get(part, {})
        objects = scores.get("objects", {})
        heads = {"node": scores.get("nodes"), "edge": scores.get("edges")}
        heads |= {"filament": objects.get("exact"), "mask": objects.get("approx")}
        for head, values in heads.items():
            for name, value in (values or {}).items():
                flat[f"{part}/{head}_{name}"] = None if value is None or not math.isfinite(value) else value
    return flat


def check_objective(name: Any, *, infer: bool) -> None:
    """Raise an :class:`InputError` unless a run, with inference images or without, measures the metric ``name``."""
    from grace_lightning.metrics import OBJECT_SCORES, SCORES

    names = [f"{part}/{head}_{score}" for part in ("valid", "infer") for head in ("node", "edge") for score in SCORES]
    names += [f"infer/{head}_{score}" for head in ("filament", "mask") for score in OBJECT_SCORES]
    if name not in names:
        raise InputError(f"objective: {name!r}, expected one of {', '.join(names)}")
    if name.startswith("infer/") and not infer:
        raise InputError(f"objective: {name}, but there are no inference images; set data.infer_image_dir")


def optuna_storage(url: str) -> Any:
    """Open the database of Optuna studies at ``url``; make it, and the folder of an SQLite file, if there is none."""
    try:
        import optuna
    except ImportError as error:
        raise InputError('optuna is not installed: pip install "grace-lightning[sweep]"') from error
    optuna.logging.set_verbosity(logging.WARNING)
    try:
        if url.startswith("sqlite:///"):
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        return optuna.storages.RDBStorage(url)
    except Exception as error:  # whatever a database's driver raises
        raise InputError(f"hydra.sweeper.storage: {url} cannot be opened ({one_line(error)})") from error


def collect(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Read how every run below ``folders`` ended: ``result.json`` (see :func:`run_job`), and ``run``, the folder.

    The status of a run without that file is *lost*. The best run comes first, then runs whose objective is undefined,
    last those without a result.
    """
    rows = []
    for path in (path for folder in folders for path in folder.rglob(".hydra/overrides.yaml")):
        row: dict[str, Any] = {"status": "lost"}
        row["message"] = "ended without saying why: killed, out of memory, or still running"
        row |= {"job": -1, "objective": None, "metrics": {}, "seconds": None, "run": short(path.parents[1])}
        try:
            row |= json.loads((path.parents[1] / RESULT).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            row["overrides"] = OmegaConf.to_container(OmegaConf.load(path))
        rows.append(row)

    def rank(row: dict[str, Any]) -> tuple[Any, ...]:
        value = row["metrics"].get(row["objective"])
        return row["status"] not in ENDED, math.inf if value is None else -value, row["job"], row["run"]

    return sorted(rows, key=rank)


def tabulate(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a table of what :func:`collect` returns, and print its main columns.

    Columns of the file: ``rank``, ``status``, ``overrides`` (those that differ between runs), the objective,
    ``seconds``, ``run`` (the folder), ``message`` (why a run has no result), a column for every key that differs, and
    all other metrics.
    """
    import pandas as pd

    common = set.intersection(*(set(row["overrides"]) for row in rows)) if len(rows) > 1 else set()
    objectives = sorted({row["objective"] for row in rows} - {None})  # a lost run does not know its objective
    lines = []
    for rank, row in enumerate(rows, start=1):
        own = [override for override in row["overrides"] if override not in common]
        line = {"rank": rank if row["status"] in ENDED else None, "status": row["status"], "overrides": " ".join(own)}
        line |= {key: row["metrics"].get(key) for key in objectives}
        line |= {key: row[key] for key in ("seconds", "run", "message")}
        lines.append(line | dict(override.split("=", 1) for override in own if "=" in override) | row["metrics"])
    table = pd.DataFrame(lines).astype({"rank": "Int64"})
    with replacing(path) as unfinished:
        table.to_csv(unfinished, index=False)
    _print(table, [name for name in [*objectives, *SHOWN] if name in table])


def _print(table: Any, metrics: Iterable[str]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    def rounded(found: re.Match[str]) -> str:
        return f"={float(found[1]):.4g}"

    shown = {"overrides": table["overrides"].str.replace(r"=(\d+\.\d+(?:e-\d+)?)(?= |$)", rounded, regex=True)}
    for name in metrics:
        shown[SHOWN.get(name, name)] = table[name].astype(float).map("{:.3f}".format, na_action="ignore")
    shown["time"] = table["seconds"].map(lambda s: str(timedelta(seconds=round(s))), na_action="ignore")
    shown["run"] = table["run"]
    if (table["status"] != "done").any():
        shown["status"] = table["status"] + (": " + table["message"]).fillna("")
    printed = Table(*(Column(name, overflow="fold") for name in shown), title="best run first", title_justify="left")
    for cells in zip(*(column.astype(object).fillna("-") for column in shown.values()), strict=True):
        printed.add_row(*cells)
    # A file has no width to keep to.
    Console(width=None if sys.stdout.isatty() else 200).print(printed, markup=False)


def finish() -> int:
    """Write and print the table of the sweep that ran in this process, complete or not.

    Return the exit status: 0 if no sweep ran, or all of its runs came to a result; 2 if no run did, each because of a
    mistake of the user's; else 1.
    """
    folders = list(sweep_folders)
    sweep_folders.clear()
    rows = collect(folders)
    if not rows:
        for folder in folders:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
        return 0
    tabulate(rows, folders[0] / TABLE)
    print(f"results  {short(folders[0] / TABLE)}")
    statuses = [row["status"] for row in rows if Path(row["run"]).absolute().is_relative_to(folders[0])]
    bad = [status for status in statuses if status not in ENDED]
    if not bad:
        return 0
    print(f"grace-train: {len(bad)} of {len(statuses)} runs came to no result; the table says why", file=sys.stderr)
    return 2 if len(bad) == len(statuses) and set(bad) == {"refused"} else 1


def main() -> None:
    """Write and print the table of a sweep's folder anew, for example for runs that were still queued."""
    rows = collect(map(Path, sys.argv[1:]))
    if len(sys.argv) != 2 or not rows:
        sys.exit("usage: python -m grace_lightning.sweeps FOLDER, a folder with the runs of a sweep")
    tabulate(rows, Path(sys.argv[1]) / TABLE)


if __name__ == "__main__":
    main()
