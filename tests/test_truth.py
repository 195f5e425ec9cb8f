"""What an annotation says: labels of every head, true filaments, objects; and lines drawn on images."""

import tracemalloc

import numpy as np
import pytest
import torch
from scipy.spatial import KDTree

from grace_lightning.graph import Graph, Label, Sample, TruthSource
from grace_lightning.raster import draw_path
from grace_lightning.truth import annotated_objects, end_labels, label_by_mask, true_filaments, with_truth

UNKNOWN = Label.UNKNOWN.value


def chain(points):
    """Positive nodes, each joined to the next."""
    pos = torch.tensor(points, dtype=torch.float32)
    edges = torch.stack([torch.arange(len(pos) - 1), torch.arange(1, len(pos))])
    return Graph(pos, edges).with_labels(node=torch.ones(len(pos)), edge=torch.ones(len(pos) - 1))


def row(y, *xs):
    return [(float(x), float(y)) for x in xs]


def labels(head, graph, annotation, instances=None):
    sample = Sample("a", torch.zeros(1, *annotation.shape), graph, annotation)
    return with_truth(sample, instances).graph.label(head).tolist()


def test_labels_of_a_hand_drawn_mask():
    # two bars with a gap of one column between: 0 and 1 in the left one, 2 in the right one, 3 in the gap, 4 above
    annotation = torch.zeros(5, 21, dtype=torch.int32)
    annotation[1:4, :10], annotation[1:4, 11:] = 1, 2
    pos = torch.tensor([[0.0, 2.0], [9.4, 2.0], [20.4, 2.0], [9.6, 2.0], [0.0, 0.4]])
    edges = torch.tensor([[0, 0, 1, 0, 0], [1, 2, 2, 3, 4]])
    graph = label_by_mask(Graph(pos, edges), annotation)
    assert graph.label("node").tolist() == [1, 1, 1, 0, 0]
    assert graph.label("edge").tolist() == [1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("points", "negative", "filaments", "ends"),
    [
        # within one and a half distances of either end, whatever their order
        (row(5, 40, 0, 30, 10, 20, 50), [], [range(6)], [1, 1, 0, 1, 0, 1]),
        (row(5, 0, 10, 20, 30, 80, 90, 100, 110), [], [range(8)], [1, 1, 0, 0, 0, 0, 1, 1]),  # a gap is no end
        # one node is no filament
        (row(5, 0, 10, 20, 30, 40, 200), [3], [range(5), [5]], [1, 1, 0, UNKNOWN, 1, UNKNOWN]),
        # a row of six, and a column that comes down to its third node
        (
            row(50, 0, 10, 20, 30, 40, 50) + [(20.0, float(y)) for y in (0, 10, 20, 30, 40)],
            [],
            [range(6), [2, 6, 7, 8, 9, 10]],
            [1, 1, 1, 0, 1, 1, 1, 1, 0, 0, 1],
        ),
        (row(0, *range(120), *range(500, 620)), [], [range(240)], [1, 1, *[0] * 236, 1, 1]),  # far from each other
    ],
)
def test_ends(points, negative, filaments, ends):
    node = torch.ones(len(points), dtype=torch.int64)
    node[negative] = 0
    assert end_labels(torch.tensor(points), node, [np.array(nodes) for nodes in filaments]).tolist() == ends


