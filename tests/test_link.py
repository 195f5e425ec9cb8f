"""Linking: hand-drawn graphs with the exact filaments they are to give.

A drawing has one letter per node, 10 pixels a column and 20 pixels a row, and names its edges below; a filament is 20
pixels wide. Nodes are numbered by their letters. What is named is probable (.95), unless it says otherwise.
"""

import warnings
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_array

from grace_lightning.errors import InputError, InputWarning
from grace_lightning.graph import delaunay
from grace_lightning.link import Components, Filaments, Programme
from grace_lightning.link.solve import best
from grace_lightning.simulate import Simulator, image_generator


class Drawing:
    def __init__(self, picture, edges, doubtful="", edge_probability=None):
        places = {
            c: (10 * x, 20 * y) for y, row in enumerate(picture.split("\n")) for x, c in enumerate(row) if c.strip()
        }
        self.letters = sorted(places)
        number = {letter: k for k, letter in enumerate(self.letters)}
        self.pos = np.array([places[c] for c in self.letters], dtype=np.float32).reshape(-1, 2)
        pairs = [sorted(number[c] for c in pair) for pair in edges.split()]
        self.edges = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        self.node_probability = np.array([0.1 if c in doubtful else 0.95 for c in self.letters])
        special = {frozenset(pair): p for pair, p in (edge_probability or {}).items()}
        self.edge_probability = np.array([special.get(frozenset(pair), 0.95) for pair in edges.split()])

    def __call__(self, linker):
        return linker(self.pos, self.edges, self.node_probability, self.edge_probability)

    def names(self, filaments):
        """Filaments as words."""
        return ["".join(self.letters[n] for n in nodes) for nodes in filaments.nodes]


def linked(drawing, **parameters):
    return drawing.names(drawing(Programme(**parameters)))


def chain(letters):
    return " ".join(a + b for a, b in pairwise(letters))


def test_straight_chain():
    drawing = Drawing("a c e b d f", chain("acebdf"))
    filaments = drawing(Programme())

    assert drawing.names(filaments) == ["acebdf"]
    assert filaments.order.tolist() == [0, 1, 2, 3, 4, 5]
    assert filaments.filament.tolist() == [0] * 6
    assert not filaments.beside.any()
    assert filaments.closed.tolist() == [False]


CROSS = """
a       f
  b   g
    c
  h   d
i       e
"""


def test_two_filaments_cross_at_a_node_they_share():
    assert linked(Drawing(CROSS, "ab bc cd de fg gc ch hi")) == ["abcde", "ihcgf"]


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


def test_two_filaments_cross_between_nodes():
    """Candidates beyond Delaunay may cross."""
    assert linked(Drawing(OFF_NODE, f"{chain('abcdefghij')} {chain('klmnopqrst')}")) == ["abcdefghij", "tsrqponmlk"]


def test_a_filament_that_the_crossing_leaves_without_an_edge_is_joined():
    """Delaunay keeps one of two edges that cross: op is not there."""
    drawing = Drawing(OFF_NODE, f"{chain('abcdefghij')} {chain('klmno')} {chain('pqrst')}")

    assert linked(drawing) == ["abcdefghij", "tsrqponmlk"]
    assert linked(drawing, max_gap=0) == ["abcdefghij", "tsrqp", "onmlk"]


def test_two_filaments_that_seem_to_touch_and_part_again_cross():
    """Neither has an edge at the crossing, but ep and of join them to two that turn; their courses tell."""
    drawing = Drawing(OFF_NODE, f"{chain('abcde')} {chain('fghij')} {chain('klmno')} {chain('pqrst')} ep of")

    assert linked(drawing) == ["abcdefghij", "tsrqponmlk"]
    assert linked(drawing, max_gap=0) == ["abcdepqrst", "klmnofghij"]


BRANCH = """
a b c d e f g h
      i
      j
      k
      l
"""


