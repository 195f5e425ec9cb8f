"""Images made comparable before anything is cut from them."""

import torch
from torch import Tensor
from torch.nn import functional

from grace_lightning.clean import blank
from grace_lightning.errors import InputError

MOST_PIXELS = 2**28
"""An image is not enlarged beyond this size; flattening one takes 7 GB."""

FLOOR = 0.1
"""The least local deviation, as a part of its mean: the noise of a blank region is not blown up."""


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

    Both are averages over a Gaussian of ``sigma`` pixels, taken on the image reduced so that sigma is about 4 pixels.
    Pixels that are :func:`blank` count in neither, and become zero.
    """
    empty = blank(image)
    image = _standardised(image, empty)  # keeps the squares below well conditioned
    if empty is not None and empty.all():
        return image
    step = max(1, int(sigma / 4))
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
