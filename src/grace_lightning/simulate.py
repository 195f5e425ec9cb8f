"""Micrographs that look like cryo-EM, with detections and a truth that is known.

The matter in the beam (filaments, dirt, carbon film, ice) is projected, the contrast transfer function turns it into
contrast, and electrons are counted (white noise). Points are pixels of the image, columns x and y.
"""

import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import asin, ceil, inf, pi
from pathlib import Path
from shutil import rmtree
from typing import Any

import mrcfile
import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy import fft
from scipy.spatial import KDTree
from torch import Generator, Tensor

from grace_lightning.errors import InputError
from grace_lightning.files import make_folder, remove_unfinished, replacing, write_json
from grace_lightning.graph import Floats, Ints, Label, Sample, from_detections, inside_image
from grace_lightning.io import write_detections, write_grace
from grace_lightning.raster import Bools
from grace_lightning.stopping import until_stopped
from grace_lightning.truth import label_by_mask, type_of_nodes, with_truth

Image = NDArray[np.float32]

NAME, NAMING = re.compile(r"\w[\w.-]*"), "letters, digits, '_', '-' and '.', not beginning with '-' or '.'"
STEP = 0.5  # pixels between points of a centre line
SHARPEST_BEND = 4.0  # radius of curvature, filament widths
MARGIN = 32  # pixels of canvas beyond each border of the image, so that nothing wraps around

# Contrast transfer at 300 kV: wavelength (Angstrom), fall-off (Angstrom^2), and the contrast that needs no defocus:
# two to three times the textbook's, so that wide filaments stay dark in the middle. Spherical aberration is left out:
# at the few Angstrom per pixel at which filaments are picked it turns the phase by less than a tenth of a radian.
WAVELENGTH, ENVELOPE, AMPLITUDE_CONTRAST = 0.0197, 150.0, 0.25
ICE = 0.5  # fraction of the noise variance that is structure of the ice
CARBON, CARBON_NOISE = 6.0, 1.5  # density of the film; its structural noise over that of ice, standard deviations


def image_generator(seed: int, name: str) -> Generator:
    """Return the randomness of one image, which depends on the seed and the image's name alone."""
    state = np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1, np.uint64)
    return Generator().manual_seed(int(state[0]))


def between(low: float, high: float, generator: Generator) -> float:
    """Draw one number, all equally likely."""
    return low + (high - low) * float(uniform(generator=generator))


def uniform(*shape: int, generator: Generator) -> Floats:
    """Draw numbers from 0 to 1."""
    return np.asarray(torch.rand(shape, generator=generator, dtype=torch.float64))


def normal(*shape: int, generator: Generator) -> Floats:
    """Draw numbers of mean 0 and variance 1."""
    return np.asarray(torch.randn(shape, generator=generator, dtype=torch.float64))


def polar(radius: Floats | float, angle: Floats) -> Floats:
    """Return points around the origin, (any, 2)."""
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


# Each shape draws a polyline, (any, 2) pixels, for an image's shorter side and a filament's width.
def _line(side: float, scale: float, generator: Generator) -> Floats:
    return np.array([[0, 0], [side * between(0.4, 1.2, generator), 0]])


def _curve(side: float, scale: float, generator: Generator) -> Floats:
    """Draw a wandering line: its direction is a sum of slow waves, damped if it would bend too sharply."""
    length = side * between(0.4, 1.2, generator)
    order = np.arange(1, 6)
    height, phase = (4 * uniform(5, generator=generator) - 2) / order, 2 * pi * uniform(5, generator=generator)
    wave = pi * np.arange(0, length, STEP)[:, None] / length * order + phase
    bend = np.abs(np.sin(wave) @ (height * order)).max() * pi / length
    direction = np.cos(wave) @ height * min(1.0, 1 / (bend * SHARPEST_BEND * scale))
    return np.cumsum(STEP * polar(1.0, direction), axis=0)


