"""Filaments of inference images: linked, compared with the truth, scored and drawn."""

import pytest
import torch

from grace_lightning.graph import Graph, Sample
from grace_lightning.link import Components
from grace_lightning.predictor import link_filaments
from grace_lightning.tasks.evaluate import _compared, _draw_image, drawing, score_objects
from grace_lightning.truth import with_truth

# Two horizontal filaments of 5 px, at y = 10 and y = 30, a node every 10 px.
POS = torch.tensor([[x, y] for y in (10.0, 30.0) for x in range(5, 56, 10)])
EDGES = torch.tensor([[k, k + 1] for k in (0, 1, 2, 3, 4, 6, 7, 8, 9, 10)]).T
ANNOTATION = torch.zeros(40, 61, dtype=torch.int32)
ANNOTATION[8:13, 5:56], ANNOTATION[28:33, 5:56] = 1, 2
PERFECT = {"node": torch.ones(12), "edge": torch.ones(10)}


def sample(annotation=ANNOTATION):
    graph = Graph(POS, EDGES).with_labels(node=torch.ones(12).long(), edge=torch.ones(10).long())
    return with_truth(Sample("a", torch.zeros(1, 40, 61), graph, annotation))


def found(said=PERFECT, brush=5.0, **keys):
    image = sample(**keys)
    return _compared(image, said, link_filaments(Components(), image.graph, said), brush)


def test_perfect_predictions_of_hand_made_filaments():
    scores = score_objects([found()])
    assert scores["exact"] == {name: 0.0 if name == "instance_iou_std" else 1.0 for name in scores["exact"]}
    # A line of 51 x 5 pixels, and the pixels that a round end adds.
    area, end = 51 * 5, sum(dx * dx + dy * dy <= 2.5**2 for dx in (1, 2) for dy in range(-2, 3))
    assert scores["approx"]["semantic_iou"] == pytest.approx(area / (area + 2 * end))
    assert scores["approx"]["f1_50"] == 1
    assert scores["approx"]["pixel_accuracy"] == pytest.approx(1 - 4 * end / (40 * 61))


def test_one_of_two_filaments_found():
    edge = torch.ones(10)
    edge[5:] = 0
    scores = score_objects([found(PERFECT | {"edge": edge})])
    assert scores["exact"]["recall_50"] == scores["approx"]["recall_50"] == 1 / 2
    assert scores["exact"]["precision_50"] == 1
    assert scores["exact"]["semantic_iou"] == 1 / 2


def test_objects_of_a_binary_annotation_are_taken_apart():
    assert found(annotation=(ANNOTATION > 0).int()).approx.iou.shape == (2, 2)


def test_images_without_an_annotation_do_not_count_for_masks():
    bare = found(annotation=None)
    assert set(score_objects([bare])["approx"].values()) == {None}
    assert score_objects([bare])["exact"]["f1_50"] == 1
    assert score_objects([found(), bare])["approx"] == score_objects([found()])["approx"]


def test_a_picture_never_takes_the_name_of_another_images_picture(tmp_path):
    image = sample()
    filaments = link_filaments(Components(), image.graph, PERFECT)
    _draw_image(image, PERFECT, filaments, found(), tmp_path, {"a_iou", "a__iou", "b"})
    assert {path.stem for path in tmp_path.iterdir()} == {"a", "a_filaments", "a___iou"}


def test_the_brush_is_a_filaments_width_unless_set():
    assert drawing({"evaluate": {"brush": None, "pictures": True}}, 20) == (20, True)
    assert drawing({"evaluate": {"brush": 7, "pictures": False}}, 20) == (7, False)
