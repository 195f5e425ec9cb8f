"""What ``grace-predict`` writes, and reads of what it wrote before."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from grace_lightning import figures, io
from grace_lightning.errors import InputError
from grace_lightning.files import put, reading, sync, unfinished_in, writing
from grace_lightning.graph import Filament, Label
from grace_lightning.measure import cosines, filaments_summary, smooth_curve
from grace_lightning.predictor import Findings
from grace_lightning.ridges import Polarity
from grace_lightning.tasks.common import Config
from grace_lightning.tasks.suggest import doubt

SUMMARY = "filaments.csv"  # in the output folder, of all images; in each ``X.grace``, of that image

RECORD = "grace_predict"
"""Under this key ``metadata.json`` says with what an image was done."""

FOUND = "grace_predict_found"
"""Under this key it has what is said about the image as a whole: bits of doubt per detection, apparent width of the
filaments, pixels (null without filaments), and what :func:`grace_lightning.measure.cosines` sums, by steps of so many
pixels; whether there is a picture."""

PATHS = "paths.parquet"  # in X.grace: what files for other programs are made of

THUMBNAIL, THUMBNAIL_SIZE, QUALITY = "thumbnail.jpg", 256, 60  # in X.grace; pixels of its longer side; of JPEG

NOT_OURS = OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError
"""What reading ``metadata.json`` may raise if somebody else wrote it."""


@dataclass(frozen=True)
class Export:
    """Which files are written beside ``X.grace``.

    Without a pixel size, segments are one filament width apart and ``.star`` has no track length: RELION then refuses
    to extract helical segments, rather than to place them wrongly.
    """

    spacing: float | None = None  # Angstrom between segments, RELION's inter-box distance; None: one filament width
    box_size: float | None = None  # side of the boxes in ``.cbox``, pixels; None: two filament widths
    star: bool = True  # helical segments for RELION
    box: bool = True  # ends for RELION and EMAN
    cbox: bool = True  # boxes for crYOLO
    png: bool = True  # a picture

    def __post_init__(self) -> None:
        for name, (least, most, unit) in {"spacing": (0.1, 1e9, "Angstrom"), "box_size": (1, 1e5, "pixels")}.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise InputError(f"export.{name}: {value}, expected a length of {least:g} to {most:g} {unit}")

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of the files that are wanted beside ``X.grace``."""
        return tuple(f".{name}" for name in ("star", "box", "cbox", "png") if getattr(self, name))


ALL_SUFFIXES = Export().suffixes


class Micrograph(NamedTuple):
    """Everything that the files say of an image besides its filaments."""

    name: str
    file: str
    size: tuple[int, int]  # rows and columns, pixels
    picture: Tensor  # (1, h, w) float32, for X.png, of any resolution
    pixel_size: float | None  # Angstrom
    path: str | None = None  # of the image, absolute
    from_bottom: bool = False  # whether y counts from the bottom in the files of other programs


def read_record(out_dir: Path, name: str) -> dict[str, Any] | None:
    """Return with what ``X.grace`` was written, None if there is none; an :class:`InputError` if it is not ours."""
    folder = out_dir / f"{name}.grace"
    if not folder.exists():
        return None
    record = None
    with suppress(*NOT_OURS):
        record = json.loads((folder / "metadata.json").read_text(encoding="utf-8")).get(RECORD)
    if not isinstance(record, dict):
        if not folder.exists():  # another process replaces it just now
            return None
        raise InputError(f"{folder}: is there already, and grace-predict did not write it; choose another out_dir")
    return record


def record_of_any(out_dir: Path) -> Config | None:
    """Return with what some image was done, whose results are in the folder, None if none was."""
    for folder in sorted(out_dir.glob("*.grace")):
        with suppress(InputError):
            if record := read_record(out_dir, folder.stem):
                return record
    return None


def read_node_probability(out_dir: Path, name: str) -> NDArray[np.float32]:
    """Return the probability of each detection of an image that is done, (N,)."""
    path = out_dir / f"{name}.grace" / "nodes.parquet"
    with reading(path, "what grace-predict wrote"):
        column = pq.read_table(path, columns=["node_prediction"])["node_prediction"]
        by_label: NDArray[np.float32] = pc.list_flatten(column).to_numpy().reshape(-1, len(Label))
        return by_label[:, Label.TRUE_POSITIVE]


def is_done(out_dir: Path, name: str, export: Export) -> bool:
    """Return whether all files of an image that are wanted are there; ``X.grace`` comes last."""
    return all((out_dir / f"{name}{suffix}").exists() for suffix in (*export.suffixes, ".grace"))