def test_a_branch_is_a_filament_of_its_own():
    assert linked(Drawing(BRANCH, f"{chain('abcdefgh')} {chain('dijkl')}")) == ["abcdefgh", "dijkl"]


def circle(count, radius):
    turn = 2 * np.pi * np.arange(count) / count
    pos = np.stack([200 + radius * np.cos(turn), 200 + radius * np.sin(turn)], axis=1).astype(np.float32)
    ends = np.stack([np.arange(count), (np.arange(count) + 1) % count])
    return pos, np.sort(ends, axis=0), np.full(count, 0.95), np.full(count, 0.95)


@pytest.mark.parametrize("linker", [Programme(), Components()])
def test_a_circle_stays_closed(linker):
    pos, *rest = circle(24, 80)
    filaments = linker(pos, *rest)
    (nodes,) = filaments.nodes

    assert filaments.closed.tolist() == [True]
    assert sorted(nodes) == list(range(24))
    assert nodes[0] == pos[:, 0].argmin()
    assert set(np.diff(nodes) % 24) in ({1}, {23})


def test_a_circle_with_a_missing_detection_is_closed_across_the_gap():
    pos, edges, node, edge = circle(48, 160)
    keep = (edges != 5).all(axis=0)
    filaments = Programme()(pos, edges[:, keep], np.where(np.arange(48) == 5, 0.01, node), edge[keep])

    assert filaments.closed.tolist() == [True]
    assert sorted(filaments.node) == [k for k in range(48) if k != 5]


LADDER = """
a b c d e f g h
i j k l m n o p
"""


def test_touching_filaments_stay_apart_though_every_edge_between_them_is_positive():
    rungs = "ai bj ck dl em fn go hp ib jc kd le mf ng oh"
    drawing = Drawing(LADDER, f"{chain('abcdefgh')} {chain('ijklmnop')} {rungs}")

    assert linked(drawing) == ["abcdefgh", "ijklmnop"]


def test_a_gap_is_bridged_as_far_as_allowed():
    drawing = Drawing("a b c d e      f g h i j", f"{chain('abcde')} {chain('fghij')}")  # 70 pixels, 3.5 widths

    assert linked(drawing) == ["abcdefghij"]
    assert linked(drawing, max_gap=3.4) == ["abcde", "fghij"]


def test_a_gap_is_not_bridged_around_a_corner():
    picture = "a b c d e\n\n          f\n          g\n          h\n          i"

    assert linked(Drawing(picture, f"{chain('abcde')} {chain('fghi')}")) == ["abcde", "fghi"]


def test_a_path_takes_an_improbable_node_and_edge_where_both_sides_speak_for_it():
    weak = {"de": 0.2, "ef": 0.2}
    drawing = Drawing("a b c d e f g h i", chain("abcdefghi"), doubtful="e", edge_probability=weak)

    assert linked(drawing, max_gap=0) == ["abcdefghi"]
    assert linked(drawing, max_gap=0, min_probability=0.3) == ["abcd", "fghi"]


def test_improbable_edges_are_no_path():
    drawing = Drawing(
        "a b c d e f g h i", chain("abcdefghi"), edge_probability=dict.fromkeys(chain("abcdefghi").split(), 0.05)
    )

    assert linked(drawing, min_length=0) == []


def test_short_paths_go():
    drawing = Drawing("a b c d e f\n\n\ng h i j", f"{chain('abcdef')} {chain('ghij')}")

    assert linked(drawing) == ["abcdef", "ghij"]
    assert linked(drawing, min_length=3.1) == ["abcdef"]


def test_filaments_go_that_are_doubtful_beside_others():
    """Six nodes of .75 gain more than two ends cost; beside nodes of .95 they are doubtful, alone they are not."""
    drawing = Drawing("a b c d e f\n\n\n\ng h i j k l", f"{chain('abcdef')} {chain('ghijkl')}")
    drawing.node_probability[6:] = 0.75

    assert linked(drawing) == ["abcdef"]
    assert linked(drawing, min_relative_probability=0.8) == ["abcdef", "ghijkl"]
    drawing.node_probability[7:] = 0.95
    assert linked(drawing) == ["abcdef", "ghijkl"]
    drawing.node_probability[:] = 0.75
    assert linked(drawing) == ["abcdef", "ghijkl"]


