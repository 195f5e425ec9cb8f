"""The commands.

Torch and Lightning are imported only once a command runs, so that ``--help`` and typos answer at once.
"""

import atexit
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from types import FrameType, NoneType
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Sweep
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from grace_lightning import sweeps
from grace_lightning.config import config_dir, removed
from grace_lightning.errors import InputError, InputWarning
from grace_lightning.files import DISK_ERRORS, one_line
from grace_lightning.legacy import key_of, read_config_file, render, translate
from grace_lightning.stopping import Stopped, handle, handling, stop

TEXTS = ("checkpoint", "ckpt_path", "config_file", "weights", "root", "prefix", "keep")
"""Last parts of keys whose value is text, even if it looks like a number; those that end with ``_dir`` are others."""


def _command(name: str) -> None:
    """Run the task ``name`` on the configuration ``conf/<name>.yaml``.

    The user's mistakes end in one line on stderr and status 2; any other exception is a bug and shows its traceback.
    Ctrl-C and SIGTERM end in one line that says how to go on, and status 130 and 143. In a sweep any of these ends one
    run only, and :func:`grace_lightning.sweeps.finish` gives the exit status.
    """
    typed = sys.argv[1:]

    def leave(number: int, frame: FrameType | None) -> None:  # an exception could get lost in the import of a library
        os.write(2, f"{_stopped(name, typed, Stopped(number))}\n".encode(errors="backslashreplace"))
        os._exit(128 + number)

    with handling(leave if _is_first() else signal.SIG_IGN):
        try:
            status = _run(name)
            sys.stdout.flush()
        except Stopped as stopped:
            if name == "simulate" and "overwrite=true" not in typed:
                typed = [*typed, "overwrite=true"]
            print(_stopped(name, typed, stopped), file=sys.stderr)
            status = 128 + stopped.signal
        except BrokenPipeError:
            _leave_unread()
    if status:
        sys.exit(status)


def _stopped(name: str, typed: list[str], stopped: Stopped) -> str:
    goes_on = name in ("predict", "annotate") and "overwrite=true" not in typed
    again = f"{'go on' if goes_on else 'start again'} with: {shlex.join([f'grace-{name}', *typed])}"
    return f"grace-{name}: stopped by {stopped.by}; {again}"


def _leave_unread() -> NoReturn:
    """Exit without a word if nobody reads what is printed any more, as behind ``| head``."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python itself would complain
    sys.exit(128 + signal.SIGPIPE)


def _run(name: str) -> int:
    """Run a task, or several in a sweep; return the exit status."""
    running, process = False, os.getpid()

    @hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=name)
    def run(cfg: DictConfig) -> Any:
        nonlocal running
        running = True
        _prepare_process()  # launchers run this function in processes of their own
        task = getattr(import_module(f"grace_lightning.tasks.{name}"), name)
        if os.getpid() == process and _is_first():
            handle(stop)
        if name == "train" and sweeps.in_sweep():
            return sweeps.run_job(task, cfg)
        try:
            return _outcome(name, task, cfg)
        except SystemExit as ended:
            if not sweeps.in_sweep():
                raise
            raise RunFailed(int(ended.code or 0)) from None  # not the end of the other runs

    OmegaConf.register_new_resolver("new_folder", _new_folder, use_cache=True, replace=True)
    _prepare_process()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would shorten tracebacks and exit with 1 on its own
    status = 0
    try:
        try:
            for key in (key_of(argument) for argument in sys.argv[1:] if not argument.startswith("-")):
                if message := removed(key):
                    raise InputError(f"{key}: {message}")
            sys.argv[1:] = _without_null_groups(name, sys.argv[1:])
            if name == "train":
                sys.argv[1:] = _with_config_file(sys.argv[1:])
            in_sweep = not {"-m", "--multirun"}.isdisjoint(sys.argv)
            sys.argv[1:] = [_readable(argument, in_sweep) for argument in sys.argv[1:]]
            run()
        finally:  # also of a sweep that was interrupted
            folder = shlex.quote(str(next(iter(sweeps.sweep_folders), "")))
            status = sweeps.finish()
    except RunFailed as failed:
        status = failed.status
    except (InputError, OmegaConfBaseException) as error:
        _fail(name, error)
    except (HydraException, OSError) as error:
        if running:
            raise
        _fail(name, error)
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("submitit", "joblib"):
            raise
        # A launcher lost a run, as the table says.
        reason = str(error).partition("\n")[0]
        lost = f"a run ended without a word ({type(error).__name__}: {reason})"
        again = f"when the other runs have ended, python -m grace_lightning.sweeps {folder} makes the table anew"
        print(f"grace-{name}: {lost}; {again}", file=sys.stderr)
        status = status or 1
    return status


class RunFailed(Exception):
    """A run of several has left with a ``status``."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _outcome(name: str, task: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """Return what a task returns; leave with a message for the user's mistakes, before Hydra prints more than that."""
    try:
        return task(cfg)
    except InputError as error:
        _remove_empty_run_folder()
        _fail(name, error)
    except BrokenPipeError:
        _leave_unread()
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        _fail(name, InputError(f"{error.filename}: {error.strerror}" if error.filename else error.strerror))


