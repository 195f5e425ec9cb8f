"""How good the probabilities and the objects of a set of images are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from grace_lightning.figures.style import BLUE, HEADS, NEGATIVE, POSITIVE, YELLOW
from grace_lightning.graph import Label
from grace_lightning.metrics import (
    MATCH_IOU,
    THRESHOLD,
    Curve,
    classification,
    confusion_matrix,
    known,
    precision_recall,
    reliability,
    roc,
)

Outcomes = Mapping[str, tuple[Tensor, Tensor]]
"""Probabilities (M,) float32 and labels (M,) int64 of ``nodes`` and of ``edges``."""

HISTOGRAM_BINS = 40


def confusion_matrices(outcomes: Outcomes) -> Figure:
    """Counts of truth and prediction at the threshold of one half, coloured by their share of the truth."""
    figure, panels = _panels(len(outcomes), height=4.4)
    words = ("negative", "positive")
    for axes, (head, (probability, label)) in zip(panels, outcomes.items(), strict=True):
        counts = confusion_matrix(probability, label).numpy()
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.ndindex(2, 2):
            text = f"{counts[row, column]:,}\n{share[row, column]:.1%}"
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=13)
        axes.set_xticks([0, 1], words)
        axes.set_yticks([0, 1], words, rotation=90, va="center")
        axes.set(xlabel="predicted", ylabel="true", title=head)
    figure.suptitle(f"positive above a probability of {THRESHOLD}; per cent of the row")
    return figure


def roc_curves(outcomes: Outcomes) -> Figure:
    """True against false positive rate, nodes and edges."""
    curves = {head: roc(*outcome) for head, outcome in outcomes.items()}
    figure, axes = _curves(outcomes, curves, "auroc", "AUROC")
    axes.plot([0, 1], [0, 1], color="grey", lw=1, ls=":", label="chance")
    axes.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC")
    axes.legend(loc="lower right")
    return figure


def precision_recall_curves(outcomes: Outcomes) -> Figure:
    """Precision against recall, nodes and edges."""
    curves = {head: precision_recall(*outcome) for head, outcome in outcomes.items()}
    figure, axes = _curves(outcomes, curves, "average_precision", "average precision")
    for head, outcome in outcomes.items():
        if curves[head] is not None:
            level = float(known(*outcome)[1].float().mean())
            axes.axhline(level, color=HEADS[head][0], lw=1.5, ls=":", label=f"{head} by chance {level:.3f}")
    axes.set(xlabel="recall", ylabel="precision", title="Precision and recall")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def probability_histograms(outcomes: Outcomes) -> Figure:
    """How many of each class have which probability, on a logarithmic scale."""
    figure, panels = _panels(len(outcomes), height=4.2)
    bins = np.linspace(0, 1, HISTOGRAM_BINS + 1).tolist()
    for axes, (head, (probability, label)) in zip(panels, outcomes.items(), strict=True):
        classes = (("negative", Label.TRUE_NEGATIVE, NEGATIVE), ("positive", Label.TRUE_POSITIVE, POSITIVE))
        for k, (name, value, colour) in enumerate(classes):
            values = probability[label == value].numpy()
            text = f"{name} in truth ({len(values):,})"
            fill = {"histtype": "stepfilled", "alpha": 0.35, "color": colour}
            axes.hist(values, bins, **fill, zorder=2 + k)
            axes.hist(values, bins, histtype="step", color=colour, lw=1.8, ls=("-", "--")[k], label=text, zorder=4 + k)
        axes.axvline(THRESHOLD, color="black", lw=1, ls=":")
        axes.set_yscale("symlog", linthresh=1)
        axes.margins(y=0.25)  # room for the legend
        axes.set_ylim(bottom=0)
        axes.set(xlim=(0, 1), xlabel="probability of the positive class", ylabel=f"number of {head}", title=head)
        axes.legend(loc="upper center")
    return figure


def reliability_diagram(outcomes: Outcomes) -> Figure:
    """How often what is predicted with some probability is so, above the number of such predictions."""
    figure = Figure(figsize=(5.2 * len(outcomes), 5.8), dpi=100, layout="constrained")
    rows = figure.subplots(2, len(outcomes), sharex=True, squeeze=False, height_ratios=(3, 1))
    for (above, below), (head, outcome) in zip(rows.T, outcomes.items(), strict=True):
        found = reliability(*outcome)
        bins = len(found.size)
        above.plot([0, 1], [0, 1], color="grey", lw=1, ls=":", label="calibrated")
        error = "undefined" if found.error is None else f"{found.error:.3f}"
        filled = found.size > 0
        x, y = found.probability[filled].numpy(), found.fraction[filled].numpy()
        above.plot(x, y, color=BLUE, marker="o", lw=1.8, label=f"{head}, ECE {error}")
        above.set(xlim=(0, 1), ylim=(-0.02, 1.02), ylabel="fraction that is positive", title=head)
        above.legend(loc="upper left")
        below.bar((np.arange(bins) + 0.5) / bins, found.size.numpy(), width=1 / bins, color=BLUE, edgecolor="white")
        below.set_yscale("symlog", linthresh=1)
        below.minorticks_off()
        below.set(xlabel="predicted probability", ylabel=f"number of {head}")
    return figure


def iou_histogram(paired: Mapping[str, NDArray[np.float64]], title: str = "") -> Figure:
    """How many true objects are covered how well by their partners.

    Parameters
    ----------
    paired : by what was compared, the (T,) IoU of each true object with its partner, see
        :attr:`grace_lightning.metrics.Overlap.paired`
    title : written above
    """
    figure = Figure(figsize=(6.4, 4.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    bins = [k / 10 for k in range(11)]
    labels = [
        f"{name}: {len(v)} true, mean {v.mean():.2f}" if len(v) else f"{name}: nothing true"
        for name, v in paired.items()
    ]
    colours = (BLUE, YELLOW)[: len(paired)]
    axes.hist(list(paired.values()), bins, label=labels, color=colours, edgecolor="black", linewidth=0.6)
    axes.axvline(MATCH_IOU, color="black", lw=1, ls=":", label=f"counts as found above {MATCH_IOU}")
    axes.set_xticks(bins)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlim=(0, 1), xlabel="IoU of a true filament with its partner, 0 without one", ylabel="true filaments")
    axes.set_title(title)
    axes.legend()
    return figure


def _panels(count: int, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.2 * count, height), dpi=100, layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _curves(outcomes: Outcomes, curves: Mapping[str, Curve | None], score: str, name: str) -> tuple[Figure, Any]:
    """One line a head, with its score in the legend."""
    figure = Figure(figsize=(5.6, 5.6), dpi=100, layout="constrained")
    axes = figure.subplots()
    for head, curve in curves.items():
        colour, style = HEADS[head]
        value = classification(*outcomes[head])[score]
        text = f"{head}, {name} {'undefined' if value is None else f'{value:.3f}'}"
        points = np.zeros((2, 0)) if curve is None else np.stack(curve)
        axes.plot(*points, color=colour, ls=style, lw=2, label=text)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.grid(alpha=0.3)
    return figure, axes
