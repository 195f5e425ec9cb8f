"""What an annotation tells beyond labels: ends of filaments, and which edges stay on one."""

import numpy as np
import pytest
import torch

from grace_lightning.graph import Graph, Label, Sample, end_labels
from grace_lightning.targets import with_targets

NEGATIVE, POSITIVE, UNKNOWN = (label.value for label in (Label.TRUE_NEGATIVE, Label.TRUE_POSITIVE, Label.UNKNOWN))


def chain(points):
    """Positive nodes, each joined to the next."""
    pos = torch.tensor(points, dtype=torch.float32)
    edges = torch.stack([torch.arange(len(pos) - 1), torch.arange(1, len(pos))])
    return Graph(pos, edges, torch.ones(len(pos), dtype=torch.int64), torch.ones(len(pos) - 1, dtype=torch.int64))


def row(y, *xs):
    return [(float(x), float(y)) for x in xs]


def sample(graph, annotation):
    return Sample("a", torch.zeros(1, *annotation.shape), graph, annotation)


class TestEnds:
    def test_ends_of_a_line_are_its_last_nodes_whatever_their_order(self):
        pos = torch.tensor(row(5, 40, 0, 30, 10, 20, 50))
        labels = end_labels(pos, torch.ones(6, dtype=torch.int64), [np.arange(6)])
        # 0 and 10, 40 and 50: within one and a half distances of either end
        assert labels.tolist() == [1, 1, 0, 1, 0, 1]

    def test_a_gap_is_no_end(self):
        pos = torch.tensor(row(5, 0, 10, 20, 30, 80, 90, 100, 110))
        labels = end_labels(pos, torch.ones(8, dtype=torch.int64), [np.arange(8)])
        assert labels.tolist() == [1, 1, 0, 0, 0, 0, 1, 1]

    def test_nodes_of_no_filament_are_unknown(self):
        pos = torch.tensor(row(5, 0, 10, 20, 30, 40, 200))
        node_label = torch.tensor([1, 1, 1, 0, 1, 1])
        labels = end_labels(pos, node_label, [np.arange(5), np.array([5])])
        assert labels.tolist() == [1, 1, 0, UNKNOWN, 1, UNKNOWN]

    def test_one_filament_may_end_on_another(self):
        """A row of six, and a column that comes down to its third node."""
        pos = torch.tensor(row(50, 0, 10, 20, 30, 40, 50) + [(20.0, float(y)) for y in (0, 10, 20, 30, 40)])
        labels = end_labels(pos, torch.ones(11, dtype=torch.int64), [np.arange(6), np.array([2, 6, 7, 8, 9, 10])])
        assert labels[2] == POSITIVE
        assert labels[3] == NEGATIVE

    def test_many_points_far_from_each_other_are_one_filament(self):
        pos = torch.tensor(row(0, *range(0, 20)) + row(0, *range(500, 520)))
        labels = end_labels(pos, torch.ones(40, dtype=torch.int64), [np.arange(40)])
        assert labels.nonzero().flatten().tolist() == [0, 1, 38, 39]


class TestLinks:
    def test_an_edge_between_touching_objects_does_not_link(self):
        annotation = torch.zeros(20, 60, dtype=torch.int64)
        annotation[:, :30], annotation[:, 30:] = 1, 2
        targets = with_targets(sample(chain(row(10, 5, 15, 25, 35, 45, 55)), annotation)).graph
        assert targets.link_label.tolist() == [1, 1, 0, 1, 1]
        assert targets.edge_label.tolist() == [1] * 5
        assert targets.end_label.tolist() == [1, 1, 1, 1, 1, 1]  # three nodes each: all are near an end

    def test_an_edge_that_passes_under_another_object_links(self):
        annotation = torch.zeros(20, 60, dtype=torch.int64)
        annotation[5:15] = 1
        annotation[:, 27:33] = 2  # drawn over the first
        targets = with_targets(sample(chain(row(10, 5, 15, 25, 30, 35, 45, 55)), annotation)).graph
        assert targets.link_label.tolist() == [1] * 6

    def test_instances_know_better_than_numbers(self):
        annotation = torch.zeros(20, 60, dtype=torch.int64)
        annotation[:, :30], annotation[:, 30:] = 1, 2
        graph = chain(row(10, 5, 15, 25, 35, 45, 55))
        whole = with_targets(sample(graph, annotation), {"1": np.arange(6)}).graph
        assert whole.link_label.tolist() == [1] * 5
        cut = with_targets(sample(graph, annotation), {"1": np.arange(2), "2": np.arange(2, 6)}).graph
        assert cut.link_label.tolist() == [1, 0, 1, 1, 1]

    def test_instances_tell_how_many_filaments_pass_a_node(self):
        graph = chain(row(10, 5, 15, 25, 35, 45))
        graph = Graph(graph.pos, graph.edges, torch.tensor([1, 1, 1, 1, 0]), graph.edge_label)
        instances = {"1": np.arange(3), "2": np.arange(1, 5), "3": np.array([2, 3]), "alone": np.array([0])}
        annotated = sample(graph, torch.ones(20, 60, dtype=torch.int64))
        assert with_targets(annotated, instances).graph.passes.tolist() == [1, 2, 3, 2, -1]

    def test_numbers_do_not(self):
        annotation = torch.ones(20, 60, dtype=torch.int64)
        annotation[:, 30:] = 2
        assert with_targets(sample(chain(row(10, 5, 15, 45)), annotation)).graph.passes.tolist() == [-1] * 3

    @pytest.mark.parametrize("number", [0, 1])
    def test_a_binary_annotation_tells_no_filaments_apart(self, number):
        graph = chain(row(10, 5, 15, 25))
        targets = with_targets(sample(graph, torch.full((20, 60), number))).graph
        assert targets.link_label.tolist() == [UNKNOWN] * 2
        assert targets.end_label.tolist() == [UNKNOWN] * 3

    def test_labels_that_are_not_positive_stay(self):
        annotation = torch.ones(20, 60, dtype=torch.int64)
        annotation[:, 50:] = 2
        graph = chain(row(10, 5, 15, 25, 55))
        graph = Graph(graph.pos, graph.edges, graph.node_label, torch.tensor([0, 2, 1]))
        assert with_targets(sample(graph, annotation)).graph.link_label.tolist() == [0, 2, 0]
