"""Pictures; functions that draw return a Figure or an Image. The only module that imports matplotlib."""

import math
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from grace_lightning import metrics
from grace_lightning.graph import Filament, Floats, Graph, Label, Truth
from grace_lightning.metrics import MATCH_IOU, THRESHOLD, Outcomes

Points = NDArray[np.float32]

# To be told apart with a colour vision deficiency: Okabe and Ito, Color Universal Design, 2008, jfly.uni-koeln.de/color
BLUE, SKY, GREEN, YELLOW, PURPLE, VERMILION = "#0072B2", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00"
HEADS = {"nodes": (BLUE, "-"), "edges": (VERMILION, "--")}  # colour and line style of the curves

# Of filaments; matched ones take their colours in turn, and a number tells those of one colour apart.
MATCHED, UNMATCHED = (SKY, YELLOW, PURPLE, GREEN, BLUE), VERMILION

# Of the filaments in an overview: they can be told from each other, and are bright enough for a grey micrograph.
BRIGHT = (
    *("#ff5050", "#ffd92f", "#4dd964", "#40c4ff", "#ff9f1c", "#ee82ff"),
    *("#00e5c3", "#c6ff3c", "#ff8fc0", "#9aa8ff", "#ffc999", "#ffffff"),
)

PROBABILITIES = colormaps["plasma"]  # from 0 to 1
STRONG = 0.5  # attention above this has one colour: a node shares out an attention of 1 among some seven edges

MAX_PIXELS = 1200  # longer side of a drawn micrograph; of larger ones every k-th pixel is drawn
PNG: dict[str, Any] = {"compress_level": 1}  # the default takes three times as long, for files smaller by a tenth
QUALITY = 80  # of JPEG files: noise looks the same, and a file takes a fifth of a PNG


def confusion_matrices(outcomes: Outcomes) -> Figure:
    """Draw the counts of truth and prediction at the threshold of one half, coloured by their share of the truth."""
    figure, (panels,) = _panels((5.2 * len(outcomes), 4.4), 1, len(outcomes))
    words = ("negative", "positive")
    for axes, (head, outcome) in zip(panels, outcomes.items(), strict=True):
        counts = metrics.confusion_matrix(*outcome).numpy()
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
    """Draw the true against the false positive rate of nodes and edges."""
    figure, axes = _curves(outcomes, metrics.roc, "auroc", "AUROC")
    axes.plot([0, 1], [0, 1], color="grey", lw=1, ls=":", label="chance")
    axes.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC")
    axes.legend(loc="lower right")
    return figure


def precision_recall_curves(outcomes: Outcomes) -> Figure:
    """Draw the precision against the recall of nodes and edges."""
    figure, axes = _curves(outcomes, metrics.precision_recall, "average_precision", "average precision")
    for head, outcome in outcomes.items():
        positive = metrics.known(*outcome)[1].float()
        if positive.any():
            level = float(positive.mean())
            axes.axhline(level, color=HEADS[head][0], lw=1.5, ls=":", label=f"{head} by chance {level:.3f}")
    axes.set(xlabel="recall", ylabel="precision", title="Precision and recall")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def probability_histograms(outcomes: Outcomes) -> Figure:
    """Draw how many nodes or edges of each class have which probability, on a logarithmic scale."""
    figure, (panels,) = _panels((5.2 * len(outcomes), 4.2), 1, len(outcomes))
    classes = (("negative", Label.TRUE_NEGATIVE, BLUE, "-"), ("positive", Label.TRUE_POSITIVE, VERMILION, "--"))
    for axes, (head, (probability, truth)) in zip(panels, outcomes.items(), strict=True):
        for k, (name, value, colour, style) in enumerate(classes):
            values = probability[truth == value].numpy()
            look = {"bins": 40, "range": (0, 1), "color": colour}
            axes.hist(values, **look, histtype="stepfilled", alpha=0.35, zorder=2 + k)
            text = f"{name} in truth ({len(values):,})"
            axes.hist(values, **look, histtype="step", lw=1.8, ls=style, label=text, zorder=4 + k)
        axes.axvline(THRESHOLD, color="black", lw=1, ls=":")
        axes.set_yscale("symlog", linthresh=1)
        axes.margins(y=0.25)  # room for the legend
        axes.set(xlim=(0, 1), xlabel="probability of the positive class", ylabel=f"number of {head}", title=head)
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper center")
    return figure


