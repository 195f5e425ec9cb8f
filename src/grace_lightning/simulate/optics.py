"""From density to an image: contrast transfer, noise and illumination."""

from __future__ import annotations

from math import asin, pi

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft
from torch import Generator

from grace_lightning.simulate.draws import Image, normal

# Contrast transfer at 300 kV: wavelength (Angstrom), fall-off (Angstrom^2), and the contrast that needs no defocus:
# two to three times the textbook's, so that wide filaments stay dark in the middle. Spherical aberration is left out:
# at the few Angstrom per pixel at which filaments are picked it turns the phase by less than a tenth of a radian.
WAVELENGTH, ENVELOPE, AMPLITUDE_CONTRAST = 0.0197, 150.0, 0.25
ICE = 0.5  # fraction of the noise variance that is structure of the ice
CARBON, CARBON_NOISE = 6.0, 1.5  # density of the film; its structural noise over that of ice, standard deviations


def contrast_transfer(shape: tuple[int, int], *, defocus: float, pixel_size: float) -> Image:
    """Contrast per density at the frequencies of an ``rfft2`` of ``shape``; negative, as matter is dark.

    Parameters
    ----------
    defocus : micrometres
    pixel_size : Angstrom
    """
    rows, columns = fft.fftfreq(shape[0], pixel_size), fft.rfftfreq(shape[1], pixel_size)
    square = np.add.outer((rows**2).astype(np.float32), (columns**2).astype(np.float32))
    turn = pi * WAVELENGTH * 1e4 * defocus
    transfer: Image = -np.sin(turn * square + asin(AMPLITUDE_CONTRAST)) * np.exp(-ENVELOPE / 4 * square)
    return transfer


def expose(density: Image, film: Image, transfer: Image, generator: Generator) -> Image:
    """The image of matter in ice, with noise of variance 1, more on carbon; all but ``transfer`` of the canvas' shape.

    Parameters
    ----------
    density : in the ice
    film : how much of each pixel is carbon film
    transfer : see :func:`contrast_transfer`
    """
    matter = torch.randn(density.shape, generator=generator).numpy()  # the structure of the ice
    matter *= float(ICE / np.square(transfer).mean()) ** 0.5 * (1 + (CARBON_NOISE - 1) * film)
    matter += density
    matter += CARBON * film
    counts = torch.randn(density.shape, generator=generator).numpy()
    counts *= (1 - ICE) ** 0.5
    counts += imaged(matter, transfer)
    return counts


def imaged(density: NDArray[np.floating], transfer: Image) -> NDArray[np.floating]:
    """Contrast without noise, of the shape and type of ``density``."""
    contrast: NDArray[np.floating] = fft.irfft2(
        fft.rfft2(density, workers=-1) * transfer, s=density.shape, workers=-1, overwrite_x=True
    )
    return contrast


def illumination(size: tuple[int, int], strength: float, generator: Generator) -> Image:
    """A sum of slow cosines, (H, W), the slowest strongest, of standard deviation ``strength``."""
    order = np.arange(4)
    height = normal(4, 4, generator=generator) / (1 + order[:, None] + order) ** 2
    height[0, 0] = 0
    height *= strength / np.linalg.norm(height)
    rows, columns = (fft.idct(np.eye(4), n=s, norm="ortho") * s**0.5 for s in size)  # each of mean square 1
    light: Image = (rows.T @ height @ columns).astype(np.float32)
    return light
