"""Several images of ``grace-predict`` in work at once."""

import math
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from itertools import islice
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple, NoReturn

import torch

from grace_lightning import io
from grace_lightning.errors import InputWarning
from grace_lightning.link import Linker
from grace_lightning.predictor import Prepared, Probabilities, findings_of
from grace_lightning.ridges import Polarity
from grace_lightning.stopping import handle
from grace_lightning.tasks.common import Config
from grace_lightning.tasks.results import Export, Micrograph, write_results

MOST_AT_ONCE = 16  # images; one process cannot keep more cores busy
MOST_PIXELS = 2**28  # of the images that are in work at once: of 4096 x 4096 pixels, 16
MANY = 100  # images; fewer are done before further processes have started


class Looked(NamedTuple):
    """A micrograph, and what the networks see in it."""

    micrograph: Micrograph
    prepared: Prepared
    said: Probabilities
    record: Config


class Result(NamedTuple):
    """What is told of an image that is done."""

    pixel_size: float | None  # Angstrom
    pixels: int
    closed: int  # filaments without ends


def write_found(
    out_dir: Path, export: Export, linker: Linker, scale: float, polarity: Polarity | None, seen: Looked
) -> Result:
    """Link what was seen in an image and write its results; see :func:`.write_results`."""
    findings = findings_of(seen.prepared, seen.said, linker, scale)
    write_results(out_dir, seen.micrograph, findings, export, scale=scale, polarity=polarity, record=seen.record)
    closed = sum(filament.closed for filament in findings.filaments)
    return Result(seen.micrograph.pixel_size, math.prod(seen.micrograph.size), closed)


def together(
    sources: Sequence[io.Source],
    look: Callable[[io.Source], Looked],
    write: Callable[[Looked], Result],
    done: dict[str, Result],
    at_once: int,
    most_pixels: int | None = MOST_PIXELS,
) -> Generator[tuple[str, Future[Result]]]:
    """Look at so many images ``at_once``, and write what is seen; the result is put into ``done`` by the image's name.

    Large images are fewer, so that they have ``most_pixels`` together, and two until the first is done.

    Threads do that. In linking, drawing and writing, they make each other wait: if there are :data:`MANY` images,
    further processes do that as soon as they have started. If this is closed, images that were begun are done to the
    end.
    """
    processes = _processes(at_once // 2) if at_once > 2 and len(sources) >= MANY else None
    left, num_threads = iter(sources), torch.get_num_threads()
    torch.set_num_threads(1)  # however many there are: the last digits of sums depend on it
    with processes or nullcontext(), ThreadPoolExecutor(at_once + 1) as threads:
        started = threads.submit(processes.submit, os.getpid) if processes else None

        def work(source: io.Source) -> Result:
            seen = look(source)
            try:
                ready = started and started.done() and not started.exception()
                result = _elsewhere(processes, write, seen) if processes and ready else write(seen)
            except BrokenProcessPool:  # the system has ended one, perhaps for lack of memory: do with fewer
                result = write(seen)
            done[source.name] = result
            return result

        def begin(count: int) -> dict[Future[Result], str]:
            return {threads.submit(work, source): source.name for source in islice(left, count)}

        try:
            going, largest = begin(at_once if most_pixels is None else min(at_once, 2)), 0
            while going:
                for ended in wait(going, return_when=FIRST_COMPLETED).done:
                    if not ended.exception():
                        largest = max(largest, ended.result().pixels)
                    yield going.pop(ended), ended
                fit = at_once if most_pixels is None else max(1, most_pixels // largest) if largest else 2
                going |= begin(max(0, min(at_once, fit) - len(going)))
        finally:
            torch.set_num_threads(num_threads)


def _processes(count: int) -> ProcessPoolExecutor:
    # Not by a fork of this process, which has threads and perhaps a GPU.
    context = get_context("spawn" if sys.platform == "win32" else "forkserver")
    context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(count, context, _serve)


def _serve() -> None:
    """Begin a process that writes: only the one that has started it stops it, be it by its own end."""
    handle(signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent_process(),), daemon=True).start()
    torch.set_num_threads(1)


def _end_with(parent: BaseProcess) -> NoReturn:
    parent.join()
    os._exit(1)


def _elsewhere(processes: ProcessPoolExecutor, write: Callable[[Looked], Result], seen: Looked) -> Result:
    # As bytes: torch hands tensors over in shared memory, of which a container may have 64 MB.
    result, told = processes.submit(_unpacked, write, pickle.dumps(seen)).result()
    for message in told:
        warnings.warn(message, stacklevel=2)
    return result


def _unpacked(write: Callable[[Looked], Result], seen: bytes) -> tuple[Result, list[Warning]]:
    with warnings.catch_warnings(record=True) as told:
        result = write(pickle.loads(seen))
    return result, [one.message for one in told if isinstance(one.message, InputWarning)]