def reliability_diagram(outcomes: Outcomes) -> Figure:
    """Draw how often predictions of some probability come true, above the number of such predictions."""
    figure, panels = _panels((5.2 * len(outcomes), 5.8), 2, len(outcomes), sharex=True, height_ratios=(3, 1))
    for (above, below), (head, outcome) in zip(panels.T, outcomes.items(), strict=True):
        found = metrics.reliability(*outcome)
        above.plot([0, 1], [0, 1], color="grey", lw=1, ls=":", label="calibrated")
        filled, bins = found.size > 0, len(found.size)
        drawn = found.probability[filled].numpy(), found.fraction[filled].numpy()
        above.plot(*drawn, color=BLUE, marker="o", lw=1.8, label=f"{head}, ECE {_number(found.error)}")
        above.set(xlim=(0, 1), ylim=(-0.02, 1.02), ylabel="fraction that is positive", title=head)
        above.legend(loc="upper left")
        below.bar((np.arange(bins) + 0.5) / bins, found.size.numpy(), width=1 / bins, color=BLUE, edgecolor="white")
        below.set_yscale("symlog", linthresh=1)
        below.minorticks_off()
        below.set(xlabel="predicted probability", ylabel=f"number of {head}")
    return figure


def iou_histogram(paired: Mapping[str, Floats], title: str = "") -> Figure:
    """Draw how well true filaments are covered: ``paired`` has :attr:`metrics.Overlap.paired` of nodes and masks."""
    figure, ((axes,),) = _panels((6.4, 4.4))
    bins = [k / 10 for k in range(11)]
    said = [f"{len(v)} true, mean {v.mean():.2f}" if len(v) else "nothing true" for v in paired.values()]
    labels = [f"{name}: {words}" for name, words in zip(paired, said, strict=True)]
    colours = (BLUE, YELLOW)[: len(paired)]
    axes.hist(list(paired.values()), bins, label=labels, color=colours, edgecolor="black", linewidth=0.6)
    axes.axvline(MATCH_IOU, color="black", lw=1, ls=":", label=f"counts as found above {MATCH_IOU}")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="IoU of a true filament with its partner, 0 without one", ylabel="true filaments")
    axes.set(xlim=(0, 1), xticks=bins, title=title)
    axes.legend()
    return figure


def _panels(size: tuple[float, float], rows: int = 1, columns: int = 1, **look: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **look)


def _curves(outcomes: Outcomes, curve: Callable[..., Tensor], score: str, name: str) -> tuple[Figure, Any]:
    figure, ((axes,),) = _panels((5.6, 5.6))
    for head, outcome in outcomes.items():
        colour, style = HEADS[head]
        text = f"{head}, {name} {_number(metrics.classification(*outcome)[score])}"
        axes.plot(*curve(*outcome).numpy(), color=colour, ls=style, lw=2, label=text)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.grid(alpha=0.3)
    return figure, axes


def _number(value: float | None, digits: int = 3) -> str:
    return "undefined" if value is None else f"{value:.{digits}f}"


def probabilities(
    image: Tensor, graph: Graph, node_probability: Tensor, edge_probability: Tensor, title: str = "", plain: bool = True
) -> Figure:
    """Draw the micrograph (1, H, W), and the same under its graph coloured by probability, (N,) and (E,).

    Edges below one half are left out, so that filaments stand out. Without the ``plain`` micrograph beside it, the
    figure is small, and its writing large.
    """
    aspect = image.shape[1] / image.shape[2]
    size = (13, 6.0 * aspect + 0.4) if plain else (5.4, 4.6 * aspect + 0.5)
    figure, (panels,) = _panels(size, 1, 1 + plain, sharex=True, sharey=True)
    for axes in panels:
        _micrograph(axes, image)
    drawn = panels[-1]
    colours: dict[str, Any] = {"cmap": PROBABILITIES, "norm": Normalize(0, 1)}
    _draw_edges(drawn, graph, edge_probability > 0.5, edge_probability, linewidths=1.6, **colours)
    order = node_probability.argsort()
    drawn.scatter(*graph.pos[order].T.numpy(), c=node_probability[order].numpy(), s=7, linewidths=0, **colours)
    panels[0].set_title(title, fontsize=12)
    above = "nodes and edges above one half"
    drawn.set_title(f"{title}\n{above}" if title and not plain else above, fontsize=10 if plain else 12)
    figure.colorbar(ScalarMappable(**colours), ax=drawn, label="probability", fraction=0.04, pad=0.01)
    return figure


