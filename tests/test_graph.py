import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import Delaunay

from grace_lightning.errors import InputError, InputWarning
from grace_lightning.graph import (
    EDGE_PROPERTIES,
    Graph,
    Label,
    Sample,
    delaunay,
    edge_geometry,
    from_detections,
    label_by_mask,
    merge_duplicates,
    second_neighbours,
    subgraphs,
    with_candidates,
)


def points(*xy):
    return torch.tensor(xy, dtype=torch.float32).reshape(-1, 2)


def pairs(*edges):
    return torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T


def edge_set(edges):
    return {tuple(e) for e in edges.T.tolist()}


def column(geometry, name):
    return geometry[:, EDGE_PROPERTIES.index(name)]


class TestDelaunay:
    def test_square_with_centre(self):
        #  0 . . 1
        #  . . 4 .
        #  2 . . 3
        edges = delaunay(points((0, 0), (10, 0), (0, 10), (10, 10), (6, 5)))
        assert edge_set(edges) == {(0, 1), (0, 2), (1, 3), (2, 3), (0, 4), (1, 4), (2, 4), (3, 4)}

    @pytest.mark.parametrize("count", [0, 1])
    def test_no_edges_for_less_than_two_points(self, count):
        assert delaunay(torch.rand(count, 2)).shape == (2, 0)

    def test_two_points_are_joined(self):
        assert edge_set(delaunay(points((3, 4), (1, 2)))) == {(0, 1)}

    def test_collinear_points_become_a_chain_in_order_along_the_line(self):
        # on y = x / 3, which float32 cannot hold exactly
        pos = torch.stack([torch.tensor([9.0, 0.0, 3000.0, 4.0]), torch.tensor([9.0, 0.0, 3000.0, 4.0]) / 3], dim=1)
        assert edge_set(delaunay(pos)) == {(1, 3), (0, 3), (0, 2)}

    def test_every_point_is_joined_even_where_two_nearly_coincide(self):
        pos = torch.cat([torch.rand(50, 2) * 4000, points((2000, 2000), (2000.0002, 2000))])
        assert set(delaunay(pos).flatten().tolist()) == set(range(52))

    def test_agrees_with_scipy_where_the_triangulation_is_unique(self):
        pos = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) * 1000
        simplices = Delaunay(pos.double().numpy()).simplices
        expected = {tuple(sorted(s[[a, b]].tolist())) for s in simplices for a, b in ((0, 1), (1, 2), (0, 2))}
        assert edge_set(delaunay(pos)) == expected

    @given(st.integers(2, 7), st.integers(2, 7), st.randoms(use_true_random=False))
    @settings(max_examples=30, deadline=None)
    def test_does_not_depend_on_the_order_even_on_a_grid(self, rows, columns, random):
        pos = torch.cartesian_prod(torch.arange(float(columns)), torch.arange(float(rows)))
        order = torch.tensor(random.sample(range(len(pos)), len(pos)))
        expected = Graph(pos, delaunay(pos)).renumber(order).edges
        assert torch.equal(delaunay(pos[order]), expected)


def test_duplicates_are_merged_with_a_warning():
    pos = points((1, 1), (5, 5), (1, 1), (9, 2))
    with pytest.warns(InputWarning, match="1 of 4 detections"):
        graph, rows = from_detections(pos, torch.tensor([0.1, 0.2, 0.3, 0.4]))
    assert rows.tolist() == [0, 1, 3]
    assert graph.confidence.tolist() == pytest.approx([0.1, 0.2, 0.4])
    assert graph.num_edges == 3
    assert merge_duplicates(graph.pos).tolist() == [0, 1, 2]