def _prepare_process() -> None:
    warnings.showwarning = _show_warning
    # PyTorch Geometric and torchmetrics still use what newer torch calls deprecated: nothing a user could act on.
    warnings.filterwarnings("ignore", message=".*is deprecated.*", module="torch")
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")  # nor could in processes that this one starts
    # pandas may bring numexpr, which greets at every start; alembic of Optuna lists its plugins, matplotlib its fonts
    for name in ("numexpr", "alembic", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ["MPLBACKEND"] = "agg"  # a notebook sets its own one for the commands that are run from it
    if hasattr(sys.stdout, "reconfigure"):  # a file's name may be of bytes that are no UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    # Threads that wait for others sleep, not spin: on shared cores a run takes a sixth of the processor time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


NULL_BY_DEFAULT = {"train": ("experiment",), "evaluate": ("link",), "predict": ("link", "detections")}


def _without_null_groups(name: str, arguments: list[str]) -> list[str]:
    """Refuse null as the choice of a group, which Hydra cannot take; leave it out where it is the default."""
    kept = []
    for argument in arguments:
        group, _, value = argument.partition("=")
        options = sorted(path.stem for path in (config_dir() / group).glob("*.yaml")) if group.isidentifier() else []
        if value != "null" or not options:
            kept.append(argument)
        elif group not in NULL_BY_DEFAULT.get(name, ()):
            raise InputError(f"{group}: null, expected one of {', '.join(options)}")
    return kept


def _with_config_file(arguments: list[str]) -> list[str]:
    """Put the overrides that the file of ``config_file=`` comes to in its place; say on stderr what has no effect."""
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
    place = arguments.index(given[0])  # Hydra's parser wants all overrides in one piece
    return [*others[:place], f"{key}{render(file)}", *overrides, *others[place:]]


def _readable(argument: str, in_sweep: bool) -> str:
    """Quote the value of ``key=value`` for Hydra, if Hydra cannot read it, or would not take a path for the text it is.

    What is quoted already, null, references and lists of checkpoints stay, and so do the values of a sweep.
    """
    key, given, value = argument.partition("=")
    if argument.startswith("-") or not given:
        return argument
    last = key.rpartition(".")[2]
    is_text = last.endswith("_dir") or last in TEXTS
    if is_text and value.startswith("~"):
        value = os.path.expanduser(value)
    try:
        override = OverridesParser.create().parse_override(f"{key}={value}")
    except HydraException:
        if in_sweep and "," in value:  # is the comma part of a value?
            return argument
        if last == "checkpoint" and re.fullmatch(r"\[.*\]", value):
            return f"{key}={render([part.strip() for part in value[1:-1].split(',')])}"
        return f"{key}={render(value)}"
    if is_text and override.value() == "":
        raise InputError(f"{key}: nothing follows the =, expected a path; leave the key out if there is none")
    taken = str, NoneType, *((list,) if last == "checkpoint" else ()), *((Sweep,) if in_sweep else ())
    return f"{key}={render(value)}" if is_text and not isinstance(override.value(), taken) else f"{key}={value}"


def _is_first() -> bool:
    """Return whether this process is the first of those that torchrun, SLURM or the like start for one run."""
    # Launchers number the processes of a run by one of these; RANK, if set, counts over all machines.
    ranks = ["RANK"] if "RANK" in os.environ else ["LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"]
    return all(os.environ.get(rank, "0") == "0" for rank in ranks)


def _new_folder(path: str) -> str:
    """Make and claim a folder; if runs started in one second want the same name, later ones get a number.

    Of several processes of one run, only the first has a run folder.
    """
    if not _is_first():
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


def _remove_empty_run_folder() -> None:
    """Remove the run folder if it holds nothing but what Hydra puts there before a command runs."""
    config = HydraConfig.get()
    folder, log = Path(config.runtime.output_dir), f"{config.job.name}.log"
    found = {path.name for path in folder.iterdir() if path.name != log or path.stat().st_size}
    if found == {config.output_subdir} and not folder.samefile("."):
        shutil.rmtree(folder, ignore_errors=True)


def _fail(command: str, error: Exception) -> NoReturn:
    text = one_line(error).partition(" Config search path:")[0].partition(" See https://hydra.cc")[0]
    if isinstance(error, OverrideParseException):
        key, given, value = error.override.partition("=")
        quoted = shlex.quote(f"{key}=" + ",".join(map(render, value.split(","))).replace("'", '"'))
        text = f"{error.override}: expected key=value"
        text += f"; in a sweep, quote each value: {quoted}" if given else "; quote blanks, as in 'image_dir=my images'"
    text = re.sub(r"^Could not override '(.+?)'\. To append .*", r"\1: no such key; --cfg job prints all keys", text)
    if plugin := re.search(r"Could not find 'hydra/launcher/(joblib|submitit_\w+)'", text):
        text = f'{plugin[1]} is not installed: pip install "grace-lightning[sweep]"'
    if isinstance(error, OSError) and error.filename:
        text = f"{error.filename}: {error.strerror}; the run folder cannot be made, set log_dir= to another place"
    print(f"grace-{command}: {text}", file=sys.stderr)
    sys.exit(2)


def _show_warning(message: Any, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any) -> None:
    ours = issubclass(category, InputWarning)
    sys.stderr.write(f"warning: {message}\n" if ours else warnings.formatwarning(message, category, filename, lineno))


train = partial(_command, "train")
evaluate = partial(_command, "evaluate")
predict = partial(_command, "predict")
annotate = partial(_command, "annotate")
simulate = partial(_command, "simulate")
export = partial(_command, "export")
