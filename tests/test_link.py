"""Linking: hand-drawn graphs with the exact filaments they are to give.

A drawing has one letter per node, 10 pixels a column and 20 pixels a row, and names its edges below; a filament is 20
pixels wide. Nodes are numbered by their letters. What is named is probable (.95), but capitals are not (.1), nor are
edges whose probability is given.
"""

import time
from itertools import combinations, pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_lightning.errors import InputError, InputWarning
from grace_lightning.graph import delaunay
from grace_lightning.link import Components, Programme
from grace_lightning.link.solve import _meeting_pairs, best_paths
from grace_lightning.simulate import Simulator, image_generator


class Drawing:
    def __init__(self, picture, edges):
        places = {
            c: (10 * x, 20 * y) for y, row in enumerate(picture.split("\n")) for x, c in enumerate(row) if c.strip()
        }
        self.letters = sorted(places, key=str.lower)
        words = [word.partition("=") for word in edges.split()]
        self.pos = np.array([places[c] for c in self.letters], dtype=np.float32)
        self.edges = np.array([sorted(map(self.letters.index, pair)) for pair, *_ in words]).T
        self.node_probability = np.array([0.1 if c.isupper() else 0.95 for c in self.letters])
        self.edge_probability = np.array([float(p or 0.95) for *_, p in words])

    def __call__(self, linker, ends=None, further=None):
        end = None if ends is None else np.array([0.95 if c in ends else 0.02 for c in self.letters])
        return linker(self.pos, self.edges, self.node_probability, self.edge_probability, end, further)


def linked(drawing, linker, *more):
    """Return the members of the filaments as words."""
    return ["".join(drawing.letters[n] for n in filament.members) for filament in drawing(linker, *more)]


def chain(letters):
    return " ".join(a + b for a, b in pairwise(letters))


def line(count, start, step):
    """Return positions of nodes in a row."""
    return np.array(start, dtype=np.float64) + np.arange(count)[:, None] * step


def test_straight_chain():
    drawing = Drawing("a c e b d f", chain("acebdf"))
    drawing.node_probability[drawing.letters.index("c")] = 0.75
    (filament,) = drawing(Programme())

    assert filament.node.tolist() == filament.members.tolist() == [0, 2, 4, 1, 3, 5]
    assert filament.path.tolist() == [[0, 0], [20, 0], [40, 0], [60, 0], [80, 0], [100, 0]]
    assert filament.score.tolist() == np.float32([0.95, 0.75, 0.95, 0.95, 0.95, 0.95]).tolist()
    assert filament.closed is False


CROSS = """
a       f
  b   g
    c
  h   d
i       e
"""
OFF_NODE = """
a                   k
  b               l
    c           m
      d       n
        e   o

        p   f
      q       g
    r           h
  s               i
t                   j
"""
BRANCH = """
a b c d e f g h
      i
      j
      k
      l
"""
CORNER = """
a b c d e

          f
          g
          h
          i
"""
ONE, OTHER, HALVES = chain("abcdefghij"), chain("klmnopqrst"), f"{chain('klmno')} {chain('pqrst')}"
IN_TWO, SHORT = f"{chain('abcde')} {chain('fghij')}", f"{chain('abcdef')} {chain('ghij')}"
TWIG = f"{chain('abcdefgh')} {chain('dijkl')}"
TURNING = f"{IN_TWO} {HALVES} ep of"
LADDER = f"{chain('abcdefgh')} {chain('ijklmnop')} ai bj ck dl em fn go hp ib jc kd le mf ng oh"
WEAK = "ab bc=.4 cd dE Ef fg"