def write_results(
    out_dir: Path,
    micrograph: Micrograph,
    findings: Findings,
    export: Export,
    *,
    scale: float,
    polarity: Polarity | None = None,
    record: Mapping[str, Any],
) -> None:
    """Write all files of an image; none is seen under its name before all are complete.

    If the disk is full, this is an :class:`InputError`, and all are as they were.

    ``out_dir`` exists; ``scale`` is the width of a filament, pixels; ``polarity``, for the picture, what filaments are;
    ``record`` says, plainly, with what it was done.
    """
    name, grace = micrograph.name, f"{micrograph.name}.grace"
    with writing(out_dir / name), unfinished_in(out_dir) as unfinished:
        _write_grace(unfinished / grace, micrograph, findings, scale, record, export.png)
        write_exports(unfinished, micrograph, findings.filaments, export, scale)
        drawn = micrograph.picture, micrograph.size, findings.filaments
        if export.png:  # of 256 colours: nobody sees it, and it is written in a third of the time
            picture = figures.overview(*drawn, scale, polarity).quantize(
                256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
            )
            picture.save(unfinished / f"{name}.png", **figures.PNG)
        figures.overview(*drawn, pixels=THUMBNAIL_SIZE).save(unfinished / grace / THUMBNAIL, quality=QUALITY)
        sync(unfinished)
        if (out_dir / grace).exists():
            for suffix in set(ALL_SUFFIXES).difference(export.suffixes):
                (out_dir / f"{name}{suffix}").unlink(missing_ok=True)  # as long as X.grace says whose it is
            with suppress(FileNotFoundError):  # another process may do the same
                (out_dir / grace).rename(unfinished / "replaced")  # so that it is not done as long as files are mixed
        for suffix in export.suffixes:
            put(unfinished / f"{name}{suffix}", out_dir / f"{name}{suffix}")
        put(unfinished / grace, out_dir / grace)


def _write_grace(
    path: Path, micrograph: Micrograph, findings: Findings, scale: float, record: Mapping[str, Any], picture: bool
) -> None:
    metadata: Config = {"image_filename": micrograph.name, "image_path": micrograph.path, "size": micrograph.size}
    filaments, size = findings.filaments, micrograph.pixel_size
    curves = [smooth_curve(filament) for filament in filaments]
    sums, pairs = (of_filaments.sum(axis=0) for of_filaments in cosines(filaments, scale, curves))
    found = {
        "doubt": doubt(findings.node_probability.numpy()) / max(1, len(findings.node_probability)),
        "width": None if math.isnan(findings.width) else findings.width,
        **{"step": scale, "cosines": sums.tolist(), "pairs": pairs.tolist(), "picture": picture},
    }
    metadata |= {"pixel_size": size, RECORD: dict(record), FOUND: found}
    io.write_grace(
        path,
        findings.graph,
        metadata=metadata,
        node_prediction=_by_label(findings.node_probability),
        edge_prediction=_by_label(findings.edge_probability),
        edge_properties=True,
        tables={
            "filaments.parquet": io.filaments_table(filaments, findings.graph.pos.numpy()),
            PATHS: io.paths_table(filaments),
        },
    )
    summary = filaments_summary(micrograph.name, filaments, scale, pixel_size=size, curves=curves)
    summary.to_csv(path / SUMMARY, index=False, float_format="%.7g")


def write_exports(
    folder: Path, micrograph: Micrograph, found: Sequence[Filament], export: Export, scale: float
) -> None:
    """Write the files of filaments that are wanted for other programs; see :func:`write_results`."""
    filaments, stem, pixel_size = list(found), folder / micrograph.name, micrograph.pixel_size
    if micrograph.from_bottom:  # psi turns with the path
        height = micrograph.size[0]
        paths = [io.mirrored(torch.from_numpy(filament.path), height).numpy() for filament in filaments]
        filaments = [replace(filament, path=path) for filament, path in zip(filaments, paths, strict=True)]
    if pixel_size is None:
        table = io.segments(filaments, pixel_size=1.0, spacing=scale).drop(columns="track_length")
    else:
        spacing = export.spacing or scale * pixel_size
        if spacing < pixel_size / 10:
            given = f"export.spacing: {spacing:g} Angstrom, but a pixel of {micrograph.file} has {pixel_size:g}"
            raise InputError(f"{given}; expected a tenth of a pixel or more")
        table = io.segments(filaments, pixel_size=pixel_size, spacing=spacing)
    if export.star:
        io.write_star(f"{stem}.star", table, micrograph.file)
    if export.cbox:
        io.write_cbox(f"{stem}.cbox", table, box_size=export.box_size or 2 * scale)
    if export.box:
        io.write_box_ends(f"{stem}.box", filaments)


def _by_label(probability: Tensor) -> Tensor:
    """Return probabilities by :class:`grace_lightning.graph.Label`, (M, 3), from those of the positive one, (M,)."""
    return torch.stack([1 - probability, probability, torch.zeros_like(probability)], dim=1)
