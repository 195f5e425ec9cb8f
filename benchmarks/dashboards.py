"""What the dashboards cost, and how long a run takes to begin: the default run, a process of its own.

    python benchmarks/dashboards.py
    python benchmarks/dashboards.py --without              # also a run without them
    python benchmarks/dashboards.py trainer.max_epochs=20 callbacks.figures.every_n_epochs=10

The clock runs in every method of the callbacks that Lightning calls; a thread writes the event file while training
goes on, which is not in it. A first run simulates its micrographs, later ones find them; start it twice.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from pytorch_lightning.profilers import Profiler
from rich.console import Console
from rich.table import Table

NAMES = ("Charts", "Figures", "Projector")
SHARE, START = "5 %", "15 s"


class Clock(Profiler):
    """Adds up seconds by what Lightning calls, ``[Callback]Figures.on_train_end``; writes them at the end of a fit."""

    def __init__(self, dirpath: str, filename: str) -> None:
        super().__init__(dirpath, filename)
        self.seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.begin: dict[str, tuple[float, float]] = {}
        self.first = 0.0

    def start(self, action_name: str) -> None:
        """Start the clock of an action."""
        if action_name == "[LightningModule]GraceModule.on_train_epoch_start":
            self.first = self.first or time.time()
        self.begin[action_name] = time.perf_counter(), time.process_time()

    def stop(self, action_name: str) -> None:
        """Add its wall and CPU seconds."""
        wall, cpu = self.begin[action_name]
        sums = self.seconds[action_name]
        sums[:] = sums[0] + time.perf_counter() - wall, sums[1] + time.process_time() - cpu

    def summary(self) -> str:
        """Return what Lightning writes into the file."""
        return json.dumps({"first": self.first, "seconds": self.seconds})


class Run:
    """A run as by ``grace-train``: seconds to its first epoch, of each callback, and of all, wall and CPU."""

    def __init__(self, overrides: list[str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            clock = f"+trainer.profiler={{_target_: dashboards.Clock, dirpath: '{folder}', filename: clock}}"
            options = [f"hydra.run.dir={folder}/run", "callbacks.progress=null", clock, *overrides]
            path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
            start, cpu = time.time(), sum(os.times()[2:4])  # of child processes, user and system
            subprocess.run(
                [Path(sys.executable).with_name("grace-train"), *options],
                env=os.environ | {"PYTHONPATH": path},
                check=True,
                stdout=subprocess.DEVNULL,
            )
            self.total = [time.time() - start, sum(os.times()[2:4]) - cpu]
            report = json.loads(next(Path(folder).glob("*clock*")).read_text())
        self.start = report["first"] - start
        self.seconds = {
            name: [
                sum(s[k] for key, s in report["seconds"].items() if key.startswith(f"[Callback]{name}")) for k in (0, 1)
            ]
            for name in NAMES
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without", action="store_true", help="also measure a run without dashboards")
    parser.add_argument("overrides", nargs="*", help="of grace-train")
    args = parser.parse_args()
    run = Run(args.overrides)
    rows = run.seconds | {"all dashboards": [sum(part) for part in zip(*run.seconds.values(), strict=True)]}
    rows |= {"run with dashboards": run.total}
    if args.without:
        off = [f"callbacks.{name.lower()}=null" for name in NAMES]
        rows["run without dashboards"] = Run([*args.overrides, *off]).total
    table = Table("", "s", "of the run", "CPU s", "of the run", "goal")
    for name, seconds in rows.items():
        cells = [text for s, all_ in zip(seconds, run.total, strict=True) for text in (f"{s:.2f}", f"{s / all_:.1%}")]
        table.add_row(name, *cells, f"< {SHARE}" if name == "all dashboards" else "")
    table.add_row("start of the first epoch", f"{run.start:.1f}", "", "", "", f"< {START}")
    Console().print(table)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
