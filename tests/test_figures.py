"""Pictures say what they should, and can be drawn of anything, also of nothing."""

import numpy as np
import pytest
import torch
from helpers import random_sample
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex

from grace_lightning import figures
from grace_lightning.figures.style import UNMATCHED
from grace_lightning.metrics import Predicted, Truth, overlap


def texts(figure):
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    for legend in [*figure.legends, *(axes.get_legend() for axes in figure.axes)]:
        found += [text.get_text() for text in legend.get_texts()] if legend else []
    return found


def outcomes(probability, label):
    pair = torch.tensor(probability), torch.tensor(label, dtype=torch.int64)
    return {"nodes": pair, "edges": pair}


SET_FIGURES = [
    figures.confusion_matrices,
    figures.roc_curves,
    figures.precision_recall_curves,
    figures.probability_histograms,
    figures.reliability_diagram,
]


@pytest.mark.parametrize("draw", SET_FIGURES)
@pytest.mark.parametrize(
    ("probability", "label"),
    [([0.2, 0.7, 0.9], [0, 1, 1]), ([0.1], [0]), ([0.9], [1]), ([0.9], [2]), ([], []), ([0.0, 1.0], [0, 1])],
)
@pytest.mark.filterwarnings("error")
def test_every_set_of_probabilities_can_be_drawn(draw, probability, label, tmp_path):
    draw(outcomes(probability, label)).savefig(tmp_path / "picture.png")


def test_confusion_matrices_show_counts_and_shares():
    figure = figures.confusion_matrices(outcomes([0.2, 0.7, 0.9, 0.1], [0, 0, 1, 0]))
    assert texts(figure)[:4] == ["2\n66.7%", "1\n33.3%", "0\n0.0%", "1\n100.0%"]


def test_legends_hold_the_scores():
    data = outcomes([0.2, 0.7, 0.9], [0, 1, 1])
    assert "nodes, AUROC 1.000" in texts(figures.roc_curves(data))
    assert "edges, average precision 1.000" in texts(figures.precision_recall_curves(data))
    assert "nodes, ECE 0.200" in texts(figures.reliability_diagram(data))
    assert "nodes, AUROC undefined" in texts(figures.roc_curves(outcomes([0.9], [1])))


def test_matched_filaments_have_one_colour_and_number_on_both_sides():
    sample = random_sample()
    truth = Truth([np.array([0, 1, 2]), np.array([3, 4]), np.array([5, 6])], "instances.json")
    predicted = [Predicted(nodes, nodes, False) for nodes in (np.array([7, 8]), np.array([3, 4]), np.array([0, 1, 2]))]
    found = overlap(truth.nodes, [p.nodes for p in predicted])
    figure = figures.filaments(sample.image, sample.graph, predicted, truth, found, title="a")
    left, right = figure.axes
    lines = [[c for c in axes.collections if isinstance(c, LineCollection)] for axes in (left, right)]
    colours = [[to_hex(c.get_color()[0]) for c in side] for side in lines]
    assert colours[0][0] == colours[1][2] == UNMATCHED.lower()
    assert colours[0][1] == colours[1][1]
    assert colours[0][2] == colours[1][0] != colours[0][1]
    numbers = [[(text.get_text(), text.get_position()) for text in axes.texts] for axes in (left, right)]
    assert numbers[0] == numbers[1]
    assert {text for text, _ in numbers[0]} == {"1", "2"}
    assert left.get_title() == "predicted: 3 filaments, 2 matched, 1 without a match"
    assert right.get_title() == "true (instances.json): 3 filaments, 2 matched, 1 missed"
    assert figure.get_suptitle() == "a   F1@0.5 = 0.67, mean best IoU = 0.67"


@pytest.mark.parametrize("count", [(0, 0), (0, 1), (1, 0)])
@pytest.mark.filterwarnings("error")
def test_images_without_filaments_can_be_drawn(count, tmp_path):
    sample, nodes = random_sample(), np.array([0, 1])
    truth, predicted = Truth([nodes] * count[0], "annotation numbers"), [Predicted(nodes, nodes, True)] * count[1]
    found = overlap(truth.nodes, [p.nodes for p in predicted])
    figures.filaments(sample.image, sample.graph, predicted, truth, found).savefig(tmp_path / "filaments.png")
    figures.iou_histogram({"nodes": found.paired}).savefig(tmp_path / "iou.png")


def test_histogram_counts_every_true_filament():
    figure = figures.iou_histogram({"nodes": np.array([0.0, 0.55, 1.0]), "masks": np.array([0.4, 0.0, 0.72])})
    heights = [[bar.get_height() for bar in bars] for bars in figure.axes[0].containers]
    assert [sum(h) for h in heights] == [3, 3]
    assert heights[0][-1] == 1
    assert "nodes: 3 true, mean 0.52" in texts(figure)
