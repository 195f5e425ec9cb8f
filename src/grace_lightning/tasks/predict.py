"""``grace-predict``."""

from __future__ import annotations

import hashlib
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import RichProgressBar
from rich.console import Console
from torch.utils.data import DataLoader, Dataset

from grace_lightning import figures, io
from grace_lightning.config import build, check_value
from grace_lightning.errors import InputError, InputWarning
from grace_lightning.tasks.common import Config, checkpoint_paths, exit_if_failed, plain, quiet_lightning, short
from grace_lightning.tasks.predictor import Findings, Predictor, Prepared
from grace_lightning.tasks.results import (
    Export,
    Micrograph,
    is_done,
    join_summaries,
    read_record,
    settings,
    write_results,
)

T = TypeVar("T")

Frame = int | Literal["mean"] | None


def predict(cfg: DictConfig) -> None:
    """Find the filaments of all micrographs of a folder that have detections; see :mod:`grace_lightning.tasks.results`.

    Images that fail are named at the end, when the others are done; the exit status is 1 then.
    """
    config = plain(cfg)
    quiet_lightning()
    _check(config)
    out_dir = Path(config["out_dir"])
    export: Export = build(config["export"], "export")
    sources = _find_sources(config, out_dir)
    predictor = Predictor.from_checkpoint(
        config["checkpoint"], scale=config["features"]["scale"], link=config.get("link")
    )
    frame = predictor.frame if config["frame"] is None else config["frame"]
    digests = [_digest(path) for path in checkpoint_paths(config["checkpoint"])]
    used = settings(
        export,
        checkpoint=digests if len(digests) > 1 else digests[0],
        scale=predictor.scale,
        link=config.get("link"),
        frame=frame,
        pixel_size=config["pixel_size"],
    )
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out_dir: {out_dir} cannot be made ({error.strerror})") from error
    failures, wanted = _left_to_do(sources, out_dir, export, used, config["overwrite"])

    writer = _Writer(out_dir, export, predictor.scale, used, failures)
    console = Console()
    trainer: pl.Trainer = build(
        config["trainer"],
        "trainer",
        callbacks=[writer, *([RichProgressBar(leave=False)] if console.is_terminal else [])],
        enable_progress_bar=console.is_terminal,
        enable_checkpointing=False,
        logger=False,
    )
    if 0 < len(wanted) < trainer.world_size:
        raise InputError(
            f"trainer.devices: {trainer.world_size} processes for {len(wanted)} images, expected an image for each at "
            "least; set trainer.devices=1"
        )
    if wanted:
        images = _Images(wanted, predictor, frame, config["pixel_size"])
        loader = _Ahead(images, batch_size=1, collate_fn=_only)
        trainer.predict(_Finder(predictor), loader, return_predictions=False)
    if trainer.is_global_zero:
        _report(console, writer, len(sources), len(sources) - len(wanted) - len(failures), len(digests))


def _check(config: Config) -> None:
    for key, expected in {
        "checkpoint": str | list[str] | None,
        "image_dir": str | None,
        "detections_dir": str | None,
        "out_dir": str,
        "overwrite": bool,
        "frame": Frame,
        "pixel_size": float | None,
    }.items():
        check_value(config[key], expected, key)
    for key, example in {
        "checkpoint": "a file such as checkpoint=runs/<run>/model/best.ckpt",
        "image_dir": "the folder of the micrographs",
    }.items():
        if config[key] is None or config[key] == []:
            raise InputError(f"{key} is not set; give {example}")
    if config["pixel_size"] is not None and not 0 < config["pixel_size"] < float("inf"):
        raise InputError(f"pixel_size: {config['pixel_size']}, expected Angstrom per pixel, above 0")


