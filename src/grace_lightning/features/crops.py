"""Patches around nodes and strips along edges; beyond its border the image is reflected."""

import torch
from torch import Tensor
from torch.nn import functional

from grace_lightning.flatten import reflect


def crop_patches(image: Tensor, pos: Tensor, size: int) -> Tensor:
    """Cut from an image (C, H, W) the squares of whole pixels centred nearest to positions: (N, C, size, size).

    The border pixel is not repeated. ``pos`` is (N, 2) pixels, x and y.
    """
    height, width = image.shape[1:]
    offset = torch.arange(size, device=image.device)
    corner = torch.floor(pos.double() - size / 2 + 1).long()
    columns = reflect(corner[:, 0, None] + offset, width)
    rows = reflect(corner[:, 1, None] + offset, height)
    return image[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)


def node_patches(image: Tensor, pos: Tensor, *, size: float, samples: int) -> Tensor:
    """Resample square patches of an image (C, H, W) around positions (N, 2): (N, C, samples, samples) float32.

    ``size`` is the number of pixels from the first to the last of the ``samples`` to a side.
    """
    ramp = torch.linspace(-size / 2, size / 2, samples, device=pos.device)
    offset = torch.stack(torch.meshgrid(ramp, ramp, indexing="xy"), dim=-1)
    return sample_image(image, pos[:, None, None] + offset)


def edge_strips(image: Tensor, pos: Tensor, edges: Tensor, *, half_width: float, samples: tuple[int, int]) -> Tensor:
    """Resample an image (C, H, W) along and across edges (2, E) between positions (N, 2): (E, C, *samples) float32.

    A strip runs from the edge's south end (larger y) to its north end, ``half_width`` pixels to either side.
    """
    first, second = pos.index_select(0, edges[0]), pos.index_select(0, edges[1])
    first_is_south = (first[:, 1] > second[:, 1]) | ((first[:, 1] == second[:, 1]) & (first[:, 0] < second[:, 0]))
    south = torch.where(first_is_south[:, None], first, second)
    along = torch.where(first_is_south[:, None], second - first, first - second)
    right = torch.stack([-along[:, 1], along[:, 0]], dim=1) / along.norm(dim=1, keepdim=True).clamp(min=1e-6)
    forward = torch.linspace(-0.25, 1.25, samples[0], device=pos.device)  # a quarter of it beyond both ends
    sideways = torch.linspace(-half_width, half_width, samples[1], device=pos.device)
    middle = south[:, None, None] + along[:, None, None] * forward[:, None, None]
    return sample_image(image, middle + right[:, None, None] * sideways[:, None])


def sample_image(image: Tensor, xy: Tensor) -> Tensor:
    """Interpolate an image (C, H, W) linearly at pixels (M, a, b, 2), x and y: (M, C, a, b)."""
    count, rows, columns, _ = xy.shape
    # grid_sample counts from -1 to 1 between the centres of the first and the last pixel. Filled, not copied from
    # numbers in Python: a copy would make a GPU wait.
    scale = torch.stack([xy.new_full((), 2 / max(length - 1, 1)) for length in (image.shape[2], image.shape[1])])
    grid = (xy * scale - 1).reshape(1, count * rows, columns, 2)
    values = functional.grid_sample(image[None], grid, padding_mode="reflection", align_corners=True)
    return values[0].view(len(image), count, rows, columns).transpose(0, 1)
