import math

import pytest
import torch

from grace_lightning.augment import (
    Augmentation,
    RandomBlur,
    RandomCopyPaste,
    RandomEdgeAdditionAndRemoval,
    RandomEdgeCrop,
    RandomFlip,
    RandomImageGraphRotate,
    RandomIntensity,
    RandomMagnification,
    RandomNoise,
    RandomXYTranslation,
)
from grace_lightning.errors import InputError
from grace_lightning.graph import Graph, Label, Sample, from_detections
from grace_lightning.truth import with_truth


@pytest.fixture
def sample():
    """An image of noise, detections anywhere, labels and an annotation of three objects at random."""
    generator = torch.Generator().manual_seed(0)
    graph, _ = from_detections(torch.rand(30, 2, generator=generator) * torch.tensor([79.0, 49.0]), torch.arange(30.0))
    graph = graph.with_labels(node=torch.arange(30) % 3, edge=torch.arange(graph.num_edges) % 3)
    image, annotation = (torch.rand(1, 50, 80, generator=generator), torch.randint(0, 4, (50, 80), generator=generator))
    return with_truth(Sample("a", image, graph, annotation))


def parts(sample):
    return [t.clone() for t in (sample.image, sample.annotation, *vars(sample.graph).values()) if t is not None]


def alike(first, second):
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "step",
    [
        RandomCopyPaste(p=1, scale=3),
        RandomXYTranslation(max_shift=5),
        RandomEdgeAdditionAndRemoval(p_add=0.3, p_remove=0.3),
        RandomImageGraphRotate(rot_center=[10, 20], rot_angle_range=[20, 40]),
        RandomFlip(p_horizontal=1, p_vertical=0.5),
        RandomMagnification(max_factor=1.5),
        RandomIntensity(max_gain=0.5, max_offset=1),
        RandomNoise(max_deviation=1),
        RandomBlur(max_sigma=3),
    ],
    ids=repr,
)
def test_steps_change_a_copy_draw_anew_and_repeat_with_the_seed(step, sample):
    before = parts(sample)
    torch.manual_seed(0)
    first, second = parts(step(sample)), parts(step(sample))
    torch.manual_seed(0)
    assert alike(parts(step(sample)), first)
    assert not alike(first, second)
    assert not alike(first, before)
    assert alike(parts(sample), before)


def test_strength_zero_is_the_identity(sample):
    turns = [RandomImageGraphRotate(rot_angle_range=[angle, angle]) for angle in (0, 360)]
    steps = [RandomXYTranslation(0), RandomEdgeAdditionAndRemoval(0, 0), RandomFlip(0, 0), RandomIntensity(0, 0)]
    steps.append(RandomMagnification(1))
    for step in (*turns, *steps, RandomNoise(0), RandomBlur(0)):
        assert alike(parts(step(sample)), parts(sample)), step


def test_detections_move_up_to_the_bound_each_on_its_own(sample):
    torch.manual_seed(0)
    moved = RandomXYTranslation(max_shift=3)(sample).graph.pos - sample.graph.pos
    assert 2.5 < moved.abs().max() <= 3
    assert len(moved.unique(dim=0)) == 30
    x, y = RandomXYTranslation(max_shift=60)(sample).graph.pos.T
    assert (x.min(), x.max(), y.min(), y.max()) == (0, 79, 0, 49)


def test_added_edges_are_new_and_unknown_and_kept_ones_keep_their_labels(sample):
    labels = dict(zip(map(tuple, sample.graph.edges.T.tolist()), sample.graph.edge_label.tolist(), strict=True))
    graph = RandomEdgeAdditionAndRemoval(p_add=0.5, p_remove=0.25)(sample).graph
    pairs, added = [tuple(pair) for pair in graph.edges.T.tolist()], round(0.5 * len(labels))
    assert len(set(pairs)) == len(pairs) == added + len(labels) - round(0.25 * len(labels))
    assert [labels[pair] for pair in pairs[:-added]] == graph.edge_label[:-added].tolist()
    assert not set(pairs[-added:]) & set(labels)
    assert all(first < second for first, second in pairs)
    assert (graph.edge_label[-added:] == Label.UNKNOWN).all()


