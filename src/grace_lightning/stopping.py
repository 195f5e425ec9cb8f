"""Ctrl-C and SIGTERM: a command stops at once, or as soon as the image in hand is done."""

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """The user, or the machine's scheduler, stops the command with a ``signal``."""

    failures: Mapping[str, str] = {}  # what was wrong with images until then, by name

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)

    @property
    def by(self) -> str:
        """What stopped the command, for a message."""
        return "Ctrl-C" if self.signal is signal.SIGINT else self.signal.name


def handle(handler: Any) -> dict[int, Any]:
    """Set the handler of both signals and return those before; no other thread than the main one may, and does."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in SIGNALS}


@contextmanager
def handling(handler: Any) -> Iterator[None]:
    """Handle both signals by ``handler`` within the block."""
    before = handle(handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def stop(number: int, frame: FrameType | None) -> NoReturn:
    """Raise :class:`Stopped`, a handler of signals; a second signal ends the process at once."""
    handle(signal.SIG_DFL)
    raise Stopped(number)


def stopping_on_signals(*, first: bool = True) -> Any:
    """Raise :class:`Stopped` on Ctrl-C and SIGTERM in the ``first`` of several processes; the rest ignore both."""
    return handling(stop if first else signal.SIG_IGN)


def until_stopped(items: Iterable[T], *, first: bool = True) -> Iterator[T]:
    """Yield ``items``; after Ctrl-C or SIGTERM, raise :class:`Stopped` instead of the next one.

    What is done with the item in hand goes on to its end, but for a second signal, which ends the process at once. Of
    several processes, those that are not the ``first`` live until it has ended.
    """
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if first:
            handle(signal.SIG_DFL)

    with handling(note):
        for item in items:
            if asked:
                raise Stopped(asked[0])
            yield item


def end_with_parent() -> None:
    """End this process once the one that has started it has ended, however that was."""
    threading.Thread(target=_wait_for, args=(os.getppid(),), daemon=True).start()


def _wait_for(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
