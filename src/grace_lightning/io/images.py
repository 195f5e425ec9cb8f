"""Micrographs from MRC, TIFF and PNG files."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
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
from grace_lightning.io._reading import reading

IMAGE_SUFFIXES = (".mrc", ".mrc.gz", ".mrc.bz2", ".tif", ".tiff", ".png")
"""Names of image files end in one of these, in capitals or not."""

LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weights of red, green and blue, ITU-R BT.601: what Pillow and OpenCV call grey."""

Pixels = NDArray[Any]


def _image_suffix(path: str | Path) -> str | None:
    name = Path(path).name.lower()
    return next((suffix for suffix in IMAGE_SUFFIXES if name.endswith(suffix)), None)


def stem(path: str | Path) -> str:
    """File name without its suffix, also where that is double: ``451`` of ``data/451.mrc.gz``."""
    path = Path(path)
    suffix = _image_suffix(path)
    return path.name[: -len(suffix)] if suffix else path.stem


def read_image(path: str | Path, *, frame: int | str | None = None) -> Tensor:
    """One micrograph, grey.

    Row 0 of the file's array is y = 0. Colours become luminance, alpha is dropped. Of a stack in an MRC or an
    uncompressed TIFF file only the wanted frame is read. A TIFF file's colour planes count as frames where they are
    stored apart. Pixels that are not finite become the mean of the others, with a warning: one such
    pixel would make every smoothed image and every loss NaN, and dropping the micrograph for it would be a waste.

    Parameters
    ----------
    path : ends in one of :data:`IMAGE_SUFFIXES`
    frame : of a stack, the index from 0, or ``"mean"`` for the mean of all; a single image is a stack of one

    Returns
    -------
    (1, H, W) float32, the file's own values

    Raises
    ------
    InputError
        The file is missing, damaged, complex-valued or of another format; a stack and no ``frame``; no such frame.
    """
    path = Path(path)
    suffix = _image_suffix(path)
    if suffix is None:
        raise InputError(f"{path}: not an image by its name, expected one of {', '.join(IMAGE_SUFFIXES)}")
    if suffix == ".png":
        picked = _read_png(path, frame)
    elif suffix.startswith(".tif"):
        picked = _read_tiff(path, frame)
    else:
        picked = _read_mrc(path, frame)
    if picked.dtype.kind not in "biuf":
        raise InputError(f"{path}: pixels are {picked.dtype}, expected real numbers")
    if picked.size == 0:
        raise InputError(f"{path}: no pixels (shape {picked.shape}), expected an image")
    if picked.ndim == 3:
        picked = picked[..., :3] @ LUMINANCE if picked.shape[-1] > 2 else picked[..., 0]
    with np.errstate(over="ignore"):
        pixels = np.array(picked, dtype=np.float32, order="C")
    return torch.from_numpy(_fill_gaps(path, pixels))[None]


def pixel_size(path: str | Path) -> float | None:
    """Ångström per pixel along x from an MRC header; None where it does not say, and for other formats."""
    path = Path(path)
    if not (_image_suffix(path) or "").startswith(".mrc"):
        return None
    with reading(path, "an MRC image"), _quiet(), mrcfile.open(path, permissive=True, header_only=True) as file:
        size = float(file.voxel_size.x)
    return size if np.isfinite(size) and size > 0 else None


def _frame_index(path: Path, count: int, frame: int | str | None) -> int | None:
    """Which of ``count`` frames to take; None means their mean."""
    if frame is None and count != 1:
        raise InputError(
            f"{path}: a stack of {count} frames, expected one image; "
            f"set frame (in training, data.frame) to an index from 0 to {count - 1}, or to mean"
        )
    if frame == "mean":
        return None
    index = 0 if frame is None else frame
    if not isinstance(index, int) or not 0 <= index < count:
        raise InputError(
            f"{path}: no frame {index!r} (it has {count}, counted from 0); "
            "set frame (in training, data.frame) to one, or to mean"
        )
    return index


def _pick(stack: Pixels, index: int | None) -> Pixels:
    picked: Pixels = stack.mean(axis=0, dtype=np.float64) if index is None else stack[index]
    return picked


def _fill_gaps(path: Path, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    gaps = ~np.isfinite(pixels)
    if gaps.all():
        raise InputError(f"{path}: no pixel is a finite number, expected an image")
    if gaps.any():
        pixels[gaps] = pixels[~gaps].mean(dtype=np.float64)
        message = f"{path}: {int(gaps.sum())} pixels are NaN or infinite; the mean of the others was put there"
        warnings.warn(message, InputWarning, stacklevel=3)
    return pixels


@contextmanager
def _quiet() -> Iterator[None]:
    """Without mrcfile's remarks on old headers: what cannot be used shows in the data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def _read_mrc(path: Path, frame: int | str | None) -> Pixels:
    opened = mrcfile.mmap if path.suffix.lower() == ".mrc" else mrcfile.open
    with reading(path, "an MRC image"), _quiet(), opened(path, permissive=True) as file:
        header, data = file.header, file.data
        if data is None:
            raise InputError(
                f"{path}: the header says {header.nx} x {header.ny} x {header.nz} pixels of mode {header.mode}, "
                f"but the file of {path.stat().st_size} bytes does not hold them; is it cut short, or no MRC file?"
            )
        if data.dtype == np.int8 and header.dmax > np.iinfo(np.int8).max:
            data = data.view(np.uint8)  # before MRC2014, bytes were unsigned; the header's maximum tells
        stack = data.reshape(-1, *data.shape[-2:])
        return np.array(_pick(stack, _frame_index(path, len(stack), frame)))


def _read_png(path: Path, frame: int | str | None) -> Pixels:
    _frame_index(path, 1, frame)
    with reading(path, "a PNG image"):
        pixels: Pixels = imagecodecs.png_decode(path.read_bytes())
    return pixels


def _read_tiff(path: Path, frame: int | str | None) -> Pixels:
    kinds = tifffile.PHOTOMETRIC
    with reading(path, "a TIFF image"), errors_raised(), tifffile.TiffFile(path) as file:
        series = file.series[0]  # further series are thumbnails and labels
        kind = tifffile.PHOTOMETRIC(series.keyframe.photometric)
        if kind not in (kinds.MINISWHITE, kinds.MINISBLACK, kinds.RGB, kinds.YCBCR):
            raise InputError(f"{path}: colours are {kind.name}, expected grey or RGB")
        image_ndim = 3 if series.axes.endswith("S") else 2
        shape = (-1, *series.shape[-image_ndim:])
        count = int(np.prod(series.shape[:-image_ndim]))
        index = _frame_index(path, count, frame)
        if series.dataoffset is not None:
            picked = _pick(tifffile.memmap(path, series=0, mode="r").reshape(shape), index)
        elif index is not None and len(series.pages) == count:
            page = series[index]
            if page is None:
                raise InputError(f"{path}: frame {index} is missing from the file")
            picked = page.asarray()
        else:
            picked = _pick(series.asarray().reshape(shape), index)
        if kind == kinds.MINISWHITE and series.dtype.kind == "u":
            picked = np.iinfo(series.dtype).max - picked
        return np.array(picked)


@contextmanager
def errors_raised() -> Iterator[None]:
    """What tifffile only logs as an error (a page beyond the end of a truncated file) is raised."""
    log, handler = tifffile.logger(), _Raise(logging.ERROR)
    propagate, log.propagate = log.propagate, False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = propagate


class _Raise(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise ValueError(record.getMessage())
