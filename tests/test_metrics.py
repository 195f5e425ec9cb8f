import pytest
import torch

from grace_lightning.metrics import SCORES, EpochScores, classification, confusion_matrix

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