def test_edges_alone_may_speak_for_a_filament():
    drawing = Drawing("a b c d e f g h i j", chain("abcdefghij"))
    drawing.node_probability[:] = 0
    drawing.edge_probability[:] = 1

    assert linked(drawing, max_edge_gain=9.0) == ["abcdefghij"]


def test_points_beside_a_path_join_it_in_order():
    """Within 10 pixels of the path, before its beginning too; a doubtful one does not."""
    drawing = Drawing("xa bycz d e f", chain("abcdef"), doubtful="z")
    drawing.pos[drawing.letters.index("y"), 1] = 9
    filaments = drawing(Programme())

    assert drawing.names(filaments) == ["xabycdef"]
    assert filaments.beside.tolist() == [True, False, False, True, False, False, False, False]
    assert [len(path) for path in filaments.paths] == [6]

    drawing.pos[drawing.letters.index("y"), 1] = 11
    assert linked(drawing) == ["xabcdef"]


def test_a_node_near_two_paths_is_in_both():
    drawing = Drawing(CROSS.replace("c", "cx"), "ab bc cd de fg gx xh hi")

    assert linked(drawing) == ["abcxde", "ihcxgf"]


def test_a_path_beside_a_longer_one_is_swallowed():
    """Two rows of detections on one thick filament."""
    row = np.arange(12)
    pos = np.concatenate(
        [np.stack([20 * row, 0 * row], axis=1), np.stack([20 * row[:8] + 50, 0 * row[:8] + 9], axis=1)]
    )
    edges = np.array([[k, k + 1] for k in [*range(11), *range(12, 19)]]).T
    filaments = Programme()(pos.astype(np.float32), edges, np.full(20, 0.95), np.full(18, 0.95))

    assert len(filaments) == 1
    assert filaments.paths[0].tolist() == list(range(12))
    assert sorted(filaments.node) == list(range(20))


@pytest.mark.parametrize("linker", [Programme(), Components()])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_nothing_to_link(linker, count):
    filaments = linker(torch.zeros(count, 2), torch.zeros(2, 0, dtype=torch.int64), torch.ones(count), torch.ones(0))

    assert len(filaments) == 0
    assert filaments.nodes == filaments.paths == []
    for column in (filaments.filament, filaments.node, filaments.order):
        assert column.dtype == np.int64
        assert column.shape == (0,)


def test_tensors_and_arrays_give_the_same():
    drawing = Drawing(CROSS, "ab bc cd de fg gc ch hi")
    tensors = [
        torch.from_numpy(a)
        for a in (drawing.pos, drawing.edges, drawing.node_probability.astype(np.float32), drawing.edge_probability)
    ]

    assert drawing.names(Programme()(*tensors)) == drawing.names(drawing(Programme()))


def equal(a: Filaments, b: Filaments):
    return all(np.array_equal(getattr(a, f), getattr(b, f)) for f in ("filament", "node", "beside", "closed"))


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
    number = np.argsort(order)
    turned = np.sort(number[edges], axis=0)
    shuffle = rng.permutation(edges.shape[1])
    after = linker(pos[order], turned[:, shuffle], tone[order], edge[shuffle])

    assert equal(before, Filaments(after.filament, order[after.node], after.beside, after.closed))


def simulated(seed):
    simulator = Simulator(num_filaments=8, shapes=("line",), p_touching=0.0, num_blobs=0, p_carbon=0.0)
    simulation = simulator("crossing", image_generator(seed, "crossing"))
    graph = simulation.sample.graph
    return simulation, (graph.pos, graph.edges, graph.node_label.float(), graph.edge_label.float())


