"""Masks: images that say which pixels belong to filaments."""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tifffile
import torch
from PIL import Image
from torch import Tensor

from grace_lightning.errors import InputError, InputWarning
from grace_lightning.io._reading import expect_folder, reading, some
from grace_lightning.io.grace import ANNOTATION
from grace_lightning.io.images import Pixels, errors_raised, stem

_ENDING = re.compile(r"[-_. ](mask|masks|annotation|annotations|label|labels)$", re.IGNORECASE)


def leave_out_masks(images: Sequence[Path]) -> list[Path]:
    """The images without those that are masks of another one by their name, such as ``X_mask.tif`` beside ``X.tif``."""
    names = {stem(path) for path in images}
    return [path for path in images if _image_of(stem(path), names) == stem(path)]


def find_masks(mask_dir: str | Path, images: Sequence[Path]) -> dict[str, Path]:
    """Masks by the stem of the image that each belongs to.

    The mask of an image ``X`` is ``X`` with one of the :data:`MASK_SUFFIXES`, or ``X_mask``, ``X-mask``,
    ``X_annotation``, ``X_labels`` and the like. Where there is no such file, it is the annotation in ``X.grace``.

    Raises
    ------
    InputError
        No such folder; two masks of one image; no mask of any image.
    """
    mask_dir = Path(mask_dir)
    expect_folder(mask_dir)
    names, taken = {stem(path) for path in images}, {path.resolve() for path in images}
    found = defaultdict(list)
    for path in sorted(mask_dir.iterdir()):
        if path.suffix.lower() in MASK_SUFFIXES and path.is_file() and path.resolve() not in taken:
            found[_image_of(path.stem, names)].append(path)
    masks = {}
    for name in sorted(names):
        files = found.get(name, [])
        if len(files) > 1:
            several = some(path.name for path in files)
            raise InputError(
                f"{mask_dir}: {several} may each be the mask of {name}, expected one; move the others away"
            )
        grace = mask_dir / f"{name}.grace" / ANNOTATION
        if files or grace.is_file():
            masks[name] = files[0] if files else grace
    if not masks:
        raise InputError(
            f"{mask_dir}: no mask for any of the {len(images)} images, expected files such as {min(names)}_mask.tif "
            f"({', '.join(MASK_SUFFIXES)}) or folders {min(names)}.grace"
        )
    return masks


def _image_of(name: str, names: set[str]) -> str:
    """Which of the images ``names`` a file is a mask of: itself, or what its name says without ``_mask``."""
    without = _ENDING.sub("", name)
    return without if without in names else name


def read_mask(path: str | Path, shape: tuple[int, int], *, frame: int | str | None = None) -> Tensor:
    """Which object each pixel belongs to.

    Numbers are taken as the file stores them, whatever colours a palette gives them. A mask of zeros and one other
    number is binary and becomes zeros and ones; otherwise each number is an object and stays.

    Parameters
    ----------
    path : ``.tif``, ``.tiff``, ``.png``, ``.npy`` or ``.npz`` (array ``annotation``, or the only one)
    shape : of the image, (H, W)
    frame : of a stack of masks, the index from 0; a single mask serves for all frames

    Returns
    -------
    (H, W) int32, 0 background

    Raises
    ------
    InputError
        The file is missing, damaged or in colour, of another size than the image, a stack and ``frame`` no index,
        holds numbers that are negative or not whole, or no background.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: not a mask by its name, expected {', '.join(MASK_SUFFIXES)}")
    with reading(path, f"a mask ({path.suffix.lower()[1:]})"):
        values = reader(path)
    values = _picked(path, values, frame)
    if values.shape != shape:
        turned = "; are its axes swapped?" if values.shape == shape[::-1] else ""
        size, expected = (f"{columns} x {rows}" for rows, columns in (values.shape, shape))
        raise InputError(f"{path}: {size} pixels, expected the image's {expected}{turned}")
    _expect_object_numbers(path, values)
    highest = values.max(initial=0)
    if not highest:
        warnings.warn(f"{path}: no pixel is annotated; every node becomes negative", InputWarning, stacklevel=2)
    binary = bool(((values == 0) | (values == highest)).all())
    return torch.from_numpy((values > 0 if binary else values).astype(np.int32))


def _picked(path: Path, values: Pixels, frame: int | str | None) -> Pixels:
    values = values.reshape(
        [1] * (2 - values.ndim) + [size for size in values.shape[:-2] if size > 1] + [*values.shape[-2:]]
    )
    if values.ndim == 2:
        return values
    if values.ndim > 3 or not isinstance(frame, int) or not 0 <= frame < len(values):
        raise InputError(
            f"{path}: an array of shape {values.shape}, expected one number per pixel, (H, W); "
            f"of a stack, set frame to an index{f' from 0 to {len(values) - 1}' if values.ndim == 3 else ''}"
        )
    picked: Pixels = values[frame]
    return picked


def _expect_object_numbers(path: Path, values: Pixels) -> None:
    expected = "expected 0 for background, and 1 or a number per object"
    if values.dtype.kind not in "biuf":
        raise InputError(f"{path}: values are {values.dtype}, {expected}")
    if values.dtype.kind == "f":
        wrong = values != np.floor(values)  # NaN too
        if wrong.any():
            raise InputError(
                f"{path}: {int(wrong.sum())} values are no whole numbers, such as {values[wrong][0]:.4g}; {expected}; "
                "threshold it first"
            )
    lowest, highest = values.min(initial=0), values.max(initial=0)
    if lowest < 0 or highest > np.iinfo(np.int32).max:
        raise InputError(f"{path}: holds the value {lowest if lowest < 0 else highest}, {expected} below 2**31")
    if values.all():
        raise InputError(f"{path}: no pixel is 0, {expected}; is it a mask?")


def _refuse_colours(path: Path, kind: str) -> None:
    raise InputError(
        f"{path}: colours ({kind}), expected one number per pixel; save it as grey or as labels, "
        "in ImageJ with Image > Type > 8-bit"
    )


def _read_tiff(path: Path) -> Pixels:
    with errors_raised(), tifffile.TiffFile(path) as file:
        series = file.series[0]
        if "S" in series.axes and series.shape[series.axes.index("S")] > 2:
            _refuse_colours(path, f"{series.shape[series.axes.index('S')]} samples per pixel")
        values: Pixels = series.asarray()
        return values[..., 0] if series.axes.endswith("S") else values


def _read_png(path: Path) -> Pixels:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # a micrograph may have 90 million pixels
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode in ("RGB", "RGBA"):
                _refuse_colours(path, image.mode)
            return np.asarray(image.getchannel(0) if image.mode == "LA" else image)


def _read_npy(path: Path) -> Pixels:
    return np.asarray(np.load(path, allow_pickle=False))


def _read_npz(path: Path) -> Pixels:
    with np.load(path, allow_pickle=False) as arrays:
        names = list(arrays)
        if "annotation" not in names and len(names) != 1:
            raise InputError(f"{path}: arrays {some(names) or 'none'}, expected one named annotation, or a single one")
        values: Pixels = arrays["annotation" if "annotation" in names else names[0]]
        return values


_READERS: dict[str, Callable[[Path], Pixels]] = {
    ".tif": _read_tiff,
    ".tiff": _read_tiff,
    ".png": _read_png,
    ".npy": _read_npy,
    ".npz": _read_npz,
}
MASK_SUFFIXES = tuple(_READERS)
"""Names of mask files end in one of these, in capitals or not."""
