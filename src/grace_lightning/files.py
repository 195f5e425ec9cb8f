"""Reading and writing files: errors that name the file, and files that are never seen half written."""

import errno
import json
import os
import platform
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from grace_lightning.errors import InputError


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Turn whatever a library says about a bad file into an :class:`InputError` that names the file.

    Decoders raise nearly anything on bytes that they do not know: put little more than the library's calls inside.
    """
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: not found, expected {expected}") from error
    except Exception as error:
        raise InputError(f"{path}: cannot be read as {expected} ({one_line(error)})") from error


DISK_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EFBIG,
    errno.EIO,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
)
"""What is wrong with a disk, and no bug."""


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn what the system says about a full or read-only disk into an :class:`InputError` that names ``path``."""
    try:
        yield
    except OSError as error:
        said = error.strerror or one_line(error)
        reason = next((words for words in map(os.strerror, DISK_ERRORS) if words in said), said)  # libraries say more
        raise InputError(f"{path}: cannot be written ({reason})") from error


def make_folder(path: str | Path, key: str) -> Path:
    """Make the folder that ``key`` names, unless it is there; an :class:`InputError` says why it cannot be made."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{key}: {path} cannot be made ({error.strerror}); choose another folder") from error
    return Path(path)


HOST = f"{zlib.crc32(platform.node().encode()):08x}"
UNFINISHED = re.compile(r"\.([0-9a-f]{8})-(\d{1,9})-[0-9a-f]{8}\.unfinished")
"""Names of folders with unfinished files: the computer and the process that writes them, and a random number."""

_own: set[str] = set()  # such folders of this process
_tidied: set[Path] = set()


@contextmanager
def unfinished_in(folder: Path) -> Iterator[Path]:
    """Yield a new hidden folder in ``folder``, which is made if need be, for files that are not complete yet.

    It is gone afterwards. If the process is killed, the next one that writes into ``folder`` removes it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if folder.absolute() not in _tidied:
        remove_unfinished(folder)
        _tidied.add(folder.absolute())
    unfinished = folder / f".{HOST}-{os.getpid()}-{uuid4().hex[:8]}.unfinished"
    _own.add(unfinished.name)
    try:
        unfinished.mkdir()
        yield unfinished
    finally:
        _own.discard(unfinished.name)
        _remove(unfinished)


def remove_unfinished(folder: Path) -> None:
    """Remove unfinished files in ``folder`` of processes of this computer that have ended; put back what they moved."""
    for path in folder.iterdir() if folder.is_dir() else ():
        found = UNFINISHED.fullmatch(path.name)
        if found and found[1] == HOST and path.name not in _own and not _lives(int(found[2])):
            _remove(path)


def _remove(unfinished: Path) -> None:
    for replaced in unfinished.glob("*.replaced"):
        path = unfinished.parent / Path(replaced.stem).stem
        if not path.exists():  # the process ended between two steps of :func:`put`
            with suppress(OSError):
                replaced.rename(path)
    shutil.rmtree(unfinished, ignore_errors=True)


def _lives(process: int) -> bool:
    if process == os.getpid():  # an earlier process with this number, as in a container that was started again
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        pass
    return True


def put(unfinished: Path, path: Path) -> None:
    """Give a complete file or folder its name ``path``; what was there goes to where ``unfinished`` was."""
    for attempt in range(100):  # of two processes that put a folder there at once, one does so again
        if unfinished.is_dir():
            with suppress(FileNotFoundError):
                path.rename(unfinished.with_name(f"{path.name}.{attempt}.replaced"))
        try:
            unfinished.replace(path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))


def sync(path: Path) -> None:
    """Wait until a file, or all files of a folder, are on the disk: some disks say only then that they are full."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file or a folder whole or not at all; raises an :class:`InputError` if the disk is full or the like.

    Yields a path of the same name to write to, which takes the place of ``path`` once the block has ended. After an
    error, or if the process is killed, ``path`` is what it was before.
    """
    path = Path(path)
    if path.parent.name in _own:  # a part of something that is replaced as a whole
        yield path
        return
    with writing(path), unfinished_in(path.parent) as folder:
        unfinished = folder / path.name
        yield unfinished
        sync(unfinished)
        put(unfinished, path)


MAX_GIB = 8.0
"""How much a file may unpack to if nothing else is set, GiB; an image of 30,000 x 30,000 pixels has 3.4."""


def expect_room(path: Path, size: int, max_gib: float = MAX_GIB, group: str = "") -> None:
    """Raise an :class:`InputError` if ``path`` says that it holds ``size`` bytes and that is above ``max_gib``.

    A small file can hold, or promise, more than the memory; it is asked before its content is unpacked. ``group`` is
    where the command has the key: ``data.`` in training, else ``io.``.
    """
    if size > max_gib * 2**30:
        found = f"{path}: holds {size / 2**30:.3g} GiB of data, expected at most {max_gib:g}"
        raise InputError(f"{found}; if that is right, set {group or 'io.'}max_gib higher")


def write_json(path: str | Path, content: Any) -> None:
    """Write a JSON file; NaN is an error."""
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def expect_folder(path: str | Path, key: str | None = None) -> None:
    """Raise an :class:`InputError` unless ``path`` is a folder; the message begins with ``key`` if one is given."""
    path = Path(path)
    if not path.is_dir():
        named = f"{key}: {path}" if key else f"{path}"
        raise InputError(f"{named}: {'not a folder' if path.exists() else 'no such folder'}, expected a folder")


def short(path: Path) -> str:
    """Return the path relative to the current folder if it lies inside, else unchanged."""
    return os.path.relpath(path) if path.resolve().is_relative_to(Path.cwd()) else str(path)


def some(names: Iterable[str], most: int = 5) -> str:
    """List the first few of ``names`` for a message, each on one line whatever a file calls it."""
    listed = [" ".join(name.split()) for name in names]
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")


def counted(number: int, noun: str) -> str:
    """Return a number and its noun, such as ``1 image`` and ``1,200 images``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def one_line(error: BaseException) -> str:
    """Return what an exception says, without line breaks; its class if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