def test_a_nearly_complete_graph_gets_what_is_left(sample):
    graph = Graph(sample.graph.pos[:4], torch.tensor([[0, 0, 0, 1, 1], [1, 2, 3, 2, 3]]))
    assert RandomEdgeAdditionAndRemoval(1, 0)(sample.replace(graph=graph)).graph.edges[:, 5:].tolist() == [[2], [3]]
    single = Graph(sample.graph.pos[:1], graph.edges[:, :0])
    assert RandomEdgeAdditionAndRemoval(1, 0)(sample.replace(graph=single)).graph.num_edges == 0


def rotate(sample, angle, center=None):
    return RandomImageGraphRotate(center, [angle, angle])(sample)


class TestRotation:
    @pytest.mark.parametrize("angle", [30.0, 90.0, -75.0, 180.0, 211.0])
    def test_pixels_annotation_and_nodes_turn_together_about_a_point(self, sample, angle):
        rows, columns = torch.meshgrid(torch.arange(50.0), torch.arange(80.0), indexing="ij")
        image, annotation = torch.stack([columns, rows]), (columns + 80 * rows).to(torch.int16)
        turned = rotate(sample.replace(image=image, annotation=annotation), angle, [40.0, 22.0])
        kept = turned.graph.confidence.long()  # the fixture's scores are the nodes' numbers
        assert 5 < len(kept) < 30
        assert torch.equal(turned.graph.node_label, sample.graph.node_label[kept])
        # counter-clockwise on the screen, y down
        cos, sin, (x, y) = math.cos(math.radians(angle)), math.sin(math.radians(angle)), sample.graph.pos[kept].T
        expected = torch.stack([40 + cos * (x - 40) + sin * (y - 22), 22 + cos * (y - 22) - sin * (x - 40)])
        assert torch.allclose(turned.graph.pos.T, expected, atol=1e-4)
        column, row = turned.graph.pos.round().long().T
        seen = turned.image[:, row, column]
        assert (seen - torch.stack([x, y])).norm(dim=0).max() <= 2**0.5 + 1e-3  # two roundings to whole pixels
        assert turned.annotation.dtype == torch.int16
        assert torch.equal(turned.annotation[row, column], (seen[0] + 80 * seen[1]).to(torch.int16))

    def test_a_quarter_turn_is_exact_and_nodes_that_leave_the_image_go_with_their_edges(self, sample):
        pos, inner = torch.tensor([[2.0, 10.0], [50.0, 10.0], [77.0, 10.0]]), slice(15, 65)
        graph = Graph(pos, torch.tensor([[0, 1], [1, 2]])).with_labels(node=torch.tensor([0, 1, 0]))
        turned = rotate(sample.replace(graph=graph), 90)  # about (39.5, 24.5)
        assert torch.equal(turned.image[..., inner], torch.rot90(sample.image[..., inner], 1, (1, 2)))
        assert torch.allclose(turned.graph.pos, torch.tensor([[25.0, 14.0]]), atol=1e-4)
        assert turned.graph.label("node").tolist() == [1]
        assert (turned.graph.num_edges, turned.truth) == (0, None)  # numbers of nodes hold no more


@pytest.mark.parametrize(("horizontal", "vertical"), [(1, 0), (0, 1), (1, 1)])
def test_flips_move_pixels_annotation_and_nodes_together_exactly(sample, horizontal, vertical):
    pos = sample.graph.pos.round()
    sample = sample.replace(graph=Graph(pos, sample.graph.edges))
    flipped = RandomFlip(horizontal, vertical)(sample)
    (x, y), (u, v) = pos.long().T, flipped.graph.pos.long().T
    assert torch.equal(flipped.image, sample.image.flip([-1] * horizontal + [-2] * vertical))
    assert torch.equal(flipped.image[0, v, u], sample.image[0, y, x])
    assert torch.equal(flipped.annotation[v, u], sample.annotation[y, x])


