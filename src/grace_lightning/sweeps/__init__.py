"""Many runs by one command: what each came to, a table of them all, and searches that stop bad runs early.

Light to import; what trains (:mod:`grace_lightning.sweeps.pruning`, :mod:`grace_lightning.sweeps.hparams`) is not.
"""

from grace_lightning.sweeps.jobs import RESULT, check_objective, flat_metrics, in_sweep, run_job
from grace_lightning.sweeps.sweep import Sweep, already_told, finish
from grace_lightning.sweeps.table import TABLE, collect, print_table, write_table

__all__ = [
    "RESULT",
    "TABLE",
    "Sweep",
    "already_told",
    "check_objective",
    "collect",
    "finish",
    "flat_metrics",
    "in_sweep",
    "print_table",
    "run_job",
    "write_table",
]
