"""A training in a process of its own, which goes on if the window is closed."""

import csv
import shlex
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

COMMAND = [sys.executable, "-c", "from grace_lightning.cli import train; train()"]


class Training:
    """``grace-train`` on what is annotated so far; its folder has ``log.txt``, the metrics and the checkpoints."""

    def __init__(
        self, image_dir: Path, grace_dir: Path, init: str, scale: float, overrides: Sequence[str] = ()
    ) -> None:
        self.folder = grace_dir / "runs" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        self.folder.mkdir(parents=True)
        given = {"image_dir": image_dir, "grace_dir": grace_dir}
        keys = ["data=folders", *(f"data.{key}='{path.resolve()}'" for key, path in given.items())]
        keys += [f"init='{init}'", f"hydra.run.dir='{self.folder.resolve()}'", "logger=csv", "callbacks.progress=null"]
        self.typed = [*keys, f"features.scale={scale:g}", "evaluate.pictures=false", *overrides]
        with (self.folder / "log.txt").open("w") as log:
            log.write(shlex.join(["grace-train", *self.typed]) + "\n")
            log.flush()
            self.process = subprocess.Popen(
                [*COMMAND, *self.typed], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.poll() is None

    @property
    def best(self) -> Path | None:
        """The best checkpoint so far."""
        path = self.folder / "model" / "best.ckpt"
        return path if path.is_file() else None

    def stop(self) -> None:
        """Let it end after the epoch's last step, with a checkpoint to go on from."""
        if self.running:
            self.process.send_signal(signal.SIGINT)

    def told(self) -> str:
        """Return one line: how far it is, and how well it does."""
        rows: list[dict[str, str]] = []
        with suppress(OSError), (self.folder / "csv" / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        seen: dict[str, str] = {}
        for row in rows:
            seen |= {key: value for key, value in row.items() if value}
        words = {"train/loss": "loss {:.3f}", "valid/node_f1": "F1 of nodes {:.3f}", "valid/edge_f1": "of edges {:.3f}"}
        told = [text.format(float(seen[key])) for key, text in words.items() if key in seen]
        epochs = f"epoch {int(float(seen['step'])) + 1}: " if "step" in seen else ""
        if self.running:
            return f"training, {epochs}{', '.join(told)}" if told else "training begins"
        if self.process.returncode == 0:
            return f"trained, {epochs}{', '.join(told)}"
        with suppress(OSError), (self.folder / "log.txt").open() as file:
            last = [line.strip() for line in deque(file, 3) if line.strip()]
        return f"training ended: {last[-1] if last else self.folder}"
