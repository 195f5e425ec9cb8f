"""A map of the nodes by what the network knows of them."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from grace_lightning.figures.style import NEGATIVE, POSITIVE
from grace_lightning.graph import Label

CLASSES = (
    ("unknown", Label.UNKNOWN, "0.6", "x"),
    ("negative in truth", Label.TRUE_NEGATIVE, NEGATIVE, "o"),
    ("positive in truth", Label.TRUE_POSITIVE, POSITIVE, "^"),
)
"""Name, label, colour and marker, in the order that they are drawn in."""


def manifold(points: NDArray[np.float32], label: Tensor, title: str = "") -> Figure:
    """Nodes in two dimensions, coloured by label.

    Parameters
    ----------
    points : (N, 2)
    label : (N,) int64
    title : written above
    """
    figure = Figure(figsize=(7.2, 6.8), dpi=100, layout="constrained")
    axes = figure.subplots()
    for name, value, colour, marker in CLASSES:
        x, y = points[(label == value).numpy()].T
        if len(x):
            axes.scatter(x, y, s=14, c=colour, marker=marker, alpha=0.65, linewidths=0.7, label=f"{name} ({len(x):,})")
    axes.set_title(title, fontsize=11)
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.set_adjustable("datalim")
    axes.legend(loc="best")
    return figure