class TestGeometry:
    #      2              north
    #    / | \
    #   0--+--1           edge 0-1 lies level, 2 above it, 3 below it
    #    \ | /
    #      3              south
    POS = points((0, 10), (20, 10), (10, 0), (10, 14))
    EDGES = pairs((0, 1), (0, 2), (0, 3), (1, 2), (1, 3))
    MEAN = (20 + 2 * math.hypot(10, 10) + 2 * math.hypot(10, 4)) / 5

    def test_lengths_are_over_the_mean_of_the_graph(self):
        length = column(edge_geometry(self.POS, self.EDGES), "edge_length_nrm")
        expected = [20, math.hypot(10, 10), math.hypot(10, 4), math.hypot(10, 10), math.hypot(10, 4)]
        assert length.tolist() == pytest.approx([v / self.MEAN for v in expected])
        assert length.mean().item() == pytest.approx(1)

    def test_direction_is_the_edges_own(self):
        orient = column(edge_geometry(self.POS, self.EDGES), "edge_orient_rad")
        up = math.atan2(10, 10)
        down = math.atan2(4, 10)
        assert orient.tolist() == pytest.approx([0, up, math.pi - down, math.pi - up, down], abs=1e-6)

    def test_level_edge_runs_to_the_east_and_has_south_on_its_right(self):
        geometry = edge_geometry(self.POS, self.EDGES)[0]
        east = {n: float(v) for n, v in zip(EDGE_PROPERTIES, geometry, strict=True) if n.startswith("east")}
        assert east == {
            "east_neigh_length_nrm": pytest.approx(4 / self.MEAN),
            "east_neigh_orient_rad": pytest.approx(math.pi / 2),
            "east_neigh_south_length_nrm": pytest.approx(math.hypot(10, 4) / self.MEAN),
            "east_neigh_north_length_nrm": pytest.approx(math.hypot(10, 4) / self.MEAN),
        }
        assert column(geometry[None], "west_neigh_length_nrm").item() == pytest.approx(10 / self.MEAN)

    def test_south_and_north_are_told_by_y_and_sides_by_x(self):
        # upright edge 0-1 with 0 in the south; 2 lies to the east near the north end
        pos = points((5, 20), (5, 0), (8, 4))
        geometry = edge_geometry(pos, pairs((0, 1), (0, 2), (1, 2)))
        mean = (20 + math.hypot(3, 16) + 5) / 3
        assert column(geometry, "edge_orient_rad")[0].item() == pytest.approx(math.pi / 2)
        assert column(geometry, "east_neigh_south_length_nrm")[0].item() == pytest.approx(math.hypot(3, 16) / mean)
        assert column(geometry, "east_neigh_north_length_nrm")[0].item() == pytest.approx(5 / mean)
        assert column(geometry, "east_neigh_orient_rad")[0].item() == pytest.approx(math.atan2(3, 6))

    def test_missing_triangle_gives_zeros_on_that_side(self):
        geometry = edge_geometry(points((5, 20), (5, 0), (8, 4)), pairs((0, 1), (0, 2), (1, 2)))
        assert geometry[0, 6:].tolist() == [0, 0, 0, 0]
        alone = edge_geometry(points((0, 0), (3, 4)), pairs((0, 1)))
        assert alone[0, 2:].tolist() == [0] * 8
        assert alone[0, 0] == 1

    def test_neighbours_are_the_delaunay_triangles(self):
        pos = torch.rand(120, 2, generator=torch.Generator().manual_seed(1)) * 500
        geometry = edge_geometry(pos, delaunay(pos))
        triangles = Delaunay(pos.double().numpy()).simplices
        sides = (geometry[:, [2, 6]] > 0).sum()
        assert sides == 3 * len(triangles)
        # distances to the third corners, summed over all sides of all triangles
        xy = pos.double().numpy()
        total = 0.0
        for a, b, c in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
            third = xy[triangles[:, c]]
            total += sum(np.linalg.norm(xy[triangles[:, k]] - third, axis=1).sum() for k in (a, b))
        edges = delaunay(pos)
        mean = (pos[edges[0]] - pos[edges[1]]).norm(dim=1).mean().item()
        assert geometry[:, [4, 5, 8, 9]].sum().item() * mean == pytest.approx(total, rel=1e-5)

    def test_no_edges(self):
        assert edge_geometry(points((1, 2)), pairs()).shape == (0, 10)

    def test_follows_a_renumbering(self):
        pos = torch.rand(60, 2, generator=torch.Generator().manual_seed(2)) * 300
        graph = Graph(pos, delaunay(pos))
        order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
        other = graph.renumber(order)
        original = {
            tuple(e): row for e, row in zip(graph.edges.T.tolist(), edge_geometry(pos, graph.edges), strict=True)
        }
        for (a, b), row in zip(other.edges.T.tolist(), edge_geometry(other.pos, other.edges), strict=True):
            assert torch.equal(row, original[tuple(sorted((int(order[a]), int(order[b]))))])


