"""What a detector finds on a micrograph, and what the truth says about it."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Generator, Tensor

from grace_lightning.graph import Graph, Label, inside_image
from grace_lightning.simulate.draws import Floats, between, normal, uniform
from grace_lightning.simulate.shapes import STEP

RIM_FRACTION = 0.4  # of the false detections: these lie on the rims of contamination and carbon, if there are any


def detect(
    lines: list[Floats],
    rims: Floats,
    size: tuple[int, int],
    *,
    spacing: float,
    jitter: float,
    p_missing: float,
    num_false: int,
    generator: Generator,
) -> Tensor:
    """True and false detections inside the image, in random order.

    Parameters
    ----------
    lines : per filament (P, 2)
    rims : (any, 2), where a detector may take something else for a filament
    size : (H, W)
    spacing, jitter, p_missing, num_false : see :class:`~grace_lightning.simulate.Simulator`

    Returns
    -------
    (N, 2) float32, pixels
    """
    true = np.zeros((0, 2))
    for line in lines:
        away = np.arange(between(0, spacing, generator), len(line) * STEP, spacing)
        true = np.concatenate([true, line[(away / STEP).astype(np.int64)]])
    true = true[uniform(len(true), generator=generator) >= p_missing]

    rims = rims[inside_image(torch.from_numpy(rims), size).numpy()]
    rims = rims[torch.randperm(len(rims), generator=generator).numpy()[: round(RIM_FRACTION * num_false)]]
    found = np.concatenate([true, rims])
    found += jitter * normal(*found.shape, generator=generator)
    anywhere = uniform(num_false - len(rims), 2, generator=generator) * (np.array(size[::-1]) - 1)
    pos = torch.from_numpy(np.concatenate([found, anywhere]).astype(np.float32))
    pos = pos[inside_image(pos, size)]
    return pos[torch.randperm(len(pos), generator=generator)]


def members(line: Floats, width: float, graph: Graph) -> list[int]:
    """Positive nodes within half a filament's width of its centre line ((P, 2))."""
    away, _ = KDTree(line).query(graph.pos.numpy())
    positive = (graph.node_label == Label.TRUE_POSITIVE).numpy()
    nodes: list[int] = np.flatnonzero(positive & (away <= width / 2)).tolist()
    return nodes
