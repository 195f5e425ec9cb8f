"""Images made comparable before anything is cut from them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from grace_lightning.features.crops import reflect


def standardise_image(image: Tensor) -> Tensor:
    """Image of zero mean and unit standard deviation per channel; a blank one stays zero. (C, H, W)."""
    deviation, mean = torch.std_mean(image, dim=(1, 2), keepdim=True, correction=0)
    return (image - mean).div_(deviation.clamp(min=1e-12))


def flatten_image(image: Tensor, sigma: float) -> Tensor:
    """Image with its local mean and local standard deviation removed.

    Both are Gaussian averages, computed on the image reduced so that sigma is about 8 of its pixels.

    Parameters
    ----------
    image : (C, H, W) float32
    sigma : pixels, standard deviation of the Gaussian

    Returns
    -------
    (C, H, W) float32, about zero mean and unit deviation everywhere
    """
    image = standardise_image(image)  # keeps the squares below well conditioned
    step = max(1, int(sigma / 8))
    # In place, as most of the time would go into fresh memory for images.
    local_mean = _smooth(image, sigma, step)
    variance = _smooth(image.square(), sigma, step).sub_(local_mean.square())
    deviation = variance.clamp_(min=0).sqrt_()
    floor = 0.1 * deviation.mean().clamp(min=1e-6)  # a blank region is not blown up
    return image.sub_(local_mean).div_(deviation.clamp_(min=floor))


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