@pytest.mark.parametrize("seed", [1, 2])
def test_crossing_lines_are_told_apart(seed):
    simulation, arrays = simulated(seed)
    found = [set(nodes.tolist()) for nodes in Programme()(*arrays).nodes]
    best = [max(len(f & set(t)) / len(f | set(t)) for f in found) for t in simulation.instances.values()]

    assert len(best) == len(found) == 8
    assert min(best) > 0.5


def test_passing_of_the_time_limit_is_said():
    _, (pos, edges, node, edge) = simulated(0)

    with pytest.warns(
        InputWarning, match=r"time_limit: 1e-06 s passed before .* parts of the graph, .* Raise time_limit"
    ):
        Programme(time_limit=1e-6)(pos, edges, node, edge)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Programme()(pos, edges, node, edge)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0}, "scale: 0, expected pixels above 0"),
        ({"end_cost": -1.0}, "end_cost: -1.0, expected 0 or more"),
        ({"bend_cost": float("nan")}, "bend_cost: nan, expected more than 0"),
        ({"min_probability": 0.0}, "min_probability: 0.0, expected a probability above 0 and below 1"),
        ({"min_relative_probability": 1.1}, "min_relative_probability: 1.1, expected 0 to 1"),
        ({"time_limit": 0.0}, "time_limit: 0.0, expected seconds above 0"),
    ],
)
def test_parameters_out_of_range_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        Programme(**change)


@pytest.mark.parametrize("change", [{"threshold": 1.5}, {"min_nodes": 0}])
def test_components_refuse_parameters_out_of_range(change):
    with pytest.raises(InputError, match=next(iter(change))):
        Components(**change)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "node_probability",
            np.array([0.5, np.nan, 0.5]),
            "node_probability 1: nan, expected a probability from 0 to 1",
        ),
        ("edge_probability", np.array([0.5, 1.5]), "edge_probability 1: 1.5, expected a probability from 0 to 1"),
        ("edge_probability", np.array([0.5]), r"edge_probability: shape \(1,\), expected \(2,\)"),
        ("edges", np.array([[0, 1], [1, 3]]), r"edge 1: joins \[1, 3\], expected two nodes from 0 to 2"),
        ("pos", np.array([[0, 0], [np.inf, 0], [1, 1]]), "pos: node 1 is not at finite pixels"),
    ],
)
def test_arrays_that_make_no_sense_are_refused(name, value, message):
    arrays = {
        "pos": np.zeros((3, 2)),
        "edges": np.array([[0, 1], [1, 2]]),
        "node_probability": np.full(3, 0.5),
        "edge_probability": np.full(2, 0.5),
    }
    with pytest.raises(InputError, match=message):
        Components()(**{**arrays, name: value})


def test_detections_at_one_place_do_no_harm():
    pos = np.array([[0, 0], [20, 0], [40, 0], [40, 0], [60, 0], [80, 0]], dtype=np.float32)
    edges = np.array([[0, 1], [1, 2], [2, 3], [3, 4], [2, 4], [4, 5]]).T
    filaments = Programme()(pos, edges, np.full(6, 0.95), np.full(6, 0.95))

    assert len(filaments) == 1
    assert set(filaments.node) == set(range(6))


def test_components_keep_branches_together():
    drawing = Drawing(BRANCH, f"{chain('abcdefgh')} {chain('dijkl')}")

    assert drawing.names(drawing(Components())) == ["lkjidefghcba"]


def test_components_need_probable_nodes_and_edges():
    drawing = Drawing("a b c d e f g", chain("abcdefg"), doubtful="e", edge_probability={"bc": 0.4})

    assert drawing.names(drawing(Components())) == ["ab", "cd", "fg"]
    assert drawing.names(drawing(Components(threshold=0.3))) == ["abcd", "fg"]
    assert drawing.names(drawing(Components(min_nodes=3))) == []
    assert drawing.names(drawing(Components(min_nodes=1, threshold=0.94))) == ["ab", "cd", "fg"]