def _circle(side: float, scale: float, generator: Generator) -> Floats:
    radius = max(SHARPEST_BEND * scale, side * between(0.05, 0.18, generator))
    return polar(radius, np.linspace(0, 2 * pi, ceil(2 * pi * radius / STEP)))


def _spiral(side: float, scale: float, generator: Generator) -> Floats:
    pitch = max(1.5 * scale, side * between(0.03, 0.07, generator))
    angle = np.arange(0, 2 * pi * between(1.2, 3, generator), 0.01)
    return polar(SHARPEST_BEND / 2 * scale + pitch * angle / (2 * pi), angle)


SHAPES = {"line": _line, "curve": _curve, "circle": _circle, "spiral": _spiral}


def normals(line: Floats) -> Floats:
    """Return unit vectors across a line, (P, 2)."""
    x, y = np.gradient(line, axis=0).T
    return np.asarray(np.stack([-y, x], axis=1) / np.hypot(x, y)[:, None])


def lay_lines(
    size: tuple[int, int], scale: float, count: int, shapes: Sequence[str], p_touching: float, generator: Generator
) -> list[Floats]:
    """Choose where ``count`` filaments run: per filament (P, 2), points :data:`STEP` pixels apart.

    Each is the longest stretch in the image of ``size`` (H, W), and a little beyond, of one of the :data:`SHAPES`, or
    runs along the previous one, unless that one runs along another.
    """
    lines: list[Floats] = []
    beyond = ceil(2 * scale / STEP)
    alone = False  # whether the previous line lies beside no other: bundles of three would bend too sharply inside
    for touching in uniform(count, generator=generator) < p_touching:
        line = _alongside(lines[-1], scale, generator) if touching and alone else np.zeros((0, 2))
        alone = not in_image(line, size).any()
        if alone:
            line = _anywhere(size, scale, shapes, generator)
        borders = np.flatnonzero(np.diff(in_image(line, size), prepend=False, append=False)).reshape(-1, 2)
        start, end = borders[np.diff(borders)[:, 0].argmax()]
        lines.append(line[max(0, start - beyond) : end + beyond])
    return lines


def _anywhere(size: tuple[int, int], scale: float, shapes: Sequence[str], generator: Generator) -> Floats:
    """Draw a line of some shape, turned by any angle; at least one of its points lies in the image."""
    shape, turn, point = uniform(3, generator=generator)
    sine, cosine = np.sin(2 * pi * turn), np.cos(2 * pi * turn)
    polyline = SHAPES[shapes[int(shape * len(shapes))]](min(size), scale, generator)
    line = resampled(polyline @ np.array([[cosine, sine], [-sine, cosine]]))
    anchor = (0.1 + 0.8 * uniform(2, generator=generator)) * size[::-1]
    return np.asarray(line - line[int(point * len(line))] + anchor)


def _alongside(line: Floats, scale: float, generator: Generator) -> Floats:
    """Draw a line beside a stretch of another, so close that the two filaments touch."""
    first, last, side, gap = uniform(4, generator=generator)
    stretch = slice(int(0.3 * first * len(line)), ceil((1 - 0.3 * last) * len(line)))
    offset = scale * (1 + 0.15 * gap) * (1 if side < 0.5 else -1)
    return resampled((line + offset * normals(line))[stretch])


def resampled(polyline: Floats) -> Floats:
    """Return points of a polyline (P, 2) that are :data:`STEP` apart along it, (any, 2)."""
    arc = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(polyline, axis=0).T))])
    steps = np.arange(0, arc[-1], STEP)
    return np.stack([np.interp(steps, arc, polyline[:, axis]) for axis in (0, 1)], axis=1)


def in_image(points: NDArray[np.floating], size: tuple[int, int]) -> Bools:
    """Return which points, (any, 2), lie inside the image of ``size`` (H, W)."""
    return np.asarray(inside_image(torch.from_numpy(points), size))