class TestSubgraphs:
    #  0 - 1 - 2 - 3
    #      | /
    #      4
    EDGES = pairs((0, 1), (1, 2), (2, 3), (1, 4), (2, 4))

    def parts(self, **options):
        found = subgraphs(self.EDGES, 5, **options)
        members = {c: set(found.node[found.centre == c].tolist()) for c in range(5)}
        owner = found.centre[found.edges[0]]
        assert torch.equal(owner, found.centre[found.edges[1]])
        assert torch.equal(found.node[found.edges], self.EDGES[:, found.edge])
        return members, {c: set(found.edge[owner == c].tolist()) for c in range(5)}

    def test_one_hop_spiderweb_keeps_edges_between_neighbours(self):
        members, edges = self.parts(num_hops=1)
        assert members == {0: {0, 1}, 1: {0, 1, 2, 4}, 2: {1, 2, 3, 4}, 3: {2, 3}, 4: {1, 2, 4}}
        assert edges == {0: {0}, 1: {0, 1, 3, 4}, 2: {1, 2, 3, 4}, 3: {2}, 4: {1, 3, 4}}

    def test_fireworks_keeps_edges_that_touch_the_centre(self):
        members, edges = self.parts(num_hops=1, connection="fireworks")
        assert members[1] == {0, 1, 2, 4}
        assert edges == {0: {0}, 1: {0, 1, 3}, 2: {1, 2, 4}, 3: {2}, 4: {3, 4}}

    def test_three_hops_reach_everything_here(self):
        members, edges = self.parts(num_hops=3)
        assert all(m == {0, 1, 2, 3, 4} for m in members.values())
        assert all(e == {0, 1, 2, 3, 4} for e in edges.values())

    def test_zero_hops_are_refused(self):
        with pytest.raises(InputError, match="num_hops: 0, expected 1 or more"):
            subgraphs(self.EDGES, 5, num_hops=0)


class TestGraph:
    POS = points((0, 0), (1, 0), (0, 1))

    def test_labels_default_to_unknown_and_confidence_to_one(self):
        graph = Graph(self.POS, pairs((0, 1)))
        assert graph.node_label.tolist() == [Label.UNKNOWN] * 3
        assert graph.edge_label.tolist() == [Label.UNKNOWN]
        assert graph.confidence.tolist() == [1, 1, 1]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"pos": torch.zeros(3, 3)}, r"pos: shape \(3, 3\), expected \(any, 2\)"),
            ({"pos": torch.zeros(3, 2).double()}, "pos: torch.float64, expected torch.float32"),
            ({"pos": points((0, 0), (math.nan, 0), (0, 1))}, "node 1: position .*nan.* expected finite"),
            ({"edges": pairs((1, 0))}, r"edge 0: \[1, 0\], expected the smaller node first"),
            ({"edges": pairs((0, 3))}, r"edge 0: joins nodes \[0, 3\], expected numbers from 0 to 2"),
            ({"edges": pairs((0, 1), (0, 1))}, "an edge is there twice"),
            ({"node_label": torch.tensor([0, 5, 1])}, "node_label 1: 5, expected 0 .* 1 .* or 2"),
            ({"edge_label": torch.tensor([-1])}, "edge_label 0: -1"),
            ({"confidence": torch.ones(2)}, r"confidence: shape \(2,\), expected \(3\)"),
        ],
    )
    def test_says_what_is_wrong(self, change, message):
        with pytest.raises(InputError, match=message):
            Graph(**{"pos": self.POS, "edges": pairs((0, 1)), **change})

    def test_subset_keeps_edges_between_kept_nodes(self):
        graph = Graph(
            points((0, 0), (1, 0), (2, 0), (3, 0)), pairs((0, 1), (1, 3), (2, 3)), edge_label=torch.tensor([0, 1, 2])
        )
        part = graph.subset(torch.tensor([False, True, True, True]))
        assert part.pos[:, 0].tolist() == [1, 2, 3]
        assert edge_set(part.edges) == {(0, 2), (1, 2)}
        assert part.edge_label.tolist() == [1, 2]

    def test_detection_outside_the_image_is_named(self):
        graph = Graph(points((3, 3), (12, 5)), pairs((0, 1)))
        with pytest.raises(InputError, match=r"detection 1 at x=12.0, y=5.0 lies outside the image of 10 x 20 pixels"):
            Sample("a", torch.zeros(1, 20, 10), graph)

    def test_annotation_must_have_the_images_size(self):
        with pytest.raises(InputError, match=r"annotation: shape \(10, 20\), expected the image's \(20, 10\)"):
            Sample("a", torch.zeros(1, 20, 10), Graph(self.POS, pairs()), torch.zeros(10, 20, dtype=torch.int64))