class TestHeads:
    SIX = row(10, 5, 15, 25, 35, 45, 55)
    HALVES = (torch.arange(60) // 30 + 1).expand(20, 60)

    def test_an_edge_between_touching_objects_is_on_no_one_filament(self):
        graph = chain(self.SIX)
        assert labels("same_filament", graph, self.HALVES) == [1, 1, 0, 1, 1]
        assert labels("end", graph, self.HALVES) == [1] * 6  # three nodes each: all are near an end
        graph = graph.with_labels(edge=torch.tensor([0, UNKNOWN, 1, 1, 1]))
        assert labels("same_filament", graph, self.HALVES) == [0, UNKNOWN, 0, 1, 1]  # what is not positive stays

    def test_an_edge_that_passes_under_another_object_stays_on_its_filament(self):
        annotation = torch.zeros(20, 60, dtype=torch.int64)
        annotation[5:15] = 1
        annotation[:, 27:33] = 2  # drawn over the first
        assert labels("same_filament", chain(row(10, 5, 15, 25, 30, 35, 45, 55)), annotation) == [1] * 6

    def test_instances_know_better_than_numbers(self):
        whole, cut = {"1": np.arange(6)}, {"1": np.arange(2), "2": np.arange(2, 6)}
        assert labels("same_filament", chain(self.SIX), self.HALVES, whole) == [1] * 5
        assert labels("same_filament", chain(self.SIX), self.HALVES, cut) == [1, 0, 1, 1, 1]

    def test_instances_alone_tell_how_many_filaments_pass_a_node(self):
        graph = chain(self.SIX[:5]).with_labels(node=torch.tensor([1, 1, 1, 1, 0]))
        instances = {"1": np.arange(3), "2": np.arange(1, 5), "3": np.array([2, 3]), "alone": np.array([0])}
        assert labels("two_filaments", graph, self.HALVES, instances) == [0, 1, 1, 1, UNKNOWN]
        assert labels("three_filaments", graph, self.HALVES, instances) == [0, 0, 1, 0, UNKNOWN]
        assert labels("two_filaments", graph, self.HALVES) == [UNKNOWN] * 5

    def test_a_binary_annotation_tells_no_filaments_apart(self):
        assert labels("same_filament", chain(self.SIX), torch.ones(20, 60)) == [UNKNOWN] * 5
        assert labels("end", chain(self.SIX), torch.ones(20, 60)) == [UNKNOWN] * 6


# positions of nodes 0..5 on two rows, 6 in the background:
#
#   0 - 1 - 2
#       |         (the edge 1 - 4 is a false one)
#   3 - 4 - 5     6
POS = torch.tensor([[2, 2], [10, 2], [18, 2], [2, 12], [10, 12], [18, 12], [28.0, 12]])
EDGES = torch.tensor([[0, 1, 1, 3, 4, 5], [1, 2, 4, 4, 5, 6]])
GRAPH = Graph(POS, EDGES).with_labels(node=torch.tensor([1, 1, 1, 1, 1, 1, 0]), edge=torch.tensor([1, 1, 0, 1, 1, 0]))


def rows(upper, lower):
    annotation = torch.zeros(16, 32, dtype=torch.int32)
    annotation[1:4, :22], annotation[11:14, :22] = upper, lower
    return annotation


class TestFilaments:
    @pytest.mark.parametrize(
        ("annotation", "instances", "filaments", "source"),
        [
            (rows(1, 2), {"1": [0, 1], "2": [3], "3": [1, 5, 4]}, [[0, 1], [1, 4, 5]], TruthSource.INSTANCES),
            (rows(7, 3), None, [[3, 4, 5], [0, 1, 2]], TruthSource.NUMBERS),
            (rows(1, 1), None, [[0, 1, 2], [3, 4, 5]], TruthSource.EDGES),
            (None, None, [[0, 1, 2], [3, 4, 5]], TruthSource.EDGES),
            (None, {}, [], TruthSource.INSTANCES),
        ],
    )
    def test_instances_come_first_then_numbers_then_positive_edges(self, annotation, instances, filaments, source):
        instances = instances and {name: np.array(nodes) for name, nodes in instances.items()}
        truth = true_filaments(GRAPH, annotation, instances)
        assert [nodes.tolist() for nodes in truth.filaments] == filaments
        assert truth.source == source

    def test_a_negative_node_on_an_object_is_not_part_of_it(self):
        graph = GRAPH.with_labels(node=torch.tensor([1, 0, 1, 1, 1, UNKNOWN, 1]))
        assert [nodes.tolist() for nodes in true_filaments(graph, rows(1, 2), None).filaments] == [[0, 2], [3, 4]]


class TestDrawing:
    @pytest.mark.parametrize(
        ("annotation", "objects"),
        [
            ([[1, 1, 0, 5], [0, 0, 0, 5], [1, 0, 0, 0]], [[0, 1, 8], [3, 7]]),  # told apart by their numbers
            ([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]], [[0, 1, 6], [12]]),  # by being connected
            ([[0, 0], [0, 0]], []),
        ],
    )
    def test_objects(self, annotation, objects):
        assert [pixels.tolist() for pixels in annotated_objects(torch.tensor(annotation))] == objects

    def test_what_lies_outside_is_left_out_and_a_point_is_a_disc(self):
        assert draw_path(np.array([[-20, 0], [30, 0]]), 2.0, (3, 5)).tolist() == [*range(10)]
        assert len(draw_path(np.array([[10.0, 10.0]]), 4.0, (20, 20))) == 13  # pixels within 2 of the middle

    @pytest.mark.parametrize(("brush", "closed"), [(1.0, False), (7.0, True), (20.0, True)])
    def test_pixels_are_those_within_half_the_brush(self, brush, closed):
        path = np.cumsum(np.random.default_rng(0).normal(0, 12, size=(12, 2)), axis=0) + 40
        path = np.concatenate([path, path[-1:]])  # a point twice
        rounds = np.concatenate([path, path[:1]]) if closed else path
        fine = np.linspace(rounds[:-1], rounds[1:], 1001).reshape(-1, 2)
        y, x = np.mgrid[:90, :100]
        away = KDTree(fine).query(np.column_stack([x.ravel(), y.ravel()]))[0]
        drawn = np.zeros(9000, dtype=bool)
        drawn[draw_path(path, brush, (90, 100), closed=closed)] = True
        clear = abs(away - brush / 2) > 0.01
        assert np.array_equal(drawn[clear], (away <= brush / 2)[clear])

    def test_a_long_path_in_a_large_image_takes_little_memory(self):
        tracemalloc.start()
        drawn = draw_path(np.array([[0.0, 0.0], [8000.0, 5000.0]]), 20.0, (8192, 8192))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(drawn) == pytest.approx(20 * np.hypot(8000, 5000), rel=0.01)
        assert peak < 150e6  # the image alone would take 67 MB a byte