def attention(image: Tensor, graph: Graph, weights: Tensor, title: str = "") -> Figure:
    """Draw for each head of an attention layer the micrograph under its edges, coloured by weight (E, heads)."""
    columns = math.ceil(math.sqrt(weights.shape[1]))
    rows = math.ceil(weights.shape[1] / columns)
    size = (2.3 * columns + 0.8, (2.3 * image.shape[1] / image.shape[2] + 0.3) * rows + 0.4)
    figure, panels = _panels(size, rows, columns, sharex=True, sharey=True)
    colours: dict[str, Any] = {"cmap": "viridis", "norm": Normalize(0, STRONG)}
    for axes in panels.flat[weights.shape[1] :]:
        axes.set_axis_off()
    for head, (axes, weight) in enumerate(zip(panels.flat, weights.T, strict=False)):
        _micrograph(axes, image, alpha=0.45)
        _draw_edges(axes, graph, weight.argsort(), weight, linewidths=1.2, **colours)
        axes.set_title(f"head {head + 1}", fontsize=11)
    figure.suptitle(title, fontsize=12)
    label = "attention: share in what a node is told"
    figure.colorbar(ScalarMappable(**colours), ax=panels, label=label, fraction=0.03, pad=0.01, extend="max")
    return figure


def _draw_edges(axes: Any, graph: Graph, chosen: Tensor, value: Tensor, **look: Any) -> None:
    ends = graph.pos[graph.edges[:, chosen]].transpose(0, 1).numpy()
    axes.add_collection(LineCollection(list(ends), array=value[chosen].numpy(), **look))


