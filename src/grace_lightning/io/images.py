"""Micrographs from MRC, TIFF and PNG files."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import imagecodecs
import mrcfile
import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from torch import Tensor

from grace_lightning.errors import InputError, InputWarning
from grace_lightning.files import reading

IMAGE_SUFFIXES = (".mrc", ".mrc.gz", ".mrc.bz2", ".tif", ".tiff", ".png")
"""What names of image files end in, in capitals or not."""

LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as Pillow and OpenCV make grey

Pixels = NDArray[Any]


def _suffix(path: Path) -> str:
    return next((suffix for suffix in IMAGE_SUFFIXES if path.name.lower().endswith(suffix)), "")


def stem(path: str | Path) -> str:
    """Return a file's name without its suffix, even a double one: ``451`` of ``data/451.mrc.gz``."""
    path = Path(path)
    return path.name[: -len(_suffix(path))] if _suffix(path) else path.stem


def read_image(path: str | Path, *, frame: int | str | None = None) -> Tensor:
    """Read one micrograph, grey: (1, H, W) float32, the file's own values; row 0 is y = 0.

    Of a stack, ``frame`` is the index from 0, or ``"mean"`` for the mean of all; a single image is a stack of one. Of
    an MRC or an uncompressed TIFF file only the wanted frame is read. Colours become luminance, alpha is dropped, and
    colour planes of a TIFF file that are stored apart count as frames. Pixels that are not finite become the mean of
    the finite ones, with an :class:`InputWarning`: one of them would make every smoothed image and every loss NaN.
    """
    path = Path(path)
    suffix = _suffix(path)
    if not suffix:
        raise InputError(f"{path}: not an image by its name, expected one of {', '.join(IMAGE_SUFFIXES)}")
    picked = {".png": _read_png, ".tif": _read_tiff, ".tiff": _read_tiff}.get(suffix, _read_mrc)(path, frame)
    if picked.dtype.kind not in "biuf":
        raise InputError(f"{path}: pixels are {picked.dtype}, expected real numbers")
    if picked.ndim == 3:
        picked = picked[..., :3] @ LUMINANCE if picked.shape[-1] > 2 else picked[..., 0]
    with np.errstate(over="ignore"):
        pixels = np.array(picked, dtype=np.float32, order="C")
    gaps = ~np.isfinite(pixels)
    if gaps.all():
        raise InputError(f"{path}: no pixel is a finite number (shape {pixels.shape}), expected an image")
    if gaps.any():
        pixels[gaps] = pixels[~gaps].mean(dtype=np.float64)
        found = f"{int(gaps.sum())} pixels are NaN or infinite; the mean of the others was put there"
        warnings.warn(f"{path}: {found}", InputWarning, stacklevel=2)
    return torch.from_numpy(pixels)[None]


def pixel_size(path: str | Path) -> float | None:
    """Return Ångström per pixel along x from an MRC header, or None if it does not say or the format is another."""
    path = Path(path)
    if not _suffix(path).startswith(".mrc"):
        return None
    with opened_mrc(path, mrcfile.open, header_only=True) as file:
        size = float(file.voxel_size.x)
    return size if np.isfinite(size) and size > 0 else None


def _frame_index(path: Path, count: int, frame: int | str | None) -> int | None:
    """Return which of ``count`` frames to take; None stands for their mean."""
    if frame == "mean":
        return None
    if frame is None and count == 1:
        return 0
    if not isinstance(frame, int) or not 0 <= frame < count:
        found = f"a stack of {count} frames, expected one image" if frame is None else f"no frame {frame!r}"
        raise InputError(f"{path}: {found}; set frame (in training, data.frame) to 0 ... {count - 1}, or to mean")
    return frame


def _pick(stack: Pixels, index: int | None) -> Pixels:
    return np.array(stack.mean(axis=0, dtype=np.float64) if index is None else stack[index])


@contextmanager
def opened_mrc(path: Path, opened: Callable[..., Any], **options: bool) -> Iterator[Any]:
    """Open an MRC file by a function of mrcfile, without its remarks on old headers."""
    quiet = warnings.catch_warnings(action="ignore", category=RuntimeWarning)
    with reading(path, "an MRC image"), quiet, opened(path, permissive=True, **options) as file:
        yield file


def _read_mrc(path: Path, frame: int | str | None) -> Pixels:
    with opened_mrc(path, mrcfile.mmap if path.suffix.lower() == ".mrc" else mrcfile.open) as file:
        header, data = file.header, file.data
        if data is None:
            said = f"the header says {header.nx} x {header.ny} x {header.nz} pixels of mode {header.mode}"
            raise InputError(f"{path}: {said}, but the file has {path.stat().st_size} bytes; is it cut short?")
        if data.dtype == np.int8 and header.dmax > np.iinfo(np.int8).max:
            data = data.view(np.uint8)  # before MRC2014, bytes were unsigned; the header's maximum tells
        stack = data.reshape(-1, *data.shape[-2:])
        return _pick(stack, _frame_index(path, len(stack), frame))


def _read_png(path: Path, frame: int | str | None) -> Pixels:
    _frame_index(path, 1, frame)
    with reading(path, "a PNG image"):
        return np.asarray(imagecodecs.png_decode(path.read_bytes()))


def _read_tiff(path: Path, frame: int | str | None) -> Pixels:
    with reading(path, "a TIFF image"), errors_raised(), tifffile.TiffFile(path) as file:
        series = file.series[0]  # further series are thumbnails and labels
        kind = tifffile.PHOTOMETRIC(series.keyframe.photometric).name
        if kind not in ("MINISWHITE", "MINISBLACK", "RGB", "YCBCR"):
            raise InputError(f"{path}: colours are {kind}, expected grey or RGB")
        image_ndim = 3 if series.axes.endswith("S") else 2
        shape, count = (-1, *series.shape[-image_ndim:]), int(np.prod(series.shape[:-image_ndim]))
        index = _frame_index(path, count, frame)
        if index is not None and series.dataoffset is None and len(series.pages) == count:
            picked: Pixels = file.asarray(key=index, series=0)
        else:
            plain = series.dataoffset is not None
            stack = tifffile.memmap(path, series=0, mode="r") if plain else series.asarray()
            picked = _pick(stack.reshape(shape), index)
        return np.iinfo(series.dtype).max - picked if kind == "MINISWHITE" and series.dtype.kind == "u" else picked


@contextmanager
def errors_raised() -> Iterator[None]:
    """Raise what tifffile only logs as an error: a page beyond the end of a truncated file."""

    def refuse(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            raise ValueError(record.getMessage())
        return False

    log = tifffile.logger()
    log.addFilter(refuse)
    try:
        yield
    finally:
        log.removeFilter(refuse)
