"""Pictures say what they should, and can be drawn of anything, also of nothing."""

import io

import numpy as np
import pytest
import torch
from helpers import random_sample
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from PIL import Image

from grace_lightning import figures
from grace_lightning.graph import Filament, Truth, TruthSource
from grace_lightning.metrics import compare


def texts(figure):
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    for legend in [*figure.legends, *(axes.get_legend() for axes in figure.axes)]:
        found += [text.get_text() for text in legend.get_texts()] if legend else []
    return found


SET_FIGURES = (
    *("confusion_matrices", "roc_curves", "precision_recall_curves"),
    *("probability_histograms", "reliability_diagram"),
)


def outcomes(*pairs):
    """Probabilities and labels of nodes and of edges; if one pair is given, it is that of both."""
    made = [(torch.tensor(probability), torch.tensor(label, dtype=torch.int64)) for probability, label in pairs]
    return {"nodes": made[0], "edges": made[-1]}


def filament(sample, *nodes, closed=False):
    members = np.array(nodes)
    return Filament(sample.graph.pos.numpy()[members], np.ones(len(members), np.float32), members, members, closed)


@pytest.mark.parametrize("name", SET_FIGURES)
@pytest.mark.filterwarnings("error")
def test_every_set_of_probabilities_can_be_drawn(name):
    for pairs in ([([0.1], [0]), ([0.9], [1])], [([], []), ([0.2], [2])]):
        figures.pixels(getattr(figures, name)(outcomes(*pairs)))


def test_confusion_matrices_show_counts_and_shares():
    figure = figures.confusion_matrices(outcomes(([0.2, 0.7, 0.9, 0.1], [0, 0, 1, 0])))
    assert texts(figure)[:4] == ["2\n66.7%", "1\n33.3%", "0\n0.0%", "1\n100.0%"]


def test_legends_hold_the_scores():
    data = outcomes(([0.2, 0.7, 0.9], [0, 1, 1]))
    assert "nodes, AUROC 1.000" in texts(figures.roc_curves(data))
    shown = texts(figures.precision_recall_curves(data))
    assert {"edges, average precision 1.000", "nodes by chance 0.667"} <= set(shown)
    assert "nodes, ECE 0.200" in texts(figures.reliability_diagram(data))
    assert "nodes, AUROC undefined" in texts(figures.roc_curves(outcomes(([0.9], [1]))))


def test_matched_filaments_have_one_colour_and_number_on_both_sides():
    sample = random_sample()
    truth = Truth([np.array([0, 1, 2]), np.array([3, 4]), np.array([5, 6])], TruthSource.INSTANCES)
    predicted = [filament(sample, *nodes) for nodes in ((7, 8), (3, 4), (0, 1, 2))]
    figure = figures.filaments(sample.image, sample.graph, predicted, truth, title="a")
    left, right = figure.axes
    (wide, one, two), (same_two, same_one, missed) = (
        [to_hex(c.get_color()[0]) for c in axes.collections if isinstance(c, LineCollection)] for axes in (left, right)
    )
    assert (wide, one, two) == (missed, same_one, same_two) == (figures.UNMATCHED.lower(), one, two)
    assert len({wide, one, two}) == 3
    numbers = [{text.get_text(): text.get_position() for text in axes.texts} for axes in (left, right)]
    assert numbers[0] == numbers[1]
    # each on the middle one of its nodes
    assert numbers[0] == {"1": tuple(sample.graph.pos[4].tolist()), "2": tuple(sample.graph.pos[1].tolist())}
    assert left.get_title() == "predicted: 3 filaments, 2 matched, 1 without a match"
    assert right.get_title() == "true (instances.json): 3 filaments, 2 matched, 1 missed"
    assert figure.get_suptitle() == "a   F1@0.5 = 0.67, mean best IoU = 0.67"


@pytest.mark.parametrize(("true", "found"), [(0, 0), (0, 1), (1, 0)])
@pytest.mark.filterwarnings("error")
def test_images_without_filaments_can_be_drawn(true, found):
    sample = random_sample()
    truth, predicted = Truth([np.array([0, 1])] * true, TruthSource.NUMBERS), [filament(sample, 0, 1)] * found
    overlap = compare(truth, predicted, sample.graph)
    figures.pixels(figures.filaments(sample.image, sample.graph, predicted, truth, stacked=True))
    figures.pixels(figures.iou_histogram({"nodes": overlap.paired}))


def test_closed_filaments_are_drawn_closed():
    sample = random_sample()
    ring = filament(sample, 3, 4, 5, closed=True)
    truth = Truth([], TruthSource.EDGES)
    left, _ = figures.filaments(sample.image, sample.graph, [ring], truth).axes
    overview = figures.tracing(sample.image.shape[1:], [ring]).axes[0]
    for axes in (left, overview):
        (line,) = axes.collections[0].get_segments()
        assert line.tolist() == sample.graph.pos[[3, 4, 5, 3]].tolist()


def test_histogram_counts_every_true_filament():
    figure = figures.iou_histogram({"nodes": np.array([0.0, 0.55, 1.0]), "masks": np.array([0.4, 0.0, 0.72])})
    heights = [[bar.get_height() for bar in bars] for bars in figure.axes[0].containers]
    assert heights == [[1, 0, 0, 0, 0, 1, 0, 0, 0, 1], [1, 0, 0, 0, 1, 0, 0, 1, 0, 0]]
    assert "nodes: 3 true, mean 0.52" in texts(figure)


def test_pictures_show_graph_and_attention_in_colour():
    sample = random_sample()
    node, edge = torch.linspace(0, 1, 40), torch.linspace(0, 1, sample.graph.num_edges)
    plain, drawn, _ = figures.probabilities(sample.image, sample.graph, node, edge, title="a").axes
    assert (plain.get_title(), drawn.get_title()) == ("a", "nodes and edges above one half")
    assert len(drawn.collections[0].get_segments()) == int((edge > 0.5).sum())
    *panels, _ = figures.attention(sample.image, sample.graph, torch.rand(len(edge), 3)).axes
    assert [axes.get_title() for axes in panels] == ["head 1", "head 2", "head 3", ""]


def test_a_jpeg_has_the_width_asked_for():
    with Image.open(io.BytesIO(figures.jpeg(figures.iou_histogram({"nodes": np.zeros(0)}), 450))) as image:
        assert (image.format, image.size) == ("JPEG", (450, 309))
