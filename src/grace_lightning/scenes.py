"""Scenes of many kinds: filaments as different microscopes show them, among much that only looks like filaments.

Every parameter is drawn anew for every scene, so that a network that has seen enough of them finds filaments in images
that nobody has annotated. Lengths are in filament widths where nothing else is said.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, pi
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from scipy import fft, ndimage
from scipy.spatial import KDTree

from grace_lightning.graph import Floats, Label, Sample, from_detections
from grace_lightning.raster import Bools, Ints
from grace_lightning.ridges import RidgeDetector
from grace_lightning.simulate import (
    MARGIN,
    STEP,
    Image,
    Simulation,
    carbon_film,
    contrast_transfer,
    expect_fields,
    imaged,
    in_image,
    near_line,
    normals,
    polar,
    resampled,
    strands,
)
from grace_lightning.truth import label_by_mask, with_truth

Range = tuple[float, float]

CONTRASTS: dict[str, Range] = {"just_seen": (2.5, 4.0), "visible": (4.0, 8.0), "clear": (8.0, 20.0)}
"""Mean contrast of a filament over the standard deviation that the noise has if averaged over a square of its width."""

SHORTEST, SHARPEST = 6.0, 2.5
"""Least length of a filament in the image, and least radius of its bends."""


@dataclass(frozen=True)
class Kind:
    """How likely, how large or how strong things are in one kind of image; ranges are drawn from for every scene."""

    profiles: Sequence[str] = ("round", "flat", "hollow", "gauss", "strands")
    optics: Literal["transfer", "blur"] = "blur"  # of an electron microscope out of focus, or of light
    polarity: tuple[str, ...] = ("dark", "bright")
    opaque: float = 0.2  # probability that the upper one of two filaments hides the lower one
    density: Range = (0.02, 0.2)  # part of the image that filaments cover
    radius: Range = (8, 300)  # of the bends, root mean square
    length: Range = (8, 150)
    p_bundle: float = 0.08  # that a filament has others along it
    p_hub: float = 0.1  # that filaments fan out from a place
    p_texture: float = 0.5  # that filaments are periodic
    p_aligned: float = 0.3  # that they have a direction in common
    spread: float = 0.1  # of widths within a scene, standard deviation of the logarithm
    taper: float = 0.1  # probability that filaments thin out towards one end
    blur: Range = (0.0, 0.35)  # standard deviation
    halo: float = 0.4  # probability of a halo around everything
    noise: Range = (0.0, 0.5)  # standard deviation of the blur of coloured noise
    background: Range = (0.0, 0.6)  # structure at several scales, over the contrast of a filament
    streaks: float = 0.3  # probability of a texture of short streaks
    film: float = 0.15  # probability that the edge of a carbon film, or of anything of a rough texture, runs through
    blobs: float = 4.0  # mean number of each: patches and vesicles, groups of grains, steps and bars, fine lines
    vesicles: float = 1.0
    grains: float = 1.0
    steps: float = 0.4
    scratches: float = 1.0
    rows: float = 0.05  # probability of offsets from row to row
    gamma: Range = (0.6, 1.6)
    shading: Range = (0.0, 0.3)
    clearest: float = 20.0  # largest contrast, as CONTRASTS


KINDS: dict[str, Kind] = {
    "any": Kind(),
    "cryo": Kind(
        profiles=("round", "hollow", "strands"), optics="transfer", polarity=("dark",), opaque=0, density=(0.02, 0.15),
        radius=(25, 500), length=(15, 200), p_bundle=0.1, halo=0, noise=(0.0, 0.15), background=(0.0, 0.3), film=0.5,
        streaks=0.1, blobs=5, vesicles=0.7, grains=0.7, steps=0.1, scratches=0.2, gamma=(1, 1), rows=0,
    ),
    "stain": Kind(
        profiles=("round", "flat", "strands", "hollow"), opaque=0.2, radius=(6, 200), length=(8, 100), p_bundle=0.12,
        background=(0.2, 0.9), film=0.25, streaks=0.5, blobs=6, vesicles=2, grains=2, noise=(0.1, 0.5),
    ),
    "fluorescence": Kind(
        profiles=("gauss",), polarity=("bright",), opaque=0, density=(0.03, 0.25), radius=(15, 400), length=(8, 200),
        p_aligned=0.5, p_texture=0.2, blur=(0.2, 0.45), halo=0.1, background=(0.0, 0.7), film=0, streaks=0.1, blobs=2,
        vesicles=0.5, grains=3, steps=0.1, scratches=0.1, gamma=(0.5, 1.2), shading=(0.1, 0.5),
    ),
    "sem": Kind(
        profiles=("flat", "round"), opaque=0.8, density=(0.06, 0.3), radius=(5, 60), length=(15, 200), p_bundle=0.15,
        p_hub=0.25, p_texture=0.1, spread=0.25, taper=0.3, blur=(0.05, 0.25), halo=0.2, background=(0.0, 0.3),
        film=0.05, streaks=0.1, blobs=3, grains=1.5, scratches=6, gamma=(0.5, 1.8), clearest=60,
    ),
    "interference": Kind(
        profiles=("gauss", "round"), radius=(25, 500), length=(10, 200), density=(0.02, 0.12), p_texture=0.1,
        blur=(0.2, 0.45), halo=0.9, noise=(0.1, 0.6), background=(0.1, 0.7), film=0.05, streaks=0.2, blobs=2, grains=3,
        vesicles=0.5, steps=0.2, scratches=0.3,
    ),
    "force": Kind(
        profiles=("gauss", "round"), polarity=("bright",), opaque=0.3, radius=(4, 60), length=(8, 100), halo=0.1,
        p_texture=0.2, film=0, streaks=0.1, blobs=3, vesicles=0.3, grains=4, steps=0.8, rows=0.7, gamma=(0.7, 1.4),
        clearest=30,
    ),
    "photograph": Kind(
        profiles=("round", "flat", "gauss"), opaque=0.7, radius=(12, 150), density=(0.02, 0.15), length=(10, 80),
        p_hub=0.7, p_bundle=0.15, p_texture=0.05, taper=0.6, spread=0.15, halo=0.1, background=(0.1, 0.6), streaks=0.4,
        film=0.3, blobs=3, steps=1.5, scratches=0.7, vesicles=0.2, grains=0.5, clearest=30,
    ),
}  # fmt: skip
"""Kinds of images by name; ``any`` is of no kind in particular."""


class Body(NamedTuple):
    """A filament as it lies in the image."""

    line: Floats  # (P, 2) pixels, its centre line, points STEP apart
    width: Floats  # (P,) pixels
    strength: Floats  # (P,) contrast, about 1


@dataclass(frozen=True, kw_only=True)
class AnyScene:
    """Draws scenes of many kinds, with detections and the truth; lengths are in pixels of the image."""

    size: Sequence[int] = (512, 512)  # rows and columns
    kinds: Sequence[str] = tuple(KINDS)  # one named twice is drawn twice as often
    scale: Sequence[float] = (5.0, 16.0)  # least and largest width of a filament; those of a scene differ by 30 %
    contrast: Sequence[float] = (2.5, 60.0)  # least and largest, over noise averaged over a square of the width
    polarity: Literal["dark", "bright"] | None = None  # None: as the kind has it
    p_picker: float = 0.3  # probability of detections as of a picker, with gaps, jitter and false ones; else of ridges
    threshold: Sequence[float] = (3.0, 6.0)  # of the ridges, least and largest
    spacing: Sequence[float] = (0.7, 1.5)  # between detections, filament widths, least and largest

    def __post_init__(self) -> None:
        expect = partial(expect_fields, self)
        expect("size", "rows and columns, each 64 pixels or more", lambda v: len(v) == 2 and min(v) >= 64)
        expect("kinds", f"one or more of {', '.join(KINDS)}", lambda v: len(v) > 0 and set(v) <= set(KINDS))
        expect("scale contrast threshold spacing", "two numbers above 0, the smaller first", _is_range)
        expect(
            "scale", "2 pixels to a sixteenth of the shorter side", lambda v: 2 <= v[0] <= v[1] <= min(self.size) / 16
        )
        expect("p_picker", "a probability from 0 to 1", lambda v: 0 <= v <= 1)

    def __call__(self, name: str, generator: torch.Generator) -> Simulation:
        """Draw one scene, the same to the bit for the same state of ``generator``."""
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        kind_name = str(rng.choice(self.kinds))
        kind = KINDS[kind_name]
        scale = _log_uniform(self.scale, rng)
        polarity = self.polarity or str(rng.choice(kind.polarity))
        size = self.size[0], self.size[1]
        bodies = list(lay_bodies(size, scale, kind, rng))
        scene = _Canvas(size, scale, kind, rng)
        annotation = scene.draw_filaments(bodies)
        contrast = self._contrast(kind, rng)
        image = scene.image(contrast)
        image = image if polarity == "bright" else -image
        image = np.float32(10.0 ** rng.uniform(-1, 3)) * (image + np.float32(rng.uniform(-3, 3)))
        pos = self._detections(image, bodies, scale, polarity, rng)
        graph = label_by_mask(from_detections(pos)[0], torch.from_numpy(annotation))
        instances = _members(bodies, graph.pos.numpy(), (graph.label("node") == Label.TRUE_POSITIVE).numpy())
        metadata = {"image_filename": name, "pixel_size": 1.0, "scale": scale, "polarity": polarity}
        metadata |= {"kind": kind_name, "contrast": contrast}
        sample = Sample(name, torch.from_numpy(image)[None], graph, torch.from_numpy(annotation), metadata=metadata)
        return Simulation(with_truth(sample, instances), instances, [body.line for body in bodies])

    def _contrast(self, kind: Kind, rng: Generator) -> float:
        least, most = self.contrast
        return _log_uniform((least, max(least, min(most, kind.clearest))), rng)

    def _detections(
        self, image: Image, bodies: Sequence[Body], scale: float, polarity: str, rng: Generator
    ) -> torch.Tensor:
        """Return detections (N, 2) float32 in random order: of ridges, or as a picker gives them."""
        width = max(3.0, scale * rng.uniform(0.9, 1.5))
        spacing = max(2.0, scale * _uniform(self.spacing, rng))
        detector = RidgeDetector(width, spacing, _uniform(self.threshold, rng), polarity)  # type: ignore[arg-type]
        found = detector(torch.from_numpy(image)[None])[["x", "y"]].to_numpy()
        if rng.random() < self.p_picker:
            every = max(1, round(spacing / STEP))
            picked = [body.line[rng.integers(every) :: every] for body in bodies]
            true = np.concatenate([np.zeros((0, 2)), *picked])
            true = true[rng.random(len(true)) >= rng.uniform(0, 0.3)]
            on = _distance(bodies, found) < 0.7 * scale
            false = found[~on][: rng.integers(1 + (~on).sum())]
            anywhere = rng.random((int(rng.uniform(0, 0.1) * image.size / scale**2), 2)) * image.shape[::-1]
            found = np.concatenate([true + rng.uniform(0, 0.15) * scale * rng.normal(size=true.shape), false, anywhere])
        found = found[in_image(found.astype(np.float32), image.shape)]
        return torch.from_numpy(rng.permutation(found).astype(np.float32))


def _is_range(value: Any) -> bool:
    return len(value) == 2 and 0 < value[0] <= value[1]


def _uniform(between: Sequence[float], rng: Generator) -> float:
    return float(rng.uniform(between[0], between[1]))


def _log_uniform(between: Sequence[float], rng: Generator) -> float:
    return float(np.exp(_uniform(np.log(between).tolist(), rng)))


def _distance(bodies: Sequence[Body], points: Floats) -> Floats:
    """Return the distance of points (N, 2) from the nearest centre line, pixels."""
    lines = np.concatenate([np.full((1, 2), 1e9), *(body.line for body in bodies)])
    return np.asarray(KDTree(lines).query(points)[0])


def _members(bodies: Sequence[Body], pos: Floats, positive: Bools) -> dict[str, Ints]:
    """Return the nodes of each filament by its number: positive ones inside of it."""
    members = {}
    for number, body in enumerate(bodies, start=1):
        away, point = KDTree(body.line).query(pos)
        members[str(number)] = np.flatnonzero(positive & (away <= _half(body.width[point])))
    return members


def _half(width: Floats) -> Floats:
    """Return how far from its centre line a filament's annotation reaches, at least two pixels.

    That is a little beyond its rim: the ridges of a hollow filament are its walls.
    """
    return np.asarray(np.maximum(0.6 * width, 2.0))


def lay_bodies(size: tuple[int, int], scale: float, kind: Kind, rng: Generator) -> Iterator[Body]:
    """Draw where filaments run, single, in bundles and fanning out, until they cover as much as they are to."""
    covered, wanted = 0.0, _uniform(kind.density, rng) * size[0] * size[1]
    radius, fading = _log_uniform(kind.radius, rng), rng.uniform(0, 0.35)
    common = rng.uniform(0, 2 * pi) if rng.random() < kind.p_aligned else None
    tapers = rng.random() < kind.taper
    taper = rng.uniform(0.2, 0.7) if tapers else 0.0
    hub = _anywhere(size, rng) if rng.random() < kind.p_hub else None
    for _ in range(200):
        lines = [_wandering(size, scale, kind.length, radius, common, hub, rng)]
        if rng.random() < kind.p_bundle:
            side = rng.choice([-1, 1])
            for k in range(1, 1 + rng.integers(1, 4)):
                lines.append(_alongside(lines[0], side * k * scale * rng.uniform(0.9, 1.3), rng))
        for line in lines:
            line = _stretch(line, size)
            if len(line) * STEP < SHORTEST * scale:
                continue
            along = np.linspace(-1, 1, len(line)) * rng.choice([-1, 1])
            width = scale * np.exp(kind.spread * _bounded(rng)) * (1 - taper * (along + 1) / 2)
            width = np.maximum(width * (1 + 0.06 * _slow(len(line), 10 * scale, rng)), 2.0)
            strength = np.exp(fading * rng.normal()) * np.clip(1 + fading * _slow(len(line), 15 * scale, rng), 0.3, 2)
            covered += float(width.sum()) * STEP
            yield Body(line, width, strength)
        if covered >= wanted:
            return


def _bounded(rng: Generator) -> float:
    """Draw a number of about mean 0 and standard deviation 1, but at most 2 from 0."""
    return float(np.clip(rng.normal(), -2, 2))


def _anywhere(size: tuple[int, int], rng: Generator) -> Floats:
    """Draw a place in the image of ``size`` (H, W), not at its very border: (2,) pixels, x and y."""
    return np.asarray((0.05 + 0.9 * rng.random(2)) * size[::-1])


def _slow(count: int, wave: float, rng: Generator) -> Floats:
    """Draw a curve of ``count`` points that changes over ``wave`` pixels, of standard deviation 1 or less."""
    knots = rng.normal(size=max(4, int(count * STEP / wave) + 4))
    return np.asarray(ndimage.map_coordinates(knots, [np.linspace(1, len(knots) - 2, count)], order=3))


def _wandering(
    size: tuple[int, int],
    scale: float,
    lengths: Range,
    radius: float,
    common: float | None,
    hub: Floats | None,
    rng: Generator,
) -> Floats:
    """Draw a line of random length whose curvature changes slowly: (P, 2) pixels, from ``hub`` if there is one."""
    length = min(scale * _log_uniform(lengths, rng), 2.0 * max(size))
    count = max(8, int(length / STEP))
    own = max(SHARPEST, radius * np.exp(rng.normal(0, 0.5)))
    wave = min(rng.uniform(4, 25), 2.5 * own)  # bends back before it is a ring
    curvature = np.clip(_slow(count, scale * wave, rng) / own, -1 / SHARPEST, 1 / SHARPEST) / scale
    heading = rng.uniform(0, 2 * pi) if common is None else common + rng.normal(0, 0.25)
    line = np.cumsum(STEP * polar(1.0, heading + np.cumsum(STEP * curvature)), axis=0)
    if hub is not None and rng.random() < 0.8:
        return np.asarray(line + hub + rng.normal(0, scale, 2))
    return np.asarray(line - line[rng.integers(count)] + _anywhere(size, rng))


def _alongside(line: Floats, offset: float, rng: Generator) -> Floats:
    """Draw a line beside a stretch of another, which leaves it at one or both ends."""
    first, last = rng.uniform(0, 0.4), rng.uniform(0.6, 1)
    part = line[int(first * len(line)) : max(int(last * len(line)), int(first * len(line)) + 8)]
    along = np.linspace(-1, 1, len(part))
    opening = rng.uniform(0, 0.3, 2) * (rng.random(2) < 0.6)
    away = opening[0] * np.clip(along - 0.3, 0, None) ** 2 + opening[1] * np.clip(-along - 0.3, 0, None) ** 2
    away *= STEP * len(part) / 2
    return resampled(part + (offset + np.sign(offset) * away)[:, None] * normals(part))


def _stretch(line: Floats, size: tuple[int, int]) -> Floats:
    """Return the longest stretch of a line inside the image, and a little beyond."""
    inside = np.concatenate([[False], in_image(line, size), [False]])
    borders = np.flatnonzero(np.diff(inside)).reshape(-1, 2)
    if not len(borders):
        return line[:0]
    start, end = borders[np.diff(borders)[:, 0].argmax()]
    return line[max(0, start - 20) : end + 20]


class _Canvas:
    """What a scene is drawn on: filaments of contrast about 1, and everything else, each with a margin around."""

    def __init__(self, size: tuple[int, int], scale: float, kind: Kind, rng: Generator) -> None:
        self.size, self.scale, self.kind, self.rng = size, scale, kind, rng
        rows, columns = (fft.next_fast_len(length + 2 * MARGIN, real=True) for length in size)
        self.shape = rows, columns
        self.inner = slice(MARGIN, MARGIN + size[0]), slice(MARGIN, MARGIN + size[1])
        self.filaments, self.others = np.zeros(self.shape, np.float32), np.zeros(self.shape, np.float32)
        self.rough = np.zeros((1, 1), np.float32)  # how much of each pixel is of a rough texture

    def draw_filaments(self, bodies: Sequence[Body]) -> Ints:
        """Draw all filaments; return the annotation (H, W), numbers from 1, later ones over earlier ones."""
        rng, numbers = self.rng, np.zeros(self.shape, np.int64)
        profile = str(rng.choice(self.kind.profiles))
        hides = rng.random() < self.kind.opaque
        period = self.scale * rng.uniform(1, 8) if rng.random() < self.kind.p_texture else inf
        depth, hollow = rng.uniform(0.1, 0.5), rng.uniform(0.4, 0.8)
        for number, body in enumerate(bodies, start=1):
            reach = max(body.width.max(), 4.0) * (1.5 if profile == "gauss" else 0.5) + 2
            row, column, point, along, across = near_line(body.line, reach, self.shape)
            width, start = body.width[point], rng.uniform(0, 2 * self.scale)
            density = body.strength[point] * _density(profile, along + start, across, width, period, depth, hollow)
            ends = np.minimum(point, len(body.line) - 1 - point) * STEP  # a cap, not a cut
            density *= np.clip(ends / (0.3 * self.scale) + 0.2, 0, 1)
            under = self.filaments[row, column]
            self.filaments[row, column] = np.maximum(under, density) if hides else under + density
            inside = np.abs(across) <= _half(width)
            numbers[row[inside], column[inside]] = number
        self.body = numbers[self.inner] > 0
        return numbers[self.inner]

    def image(self, contrast: float) -> Image:
        """Return the image (H, W) in which filaments are bright and have this contrast, see :data:`CONTRASTS`."""
        rng, kind, scale = self.rng, self.kind, self.scale
        self._draw_others()
        show = self._optics()
        noise = self._noise(show)
        # Averaged over a square of a filament's width.
        level = ndimage.uniform_filter(noise, max(1, round(scale))).std()
        signal = show(self.filaments)[self.inner]
        height = np.abs(signal[self.body]).mean() if self.body.any() else 1.0
        signal += show(self.others)[self.inner]
        signal *= np.float32(contrast * level / max(height, 1e-6))
        image = signal + (noise * (1 + (rng.uniform(0, 1.5) * self.rough if self.rough.size > 1 else 0)))[self.inner]
        if rng.random() < kind.rows:
            image += np.float32(rng.uniform(0, 0.5) * image.std()) * rng.normal(size=(self.size[0], 1)).astype(
                np.float32
            )
        low, high = np.quantile(image[::4, ::4], [0.001, 0.999])
        image = np.clip((image - low) / max(high - low, 1e-6), *((-1.0, 2.0) if rng.random() < 0.7 else (0.0, 1.0)))
        gamma = _log_uniform(kind.gamma, rng)
        image = np.sign(image) * np.abs(image) ** np.float32(gamma)
        slow = self._field(rng.uniform(0.15, 0.5) * max(self.size))[self.inner]
        amount = np.float32(_uniform(kind.shading, rng))
        image = image * np.exp(amount * slow) if rng.random() < 0.5 else image + np.float32(0.5) * amount * slow
        return np.asarray(image, np.float32)

    def _optics(self) -> Callable[[Image], Image]:
        """Return what shows matter: positive for what is bright."""
        rng, scale = self.rng, self.scale
        if self.kind.optics == "transfer":
            nanometres = _log_uniform((6, 28), rng)
            transfer = -contrast_transfer(self.shape, rng.uniform(0.6, 3.5), 10 * nanometres / scale)
            return lambda matter: imaged(matter, transfer)
        ky, kx = 2 * pi * scale * fft.fftfreq(self.shape[0])[:, None], 2 * pi * scale * fft.rfftfreq(self.shape[1])
        square = (kx**2 + ky**2).astype(np.float32)
        transfer = np.exp(-0.5 * _uniform(self.kind.blur, rng) ** 2 * square)
        if rng.random() < self.kind.halo:
            transfer -= np.float32(rng.uniform(0.2, 0.95)) * np.exp(-0.5 * rng.uniform(0.6, 3) ** 2 * square)
            if rng.random() < 0.5:  # fringes
                transfer *= 1 + np.float32(rng.uniform(0, 0.6)) * np.cos(square * np.float32(rng.uniform(0.05, 0.4)))
        return lambda matter: imaged(matter, transfer)

    def _noise(self, show: Callable[[Image], Image]) -> Image:
        """Draw noise of variance 1: white, and as structures too small to see."""
        rng, white = self.rng, self.rng.normal(size=self.shape).astype(np.float32)
        if self.kind.optics == "transfer":
            coloured = show(rng.normal(size=self.shape).astype(np.float32))
        else:
            coloured = ndimage.gaussian_filter(
                rng.normal(size=self.shape).astype(np.float32), _uniform(self.kind.noise, rng) * self.scale
            )
        coloured /= coloured.std()
        share = rng.random()
        return np.asarray(np.sqrt(share) * coloured + np.sqrt(1 - share) * white, np.float32)

    def _field(self, sigma: float) -> Image:
        """Draw smooth noise of variance 1 whose structures are ``sigma`` pixels large."""
        step = max(1, int(sigma / 2))
        coarse = self.rng.normal(size=tuple(length // step + 4 for length in self.shape)).astype(np.float32)
        coarse = ndimage.gaussian_filter(coarse, sigma / step, mode="wrap")
        coarse /= max(coarse.std(), 1e-6)
        rows, columns = (np.arange(length, dtype=np.float32) / step for length in self.shape)
        grid = np.meshgrid(rows, columns, indexing="ij")
        return np.asarray(
            ndimage.map_coordinates(coarse, grid, order=1) if step > 1 else coarse[: self.shape[0], : self.shape[1]]
        )

    def _draw_others(self) -> None:
        """Draw everything that is no filament, its contrast relative to that of filaments."""
        rng, kind, scale = self.rng, self.kind, self.scale
        amount = _uniform(kind.background, rng)
        for _ in range(rng.integers(1, 4)):
            self.others += np.float32(amount * rng.uniform(0, 0.7)) * self._field(scale * _log_uniform((0.4, 15), rng))
        if rng.random() < kind.streaks:
            self.others += np.float32(rng.uniform(0.1, 0.8)) * self._streaks()
        if rng.random() < kind.film:
            self._draw_film()
        sign = 1 if rng.random() < 0.6 else -1
        things = {self._draw_blob: kind.blobs, self._draw_vesicle: kind.vesicles, self._draw_grains: kind.grains}
        things |= {self._draw_step: kind.steps, self._draw_scratch: kind.scratches}
        for draw, mean in things.items():
            for _ in range(rng.poisson(mean * rng.uniform(0, 2))):
                draw(np.float32((sign if rng.random() < 0.7 else -sign) * rng.uniform(0.3, 2.5)))

    def _streaks(self) -> Image:
        """Draw short bright streaks everywhere, in few directions, shorter than any filament."""
        rng, along, across = self.rng, self.scale * self.rng.uniform(0.6, 1.6), self.scale * self.rng.uniform(0.15, 0.4)
        ky, kx = 2 * pi * fft.fftfreq(self.shape[0])[:, None], 2 * pi * fft.rfftfreq(self.shape[1])
        total = np.zeros(self.shape, np.float32)
        for angle in rng.uniform(0, pi, rng.integers(1, 5)):
            u, v = kx * np.cos(angle) + ky * np.sin(angle), ky * np.cos(angle) - kx * np.sin(angle)
            kernel = np.exp(-0.5 * ((along * u) ** 2 + (across * v) ** 2)).astype(np.float32)
            streak = imaged(rng.normal(size=self.shape).astype(np.float32), kernel)
            total = np.maximum(total, np.clip(streak / streak.std() - rng.uniform(0, 1.5), 0, None))
        return np.asarray(total * np.clip(self._field(6 * self.scale) + rng.uniform(-1, 2), 0, 1))

    def _draw_film(self) -> None:
        """Draw a film with a rough texture and a line along its edge, wider or finer than a filament or as wide."""
        rng, scale = self.rng, self.scale
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        film, edge = carbon_film(self.size, self.shape, STEP, generator)
        ripple = scale * rng.uniform(0, 1) * _slow(len(edge), 8 * scale, rng)
        edge = edge + ripple[:, None] * normals(edge)
        self.rough = ndimage.gaussian_filter(film, scale * rng.uniform(0.1, 0.6))
        texture = np.float32(rng.uniform(0, 0.9)) * self._field(scale * _log_uniform((0.25, 1.5), rng))
        if rng.random() < 0.6:
            texture = texture + np.float32(rng.uniform(0.2, 1.2)) * self._streaks()
        self.others += self.rough * (texture + np.float32(rng.choice([-1, 1]) * rng.uniform(0.3, 2)))
        if rng.random() < 0.8:
            width = scale * _log_uniform((0.3, 2.0), rng)
            self._draw_line(edge, width, np.float32(rng.uniform(0.3, 2.0) * (1 if rng.random() < 0.8 else -1)))

    def _draw_line(self, line: Floats, width: float, strength: np.float32) -> None:
        """Draw a line (P, 2), pixels, of a soft profile ``width`` pixels wide."""
        near = np.asarray(((line > -MARGIN) & (line < np.array(self.size[::-1]) + MARGIN)).all(axis=1))
        if near.sum() < 2:
            return
        row, column, _, _, across = near_line(line, width + 2, self.shape, where=near)
        self.others[row, column] += strength * np.exp(-0.5 * (across / (0.35 * width)) ** 2)

    def _window(self, centre: Floats, reach: float) -> tuple[tuple[slice, slice], Floats, Floats]:
        """Return the part of the canvas around a centre, x and y, and the offsets of its pixels in x and in y."""
        x, y = centre + MARGIN
        window = tuple(slice(max(0, int(c - reach)), max(0, int(c + reach) + 1)) for c in (y, x))
        rows, columns = (np.arange(length)[part] for length, part in zip(self.shape, window, strict=True))
        return window, columns[None] - x, rows[:, None] - y  # type: ignore[return-value]

    def _outline(self, angle: Floats) -> Floats:
        """Return how far an irregular shape reaches in each direction, about 1."""
        order = np.arange(2, 6)
        height, phase = self.rng.uniform(0, 0.5) * self.rng.random(4), 2 * pi * self.rng.random(4)
        return np.asarray(1 + (height / order * np.cos(order * angle[..., None] + phase)).sum(axis=-1))

    def _draw_blob(self, strength: np.float32) -> None:
        """Draw a patch, round or long, even, rising to its middle, or with a rim."""
        rng, radius = self.rng, self.scale * _log_uniform((0.4, 5), self.rng)
        window, dx, dy = self._window(_anywhere(self.size, rng), 2.5 * radius)
        turn, stretch = rng.uniform(0, pi), _log_uniform((1, 2), rng)
        dx, dy = dx * np.cos(turn) + dy * np.sin(turn), (dy * np.cos(turn) - dx * np.sin(turn)) * stretch
        depth = radius * self._outline(np.arctan2(dy, dx)) - np.hypot(dx, dy)
        soft = self.scale * rng.uniform(0.1, 0.5)
        shape = np.clip(depth / soft, 0, 1) * rng.choice([1.0, 0.5]) + rng.random() * np.clip(depth / radius, 0, 1)
        if rng.random() < 0.4:
            shape = shape * rng.random() + np.exp(-0.5 * (depth / (0.3 * self.scale)) ** 2)
        self.others[window] += strength * shape.astype(np.float32)

    def _draw_vesicle(self, strength: np.float32) -> None:
        """Draw a closed membrane, or two."""
        rng, radius = self.rng, self.scale * _log_uniform((1.2, 8), self.rng)
        window, dx, dy = self._window(_anywhere(self.size, rng), 2 * radius)
        depth = radius * self._outline(np.arctan2(dy, dx)) - np.hypot(dx, dy)
        width = self.scale * rng.uniform(0.12, 0.5)
        shape = np.exp(-0.5 * (depth / width) ** 2)
        if rng.random() < 0.4:
            shape = shape + np.exp(-0.5 * ((depth - width * rng.uniform(2.5, 4)) / width) ** 2)
        self.others[window] += strength * shape.astype(np.float32)

    def _draw_grains(self, strength: np.float32) -> None:
        """Draw a group of grains, or of fine pieces."""
        rng, spread = self.rng, self.scale * _log_uniform((0.5, 5), self.rng)
        centre, size = _anywhere(self.size, rng), self.scale * rng.uniform(0.15, 0.6)
        for place in centre + spread * rng.normal(size=(rng.integers(1, 40), 2)):
            window, dx, dy = self._window(place, 4 * size)
            spot = np.exp(-0.5 * (dx**2 + dy**2) / (size * rng.uniform(0.5, 1.2)) ** 2)
            self.others[window] += 0.6 * strength * spot.astype(np.float32)

    def _draw_step(self, strength: np.float32) -> None:
        """Draw a straight edge across the image, or a bar far wider than a filament."""
        rng, angle = self.rng, self.rng.uniform(0, 2 * pi)
        _, dx, dy = self._window(_anywhere(self.size, rng), 2.0 * max(self.shape))
        away, soft = dx * np.cos(angle) + dy * np.sin(angle), self.scale * rng.uniform(0.05, 0.5)
        shape = 1 / (1 + np.exp(-np.clip(away / soft, -30, 30)))
        if rng.random() < 0.4:
            shape = shape * (away < self.scale * rng.uniform(3, 10))
        if rng.random() < 0.3:
            shape = shape + rng.uniform(-1, 1) * np.exp(-0.5 * (away / (self.scale * rng.uniform(0.1, 0.4))) ** 2)
        self.others += strength * shape.astype(np.float32)

    def _draw_scratch(self, strength: np.float32) -> None:
        """Draw a line much finer than a filament, bright or dark, or one as wide but of the other sign."""
        rng = self.rng
        line = _wandering(self.size, self.scale, (5, 100), _log_uniform((8, 1000), rng), None, None, rng)
        other = rng.random() < 0.25
        width = self.scale * (rng.uniform(0.6, 1.2) if other else rng.uniform(0.1, 0.35))
        self._draw_line(line, width, -np.abs(strength) if other else strength)


def _density(
    profile: str, along: Floats, across: Floats, width: Floats, period: float, depth: float, hollow: float
) -> Floats:
    """Return the density of filaments at places along and across them, pixels; about 1 in the middle of a body."""
    distance = 2 * across / width  # 1 at the rim
    rim = 1 / (1 + np.exp(np.clip(3 * (np.abs(across) - width / 2), -30, 30)))
    if profile == "strands":
        return strands(along, across, width, period if period < inf else 1e9) * rim
    beads = 1 + depth * np.cos(2 * pi * along / period) if period < inf else 1.0
    if profile == "gauss":
        return np.asarray(beads * np.exp(-0.5 * (distance / 0.6) ** 2))
    if profile == "flat":
        return np.asarray(beads * rim)
    body = np.sqrt(np.clip(1 - distance**2, 0, None))
    if profile == "hollow":
        body = 1.6 * (body - np.sqrt(np.clip(hollow**2 - distance**2, 0, None)))
    return np.asarray(beads * (body + 0.1) * rim)