def strands(along: Floats, across: Floats, scale: Floats | float, period: float) -> Floats:
    """Return the density of two strands of subunits, wound around each other, in a round body."""
    phase, distance = pi * along / period, across / scale
    # They reach 0.22 widths from the axis, have a standard deviation of 0.16 widths, and 4 subunits a period.
    both = sum(np.exp(-(((distance - s * 0.22 * np.cos(phase)) / 0.16) ** 2) / 2) for s in (1, -1))
    subunits = 1 + 0.2 * np.cos(2 * 4 * phase)
    body = np.sqrt(np.clip(1 - (2 * distance) ** 2, 0, None))
    return np.asarray(both * subunits + 0.5 * body)


def filament_density(along: Floats, across: Floats, scale: float, period: float) -> Floats:
    """Return the density of two :func:`strands` with a soft rim."""
    return np.asarray(strands(along, across, scale, period) / (1 + np.exp(2 * np.abs(across) - scale)))


def near_line(
    line: Floats, reach: float, shape: tuple[int, int], where: Bools | None = None
) -> tuple[Ints, Ints, Ints, Floats, Floats]:
    """Return the pixels of a canvas of ``shape`` within ``reach`` of a line (P, 2), pixels of the image.

    For each: row and column in the canvas, the nearest point of the line, and how far it lies along the line and across
    it. Only points ``where`` (P,) bool are looked at.
    """
    outwards, points = normals(line), np.arange(len(line)) if where is None else np.flatnonzero(where)
    offsets = np.arange(-reach, reach + 0.7, 0.7)  # so close that no pixel is left out
    places = MARGIN + line[points] + offsets[:, None, None] * outwards[points]
    column, row = np.rint(places).astype(np.int64).reshape(-1, 2).T
    inside = (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])
    row, column = np.divmod(np.unique(row[inside] * shape[1] + column[inside]), shape[1])
    pixels = np.stack([column, row], axis=1) - MARGIN
    point = points[KDTree(line[points]).query(pixels)[1]]
    (x, y), (out_x, out_y) = (pixels - line[point]).T, outwards[point].T
    return row, column, point, STEP * point + x * out_y - y * out_x, x * out_x + y * out_y


def draw_filament(
    canvas: Image, line: Floats, scale: float, period: float, strength: float, generator: Generator
) -> tuple[Ints, Ints]:
    """Add a filament's density to ``canvas``; return rows and columns of its body."""
    row, column, _, along, across = near_line(line, scale / 2 + 2, (canvas.shape[0], canvas.shape[1]))
    start = between(0, 2 * period, generator)
    canvas[row, column] += strength * filament_density(start + along, across, scale, period)
    body = np.abs(across) <= scale / 2
    return row[body], column[body]


def draw_blob(canvas: Image, centre: Floats, scale: float, spacing: float, generator: Generator) -> Floats:
    """Add an ice crystal or dirt to ``canvas``; return points inside its rim, (any, 2), ``spacing`` pixels apart."""
    radius, density = scale * np.exp(between(-1, 1.1, generator)), between(2, 7, generator)
    waves = uniform(2, 5, generator=generator)
    x, y = centre + MARGIN
    window = tuple(slice(max(0, int(c - 2 * radius)), ceil(c + 2 * radius)) for c in (y, x))
    row, column = (np.arange(s)[part] for s, part in zip(canvas.shape, window, strict=True))
    dy, dx = row[:, None] - y, column - x
    depth = radius * _outline(np.arctan2(dy, dx), waves) - np.hypot(dy, dx)
    canvas[window] += density * np.clip(depth / 3, 0, 1) * (0.6 + 0.4 * np.clip(depth / radius, 0, 1))
    angle = np.arange(0, 2 * pi, spacing / radius)
    return centre + polar(0.8 * radius * _outline(angle, waves), angle)


def _outline(angle: Floats, waves: Floats) -> Floats:
    """Return how far an irregular blob reaches, about 1; ``waves`` (2, any) are heights and phases of its outline."""
    order = np.arange(2, 2 + waves.shape[1])
    return np.asarray(1 + (0.4 * waves[0] / order * np.cos(order * angle[..., None] + 2 * pi * waves[1])).sum(axis=-1))