def test_labels_of_a_hand_drawn_mask():
    """Two bars with a gap of one column between them.

    ::

        ##.##      0 and 1 in the left bar, 2 in the right one, 3 in the gap
    """
    annotation = torch.zeros(5, 21, dtype=torch.int32)
    annotation[1:4, :10], annotation[1:4, 11:] = 1, 2
    pos = torch.tensor([[0.0, 2.0], [9.4, 2.0], [20.4, 2.0], [9.6, 2.0], [0.0, 0.4]])
    edges = torch.tensor([[0, 0, 1, 0, 0], [1, 2, 2, 3, 4]])
    graph = label_by_mask(Graph(pos, edges), annotation)
    assert graph.node_label.tolist() == [1, 1, 1, 0, 0]
    assert graph.edge_label.tolist() == [1, 0, 0, 0, 0]


class TestCandidates:
    def test_second_neighbours_in_line_are_joined(self):
        """A cross whose horizontal arm has a node in the middle, and whose vertical arm has none of its own."""
        pos = torch.tensor([[0, 0], [10, 0], [20, 0], [10, 12], [10, -12], [50, 0]], dtype=torch.float32)
        edges = torch.tensor([[0, 1, 1, 1, 2], [1, 2, 3, 4, 5]])
        assert second_neighbours(pos, edges, 25).T.tolist() == [[0, 2], [3, 4]]
        assert second_neighbours(pos, edges, 45).T.tolist() == [[0, 2], [1, 5], [3, 4]]
        assert second_neighbours(pos, edges, 15).shape == (2, 0)

    def test_no_edge_is_added_twice(self):
        pos = torch.tensor([[0, 0], [10, 1], [20, 0]], dtype=torch.float32)
        edges = torch.tensor([[0, 0, 1], [1, 2, 2]])
        assert second_neighbours(pos, edges, 100).shape == (2, 0)

    def test_added_edges_are_unknown_and_the_others_keep_their_labels(self):
        pos = torch.tensor([[0, 0], [10, 0], [20, 0], [30, 0]], dtype=torch.float32)
        graph = Graph(pos, torch.tensor([[0, 1, 2], [1, 2, 3]]), edge_label=torch.tensor([1, 0, 1]))
        whole, added = with_candidates(graph, 100)
        assert whole.edges.T.tolist() == [[0, 1], [0, 2], [1, 2], [1, 3], [2, 3]]
        assert whole.edge_label.tolist() == [1, 2, 0, 2, 1]
        assert added.tolist() == [False, True, False, True, False]

    @pytest.mark.parametrize("nodes", [0, 1, 2])
    def test_few_nodes_have_no_second_neighbours(self, nodes):
        pos = torch.arange(2 * nodes, dtype=torch.float32).reshape(nodes, 2)
        assert second_neighbours(pos, delaunay(pos), 100).shape == (2, 0)