def test_magnification_takes_nodes_along_and_leaves_labels(sample):
    torch.manual_seed(0)
    sizes = set()
    for _ in range(20):
        larger = RandomMagnification(1.5)(sample)
        factor = (larger.graph.pos[0, 0] + 0.5) / (sample.graph.pos[0, 0] + 0.5)
        assert 1 / 1.5 <= factor <= 1.5
        assert torch.allclose(larger.graph.pos + 0.5, (sample.graph.pos + 0.5) * factor, rtol=1e-4)
        assert (
            larger.image.shape[1:] == larger.annotation.shape == tuple(int(n * factor) for n in sample.image.shape[1:])
        )
        assert larger.graph.node_label is sample.graph.node_label
        sizes.add(larger.image.shape)
    assert len(sizes) > 10


def test_grey_values_change_no_more_than_asked(sample):
    torch.manual_seed(0)
    before, after = sample.image.flatten(), RandomIntensity(0.3, 0.5)(sample).image.flatten()
    gain = (after[1] - after[0]) / (before[1] - before[0])
    assert 0 < abs(gain - 1) <= 0.3
    offset = after - gain * before
    assert offset.std() < 1e-3
    assert offset.abs().max() <= 0.5 * before.std() + 1e-3
    added = torch.stack([(RandomNoise(0.5)(sample).image - sample.image).std() for _ in range(50)]) / before.std()
    assert added.min() < 0.1
    assert 0.4 < added.max() < 0.52
    blurred = RandomBlur(3)(sample).image
    assert blurred.mean().item() == pytest.approx(before.mean().item(), abs=0.02)
    assert blurred.std() < 0.5 * before.std()


@pytest.mark.parametrize("largest", [0, 0.25])
def test_one_band_of_each_patch_is_blanked_and_no_wider_than_asked(largest):
    torch.manual_seed(0)
    patches = torch.rand(500, 1, 20, 20)
    changed = RandomEdgeCrop(largest)(patches)
    masks = (changed != patches)[:, 0]
    assert torch.allclose(changed[:, 0][masks], patches.mean(dim=(2, 3)).expand(500, 400).view(500, 20, 20)[masks])
    widths = torch.arange(1 + int(20 * largest))
    tops = (torch.arange(20) < widths[:, None])[:, :, None].expand(-1, 20, 20)
    bands = torch.cat([tops.rot90(side, (1, 2)) for side in range(4)])
    found = (masks[:, None] == bands).all(dim=(2, 3))
    assert found.any(dim=0).all()  # every width at every side
    assert found.any(dim=1).all()  # and nothing else


def test_composition_applies_each_step_where_it_belongs_and_skips_null(sample):
    both = Augmentation({"a": RandomXYTranslation(4), "b": None, "c": RandomEdgeCrop(1.0)})
    changed, patches = both.sample(sample), torch.rand(9, 1, 8, 8)
    assert torch.equal(changed.image, sample.image)
    assert not torch.equal(changed.graph.pos, sample.graph.pos)
    assert not torch.equal(both.patches(patches), patches)
    assert repr(both.patches) == "[RandomEdgeCrop(max_fraction=1.0)]"
    none = Augmentation({"a": None})
    assert (bool(both), bool(none), bool(none.patches)) == (True, False, False)
    assert none.sample(sample) is sample


@pytest.mark.parametrize(
    ("step", "keys", "message"),
    [
        (RandomMagnification, {"max_factor": 0.5}, "max_factor: 0.5, expected a factor from 1 to 10"),
        (RandomXYTranslation, {"max_shift": -1}, "max_shift: -1, expected 0 or more"),
        (RandomEdgeAdditionAndRemoval, {"p_add": 2}, "p_add: 2, expected a fraction"),
        (RandomImageGraphRotate, {"rot_center": [1]}, "rot_center"),
        (RandomImageGraphRotate, {"rot_angle_range": [10, -10]}, "rot_angle_range"),
        (RandomCopyPaste, {"max_copies": 0}, "max_copies: 0, .*expected 1 or more"),
        (RandomCopyPaste, {"scale": 0.0}, "scale: 0.0, expected .* above 0"),
    ],
)
def test_impossible_parameters_are_refused(step, keys, message):
    with pytest.raises(InputError, match=message):
        step(**keys)