def carbon_film(
    size: tuple[int, int], shape: tuple[int, int], spacing: float, generator: Generator
) -> tuple[Image, Floats]:
    """Draw the film around the round hole that most of the image of ``size`` (H, W) lies in.

    Returns how much of each pixel of a canvas of ``shape`` is film, and points on its edge, (any, 2).
    """
    turn, flat, cover = uniform(3, generator=generator)
    extent = np.array(size[::-1], dtype=np.float64)
    outwards = polar(1.0, np.array([2 * pi * turn]))[0]
    radius = (0.8 + flat) * extent.max()
    reach = (0.4 + 0.4 * cover) * np.abs(outwards) @ extent / 2  # from the image's middle to the edge
    centre = extent / 2 + (reach - radius) * outwards
    x, y = ((np.arange(s) - c - MARGIN).astype(np.float32) for s, c in zip(shape[::-1], centre, strict=True))
    film: Image = np.clip((np.hypot(y[:, None], x) - np.float32(radius)) / 4, 0, 1)
    return film, centre + polar(radius, np.arange(0, 2 * pi, spacing / radius))


def contrast_transfer(shape: tuple[int, int], defocus: float, pixel_size: float) -> Image:
    """Return contrast per density (negative: matter is dark) at ``rfft2``'s frequencies; in micrometres, Angstrom."""
    rows, columns = fft.fftfreq(shape[0], pixel_size), fft.rfftfreq(shape[1], pixel_size)
    square = np.add.outer((rows**2).astype(np.float32), (columns**2).astype(np.float32))
    turn = pi * WAVELENGTH * 1e4 * defocus
    return np.asarray(-np.sin(turn * square + asin(AMPLITUDE_CONTRAST)) * np.exp(-ENVELOPE / 4 * square))


def expose(density: Image, film: Image, transfer: Image, generator: Generator) -> Image:
    """Draw the image of matter in ice and on the carbon ``film``, with noise of variance 1, more on carbon."""
    matter = torch.randn(density.shape, generator=generator).numpy()  # the structure of the ice
    matter *= float(ICE / np.square(transfer).mean()) ** 0.5 * (1 + (CARBON_NOISE - 1) * film)
    matter += density
    matter += CARBON * film
    counts = torch.randn(density.shape, generator=generator).numpy()
    counts *= (1 - ICE) ** 0.5
    return np.asarray(counts + imaged(matter, transfer))


def imaged(density: NDArray[np.floating], transfer: Image) -> NDArray[np.floating]:
    """Return contrast without noise, of the shape and type of ``density``."""
    spectrum = fft.rfft2(density, workers=-1) * transfer
    return np.asarray(fft.irfft2(spectrum, s=density.shape, workers=-1, overwrite_x=True))


def illumination(size: tuple[int, int], strength: float, generator: Generator) -> Image:
    """Draw a sum of slow cosines, (H, W), the slowest strongest, of standard deviation ``strength``."""
    order = np.arange(4)
    height = normal(4, 4, generator=generator) / (1 + order[:, None] + order) ** 2
    height[0, 0] = 0
    height *= strength / np.linalg.norm(height)
    rows, columns = (fft.idct(np.eye(4), n=s, norm="ortho") * s**0.5 for s in size)  # each of mean square 1
    return np.asarray(rows.T @ height @ columns, dtype=np.float32)


def expect_fields(simulator: object, names: str, expected: str, fits: Callable[[Any], bool]) -> None:
    """Raise an :class:`InputError` unless the fields of these ``names``, separated by blanks, are as expected."""
    for name in names.split():
        if not fits(getattr(simulator, name)):
            raise InputError(f"{name}: {getattr(simulator, name)}, expected {expected}")


