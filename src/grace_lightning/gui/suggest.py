"""Which micrographs would teach a network most if they were annotated."""

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from grace_lightning.gui.traces import Opened, Search, find

MOST = 16
"""So many micrographs are looked at to suggest one."""


def doubt(probability: Tensor) -> float:
    """Return the mean entropy of probabilities (N,), bits; 0 if there is none."""
    p = probability.double().clamp(1e-9, 1 - 1e-9).numpy()
    return float(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)).mean()) if len(p) else 0.0


def most_teaching(paths: Sequence[Path], search: Search, known: Mapping[Path, Opened]) -> Generator[str, None, Opened]:
    """Find the filaments of some micrographs, and return the one of most doubt; those ``known`` are not done again."""
    some = list(paths)[:: -(-len(paths) // MOST)]
    seen: list[Opened] = []
    for number, path in enumerate(some, 1):
        yield f"looking at {path.name}, {number} of {len(some)}"
        if path in known:
            seen.append(known[path])
        else:
            seen.append((yield from find(path, search)))
    return max(seen, key=lambda opened: doubt(opened.findings.node_probability))
