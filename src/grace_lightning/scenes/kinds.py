"""What is in the scenes of each kind, as ranges and probabilities to draw from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import Generator

Range = tuple[float, float]

CONTRASTS: dict[str, Range] = {"just_seen": (3.5, 5.5), "visible": (5.5, 11.0), "clear": (11.0, 28.0)}
"""Mean height of filaments as ridges over the standard deviation of noise and background, in the same filter as the
detections': :func:`grace_lightning.ridges.ridge_filter`. White noise averages out over a square of a filament's width
to 1.4 times as much."""


@dataclass(frozen=True)
class Kind:
    """How likely, how large or how strong things are in one kind of image; ranges are drawn from for every scene."""

    profiles: Sequence[str] = ("round", "flat", "hollow", "gauss", "strands")
    optics: Literal["transfer", "blur"] = "blur"  # of an electron microscope out of focus, or of light
    polarity: tuple[str, ...] = ("dark", "bright")
    opaque: float = 0.2  # probability that the upper one of two filaments hides the lower one
    density: Range = (0.01, 0.2)  # part of the image that filaments cover
    radius: Range = (8, 300)  # of the bends, root mean square
    length: Range = (8, 150)
    p_bundle: float = 0.04  # that a filament has others along it
    p_hub: float = 0.1  # that some filaments fan out from a place
    p_texture: float = 0.5  # that filaments are periodic
    p_aligned: float = 0.3  # that they have a direction in common
    spread: float = 0.1  # of widths within a scene, standard deviation of the logarithm
    taper: float = 0.1  # probability that filaments thin out towards one end
    blur: Range = (0.0, 0.35)  # standard deviation
    halo: float = 0.4  # probability of a halo around everything
    noise: Range = (0.0, 0.5)  # standard deviation of the blur of coloured noise
    relief: float = 0.0  # probability that one side of everything is bright and the other dark
    background: Range = (0.0, 0.6)  # share of structure at several scales in what blurs the ridges, else noise
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
    clearest: float = 28.0  # largest contrast, as CONTRASTS


KINDS: dict[str, Kind] = {
    "any": Kind(),
    "cryo": Kind(
        profiles=("round", "hollow", "strands"), optics="transfer", polarity=("dark",), opaque=0, density=(0.01, 0.15),
        radius=(25, 500), length=(15, 200), p_bundle=0.05, halo=0, noise=(0.0, 0.15), background=(0.0, 0.3), film=0.5,
        streaks=0.1, blobs=5, vesicles=0.7, grains=0.7, steps=0.1, scratches=0.2, gamma=(1, 1), rows=0,
    ),
    "stain": Kind(
        profiles=("round", "flat", "strands", "hollow"), opaque=0.2, radius=(6, 200), length=(8, 100), p_bundle=0.06,
        background=(0.2, 0.9), film=0.25, streaks=0.5, blobs=6, vesicles=2, grains=2, noise=(0.1, 0.5),
    ),
    "fluorescence": Kind(
        profiles=("gauss",), polarity=("bright",), opaque=0, density=(0.02, 0.2), radius=(15, 400), length=(8, 200),
        p_aligned=0.5, p_texture=0.2, blur=(0.2, 0.45), halo=0.1, background=(0.0, 0.7), film=0, streaks=0.1, blobs=2,
        vesicles=0.5, grains=3, steps=0.1, scratches=0.1, gamma=(0.5, 1.2), shading=(0.1, 0.5),
    ),
    "sem": Kind(
        profiles=("flat", "round"), opaque=0.8, density=(0.03, 0.2), radius=(6, 80), length=(15, 200), p_bundle=0.05,
        p_hub=0.2, p_texture=0.1, spread=0.3, taper=0.3, blur=(0.05, 0.25), halo=0.2, background=(0.0, 0.6),
        film=0.05, streaks=0.1, blobs=3, grains=1.5, scratches=1, gamma=(0.5, 1.8), clearest=80,
    ),
    "interference": Kind(
        profiles=("gauss", "round"), radius=(25, 500), length=(10, 200), density=(0.01, 0.12), p_texture=0.1,
        blur=(0.2, 0.45), halo=0.9, relief=0.4, noise=(0.1, 0.6), background=(0.1, 0.7), film=0.05, streaks=0.2,
        blobs=2, grains=3, vesicles=0.5, steps=0.2, scratches=0.3,
    ),
    "force": Kind(
        profiles=("gauss", "round"), polarity=("bright",), opaque=0.3, radius=(4, 60), length=(8, 100), halo=0.1,
        p_texture=0.2, film=0, streaks=0.1, blobs=3, vesicles=0.3, grains=4, steps=0.8, rows=0.7, gamma=(0.7, 1.4),
        clearest=40,
    ),
    "photograph": Kind(
        profiles=("round", "flat", "gauss"), opaque=0.7, radius=(12, 150), density=(0.01, 0.15), length=(10, 80),
        p_hub=0.6, p_bundle=0.05, p_texture=0.05, taper=0.6, spread=0.15, halo=0.1, background=(0.1, 0.6), streaks=0.4,
        film=0.3, blobs=3, steps=1.5, scratches=0.7, vesicles=0.2, grains=0.5, clearest=40,
    ),
}  # fmt: skip
"""Kinds of images by name; ``any`` is of no kind in particular."""


def uniform(between: Sequence[float], rng: Generator) -> float:
    """Draw a number from a range."""
    return float(rng.uniform(between[0], between[1]))


def log_uniform(between: Sequence[float], rng: Generator) -> float:
    """Draw a number whose logarithm is uniform in a range."""
    return float(np.exp(uniform(np.log(between).tolist(), rng)))