@dataclass(frozen=True)
class Simulation:
    """A simulated micrograph and the whole truth about it."""

    sample: Sample  # with all labels, an annotation of one number per filament from 1, and ``pixel_size`` as metadata
    instances: dict[str, Ints]  # nodes of each filament, ascending, by its number; one at a crossing is in several
    centre_lines: list[Floats]  # per filament (P, 2), pixels; they reach a little beyond the image


@dataclass(frozen=True, kw_only=True)
class Simulator:
    """Draws micrographs. Lengths are in pixels of the image."""

    size: Sequence[int] = (1024, 1024)  # rows and columns
    num_filaments: int = 5
    shapes: Sequence[str] = ("line", "curve", "curve", "circle", "spiral")  # one named twice is drawn twice as often
    p_touching: float = 0.15  # probability that a filament runs along the previous one, unless that runs along another
    scale: float = 20.0  # width of a filament
    period: float = 40.0  # of the texture along a filament; its two strands cross once a period
    types: int = 1  # of filaments, of which each has one; whose periods are 1, 4, 16, ... times as long
    snr: float = 0.1  # mean square contrast of a filament over the variance of the noise (which is 1)
    defocus: float = 2.0  # micrometres; the more, the stronger the fringes
    pixel_size: float = 4.0  # Angstrom
    background: float = 0.4  # standard deviation of the uneven illumination over that of the noise
    num_blobs: int = 8  # patches of contamination
    p_carbon: float = 0.3  # probability that the edge of the carbon film runs through the image
    spacing: float = 20.0  # of the detections along a filament
    jitter: float = 2.0  # standard deviation of a detection in x and in y
    p_missing: float = 0.15  # probability that a detection is missing
    false_detections: int = 150  # if one happens to lie on a filament, it is a true one

    def __post_init__(self) -> None:
        expect = partial(expect_fields, self)
        expect("size", "rows and columns, each 64 pixels or more", lambda v: len(v) == 2 and min(v) >= 64)
        expect("shapes", f"one or more of {', '.join(SHAPES)}", lambda v: len(v) > 0 and set(v) <= set(SHAPES))
        expect("scale", "2 pixels to an eighth of the shorter side", lambda v: 2 <= v <= min(self.size) / 8)
        expect("period spacing", "1 pixel or more", lambda v: 1 <= v < inf)
        expect("snr pixel_size", "more than 0", lambda v: 0 < v < inf)
        expect("types", "1 to 6 types", lambda v: 1 <= v <= 6)
        expect("num_filaments num_blobs false_detections", "0 or more", lambda v: v >= 0)
        expect("defocus background jitter", "0 or more", lambda v: 0 <= v < inf)
        expect("p_touching p_carbon p_missing", "a probability from 0 to 1", lambda v: 0 <= v <= 1)

    def __call__(self, name: str, generator: Generator) -> Simulation:
        """Draw one micrograph, the same to the bit for the same state of ``generator``."""
        lines = lay_lines(self._size, self.scale, self.num_filaments, self.shapes, self.p_touching, generator)
        types = np.ones(len(lines), np.int64)
        if self.types > 1:
            types += torch.randint(self.types, (len(lines),), generator=generator).numpy()
        image, annotation, rims = self._draw(lines, self.period * 4.0 ** (types - 1), generator)
        graph = label_by_mask(from_detections(self._detect(lines, rims, generator))[0], annotation)
        positive = (graph.label("node") == Label.TRUE_POSITIVE).numpy()
        near = [KDTree(line).query(graph.pos.numpy())[0] <= self.scale / 2 for line in lines]
        instances = {str(number): np.flatnonzero(positive & nodes) for number, nodes in enumerate(near, start=1)}
        metadata = {"image_filename": name, "pixel_size": self.pixel_size}
        if self.types > 1:
            graph = replace(graph, node_type=type_of_nodes(graph.num_nodes, instances.values(), types.tolist()))
        sample = Sample(name, image[None], graph, annotation, metadata=metadata)
        return Simulation(with_truth(sample, instances), instances, lines)

    @property
    def _size(self) -> tuple[int, int]:
        return self.size[0], self.size[1]

    def _draw(
        self, lines: list[Floats], periods: NDArray[np.floating], generator: Generator
    ) -> tuple[Tensor, Tensor, Floats]:
        """Draw the image and the annotation, (H, W), and return them with points on rims, (any, 2)."""
        height, width = self._size
        shape = fft.next_fast_len(height + 2 * MARGIN, real=True), fft.next_fast_len(width + 2 * MARGIN, real=True)
        canvas, numbers = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.int32)
        film, rims = np.zeros((1, 1), dtype=np.float32), [np.zeros((0, 2))]
        strength = self._strength()
        for number, (line, period) in enumerate(zip(lines, periods, strict=True), start=1):  # later ones lie on top
            numbers[draw_filament(canvas, line, self.scale, period, strength, generator)] = number
        for _ in range(self.num_blobs):
            centre = uniform(2, generator=generator) * (width, height)
            rims.append(draw_blob(canvas, centre, self.scale, self.spacing, generator))
        if between(0, 1, generator) < self.p_carbon:
            film, edge = carbon_film(self._size, shape, self.spacing, generator)
            rims.append(edge)
        inner = slice(MARGIN, MARGIN + height), slice(MARGIN, MARGIN + width)
        image = expose(canvas, film, self._transfer(shape), generator)[inner]
        image = image + illumination(self._size, self.background, generator)
        return torch.from_numpy(image), torch.from_numpy(numbers[inner]), np.concatenate(rims)

    def _strength(self) -> float:
        """Return the density of a filament for which a straight one has a mean square contrast of ``snr``."""
        half, length = ceil(4 * self.scale), ceil(8 * max(self.scale, self.period))
        across, along = np.mgrid[-half:half, :length].astype(np.float64)
        density = filament_density(along, across, self.scale, self.period)
        contrast = imaged(density, self._transfer((2 * half, length)))
        body = (np.abs(across) <= self.scale / 2) & (np.abs(along - length / 2) < length / 4)
        return float((self.snr / np.square(contrast[body]).mean()) ** 0.5)

    def _transfer(self, shape: tuple[int, int]) -> Image:
        return contrast_transfer(shape, self.defocus, self.pixel_size)

    def _detect(self, lines: list[Floats], rims: Floats, generator: Generator) -> Tensor:
        """Draw true and false detections inside the image, (N, 2) float32 pixels, in random order."""
        starts = [between(0, self.spacing, generator) for _ in lines]
        away = [np.arange(s, len(line) * STEP, self.spacing) for s, line in zip(starts, lines, strict=True)]
        true = [line[(a / STEP).astype(np.int64)] for a, line in zip(away, lines, strict=True)]
        found = np.concatenate([np.zeros((0, 2)), *true])
        found = found[uniform(len(found), generator=generator) >= self.p_missing]
        # Of the false ones, 40 % lie on the rims of contamination and carbon, if there are any.
        rims = rims[in_image(rims, self._size)]
        rims = rims[torch.randperm(len(rims), generator=generator)[: round(0.4 * self.false_detections)].numpy()]
        found = np.concatenate([found, rims])
        found += self.jitter * normal(*found.shape, generator=generator)
        last = np.array(self._size[::-1]) - 1
        anywhere = uniform(self.false_detections - len(rims), 2, generator=generator) * last
        pos = np.concatenate([found, anywhere]).astype(np.float32)
        pos = pos[in_image(pos, self._size)]
        return torch.from_numpy(pos)[torch.randperm(len(pos), generator=generator)]


