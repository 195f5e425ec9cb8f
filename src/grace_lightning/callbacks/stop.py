"""Stopping by Ctrl-C or a signal."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import pytorch_lightning as pl
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """The user, or the machine's scheduler, stops the run.

    Attributes
    ----------
    signal : which one asked for it
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = signal.Signals(number)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    for other in SIGNALS:  # whoever asks a second time does not want to wait
        signal.signal(other, signal.SIG_DFL)
    raise Stopped(number)


@contextmanager
def stopping_on_signals(*, first: bool = True) -> Iterator[None]:
    """Ctrl-C and SIGTERM raise :class:`Stopped` meanwhile; where another process is the ``first``, that one is told."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _stop if first else signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_with(parent: int) -> None:
    """End this process once ``parent`` has ended, killed perhaps: waiting for it would hold the device for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


class StopOnSignal(pl.Callback):
    """Ctrl-C and SIGTERM raise :class:`Stopped` in training, too.

    Of several processes the first one stops and ends those that it started: Lightning's own handler waits for the
    others to come to the same place, and they may be waiting for this one.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals over from Lightning, which gives them back at the end."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, _stop if trainer.is_global_zero else signal.SIG_IGN)
        if not trainer.is_global_zero:
            threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """End the processes that this one started: without it they would wait for ever."""
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            started = list(launcher.procs)
            launcher.procs.clear()  # else Lightning's observer would find them dead, and kill this process
            for process in started:
                process.kill()
                process.wait()
