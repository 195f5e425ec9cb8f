"""New crossings and bundles, made of the filaments that an image has."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree

from grace_lightning.augment.common import SampleAugmentation, fraction
from grace_lightning.errors import InputError
from grace_lightning.graph import (
    Graph,
    Label,
    Sample,
    delaunay,
    inside_image,
    label_by_mask,
    spanning_tree,
    with_candidates,
)
from grace_lightning.metrics import grouped, true_filaments
from grace_lightning.targets import with_targets

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Lengths in filament widths.
OUTER, FEATHER = 0.75, 0.3  # from the middle: what is copied of the image, and over how much of that it fades
INNER = 0.6  # a node this near to a filament belongs to it
LEAST_GAP = 0.4  # a detector finds no two points nearer to each other than this
BESIDE = (0.4, 1.3)  # from a filament to a copy beside it
BRIDGED = 3.0  # between nodes of one filament that nothing lies between
STEP = 0.3  # between the points that stand for a filament
BESIDE_TURN = 12.0  # degrees, the most that a copy beside its original is turned
FEWEST = 4  # nodes of a filament that is copied, and at least of a copy within the image


class RandomCopyPaste(SampleAugmentation):
    """Copies filaments to other places of their image, with their detections and labels.

    It shows crossings, bundles and ends that a few annotated images do not have (Ghiasi et al., "Simple Copy-Paste",
    CVPR 2021). A copy lies beside its original, nearly parallel to it, or anywhere, turned and mirrored at will; what
    lies under it is hidden, or shines through where it stands out more. Detections are triangulated and labelled
    anew. Where an annotation does not tell filaments apart, nothing is changed.

    Parameters
    ----------
    p : probability that an image is changed
    max_copies : the number of copies is drawn evenly from 1 to this, or to the number of filaments where that is less
    p_beside : probability that a copy lies beside its original
    scale : width of a filament, pixels
    max_candidate : as of the training set, see :func:`grace_lightning.graph.second_neighbours`
    """

    uses_annotation = True

    def __init__(
        self,
        p: float = 0.7,
        max_copies: int = 8,
        p_beside: float = 0.5,
        scale: float = 20.0,
        max_candidate: float | None = None,
    ) -> None:
        if max_copies < 1:
            raise InputError(f"max_copies: {max_copies}, expected 1 or more")
        if not 0 < scale < math.inf:
            raise InputError(f"scale: {scale}, expected pixels above 0")
        self.p = fraction("p", p)
        self.max_copies = max_copies
        self.p_beside = fraction("p_beside", p_beside)
        self.scale = scale
        self.max_candidate = max_candidate

    def __call__(self, sample: Sample) -> Sample:
        """Return a changed copy of ``sample``."""
        if sample.annotation is None or float(torch.rand(())) >= self.p:
            return sample
        truth = _filaments(sample)
        long = [k for k, nodes in enumerate(truth) if len(nodes) >= FEWEST]
        if not long:
            return sample
        drawing = _Drawing(sample, truth, self.scale)
        copies = 1 + int(torch.randint(min(self.max_copies, len(long)), ()))
        for number in torch.randint(len(long), (copies,)).tolist():
            filament = long[number]
            points = drawing.pos[truth[filament]]
            move = _beside(points, self.scale) if _chance(self.p_beside) else _anywhere(points, sample)
            drawing.paste(filament, move, hides=_chance(0.5))
        return drawing.finished(self.max_candidate)


def _filaments(sample: Sample) -> list[Ints]:
    """The nodes of each true filament, none where they are not told apart."""
    members = sample.graph.members
    if members is not None:
        return grouped(*members.numpy())
    truth = true_filaments(sample.graph, sample.annotation, None)
    return [] if truth.source == "connected positive edges" else truth.nodes


# ---- where to -------------------------------------------------------------------------------------------------------


class _Move:
    """Turns, and mirrors where ``mirror`` is -1, about ``pivot`` and puts that at ``to``."""

    def __init__(self, angle: float, mirror: float, pivot: Floats, to: Floats) -> None:
        cos, sin = math.cos(angle), math.sin(angle)
        self.turn = np.array([[cos, -sin * mirror], [sin, cos * mirror]])
        self.pivot, self.to = pivot, to

    def forth(self, points: Floats) -> Floats:
        """Where points (any, 2) go."""
        moved: Floats = (points - self.pivot) @ self.turn.T + self.to
        return moved

    def back(self, points: Floats) -> Floats:
        """Where points (any, 2) come from."""
        moved: Floats = (points - self.to) @ self.turn + self.pivot
        return moved


def _beside(points: Floats, scale: float) -> _Move:
    pivot = points[int(torch.randint(len(points), ()))]
    towards, angle, away = torch.rand(3, dtype=torch.float64).tolist()
    towards, away = 2 * math.pi * towards, scale * (BESIDE[0] + (BESIDE[1] - BESIDE[0]) * away)
    shift = away * np.array([math.cos(towards), math.sin(towards)])
    return _Move(math.radians(BESIDE_TURN) * (2 * angle - 1), 1.0, pivot, pivot + shift)


def _anywhere(points: Floats, sample: Sample) -> _Move:
    angle, mirror, *at = torch.rand(4, dtype=torch.float64).tolist()
    to = np.array(sample.image.shape[:0:-1]) * at
    return _Move(2 * math.pi * angle, 1.0 if mirror < 0.5 else -1.0, points.mean(axis=0), to)


def _chance(p: float) -> bool:
    return float(torch.rand(())) < p


# ---- copying --------------------------------------------------------------------------------------------------------


class _Drawing:
    """An image, its annotation and its nodes while copies are laid on it; everything is copied from the original."""

    def __init__(self, sample: Sample, truth: list[Ints], scale: float) -> None:
        assert sample.annotation is not None
        self.sample, self.truth, self.scale = sample, truth, scale
        self.pos = sample.graph.pos.numpy().astype(np.float64)
        self.original = sample.annotation.numpy()
        self.image, self.annotation = sample.image.numpy().copy(), self.original.copy()
        self.number = int(self.annotation.max())
        self.limit = np.iinfo(self.annotation.dtype).max
        self.covered = np.zeros(self.annotation.shape, dtype=bool)  # annotated by a copy
        self.truth_courses = [_course(self.pos[nodes], self.original, scale) for nodes in truth]
        self.donors: list[Ints] = []  # of each copy the nodes that came to lie in the image,
        self.moved: list[Floats] = []  # where they lie now,
        self.copy_courses: list[Floats] = []  # and the points that stand for it

    def paste(self, filament: int, move: _Move, *, hides: bool) -> None:
        """Lay a copy of a filament, given its number, on the image."""
        shape, nodes = self.annotation.shape, self.truth[filament]
        moved, course = move.forth(self.pos[nodes]), move.forth(self.truth_courses[filament])
        inside, course = _inside(moved, shape), course[_inside(course, shape)]
        if inside.sum() < FEWEST or self.number >= self.limit:
            return
        row, column, away = _around(course, OUTER * self.scale, shape)
        source = np.floor(move.back(np.stack([column, row], axis=1)) + 0.5).astype(np.int64)
        seen = ((source >= 0) & (source < shape[::-1])).all(axis=1)
        row, column, away, (x, y) = row[seen], column[seen], away[seen], source[seen].T
        # The nearest pixel, as in rotate: interpolation would smooth the noise.
        new, old = self.sample.image.numpy()[:, y, x], self.image[:, row, column]
        annotated = self.original[y, x] > 0
        if not hides:  # the brighter of the two, or the darker, as the filament stands out from what is around it
            brighter = new[:, annotated].mean() > self.sample.image.numpy().mean() if annotated.any() else True
            new = np.maximum(new, old) if brighter else np.minimum(new, old)
        share = np.clip((OUTER - away / self.scale) / FEATHER, 0, 1).astype(np.float32)
        self.image[:, row, column] = old + share * (new - old)
        self.number += 1
        self.annotation[row[annotated], column[annotated]] = self.number
        self.covered[row[annotated], column[annotated]] = True
        self.donors.append(nodes[inside])
        self.moved.append(moved[inside])
        self.copy_courses.append(course)

    def finished(self, max_candidate: float | None) -> Sample:
        """The sample with its copies; its nodes are the old ones, then those of the copies."""
        if not self.donors:
            return self.sample
        graph, own = self.sample.graph, np.repeat(np.arange(len(self.moved)), [len(moved) for moved in self.moved])
        positive = graph.node_label.numpy() == Label.TRUE_POSITIVE
        column, row = _pixels(self.pos, self.annotation.shape)
        kept = np.flatnonzero(positive | ~self.covered[row, column])  # a false detection under a copy would be true now
        added, donor = np.concatenate(self.moved), np.concatenate(self.donors)
        apart = self._apart(self.pos[kept], added, own)
        added, donor = added[apart], donor[apart]
        row_of = torch.from_numpy(np.concatenate([kept, donor]))
        pos = torch.from_numpy(np.concatenate([self.pos[kept], added]).astype(np.float32))
        whole = Graph(
            pos,
            delaunay(pos),
            confidence=graph.confidence[row_of],
            embedding=None if graph.embedding is None else graph.embedding[row_of],
        )
        if max_candidate is not None:
            whole = with_candidates(whole, max_candidate)[0]
        annotation = torch.from_numpy(self.annotation)
        by_mask = label_by_mask(whole, annotation)
        node_label = torch.cat([graph.node_label[kept], by_mask.node_label[len(kept) :]])
        ends = node_label[whole.edges]
        on_filament = torch.where(
            (ends == Label.TRUE_POSITIVE).all(dim=0), by_mask.edge_label, Label.TRUE_NEGATIVE.value
        )
        edge_label = torch.where((ends == Label.UNKNOWN).any(dim=0), Label.UNKNOWN.value, on_filament)
        whole = replace(whole, node_label=node_label, edge_label=edge_label)
        sample = self.sample.replace(image=torch.from_numpy(self.image), graph=whole, annotation=annotation)
        return with_targets(sample, None if graph.members is None else self._instances(kept, added, whole))

    def _apart(self, old: Floats, added: Floats, own: Ints) -> Bools:
        """Which of the nodes to be added (any,) are far enough from others, of which the first stays."""
        least = LEAST_GAP * self.scale
        far = _distance(old, added) >= least
        near = KDTree(added).query_pairs(least, output_type="ndarray").reshape(-1, 2)
        near = near[(own[near[:, 0]] != own[near[:, 1]]) & far[near].all(axis=1)]
        far[near.max(axis=1)] = False
        return far

    def _instances(self, kept: Ints, added: Floats, whole: Graph) -> dict[str, Ints]:
        """Nodes of each filament and of each copy, by what lies near them."""
        new_row = np.full(len(self.pos), -1)
        new_row[kept] = np.arange(len(kept))
        pos, reach = whole.pos.numpy().astype(np.float64), INNER * self.scale
        positive = whole.node_label.numpy() == Label.TRUE_POSITIVE
        groups = []
        for nodes, course in zip(self.truth, self.truth_courses, strict=True):
            near = _distance(course, added) <= reach
            row = new_row[nodes]
            groups.append(np.concatenate([row[row >= 0], len(kept) + np.flatnonzero(near)]))
        groups += [np.flatnonzero(_distance(course, pos) <= reach) for course in self.copy_courses]
        return {str(k): nodes[positive[nodes]] for k, nodes in enumerate(groups)}


def _inside(points: Floats, shape: tuple[int, ...]) -> Bools:
    inside: Bools = inside_image(torch.from_numpy(points), (shape[0], shape[1])).numpy()
    return inside


def _pixels(points: Floats, shape: tuple[int, ...]) -> tuple[Ints, Ints]:
    """Columns and rows of the pixels that points (any, 2) inside the image lie on."""
    column, row = np.minimum(np.floor(points + 0.5).astype(np.int64), np.array(shape[::-1]) - 1).T
    return column, row


def _distance(course: Floats, points: Floats | Ints, limit: float = math.inf) -> Floats:
    """How far points (any, 2) are from the nearest of others; infinite beyond ``limit``."""
    return np.asarray(KDTree(course).query(points, distance_upper_bound=limit)[0], dtype=np.float64)


def _course(points: Floats, annotation: NDArray[np.integer], scale: float) -> Floats:
    """Points all along a filament, given its nodes (P, 2)."""
    tree = spanning_tree(points).tocoo()
    short = tree.data < BRIDGED * scale
    start, end = points[tree.row[short]], points[tree.col[short]]
    shares = np.arange(STEP * scale, BRIDGED * scale, STEP * scale)[:, None] / tree.data[short]
    step, edge = np.nonzero(shares < 1)
    between = start[edge] + shares[step, edge][:, None] * (end - start)[edge]
    column, row = _pixels(between, annotation.shape)
    return np.concatenate([points, between[annotation[row, column] > 0]])


def _around(course: Floats, radius: float, shape: tuple[int, ...]) -> tuple[Ints, Ints, Floats]:
    """Rows and columns of the pixels within ``radius`` of points, and how far from them they are."""
    size = np.array(shape[::-1])
    first = np.clip(np.floor(course.min(axis=0) - radius).astype(np.int64), 0, size - 1)  # of a box, column and row
    width, height = np.clip(np.ceil(course.max(axis=0) + radius).astype(np.int64), 0, size - 1) - first + 1
    column, row = (np.floor(course + 0.5).astype(np.int64) - first).T[:, :, None] + np.arange(
        -math.ceil(radius), math.ceil(radius) + 1
    )
    near = np.zeros((height, width), dtype=bool)
    near[np.clip(row, 0, height - 1)[:, :, None], np.clip(column, 0, width - 1)[:, None, :]] = True
    row, column = (np.array(part) + start for part, start in zip(np.nonzero(near), first[::-1], strict=True))
    away = _distance(course, np.stack([column, row], axis=1), radius)
    close = np.isfinite(away)
    return row[close], column[close], away[close]
