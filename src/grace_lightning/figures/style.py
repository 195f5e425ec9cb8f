"""Colours that people with a colour vision deficiency can tell apart.

Source: M. Okabe and K. Ito, Color Universal Design (2008), https://jfly.uni-koeln.de/color/.
"""

from __future__ import annotations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

BLUE, SKY, GREEN, YELLOW, PURPLE, VERMILION = "#0072B2", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00"

MATCHED = (SKY, YELLOW, PURPLE, GREEN, BLUE)
"""Of matched filaments, in turn; a number tells those of one colour apart."""

UNMATCHED = VERMILION

POSITIVE, NEGATIVE = VERMILION, BLUE

HEADS = {"nodes": (BLUE, "-"), "edges": (VERMILION, "--")}
"""Colour and line style of each."""


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """A figure as it is saved, (H, W, 3), red, green and blue."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
