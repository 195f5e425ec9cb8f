"""What is no signal in an image: hot pixels, missing data, blank parts."""

import warnings

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from grace_lightning.errors import InputError, InputWarning

Pixels = NDArray[np.float32]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

LARGEST = 1e30
"""What is beyond is no measurement, but a mark for no data, such as the largest number that float32 can hold."""

SIDES = 8, 128
"""A blank area holds a square of an eighth of the image's shorter side, but of 8 pixels or more and 128 at most: it is
wider than a filament that the camera shows all white."""

MOST_VALUES = 8
"""So many values at most are taken for blank in one image, which bounds the time."""

FAR = 15
"""Pixels further from the median than this, in distances of the 1 % from the 99 % quantile, may be spoiled. Of noise
it is 70 standard deviations; from there on, one pixel counts in the local contrast."""

RARE = 1e-4
"""In an image without noise, nothing but so small a part of the pixels may be spoiled."""

FEW, SHARP = 9, 20
"""A group of spoiled pixels has at most 9, and stands out 20 times as far as all pixels around it: what an optic shows
is larger, or fades."""


def cleaned(image: Tensor, name: str) -> Tensor:
    """Return an image (1, H, W) float32 with what is no signal replaced; an :class:`InputWarning` tells it by ``name``.

    Pixels that are not finite or beyond :data:`LARGEST`, not all of them, become the mean of the others, and hot
    pixels the median around, see :func:`mended`. Where it is :func:`blank`, it gets the mean of the rest, and stays so.
    """
    pixels = image.numpy()
    if not (pixels.max() <= LARGEST and pixels.min() >= -LARGEST):  # NaN, too
        gaps = ~(np.abs(pixels) <= LARGEST)
        if gaps.all():
            raise InputError(f"{name}: no pixel is a finite number below {LARGEST:g}, expected an image")
        pixels[gaps] = pixels[~gaps].mean(dtype=np.float64)
        found = f"{_count(gaps)} NaN, infinite or beyond {LARGEST:g}"
        _warn(f"{name}: {found}; the mean of the others was put there")
    image, bad = mended(image)
    if bad.any():
        found = f"{_count(bad)} hot or dead, such as {pixels[0][bad][0]:g}"
        _warn(f"{name}: {found}; the median around was put there")
    empty = blank(image)
    if empty is not None and empty.all():
        _warn(f"{name}: all pixels have one value; no filament is found in it")
    elif empty is not None:
        _warn(f"{name}: {empty.float().mean().item():.1%} of it is blank; no filament is found there")
        image = torch.where(empty, image[:, ~empty].mean(), image)
    return image


def _count(pixels: Bools) -> str:
    count = int(pixels.sum())
    return "1 pixel is" if count == 1 else f"{count} pixels are"


def _warn(message: str) -> None:
    warnings.warn(message, InputWarning, stacklevel=4)


