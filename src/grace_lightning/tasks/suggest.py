"""Which micrographs would teach a network most if they were annotated."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from grace_lightning.graph import Floats


def doubt(probability: NDArray[np.floating]) -> float:
    """Return the mean entropy of probabilities (N,), bits; 0 if there is none."""
    p = np.clip(np.asarray(probability, np.float64), 1e-9, 1 - 1e-9)
    return float(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)).mean()) if len(p) else 0.0


def looks(probability: NDArray[np.floating]) -> Floats:
    """Describe a micrograph by the probabilities of its detections (N,): how many there are, and how they spread."""
    if not len(probability):
        return np.zeros(6)
    return np.array([np.log1p(len(probability)), *np.quantile(probability, [0.1, 0.3, 0.5, 0.7, 0.9])])


def suggest(probabilities: Sequence[NDArray[np.floating]], count: int, spread: float = 1.0) -> list[int]:
    """Choose micrographs of much doubt that differ from each other: their rows, the first one to be done first.

    One after the other, that whose doubt times its distance to the nearest chosen one (to the power ``spread``) is
    greatest. Micrographs are given by the probabilities of their detections.
    """
    doubts = np.array([doubt(p) for p in probabilities])
    places = np.array([looks(p) for p in probabilities]).reshape(len(doubts), 6)
    places = places / np.maximum(places.std(axis=0), 1e-9)
    chosen: list[int] = []
    apart = np.ones(len(doubts))
    for _ in range(min(count, len(doubts))):
        worth = doubts * apart**spread
        worth[chosen] = -1
        chosen.append(int(worth.argmax()))
        away = np.linalg.norm(places - places[chosen[-1]], axis=1)
        apart = away if len(chosen) == 1 else np.minimum(apart, away)
    return chosen
