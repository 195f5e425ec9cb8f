"""Scores, curves and calibration of probabilities; filaments against the truth, as sets of nodes and as masks."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from grace_lightning import metrics
from grace_lightning.graph import Filament, Graph, Label, Truth, TruthSource
from grace_lightning.metrics import OBJECT_SCORES, SCORES, object_scores, overlap

#                    right        wrong       UNKNOWN
PROBABILITY = torch.tensor([0.9, 0.8, 0.2, 0.6, 0.3, 0.99])
LABEL = torch.tensor([1, 1, 0, 0, 1, 2])


class TestProbabilities:
    def test_scores_of_the_positive_class_without_the_unknown(self):
        # auroc: one of six pairs is in the wrong order
        expected = dict(zip(SCORES, (3 / 5, 2 / 3, 2 / 3, 2 / 3, 5 / 6, (1 + 1 + 3 / 4) / 3), strict=True))
        assert metrics.classification(PROBABILITY, LABEL) == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("probability", "label", "undefined"),
        [
            ([0.1, 0.9], [0, 0], {"recall", "auroc", "average_precision"}),
            ([0.1, 0.2], [0, 0], {"precision", "recall", "f1", "auroc", "average_precision"}),
            ([0.1, 0.2], [0, 1], {"precision"}),
            ([0.9, 0.8], [1, 1], {"auroc"}),
            ([0.9], [2], set(SCORES)),
            ([], [], set(SCORES)),
        ],
    )
    def test_undefined_scores_are_none_and_curves_empty(self, probability, label, undefined):
        pair = torch.tensor(probability), torch.tensor(label, dtype=torch.int64)
        assert {name for name, value in metrics.classification(*pair).items() if value is None} == undefined
        assert (metrics.roc(*pair).shape == (2, 0)) == ("auroc" in undefined)
        assert (metrics.precision_recall(*pair).shape == (2, 0)) == ("average_precision" in undefined)

    def test_curves_and_confusion_matrix_leave_out_the_unknown(self):
        false, true = metrics.roc(PROBABILITY, LABEL)
        # thresholds .9 .8 .6 .3 .2: one false node before the last true one
        assert (false.tolist(), (3 * true).tolist()) == ([0, 0, 0, 0.5, 0.5, 1], [0, 1, 2, 2, 3, 3])
        recall, precision = metrics.precision_recall(PROBABILITY, LABEL)
        assert precision[recall == 1].max() == pytest.approx(3 / 4)
        assert metrics.confusion_matrix(PROBABILITY, LABEL).tolist() == [[1, 1], [1, 2]]  # truth in rows
        assert metrics.confusion_matrix(torch.zeros(1), torch.tensor([2])).tolist() == [[0, 0], [0, 0]]


class TestCalibration:
    def test_gives_overconfident_probabilities_their_meaning(self):
        generator = torch.Generator().manual_seed(0)
        margin = 2 * torch.randn(20_000, generator=generator)
        label = (torch.rand(20_000, generator=generator) < margin.sigmoid()).long()
        temperature = metrics.fit_temperature(3 * margin, label)
        assert temperature == pytest.approx(3, rel=0.05)
        with_unknown = torch.cat([3 * margin, torch.tensor([50.0])]), torch.cat([label, torch.tensor([2])])
        assert metrics.fit_temperature(*with_unknown) == temperature
        found = metrics.calibration((3 * margin / temperature).sigmoid(), label, temperature)
        assert found["temperature"] == temperature
        assert found["error_after"] < 0.01 < 0.05 < found["error_before"]

    @pytest.mark.parametrize("label", [[1, 1], [0, 2], [2, 2], []], ids=str)
    def test_temperature_of_one_class_is_one(self, label):
        assert metrics.fit_temperature(torch.ones(len(label)), torch.tensor(label, dtype=torch.int64)) == 1

    def test_reliability_of_hand_made_bins(self):
        probability = torch.tensor([0.05, 0.15, 0.6, 0.7, 0.9, 0.5])
        found = metrics.reliability(probability, torch.tensor([0, 1, 1, 1, 0, 2]), bins=2)
        assert found.size.tolist() == [2, 3]
        assert found.probability.tolist() == pytest.approx([0.1, 2.2 / 3])
        assert found.fraction.tolist() == pytest.approx([0.5, 2 / 3])
        assert found.error == pytest.approx(2 / 5 * 0.4 + 3 / 5 * (0.2 / 3))
        assert metrics.reliability(torch.zeros(2), torch.tensor([2, 2])).error is None


def sets(*groups):
    return [np.array(group, dtype=np.int64) for group in groups]


# four nodes right, half of one filament, and two that the prediction joins
TRUE = sets([0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10], [11, 12])
PREDICTED = sets([0, 1, 2, 3], [4, 5], [8, 9, 10, 11, 12], [20, 21])


class TestOverlap:
    def test_scores_of_hand_made_filaments(self):
        found = overlap(TRUE, PREDICTED)
        assert found.iou.tolist() == [[1, 0, 0, 0], [0, 1 / 2, 0, 0], [0, 0, 3 / 5, 0], [0, 0, 2 / 5, 0]]
        assert object_scores([found]) == pytest.approx(
            {
                "semantic_iou": 11 / 15,
                "instance_iou_mean": (1 + 1 / 2 + 3 / 5 + 0) / 4,
                "instance_iou_std": np.std([1, 1 / 2, 3 / 5, 0]),
                **dict.fromkeys(("f1_50", "precision_50", "recall_50"), 2 / 4),  # exactly one half is no match
                "mean_best_iou": (1 + 1 / 2 + 3 / 5 + 2 / 5) / 4,
            }
        )

    def test_pairs_are_one_to_one_with_the_greatest_sum(self):
        # node 4, at a crossing, is in both true filaments; the first one would as well take the first prediction
        found = overlap(sets([0, 1, 2, 3, 4], [4]), sets([0, 1, 2, 4], [0, 1, 2, 3]))
        assert found.iou.tolist() == [[4 / 5, 4 / 5], [1 / 4, 0]]
        assert (found.pairs.tolist(), found.matched.tolist()) == ([[0, 1], [1, 0]], [[0], [1]])
        assert (found.paired.tolist(), found.common, found.joined) == ([4 / 5, 1 / 4], 5, 5)

    def test_images_are_pooled_not_averaged(self):
        easy, hard = overlap(sets([0, 1]), sets([0, 1])), overlap(sets([0, 1], [2, 3], [4, 5]), sets([0, 9]))
        names = ("f1_50", "precision_50", "recall_50", "mean_best_iou", "semantic_iou")
        scores = object_scores([easy, hard])
        assert [scores[name] for name in names] == pytest.approx([2 / 6, 1 / 2, 1 / 4, (1 + 1 / 3) / 4, 3 / 9])

    @pytest.mark.parametrize(
        ("true", "predicted", "expected"),
        [
            ([], [], {}),
            ([], [[0, 1]], {"semantic_iou": 0, "f1_50": 0, "precision_50": 0}),
            ([[0, 1]], [], dict.fromkeys(OBJECT_SCORES, 0) | {"precision_50": None}),
        ],
    )
    def test_undefined_scores_are_none(self, true, predicted, expected):
        assert object_scores([overlap(sets(*true), sets(*predicted))]) == dict.fromkeys(OBJECT_SCORES) | expected
        assert object_scores([]) == dict.fromkeys(OBJECT_SCORES)

    def test_pixel_accuracy_counts_the_background(self):
        scores = object_scores([overlap(sets([0, 1, 2]), sets([2, 3]), size=20), overlap([], [], size=10)])
        assert scores["pixel_accuracy"] == (20 - 3 + 10) / 30


def found(*groups, closed=False, path=((0.0, 0.0), (1.0, 0.0))):
    path = np.array(path, dtype=np.float32)
    score, node = np.ones(len(path), dtype=np.float32), np.arange(len(path))
    return [Filament(path, score, node, members, closed) for members in sets(*groups)]


def ten_nodes(unknown=()):
    node = torch.ones(10, dtype=torch.int64)
    node[list(unknown)] = Label.UNKNOWN
    return Graph(torch.zeros(10, 2), torch.zeros(2, 0, dtype=torch.int64)).with_labels(node=node)


class TestFoundFilaments:
    def test_detections_on_and_beside_the_path_count(self):
        truth = Truth(sets([0, 1, 2, 3], [7, 8]), TruthSource.INSTANCES)
        compared = metrics.compare(truth, found([2, 0, 3, 9, 1, 2], [5, 4]), ten_nodes())
        assert compared.iou.tolist() == [[4 / 5, 0], [0, 0]]

    def test_unknown_detections_make_nothing_false(self):
        graph = ten_nodes(unknown=[3, 4, 5, 6])
        lines = found([0, 1, 2, 3], [3, 4, 5, 0], [2, 3, 4, 9], [4, 5])
        kept = metrics.eligible(lines, graph)
        assert [filament.members.tolist() for filament in kept] == [[0, 1, 2, 3], [2, 3, 4, 9]]
        truth = Truth(sets([0, 1, 2]), TruthSource.INSTANCES)
        assert metrics.compare(truth, kept, graph).iou.tolist() == [[1, 1 / 4]]

    def test_filaments_of_one_detection_do_not_count(self):
        kept = metrics.eligible(found([3], [4, 4], [5, 6], [], closed=True), ten_nodes())
        assert [filament.members.tolist() for filament in kept] == [[5, 6]]

    @pytest.mark.parametrize(("closed", "drawn"), [(False, 5 + 3), (True, 5 + 3 + 4)])
    def test_pixels_under_a_brush_are_compared_with_the_annotation(self, closed, drawn):
        annotation = torch.zeros(5, 9, dtype=torch.int32)
        annotation[0, :6] = 1  # the line covers the first five, and three or seven more
        line = found([0, 1, 2], closed=closed, path=[(0, 0), (4, 0), (4, 3)])
        compared = metrics.compare_pixels(annotation, line, brush=1.0)
        assert compared.iou.tolist() == [[5 / (drawn + 1)]]
        assert object_scores([compared])["pixel_accuracy"] == (45 - (drawn - 5) - 1) / 45


@pytest.mark.shared
def test_scores_are_those_of_the_common_script(shared, tmp_path):
    draws, overlaps = np.random.default_rng(0), []
    truths = shared / "data" / "roots" / "valid"
    for file in sorted(truths.glob("*.instances.json")):
        true = sets(*json.loads(file.read_text()).values())
        # as a tracer errs: nodes lost, filaments cut, pieces joined
        pieces = [part for nodes in true for part in np.array_split(nodes, 1 + len(nodes) % 2)]
        pieces = [part[draws.random(len(part)) > 0.1] for part in pieces]
        predicted = [*pieces[:-2], np.concatenate(pieces[-2:]), np.array([0])]
        table = pd.DataFrame({"filament": range(len(predicted)), "node": predicted}).explode("node")
        folder = tmp_path / file.name.replace(".instances.json", ".grace")
        folder.mkdir()
        table.dropna().astype("int64").to_parquet(folder / "filaments.parquet")
        overlaps.append(overlap(*([nodes for nodes in group if len(nodes) > 1] for group in (true, predicted))))
    script = shared / "check" / "score_filaments.py"
    done = subprocess.check_output([sys.executable, script, tmp_path, truths, "--json"])
    expected, scores = json.loads(done), object_scores(overlaps)
    assert 0.2 < expected["f1_50"] < 0.95
    for name in ("f1_50", "precision_50", "recall_50", "mean_best_iou"):
        assert scores[name] == expected[name]
