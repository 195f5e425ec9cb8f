"""Images made comparable before anything is cut from them."""

import torch
from torch import Tensor
from torch.nn import functional

FLOOR = 0.1
"""The least local deviation, as a part of its mean: the noise of a blank region is not blown up."""


def flattened(image: Tensor, sigma: float | None) -> Tensor:
    """Return the image as networks see it: :func:`flatten_image`, or :func:`standardise_image` if ``sigma`` is None."""
    return standardise_image(image) if sigma is None else flatten_image(image, sigma)


def standardise_image(image: Tensor) -> Tensor:
    """Return an image of zero mean and unit standard deviation per channel, (C, H, W); a blank image becomes zero."""
    deviation, mean = torch.std_mean(image, dim=(1, 2), keepdim=True, correction=0)
    return (image - mean).div_(deviation.clamp(min=1e-12))


def flatten_image(image: Tensor, sigma: float) -> Tensor:
    """Remove the local mean and the local standard deviation of an image, (C, H, W) float32.

    Both are averages over a Gaussian of ``sigma`` pixels, taken on the image reduced so that sigma is about 8 pixels.
    """
    image = standardise_image(image)  # keeps the squares below well conditioned
    step = max(1, int(sigma / 8))
    # In place, as most of the time would go into fresh memory for images.
    local_mean = _smooth(image, sigma, step)
    variance = _smooth(image.square(), sigma, step).sub_(local_mean.square())
    deviation = variance.clamp_(min=0).sqrt_()
    floor = FLOOR * deviation.mean().clamp(min=1e-6)
    return image.sub_(local_mean).div_(deviation.clamp_(min=floor))


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
