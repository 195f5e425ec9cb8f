"""The sweep as a whole: before its first run, and after its last."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from grace_lightning.errors import InputError
from grace_lightning.sweeps.jobs import one_line
from grace_lightning.sweeps.study import continue_study, leave_out_unknown
from grace_lightning.sweeps.table import ENDED, TABLE, collect, print_table, write_table

NO_TRIALS = ("No trials are completed yet.", "Record does not exist.")
"""What Optuna's storages say of the best trial where every trial failed."""

_folders: list[Path] = []
"""Of the sweep that runs in this process; the first is its own, others those of the study that it continues."""


class Sweep(Callback):
    """Hydra's callback: notes the sweep's folder, and prepares the study of an Optuna sweep to be continued."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called in the command's own process before any run."""
        _folders[:] = [Path(config.hydra.sweep.dir).absolute()]
        try:
            if "optuna" in config.hydra.sweeper._target_:
                leave_out_unknown(config)
                if config.hydra.sweeper.storage is not None:
                    _folders.extend(continue_study(config, _folders[0]))
        except InputError as error:  # Hydra would make a warning of it
            with suppress(OSError):
                _folders.pop().rmdir()
            print(f"grace-train: {one_line(error)}", file=sys.stderr)
            sys.exit(2)


def finish() -> int:
    """Write and print the table of the sweep that ran in this process, whether it came to its end or not.

    Returns
    -------
    exit status: 0 no sweep ran, or all of its runs came to a result; 2 the user's mistakes kept all of them from it;
    1 anything else
    """
    folders = list(_folders)
    _folders.clear()
    rows = collect(folders)
    if not rows:
        return 0
    write_table(rows, folders[0] / TABLE)
    print_table(rows)
    print(f"results  {os.path.relpath(folders[0] / TABLE)}")
    own = [row for row in rows if (Path.cwd() / row["run"]).is_relative_to(folders[0])]
    bad = [row["status"] for row in own if row["status"] not in ENDED]
    if not bad:
        return 0
    print(f"grace-train: {len(bad)} of {len(own)} runs came to no result; the table says why", file=sys.stderr)
    return 2 if len(bad) == len(own) and set(bad) == {"refused"} else 1


def already_told(error: Exception) -> bool:
    """Whether an exception from the depths of a sweeper says no more than the table does; if not quite, add a line."""
    if isinstance(error, ValueError) and str(error) in NO_TRIALS:
        return True
    if type(error).__module__.partition(".")[0] not in ("submitit", "joblib"):
        return False
    reason = str(error).partition("\n")[0]
    print(
        f"grace-train: a run ended without a word ({type(error).__name__}: {reason}); when those that may still run "
        "have ended, python -m grace_lightning.sweeps FOLDER makes the table anew",
        file=sys.stderr,
    )
    return True
