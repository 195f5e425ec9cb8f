"""Pictures; every function returns a Figure. The only module that imports matplotlib."""

from __future__ import annotations

from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from grace_lightning.graph import Graph

MAX_PIXELS = 1200
"""Longer side of a drawn micrograph; larger ones are drawn from every k-th pixel."""


def probabilities(
    image: Tensor, graph: Graph, node_probability: Tensor, edge_probability: Tensor, title: str = ""
) -> Figure:
    """The micrograph, and the same under its graph coloured by probability.

    Edges below one half are left out, so that what the network takes for filaments stands out.

    Parameters
    ----------
    image : (1, H, W) float32
    graph : its graph
    node_probability, edge_probability : (N,) and (E,) float32
    title : written above
    """
    height, width = image.shape[1:]
    aspect = height / width
    figure = Figure(figsize=(13, 6.0 * aspect + 0.4), dpi=100, layout="constrained")
    plain, drawn = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes in (plain, drawn):
        _micrograph(axes, image)
    colours, scale = "plasma", Normalize(0, 1)
    kept = edge_probability > 0.5
    ends = graph.pos[graph.edges[:, kept]].transpose(0, 1).numpy()
    lines = LineCollection(list(ends), cmap=colours, norm=scale, linewidths=1.6)
    lines.set_array(edge_probability[kept].numpy())
    drawn.add_collection(lines)
    order = node_probability.argsort()
    x, y = graph.pos[order].T.numpy()
    drawn.scatter(x, y, c=node_probability[order].numpy(), cmap=colours, norm=scale, s=7, linewidths=0)
    plain.set_title(title)
    drawn.set_title("nodes and edges above one half")
    figure.colorbar(ScalarMappable(scale, colours), ax=drawn, label="probability", fraction=0.04, pad=0.01)
    return figure


def _micrograph(axes, image: Tensor) -> None:  # type: ignore[no-untyped-def]  # matplotlib's Axes has no useful type
    height, width = image.shape[1:]
    step = max(1, round(max(height, width) / MAX_PIXELS))
    shown = image[0, ::step, ::step].numpy()
    low, high = _contrast(image)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(shown, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="antialiased")
    axes.set_axis_off()


def _contrast(image: Tensor) -> tuple[float, float]:
    """The 1st and 99th percentile of about 100,000 pixels."""
    pixels = image.flatten()
    pixels = pixels[:: max(1, len(pixels) // 100_000)]
    return float(pixels.quantile(0.01)), float(pixels.quantile(0.99))