def simulate_folder(
    simulator: Simulator,
    out_dir: str | Path,
    *,
    num_images: int = 10,
    seed: int = 0,
    prefix: str = "micrograph",
    overwrite: bool = False,
) -> list[str]:
    """Write simulated images with their detections and their truth, and return their names.

    They are named ``<prefix>_0000``, ``<prefix>_0001`` and so on. An image depends on the simulator, the seed and its
    own name, not on how many images there are. An image that exists is an error, unless ``overwrite``.
    """
    for name, value, least in (("num_images", num_images, 1), ("seed", seed, 0)):
        if value < least:
            raise InputError(f"{name}: {value}, expected {least} or more")
    if not NAME.fullmatch(prefix):
        raise InputError(f"prefix: {prefix!r}, expected {NAMING}")
    images = _images(Path(out_dir), prefix, num_images)
    exists = [image for image in images if image.exists()]
    if exists and not overwrite:
        raise InputError(f"{exists[0]}: is there already; set another out_dir or prefix, or overwrite=true")
    console = Console(stderr=True)
    remove_unfinished(make_folder(out_dir, "out_dir"))
    for image in track(
        until_stopped(images), "simulating", num_images, console=console, disable=not console.is_terminal
    ):
        simulation = simulator(image.stem, image_generator(seed, image.stem))
        sample, instances = simulation.sample, {name: nodes.tolist() for name, nodes in simulation.instances.items()}
        image.unlink(missing_ok=True)  # and written last: if the image is there, all files are
        write_detections(image.with_suffix(".h5"), pd.DataFrame(sample.graph.pos.numpy(), columns=["x", "y"]))
        grace = image.with_suffix(".grace")
        write_grace(grace, sample.graph, annotation=sample.annotation, metadata=sample.metadata)
        write_json(image.with_suffix(".instances.json"), instances)
        with replacing(image) as unfinished, mrcfile.new(unfinished) as file:
            file.set_data(sample.image[0].numpy())
            file.voxel_size = sample.metadata.get("pixel_size", 0)  # 0: of no size
    return [image.stem for image in images]


