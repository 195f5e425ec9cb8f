"""Random numbers, all from one generator of torch, as arrays."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator

Floats = NDArray[np.float64]
Image = NDArray[np.float32]


def image_generator(seed: int, name: str) -> Generator:
    """The randomness of one image, which depends on the seed and the image's name alone."""
    state = np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1, np.uint64)
    return Generator().manual_seed(int(state[0]))


def between(low: float, high: float, generator: Generator) -> float:
    """One number, all equally likely."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def uniform(*shape: int, generator: Generator) -> Floats:
    """Numbers from 0 to 1."""
    draw: Floats = torch.rand(shape, generator=generator, dtype=torch.float64).numpy()
    return draw


def normal(*shape: int, generator: Generator) -> Floats:
    """Numbers of mean 0 and variance 1."""
    draw: Floats = torch.randn(shape, generator=generator, dtype=torch.float64).numpy()
    return draw