def filaments(
    image: Tensor, graph: Graph, predicted: Sequence[Filament], truth: Truth, title: str = "", stacked: bool = False
) -> Figure:
    """Draw predicted and true filaments side by side; those that match have one colour and one number.

    Of a true filament, whose nodes have no order, the positive edges between its nodes are drawn. If ``stacked``, the
    true ones lie below, the figure is small, and its writing large.
    """
    aspect = image.shape[1] / image.shape[2]
    size, small = ((5.4, 10.8 * aspect + 1.4), 9.5) if stacked else ((15, 7.2 * aspect + 1.2), 10.0)
    figure, panels = _panels(size, 1 + stacked, 2 - stacked, sharex=True, sharey=True)
    overlap = metrics.compare(truth, predicted, graph)
    pairs = overlap.matched.T[overlap.matched[1].argsort()].tolist()  # from left to right, as predictions are sorted
    places = []  # of the numbers: the middle node of those in both
    for t, p in pairs:
        path, shared = predicted[p].path, np.flatnonzero(np.isin(predicted[p].node, truth.filaments[t]))
        places.append(path[shared[len(shared) // 2] if len(shared) else len(path) // 2])
    pos, positive = graph.pos.numpy(), graph.edges[:, graph.label("edge") == Label.TRUE_POSITIVE].numpy()
    inside = [positive[:, np.isin(positive, nodes).all(axis=0)] for nodes in truth.filaments]
    true = [(list(pos[edges.T]), nodes) for edges, nodes in zip(inside, truth.filaments, strict=True)]
    found = [([_line(filament)], filament.members) for filament in predicted]
    sides = ((f"true ({truth.source})", true, "missed"), ("predicted", found, "without a match"))
    for side, (axes, (words, drawn, rest)) in enumerate(zip(panels.flat[::-1], sides, strict=True)):
        count = f"{words}: {len(drawn)} filaments, {len(pairs)} matched, {len(drawn) - len(pairs)} {rest}"
        axes.set_title(count, fontsize=small)
        _micrograph(axes, image, alpha=0.65)
        number = {pair[side]: k for k, pair in enumerate(pairs)}
        for k, (lines, nodes) in enumerate(drawn):
            _draw_filament(axes, lines, pos[nodes], number.get(k))
        for k, place in enumerate(places):
            box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
            axes.text(*place, str(k + 1), fontsize=9, ha="center", va="center", bbox=box, zorder=5)
    scores = metrics.object_scores([overlap])
    values = f"F1@0.5 = {_number(scores['f1_50'], 2)}, mean best IoU = {_number(scores['mean_best_iou'], 2)}"
    figure.suptitle(f"{title}   {values}" if title else values, fontsize=11 if stacked else 13)
    matched = Line2D([], [], color=MATCHED[0], lw=3, label="matched: same colour and number on both sides")
    alone = Line2D([], [], color=UNMATCHED, lw=5, label="without a match: wide, no number")
    look = {"ncols": 1, "fontsize": small} if stacked else {"ncols": 2, "fontsize": 11}
    figure.legend(handles=[matched, alone], loc="outside lower center", frameon=False, **look)
    return figure


def _line(filament: Filament) -> Points:
    return np.concatenate([filament.path, filament.path[:1]]) if filament.closed else filament.path


def _draw_filament(axes: Any, lines: list[Points], nodes: Points, number: int | None) -> None:
    # Filaments without a match are wide and lie below the matched ones, so that neither hides the other.
    kind: dict[str, Any] = {"colors": UNMATCHED, "linewidths": 5.0, "zorder": 2}
    if number is not None:
        kind = {"colors": MATCHED[number % len(MATCHED)], "linewidths": 2.6, "zorder": 3}
        kind["path_effects"] = [withStroke(linewidth=3.8, foreground="black", alpha=0.7)]
    axes.add_collection(LineCollection(lines, **kind))
    axes.scatter(*nodes.T, color=kind["colors"], s=6, linewidths=0.3, edgecolors="black", zorder=kind["zorder"] + 0.5)


def _micrograph(axes: Any, image: Tensor, **look: Any) -> None:
    height, width = image.shape[1:]
    step = max(1, round(max(image.shape) / MAX_PIXELS))
    low, high = contrast(image)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(image[0, ::step, ::step].numpy(), cmap="gray", vmin=low, vmax=high, extent=extent, **look)
    axes.autoscale(False)
    axes.set_axis_off()


def contrast(image: Tensor) -> tuple[float, float]:
    """Return the 1st and 99th percentile of about 100,000 pixels, the second at least a little greater."""
    some = image.flatten()[:: max(1, image.numel() // 100_000)]
    low, high = some.quantile(torch.tensor([0.01, 0.99])).tolist()
    return low, max(high, low + 1e-6)


def thumbnail(image: Tensor, pixels: int = MAX_PIXELS) -> Tensor:
    """Average an image (1, H, W), so that noise hides less, to so many pixels on its longer side if it has more."""
    return image if max(image.shape) <= pixels else _averaged(image, pixels / max(image.shape))


def overview(
    image: Tensor,
    size: Sequence[int],
    found: Sequence[Filament],
    scale: float | None = None,
    polarity: str | None = None,
    pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Draw filaments on the micrograph, its contrast stretched, as a picture of so many ``pixels`` on its longer side.

    The image is a :func:`thumbnail` (1, h, w); the other arguments are of :func:`tracing`.
    """
    image = thumbnail(image, pixels)
    # Uneven illumination has more contrast than filaments and would leave these no greys. The background is taken for
    # 16 means along the longer side, and what lies between them. Noise goes by a Gaussian of 1.2 pixels.
    means = _averaged(image, 16 / max(image.shape))
    background = interpolate(means[None], size=image.shape[1:], mode="bicubic", align_corners=False)[0]
    image = torch.from_numpy(gaussian_filter((image - background).numpy(), (0, 1.2, 1.2), truncate=3))
    low, high = contrast(image)
    grey = image[0].sub(low).mul(255 / (high - low)).clamp(0, 255).numpy().astype(np.uint8)
    drawn = Image.fromarray(_rendered(tracing(size, found, scale, polarity, pixels)))
    # Matplotlib would take longer for the grey values than for all the rest.
    below = Image.fromarray(grey).resize(drawn.size, Image.Resampling.NEAREST).convert("RGBA")
    return Image.alpha_composite(below, drawn).convert("RGB")


def tracing(
    size: Sequence[int],
    found: Sequence[Filament],
    scale: float | None = None,
    polarity: str | None = None,
    pixels: int = MAX_PIXELS,
) -> Figure:
    """Draw filaments on nothing; those near each other differ in colour.

    ``size`` is the micrograph's, (H, W). If ``scale`` is given, the width of a filament in pixels, a bar in a corner is
    as long, and says so, and whether filaments are dark or bright. The figure's longer side has so many ``pixels``.
    """
    height, width = (max(1, round(side * pixels / max(size))) for side in size)
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    figure.patch.set_alpha(0)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-0.5, size[1] - 0.5), ylim=(size[0] - 0.5, -0.5))
    axes.set_axis_off()
    paths = [_line(filament) for filament in found]
    colours = _distinct([filament.path for filament in found])
    axes.add_collection(LineCollection(paths, colors="black", linewidths=3.2, alpha=0.5, capstyle="round"))
    axes.add_collection(LineCollection(paths, colors=colours, linewidths=1.6, capstyle="round"))
    if scale:
        _draw_scale(axes, size, scale, polarity)
    return figure


def _draw_scale(axes: Any, size: Sequence[int], scale: float, polarity: str | None) -> None:
    """Draw a bar as long as filaments are wide into the lower left corner of an overview, and say what they are."""
    pixel = max(size) / MAX_PIXELS  # of the picture, in those of the micrograph
    start = np.array([14 * pixel, size[0] - 14 * pixel]) - 0.5
    end, tick = start + np.array([scale, 0]), np.array([0, 5 * pixel])
    outlined = [withStroke(linewidth=3, foreground="black")]
    bar = [[start, end], [start - tick, start + tick], [end - tick, end + tick]]
    axes.add_collection(LineCollection(bar, colors="white", linewidths=1.6, path_effects=outlined))
    words = ", ".join([f"{scale:.3g} px", *([polarity] if polarity else [])])
    axes.text(start[0], start[1] - 10 * pixel, words, color="white", fontsize=9, path_effects=outlined)


def _averaged(image: Tensor, factor: float) -> Tensor:
    height, width = (max(1, round(side * factor)) for side in image.shape[1:])
    return adaptive_avg_pool2d(image, (height, width))


def _distinct(paths: Sequence[Points]) -> list[str]:
    """Return a colour per path: an unused one, or if there is none, the one whose paths so far are farthest away."""
    every = max(1, sum(map(len, paths)) // 2000)  # so many points at most are compared: distances take 32 MB
    taken, chosen = [np.zeros((0, 2))] * len(BRIGHT), []
    for path in paths:
        points = path[::every]
        k = int(np.argmax([cdist(points, before).min(initial=np.inf) for before in taken]))
        taken[k] = np.concatenate([taken[k], points])
        chosen.append(BRIGHT[k])
    return chosen


def jpeg(figure: Figure, width: int) -> bytes:
    """Return a figure as a JPEG file, so many pixels wide."""
    file = BytesIO()
    figure.savefig(file, format="jpeg", dpi=width / figure.get_figwidth(), pil_kwargs={"quality": QUALITY})
    return file.getvalue()


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """Return a figure as it is saved, (H, W, 3), red, green and blue."""
    return _rendered(figure)[..., :3].copy()


def _rendered(figure: Figure) -> NDArray[np.uint8]:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def probability_colours() -> NDArray[np.uint8]:
    """Return the colours of :func:`probabilities`, few enough for a GIF: 100 greys and 150 of the scale, (250, 3)."""
    grey = np.repeat(np.linspace(0, 1, 100)[:, None], 3, axis=1)
    scale = PROBABILITIES(np.linspace(0, 1, 150))[:, :3]
    return np.round(255 * np.concatenate([grey, scale])).astype(np.uint8)
