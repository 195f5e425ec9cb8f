import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import Delaunay, KDTree

from grace_lightning.graph import (
    Graph,
    Label,
    delaunay,
    distinct,
    edge_geometry,
    encode_geometry,
    from_detections,
    inside_image,
    subgraphs,
)


def points(*xy):
    return torch.tensor(xy, dtype=torch.float32).reshape(-1, 2)


def pairs(*edges):
    return torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T


def edge_set(edges):
    return {tuple(e) for e in edges.T.tolist()}


class TestDelaunay:
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
    @settings(max_examples=20)
    def test_does_not_depend_on_the_order_even_on_a_grid(self, rows, columns, random):
        pos = torch.cartesian_prod(torch.arange(float(columns)), torch.arange(float(rows)))
        order = torch.tensor(random.sample(range(len(pos)), len(pos)))
        found = order[delaunay(pos[order])].sort(dim=0).values
        assert edge_set(found) == edge_set(delaunay(pos))


def test_detections_at_one_place_are_one_node():
    pos = points((9, 2), (5, 5), (9, 2), (1, 1), (5, 5), (9, 2))
    graph, place = from_detections(pos, torch.arange(6.0))
    assert place.tolist() == [0, 1, 0, 2, 1, 0]
    assert graph.pos.tolist() == [[9, 2], [5, 5], [1, 1]]
    assert graph.confidence.tolist() == [0, 1, 3]
    assert edge_set(graph.edges) == {(0, 1), (0, 2), (1, 2)}


def test_of_detections_near_each_other_the_most_confident_is_the_node():
    pos = points((0, 0), (1, 0), (9, 9), (9, 8.5), (2.2, 0))
    rows, place = distinct(pos, 1.5, torch.tensor([0.3, 0.9, 0.5, 0.2, 0.1]))
    assert rows.tolist() == [1, 2]
    assert place.tolist() == [0, 0, 1, 1, 0]
    rows, place = distinct(pos, 1.5, torch.tensor([0.9, 0.3, 0.5, 0.2, 0.8]))
    assert rows.tolist() == [0, 2, 4]
    assert place.tolist() == [0, 0, 1, 1, 2]  # (1, 0) is nearer to (0, 0)


@given(st.integers(0, 2**31), st.sampled_from([3, 200, 3000]), st.floats(0.5, 20), st.booleans())
@settings(max_examples=30)
def test_detections_are_thinned_to_a_distance_whatever_their_order(seed, count, radius, scored):
    generator = torch.Generator().manual_seed(seed)
    pos = torch.rand(count, 2, generator=generator) * 100
    score = (torch.rand(count, generator=generator) * 5).floor() if scored else None
    rows, place = distinct(pos, radius, score)
    away, nearest = KDTree(pos[rows]).query(pos)
    assert np.array_equal(nearest, place)
    assert away.max() <= radius
    assert not KDTree(pos[rows]).query_pairs(radius)
    order = torch.randperm(count, generator=generator)
    again, place_again = distinct(pos[order], radius, None if score is None else score[order])
    assert torch.equal(order[again].sort().values, rows)
    assert torch.equal(order[again][place_again], rows[place[order]])


@pytest.mark.parametrize("score", [None, torch.arange(1000.0)])
def test_dense_detections_along_a_line_do_not_become_one(score):
    line = torch.stack([0.4 * torch.arange(1000.0), torch.zeros(1000)], dim=1)
    rows, _ = distinct(line, 1.5, score)
    assert line[rows, 0].diff().max() <= 3
    assert len(distinct(torch.rand(5000, 2), 1.5)[0]) == 1


def test_an_image_reaches_half_a_pixel_beyond_the_centres_of_its_border():
    pos = points((-0.5, -0.5), (9.5, 19.5), (-0.6, 3), (9.6, 3), (3, 19.6))
    assert inside_image(pos, (20, 10)).tolist() == [True, True, False, False, False]


