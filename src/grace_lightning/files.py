"""Reading and writing files: errors that name the file, and files that are never seen half written."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file or a folder whole or not at all; raises an :class:`InputError` if the disk is full or the like.

    Yields a path beside ``path`` to write to, which takes the name ``path`` once the block has ended. After an error,
    or if the process is killed, ``path`` is what it was before.
    """
    path = Path(path)
    unfinished, replaced = (path.with_name(f".{path.name}.{uuid4().hex}") for _ in range(2))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        if unfinished.is_dir() and path.exists():
            path.rename(replaced)
        unfinished.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        for left in (unfinished, replaced):
            shutil.rmtree(left, ignore_errors=True)
            if left.is_file():
                left.unlink()


MAX_GIB = 8.0
"""How much a file may unpack to if nothing else is set, GiB; an image of 30,000 x 30,000 pixels has 3.4."""


def expect_room(path: Path, size: int, max_gib: float = MAX_GIB, key: str = "io.max_gib") -> None:
    """Raise an :class:`InputError` if ``path`` says that it holds ``size`` bytes and that is above ``max_gib``.

    A small file can hold, or promise, more than the memory; it is asked before its content is unpacked.
    """
    if size > max_gib * 2**30:
        found = f"{path}: holds {size / 2**30:.3g} GiB of data, expected at most {max_gib:g}"
        raise InputError(f"{found}; if that is right, set {key} higher")


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
    """List the first few of ``names`` for a message."""
    listed = list(names)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")


def one_line(error: BaseException) -> str:
    """Return what an exception says, without line breaks; its class if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