@pytest.mark.parametrize(
    ("picture", "edges", "linker", "filaments"),
    [
        (CROSS, "ab bc cd de fg gc ch hi", Programme(), "abcde ihcgf"),
        (CROSS.replace("c", "cx"), "ab bc cd de fg gx xh hi", Programme(), "abcxde ihcxgf"),
        (OFF_NODE, f"{ONE} {OTHER}", Programme(), "abcdefghij tsrqponmlk"),
        # Delaunay keeps one of two edges that cross: op is not there.
        (OFF_NODE, f"{ONE} {HALVES}", Programme(), "abcdefghij tsrqponmlk"),
        (OFF_NODE, f"{ONE} {HALVES}", Programme(max_gap=0), "abcdefghij tsrqp onmlk"),
        # Neither has an edge at the crossing, but ep and of join them to two that turn; their courses tell.
        (OFF_NODE, TURNING, Programme(), "abcdefghij tsrqponmlk"),
        (OFF_NODE, TURNING, Programme(max_gap=0), "abcdepqrst klmnofghij"),
        (BRANCH, TWIG, Programme(), "abcdefgh dijkl"),
        (BRANCH, TWIG, Components(), "lkjidefghcba"),
        # Filaments that touch: every edge between them is positive.
        ("a b c d e f g h\ni j k l m n o p", LADDER, Programme(), "abcdefgh ijklmnop"),
        # A gap of 70 pixels, 3.5 widths, and a gap around a corner.
        ("a b c d e      f g h i j", IN_TWO, Programme(), "abcdefghij"),
        ("a b c d e      f g h i j", IN_TWO, Programme(max_gap=3.4), "abcde fghij"),
        (CORNER, f"{chain('abcde')} {chain('fghi')}", Programme(), "abcde fghi"),
        ("a b c d e f\n\n\ng h i j", SHORT, Programme(), "abcdef ghij"),
        ("a b c d e f\n\n\ng h i j", SHORT, Programme(min_length=3.1), "abcdef"),
        # Both sides speak for the improbable node and its edges.
        ("a b c d E f g h i", "ab bc cd dE=.2 Ef=.2 fg gh hi", Programme(max_gap=0), "abcdEfghi"),
        ("a b c d E f g h i", "ab bc cd dE=.2 Ef=.2 fg gh hi", Programme(max_gap=0, min_probability=0.3), "abcd fghi"),
        ("a b c d e f", "ab=.05 bc=.05 cd=.05 de=.05 ef=.05", Programme(min_length=0), ""),
        ("a b c d E f g", WEAK, Components(), "ab cd fg"),
        ("a b c d E f g", WEAK, Components(threshold=0.3), "abcd fg"),
        ("a b c d E f g", WEAK, Components(min_nodes=3), ""),
        ("a b c d E f g", WEAK, Components(min_nodes=1, threshold=0.94), "ab cd fg"),
    ],
)
def test_drawings(picture, edges, linker, filaments):
    assert linked(Drawing(picture, edges), linker) == filaments.split()


def circle(count, radius):
    number = np.arange(count)
    turn = 2 * np.pi * number / count
    pos = 200 + radius * np.stack([np.cos(turn), np.sin(turn)], axis=1).astype(np.float32)
    ends = np.sort([number, (number + 1) % count], axis=0)
    return pos, ends, np.full(count, 0.95), np.full(count, 0.95)


@pytest.mark.parametrize("linker", [Programme(), Components()])
def test_a_circle_stays_closed(linker):
    pos, *rest = circle(24, 80)
    (filament,) = linker(pos, *rest)
    nodes = filament.members

    assert filament.closed
    assert sorted(nodes) == list(range(24))
    assert nodes[0] == pos[:, 0].argmin()
    assert set(np.diff(nodes) % 24) in ({1}, {23})


def test_a_circle_with_a_missing_detection_is_closed_across_the_gap():
    pos, edges, node, edge = circle(48, 160)
    keep = (edges != 5).all(axis=0)
    node[5] = 0.01
    (filament,) = Programme()(pos, edges[:, keep], node, edge[keep])

    assert filament.closed
    assert sorted(filament.members) == [k for k in range(48) if k != 5]


def test_filaments_go_that_are_doubtful_beside_others():
    """Six nodes of .75 gain more than two ends cost; beside nodes of .95 they are doubtful, alone they are not."""
    drawing = Drawing("a b c d e f\n\n\n\ng h i j k l", f"{chain('abcdef')} {chain('ghijkl')}")
    drawing.node_probability[6:] = 0.75

    assert linked(drawing, Programme()) == ["abcdef"]
    assert linked(drawing, Programme(min_relative_probability=0.8)) == ["abcdef", "ghijkl"]
    assert linked(drawing, Programme(min_relative_probability=0.0, min_filament_probability=0.8)) == ["abcdef"]
    drawing.node_probability[7:] = 0.95
    assert linked(drawing, Programme()) == ["abcdef", "ghijkl"]
    drawing.node_probability[:] = 0.75
    assert linked(drawing, Programme()) == ["abcdef", "ghijkl"]


def test_edges_alone_may_speak_for_a_filament():
    drawing = Drawing("a b c d e f g h i j", chain("abcdefghij"))
    drawing.node_probability[:] = 0
    drawing.edge_probability[:] = 1

    assert linked(drawing, Programme(end_cost=0, min_probability=0.3)) == ["abcdefghij"]


