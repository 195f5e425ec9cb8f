"""Foreign errors turned into one line that names the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from grace_lightning.errors import InputError


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Whatever a library says about a bad file becomes an :class:`InputError` that names it.

    Decoders raise nearly anything on bytes they do not know (struct.error, IndexError, MemoryError, ...), so
    everything is caught; put little else than the library's calls inside.
    """
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: not found, expected {expected}") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read as {expected} ({reason})") from error


def expect_folder(path: str | Path, key: str | None = None) -> None:
    """Raise an :class:`InputError` where there is no such folder; it begins with the key that names it, if given."""
    path = Path(path)
    if not path.is_dir():
        named = f"{key}: {path}" if key else f"{path}"
        raise InputError(f"{named}: {'not a folder' if path.exists() else 'no such folder'}, expected a folder")


def some(names: Iterable[str], most: int = 5) -> str:
    """The first few of ``names``, for a message."""
    listed = list(names)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")
