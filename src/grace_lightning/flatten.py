"""Images made comparable before anything is cut from them."""

import warnings

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from grace_lightning.errors import InputError, InputWarning

Pixels = NDArray[np.float32]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

MOST_PIXELS = 2**28
"""An image is not enlarged beyond this size; flattening one takes 7 GB."""

FLOOR = 0.1
"""The least local deviation, as a part of its mean: the noise of a blank region is not blown up."""

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


def magnified(image: Tensor, factor: float) -> Tensor:
    """Resample an image, (C, H, W) float32, to ``factor`` times as many rows and columns, rounded down.

    What lies at x comes to lie at (x + 0.5) * factor - 0.5. Cubic interpolation; no pixel is skipped if it shrinks.
    Raises an :class:`InputError` if nothing would be left, or more than ``MOST_PIXELS``.
    """
    if factor == 1:
        return image
    rows, columns = (int(length * factor) for length in image.shape[1:])
    if not 1 <= rows * columns <= MOST_PIXELS:
        found = f"to see filaments as wide as in training, the image of {image.shape[2]} x {image.shape[1]} pixels"
        raise InputError(
            f"features.scale: {found} would be resampled to {columns} x {rows}; train at this magnification"
        )
    return functional.interpolate(
        image[None], scale_factor=factor, mode="bicubic", antialias=True, recompute_scale_factor=False
    )[0]


def flattened(image: Tensor, sigma: float | None) -> Tensor:
    """Return the image as networks see it: :func:`flatten_image`, or :func:`standardise_image` if ``sigma`` is None."""
    return standardise_image(image) if sigma is None else flatten_image(image, sigma)


def standardise_image(image: Tensor) -> Tensor:
    """Return an image of zero mean and unit standard deviation per channel, (C, H, W).

    Pixels that are :func:`blank` count in neither, and become zero.
    """
    return _standardised(image, blank(image))


def flatten_image(image: Tensor, sigma: float) -> Tensor:
    """Remove the local mean and the local standard deviation of an image, (C, H, W) float32.

    Both are averages over a Gaussian of ``sigma`` pixels, taken on the image reduced so that sigma is about 8 pixels.
    Pixels that are :func:`blank` count in neither, and become zero.
    """
    empty = blank(image)
    image = _standardised(image, empty)  # keeps the squares below well conditioned
    if empty is not None and empty.all():
        return image
    step = max(1, int(sigma / 8))
    # In place, as most of the time would go into fresh memory for images.
    local_mean = _smooth(image, sigma, step)
    variance = _smooth(image.square(), sigma, step)
    if empty is not None:
        share = _smooth((~empty)[None].to(image.dtype), sigma, step).clamp_(min=1e-6)
        local_mean, variance = local_mean.div_(share), variance.div_(share)
    deviation = variance.sub_(local_mean.square()).clamp_(min=0).sqrt_()
    floor = FLOOR * (deviation if empty is None else deviation[:, ~empty]).mean().clamp(min=1e-6)
    image = image.sub_(local_mean).div_(deviation.clamp_(min=floor))
    return image if empty is None else image.masked_fill_(empty, 0)


def _standardised(image: Tensor, empty: Tensor | None) -> Tensor:
    if empty is not None:
        full = ~empty
        if not full.any():
            return torch.zeros_like(image)
        deviation, mean = torch.std_mean(image[:, full], dim=1, correction=0)
        return torch.where(full, (image - mean[:, None, None]) / deviation.clamp(min=1e-12)[:, None, None], 0)
    deviation, mean = torch.std_mean(image, dim=(1, 2), keepdim=True, correction=0)
    return (image - mean).div_(deviation.clamp(min=1e-12))


def cleaned(image: Tensor, name: str) -> Tensor:
    """Return an image (1, H, W) float32 with what is no signal replaced; an :class:`InputWarning` tells it by ``name``.

    Pixels that are not finite or beyond :data:`LARGEST`, not all of them, become the mean of the others, and hot
    pixels the median around, see :func:`mended`. Where it is :func:`blank`, it gets the mean of the rest, and stays so.
    """
    pixels = image.numpy()
    if not (pixels.max() <= LARGEST and pixels.min() >= -LARGEST):  # NaN, too
        gaps = ~(np.abs(pixels) <= LARGEST)
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


def reflect(index: Tensor, length: int) -> Tensor:
    """Return pixel numbers within 0..length-1; numbers beyond the border are mirrored at the border pixel."""
    period = max(2 * (length - 1), 1)
    index = index.remainder(period)
    return torch.minimum(index, period - index) if length > 1 else torch.zeros_like(index)


def _smooth(image: Tensor, sigma: float, step: int) -> Tensor:
    height, width = image.shape[1:]
    reduced = functional.avg_pool2d(image, step, ceil_mode=True, count_include_pad=False)
    radius = int(4 * sigma / step)
    ramp = torch.arange(-radius, radius + 1, device=image.device)
    kernel = torch.exp(-0.5 * (ramp * step / sigma) ** 2)
    kernel = kernel / kernel.sum()
    for axis in (1, 2):
        index = torch.arange(-radius, reduced.shape[axis] + radius, device=image.device)
        padded = reduced.index_select(axis, reflect(index, reduced.shape[axis]))
        shape = (1, 1, -1, 1) if axis == 1 else (1, 1, 1, -1)
        reduced = functional.conv2d(padded[:, None], kernel.view(shape))[:, 0]
    grown = functional.interpolate(
        reduced[:, None], scale_factor=step, mode="bilinear", align_corners=False, recompute_scale_factor=False
    )
    return grown[:, 0, :height, :width]
