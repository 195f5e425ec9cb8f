"""The commands.

Torch and Lightning are imported only once a command runs, so that ``--help`` and typos answer at once.
"""

from __future__ import annotations

import atexit
import difflib
import logging
import os
import re
import shutil
import sys
import tempfile
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, TextIO

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from grace_lightning import sweeps
from grace_lightning.config import config_dir
from grace_lightning.errors import InputError, InputWarning
from grace_lightning.legacy import read_config_file, render, translate

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""Where those who start several processes say which one this is; the first is that of all, if given."""


def train() -> None:
    """``grace-train``: train a network, then evaluate it on the inference images."""
    _command("train")


def evaluate() -> None:
    """``grace-evaluate``: score a checkpoint on annotated images."""
    _command("evaluate")


def predict() -> None:
    """``grace-predict``: find filaments in micrographs with a checkpoint."""
    _command("predict")


def annotate() -> None:
    """``grace-annotate``: label a graph over detections by a mask."""
    _command("annotate")


def simulate() -> None:
    """``grace-simulate``: make annotated micrographs."""
    _command("simulate")


def _command(name: str) -> None:
    """Run the task ``name`` on the configuration ``conf/<name>.yaml``.

    The user's mistakes end in one line on stderr and status 2; any other exception is a bug and shows its traceback.
    In a sweep either is the end of one run only; what a sweep exits with, :func:`grace_lightning.sweeps.finish` says.
    """
    running = False

    @hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=name)
    def run(cfg: DictConfig) -> Any:
        nonlocal running
        running = True
        _prepare_process()  # launchers run this function in processes of their own
        task = getattr(import_module(f"grace_lightning.tasks.{name}"), name)
        if name == "train" and sweeps.in_sweep():
            return sweeps.run_job(task, cfg)
        try:
            return task(cfg)
        except InputError as error:
            _fail(name, str(error))

    OmegaConf.register_new_resolver("new_folder", _new_folder, use_cache=True, replace=True)
    _prepare_process()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would shorten tracebacks and exit with 1 on its own
    status = 0
    try:
        try:
            if name == "train":
                sys.argv[1:] = _with_config_file(sys.argv[1:])
            run()
        finally:  # also of a sweep that was interrupted
            status = sweeps.finish()
    except InputError as error:
        _fail(name, str(error))
    except (HydraException, OmegaConfBaseException) as error:
        if running and not isinstance(error, OmegaConfBaseException):
            raise
        _fail(name, _explain(error, name))
    except OSError as error:
        if running:
            raise
        _fail(name, f"{error.filename}: {error.strerror}; the run folder cannot be made, set log_dir= to another place")
    except Exception as error:
        if not sweeps.already_told(error):
            raise
        status = status or 1
    if status:
        sys.exit(status)


def _prepare_process() -> None:
    warnings.showwarning = _show_warning
    # PyTorch Geometric and torchmetrics still use what newer torch calls deprecated: nothing a user could act on.
    warnings.filterwarnings("ignore", message=".*is deprecated.*", module="torch")
    # pandas may bring numexpr, which greets at every start, Optuna brings alembic, which tells of its plugins
    for name in ("numexpr", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Threads that wait for others sleep, not spin: on shared cores a run takes a sixth of the processor time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _with_config_file(arguments: list[str]) -> list[str]:
    """The arguments with what the file of ``config_file=`` comes to; keys of it without effect are told on stderr."""
    key = "config_file="
    given = [argument for argument in arguments if argument.startswith(key)]
    file = given[-1].removeprefix(key).strip("'\"") if given else ""
    if file in ("", "null"):
        return arguments
    others = [argument for argument in arguments if not argument.startswith(key)]
    typed = [argument for argument in others if "=" in argument and not argument.startswith("-")]
    overrides, lines = translate(read_config_file(file), typed, file)
    for line in lines:
        print(line, file=sys.stderr)
    # in the place of ``config_file=``: Hydra's parser wants all overrides in one piece
    place = arguments.index(given[0])
    return [*others[:place], f"{key}{render(file)}", *overrides, *others[place:]]


def _new_folder(path: str) -> str:
    """Make and claim a folder; where runs started in one second want the same name, later ones get a number.

    Of several processes that torchrun, SLURM or the like start, only the first one has a run folder.
    """
    if not _is_first_process():
        aside = tempfile.mkdtemp(prefix="grace-")
        atexit.register(shutil.rmtree, aside, ignore_errors=True)
        return aside
    for count in range(1, 1000):
        name = path if count == 1 else f"{path}-{count}"
        try:
            Path(name).mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError:  # Hydra will fail at the same place, and be reported
            pass
        return name
    return path


def _is_first_process() -> bool:
    names = RANKS[:1] if RANKS[0] in os.environ else RANKS
    return all(os.environ.get(name, "0") == "0" for name in names)


def _fail(command: str, message: str) -> NoReturn:
    print(f"grace-{command}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _explain(error: Exception, name: str) -> str:
    """One line for a configuration error; for an unknown key the nearest one that exists."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    plugin = re.search(r"'hydra/(sweeper|launcher)/(optuna|joblib|submitit_\w+)'", str(cause))
    if plugin is not None:
        return f'{plugin[2]} is not installed: pip install "grace-lightning[sweep]"'
    key = getattr(cause, "full_key", None)
    if key is None or "is not in struct" not in str(cause):
        return str(error)
    near = difflib.get_close_matches(key, _known_keys(name), n=1, cutoff=0.0)
    return f"{key}: no such key; did you mean {near[0]}? (--cfg job prints all keys)"


def _known_keys(name: str) -> list[str]:
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = hydra.compose(name)

    def walk(node: Any, path: str) -> list[str]:
        here = [path] if path else []
        if not isinstance(node, dict):
            return here
        return here + [k for key, value in node.items() for k in walk(value, f"{path}.{key}" if path else str(key))]

    return walk(OmegaConf.to_container(cfg), "")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, InputWarning):
        print(f"warning: {message}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, filename, lineno, line), file=sys.stderr, end="")
