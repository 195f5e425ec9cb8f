"""What all images of an output folder come to: one table, a page to look them over, and RELION's project."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from grace_lightning import io
from grace_lightning.files import counted, put, replacing, some
from grace_lightning.tasks.common import warn
from grace_lightning.tasks.overview import HEADER, Done, as_table, overview, rows_of
from grace_lightning.tasks.results import NOT_OURS, RECORD, SUMMARY

OVERVIEW = "index.html"
EDITED = "filaments.edited.csv"

SELDOM = 50
"""The page is written anew when so many times as long has passed as that takes: for few images, after each of them."""


class Joined:
    """The images of an output folder that are done, by whichever process; only what is new is read again."""

    def __init__(self, out_dir: Path, sources: Sequence[io.Source] = ()) -> None:
        self.out_dir = out_dir
        self.images = {source.name: source.image for source in sources}
        self._known: dict[str, tuple[int, Done]] = {}
        self._shown, self._took = -math.inf, 0.0

    def done(self) -> dict[str, Done]:
        """Return what is done by now, by name."""
        known = {}
        for folder in sorted(self.out_dir.glob("*.grace")):
            name, table = folder.name.removesuffix(".grace"), folder / SUMMARY
            with suppress(*NOT_OURS):  # it is not ours, or another process replaces it just now
                changed = table.stat().st_mtime_ns
                known[name] = self._known.get(name, (0, None))
                if known[name][0] != changed:
                    rows = rows_of(table.read_text(encoding="utf-8"))
                    known[name] = changed, Done(rows, json.loads((folder / "metadata.json").read_text("utf-8")))
        self._known = {name: entry for name, entry in known.items() if entry[1]}
        return {name: done for name, (_, done) in self._known.items()}

    def join(self) -> dict[str, int]:
        """Write the table, the page and RELION's project; return how many filaments each image has, by name."""
        done: dict[str, Done] | None = None
        while done != (done := self.done()):  # what another process has added meanwhile is not lost
            _write_table(self.out_dir, done)
            write_relion(self.out_dir, done, self.images)
            self._show(done)
        return {name: len(image.rows) for name, image in done.items()}

    def show_now_and_then(self) -> None:
        """Write the page, unless it was written just now."""
        start = time.monotonic()
        if start - self._shown > SELDOM * self._took:
            self._show(self.done())
            self._shown = time.monotonic()
            self._took = self._shown - start

    def _show(self, done: Mapping[str, Done]) -> None:
        with replacing(self.out_dir / OVERVIEW) as unfinished:
            unfinished.write_text(overview(done, len(self.images)), encoding="utf-8")


def _write_table(out_dir: Path, done: Mapping[str, Done]) -> None:
    table = out_dir / SUMMARY
    if table.is_file() and not table.read_text(encoding="utf-8", errors="replace").startswith(HEADER):
        put(table, out_dir / EDITED)
        warn(f"{table}: has other columns than those of grace-predict and is called {EDITED} now")
    with replacing(table) as unfinished:
        unfinished.write_text(as_table(done), encoding="utf-8")


def write_relion(out_dir: Path, done: Mapping[str, Done], images: Mapping[str, Path]) -> None:
    """Lay out all images that are done for RELION, in ``relion/``; warn of those that it cannot read.

    Images lie where ``images`` says; others where they lay when they were done.
    """
    laid = []
    for name, image in done.items():
        with suppress(*NOT_OURS):
            path = Path(images.get(name) or image.metadata["image_path"])
            if isinstance(image.metadata[RECORD], dict):
                laid.append((out_dir / name, path, image.metadata["pixel_size"]))
    left_out = io.write_project(out_dir / "relion", laid)
    if left_out:
        reasons = some(f"{name}: {reason}" for name, reason in left_out.items())
        found = f"left out {len(left_out)} of {counted(len(laid), 'image')}, which RELION cannot read ({reasons})"
        warn(f"{out_dir / 'relion'}: {found}")
