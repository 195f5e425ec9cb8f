"""What several commands need."""

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track
from torch import Tensor

from grace_lightning.errors import InputError, InputWarning
from grace_lightning.estimate import MOST_IMAGES, estimate
from grace_lightning.files import counted, one_line
from grace_lightning.ridges import Polarity
from grace_lightning.stopping import Stopped, until_stopped

Config = dict[str, Any]
T = TypeVar("T")

PACKAGES = (
    *("grace-lightning", "torch", "pytorch-lightning", "torch-geometric", "torchmetrics", "torchvision", "timm"),
    *("hydra-core", "omegaconf", "numpy", "scipy", "pandas", "pyarrow", "h5py", "scikit-image", "mrcfile", "tifffile"),
)
"""Packages whose version may change a result."""


def plain(cfg: DictConfig) -> Config:
    """Return the configuration as plain containers, all references resolved."""
    return cast(Config, OmegaConf.to_container(cfg, resolve=True))


def versions() -> dict[str, str | None]:
    """Return the version of each of :data:`PACKAGES`, None if it is not installed."""
    installed: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def expect_keys(config: Config, expected: Mapping[str, str]) -> None:
    """Raise an :class:`InputError` for a key that is not set, naming what is ``expected``."""
    for key, what in expected.items():
        if not config[key]:
            raise InputError(f"{key} is not set, expected {what}")


def look_at(
    images: Sequence[Path],
    read: Callable[[Path], Tensor],
    scale: float | Literal["auto"],
    polarity: Polarity | Literal["auto"] | None,
    before: Mapping[str, Any] | None = None,
    group: str = "",
) -> tuple[float, Polarity | None, str]:
    """Return the width of filaments, pixels, and what they are, and a line that tells what was ``auto`` of these.

    It is estimated from some of the ``images``, of those that can be read; or it is what ``before`` has, the record of
    an earlier run. ``group`` is what the keys begin with that override it.
    """
    asked = {"scale": scale, "polarity": polarity}
    known: Config = {key: None if value == "auto" else value for key, value in asked.items()}
    auto = [key for key in asked if asked[key] == "auto"]
    keys = {"scale": f"{group or 'features'}.scale=", "polarity": f"{group}.polarity=".lstrip(".")}
    if before and all(before.get(key) for key in auto):
        found, how = dict(before), "as in the images that are done"
    else:
        some, failures = images[:: -(-len(images) // MOST_IMAGES)] if images else images, []

        def pixels() -> Iterator[Tensor]:
            for path in some:
                try:
                    with warnings.catch_warnings(action="ignore", category=InputWarning):  # it is read again
                        image = read(path)
                except InputError as error:
                    failures.append(error)
                else:
                    yield image

        try:
            estimated = estimate(pixels(), known["scale"], known["polarity"])
        except InputError:
            if len(failures) == len(some) > 0:
                raise failures[0] from None
            raise
        if estimated.doubtful:
            looks = "little in the images looks like filaments: their width or polarity is a guess"
            warnings.warn(f"{looks}; give {' and '.join(keys[key] for key in auto)}", InputWarning, stacklevel=2)
        found, how = vars(estimated), f"estimated from {len(some) - len(failures)} of {counted(len(images), 'image')}"
    words = {"scale": f"{found['scale']:g} pixels wide", "polarity": found["polarity"]}
    override = f"{' and '.join(keys[key] for key in auto)} override{'' if auto[1:] else 's'}"
    told = f"filaments are {' and '.join(words[key] for key in auto)} ({how}; {override})"
    taken = known | {key: found[key] for key in auto}
    return taken["scale"], taken["polarity"], told


def tell(message: str) -> None:
    """Print a line; of several processes, the first one does."""
    if _is_first():
        print(message)


def warn(message: str) -> None:
    """Warn of something in the input; of several processes, the first one does."""
    if _is_first():
        warnings.warn(message, InputWarning, stacklevel=3)


def _is_first() -> bool:
    from lightning_fabric.utilities import rank_zero_only  # slow, and some commands do without

    return getattr(rank_zero_only, "rank", 0) == 0


def quiet_lightning() -> None:
    """Leave out what Lightning says to developers at every start."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*is deprecated.*",
        ".*callbacks used to create the checkpoint need to be provided.*",  # a run goes on without one of them
        "Checkpoint directory .* exists and is not empty.*",  # of a run that goes on in its folder
        "Detected pickle protocol.*",  # of a file that is refused anyway
    ):
        warnings.filterwarnings("ignore", message)


def each_image(
    images: Iterable[tuple[str, T]], total: int, work: Callable[[str, T], None], *, doing: str, first: bool = True
) -> tuple[dict[str, str], Stopped | None]:
    """Do ``work`` for every image, behind a progress bar; an image that fails does not stop the rest.

    Return what is wrong with the images that failed, by name: one line, or the traceback of a bug. On Ctrl-C and
    SIGTERM the image in hand is done, but no other one, and what stopped the command is returned, too. Of several
    processes, only the ``first`` one shows its progress.
    """
    console = Console(stderr=True)
    hidden = not first or not console.is_terminal
    failures: dict[str, str] = {}
    going = until_stopped(images, first=first)
    try:
        for name, image in track(going, doing, total, console=console, disable=hidden, transient=True):
            try:
                work(name, image)
            except InputError as error:
                failures[name] = one_line(error)
            except OSError as error:
                failures[name] = f"{error.filename or name}: {error.strerror or error}"
            except UnicodeEncodeError:
                failures[name] = f"{name}: this name, or that of a folder, is not in UTF-8; rename it"
            except Exception:
                failures[name] = f"{name}: a bug, please report it\n{traceback.format_exc()}"
    except Stopped as stopped:
        return failures, stopped
    return failures, None


def exit_if_failed(command: str, failures: Mapping[str, str], stopped: Stopped | None = None) -> None:
    """Say on stderr why images failed, and leave with status 1, unless the command is ``stopped``, or none did."""
    for name, message in sorted(failures.items()):
        print(f"{command}: {message if name in message else f'{name}: {message}'}", file=sys.stderr)
    if stopped:
        raise stopped
    if failures:
        sys.exit(1)


def on_devices(trainer: Config, make: Callable[[], T]) -> T:
    """Return what ``make`` makes, a Trainer or a Fabric; raise an :class:`InputError` if there are no such devices."""
    from lightning_fabric.utilities.exceptions import MisconfigurationException  # slow, and some commands do without

    given = ", ".join(
        f"trainer.{key}={trainer[key]}" for key in ("accelerator", "devices", "precision") if key in trainer
    )
    try:
        made: Any = make()
    except InputError:
        raise
    except (MisconfigurationException, RuntimeError, TypeError, ValueError) as error:  # whatever Lightning raises
        raise InputError(f"{given}: {one_line(error)}") from error
    most = 2 * (os.cpu_count() or 1)
    if made.strategy.root_device.type == "cpu" and getattr(made.strategy, "num_processes", 1) > most:
        raise InputError(
            f"{given}: one process for each, expected at most {most}, twice the processors of this machine"
        )
    return cast(T, made)