def test_points_beside_a_path_join_it_in_order():
    """Within 10 pixels of the path, before its beginning too; a doubtful one does not."""
    drawing = Drawing("xa bycZ d e f", chain("abcdef"))
    drawing.pos[drawing.letters.index("y"), 1] = 9
    (filament,) = drawing(Programme())

    assert [drawing.letters[k] for k in filament.members] == list("xabycdef")
    assert [drawing.letters[k] for k in filament.node] == list("abcdef")
    drawing.pos[drawing.letters.index("y"), 1] = 11
    assert linked(drawing, Programme()) == ["xabcdef"]


def test_a_path_beside_a_longer_one_is_swallowed():
    """Two rows of detections on one thick filament."""
    pos = np.concatenate([line(12, (0, 0), (20, 0)), line(8, (50, 9), (20, 0))])
    edges = np.array([[k, k + 1] for k in [*range(11), *range(12, 19)]]).T
    (filament,) = Programme()(pos.astype(np.float32), edges, np.full(20, 0.95), np.full(18, 0.95))

    assert filament.node.tolist() == list(range(12))
    assert sorted(filament.members) == list(range(20))


@pytest.mark.parametrize("linker", [Programme(), Components()])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_nothing_to_link(linker, count):
    none = torch.zeros(2, 0, dtype=torch.int64)
    assert linker(torch.zeros(count, 2), none, torch.ones(count), torch.ones(0)) == []


def plain(filaments, number):
    """Return filaments as lists, their nodes named by ``number``."""
    return [(f.path.tolist(), number[f.node].tolist(), number[f.members].tolist(), f.closed) for f in filaments]


