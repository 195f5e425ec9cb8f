"""Filaments against the truth: sets of nodes, and masks."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import random_sample
from scipy.optimize import linear_sum_assignment

from grace_lightning.graph import Graph
from grace_lightning.link import Filaments
from grace_lightning.metrics import (
    OBJECT_SCORES,
    annotated_objects,
    counted,
    draw_path,
    object_scores,
    overlap,
    true_filaments,
)


def sets(*groups):
    return [np.array(group, dtype=np.int64) for group in groups]


# four nodes right, half of one filament, and two that the prediction joins
TRUE = sets([0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10], [11, 12])
PREDICTED = sets([0, 1, 2, 3], [4, 5], [8, 9, 10, 11, 12], [20, 21])


class TestOverlap:
    def test_iou_of_every_pair(self):
        iou = overlap(TRUE, PREDICTED).iou
        assert iou.tolist() == [[1, 0, 0, 0], [0, 1 / 2, 0, 0], [0, 0, 3 / 5, 0], [0, 0, 2 / 5, 0]]

    def test_scores_of_hand_made_filaments(self):
        scores = object_scores([overlap(TRUE, PREDICTED)])
        assert tuple(scores) == OBJECT_SCORES
        assert scores["semantic_iou"] == 11 / 15
        assert scores["instance_iou_mean"] == pytest.approx((1 + 1 / 2 + 3 / 5 + 0) / 4)
        assert scores["instance_iou_std"] == pytest.approx(np.std([1, 1 / 2, 3 / 5, 0]))
        assert scores["precision_50"] == scores["recall_50"] == scores["f1_50"] == 2 / 4  # exactly one half is no match
        assert scores["mean_best_iou"] == pytest.approx((1 + 1 / 2 + 3 / 5 + 2 / 5) / 4)

    def test_pairs_are_one_to_one_with_the_greatest_sum(self):
        # greedily the first would take .6 and leave 0: .6 < .5 + .4
        found = overlap(sets([0, 1, 2, 3, 4], [4]), sets([0, 1, 2, 4], [0, 1, 2, 3]))
        assert found.iou.tolist() == [[4 / 5, 4 / 5], [1 / 4, 0]]
        assert found.pairs.tolist() == [[0, 1], [1, 0]]
        assert found.matched.tolist() == [[0], [1]]
        assert found.paired.tolist() == [4 / 5, 1 / 4]
        assert found.best.tolist() == [4 / 5, 1 / 4]

    def test_a_node_named_twice_counts_once(self):
        assert overlap(sets([0, 1, 2]), sets([2, 0, 1, 0])).iou.tolist() == [[1]]

    def test_a_crossing_node_is_in_both_filaments(self):
        found = overlap(sets([0, 1, 2], [3, 1, 4]), sets([0, 1, 2], [3, 1, 4]))
        assert found.iou.tolist() == [[1, 1 / 5], [1 / 5, 1]]
        assert (found.common, found.joined) == (5, 5)

    def test_images_are_pooled_not_averaged(self):
        easy, hard = overlap(sets([0, 1]), sets([0, 1])), overlap(sets([0, 1], [2, 3], [4, 5]), sets([0, 9]))
        scores = object_scores([easy, hard])
        assert scores["recall_50"] == 1 / 4
        assert scores["precision_50"] == 1 / 2
        assert scores["f1_50"] == 2 / 6
        assert scores["mean_best_iou"] == pytest.approx((1 + 1 / 3) / 4)
        assert scores["semantic_iou"] == 3 / 9

    @pytest.mark.parametrize(
        ("true", "predicted", "expected"),
        [
            ([], [], {}),
            ([], [[0, 1]], {"semantic_iou": 0, "f1_50": 0, "precision_50": 0}),
            (
                [[0, 1]],
                [],
                dict.fromkeys(OBJECT_SCORES, 0) | {"precision_50": None},
            ),
        ],
    )
    def test_undefined_scores_are_none(self, true, predicted, expected):
        scores = object_scores([overlap(sets(*true), sets(*predicted))])
        assert scores == dict.fromkeys(OBJECT_SCORES) | expected

    def test_no_images_have_no_scores(self):
        assert object_scores([]) == dict.fromkeys(OBJECT_SCORES)

    def test_pixel_accuracy_counts_the_background(self):
        scores = object_scores([overlap(sets([0, 1, 2]), sets([2, 3]), size=20), overlap([], [], size=10)])
        assert scores["pixel_accuracy"] == (20 - 3 + 10) / 30

    @pytest.mark.parametrize("seed", range(5))
    def test_random_sets_score_as_the_plain_formula_says(self, seed):
        draws = np.random.default_rng(seed)
        images = [
            tuple(sets(*(draws.choice(40, draws.integers(2, 12), replace=False) for _ in range(n))) for n in sizes)
            for sizes in draws.integers(0, 9, size=(4, 2))
        ]
        hits, best = 0, []
        for true, predicted in images:
            iou = np.zeros((len(true), len(predicted)))
            for t, p in np.ndindex(iou.shape):
                a, b = set(true[t].tolist()), set(predicted[p].tolist())
                iou[t, p] = len(a & b) / len(a | b)
            hits += int((iou[linear_sum_assignment(-iou)] > 0.5).sum())
            best += iou.max(axis=1, initial=0).tolist()
        count = [sum(len(image[k]) for image in images) for k in (0, 1)]
        scores = object_scores([overlap(*image) for image in images])
        assert scores["f1_50"] == 2 * hits / sum(count)
        assert (scores["recall_50"], scores["precision_50"]) == (hits / count[0], hits / count[1])
        assert scores["mean_best_iou"] == float(np.mean(best))

    def test_renumbering_the_nodes_changes_nothing(self):
        number = np.random.default_rng(0).permutation(22)
        scores = object_scores([overlap(TRUE, PREDICTED)])
        renumbered = overlap([number[s] for s in TRUE[::-1]], [number[s] for s in PREDICTED[::-1]])
        assert object_scores([renumbered]) == pytest.approx(scores)


@pytest.mark.shared
def test_scores_are_those_of_the_common_script(shared, tmp_path):
    draws, overlaps = np.random.default_rng(0), []
    truths = shared / "data" / "roots" / "valid"
    for file in sorted(truths.glob("*.instances.json")):
        true = sets(*json.loads(file.read_text()).values())
        # as a tracer errs: nodes lost, filaments cut, pieces joined
        pieces = [
            part[draws.random(len(part)) > 0.1] for nodes in true for part in np.array_split(nodes, 1 + len(nodes) % 2)
        ]
        predicted = [*pieces[:-2], np.concatenate(pieces[-2:]), np.array([0])]
        rows = [(k, node) for k, nodes in enumerate(predicted) for node in nodes]
        folder = tmp_path / f"{file.name.removesuffix('.instances.json')}.grace"
        folder.mkdir()
        pd.DataFrame(rows, columns=["filament", "node"]).to_parquet(folder / "filaments.parquet")
        kept = [nodes for nodes in predicted if len(nodes) > 1]
        overlaps.append(overlap([nodes for nodes in true if len(nodes) > 1], kept))
    script = shared / "check" / "score_filaments.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path, truths, "--json"], capture_output=True, text=True, check=True
    )
    expected, scores = json.loads(done.stdout), object_scores(overlaps)
    assert 0.2 < expected["f1_50"] < 0.95
    for name in ("f1_50", "precision_50", "recall_50", "mean_best_iou"):
        assert scores[name] == expected[name]


# positions of nodes 0..5 on two rows, 6 in the background:
#
#   0 - 1 - 2
#       |         (the edge 1 - 4 is a false one)
#   3 - 4 - 5     6
POS = torch.tensor([[2, 2], [10, 2], [18, 2], [2, 12], [10, 12], [18, 12], [28.0, 12]])
EDGES = torch.tensor([[0, 1, 1, 3, 4, 5], [1, 2, 4, 4, 5, 6]])
GRAPH = Graph(POS, EDGES, torch.tensor([1, 1, 1, 1, 1, 1, 0]), torch.tensor([1, 1, 0, 1, 1, 0]))


def rows(upper, lower):
    annotation = torch.zeros(16, 32, dtype=torch.int32)
    annotation[1:4, :22], annotation[11:14, :22] = upper, lower
    return annotation


class TestTruth:
    def test_instances_come_first(self):
        truth = true_filaments(GRAPH, rows(1, 2), {"1": np.array([0, 1]), "2": np.array([3]), "3": np.array([1, 5, 4])})
        assert [nodes.tolist() for nodes in truth.nodes] == [[0, 1], [1, 4, 5]]  # one node is no filament
        assert truth.source == "instances.json"

    def test_then_the_numbers_of_the_annotation(self):
        truth = true_filaments(GRAPH, rows(7, 3), None)
        assert [nodes.tolist() for nodes in truth.nodes] == [[3, 4, 5], [0, 1, 2]]
        assert truth.source == "annotation numbers"

    def test_a_negative_node_on_an_object_is_not_part_of_it(self):
        graph = Graph(POS, EDGES, torch.tensor([1, 0, 1, 1, 1, 2, 1]), GRAPH.edge_label)
        assert [nodes.tolist() for nodes in true_filaments(graph, rows(1, 2), None).nodes] == [[0, 2], [3, 4]]

    @pytest.mark.parametrize("annotation", [None, rows(1, 1), rows(0, 0)])
    def test_else_connected_positive_edges(self, annotation):
        truth = true_filaments(GRAPH, annotation, None)
        assert [nodes.tolist() for nodes in truth.nodes] == [[0, 1, 2], [3, 4, 5]]
        assert truth.source == "connected positive edges"

    def test_a_graph_without_edges_has_none(self):
        graph = Graph(POS, EDGES[:, :0], GRAPH.node_label, GRAPH.edge_label[:0])
        assert true_filaments(graph, None, None).nodes == []

    @pytest.mark.parametrize("annotated", [True, False])
    def test_renumbering_changes_no_filament(self, annotated):
        sample = random_sample()
        upper = sample.graph.pos[:, 1] < 47.5
        across = upper[sample.graph.edges].any(dim=0) & ~upper[sample.graph.edges].all(dim=0)
        graph = replace(sample.graph, edge_label=sample.graph.edge_label * ~across)
        annotation = torch.where(torch.arange(96)[:, None] < 48, sample.annotation, 2 * sample.annotation)
        annotation = annotation if annotated else None
        order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
        found = true_filaments(graph, annotation, None).nodes
        again = true_filaments(graph.renumber(order), annotation, None).nodes
        assert len(found) >= 2
        assert {frozenset(nodes) for nodes in found} == {frozenset(order.numpy()[nodes]) for nodes in again}

    def test_predictions_of_one_node_do_not_count(self):
        filaments = Filaments(
            filament=np.array([0, 0, 0, 1, 2, 2, 2, 2]),
            node=np.array([5, 1, 3, 2, 6, 4, 6, 0]),
            beside=np.array([0, 0, 1, 0, 0, 0, 0, 0], dtype=bool),
            closed=np.array([False, False, True]),
        )
        first, second = counted(filaments)
        assert (first.nodes.tolist(), first.path.tolist(), first.closed) == ([1, 3, 5], [5, 1], False)
        assert (second.nodes.tolist(), second.path.tolist(), second.closed) == ([0, 4, 6], [6, 4, 6, 0], True)


class TestMasks:
    def test_objects_are_told_apart_by_their_numbers(self):
        annotation = torch.tensor([[1, 1, 0, 5], [0, 0, 0, 5], [1, 0, 0, 0]])
        assert [pixels.tolist() for pixels in annotated_objects(annotation)] == [[0, 1, 8], [3, 7]]

    def test_objects_of_one_number_are_what_hangs_together(self):
        annotation = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]])
        assert [pixels.tolist() for pixels in annotated_objects(annotation)] == [[0, 1, 6], [12]]
        assert annotated_objects(torch.zeros(3, 3, dtype=torch.int32)) == []

    def test_a_horizontal_line_has_round_ends(self):
        mask = np.zeros((7, 12), dtype=int)
        mask.reshape(-1)[draw_path(np.array([[3, 3], [8, 3]]), 4.0, mask.shape)] = 1
        assert ["".join(map(str, row)) for row in mask] == [
            "000000000000",
            "000111111000",
            "001111111100",
            "011111111110",
            "001111111100",
            "000111111000",
            "000000000000",
        ]

    def test_what_lies_outside_is_left_out(self):
        drawn = draw_path(np.array([[-20, 0], [30, 0]]), 2.0, (3, 5))
        assert drawn.tolist() == [*range(5), *range(5, 10)]

    @pytest.mark.parametrize("brush", [1.0, 2.5, 7.0, 20.0])
    @pytest.mark.parametrize("closed", [False, True])
    def test_pixels_are_those_within_half_the_brush(self, brush, closed):
        path = np.cumsum(np.random.default_rng(0).normal(0, 12, size=(12, 2)), axis=0) + 40
        path = np.concatenate([path, path[-1:]])  # a point twice
        rounds = np.concatenate([path, path[:1]]) if closed else path
        fine = np.linspace(rounds[:-1], rounds[1:], 2001).reshape(-1, 2)
        y, x = np.mgrid[:90, :100]
        away = np.array([np.hypot(fine[:, 0] - c, fine[:, 1] - r).min() for r, c in zip(y.flat, x.flat, strict=True)])
        drawn = np.zeros(9000, dtype=bool)
        drawn[draw_path(path, brush, (90, 100), closed=closed)] = True
        clear = abs(away - brush / 2) > 0.01
        assert np.array_equal(drawn[clear], (away <= brush / 2)[clear])

    def test_one_point_is_a_disc(self):
        assert len(draw_path(np.array([[10.0, 10.0]]), 4.0, (20, 20))) == 13  # pixels within 2 of the middle

    def test_a_long_path_in_a_large_image_takes_little_memory(self):
        import tracemalloc

        tracemalloc.start()
        drawn = draw_path(np.array([[0.0, 0.0], [8000.0, 5000.0]]), 20.0, (8192, 8192))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(drawn) == pytest.approx(20 * np.hypot(8000, 5000), rel=0.01)
        assert peak < 150e6  # the image alone would take 67 MB a byte
