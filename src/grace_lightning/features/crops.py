"""Pixels around nodes and along edges."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def crop_patches(image: Tensor, pos: Tensor, size: int) -> Tensor:
    """Square patches of whole pixels around positions, in one gather.

    Parameters
    ----------
    image : (C, H, W)
    pos : (N, 2), pixels, columns x and y
    size : side of a patch in pixels; of all such squares of whole pixels, the one with its centre nearest is taken

    Returns
    -------
    (N, C, size, size); beyond the border the image is reflected, the border pixel not repeated
    """
    height, width = image.shape[1:]
    offset = torch.arange(size, device=image.device)
    corner = torch.floor(pos.double() - size / 2 + 1).long()
    columns = reflect(corner[:, 0, None] + offset, width)
    rows = reflect(corner[:, 1, None] + offset, height)
    return image[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)


def reflect(index: Tensor, length: int) -> Tensor:
    """Pixel numbers inside 0..length-1; those beyond the border are mirrored at the border pixel."""
    period = max(2 * (length - 1), 1)
    index = index.remainder(period)
    return torch.minimum(index, period - index) if length > 1 else torch.zeros_like(index)


def sample_image(image: Tensor, xy: Tensor) -> Tensor:
    """Image interpolated linearly at any positions; beyond the border it is reflected.

    Parameters
    ----------
    image : (C, H, W) float32
    xy : (M, a, b, 2) pixels, x and y

    Returns
    -------
    (M, C, a, b) float32
    """
    count, rows, columns, _ = xy.shape
    height, width = image.shape[1:]
    # grid_sample counts from -1 to 1 between the centres of the first and the last pixel
    scale = torch.stack([_per_pixel(width, xy), _per_pixel(height, xy)])
    grid = (xy * scale - 1).reshape(1, count * rows, columns, 2)
    values = functional.grid_sample(image[None], grid, padding_mode="reflection", align_corners=True)
    return values[0].view(len(image), count, rows, columns).transpose(0, 1)


def _per_pixel(length: int, like: Tensor) -> Tensor:
    return torch.full((), 2 / max(length - 1, 1), dtype=like.dtype, device=like.device)


def node_patches(image: Tensor, pos: Tensor, *, size: float, samples: int) -> Tensor:
    """Square patches around positions, resampled.

    Parameters
    ----------
    image : (C, H, W) float32
    pos : (N, 2) float32, pixels, columns x and y
    size : pixels of the image from the first sample to the last
    samples : to a side

    Returns
    -------
    (N, C, samples, samples) float32; beyond the border the image is reflected
    """
    ramp = torch.linspace(-size / 2, size / 2, samples, device=pos.device)
    offset = torch.stack(torch.meshgrid(ramp, ramp, indexing="xy"), dim=-1)
    return sample_image(image, pos[:, None, None] + offset)


STRIP_MARGIN = 0.25
"""A strip reaches beyond both ends of its edge by this part of the edge's length."""


def edge_strips(image: Tensor, pos: Tensor, edges: Tensor, *, half_width: float, samples: tuple[int, int]) -> Tensor:
    """Image resampled along and across each edge, so that every edge lies straight.

    A strip runs from the edge's south end (larger y) to its north end, whichever is named first.

    Parameters
    ----------
    image : (C, H, W) float32
    pos : (N, 2) float32, pixels, columns x and y
    edges : (2, E) int64
    half_width : pixels to either side of the edge
    samples : points along and across

    Returns
    -------
    (E, C, along, across) float32; beyond the border the image is reflected
    """
    first, second = pos.index_select(0, edges[0]), pos.index_select(0, edges[1])
    first_is_south = (first[:, 1] > second[:, 1]) | ((first[:, 1] == second[:, 1]) & (first[:, 0] < second[:, 0]))
    south = torch.where(first_is_south[:, None], first, second)
    along = torch.where(first_is_south[:, None], second - first, first - second)
    right = torch.stack([-along[:, 1], along[:, 0]], dim=1) / along.norm(dim=1, keepdim=True).clamp(min=1e-6)
    forward = torch.linspace(-STRIP_MARGIN, 1 + STRIP_MARGIN, samples[0], device=pos.device)
    sideways = torch.linspace(-half_width, half_width, samples[1], device=pos.device)
    xy = (
        south[:, None, None]
        + along[:, None, None] * forward[:, None, None]
        + right[:, None, None] * sideways[None, :, None]
    )
    return sample_image(image, xy)
