"""Random changes of a training sample, drawn anew every epoch from torch's generator; inputs are never changed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn import functional

from grace_lightning.errors import InputError
from grace_lightning.flatten import magnified
from grace_lightning.graph import EDGE_HEADS, Floats, Graph, Ints, Label, Sample, TruthSource, delaunay, inside_image
from grace_lightning.raster import Bools, values_at
from grace_lightning.truth import label_by_mask, spanning_tree, with_truth


class _Step:
    fractions: ClassVar[tuple[str, ...]] = ()
    not_negative: ClassVar[tuple[str, ...]] = ()
    """Names of the parameters that are from 0 to 1, and of those that are 0 or more."""

    def __post_init__(self) -> None:
        for name in (*self.fractions, *self.not_negative):
            largest, expected = (1, "a fraction from 0 to 1") if name in self.fractions else (math.inf, "0 or more")
            if not 0 <= (value := getattr(self, name)) <= largest:
                raise InputError(f"{name}: {value}, expected {expected}")


class SampleAugmentation(_Step):
    """Change of a whole sample, before patches are cut: returns a changed copy."""

    uses_annotation = False
    """Whether it needs the annotation; if not, it changes an annotation together with the image if there is one."""

    def __call__(self, sample: Sample) -> Sample:
        raise NotImplementedError


class PatchAugmentation(_Step):
    """Change of the patches of a sample, (N, C, p, p) float32: returns a changed copy."""

    def __call__(self, patches: Tensor) -> Tensor:
        raise NotImplementedError


class _OnPatches(list[PatchAugmentation]):
    """Applies its steps in order; its ``repr`` tells it from others, and without steps it is false."""

    def __call__(self, patches: Tensor) -> Tensor:
        for step in self:
            patches = step(patches)
        return patches


class Augmentation:
    """The configured augmentations by name, in the order of the configuration; None switches one off.

    ``patches`` applies those that change patches.
    """

    def __init__(self, steps: Mapping[str, SampleAugmentation | PatchAugmentation | None]) -> None:
        self.on_sample = [step for step in steps.values() if isinstance(step, SampleAugmentation)]
        self.patches = _OnPatches(step for step in steps.values() if isinstance(step, PatchAugmentation))

    def __bool__(self) -> bool:
        return bool(self.on_sample or self.patches)

    def sample(self, sample: Sample) -> Sample:
        """Apply those that change samples; those that no longer need the annotation do not get it, which saves time."""
        for k, step in enumerate(self.on_sample):
            if not any(later.uses_annotation for later in self.on_sample[k:]):
                sample = sample.replace(annotation=None)
            sample = step(sample)
        return sample


@dataclass(frozen=True)
class RandomXYTranslation(SampleAugmentation):
    """Moves each detection on its own by up to ``max_shift`` pixels along x and y; none leaves the image."""

    max_shift: float = 2.0
    not_negative = ("max_shift",)

    def __call__(self, sample: Sample) -> Sample:
        pos, (height, width) = sample.graph.pos, sample.image.shape[1:]
        shifted = pos + (2 * torch.rand_like(pos) - 1) * self.max_shift
        inside = torch.minimum(shifted.clamp(min=0), pos.new_tensor([width - 1, height - 1]))
        return sample.replace(graph=replace(sample.graph, pos=inside))


@dataclass(frozen=True)
class RandomEdgeAdditionAndRemoval(SampleAugmentation):
    """Removes a fraction of the edges, and adds a fraction, labelled UNKNOWN, between nodes that had none."""

    p_add: float = 0.02
    p_remove: float = 0.02
    fractions = ("p_add", "p_remove")

    def __call__(self, sample: Sample) -> Sample:
        graph = sample.graph
        keep = torch.randperm(graph.num_edges)[round(self.p_remove * graph.num_edges) :].sort().values
        added = _absent_pairs(graph.edges, graph.num_nodes, round(self.p_add * graph.num_edges))
        unknown = torch.full((added.shape[1], len(EDGE_HEADS)), Label.UNKNOWN.value)
        edges = torch.cat([graph.edges[:, keep], added], dim=1)
        edge_label = torch.cat([graph.edge_label[keep], unknown])
        return sample.replace(graph=replace(graph, edges=edges, edge_label=edge_label))


def _absent_pairs(edges: Tensor, num_nodes: int, count: int) -> Tensor:
    """Draw pairs of nodes (2, count) that no edge joins, none twice; all if there are fewer."""
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


@dataclass(frozen=True)
class RandomImageGraphRotate(SampleAugmentation):
    """Turns image, graph and annotation together, by an angle drawn evenly from a range.

    The image keeps its size and is reflected beyond its border. Detections that leave it are dropped with their edges;
    as this numbers nodes anew, ``truth`` is dropped. Labels stay: a filament that the border cuts gets no new end.
    """

    rot_center: Sequence[float] | None = None  # [x, y] in pixels; None for the centre of the image
    rot_angle_range: Sequence[float] = (-180.0, 180.0)  # degrees, counter-clockwise on the screen

    def __post_init__(self) -> None:
        if self.rot_center is not None and len(self.rot_center) != 2:
            raise InputError(f"rot_center: {list(self.rot_center)}, expected [x, y] in pixels or null")
        if len(self.rot_angle_range) != 2 or self.rot_angle_range[0] > self.rot_angle_range[1]:
            raise InputError(f"rot_angle_range: {list(self.rot_angle_range)}, expected [lowest, highest] in degrees")

    def __call__(self, sample: Sample) -> Sample:
        low, high = self.rot_angle_range
        angle = low + (high - low) * float(torch.rand(()))
        if angle % 360 == 0:
            return sample
        height, width = sample.image.shape[1:]
        middle = torch.tensor(self.rot_center or [(width - 1) / 2, (height - 1) / 2], dtype=torch.float64)
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        turn = torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64)  # y points down
        pos = ((sample.graph.pos.double() - middle) @ turn.T + middle).float()

        # grid_sample counts from -1 to 1 between the centres of the first and the last pixel.
        half = torch.tensor([max(width - 1, 1) / 2, max(height - 1, 1) / 2], dtype=torch.float64)
        back = turn.T
        offset = (back @ (half - middle) + middle) / half - 1
        theta = torch.cat([back * half / half[:, None], offset[:, None]], dim=1).to(sample.image.dtype)
        # functional.affine_grid multiplies matrices, which takes two to three times as long.
        x, y = (torch.linspace(-1, 1, length) for length in (width, height))
        grid = torch.stack([a * x + (b * y + c)[:, None] for a, b, c in theta], dim=2)[None]

        # The nearest pixel: interpolation smooths the noise, and networks learn that sharp noise is never annotated.
        def resample(image: Tensor) -> Tensor:
            values = image[None].to(grid.dtype)
            turned = functional.grid_sample(values, grid, "nearest", "reflection", align_corners=True)
            return turned[0].to(image.dtype)

        return sample.replace(
            image=resample(sample.image),
            graph=replace(sample.graph, pos=pos).subset(inside_image(pos, (height, width))),
            annotation=None if sample.annotation is None else resample(sample.annotation[None])[0],
            truth=None,
        )


@dataclass(frozen=True)
class RandomMagnification(SampleAugmentation):
    """Magnifies image, graph and annotation together, or reduces them, by a factor of up to ``max_factor``.

    So a network learns that filaments may be wider or thinner than they are said to be.
    """

    max_factor: float = 1.25

    def __post_init__(self) -> None:
        if not 1 <= self.max_factor <= 10:
            raise InputError(f"max_factor: {self.max_factor}, expected a factor from 1 to 10")

    def __call__(self, sample: Sample) -> Sample:
        return magnified_sample(sample, self.max_factor ** (2 * float(torch.rand(())) - 1))


def magnified_sample(sample: Sample, factor: float) -> Sample:
    """Resample image, positions and annotation to ``factor`` times their size; labels and truth stay as they are."""
    if factor == 1:
        return sample
    image, annotation = magnified(sample.image, factor), sample.annotation
    if annotation is not None:  # by the nearest pixel: its numbers are names
        rows, columns = (
            ((torch.arange(length) + 0.5) / factor).long().clamp(max=before - 1)
            for length, before in zip(image.shape[1:], annotation.shape, strict=True)
        )
        annotation = annotation[rows][:, columns]
    graph = replace(sample.graph, pos=(sample.graph.pos + 0.5) * factor - 0.5)
    return sample.replace(image=image, graph=graph, annotation=annotation)


@dataclass(frozen=True)
class RandomFlip(SampleAugmentation):
    """Exchanges left and right, and top and bottom, of image, graph and annotation, with a probability for each."""

    p_horizontal: float = 0.5
    p_vertical: float = 0.5
    fractions = ("p_horizontal", "p_vertical")

    def __call__(self, sample: Sample) -> Sample:
        mirrored = torch.rand(2) < torch.tensor([self.p_horizontal, self.p_vertical])
        axes = [axis for axis, wanted in zip((-1, -2), mirrored.tolist(), strict=True) if wanted]
        graph, annotation, (height, width) = sample.graph, sample.annotation, sample.image.shape[1:]
        pos = torch.where(mirrored, graph.pos.new_tensor([width - 1, height - 1]) - graph.pos, graph.pos)
        return sample.replace(
            image=sample.image.flip(axes),
            graph=replace(graph, pos=pos),
            annotation=None if annotation is None else annotation.flip(axes),
        )


@dataclass(frozen=True)
class RandomIntensity(SampleAugmentation):
    """Multiplies grey values by a factor from 1 - max_gain to 1 + max_gain, and adds up to max_offset deviations."""

    max_gain: float = 0.2
    max_offset: float = 0.1
    fractions = ("max_gain",)
    not_negative = ("max_offset",)

    def __call__(self, sample: Sample) -> Sample:
        gain, offset = (2 * torch.rand(2) - 1) * torch.tensor([self.max_gain, self.max_offset])
        return sample.replace(image=sample.image * (1 + gain) + offset * sample.image.std())


@dataclass(frozen=True)
class RandomNoise(SampleAugmentation):
    """Adds white noise, its standard deviation drawn evenly from 0 to ``max_deviation`` times that of the image."""

    max_deviation: float = 0.2
    not_negative = ("max_deviation",)

    def __call__(self, sample: Sample) -> Sample:
        deviation = self.max_deviation * torch.rand(()) * sample.image.std()
        return sample.replace(image=sample.image + deviation * torch.randn_like(sample.image))


@dataclass(frozen=True)
class RandomBlur(SampleAugmentation):
    """Blurs the image with a Gaussian, its standard deviation drawn evenly from 0 to ``max_sigma`` pixels."""

    max_sigma: float = 1.0
    not_negative = ("max_sigma",)

    def __call__(self, sample: Sample) -> Sample:
        sigma = self.max_sigma * float(torch.rand(()))
        blurred = gaussian_filter(sample.image.numpy(), (0, sigma, sigma), mode="mirror")
        return sample.replace(image=torch.from_numpy(blurred))


@dataclass(frozen=True)
class RandomEdgeCrop(PatchAugmentation):
    """Gives a band at one side of each patch the patch's mean, of up to ``max_fraction`` of the side's length."""

    max_fraction: float = 0.1
    fractions = ("max_fraction",)

    def __call__(self, patches: Tensor) -> Tensor:
        count, size = len(patches), patches.shape[-1]
        band = torch.round(torch.rand(count, device=patches.device) * self.max_fraction * size).long()
        side = torch.randint(4, (count,), device=patches.device)  # top, bottom, left, right
        ramp = torch.arange(size, device=patches.device)
        distance = torch.where((side % 2 == 0)[:, None], ramp, size - 1 - ramp)  # (N, p) from the blanked side
        blank = distance < band[:, None]
        mask = torch.where((side < 2)[:, None, None], blank[:, :, None], blank[:, None, :])
        return torch.where(mask[:, None], patches.mean(dim=(2, 3), keepdim=True), patches)


# Lengths in filament widths.
OUTER, FEATHER = 0.75, 0.3  # from the middle: what is copied of the image, and over how much of that it fades
INNER = 0.6  # a node this near to a filament belongs to it
LEAST_GAP = 0.4  # a detector finds no two points nearer to each other than this
BESIDE = (0.4, 1.3)  # from a filament to a copy beside it
BRIDGED = 3.0  # between nodes of one filament that nothing lies between
STEP = 0.3  # between the points of a filament's course
BESIDE_TURN = 12.0  # degrees, the most that a copy beside its original is turned
FEWEST = 4  # nodes of a filament that is copied, and at least of a copy within the image


@dataclass(frozen=True)
class RandomCopyPaste(SampleAugmentation):
    """Copies filaments to other places of their image, with their detections and labels.

    It shows crossings, bundles and ends that a few annotated images do not have (Ghiasi et al., "Simple Copy-Paste",
    CVPR 2021). A copy lies beside its original, nearly parallel to it, or anywhere, turned and mirrored; it hides what
    lies under it, or the two are merged by their brighter (or darker) pixels. Detections are triangulated and labelled
    anew. If an annotation does not tell filaments apart, nothing is changed.
    """

    p: float = 0.7  # that an image is changed
    max_copies: int = 8  # drawn evenly from 1 to this, or to the number of filaments if that is less
    p_beside: float = 0.5  # that a copy lies beside its original
    scale: float = 20.0  # pixels, width of a filament
    fractions = ("p", "p_beside")
    uses_annotation = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_copies < 1 or not 0 < self.scale < math.inf:
            raise InputError(f"max_copies: {self.max_copies}, scale: {self.scale}, expected 1 or more, and above 0")

    def __call__(self, sample: Sample) -> Sample:
        truth = sample.truth
        if sample.annotation is None or not _chance(self.p) or truth is None or truth.source is TruthSource.EDGES:
            return sample
        long = [k for k, nodes in enumerate(truth.filaments) if len(nodes) >= FEWEST]
        if not long:
            return sample
        drawing = _Drawing(sample, sample.annotation, truth.filaments, self.scale)
        copies = 1 + int(torch.randint(min(self.max_copies, len(long)), ()))
        for number in torch.randint(len(long), (copies,)).tolist():
            points = drawing.pos[truth.filaments[long[number]]]
            move = _placed(points, _chance(self.p_beside), sample.annotation.shape, self.scale)
            drawing.paste(long[number], *move, hides=_chance(0.5))
        return drawing.finished(truth.source is TruthSource.INSTANCES) if drawing.copies else sample


def _placed(points: Floats, beside: bool, shape: tuple[int, ...], scale: float) -> tuple[Floats, Floats, Floats]:
    """Draw a matrix that turns a copy about a point of its original, the point, and where it goes."""
    if beside:
        pivot = points[int(torch.randint(len(points), ()))]
        towards, turn, away = torch.rand(3, dtype=torch.float64).tolist()
        towards, away = 2 * math.pi * towards, scale * (BESIDE[0] + (BESIDE[1] - BESIDE[0]) * away)
        to = pivot + away * np.array([math.cos(towards), math.sin(towards)])
        angle, mirror = math.radians(BESIDE_TURN) * (2 * turn - 1), 1.0
    else:
        turn, side, *at = torch.rand(4, dtype=torch.float64).tolist()
        pivot, to = points.mean(axis=0), np.array(shape[::-1]) * at
        angle, mirror = 2 * math.pi * turn, 1.0 if side < 0.5 else -1.0
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin * mirror], [sin, cos * mirror]]), pivot, to


def _chance(p: float) -> bool:
    return float(torch.rand(())) < p


class _Copy(NamedTuple):
    donor: Ints  # the nodes of the original whose copies lie in the image,
    pos: Floats  # where the copies lie,
    course: Floats  # and points all along the copy of the filament


class _Drawing:
    """An image and its annotation while copies are laid on them; everything is copied from the original."""

    def __init__(self, sample: Sample, annotation: Tensor, filaments: list[Ints], scale: float) -> None:
        self.sample, self.filaments, self.scale = sample, filaments, scale
        self.pos = sample.graph.pos.numpy().astype(np.float64)
        self.original = annotation.numpy()
        self.image, self.annotation = sample.image.numpy().copy(), self.original.copy()
        self.number = int(self.annotation.max())
        self.courses = [self._course(self.pos[nodes]) for nodes in filaments]
        self.copies: list[_Copy] = []

    def _course(self, points: Floats) -> Floats:
        """Return points all along a filament, given its nodes (P, 2)."""
        tree = spanning_tree(points).tocoo()
        short = tree.data < BRIDGED * self.scale
        start, end = points[tree.row[short]], points[tree.col[short]]
        shares = np.arange(STEP * self.scale, BRIDGED * self.scale, STEP * self.scale)[:, None] / tree.data[short]
        step, edge = np.nonzero(shares < 1)
        between = start[edge] + shares[step, edge][:, None] * (end - start)[edge]
        return np.concatenate([points, between[values_at(self.original, between).astype(bool)]])

    def paste(self, filament: int, turn: Floats, pivot: Floats, to: Floats, *, hides: bool) -> None:
        """Lay a copy of a filament, given its number, on the image, turned about ``pivot``, which goes to ``to``."""
        shape, nodes, original = self.annotation.shape, self.filaments[filament], self.sample.image.numpy()
        moved, course = ((p - pivot) @ turn.T + to for p in (self.pos[nodes], self.courses[filament]))
        inside, course = _inside(moved, shape), course[_inside(course, shape)]
        if inside.sum() < FEWEST or self.number == np.iinfo(self.annotation.dtype).max:
            return
        points, away = _around(course, OUTER * self.scale, shape)
        source = (points - to) @ turn + pivot
        seen = _inside(source, shape)
        (column, row), away, source = points[seen].astype(np.int64).T, away[seen], source[seen]
        # The nearest pixel, as in rotate: interpolation would smooth the noise.
        new, old = np.stack([values_at(channel, source) for channel in original]), self.image[:, row, column]
        annotated = values_at(self.original, source).astype(bool)
        if not hides:  # the brighter of the two, or the darker, as the filament stands out from what is around it
            brighter = new[:, annotated].mean() > original.mean() if annotated.any() else True
            new = np.maximum(new, old) if brighter else np.minimum(new, old)
        share = np.clip((OUTER - away / self.scale) / FEATHER, 0, 1).astype(np.float32)
        self.image[:, row, column] = old + share * (new - old)
        self.number += 1
        self.annotation[row[annotated], column[annotated]] = self.number
        self.copies.append(_Copy(nodes[inside], moved[inside], course))

    def finished(self, by_instances: bool) -> Sample:
        """Return the sample with its copies; its nodes are the old ones, then those of the copies."""
        graph, annotation = self.sample.graph, torch.from_numpy(self.annotation)
        positive = graph.label("node").numpy() == Label.TRUE_POSITIVE
        under_copy = values_at(self.annotation > self.original.max(), self.pos).astype(bool)
        kept = np.flatnonzero(positive | ~under_copy)  # a false detection under a copy would be true now
        added, donor = self._added(self.pos[kept])
        row = torch.from_numpy(np.concatenate([kept, donor]))
        pos = torch.from_numpy(np.concatenate([self.pos[kept], added]).astype(np.float32))
        embedding = None if graph.embedding is None else graph.embedding[row]
        whole = Graph(
            pos,
            delaunay(pos),
            node_type=graph.node_type[row],
            confidence=graph.confidence[row],
            embedding=embedding,
        )
        whole = label_by_mask(whole, annotation)
        # Old nodes keep their labels, and edges follow the labels of their ends.
        node = torch.cat([graph.label("node")[kept], whole.label("node")[len(kept) :]])
        ends = node[whole.edges]
        edge = torch.where((ends == Label.TRUE_POSITIVE).all(dim=0), whole.label("edge"), Label.TRUE_NEGATIVE.value)
        edge = torch.where((ends == Label.UNKNOWN).any(dim=0), Label.UNKNOWN.value, edge)
        whole = whole.with_labels(node=node, edge=edge)
        sample = self.sample.replace(image=torch.from_numpy(self.image), graph=whole, annotation=annotation)
        return with_truth(sample, self._instances(kept, added, whole) if by_instances else None)

    def _added(self, old: Floats) -> tuple[Floats, Ints]:
        """Return the nodes of all copies that are far enough from old ones and from each other, and their donors."""
        pos = np.concatenate([copy.pos for copy in self.copies])
        own = np.repeat(np.arange(len(self.copies)), [len(copy.pos) for copy in self.copies])
        least = LEAST_GAP * self.scale
        far = _distance(old, pos) >= least
        near = KDTree(pos).query_pairs(least, output_type="ndarray").reshape(-1, 2)
        near = near[(own[near[:, 0]] != own[near[:, 1]]) & far[near].all(axis=1)]
        far[near.max(axis=1)] = False  # of two copies, the node of the first stays
        return pos[far], np.concatenate([copy.donor for copy in self.copies])[far]

    def _instances(self, kept: Ints, added: Floats, whole: Graph) -> dict[str, Ints]:
        """Return the nodes of each filament and of each copy: its own, and new ones that lie near it."""
        pos, reach = whole.pos.numpy().astype(np.float64), INNER * self.scale
        positive = whole.label("node").numpy() == Label.TRUE_POSITIVE
        groups = []
        for nodes, course in zip(self.filaments, self.courses, strict=True):
            own, near = np.isin(kept, nodes), _distance(course, added) <= reach
            groups.append(np.flatnonzero(np.concatenate([own, near])))
        groups += [np.flatnonzero(_distance(copy.course, pos) <= reach) for copy in self.copies]
        return {str(k): nodes[positive[nodes]] for k, nodes in enumerate(groups)}


def _inside(points: Floats, shape: tuple[int, ...]) -> Bools:
    return inside_image(torch.from_numpy(points), (shape[0], shape[1])).numpy()


def _distance(course: Floats, points: Floats, limit: float = math.inf) -> Floats:
    """Return how far points (any, 2) are from the nearest point of a course; infinite beyond ``limit``."""
    return np.asarray(KDTree(course).query(points, distance_upper_bound=limit)[0], dtype=np.float64)


def _around(course: Floats, radius: float, shape: tuple[int, ...]) -> tuple[Floats, Floats]:
    """Return the pixels (any, 2) within ``radius`` of a course, and how far from it they are."""
    reach, last = np.arange(-math.ceil(radius), math.ceil(radius) + 1), np.array(shape[::-1])[:, None, None] - 1
    x, y = np.clip(np.floor(course + 0.5).astype(np.int64).T[:, :, None] + reach, 0, last)
    near = np.zeros((np.ptp(y) + 1, np.ptp(x) + 1), dtype=bool)  # the bounding box, with a square around each point
    near[(y - y.min())[:, :, None], (x - x.min())[:, None, :]] = True
    points = np.add(np.argwhere(near)[:, ::-1], (x.min(), y.min()), dtype=np.float64)
    away = _distance(course, points, radius)
    close = np.isfinite(away)
    return points[close], away[close]
