"""The files that ``grace-predict`` writes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grace_lightning import figures, io
from grace_lightning.errors import InputError
from grace_lightning.graph import Label
from grace_lightning.tasks.predictor import Findings

SUMMARY = "filaments.csv"
"""In the output folder, of all images; in each ``X.grace``, of that image."""

RECORD = "grace_predict"
"""Under this key ``metadata.json`` says with what an image was done."""

COMPRESSION = 1  # of pictures; the default takes three times as long, for files smaller by a tenth


@dataclass(frozen=True)
class Export:
    """Which files are written beside ``X.grace``.

    Without a pixel size, segments are one filament width apart and ``.star`` has no track length: RELION then refuses
    to extract helical segments, rather than to place them wrongly.

    Parameters
    ----------
    spacing : Angstrom between segments along a filament, RELION's inter-box distance; None: one filament width
    box_size : side of the boxes in ``.cbox``, pixels; None: two filament widths
    star : helical segments for RELION, ``X.star``
    box : start and end of each filament for RELION and EMAN, ``X.box``
    cbox : boxes for crYOLO, ``X.cbox``
    png : the micrograph with its filaments, ``X.png``
    """

    spacing: float | None = None
    box_size: float | None = None
    star: bool = True
    box: bool = True
    cbox: bool = True
    png: bool = True

    def __post_init__(self) -> None:
        for name in ("spacing", "box_size"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"export.{name}: {value}, expected a length above 0")

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of the files that are wanted beside ``X.grace``."""
        return tuple(f".{name}" for name in ("star", "box", "cbox", "png") if getattr(self, name))


ALL_SUFFIXES = Export().suffixes


@dataclass(frozen=True)
class Micrograph:
    """What the files say of an image besides its filaments.

    Parameters
    ----------
    name : the stem
    file : name of the image file
    size : rows and columns, pixels
    picture : (1, h, w) float32, the image for ``X.png``
    pixel_size : Angstrom, or None where unknown
    """

    name: str
    file: str
    size: tuple[int, int]
    picture: Tensor
    pixel_size: float | None


def read_record(out_dir: Path, name: str) -> dict[str, Any] | None:
    """With what ``X.grace`` was written, or None where there is none.

    Raises
    ------
    InputError
        There is one that ``grace-predict`` did not write.
    """
    folder = out_dir / f"{name}.grace"
    if not folder.exists():
        return None
    record = None
    with suppress(OSError, ValueError, AttributeError):
        record = json.loads((folder / "metadata.json").read_text(encoding="utf-8")).get(RECORD)
    if not isinstance(record, dict):
        raise InputError(f"{folder}: is there already, and grace-predict did not write it; choose another out_dir")
    return record


def is_done(out_dir: Path, name: str, export: Export) -> bool:
    """Whether all files of an image that are wanted are there; ``X.grace`` comes last."""
    return all((out_dir / f"{name}{suffix}").exists() for suffix in (*export.suffixes, ".grace"))


def write_results(
    out_dir: Path,
    micrograph: Micrograph,
    findings: Findings,
    export: Export,
    *,
    scale: float,
    record: Mapping[str, Any],
) -> None:
    """Write all files of an image; none is seen under its name before all are complete.

    Parameters
    ----------
    out_dir : exists
    micrograph : of which image
    findings : what was found in it
    export : what is wanted
    scale : width of a filament, pixels
    record : with what it was done, plain containers

    Raises
    ------
    InputError
        A file cannot be written, as on a full disk.
    """
    unfinished = out_dir / f".{micrograph.name}.unfinished"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
        unfinished.mkdir()
        _write_grace(unfinished, micrograph, findings, record)
        _write_exports(unfinished, micrograph, findings, export, scale)
        grace = f"{micrograph.name}.grace"
        with suppress(FileNotFoundError):
            (out_dir / grace).rename(unfinished / "replaced")  # so that it is not done as long as files are mixed
        for suffix in ALL_SUFFIXES:
            name = f"{micrograph.name}{suffix}"
            if suffix in export.suffixes:
                (unfinished / name).replace(out_dir / name)
            elif (unfinished / "replaced").exists():
                (out_dir / name).unlink(missing_ok=True)  # it showed what X.grace was before
        (unfinished / grace).rename(out_dir / grace)
    except OSError as error:
        raise InputError(f"{out_dir / micrograph.name}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_grace(folder: Path, micrograph: Micrograph, findings: Findings, record: Mapping[str, Any]) -> None:
    path = folder / f"{micrograph.name}.grace"
    metadata = {"image_filename": micrograph.name, "pixel_size": micrograph.pixel_size, RECORD: dict(record)}
    io.write_grace(
        path,
        findings.graph,
        metadata=metadata,
        node_prediction=_by_label(findings.node_probability),
        edge_prediction=_by_label(findings.edge_probability),
        edge_properties=True,
        filaments=io.filaments_table(findings.members),
    )
    summary = io.filaments_summary(micrograph.name, findings.paths, pixel_size=micrograph.pixel_size)
    summary.to_csv(path / SUMMARY, index=False, float_format="%.7g")


def _write_exports(folder: Path, micrograph: Micrograph, findings: Findings, export: Export, scale: float) -> None:
    paths, stem = findings.paths, folder / micrograph.name
    if export.star or export.cbox:
        if micrograph.pixel_size is None:
            table = io.segments(paths, pixel_size=1.0, spacing=scale).drop(columns="track_length")
        else:
            spacing = scale * micrograph.pixel_size if export.spacing is None else export.spacing
            table = io.segments(paths, pixel_size=micrograph.pixel_size, spacing=spacing)
        if export.star:
            io.write_star(f"{stem}.star", table, micrograph.file)
        if export.cbox:
            io.write_cbox(f"{stem}.cbox", table, box_size=export.box_size or 2 * scale)
    if export.box:
        io.write_box_ends(f"{stem}.box", [filament for filament in paths if not filament.closed])
    if export.png:
        lines, closed = [filament.path for filament in paths], [filament.closed for filament in paths]
        figure = figures.overview(micrograph.picture, micrograph.size, lines, closed)
        figure.savefig(f"{stem}.png", pil_kwargs={"compress_level": COMPRESSION})


def _by_label(probability: Tensor) -> Tensor:
    """Probabilities of the three labels, (M, 3), from that of the positive one, (M,)."""
    columns = torch.zeros(len(probability), len(Label))
    columns[:, Label.TRUE_POSITIVE] = probability
    columns[:, Label.TRUE_NEGATIVE] = 1 - probability
    return columns


def join_summaries(out_dir: Path) -> tuple[int, int]:
    """Write ``filaments.csv`` of all images that are done; returns how many images and filaments these are.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    path = out_dir / SUMMARY
    unfinished = out_dir / f".{SUMMARY}.unfinished"
    images = count = 0
    try:
        header = io.filaments_summary("", []).to_csv(index=False)
        with unfinished.open("w", encoding="utf-8") as joined:
            joined.write(header)
            for part in sorted(out_dir.glob(f"*.grace/{SUMMARY}")):
                rows = part.read_text(encoding="utf-8").splitlines(keepends=True)[1:]
                joined.writelines(rows)
                images, count = images + 1, count + len(rows)
        os.replace(unfinished, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
    return images, count


def settings(export: Export, **further: Any) -> dict[str, Any]:
    """What the results depend on, as plain containers, for the record."""
    plain: dict[str, Any] = json.loads(json.dumps({"spacing": export.spacing, "box_size": export.box_size, **further}))
    return plain
