import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error

from grace_lightning.metrics import (
    SCORES,
    EpochScores,
    classification,
    confusion_matrix,
    precision_recall,
    reliability,
    roc,
)

#                    right        wrong       UNKNOWN
PROBABILITY = torch.tensor([0.9, 0.8, 0.2, 0.6, 0.3, 0.99])
LABEL = torch.tensor([1, 1, 0, 0, 1, 2])


def test_scores_of_the_positive_class_without_the_unknown():
    scores = classification(PROBABILITY, LABEL)
    assert tuple(scores) == SCORES
    assert scores["accuracy"] == pytest.approx(3 / 5)
    assert scores["precision"] == pytest.approx(2 / 3)
    assert scores["recall"] == pytest.approx(2 / 3)
    assert scores["f1"] == pytest.approx(2 / 3)
    assert scores["auroc"] == pytest.approx(5 / 6)  # one of six pairs is in the wrong order
    assert scores["average_precision"] == pytest.approx((1 + 1 + 3 / 4) / 3)


def test_confusion_matrix_has_truth_in_rows():
    assert confusion_matrix(PROBABILITY, LABEL).tolist() == [[1, 1], [1, 2]]


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
def test_undefined_scores_are_none(probability, label, undefined):
    scores = classification(torch.tensor(probability), torch.tensor(label, dtype=torch.int64))
    assert {name for name, value in scores.items() if value is None} == undefined


def test_epoch_scores_are_those_of_all_batches_together():
    metric = EpochScores()
    metric.update(PROBABILITY[:2], LABEL[:2])
    metric.update(PROBABILITY[2:], LABEL[2:])
    scores, confusion = metric.compute()
    assert scores == classification(PROBABILITY, LABEL)
    assert confusion.tolist() == [[1, 1], [1, 2]]
    metric.reset()
    scores, confusion = metric.compute()
    assert set(scores.values()) == {None}
    assert confusion.sum() == 0


def test_curves_leave_out_the_unknown():
    rates = roc(PROBABILITY, LABEL)
    assert (rates.x[-1], rates.y[-1]) == (1, 1)
    # thresholds .9 .8 .6 .3 .2: one false node before the last true one
    assert list(zip(rates.x.tolist(), (3 * rates.y).tolist(), strict=True)) == [
        (0, 0),
        (0, 1),
        (0, 2),
        (0.5, 2),
        (0.5, 3),
        (1, 3),
    ]
    curve = precision_recall(PROBABILITY, LABEL)
    assert curve.y[curve.x == 1].max() == pytest.approx(3 / 4)


@pytest.mark.parametrize("label", [[0, 0], [1, 1], [2, 2]])
def test_curves_of_one_class_are_undefined(label):
    probability, label = torch.tensor([0.2, 0.7]), torch.tensor(label)
    assert roc(probability, label) is None
    assert (precision_recall(probability, label) is None) == (not (label == 1).any())


def test_reliability_of_hand_made_bins():
    probability = torch.tensor([0.05, 0.15, 0.6, 0.7, 0.9, 0.5])
    found = reliability(probability, torch.tensor([0, 1, 1, 1, 0, 2]), bins=2)
    assert found.size.tolist() == [2, 3]
    assert found.probability.tolist() == pytest.approx([0.1, 2.2 / 3])
    assert found.fraction.tolist() == pytest.approx([0.5, 2 / 3])
    assert found.error == pytest.approx(2 / 5 * 0.4 + 3 / 5 * (0.2 / 3))


def test_calibration_error_is_that_of_the_drawn_bins():
    probability = torch.rand(500, generator=torch.Generator().manual_seed(0))
    label = (torch.rand(500, generator=torch.Generator().manual_seed(1)) < probability**2).long()
    found = reliability(probability, label)
    filled = found.size > 0
    gaps = (found.probability - found.fraction).abs()[filled] * found.size[filled]
    assert found.error == pytest.approx(float(gaps.sum() / 500), abs=1e-6)
    assert found.error == pytest.approx(float(binary_calibration_error(probability, label, n_bins=15)))


def test_reliability_of_nothing_is_undefined():
    assert reliability(torch.zeros(2), torch.tensor([2, 2])).error is None