def test_repr_tells_the_parameters():
    assert repr(Components(min_nodes=3)) == "Components(threshold=0.5, min_nodes=3)"
    assert repr(Programme()).startswith("Programme(scale=20.0, end_cost=4.0, ")


# ---- ends whose probability is known --------------------------------------------------------------------------------


def line(count, start, step):
    """Nodes in a row."""
    return np.asarray(start, dtype=np.float64) + np.arange(count)[:, None] * np.asarray(step, dtype=np.float64)


def known_ends(parts, joints, likely):
    """Linked paths, each as the numbers of its nodes, of nodes in rows joined one to the next and by ``joints``."""
    pos = np.concatenate(parts).astype(np.float32)
    first = np.cumsum([0, *(len(part) for part in parts)])
    pairs = [(a + k, a + k + 1) for a, part in zip(first, parts, strict=False) for k in range(len(part) - 1)] + joints
    edges = np.array(pairs, dtype=np.int64).T
    end = np.full(len(pos), 0.02)
    end[likely] = 0.95
    sure = np.full(len(pos), 0.95), np.full(edges.shape[1], 0.95)
    found = Programme()(pos, edges, *sure, end)
    return sorted(sorted(nodes.tolist()) for nodes in found.paths)


TRUNK = line(20, (0, 0), (0, 20))
SIDE = line(10, (190, 30), (-20, 20))  # comes down to the trunk's twelfth node at an acute angle


def test_a_branch_goes_on_along_the_trunk_unless_it_is_likely_to_end_there():
    joints = [(11, 29)]
    trunk, branch = list(range(20)), list(range(20, 30))
    assert known_ends([TRUNK, SIDE], joints, [0, 19, 20]) == [trunk, [*range(11, 20), *branch]]
    ends_there = known_ends([TRUNK, SIDE], joints, [0, 19, 20, 29, 11])
    assert trunk in ends_there
    assert [n for n in ends_there[1] if n >= 20] == branch
    assert len(ends_there[1]) <= len(branch) + 1


def test_where_ends_are_likely_filaments_meet_without_going_on_in_one_another():
    """A row with a bend of a right angle: one filament, unless two are likely to end at the bend."""
    down, across = line(8, (0, 0), (0, 20)), line(8, (20, 150), (20, 0))
    joints = [(7, 8)]
    assert known_ends([down, across], joints, [0, 15]) == [list(range(16))]
    one, other = known_ends([down, across], joints, [0, 15, 7, 8])
    assert one == list(range(8))
    assert other in ([*range(8, 16)], [*range(7, 16)])


def test_a_likely_end_has_to_be_a_probability():
    pos, edges = line(3, (0, 0), (20, 0)), np.array([[0, 1], [1, 2]])
    with pytest.raises(InputError, match=r"end_probability 1: 1.5, expected a probability from 0 to 1"):
        Programme()(pos, edges, np.ones(3), np.ones(2), np.array([0, 1.5, 0]))
    with pytest.raises(InputError, match=r"end_probability: shape \(2,\), expected \(3,\)"):
        Programme()(pos, edges, np.ones(3), np.ones(2), np.ones(2))


def shared(further, ends=(0, 19), num_nodes=20):
    """A row of nodes, and the probabilities that a second filament, a third, ... passes them."""
    pos = line(num_nodes, (0, 0), (20, 0)).astype(np.float32)
    edges = np.stack([np.arange(num_nodes - 1), np.arange(1, num_nodes)])
    end = np.full(num_nodes, 0.02)
    end[list(ends)] = 0.95
    found = Programme()(pos, edges, np.full(num_nodes, 0.95), np.full(num_nodes - 1, 0.95), end, further)
    return sorted(sorted(nodes.tolist()) for nodes in found.nodes)


