"""Which micrographs would teach a network most if they were annotated."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def doubt(probability: NDArray[np.floating]) -> float:
    """Return the summed entropy of probabilities (N,), bits: how much it would tell to know all of them.

    It is large where many detections are doubtful, which ``benchmarks/suggest.py`` finds to teach more than where most
    of a few are.
    """
    p = np.clip(np.asarray(probability, np.float64), 1e-9, 1 - 1e-9)
    return float(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)).sum())


def suggest(probabilities: Sequence[NDArray[np.floating]], count: int) -> list[int]:
    """Return the rows of the micrographs of most doubt, the first one first, by their detections' probabilities."""
    order: list[int] = np.argsort([-doubt(values) for values in probabilities], kind="stable").tolist()
    return order[:count]
