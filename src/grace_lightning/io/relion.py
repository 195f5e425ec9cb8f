"""What RELION asks of files: from where y counts in a TIFF file, what it reads, and where it looks for coordinates."""

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pandas as pd
import tifffile
from torch import Tensor

from grace_lightning.files import reading, replacing
from grace_lightning.graph import expect_inside
from grace_lightning.io.export import write_blocks
from grace_lightning.io.images import mrc_header

TiffOrigin = Literal["bottom", "top"]
"""From where y counts in :data:`FLIPPED` files of a TIFF image."""

FLIPPED = (".star", ".box", ".cbox")
"""What names of files end in whose y counts from the bottom of a TIFF image."""

COUNTED_FROM_BOTTOM = (
    f"y in {', '.join(FLIPPED)} of TIFF images counts from the bottom, as RELION counts it (io.tiff_origin)"
)
"""What a command says if that was so."""

COORDINATES = {".star": "_autopick.star", ".box": ".box"}
"""What the name of a micrograph's coordinates ends in beside ``X.grace``, and in a RELION project."""

# Tried with RELION 3.1: in folders, blanks and what the shell minds fail; # % : ; @ are parts of RELION's own names.
_NAME = re.compile(r"(?!_)[\w.+,=~^/-]*{0}( {0})*".format(r"[\w.+,=~^&()\[\]{}!-]+"))
_JOB = r"job\d{3}[^/]*"  # of RELION's own folders, such as MotionCorr/job002/


def is_tiff(image: Path) -> bool:
    """Return whether an image is a TIFF file, by its name."""
    return image.suffix.lower() in (".tif", ".tiff")


def counts_from_bottom(file: Path, image: Path, tiff_origin: TiffOrigin) -> bool:
    """Return whether y in a file about an image counts from the bottom: in :data:`FLIPPED` files of a TIFF image.

    A TIFF file has the top row first, an MRC file the bottom row. RELION, EMAN2, IMOD, MotionCor and crYOLO's
    boxmanager turn TIFF images over when they read them, and count from the first row of what they have then.
    """
    return tiff_origin == "bottom" and is_tiff(image) and file.suffix.lower() in FLIPPED


def mirrored(pos: Tensor, height: int) -> Tensor:
    """Return positions (N, 2), pixels, with y counted from the other side of an image of ``height`` rows."""
    return pos * pos.new_tensor([1, -1]) + pos.new_tensor([0, height - 1])


def y_from_top(pos: Tensor, file: Path, *, image: Path, shape: tuple[int, int], tiff_origin: TiffOrigin) -> Tensor:
    """Return the positions (N, 2), pixels, that a file has of an image of ``shape`` (H, W), with y from the top.

    It is an error if one lies outside the image.
    """
    expect_inside(pos, shape)  # first, so that the message has the file's own y
    return mirrored(pos, shape[0]) if counts_from_bottom(file, image, tiff_origin) else pos


def write_project(folder: Path, done: Iterable[tuple[Path, Path, float | None]]) -> dict[str, str]:
    """Lay out what RELION needs to extract the helical segments of micrographs; return why some were left out.

    ``folder`` gets ``micrographs.star``, the coordinates where RELION looks for them (if they lie elsewhere it finds
    none, without a word), and files such as ``coords_suffix_autopick.star``, which its window asks for. RELION wants
    voltage and spherical aberration, which are not known: they are 0. Other files in ``folder`` stay.

    Of each micrograph: ``X.star`` and the like without the suffix, the image, and Angstrom per pixel. Only those of
    which the pixel size is known and which have coordinates are in ``micrographs.star``; without any, it is removed.
    """
    rows, left_out = [], dict[str, str]()
    for stem, image, pixel_size in done:
        path = os.path.relpath(image)  # from the folder of the RELION project, which is the current one
        path = os.path.abspath(image) if path.startswith("..") else path
        target = re.sub(rf"^(.*?/)?{_JOB}/", "", path).lstrip("/").rpartition(".")[0]
        copies = {Path(f"{stem}{own}"): folder / f"{target}{suffix}" for own, suffix in COORDINATES.items()}
        found = any(file.exists() for file in copies)
        if found and (reason := _unreadable(image, path)):
            left_out |= {image.name: reason} if pixel_size else {}  # without it, nobody meant it for RELION
            continue
        for pair in copies.items():
            _copy(*pair)
        if found and pixel_size:
            rows.append((path, f"{pixel_size:.6g}"))
    micrographs = folder / "micrographs.star"
    if not rows:
        micrographs.unlink(missing_ok=True)
        return left_out
    table = pd.DataFrame(rows, columns=["rlnMicrographName", "rlnMicrographPixelSize"])
    group, sizes = pd.factorize(table.pop("rlnMicrographPixelSize"))
    names = [f"opticsGroup{k}" for k in range(1, len(sizes) + 1)]
    optics = pd.DataFrame({"rlnOpticsGroupName": names, "rlnOpticsGroup": range(1, len(sizes) + 1)})
    optics = optics.assign(rlnMicrographPixelSize=sizes, rlnVoltage=0.0, rlnSphericalAberration=0.0)
    for suffix in COORDINATES.values():
        with replacing(folder / f"coords_suffix{suffix}") as unfinished:
            unfinished.write_text(f"{micrographs}\n", encoding="utf-8")
    write_blocks(micrographs, {"optics": optics, "micrographs": table.assign(rlnOpticsGroup=group + 1)})
    return left_out


def _copy(file: Path, target: Path) -> None:
    """Make ``target`` a copy of a file, or remove it if there is no such file."""
    if not file.exists():
        target.unlink(missing_ok=True)
        return
    with replacing(target) as unfinished:
        shutil.copyfile(file, unfinished)


def _unreadable(image: Path, path: str) -> str | None:
    """Return why RELION cannot read an image by its ``path``, None if it can; one such image ends its whole job."""
    if not image.is_file():
        return "it is not there"
    if image.suffix.lower() not in (".mrc", ".tif", ".tiff"):
        return "it is neither .mrc nor .tif"
    if not _NAME.fullmatch(path) or re.search(rf"(^|/){_JOB}$", path):
        return "its name has more than letters, digits and . _ -"
    if image.suffix.lower() == ".mrc":
        return "it is a stack" if mrc_header(image).nz > 1 else None
    with reading(image, "a TIFF image"), tifffile.TiffFile(image) as file:
        page = file.pages.first
        if len(file.pages) > 1:
            return "it is a stack"
        plain = page.samplesperpixel == 1 and not page.is_tiled
        kinds = ("uint8", "int8", "uint16", "int16", "float32")
        return None if plain and page.dtype in kinds else "its colours, tiles or kind of numbers"
