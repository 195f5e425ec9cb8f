"""A thousand micrographs through ``grace-predict``, killed, doubled, on a full disk: what comes of it?

    python benchmarks/soak.py                           # about ten minutes
    python benchmarks/soak.py --images 100 --kills 3

Simulated micrographs are done once by one process, whose memory is printed for every tenth of them, and once more by
processes that are killed (SIGKILL) at random moments; between the kills, two of them work beside each other for a
while, and once no file may be larger than 8 kB, as if the disk were full. Then all files must be the same to the byte.
"""

import argparse
import multiprocessing
import os
import random
import resource
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

from common import compose
from rich.console import Console
from rich.table import Table

from grace_lightning.simulate import Simulator, simulate_folder
from grace_lightning.stopping import Stopped
from grace_lightning.tasks.predict import predict

CONTEXT = multiprocessing.get_context("fork")  # imports and all; threads are started by the children alone


def make(folder: Path, count: int, size: int) -> None:
    simulator = Simulator(size=[size, size], num_filaments=2, scale=12.0, spacing=10, false_detections=20, snr=0.3)
    simulate_folder(simulator, folder, num_images=count)


def do(images: Path, out_dir: Path, most: int = resource.RLIM_INFINITY) -> None:
    """Run ``grace-predict``, which may write files of so many bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    keys = [f"image_dir={images}", f"out_dir={out_dir}", "features.scale=12", "polarity=dark", "detections=ridge"]
    expected = suppress(SystemExit, Stopped)  # of images that could not be written
    with expected, open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        predict(compose("predict", *keys))


def started(*arguments: object) -> BaseProcess:
    process = CONTEXT.Process(target=do, args=arguments)
    process.start()
    return process


def number_done(out_dir: Path) -> int:
    return len(list(out_dir.glob("*.grace")))


def watched(process: BaseProcess, out_dir: Path, until: int) -> int:
    """Wait until so many images are done, or the process has ended; return how many are."""
    while process.is_alive() and number_done(out_dir) < until:
        time.sleep(0.02)
    return number_done(out_dir)


def memory(process: BaseProcess) -> float:
    """Return the memory of a process, GiB; NaN if it has ended."""
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        return float(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 2**20
    return float("nan")


def disturbed(
    images: Path, out_dir: Path, count: int, kills: int, generator: random.Random
) -> Iterator[tuple[str, int]]:
    """Do all images in spite of everything; yield what has happened, and how many images were done then."""
    targets = sorted(generator.sample(range(count), kills))
    for k, target in enumerate(targets):
        if k == kills // 2:
            full = started(images, out_dir, 8000)
            full.join(10)
            full.terminate()
            full.join()
            yield "full disk", number_done(out_dir)
        processes = [started(images, out_dir) for _ in range(1 + (k % 3 == 2))]  # every third time, two at once
        watched(processes[0], out_dir, target)
        time.sleep(generator.uniform(0, 0.5))  # in the midst of whatever it does
        processes[0].kill()
        processes[0].join()
        yield f"killed{', with another one beside' if processes[1:] else ''}", number_done(out_dir)
        for process in processes[1:]:
            watched(process, out_dir, target + count // (2 * kills))
            process.kill()
            process.join()
            yield "the other one killed", number_done(out_dir)
    last = started(images, out_dir)
    last.join()
    yield f"went on to the end: exit status {last.exitcode}", number_done(out_dir)


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of all files, by name; where they name their folder, without its name."""
    name = folder.name.encode()
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes().replace(name + b"/relion", b"") for path in paths}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", type=int, default=256, help="side of the micrographs, pixels")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    args = parser.parse_args()
    table = Table("", "images done", "s", "GiB", title=f"{args.images} micrographs of {args.size} x {args.size} pixels")
    with tempfile.TemporaryDirectory() as name:
        images, calm, rough = (Path(name, part) for part in ("images", "calm", "rough"))
        maker = CONTEXT.Process(target=make, args=(images, args.images, args.size))
        maker.start()
        maker.join()
        start, process = time.monotonic(), started(images, calm)
        for tenth in range(1, 11):
            done = watched(process, calm, max(1, args.images * tenth // 10 - 1))
            table.add_row("undisturbed", f"{done}", f"{time.monotonic() - start:.0f}", f"{memory(process):.2f}")
        process.join()
        start = time.monotonic()
        for event, done in disturbed(images, rough, args.images, args.kills, random.Random(args.seed)):
            table.add_row(event, f"{done}", f"{time.monotonic() - start:.0f}", "")
        found, expected = files(rough), files(calm)
    Console(width=120).print(table)
    differ = {path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path)}
    print(f"{len(expected):,} files, {len(differ)} differ {sorted(differ)[:5] if differ else ''}")


if __name__ == "__main__":
    main()
