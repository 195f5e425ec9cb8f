"""How a scene is drawn: filaments, everything else, the optics and the noise."""

from collections.abc import Callable, Sequence
from math import inf, pi

import numpy as np
import torch
from numpy.random import Generator
from scipy import fft, ndimage

from grace_lightning.graph import Floats
from grace_lightning.raster import Ints
from grace_lightning.ridges import ACROSS, ALONG
from grace_lightning.scenes.bodies import Body, anywhere, half_width, slow, wandering
from grace_lightning.scenes.kinds import Kind, log_uniform, uniform
from grace_lightning.simulate import (
    MARGIN,
    STEP,
    Image,
    carbon_film,
    contrast_transfer,
    imaged,
    near_line,
    normals,
    polar,
    strands,
)


class Canvas:
    """What a scene is drawn on: filaments of contrast about 1, and everything else, each with a margin around."""

    def __init__(self, size: tuple[int, int], scale: float, kind: Kind, rng: Generator) -> None:
        self.size, self.scale, self.kind, self.rng = size, scale, kind, rng
        rows, columns = (fft.next_fast_len(length + 2 * MARGIN, real=True) for length in size)
        self.shape = rows, columns
        self.inner = slice(MARGIN, MARGIN + size[0]), slice(MARGIN, MARGIN + size[1])
        self.filaments, self.others = np.zeros(self.shape, np.float32), np.zeros(self.shape, np.float32)
        self.rough = np.zeros((1, 1), np.float32)  # how much of each pixel is of a rough texture
        ky, kx = 2 * pi * fft.fftfreq(rows)[:, None], 2 * pi * fft.rfftfreq(columns)
        self.waves = (scale * kx).astype(np.float32), (scale * ky).astype(np.float32)  # radians in a width, x and y

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
            inside = np.abs(across) <= half_width(width)
            numbers[row[inside], column[inside]] = number
        middle = [np.rint(body.line + MARGIN).astype(np.int64) for body in bodies]
        self.middle = np.concatenate([np.zeros((0, 2), np.int64), *middle])[:, ::-1].T
        return numbers[self.inner]

    def image(self, contrast: float) -> Image:
        """Return the image (H, W) in which filaments are bright and have this contrast, see :data:`CONTRASTS`."""
        rng, kind = self.rng, self.kind
        show = self._optics()
        image, structure, noise = show(self.filaments), show(self._structure()), self._noise(show)
        self._draw_others()
        level = self._height(image) / np.float32(contrast)  # of the filter's answer to what is no filament
        share = np.float32(uniform(kind.background, rng))
        noise *= np.sqrt(1 - share) * level / self._spread(noise)
        structure *= min(np.sqrt(share) * level / self._spread(structure), np.float32(1))
        rough = 1 + rng.uniform(0, 1.5) * self.rough if self.rough.size > 1 else 1
        image = (image + structure + show(self.others) + noise * rough)[self.inner]
        if rng.random() < kind.rows:
            image += np.float32(rng.uniform(0, 0.5) * image.std()) * rng.normal(size=(self.size[0], 1)).astype(
                np.float32
            )
        low, high = np.quantile(image[::4, ::4], [0.001, 0.999])
        image = np.clip((image - low) / max(high - low, 1e-6), *((-1.0, 2.0) if rng.random() < 0.7 else (0.0, 1.0)))
        gamma = log_uniform(kind.gamma, rng)
        image = np.sign(image) * np.abs(image) ** np.float32(gamma)
        shade = self._field(rng.uniform(0.15, 0.5) * max(self.size))[self.inner]
        shade *= np.float32(uniform(kind.shading, rng))
        image = image * np.exp(shade) if rng.random() < 0.5 else image + np.float32(0.5) * shade
        return np.asarray(image, np.float32)

    def _height(self, image: Image) -> np.float32:
        """Return the mean height of filaments as ridges, 1 without any.

        An isotropic filter, which needs no direction, answers to a line as the detections' does.
        """
        if not self.middle.size:
            return np.float32(1)
        x, y = self.waves
        square = np.float32(ACROSS**2) * (x**2 + y**2)
        answer = ndimage.maximum_filter(imaged(image, square * np.exp(-square / 2)), round(self.scale))
        return max(answer[*self.middle].mean(), np.float32(1e-6))

    def _spread(self, image: Image) -> np.float32:
        """Return the standard deviation of the ridge filter's answers, over all directions."""
        (x, y), power = self.waves, 0
        for angle in np.arange(8) * pi / 8:
            u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
            u, v = np.float32(ACROSS) * u, np.float32(ALONG) * v
            power = power + (u**2 * np.exp(-0.5 * (u**2 + v**2))) ** 2 / 8
        return max(imaged(image, np.sqrt(power)).std(), np.float32(1e-6))

    def _optics(self) -> Callable[[Image], Image]:
        """Return what shows matter: positive for what is bright."""
        rng, scale = self.rng, self.scale
        if self.kind.optics == "transfer":
            nanometres = log_uniform((6, 28), rng)
            transfer = -contrast_transfer(self.shape, rng.uniform(0.6, 3.5), 10 * nanometres / scale)
            return lambda matter: imaged(matter, transfer)
        kx, ky = self.waves
        square = kx**2 + ky**2
        transfer = np.exp(-0.5 * uniform(self.kind.blur, rng) ** 2 * square)
        if rng.random() < self.kind.halo:
            transfer -= np.float32(rng.uniform(0.2, 0.95)) * np.exp(-0.5 * rng.uniform(0.6, 3) ** 2 * square)
            if rng.random() < 0.5:  # fringes
                transfer *= 1 + np.float32(rng.uniform(0, 0.6)) * np.cos(square * np.float32(rng.uniform(0.05, 0.4)))
        if rng.random() < self.kind.relief:
            light = polar(rng.uniform(0.1, 0.4), np.array([rng.uniform(0, 2 * pi)]))[0].astype(np.float32)
            transfer = transfer * (1 + np.complex64(1j) * (light[0] * kx + light[1] * ky))
        return lambda matter: imaged(matter, transfer)

    def _noise(self, show: Callable[[Image], Image]) -> Image:
        """Draw noise of variance 1: white, and as structures too small to see."""
        rng, white = self.rng, self.rng.normal(size=self.shape).astype(np.float32)
        if self.kind.optics == "transfer":
            coloured = show(rng.normal(size=self.shape).astype(np.float32))
        else:
            coloured = ndimage.gaussian_filter(
                rng.normal(size=self.shape).astype(np.float32), uniform(self.kind.noise, rng) * self.scale
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

    def _structure(self) -> Image:
        """Draw smooth structure at one scale to three."""
        sizes = [self.scale * log_uniform((0.4, 15), self.rng) for _ in range(self.rng.integers(1, 4))]
        return np.asarray(sum(np.float32(self.rng.uniform(0, 0.7)) * self._field(size) for size in sizes))

    def _draw_others(self) -> None:
        """Draw everything that is no filament, its contrast relative to that of filaments."""
        rng, kind = self.rng, self.kind
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
        ripple = scale * rng.uniform(0, 1) * slow(len(edge), 8 * scale, rng)
        edge = edge + ripple[:, None] * normals(edge)
        self.rough = ndimage.gaussian_filter(film, scale * rng.uniform(0.1, 0.6))
        texture = np.float32(rng.uniform(0, 0.9)) * self._field(scale * log_uniform((0.25, 1.5), rng))
        if rng.random() < 0.6:
            texture = texture + np.float32(rng.uniform(0.2, 1.2)) * self._streaks()
        self.others += self.rough * (texture + np.float32(rng.choice([-1, 1]) * rng.uniform(0.3, 2)))
        if rng.random() < 0.8:
            width = scale * log_uniform((0.3, 2.0), rng)
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
        rng, radius = self.rng, self.scale * log_uniform((0.4, 5), self.rng)
        window, dx, dy = self._window(anywhere(self.size, rng), 2.5 * radius)
        turn, stretch = rng.uniform(0, pi), log_uniform((1, 2), rng)
        dx, dy = dx * np.cos(turn) + dy * np.sin(turn), (dy * np.cos(turn) - dx * np.sin(turn)) * stretch
        depth = radius * self._outline(np.arctan2(dy, dx)) - np.hypot(dx, dy)
        soft = self.scale * rng.uniform(0.1, 0.5)
        shape = np.clip(depth / soft, 0, 1) * rng.choice([1.0, 0.5]) + rng.random() * np.clip(depth / radius, 0, 1)
        if rng.random() < 0.4:
            shape = shape * rng.random() + np.exp(-0.5 * (depth / (0.3 * self.scale)) ** 2)
        self.others[window] += strength * shape.astype(np.float32)

    def _draw_vesicle(self, strength: np.float32) -> None:
        """Draw a closed membrane, or two."""
        rng, radius = self.rng, self.scale * log_uniform((1.2, 8), self.rng)
        window, dx, dy = self._window(anywhere(self.size, rng), 2 * radius)
        depth = radius * self._outline(np.arctan2(dy, dx)) - np.hypot(dx, dy)
        width = self.scale * rng.uniform(0.12, 0.5)
        shape = np.exp(-0.5 * (depth / width) ** 2)
        if rng.random() < 0.4:
            shape = shape + np.exp(-0.5 * ((depth - width * rng.uniform(2.5, 4)) / width) ** 2)
        self.others[window] += strength * shape.astype(np.float32)

    def _draw_grains(self, strength: np.float32) -> None:
        """Draw a group of grains, or of fine pieces."""
        rng, spread = self.rng, self.scale * log_uniform((0.5, 5), self.rng)
        centre, size = anywhere(self.size, rng), self.scale * rng.uniform(0.15, 0.6)
        for place in centre + spread * rng.normal(size=(rng.integers(1, 40), 2)):
            window, dx, dy = self._window(place, 4 * size)
            spot = np.exp(-0.5 * (dx**2 + dy**2) / (size * rng.uniform(0.5, 1.2)) ** 2)
            self.others[window] += 0.6 * strength * spot.astype(np.float32)

    def _draw_step(self, strength: np.float32) -> None:
        """Draw a straight edge across the image, or a bar far wider than a filament."""
        rng, angle = self.rng, self.rng.uniform(0, 2 * pi)
        _, dx, dy = self._window(anywhere(self.size, rng), 2.0 * max(self.shape))
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
        line = wandering(self.size, self.scale, (5, 100), log_uniform((8, 1000), rng), None, None, rng)
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