def test_so_many_filaments_run_in_one_another_as_are_probable():
    whole = list(range(20))
    never, always = np.full(20, 0.02), np.full(20, 0.98)
    assert shared(None) == [whole]
    assert shared(np.stack([never, never], axis=1)) == [whole]
    assert shared(np.stack([always, never], axis=1)) == [whole] * 2
    assert shared(always[:, None]) == [whole] * 2
    assert shared(np.stack([always, always], axis=1)) == [whole] * 3


def test_a_filament_that_runs_in_another_ends_where_a_second_one_is_no_longer_probable():
    second = np.where(np.arange(20) < 12, 0.98, 0.02)[:, None]
    one, other = shared(second, ends=(0, 11, 19))
    assert other == list(range(20))
    assert one[0] == 0
    assert abs(one[-1] - 11) <= 1
    assert one == list(range(len(one)))


def test_further_filaments_have_to_be_probable_per_node():
    with pytest.raises(InputError, match=r"further_probability 3: -1.0, expected a probability from 0 to 1"):
        shared(np.where(np.arange(20) == 3, -1.0, 0.5)[:, None])
    with pytest.raises(InputError, match=r"further_probability: shape \(20,\), expected \(20, 1\)"):
        shared(np.ones(20))


def test_large_parts_do_without_their_least_probable_edges():
    """A part of 3,000 nodes: its chains, of edges at .95, stay; the rungs between, at .06, are not asked for."""
    chains = [line(1000, (0, y), (20, 0)) for y in (0, 60, 120)]
    pos = np.concatenate(chains).astype(np.float32)
    rows = np.arange(3000).reshape(3, 1000)
    along = np.stack([rows[:, :-1].ravel(), rows[:, 1:].ravel()])
    rungs = np.stack([rows[:-1].ravel(), rows[1:].ravel()])
    probability = np.repeat([0.95, 0.06], [along.shape[1], rungs.shape[1]])
    found = Programme()(pos, np.concatenate([along, rungs], axis=1), np.full(3000, 0.95), probability)
    assert sorted(sorted(nodes.tolist()) for nodes in found.nodes) == rows.tolist()


def best_of(gain, exclusive):
    """The best of amounts of which some exclude one another; a further one, which is 1, stands for the right side."""
    count = len(gain)
    rows = np.zeros((len(exclusive), count + 1))
    for row, columns in zip(rows, exclusive, strict=True):
        row[list(columns)], row[-1] = 1, -1
    least = np.arange(count + 1) == count
    found, sure = best(
        np.append(gain, 0.0), csc_array(rows), None, 10.0, whole=np.ones(count + 1, dtype=bool), least=least.astype(int)
    )
    assert sure
    return found[:-1].tolist()


@pytest.mark.parametrize(
    ("gain", "taken"), [([3.0, 2.0, 1.0], [1, 0, 0]), ([1.0, 2.5, 2.0], [0, 1, 0]), ([-1.0, -1.0, 1.0], [0, 0, 1])]
)
def test_fractions_are_no_solution_of_a_programme(gain, taken):
    """With fractions, half of each of three that exclude one another would be better than one of them."""
    assert best_of(gain, [(0, 1), (1, 2), (0, 2)]) == taken


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 9), st.sampled_from([0.3, 3.0, 30.0]))
def test_no_other_whole_amounts_are_better(seed, count, scale):
    """All of them, tried one by one; gaps to the best fractions are small or large against what is kept."""
    rng = np.random.default_rng(seed)
    gain = scale * rng.normal(0.3, 1, count)
    exclusive = [rng.choice(count, 2, replace=False) for _ in range(2 * count)]
    every = np.array(list(product((0, 1), repeat=count)))
    allowed = every[[all(amounts[list(pair)].sum() <= 1 for pair in exclusive) for amounts in every]]
    assert gain @ best_of(gain, exclusive) == pytest.approx((allowed @ gain).max())
