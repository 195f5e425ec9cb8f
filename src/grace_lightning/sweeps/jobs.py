"""One run of a sweep: whatever becomes of it is written into its folder, and the sweep goes on."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from grace_lightning.errors import InputError

RESULT = "result.json"
"""File in a run's folder: how it ended (see :func:`run_job`)."""

log = logging.getLogger(__name__)


def in_sweep() -> bool:
    """Whether this process runs a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def run_job(task: Callable[[DictConfig], dict[str, Any]], cfg: DictConfig) -> float | str:
    """Run ``task`` and write ``result.json`` into its folder, however it ends.

    The file says ``status``, ``message``, ``overrides``, ``objective`` (a name), ``metrics`` by name, ``seconds`` and
    ``job``, the number in the sweep. Statuses: *done*; *pruned*: stopped early, since others were better; *refused*:
    the configuration or the data are wrong; *failed*: any other exception, whose traceback is in the run's log file;
    *interrupted*: by Ctrl-C or a signal, and so is the sweep.

    Returns
    -------
    the objective, or why there is none: a sweeper of Optuna's takes what is not a number as a failed trial
    """
    hydra = HydraConfig.get()
    path = Path(hydra.runtime.output_dir) / RESULT
    begin = time.monotonic()
    result: dict[str, Any] = {
        "job": hydra.job.num,
        "overrides": list(hydra.overrides.task),
        "objective": cfg.get("objective"),
        "status": "done",
        "message": None,
        "metrics": {},
    }

    def write() -> None:
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps({**result, "seconds": round(time.monotonic() - begin, 3)}, indent=2) + "\n")
        os.replace(part, path)

    try:
        found = task(cfg)
        result["metrics"] = flat_metrics(found)
        if found.get("pruned"):
            result |= {"status": "pruned", "message": found["pruned"]}
    except (InputError, OmegaConfBaseException) as error:
        result |= {"status": "refused", "message": one_line(error)}
        log.error("%s", result["message"])
    except Exception as error:
        result |= {"status": "failed", "message": f"{type(error).__name__}: {one_line(error)}".rstrip(": ")}
        log.exception("this run failed; the sweep goes on")
    except BaseException:
        result |= {"status": "interrupted", "message": "Ctrl-C or a signal"}
        write()
        raise
    objective = result["metrics"].get(result["objective"])
    if objective is None and result["message"] is None:
        result["message"] = f"objective: {result['objective']} is undefined for this run"
    write()
    return result["message"] if objective is None else float(objective)


def one_line(error: BaseException) -> str:
    """What an exception says, without line breaks."""
    return " ".join(str(error).split())


def flat_metrics(results: dict[str, Any]) -> dict[str, float | None]:
    """The metrics of a training by one name each.

    Parameters
    ----------
    results : by set, as ``grace-train`` returns them

    Returns
    -------
    ``valid/node_f1``, ``infer/edge_auroc``, ... and, of filaments linked in the inference images, as sets of nodes
    ``infer/filament_f1_50``, ... and as masks ``infer/mask_f1_50``, ...; None where a metric is undefined
    """
    flat: dict[str, float | None] = {}
    for part in ("valid", "infer"):
        scores = results.get(part, {})
        objects = scores.get("objects", {})
        heads = {"node": scores.get("nodes"), "edge": scores.get("edges")}
        heads |= {"filament": objects.get("exact"), "mask": objects.get("approx")}
        for head, values in heads.items():
            flat |= {f"{part}/{head}_{name}": finite(value) for name, value in (values or {}).items()}
    return flat


def finite(value: float | None) -> float | None:
    """The value, or None for NaN and infinity."""
    return None if value is None or not math.isfinite(value) else value


def check_objective(name: Any, *, infer: bool) -> None:
    """Refuse what no run measures, before the first epoch.

    Parameters
    ----------
    name : a key of :func:`flat_metrics`
    infer : whether there are inference images

    Raises
    ------
    InputError
        Another name, or one of the inference images where there are none.
    """
    from grace_lightning.metrics import OBJECT_SCORES, SCORES

    names = [f"{part}/{head}_{score}" for part in ("valid", "infer") for head in ("node", "edge") for score in SCORES]
    names += [f"infer/{head}_{score}" for head in ("filament", "mask") for score in OBJECT_SCORES]
    if name not in names:
        raise InputError(f"objective: {name!r}, expected one of {', '.join(names)}")
    if name.startswith("infer/") and not infer:
        raise InputError(f"objective: {name}, but there are no inference images; set data.infer_image_dir")
