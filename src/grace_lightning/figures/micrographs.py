"""What was found, on the micrograph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from torch import Tensor

from grace_lightning.figures.style import MATCHED, UNMATCHED
from grace_lightning.graph import Graph, Label
from grace_lightning.metrics import Overlap, Predicted, Truth, object_scores

Points = NDArray[np.float32]

MAX_PIXELS = 1200
"""Longer side of a drawn micrograph; larger ones are drawn from every k-th pixel."""


COLOURS = colormaps["plasma"]
"""Of probabilities from 0 to 1."""

STRONG = 0.5
"""Attention from which on the colour stays the same: a node shares one out among some seven edges."""


def probability_colours() -> NDArray[np.uint8]:
    """The colours of :func:`probabilities`, few enough for a GIF: 100 greys and 150 of the scale, (250, 3)."""
    grey = np.repeat(np.linspace(0, 1, 100)[:, None], 3, axis=1)
    scale = COLOURS(np.linspace(0, 1, 150))[:, :3]
    return np.round(255 * np.concatenate([grey, scale])).astype(np.uint8)


def probabilities(
    image: Tensor,
    graph: Graph,
    node_probability: Tensor,
    edge_probability: Tensor,
    title: str = "",
    *,
    plain: bool = True,
) -> Figure:
    """The micrograph, and the same under its graph coloured by probability.

    Edges below one half are left out, so that what the network takes for filaments stands out.

    Parameters
    ----------
    image : (1, H, W) float32
    graph : its graph
    node_probability, edge_probability : (N,) and (E,) float32
    title : written above
    plain : whether the micrograph is shown beside it as it is; without, the figure is small, and its writing large
    """
    height, width = image.shape[1:]
    aspect = height / width
    figure = Figure(
        figsize=(13, 6.0 * aspect + 0.4) if plain else (5.4, 4.6 * aspect + 0.5), dpi=100, layout="constrained"
    )
    *others, drawn = figure.subplots(1, 2 if plain else 1, sharex=True, sharey=True, squeeze=False)[0]
    for axes in (*others, drawn):
        _micrograph(axes, image)
    colours, scale = COLOURS, Normalize(0, 1)
    kept = edge_probability > 0.5
    ends = graph.pos[graph.edges[:, kept]].transpose(0, 1).numpy()
    lines = LineCollection(list(ends), cmap=colours, norm=scale, linewidths=1.6)
    lines.set_array(edge_probability[kept].numpy())
    drawn.add_collection(lines)
    order = node_probability.argsort()
    x, y = graph.pos[order].T.numpy()
    drawn.scatter(x, y, c=node_probability[order].numpy(), cmap=colours, norm=scale, s=7, linewidths=0)
    above = "nodes and edges above one half"
    if others:
        others[0].set_title(title)
    drawn.set_title(above if others or not title else f"{title}\n{above}", fontsize=None if others else 12)
    figure.colorbar(ScalarMappable(scale, colours), ax=drawn, label="probability", fraction=0.04, pad=0.01)
    return figure


def attention(image: Tensor, graph: Graph, weights: Tensor, title: str = "") -> Figure:
    """What each head of an attention layer looks at: the micrograph under its edges, coloured by their weights.

    Parameters
    ----------
    image : (1, H, W) float32
    graph : its graph
    weights : (E, heads) float32, 0 to 1
    title : written above
    """
    height, width = image.shape[1:]
    columns = math.ceil(math.sqrt(weights.shape[1]))
    rows = math.ceil(weights.shape[1] / columns)
    figure = Figure(
        figsize=(2.3 * columns + 0.8, (2.3 * height / width + 0.3) * rows + 0.4), dpi=100, layout="constrained"
    )
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    ends = graph.pos[graph.edges].transpose(0, 1).numpy()
    colours, scale = "viridis", Normalize(0, STRONG)
    for axes in panels.flat[weights.shape[1] :]:
        axes.set_axis_off()
    for head, (axes, weight) in enumerate(zip(panels.flat, weights.T, strict=False)):
        _micrograph(axes, image, alpha=0.45)
        order = weight.argsort()
        lines = LineCollection(list(ends[order.numpy()]), cmap=colours, norm=scale, linewidths=1.2)
        lines.set_array(weight[order].numpy())
        axes.add_collection(lines)
        axes.set_title(f"head {head + 1}", fontsize=11)
    figure.suptitle(title, fontsize=12)
    label = "attention: share in what a node is told"
    mapped = ScalarMappable(scale, colours)
    figure.colorbar(mapped, ax=panels, label=label, fraction=0.03, pad=0.01, extend="max")
    return figure


def filaments(
    image: Tensor,
    graph: Graph,
    predicted: Sequence[Predicted],
    truth: Truth,
    overlap: Overlap,
    title: str = "",
    *,
    stacked: bool = False,
) -> Figure:
    """Predicted and true filaments side by side; those that match have one colour and one number.

    Of a true filament, whose nodes have no order, the positive edges between its nodes are drawn.

    Parameters
    ----------
    image : (1, H, W) float32
    graph : its graph, with labels
    predicted, truth : the filaments
    overlap : of their nodes
    title : written above, with the scores
    stacked : the predicted ones above the true ones instead, the figure small, and its writing large
    """
    height, width = image.shape[1:]
    size = (5.4, 10.8 * height / width + 1.4) if stacked else (15, 7.2 * height / width + 1.2)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    left, right = figure.subplots(*((2, 1) if stacked else (1, 2)), sharex=True, sharey=True)
    for axes in (left, right):
        _micrograph(axes, image, alpha=0.65)
    pos, edges = graph.pos.numpy(), graph.edges.numpy()
    positive = edges[:, graph.edge_label.numpy() == Label.TRUE_POSITIVE]
    pairs = overlap.matched.T[overlap.matched[1].argsort()].tolist()  # from left to right, as predictions are sorted
    true_number, predicted_number = ({pair[side]: k for k, pair in enumerate(pairs)} for side in (0, 1))
    for k, filament in enumerate(predicted):
        path = np.append(filament.path, filament.path[:1]) if filament.closed else filament.path
        _draw_filament(left, [pos[path]], pos[filament.nodes], predicted_number.get(k))
    for k, nodes in enumerate(truth.nodes):
        inside = positive[:, np.isin(positive, nodes).all(axis=0)]
        _draw_filament(right, list(pos[inside.T]), pos[nodes], true_number.get(k))
    for k, (t, p) in enumerate(pairs):
        path = predicted[p].path
        shared = path[np.isin(path, truth.nodes[t])]
        at = pos[shared[len(shared) // 2] if len(shared) else path[len(path) // 2]]
        for axes in (left, right):
            _number(axes, at, k)
    matched, left_over = len(pairs), len(predicted) - len(pairs)
    small = 9.5 if stacked else None
    left.set_title(
        f"predicted: {len(predicted)} filaments, {matched} matched, {left_over} without a match", fontsize=small
    )
    missed = len(truth.nodes) - matched
    right.set_title(
        f"true ({truth.source}): {len(truth.nodes)} filaments, {matched} matched, {missed} missed", fontsize=small
    )
    scores = object_scores([overlap])
    listed = [("F1@0.5", scores["f1_50"]), ("mean best IoU", scores["mean_best_iou"])]
    values = ", ".join(f"{name} = {'undefined' if value is None else f'{value:.2f}'}" for name, value in listed)
    figure.suptitle(f"{title}   {values}" if title else values, fontsize=11 if stacked else 13)
    legend = [
        Line2D([], [], color=MATCHED[0], lw=3, label="matched: same colour and number on both sides"),
        Line2D([], [], color=UNMATCHED, lw=5, label="without a match: wide, no number"),
    ]
    figure.legend(
        handles=legend, loc="outside lower center", ncols=1 if stacked else 2, frameon=False, fontsize=small or 11
    )
    return figure


def _draw_filament(axes: Any, lines: list[Points], nodes: Points, number: int | None) -> None:
    """One filament; those without a match are wide and lie below the others, so that neither hides the other."""
    if number is None:
        kind: dict[str, Any] = {"colors": UNMATCHED, "linewidths": 5.0, "zorder": 2}
    else:
        kind = {"colors": MATCHED[number % len(MATCHED)], "linewidths": 2.6, "zorder": 3}
        kind["path_effects"] = [withStroke(linewidth=3.8, foreground="black", alpha=0.7)]
    axes.add_collection(LineCollection(lines, **kind))
    axes.scatter(*nodes.T, color=kind["colors"], s=6, linewidths=0.3, edgecolors="black", zorder=kind["zorder"] + 0.5)


def _number(axes: Any, at: Points, number: int) -> None:
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    axes.text(*at, str(number + 1), fontsize=9, ha="center", va="center", bbox=box, zorder=5)


def _micrograph(axes: Any, image: Tensor, alpha: float = 1.0) -> None:
    height, width = image.shape[1:]
    step = max(1, round(max(height, width) / MAX_PIXELS))
    shown = image[0, ::step, ::step].numpy()
    low, high = contrast(image)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(shown, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="antialiased", alpha=alpha)
    axes.set_axis_off()


def contrast(image: Tensor) -> tuple[float, float]:
    """The 1st and 99th percentile of about 100,000 pixels."""
    pixels = image.flatten()
    pixels = pixels[:: max(1, len(pixels) // 100_000)]
    return float(pixels.quantile(0.01)), float(pixels.quantile(0.99))