class TestGeometry:
    #      2              north
    #    / | \
    #   0--+--1           edge 0-1 lies level, 2 above it, 3 below it
    #    \ | /
    #      3              south
    POS = points((0, 10), (20, 10), (10, 0), (10, 14))
    EDGES = pairs((0, 1), (0, 2), (0, 3), (1, 2), (1, 3))
    MEAN = (20 + 2 * math.hypot(10, 10) + 2 * math.hypot(10, 4)) / 5

    def test_lengths_are_over_the_mean_and_a_level_edge_runs_east_with_south_on_its_right(self):
        geometry = edge_geometry(self.POS, self.EDGES)
        long, short, up, down = math.hypot(10, 10), math.hypot(10, 4), math.atan2(10, 10), math.atan2(4, 10)
        lengths = torch.tensor([20, long, short, long, short]) / self.MEAN
        orient = torch.tensor([0, up, math.pi - down, math.pi - up, down])
        torch.testing.assert_close(geometry[:, :2], torch.stack([lengths, orient], dim=1))
        right, left = ([v / self.MEAN for v in sides] for sides in ((4, short, short), (10, long, long)))
        half = math.pi / 2
        assert geometry[0, 2:].tolist() == pytest.approx([right[0], half, *right[1:], left[0], half, *left[1:]])

    def test_south_and_north_are_told_by_y_and_sides_by_x(self):
        # upright edge 0-1 with 0 in the south; 2 lies to the east near the north end
        geometry = edge_geometry(points((5, 20), (5, 0), (8, 4)), pairs((0, 1), (0, 2), (1, 2)))
        mean = (20 + math.hypot(3, 16) + 5) / 3
        east = [math.hypot(3, 6) / mean, math.atan2(3, 6), math.hypot(3, 16) / mean, 5 / mean]
        assert geometry[0].tolist() == pytest.approx([20 / mean, math.pi / 2, *east, 0, 0, 0, 0])

    def test_an_edge_without_triangles_and_no_edge(self):
        assert edge_geometry(points((0, 0), (3, 4)), pairs((0, 1)))[0, [0, *range(2, 10)]].tolist() == [1] + [0] * 8
        assert edge_geometry(points((1, 2)), pairs()).shape == (0, 10)

    def test_neighbours_are_the_delaunay_triangles(self):
        pos = torch.rand(120, 2, generator=torch.Generator().manual_seed(1)) * 500
        edges, xy = delaunay(pos), pos.double().numpy()
        geometry, triangles = edge_geometry(pos, edges), Delaunay(xy).simplices
        assert (geometry[:, [2, 6]] > 0).sum() == 3 * len(triangles)
        # distances to the third corners, summed over all sides of all triangles
        sides = xy[triangles] - xy[np.roll(triangles, 1, axis=1)]
        mean = (pos[edges[0]] - pos[edges[1]]).norm(dim=1).mean().item()
        total = 2 * np.linalg.norm(sides, axis=2).sum()
        assert geometry[:, [4, 5, 8, 9]].sum().item() * mean == pytest.approx(total, rel=1e-5)

    def test_encoding_flags_missing_neighbours_and_forgets_the_direction_of_an_edge(self):
        encoded = encode_geometry(edge_geometry(self.POS, self.EDGES))
        assert encoded.shape == (5, 15)
        assert encoded[0, [8, 14]].tolist() == [1, 1]
        assert (encoded[1:, [8, 14]].sum(dim=1) == 1).all()
        assert encoded[0, :3].tolist() == pytest.approx([math.log(20 / self.MEAN), 1, 0])
        turned = edge_geometry(self.POS, self.EDGES)
        turned[:, 1] += math.pi
        torch.testing.assert_close(encode_geometry(turned), encoded)


class TestSubgraphs:
    #  0 - 1 - 2 - 3
    #      | /
    #      4
    EDGES = pairs((0, 1), (1, 2), (2, 3), (1, 4), (2, 4))

    @pytest.mark.parametrize(
        ("connection", "expected"),
        [
            ("spiderweb", {0: {0}, 1: {0, 1, 3, 4}, 2: {1, 2, 3, 4}, 3: {2}, 4: {1, 3, 4}}),  # edges between neighbours
            ("fireworks", {0: {0}, 1: {0, 1, 3}, 2: {1, 2, 4}, 3: {2}, 4: {3, 4}}),  # edges that touch the centre
        ],
    )
    def test_one_hop(self, connection, expected):
        found = subgraphs(self.EDGES, 5, num_hops=1, connection=connection)
        owner, other = found.centre[found.edges]
        assert torch.equal(owner, other)
        assert torch.equal(found.node[found.edges], self.EDGES[:, found.edge])
        members = {c: set(found.node[found.centre == c].tolist()) for c in range(5)}
        assert members == {0: {0, 1}, 1: {0, 1, 2, 4}, 2: {1, 2, 3, 4}, 3: {2, 3}, 4: {1, 2, 4}}
        assert {c: set(found.edge[owner == c].tolist()) for c in range(5)} == expected


def test_neighbourhoods_that_have_everything_grow_no_further():
    pos = torch.rand(100, 2, generator=torch.Generator().manual_seed(0))
    found = subgraphs(delaunay(pos), 100, num_hops=10**9)
    assert found.node.tolist() == 100 * list(range(100))


def test_labels_of_one_head_leave_the_others_alone_and_are_unknown_before():
    first = Graph(torch.zeros(4, 2), pairs((0, 1), (1, 3), (2, 3)))
    second = first.with_labels(end=torch.tensor([1, 0, 0, 1]), edge=torch.tensor([0, 1, 1]))
    third = second.with_labels(node=torch.tensor([1, 1, 0, 0]))
    unknown = Label.UNKNOWN.value
    assert third.node_label.T.tolist() == [[1, 1, 0, 0], [1, 0, 0, 1], [unknown] * 4, [unknown] * 4]
    assert third.edge_label.T.tolist() == [[0, 1, 1], [unknown] * 3]
    assert (first.node_label == unknown).all()
    assert first.confidence.tolist() == [1, 1, 1, 1]
