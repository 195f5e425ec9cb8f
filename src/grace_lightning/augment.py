"""Random changes of a training sample, drawn anew every epoch.

Those that act on the graph or on image and graph together take and return a :class:`Sample`; those that act on
patches take and return a tensor of patches. Inputs are never changed. Randomness comes from torch's generator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from grace_lightning.errors import InputError
from grace_lightning.graph import Graph, Label, Sample, inside_image


class SampleAugmentation:
    """Acts on a whole sample, before patches are cut."""

    def __call__(self, sample: Sample) -> Sample:
        """Return a changed copy of ``sample``."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return _repr(self)


class PatchAugmentation:
    """Acts on the patches of a sample, (N, C, p, p) float32."""

    def __call__(self, patches: Tensor) -> Tensor:
        """Return a changed copy of ``patches``."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return _repr(self)


def _repr(augmentation: object) -> str:
    arguments = ", ".join(f"{name}={value}" for name, value in vars(augmentation).items())
    return f"{type(augmentation).__name__}({arguments})"


def _fraction(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise InputError(f"{name}: {value}, expected a fraction from 0 to 1")
    return value


class RandomXYTranslation(SampleAugmentation):
    """Moves every detection by up to ``max_shift`` pixels along x and along y, each on its own; none leaves the image.

    Parameters
    ----------
    max_shift : pixels
    """

    def __init__(self, max_shift: float = 2.0) -> None:
        if max_shift < 0:
            raise InputError(f"max_shift: {max_shift}, expected 0 pixels or more")
        self.max_shift = max_shift

    def __call__(self, sample: Sample) -> Sample:
        """Return a changed copy of ``sample``."""
        if self.max_shift == 0:
            return sample
        shift = (2 * torch.rand_like(sample.graph.pos) - 1) * self.max_shift
        return sample.replace(graph=translate(sample.graph, shift, sample.image.shape[1:]))


def translate(graph: Graph, shift: Tensor, shape: Sequence[int]) -> Graph:
    """Graph with its nodes moved by ``shift`` ((N, 2) pixels), held inside an image of ``shape`` (H, W)."""
    height, width = shape
    last = graph.pos.new_tensor([width - 1, height - 1])
    pos = torch.minimum((graph.pos + shift).clamp(min=0), last)
    return _with(graph, pos=pos)


class RandomEdgeAdditionAndRemoval(SampleAugmentation):
    """Takes some edges away and adds others between nodes that had none; the added ones are labelled UNKNOWN.

    Parameters
    ----------
    p_add : number of added edges, as a fraction of the graph's edges
    p_remove : fraction of the edges that go
    """

    def __init__(self, p_add: float = 0.02, p_remove: float = 0.02) -> None:
        self.p_add = _fraction("p_add", p_add)
        self.p_remove = _fraction("p_remove", p_remove)

    def __call__(self, sample: Sample) -> Sample:
        """Return a changed copy of ``sample``."""
        graph = sample.graph
        keep = torch.randperm(graph.num_edges)[round(self.p_remove * graph.num_edges) :].sort().values
        added = absent_pairs(graph.edges, graph.num_nodes, round(self.p_add * graph.num_edges))
        unknown = torch.full((added.shape[1],), Label.UNKNOWN.value)
        changed = _with(
            graph,
            edges=torch.cat([graph.edges[:, keep], added], dim=1),
            edge_label=torch.cat([graph.edge_label[keep], unknown]),
        )
        return sample.replace(graph=changed)


def absent_pairs(edges: Tensor, num_nodes: int, count: int) -> Tensor:
    """Random pairs of nodes that no edge joins.

    Parameters
    ----------
    edges : (2, E) int64, first < second
    num_nodes : N
    count : how many; fewer come back where the graph has fewer such pairs

    Returns
    -------
    (2, count) int64, first < second, no pair twice
    """
    count = min(count, num_nodes * (num_nodes - 1) // 2 - edges.shape[1])
    taken = edges[0] * num_nodes + edges[1]
    code = taken.new_zeros(0)
    while len(code) < count:
        draw = torch.randint(num_nodes, (2, 2 * count))
        low, high = draw.amin(dim=0), draw.amax(dim=0)
        new = (low * num_nodes + high)[low < high]
        code = torch.unique(torch.cat([code, new[~torch.isin(new, taken)]]))
    code = code[torch.randperm(len(code))[:count]]
    return torch.stack([code // max(num_nodes, 1), code % max(num_nodes, 1)])


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
    moved = _with(graph, pos=pos).subset(inside_image(pos, (height, width)))
    return sample.replace(image=resample(sample.image), graph=moved, annotation=annotation)


class RandomEdgeCrop(PatchAugmentation):
    """Blanks a band at one of the four sides of each patch; the band takes the patch's mean.

    Parameters
    ----------
    max_fraction : of the patch's side; the width of the band is drawn evenly from 0 to this
    """

    def __init__(self, max_fraction: float = 0.1) -> None:
        self.max_fraction = _fraction("max_fraction", max_fraction)

    def __call__(self, patches: Tensor) -> Tensor:
        """Return a changed copy of ``patches``."""
        count, size = len(patches), patches.shape[-1]
        band = torch.round(torch.rand(count, device=patches.device) * self.max_fraction * size).long()
        side = torch.randint(4, (count,), device=patches.device)
        return blank_band(patches, side, band)


def blank_band(patches: Tensor, side: Tensor, band: Tensor) -> Tensor:
    """Patches with a band set to the patch's mean.

    Parameters
    ----------
    patches : (N, C, p, p) float32
    side : (N,) int64; 0 top, 1 bottom, 2 left, 3 right
    band : (N,) int64, pixels
    """
    size = patches.shape[-1]
    ramp = torch.arange(size, device=patches.device)
    distance = torch.where((side % 2 == 0)[:, None], ramp, size - 1 - ramp)  # (N, p) from the blanked side
    blank = distance < band[:, None]
    rows = (side < 2)[:, None, None]
    mask = torch.where(rows, blank[:, :, None], blank[:, None, :])
    return torch.where(mask[:, None], patches.mean(dim=(2, 3), keepdim=True), patches)


class Augmentation:
    """The configured augmentations, in the order of the configuration.

    Parameters
    ----------
    steps : name -> augmentation; None switches one off
    """

    def __init__(self, steps: Mapping[str, SampleAugmentation | PatchAugmentation | None]) -> None:
        self.on_sample = [step for step in steps.values() if isinstance(step, SampleAugmentation)]
        self.on_patches = [step for step in steps.values() if isinstance(step, PatchAugmentation)]

    def __bool__(self) -> bool:
        return bool(self.on_sample or self.on_patches)

    def sample(self, sample: Sample) -> Sample:
        """Apply what acts on samples."""
        for step in self.on_sample:
            sample = step(sample)
        return sample

    def patches(self, patches: Tensor) -> Tensor:
        """Apply what acts on patches, (N, C, p, p)."""
        for step in self.on_patches:
            patches = step(patches)
        return patches


def _with(graph: Graph, **changes: Tensor) -> Graph:
    return Graph(**{**vars(graph), **changes})