@pytest.mark.parametrize("linker", [Programme(min_length=1), Components()], ids=["Programme", "Components"])
@given(seed=st.integers(0, 2**31), count=st.integers(2, 60), grid=st.booleans())
@settings(max_examples=25, deadline=None)
def test_renumbering_renumbers_and_nothing_else(linker, seed, count, grid):
    rng = np.random.default_rng(seed)
    pos = rng.uniform(0, 150, (count, 2)).astype(np.float32)
    if grid:  # with many ties
        pos = np.unique((pos // 20 * 20), axis=0)
        count = len(pos)
    edges = delaunay(torch.from_numpy(pos)).numpy()
    tone = rng.choice([0.2, 0.9], count) if grid else rng.uniform(size=count)
    edge = np.sqrt(tone[edges[0]] * tone[edges[1]])
    before = linker(pos, edges, tone, edge)

    order = rng.permutation(count)  # the new node k is the old node order[k]
    turned = np.sort(np.argsort(order)[edges], axis=0)
    shuffle = rng.permutation(edges.shape[1])
    after = linker(pos[order], turned[:, shuffle], tone[order], edge[shuffle])

    assert plain(after, order) == plain(before, np.arange(count))


@pytest.mark.parametrize("seed", [1, 2])
def test_crossing_lines_are_told_apart(seed):
    simulator = Simulator(num_filaments=8, shapes=("line",), p_touching=0.0, num_blobs=0, p_carbon=0.0)
    simulation = simulator("crossing", image_generator(seed, "crossing"))
    graph = simulation.sample.graph
    linked = Programme()(graph.pos, graph.edges, graph.label("node").float(), graph.label("edge").float())
    found = [set(filament.members.tolist()) for filament in linked]
    best_iou = [max(len(f & set(t)) / len(f | set(t)) for f in found) for t in simulation.instances.values()]

    assert len(best_iou) == len(found) == 8
    assert min(best_iou) > 0.5


def test_passing_of_the_time_limit_is_said():
    message = r"time_limit: 1e-06 s passed before .* parts of the graph, .* Raise time_limit"
    with pytest.warns(InputWarning, match=message):
        linked(Drawing(CROSS, "ab bc cd de fg gc ch hi"), Programme(time_limit=1e-6))


def star(count, beside=0.6):
    """Return a hub with so many neighbours all around it; two of its edges, which lie in a line, are probable."""
    turn = 2 * np.pi * np.arange(count) / count
    pos = np.concatenate([[[0, 0]], 60 * np.stack([np.cos(turn), np.sin(turn)], axis=1)])
    edges = np.stack([np.zeros(count, dtype=int), np.arange(1, count + 1)])
    probability = np.where(np.isin(edges[1], [1, 1 + count // 2]), 0.95, beside)
    return pos.astype(np.float32), edges, np.append(0.95, probability), probability


@pytest.mark.parametrize("count", [4, 64, 4000])
def test_a_hub_of_many_edges_is_passed_straight_on_and_in_time(count):
    (filament,) = Programme()(*star(count))  # or a warning says that time passed
    assert set(filament.node) == {0, 1, 1 + count // 2}


def test_the_most_probable_edges_at_a_node_may_go_on_in_one_another():
    for count, expected in ((64, 64 * 63 // 2), (65, 64 * 63 // 2)):
        pos, edges, _, probability = star(count)
        node, pairs, _ = _meeting_pairs(pos, edges, probability, 30.0, 10.0)
        assert (node == 0).all()
        assert len(np.unique(pairs, axis=1).T) == len(node) == expected
        assert {0, count // 2} <= {*pairs.ravel()}


def test_the_largest_part_comes_last_so_that_the_others_have_their_time(monkeypatch):
    def counted(pos, edges, *rest, **more):
        asked.append(len(pos))
        return best_paths(pos, edges, *rest, **more)

    asked = []
    monkeypatch.setattr("grace_lightning.link.programme.best_paths", counted)
    pos = np.concatenate([line(700, (0, 0), (20, 0)), line(400, (0, 400), (20, 0))])
    edges = np.array([[k, k + 1] for k in [*range(699), *range(700, 1099)]]).T
    Programme()(pos.astype(np.float32), edges, np.full(1100, 0.95), np.full(1098, 0.95))
    assert asked == [400, 700]


@pytest.mark.parametrize(
    ("linker", "change", "message"),
    [
        (Programme, {"end_cost": -1.0}, "end_cost: -1.0, expected 0 or more"),
        (Programme, {"bend_cost": float("nan")}, "bend_cost: nan, expected more than 0"),
        (Programme, {"turn_cost": float("inf")}, "link.turn_cost: inf, expected at most 1e"),
        (Programme, {"min_probability": 1.0}, "min_probability: 1.0, expected less than 1"),
        (Programme, {"min_relative_probability": 1.1}, "min_relative_probability: 1.1, expected 0 to 1"),
        (Programme, {"min_filament_probability": 80.0}, "min_filament_probability: 80.0, expected 0 to 1"),
        (Components, {"threshold": 1.5}, "threshold: 1.5, expected a probability from 0 to 1"),
        (Components, {"min_nodes": 0}, "min_nodes: 0, expected 1 or more"),
    ],
)
def test_parameters_out_of_range_are_refused(linker, change, message):
    with pytest.raises(InputError, match=message):
        linker(**change)


def test_detections_at_one_place_do_no_harm():
    pos = np.array([[0, 0], [20, 0], [40, 0], [40, 0], [60, 0], [80, 0]], dtype=np.float32)
    edges = np.array([[0, 1], [1, 2], [2, 3], [3, 4], [2, 4], [4, 5]]).T
    (filament,) = Programme()(pos, edges, np.full(6, 0.95), np.full(6, 0.95))

    assert set(filament.members) == set(range(6))


JOINED = """
a b c d e f g h i j k l m n o p
            x
          w
        v
      u
    t
  s
r
"""
JOINING = f"{chain('abcdefghijklmnop')} {chain('rstuvwxh')}"
BENT = "a\nb\nc\nd\ne\nf\ng\nh\n  i j k l m n o p"


@pytest.mark.parametrize(
    ("picture", "edges", "ends", "filaments"),
    [
        # A branch goes on along the trunk unless it is likely to end there.
        (JOINED, JOINING, "apr", "abcdefghijklmnop rstuvwxhijklmnop"),
        (JOINED, JOINING, "aprxh", "abcdefghijklmnop rstuvwxh"),
        # A bend of a right angle: one filament, unless two are likely to end there.
        (BENT, chain("abcdefghijklmnop"), "ap", "abcdefghijklmnop"),
        (BENT, chain("abcdefghijklmnop"), "aphi", "abcdefgh ijklmnop"),
    ],
)
def test_likely_ends(picture, edges, ends, filaments):
    assert linked(Drawing(picture, edges), Programme(), ends) == filaments.split()


ROW = "abcdefghijklmnopqrst"


@pytest.mark.parametrize(
    ("further", "count"), [(None, 1), ([0.02, 0.02], 1), ([0.98, 0.02], 2), ([0.98], 2), ([0.98, 0.98], 3)]
)
def test_so_many_filaments_run_in_one_another_as_are_probable(further, count):
    found = linked(Drawing(" ".join(ROW), chain(ROW)), Programme(), "at", further and np.tile(further, (20, 1)))
    assert found == [ROW] * count


def test_a_filament_that_runs_in_another_ends_where_a_second_one_is_no_longer_probable():
    second = np.where(np.arange(20) < 12, 0.98, 0.02)[:, None]
    assert linked(Drawing(" ".join(ROW), chain(ROW)), Programme(), "alt", second) == [ROW[:12], ROW]


def test_large_parts_do_without_their_least_probable_edges():
    """A part of 2,100 nodes: its chains, of edges at .95, stay; the rungs between, at .06, are not asked for."""
    pos = np.concatenate([line(700, (0, y), (20, 0)) for y in (0, 60, 120)])
    rows = np.arange(2100).reshape(3, 700)
    along = np.stack([rows[:, :-1].ravel(), rows[:, 1:].ravel()])
    rungs = np.stack([rows[:-1].ravel(), rows[1:].ravel()])
    probability = np.repeat([0.95, 0.06], [along.shape[1], rungs.shape[1]])
    found = Programme()(pos, np.concatenate([along, rungs], axis=1), np.full(2100, 0.95), probability)

    assert sorted(sorted(filament.members.tolist()) for filament in found) == rows.tolist()


def value(taken, triples, pos, edges, edge_gain, node_gain, end_cost, bend_cost, crossing_cost, jitter):
    """Return the gain of edges of which some go on in one another, by the formula of Programme's docstring."""
    at = np.bincount(edges[:, taken].ravel(), minlength=len(pos))
    pairs = np.bincount(np.array([node for _, node, _ in triples], dtype=int), minlength=len(pos))
    passes = at - pairs
    total = edge_gain[taken].sum() + node_gain[passes > 0].sum() - ((at - 2 * pairs) * end_cost).sum()
    for before, node, after in triples:
        one, other = pos[node] - pos[before], pos[after] - pos[node]
        lengths = np.hypot(*one), np.hypot(*other)
        bend = np.arccos(np.clip(one @ other / np.prod(lengths), -1, 1))
        total -= bend_cost * np.tan(bend / 2) ** 2 / (1 + np.mean([(jitter / length) ** 2 for length in lengths]))
    total -= np.maximum(crossing_cost, -node_gain)[passes == 2].sum()
    return total if passes.max(initial=0) <= 2 else -np.inf


def pairings(some):
    """Return all ways to choose pairs out of some things, each thing once at most."""
    pairs = list(combinations(some, 2))
    ways = [way for count in range(len(some) // 2 + 1) for way in combinations(pairs, count)]
    return [way for way in ways if len(set(sum(way, ()))) == 2 * len(way)]


def choices(edges):
    """Yield all sets of edges, each with all ways to go on from edge to edge, as triples of nodes."""
    for amounts in product((False, True), repeat=edges.shape[1]):
        taken = np.flatnonzero(amounts)
        near = [[a + b - node for a, b in edges[:, taken].T.tolist() if node in (a, b)] for node in range(5)]
        for chosen in product(*map(pairings, near)):
            yield taken, [(a, node, b) for node, pairs in enumerate(chosen) for a, b in pairs]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(3, 6), st.sampled_from([0.3, 3.0]))
def test_no_other_paths_gain_more(seed, count, strength):
    rng = np.random.default_rng(seed)
    pos = rng.uniform(0, 60, (5, 2))
    every = np.array([(a, b) for b in range(5) for a in range(b)]).T
    edges = every[:, np.sort(rng.choice(10, count, replace=False))]
    gains = strength * rng.normal(0.5, 1, count), strength * rng.normal(0, 1, 5), rng.uniform(0, 2 * strength, 5)
    costs = {"bend_cost": 3.0, "crossing_cost": 0.3, "jitter": 10.0}
    found, sure = best_paths(pos, edges, *gains, time.monotonic() + 10, **costs)

    assert sure
    steps = [tuple(sorted(step)) for path in found for step in pairwise(path.vertices.tolist())]
    assert len(set(steps)) == len(steps)
    taken = [edges.T.tolist().index(list(step)) for step in steps]
    rounds = [[*path.vertices, *path.nodes[1 : 1 + path.closed]] for path in found]
    triples = [triple for nodes in rounds for triple in zip(nodes, nodes[1:], nodes[2:], strict=False)]
    greatest = max(value(*choice, pos, edges, *gains, **costs) for choice in choices(edges))
    assert value(np.array(taken, dtype=int), triples, pos, edges, *gains, **costs) == pytest.approx(greatest)
