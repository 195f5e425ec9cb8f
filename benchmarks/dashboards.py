"""What the dashboards cost, and how long a run takes to begin: the default run, a process of its own.

    python benchmarks/dashboards.py
    python benchmarks/dashboards.py --without              # also a run without them
    python benchmarks/dashboards.py trainer.max_epochs=20 callbacks.figures.every_n_epochs=10

The clock runs in every method that Lightning calls of the callbacks; writing to the event file, which a thread does
while training goes on, is not in it. A first run simulates its micrographs, later ones find them; start it twice.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

NAMES = ("Charts", "LearningRate", "GradientNorm", "Speed", "Figures", "Projector")
KEYS = ("charts", "learning_rate", "gradient_norm", "speed", "figures", "projector")
SHARE, START = "5 %", "15 s"


def clocked(target: type, name: str, wall: Counter[str], cpu: Counter[str]) -> None:
    """Add up the seconds of a method under the name of its class."""
    method = getattr(target, name)

    @functools.wraps(method)
    def timed(*args: object, **kwargs: object) -> object:
        before = time.perf_counter(), time.process_time()
        try:
            return method(*args, **kwargs)
        finally:
            wall[target.__name__] += time.perf_counter() - before[0]
            cpu[target.__name__] += time.process_time() - before[1]

    setattr(target, name, timed)


def child(report: Path, overrides: list[str]) -> None:
    """Train as ``grace-train`` does, with clocks."""
    from grace_lightning import callbacks
    from grace_lightning.cli import train
    from grace_lightning.module import GraceModule

    wall, cpu, first = Counter[str](), Counter[str](), list[float]()
    for name in NAMES:
        target = getattr(callbacks, name)
        for hook in [hook for hook in vars(target) if hook.startswith("on_")]:
            clocked(target, hook, wall, cpu)
    begin = GraceModule.on_train_epoch_start
    GraceModule.on_train_epoch_start = lambda self: (first.append(time.time()), begin(self))[1]  # type: ignore[method-assign]
    sys.argv = ["grace-train", *overrides]
    train()
    report.write_text(json.dumps({"wall": wall, "cpu": cpu, "first": first[0], "total_cpu": time.process_time()}))


def measure(overrides: list[str]) -> dict[str, object]:
    """Seconds of a run: of each callback, to its first epoch, and of all."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = [f"hydra.run.dir={folder}/run", "callbacks.progress=null", *overrides]
        start = time.time()
        command = [sys.executable, __file__, "--child", str(report), *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return {**json.loads(report.read_text()), "start": start, "total": time.time() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without", action="store_true", help="also measure a run without dashboards")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="of grace-train")
    args = parser.parse_args()
    if args.child:
        return child(args.child, args.overrides)
    runs = {"with": measure(args.overrides)}
    if args.without:
        runs["without"] = measure([*args.overrides, *(f"callbacks.{key}=null" for key in KEYS)])
    found = runs["with"]
    table = Table("", "s", "of the run", "CPU s", "of the run", "goal")
    sums = {kind: sum(found[kind].values()) for kind in ("wall", "cpu")}  # type: ignore[attr-defined]
    rows = [(name, found["wall"][name], found["cpu"][name], "") for name in NAMES]  # type: ignore[index]
    rows += [("all dashboards", sums["wall"], sums["cpu"], f"< {SHARE}")]
    rows += [(f"run {name} dashboards", run["total"], run["total_cpu"], "") for name, run in runs.items()]
    for name, wall, cpu, goal in rows:
        shares = [f"{part / whole:.1%}" for part, whole in ((wall, found["total"]), (cpu, found["total_cpu"]))]
        table.add_row(name, f"{wall:.2f}", shares[0], f"{cpu:.2f}", shares[1], goal)
    table.add_row("start of the first epoch", f"{found['first'] - found['start']:.1f}", "", "", "", f"< {START}")  # type: ignore[operator]
    Console().print(table)
    Console().print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", highlight=False)
    return None


if __name__ == "__main__":
    main()