def _digest(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


# ---- which images ---------------------------------------------------------------------------------------------------


def _find_sources(config: Config, out_dir: Path) -> list[io.Source]:
    """Images with detections, sorted by name; warns of images without, and of detections without an image."""
    image_dir = Path(config["image_dir"])
    detections_dir = image_dir if config["detections_dir"] is None else Path(config["detections_dir"])
    for key, folder in {"image_dir": image_dir, "detections_dir": detections_dir}.items():
        io.expect_folder(folder, key)
        if out_dir.resolve() == folder.resolve():
            raise InputError(
                f"out_dir: {out_dir} is {key} too, where results would replace images, detections or annotations; "
                "choose another folder"
            )
    images = io.find_images(image_dir)
    every = [io.Source(io.stem(path), path, None, io.find_detections(detections_dir, io.stem(path))) for path in images]
    sources = [source for source in every if source.detections is not None]
    names = {source.name for source in every}
    files = [path for path in detections_dir.iterdir() if path.suffix in io.DETECTION_SUFFIXES and path.is_file()]
    alone = sorted(path.name for path in files if path.stem not in names and not path.name.startswith("."))
    if not sources:
        found = f"; found {_some(alone)}" if alone else ""
        raise InputError(
            f"{detections_dir}: no detections ({', '.join(io.DETECTION_SUFFIXES)}) for any of the {len(every)} images "
            f"in {image_dir}, such as {every[0].name}{io.DETECTION_SUFFIXES[0]}{found}"
        )
    lacking = [source.name for source in every if source.detections is None]
    if lacking:
        _warn(f"{detections_dir}: no detections for {len(lacking)} of {len(every)} images, left out: {_some(lacking)}")
    if alone:
        _warn(f"{detections_dir}: no image for {len(alone)} detection files, left out: {_some(alone)}")
    return sources


def _left_to_do(
    sources: Sequence[io.Source], out_dir: Path, export: Export, used: Config, overwrite: bool
) -> tuple[list[_Failure], list[io.Source]]:
    """Images whose results would replace something else, and those that are to be done."""
    failures, wanted, changed = [], [], []
    for source in sources:
        try:
            record = read_record(out_dir, source.name)
        except InputError as error:
            failures.append(_Failure(source.name, str(error)))
            continue
        if overwrite or record is None or not is_done(out_dir, source.name, export):
            wanted.append(source)
        elif record != _record(used, source):
            changed.append(source.name)
    if changed:
        _warn(
            f"{out_dir}: {len(changed)} images were done with another checkpoint, other settings or other input files, "
            f"and were skipped: {_some(changed)}; overwrite=true does them anew"
        )
    return failures, wanted


def _record(used: Config, source: io.Source) -> Config:
    """What an image's results depend on; files are told by their size and time."""
    files = {"image": source.image, "detections": source.detections}
    stats = {key: path.stat() for key, path in files.items() if path is not None}
    return {**used, **{key: [stat.st_size, stat.st_mtime_ns] for key, stat in stats.items()}}


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _warn(message: str) -> None:
    warnings.warn(message, InputWarning, stacklevel=3)


# ---- image by image -------------------------------------------------------------------------------------------------


class _Failure:
    """Why an image could not be done; a value, so that the others go on."""

    def __init__(self, name: str, message: str) -> None:
        self.name, self.message = name, message

    def __str__(self) -> str:
        return self.message if self.name in self.message else f"{self.name}: {self.message}"


class _Item:
    """An image on its way to the network; no dataclass, as Lightning would copy that field by field."""

    def __init__(self, source: io.Source, micrograph: Micrograph, prepared: Prepared) -> None:
        self.source, self.micrograph, self.prepared = source, micrograph, prepared

    def to(self, device: torch.device, **_: Any) -> _Item:
        """The same with its data on ``device``."""
        return _Item(self.source, self.micrograph, self.prepared.to(device))


def _attempt(name: str, step: Callable[[], T]) -> T | _Failure:
    """What ``step`` returns, or why it failed: a line for the user's mistakes, the traceback of a bug."""
    try:
        return step()
    except InputError as error:
        # Readers name the key as grace-train has it.
        return _Failure(name, " ".join(str(error).replace("data.frame", "frame").split()))
    except OSError as error:
        return _Failure(name, f"{error.filename or name}: {error.strerror or error}")
    except Exception:
        return _Failure(name, f"{name}: a bug, please report it\n{traceback.format_exc()}")


class _Images(Dataset[_Item | _Failure]):
    """Images read and prepared, or why they could not be."""

    def __init__(
        self, sources: Sequence[io.Source], predictor: Predictor, frame: Frame, pixel_size: float | None
    ) -> None:
        self.sources, self.predictor = sources, predictor
        self.frame, self.pixel_size = frame, pixel_size

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> _Item | _Failure:
        source = self.sources[index]
        return _attempt(source.name, partial(self._read, source))

    def _read(self, source: io.Source) -> _Item:
        assert source.detections is not None
        image = io.read_image(source.image, frame=self.frame)
        table = io.read_detections(source.detections)
        pos = torch.from_numpy(table[["x", "y"]].to_numpy(np.float32, copy=True))
        confidence = None
        if "confidence" in table:
            confidence = torch.from_numpy(table["confidence"].to_numpy(np.float32, copy=True))
        micrograph = Micrograph(
            source.name,
            source.image.name,
            (image.shape[1], image.shape[2]),
            figures.thumbnail(image),
            io.pixel_size(source.image) if self.pixel_size is None else float(self.pixel_size),
        )
        try:
            prepared = self.predictor.prepare(image, pos, confidence, source.name)
        except InputError as error:
            raise InputError(f"{source.detections}: {error}") from error
        if prepared.duplicates:
            _warn(
                f"{source.detections}: {prepared.duplicates} of {len(pos)} detections lie exactly on another one; "
                "they have its predictions"
            )
        return _Item(source, micrograph, prepared)


def _only(items: Sequence[T]) -> T:
    return items[0]


class _Ahead(DataLoader[_Item | _Failure]):
    """Prepares the next image in a thread while the network, the linker and the disk are busy with one.

    A process would have to send 64 MB per micrograph, and could not use the GPU for frozen features.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        items = super().__iter__()
        with ThreadPoolExecutor(1) as thread:
            coming = thread.submit(next, items, None)
            while (item := coming.result()) is not None:
                coming = thread.submit(next, items, None)
                yield item


class _Finder(pl.LightningModule):
    """The predictor as a Trainer runs it."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.predictor = predictor

    def predict_step(self, batch: _Item | _Failure, batch_idx: int) -> Findings | _Failure:
        """Filaments of one image."""
        if isinstance(batch, _Failure):
            return batch
        return _attempt(batch.source.name, partial(self.predictor.find, batch.prepared))


class _Writer(pl.Callback):
    """Writes each image's results as soon as they are there, and keeps nothing of them."""

    def __init__(self, out_dir: Path, export: Export, scale: float, used: Config, failures: list[_Failure]) -> None:
        self.out_dir, self.export, self.scale, self.used = out_dir, export, scale, used
        self.failures = failures
        self.without_pixel_size: list[str] = []
        self.rings = 0

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: _Item | _Failure,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write one image's results."""
        done = outputs
        if isinstance(batch, _Item) and isinstance(outputs, Findings):
            done = _attempt(batch.source.name, partial(self._write, batch, outputs))
        if isinstance(done, _Failure):
            self.failures.append(done)

    def _write(self, item: _Item, findings: Findings) -> None:
        micrograph, record = item.micrograph, _record(self.used, item.source)
        write_results(self.out_dir, micrograph, findings, self.export, scale=self.scale, record=record)
        if micrograph.pixel_size is None:
            self.without_pixel_size.append(micrograph.name)
        self.rings += int(findings.filaments.closed.sum())

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let all processes know what failed in any of them."""
        if trainer.world_size > 1:
            mine = (self.failures, self.without_pixel_size, self.rings)
            every: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(every, mine)
            unique = {failure.name: failure for part in every for failure in part[0]}
            self.failures = [unique[name] for name in sorted(unique)]
            self.without_pixel_size = sorted(name for part in every for name in part[1])
            self.rings = sum(part[2] for part in every)


# ---- at the end -----------------------------------------------------------------------------------------------------


def _report(console: Console, writer: _Writer, total: int, skipped: int, networks: int) -> None:
    """Join the tables, say what was done and, with status 1, what failed."""
    failures, export = writer.failures, writer.export
    try:
        images, filaments = join_summaries(writer.out_dir)
    except InputError as error:
        failures.append(_Failure("", str(error)))
    else:
        before = f" ({skipped} done before, overwrite=true does them anew)" if skipped else ""
        rings = f"; {writer.rings} closed ones have no ends for .box" if writer.rings and export.box else ""
        failed = f"; {len(failures)} of {total} images failed" if failures else ""
        together = f", by {networks} networks together" if networks > 1 else ""
        done = f"{images} images, {filaments:,} filaments in {short(writer.out_dir)}{together}{before}{rings}{failed}"
        console.print(done, highlight=False, soft_wrap=True)
    names = writer.without_pixel_size
    if names and (export.star or export.cbox):
        _warn(
            f"pixel_size is not set, and {len(names)} images do not say it: {_some(names)}; their segments are one "
            f"filament width ({writer.scale:g} pixels) apart and .star has no track length, without which RELION does "
            "not extract helical segments: set pixel_size= (Angstrom) and overwrite=true"
        )
    exit_if_failed("grace-predict", [str(failure) for failure in failures])
