"""Changes of the image, and of the graph with it where pixels move."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional

from grace_lightning.augment.common import SampleAugmentation, changed, fraction, not_negative
from grace_lightning.errors import InputError
from grace_lightning.graph import Sample, inside_image


class RandomImageGraphRotate(SampleAugmentation):
    """Turns image, graph and annotation together, by an angle drawn evenly from a range.

    Parameters
    ----------
    rot_center : [x, y] in pixels; None for the centre of the image
    rot_angle_range : degrees, counter-clockwise on the screen
    """

    def __init__(
        self, rot_center: Sequence[float] | None = None, rot_angle_range: Sequence[float] = (-180.0, 180.0)
    ) -> None:
        if rot_center is not None and len(rot_center) != 2:
            raise InputError(f"rot_center: {list(rot_center)}, expected [x, y] in pixels or null")
        if len(rot_angle_range) != 2 or rot_angle_range[0] > rot_angle_range[1]:
            raise InputError(f"rot_angle_range: {list(rot_angle_range)}, expected [lowest, highest] in degrees")
        self.rot_center = None if rot_center is None else tuple(rot_center)
        self.rot_angle_range = tuple(rot_angle_range)

    def __call__(self, sample: Sample) -> Sample:
        """Return a changed copy of ``sample``."""
        low, high = self.rot_angle_range
        angle = low + (high - low) * float(torch.rand(()))
        return rotate(sample, angle, self.rot_center)


def rotate(sample: Sample, angle: float, center: Sequence[float] | None = None) -> Sample:
    """Image, graph and annotation turned about a point.

    The image keeps its size. What lies beyond its border is reflected; detections that leave it are dropped with
    their edges.

    Parameters
    ----------
    sample : its image and its annotation take the nearest pixel, which keeps the statistics of the noise
    angle : degrees, counter-clockwise on the screen
    center : [x, y] in pixels; None for the centre of the image
    """
    if angle % 360 == 0:
        return sample
    height, width = sample.image.shape[1:]
    middle = torch.tensor([(width - 1) / 2, (height - 1) / 2] if center is None else list(center), dtype=torch.float64)
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turn = torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64)  # y points down
    graph = sample.graph
    pos = ((graph.pos.double() - middle) @ turn.T + middle).float()

    # grid_sample counts from -1 to 1 between the centres of the first and the last pixel
    half = torch.tensor([max(width - 1, 1) / 2, max(height - 1, 1) / 2], dtype=torch.float64)
    back = turn.T
    offset = (back @ (half - middle) + middle) / half - 1
    theta = torch.cat([back * half / half[:, None], offset[:, None]], dim=1).to(sample.image.dtype)
    # functional.affine_grid, which multiplies matrices, takes two to three times as long
    x, y = (torch.linspace(-1, 1, length) for length in (width, height))
    grid = torch.stack([a * x + (b * y + c)[:, None] for a, b, c in theta], dim=2)[None]

    def resample(image: Tensor) -> Tensor:
        # Interpolation would smooth the noise, and networks learn that sharp noise is never annotated.
        return functional.grid_sample(image[None], grid, mode="nearest", padding_mode="reflection", align_corners=True)[
            0
        ]

    annotation = sample.annotation
    if annotation is not None:
        annotation = resample(annotation[None].to(grid.dtype))[0].to(annotation.dtype)
    moved = changed(graph, pos=pos).subset(inside_image(pos, (height, width)))
    return sample.replace(image=resample(sample.image), graph=moved, annotation=annotation)


class RandomFlip(SampleAugmentation):
    """Mirrors image, graph and annotation together.

    Parameters
    ----------
    p_horizontal : probability of exchanging left and right
    p_vertical : probability of exchanging top and bottom
    """

    def __init__(self, p_horizontal: float = 0.5, p_vertical: float = 0.5) -> None:
        self.p_horizontal = fraction("p_horizontal", p_horizontal)
        self.p_vertical = fraction("p_vertical", p_vertical)

    def __call__(self, sample: Sample) -> Sample:
        """Return a changed copy of ``sample``."""
        horizontal, vertical = torch.rand(2) < torch.tensor([self.p_horizontal, self.p_vertical])
        return flip(sample, horizontal=bool(horizontal), vertical=bool(vertical))


def flip(sample: Sample, *, horizontal: bool, vertical: bool) -> Sample:
    """Image, graph and annotation mirrored at the middle of the image, exactly."""
    axes = [axis for axis, wanted in ((-1, horizontal), (-2, vertical)) if wanted]
    if not axes:
        return sample
    height, width = sample.image.shape[1:]
    last = sample.graph.pos.new_tensor([width - 1, height - 1])
    mirrored = torch.tensor([horizontal, vertical])
    pos = torch.where(mirrored, last - sample.graph.pos, sample.graph.pos)
    annotation = None if sample.annotation is None else sample.annotation.flip(axes)
    return sample.replace(image=sample.image.flip(axes), graph=changed(sample.graph, pos=pos), annotation=annotation)


class RandomIntensity(SampleAugmentation):
    """Stretches and shifts the grey values of the whole image.

    Parameters
    ----------
    max_gain : the contrast is multiplied by a factor from 1 - max_gain to 1 + max_gain
    max_offset : grey values are shifted by up to this, in units of the image's standard deviation
    """

    def __init__(self, max_gain: float = 0.2, max_offset: float = 0.2) -> None:
        self.max_gain = fraction("max_gain", max_gain)
        self.max_offset = not_negative("max_offset", max_offset)

    def __call__(self, sample: Sample) -> Sample:
        """Return a changed copy of ``sample``."""
        gain, offset = (2 * torch.rand(2) - 1) * torch.tensor([self.max_gain, self.max_offset])
        return sample.replace(image=sample.image * (1 + gain) + offset * sample.image.std())


class RandomNoise(SampleAugmentation):
    """Adds white Gaussian noise to the image.

    Parameters
    ----------
    max_deviation : the noise's standard deviation is drawn evenly from 0 to this, in units of the image's
    """

    def __init__(self, max_deviation: float = 0.2) -> None:
        self.max_deviation = not_negative("max_deviation", max_deviation)

    def __call__(self, sample: Sample) -> Sample:
        """Return a changed copy of ``sample``."""
        if self.max_deviation == 0:
            return sample
        deviation = self.max_deviation * torch.rand(()) * sample.image.std()
        return sample.replace(image=sample.image + deviation * torch.randn_like(sample.image))


class RandomBlur(SampleAugmentation):
    """Blurs the image with a Gaussian.

    Parameters
    ----------
    max_sigma : pixels; the Gaussian's standard deviation is drawn evenly from 0 to this
    """

    def __init__(self, max_sigma: float = 1.0) -> None:
        self.max_sigma = not_negative("max_sigma", max_sigma)

    def __call__(self, sample: Sample) -> Sample:
        """Return a changed copy of ``sample``."""
        sigma = self.max_sigma * float(torch.rand(()))
        if sigma == 0:
            return sample
        blurred = gaussian_filter(sample.image.numpy(), (0, sigma, sigma), mode="mirror")
        return sample.replace(image=torch.from_numpy(blurred))