def blank(image: Tensor) -> Tensor | None:
    """Return which pixels of an image (C, H, W) show nothing, as all around have one value: (H, W) bool; None if none.

    These are areas (:data:`SIDES`) and whole rows and columns: padding, gaps between detectors, what a crop left over.
    The even background of an image without noise is not blank: most other parts of such an image have its value too,
    or are even themselves.
    """
    pixels = image[0].cpu().numpy()
    side = int(np.clip(min(pixels.shape) // 8, *SIDES))
    if min(pixels.shape) <= side:
        return None
    step = side // 2
    blocks = sliding_window_view(pixels, (side, side))[::step, ::step]
    value, some = blocks[..., 0, 0], blocks[:, :, ::8]  # of some rows of each block
    even = _near(some[..., ::8], value[..., None, None]).all(axis=(2, 3))
    rows, columns = _even_rows(pixels), _even_rows(pixels.T)
    if not (even.any() or rows.any() or columns.any()):
        return None
    even = _near(blocks.max(axis=(2, 3)), value) & _near(blocks.min(axis=(2, 3)), value)
    alike = (some[..., 1:] == some[..., :-1]).mean(axis=(2, 3))
    ends = [value[even], pixels[rows, 0], pixels[0, columns]]
    values, counts = np.unique(np.concatenate(ends), return_counts=True)
    values = values[np.argsort(-counts)][: MOST_VALUES**2]
    empty = np.zeros(pixels.shape, np.bool_)
    for one in values[~np.triu(_near(values, values[:, None]), 1).any(axis=0)][:MOST_VALUES]:
        seed = even & _near(value, one)
        noiseless = even | (_near(some, one).mean(axis=(2, 3)) > 0.25) | (alike > 0.5)
        if not seed.all() and noiseless[~seed].mean() > 0.5:
            continue
        same = _near(pixels, one)
        area, count = ndimage.label(same)
        seeded = np.zeros(count + 1, np.bool_)
        seeded[area[::step, ::step][: len(seed), : seed.shape[1]][seed]] = True
        empty |= seeded[area]
        empty[rows & same[:, 0]] = True
        empty[:, columns & same[0]] = True
    return torch.from_numpy(empty) if empty.any() else None


def _near(pixels: Pixels, value: Pixels) -> Bools:
    """Return which pixels have a value, but for what resampling changes about a constant."""
    margin = 5e-7 * np.abs(value)
    near: Bools = (pixels >= value - margin) & (pixels <= value + margin)
    return near


def _even_rows(pixels: Pixels) -> Bools:
    """Return which rows have one value, (H,); none if half of them have, as in an image that was drawn."""
    even: Bools = np.asarray(_near(pixels[:, :: max(1, pixels.shape[1] // 16)], pixels[:, :1]).all(axis=1))
    even[even] = _near(pixels[even], pixels[even, :1]).all(axis=1)
    return even if even.mean() < 0.5 else np.zeros_like(even)


def mended(image: Tensor) -> tuple[Tensor, Bools]:
    """Replace hot and dead pixels of an image (1, H, W) by the median around; also return which they are, (H, W).

    These are far outside (:data:`FAR`) and sharp (:data:`SHARP`): groups of at most :data:`FEW` pixels, further out
    than anything larger; upright rectangles of one value; whole rows and columns, which become :func:`blank`. An image
    without any is returned itself.
    """
    pixels = image[0].cpu().numpy()
    bad, empty = np.zeros(pixels.shape, np.bool_), blank(image)
    good = ~bad if empty is None else ~empty.numpy()
    step = max(1, min(pixels.shape) // 512)
    sample = pixels[::step, ::step][good[::step, ::step]]
    if not sample.size:
        return image, bad
    low, middle, high = np.quantile(sample, [0.01, 0.5, 0.99]).astype(pixels.dtype)
    reach = FAR * (high - low)
    if pixels.max() <= middle + reach and pixels.min() >= middle - reach:
        return image, bad
    away = np.abs(pixels - middle)
    far = good & (away > reach)
    if reach > 0:  # without noise, whole rows may be drawn
        bad[far.sum(axis=1) > 0.9 * good.sum(axis=1)] = True
        bad[:, far.sum(axis=0) > 0.9 * good.sum(axis=0)] = True
    lines = bad & good
    near = ndimage.binary_dilation(far & ~lines, np.ones((5, 5), np.bool_))  # joins the dots of a dotted line
    group = ndimage.label(near, np.ones((3, 3)))[0] * (far & ~lines)
    row, column = np.nonzero(group)
    if len(row):
        order = np.argsort(group[row, column], kind="stable")
        row, column = row[order], column[order]
        start = np.flatnonzero(np.diff(group[row, column], prepend=0))
        height, width, levels = (
            np.maximum.reduceat(of, start) - np.minimum.reduceat(of, start) for of in (row, column, pixels[row, column])
        )
        size, peak = np.diff(start, append=len(row)), np.maximum.reduceat(away[row, column], start)
        beside = _around(np.where(far, 0, away), row, column, 1).max(axis=1)
        sharp = peak > SHARP * np.maximum.reduceat(beside, start)
        plate = sharp & (levels == 0) & (size == (height + 1) * (width + 1)) & (size > FEW) & (reach > 0)
        larger = peak[(size > FEW) & ~plate].max(initial=0)
        few = sharp & (size <= FEW) & (peak > 3 * larger) & ((max(reach, larger) > 0) | (len(row) < RARE * pixels.size))
        bad[row, column] = np.repeat(few | plate, size)
    row, column = np.nonzero(bad & ~lines)
    around = _around(np.where(bad | ~good, np.nan, pixels), row, column, 3)
    some = ~np.isnan(around).all(axis=1)
    pixels = np.where(bad, middle, pixels)
    pixels[row[some], column[some]] = np.nanmedian(around[some], axis=1)
    return torch.from_numpy(pixels)[None], bad


def _around(pixels: Pixels, row: Ints, column: Ints, reach: int) -> Pixels:
    """Return the pixels (any, (2 * reach + 1)**2) of the squares around some, which end at the image's border."""
    down, right = np.indices((2 * reach + 1, 2 * reach + 1)).reshape(2, -1) - reach
    near: Pixels = pixels[
        np.clip(row[:, None] + down, 0, pixels.shape[0] - 1), np.clip(column[:, None] + right, 0, pixels.shape[1] - 1)
    ]
    return near