def _images(folder: Path, prefix: str, count: int) -> list[Path]:
    return [folder / f"{prefix}_{k:04d}.mrc" for k in range(count)]


@dataclass(frozen=True)
class SimulatedFolders:
    """Data folders of simulated images, made once and used again as long as their parameters stay the same.

    ``num_images`` are by the folder's name in ``root``, such as ``{"train": 8, "valid": 3, "infer": 3}``. A folder that
    exists and was not made here is an error.
    """

    simulator: Simulator
    root: str
    num_images: Mapping[str, int]
    seed: int = 0

    def __post_init__(self) -> None:
        for folder in self.num_images:
            if not NAME.fullmatch(folder):
                raise InputError(f"num_images: {folder!r}, expected {NAMING}")

    def __call__(self) -> None:
        """Make the folders unless they exist."""
        root, counts = Path(self.root), dict(self.num_images)
        parameters = {"simulator": vars(self.simulator), "num_images": counts, "seed": self.seed}
        parameters = json.loads(json.dumps(parameters))  # as it will be read: tuples become lists
        images = [image for name, count in counts.items() for image in _images(root / name, name, count)]
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".simulation.lock"):  # the jobs of a sweep share the folders
            path = root / "simulation.json"
            record = json.loads(path.read_text()) if path.exists() else {"parameters": None, "folders": []}
            if record["parameters"] == parameters and all(image.exists() for image in images):
                return
            made = {name for name in record["folders"] if NAME.fullmatch(name)}  # a name leads nowhere else
            for folder in (root / name for name in counts if name not in made):
                if folder.exists() and any(folder.iterdir()):
                    found = f"is there already, and {path} does not say that it was simulated"
                    raise InputError(f"{folder}: {found}; set root to another folder, or move this one away")
            # On record before they are made: the next run may remove what a killed run leaves behind.
            write_json(path, {"parameters": None, "folders": sorted(made.union(counts))})
            for name in made:
                rmtree(root / name, ignore_errors=True)
            for name, count in counts.items():
                simulate_folder(self.simulator, root / name, num_images=count, seed=self.seed, prefix=name)
            write_json(path, {"parameters": parameters, "folders": sorted(counts)})
