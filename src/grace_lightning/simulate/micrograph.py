"""A whole micrograph: its image, its detections and the truth about both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import Any

import numpy as np
import torch
from scipy import fft
from torch import Generator, Tensor

from grace_lightning.errors import InputError
from grace_lightning.graph import Sample, from_detections, label_by_mask
from grace_lightning.simulate.detections import detect, members
from grace_lightning.simulate.draws import Floats, Image, between, uniform
from grace_lightning.simulate.matter import MARGIN, carbon_film, draw_blob, draw_filament, filament_density
from grace_lightning.simulate.optics import contrast_transfer, expose, illumination, imaged
from grace_lightning.simulate.shapes import SHAPES, lay_lines


@dataclass(frozen=True)
class Simulation:
    """A simulated micrograph and the whole truth about it.

    Parameters
    ----------
    sample : image, graph with labels, annotation with one number per filament from 1, ``pixel_size`` in the metadata
    instances : the nodes of each filament, ascending, by the filament's number; a node at a crossing is in several
    centre_lines : per filament (P, 2) float64, pixels, columns x and y; they reach a little beyond the image
    """

    sample: Sample
    instances: dict[str, list[int]]
    centre_lines: list[Floats]


@dataclass(frozen=True, kw_only=True)
class Simulator:
    """Draws micrographs.

    Parameters
    ----------
    size : rows and columns, pixels
    num_filaments : per image
    shapes : which of line, curve, circle and spiral; one named twice is drawn twice as often
    p_touching : probability that a filament runs along the one before it and touches it, unless that one does so itself
    width : diameter of a filament, pixels
    period : of the texture along a filament, pixels; its two strands cross once a period
    snr : mean square contrast of a filament over the variance of the noise (which is 1)
    defocus : micrometres; the more, the stronger the fringes
    pixel_size : Angstrom
    background : standard deviation of the uneven illumination over that of the noise
    num_blobs : patches of contamination per image
    p_carbon : probability that the edge of the carbon film runs through the image
    spacing : of the detections along a filament, pixels
    jitter : standard deviation of a detection in x and in y, pixels
    p_missing : probability that a detection is missing
    false_detections : per image; one that happens to lie on a filament is a true one

    Raises
    ------
    InputError
        A value out of its range.
    """

    size: Sequence[int] = (1024, 1024)
    num_filaments: int = 5
    shapes: Sequence[str] = ("line", "curve", "curve", "circle", "spiral")
    p_touching: float = 0.15
    width: float = 20.0
    period: float = 40.0
    snr: float = 0.1
    defocus: float = 2.0
    pixel_size: float = 4.0
    background: float = 0.4
    num_blobs: int = 8
    p_carbon: float = 0.3
    spacing: float = 20.0
    jitter: float = 2.0
    p_missing: float = 0.15
    false_detections: int = 150

    def __post_init__(self) -> None:
        def expect(names: str, expected: str, fits: Callable[[Any], bool]) -> None:
            for name in names.split():
                if not fits(getattr(self, name)):
                    raise InputError(f"{name}: {getattr(self, name)}, expected {expected}")

        expect("size", "rows and columns, each 64 pixels or more", lambda v: len(v) == 2 and min(v) >= 64)
        expect("shapes", f"one or more of {', '.join(SHAPES)}", lambda v: len(v) > 0 and set(v) <= set(SHAPES))
        expect("width", "2 pixels to an eighth of the shorter side", lambda v: 2 <= v <= min(self.size) / 8)
        expect("period spacing", "1 pixel or more", lambda v: 1 <= v < inf)
        expect("snr pixel_size", "more than 0", lambda v: 0 < v < inf)
        expect("num_filaments num_blobs false_detections", "0 or more", lambda v: v >= 0)
        expect("defocus background jitter", "0 or more", lambda v: 0 <= v < inf)
        expect("p_touching p_carbon p_missing", "a probability from 0 to 1", lambda v: 0 <= v <= 1)

    def __call__(self, name: str, generator: Generator) -> Simulation:
        """One micrograph, the same to the bit for the same state of ``generator``."""
        size = self.size[0], self.size[1]
        lines = lay_lines(
            size,
            self.width,
            count=self.num_filaments,
            shapes=self.shapes,
            p_touching=self.p_touching,
            generator=generator,
        )
        image, annotation, rims = self._draw(lines, generator)
        pos = detect(
            lines,
            rims,
            size,
            spacing=self.spacing,
            jitter=self.jitter,
            p_missing=self.p_missing,
            num_false=self.false_detections,
            generator=generator,
        )
        graph = label_by_mask(from_detections(pos)[0], annotation)
        metadata = {"image_filename": name, "pixel_size": self.pixel_size}
        instances = {str(number): members(line, self.width, graph) for number, line in enumerate(lines, start=1)}
        return Simulation(Sample(name, image[None], graph, annotation, metadata), instances, lines)

    def _draw(self, lines: list[Floats], generator: Generator) -> tuple[Tensor, Tensor, Floats]:
        """(H, W) image, (H, W) annotation, and (any, 2) points on the rims of what is not a filament."""
        height, width = size = self.size[0], self.size[1]
        shape = fft.next_fast_len(height + 2 * MARGIN, real=True), fft.next_fast_len(width + 2 * MARGIN, real=True)
        canvas, numbers = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.int32)
        film, rims = np.zeros((1, 1), dtype=np.float32), [np.zeros((0, 2))]

        filament = {"width": self.width, "period": self.period, "strength": self._strength()}
        for number, line in enumerate(lines, start=1):
            draw_filament(canvas, numbers, line, number, **filament, generator=generator)
        for _ in range(self.num_blobs):
            centre = uniform(2, generator=generator) * (width, height)
            rims.append(draw_blob(canvas, centre, width=self.width, spacing=self.spacing, generator=generator))
        if between(0, 1, generator) < self.p_carbon:
            film, edge = carbon_film(size, shape, spacing=self.spacing, generator=generator)
            rims.append(edge)

        inner = slice(MARGIN, MARGIN + height), slice(MARGIN, MARGIN + width)
        image = expose(canvas, film, self._transfer(shape), generator)[inner]
        image = image + illumination(size, self.background, generator)
        return torch.from_numpy(image), torch.from_numpy(numbers[inner]), np.concatenate(rims)

    def _strength(self) -> float:
        """Density of a filament, such that a straight one has a mean square contrast of ``snr``."""
        half, length = ceil(4 * self.width), ceil(8 * max(self.width, self.period))
        across, along = np.mgrid[-half:half, :length].astype(np.float64)
        density = filament_density(along, across, self.width, self.period)
        contrast = imaged(density, self._transfer((2 * half, length)))
        body = (np.abs(across) <= self.width / 2) & (np.abs(along - length / 2) < length / 4)
        return float((self.snr / np.square(contrast[body]).mean()) ** 0.5)

    def _transfer(self, shape: tuple[int, int]) -> Image:
        return contrast_transfer(shape, defocus=self.defocus, pixel_size=self.pixel_size)
