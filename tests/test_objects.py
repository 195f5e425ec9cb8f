"""Filaments of an image: linked, compared, drawn."""

import json

import numpy as np
import pytest
import torch
from helpers import random_sample

from grace_lightning.errors import InputError
from grace_lightning.graph import Graph, Sample
from grace_lightning.io import Source
from grace_lightning.link import Components
from grace_lightning.module import Prediction
from grace_lightning.tasks.objects import brush_width, draw_objects, find_objects, score_objects

# two horizontal filaments of 5 px, at y = 10 and y = 30, a node every 10 px
POS = torch.tensor([[x, y] for y in (10.0, 30.0) for x in range(5, 56, 10)])
EDGES = torch.tensor([[k, k + 1] for k in (0, 1, 2, 3, 4, 6, 7, 8, 9, 10)]).T
ANNOTATION = torch.zeros(40, 61, dtype=torch.int32)
ANNOTATION[8:13, 5:56], ANNOTATION[28:33, 5:56] = 1, 2
ONES = torch.ones(12), torch.ones(10)


def sample(annotation=ANNOTATION):
    labels = torch.ones(12, dtype=torch.int64), torch.ones(10, dtype=torch.int64)
    return Sample("a", torch.zeros(1, 40, 61), Graph(POS, EDGES, *labels), annotation)


def found(probability=ONES, annotation=ANNOTATION, instances=None, brush=5.0):
    prediction = Prediction("a", *probability, None, None, None, None, torch.ones(12), torch.ones(10))
    source = Source("a", "a.png", instances=instances)
    return find_objects(sample(annotation), source, prediction, Components(), brush)


def test_perfect_predictions_of_hand_made_filaments():
    scores = score_objects([found()])
    exact = {name: 0.0 if name == "instance_iou_std" else 1.0 for name in scores["exact"]}
    assert scores["exact"] == exact
    # a line of 51 x 5 pixels, and what a round end adds
    area, end = 51 * 5, sum(dx * dx + dy * dy <= 2.5**2 for dx in (1, 2) for dy in range(-2, 3))
    assert scores["approx"]["semantic_iou"] == pytest.approx(area / (area + 2 * end))
    assert scores["approx"]["f1_50"] == 1
    assert scores["approx"]["pixel_accuracy"] == pytest.approx(1 - 4 * end / (40 * 61))


def test_one_of_two_filaments_found():
    edge = torch.ones(10)
    edge[5:] = 0
    scores = score_objects([found((ONES[0], edge))])
    assert scores["exact"]["recall_50"] == scores["approx"]["recall_50"] == 1 / 2
    assert scores["exact"]["precision_50"] == 1
    assert scores["exact"]["semantic_iou"] == 1 / 2


def test_instances_say_what_is_true(tmp_path):
    path = tmp_path / "a.instances.json"
    path.write_text(json.dumps({"1": list(range(6)), "2": [6, 7, 8], "3": [9, 10, 11]}))
    objects = found(instances=path)
    assert objects.truth.source == "instances.json"
    assert objects.exact.paired.tolist() == [1, 1 / 2, 0]


def test_a_binary_annotation_is_taken_apart():
    objects = found(annotation=(ANNOTATION > 0).int())
    assert objects.truth.source == "connected positive edges"
    assert objects.approx.iou.shape == (2, 2)


def test_without_an_annotation_masks_have_no_scores():
    scores = score_objects([found(annotation=None)])
    assert set(scores["approx"].values()) == {None}
    assert scores["exact"]["f1_50"] == 1


def test_images_without_an_annotation_do_not_count_for_masks():
    both = score_objects([found(), found(annotation=None)])
    assert both["approx"] == score_objects([found()])["approx"]


def test_renumbering_the_nodes_changes_no_score():
    drawn = random_sample()
    generator = torch.Generator().manual_seed(1)
    node, edge = torch.rand(40, generator=generator), torch.rand(drawn.graph.num_edges, generator=generator)
    order = torch.randperm(40, generator=generator)
    graph = drawn.graph.renumber(order)
    by_ends = {frozenset(ends): p for ends, p in zip(drawn.graph.edges.T.tolist(), edge, strict=True)}
    renumbered = torch.stack([by_ends[frozenset(ends)] for ends in order[graph.edges].T.tolist()])
    source, linker = Source("a", "a.png"), Components(threshold=0.3)
    scores = [
        score_objects([find_objects(s, source, Prediction("a", *p, None, None, None, None, None, None), linker, 4.0)])
        for s, p in ((drawn, (node, edge)), (drawn.replace(graph=graph), (node[order], renumbered)))
    ]
    assert scores[0]["exact"]["f1_50"] is not None
    for way in ("exact", "approx"):
        assert scores[1][way] == pytest.approx(scores[0][way])


def test_pictures_never_take_the_name_of_another_images(tmp_path):
    names = {"a", "a_iou", "a__iou", "b"}
    draw_objects(sample(), found(), "a", tmp_path, names)
    assert {path.stem for path in tmp_path.iterdir()} == {"a_filaments", "a___iou"}


def test_the_brush_is_a_filaments_width_unless_set():
    assert brush_width({"evaluate": {"brush": None}}, 20) == 20
    assert brush_width({"evaluate": {"brush": 7}}, 20) == 7
    with pytest.raises(InputError, match=r"evaluate.brush: 0.5, expected 1 pixel or more"):
        brush_width({"evaluate": {"brush": 0.5}}, 20)


def test_drawn_filaments_are_sets_of_their_own_pixels():
    objects = found(brush=45.0)
    assert objects.approx.iou.max() < 1 / 3  # both cover nearly all of the image
    assert np.allclose(objects.approx.iou, objects.approx.iou.T, atol=0.02)
