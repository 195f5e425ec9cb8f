import dataclasses
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
    RandomNoise,
    RandomXYTranslation,
    absent_pairs,
    blank_band,
    flip,
    rotate,
    translate,
)
from grace_lightning.errors import InputError
from grace_lightning.graph import Graph, Label, Sample, from_detections


@pytest.fixture
def sample():
    generator = torch.Generator().manual_seed(0)
    pos = torch.rand(30, 2, generator=generator) * torch.tensor([79.0, 49.0])
    graph, _ = from_detections(pos)
    graph = dataclasses.replace(graph, node_label=torch.arange(30) % 3, edge_label=torch.arange(graph.num_edges) % 3)
    image = torch.rand(1, 50, 80, generator=generator)
    return Sample("a", image, graph, torch.randint(0, 4, (50, 80), generator=generator))


def frozen(sample):
    return [t.clone() for t in (sample.image, sample.annotation, *vars(sample.graph).values()) if t is not None]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(frozen(first), frozen(second), strict=True))


@pytest.mark.parametrize(
    "step",
    [
        RandomCopyPaste(p=1, scale=3),
        RandomXYTranslation(max_shift=5),
        RandomEdgeAdditionAndRemoval(p_add=0.3, p_remove=0.3),
        RandomImageGraphRotate(rot_center=[10, 20], rot_angle_range=[20, 40]),
        RandomFlip(p_horizontal=1, p_vertical=0.5),
        RandomIntensity(max_gain=0.5, max_offset=1),
        RandomNoise(max_deviation=1),
        RandomBlur(max_sigma=3),
    ],
    ids=repr,
)
class TestOnSamples:
    def test_changes_a_copy_only(self, step, sample):
        torch.manual_seed(0)
        before = frozen(sample)
        changed = step(sample)
        assert not same(changed, sample) if changed.graph.num_nodes == sample.graph.num_nodes else True
        assert all(torch.equal(a, b) for a, b in zip(before, frozen(sample), strict=True))

    def test_draws_anew_and_repeats_with_the_seed(self, step, sample):
        torch.manual_seed(1)
        first, second = step(sample), step(sample)
        torch.manual_seed(1)
        assert same(step(sample), first)
        assert first.graph.num_nodes != second.graph.num_nodes or not same(first, second)


@pytest.mark.parametrize(
    "step",
    [
        RandomXYTranslation(max_shift=0),
        RandomEdgeAdditionAndRemoval(p_add=0, p_remove=0),
        RandomImageGraphRotate(rot_angle_range=[0, 0]),
        RandomFlip(p_horizontal=0, p_vertical=0),
        RandomIntensity(max_gain=0, max_offset=0),
        RandomNoise(max_deviation=0),
        RandomBlur(max_sigma=0),
    ],
    ids=repr,
)
def test_strength_zero_is_the_identity(step, sample):
    assert same(step(sample), sample)


class TestTranslation:
    def test_shifts_stay_within_the_bound_and_reach_far(self, sample):
        torch.manual_seed(0)
        moved = RandomXYTranslation(max_shift=3)(sample).graph.pos - sample.graph.pos
        assert moved.abs().max() <= 3
        assert moved.abs().max() > 2.5
        assert moved.unique(dim=0).shape[0] == 30  # each node on its own

    def test_nodes_stay_in_the_image(self):
        graph = Graph(torch.tensor([[0.0, 0.0], [9.0, 4.0]]), torch.tensor([[0], [1]]))
        moved = translate(graph, torch.tensor([[-5.0, 1.0], [2.0, 2.0]]), (5, 10))
        assert moved.pos.tolist() == [[0, 1], [9, 4]]


class TestEdges:
    def test_added_edges_are_new_unequal_and_unknown(self, sample):
        before = {tuple(e) for e in sample.graph.edges.T.tolist()}
        count = sample.graph.num_edges
        graph = RandomEdgeAdditionAndRemoval(p_add=0.5, p_remove=0.25)(sample).graph
        added = round(0.5 * count)
        kept, new = graph.edges[:, :-added], graph.edges[:, -added:]
        assert kept.shape[1] == count - round(0.25 * count)
        assert {tuple(e) for e in kept.T.tolist()} < before
        fresh = {tuple(e) for e in new.T.tolist()}
        assert len(fresh) == added
        assert not fresh & before
        assert all(a < b for a, b in fresh)
        assert graph.edge_label[-added:].unique().tolist() == [Label.UNKNOWN]

    def test_kept_edges_keep_their_labels(self, sample):
        graph = RandomEdgeAdditionAndRemoval(p_add=0, p_remove=0.5)(sample).graph
        label = dict(zip(map(tuple, sample.graph.edges.T.tolist()), sample.graph.edge_label.tolist(), strict=True))
        assert [label[tuple(e)] for e in graph.edges.T.tolist()] == graph.edge_label.tolist()

    def test_all_edges_can_go(self, sample):
        assert RandomEdgeAdditionAndRemoval(p_add=0, p_remove=1)(sample).graph.num_edges == 0

    def test_a_nearly_complete_graph_gets_what_is_left(self):
        edges = torch.tensor([[0, 0, 0, 1, 1], [1, 2, 3, 2, 3]])
        assert absent_pairs(edges, 4, 5).T.tolist() == [[2, 3]]
        assert absent_pairs(torch.zeros(2, 0, dtype=torch.int64), 1, 3).shape == (2, 0)


class TestRotation:
    @pytest.mark.parametrize("angle", [30.0, 90.0, -75.0, 180.0, 211.0])
    def test_carries_a_bright_pixel_with_its_node_about_an_off_centre_point(self, angle):
        center = [40.0, 22.0]
        image = torch.zeros(1, 50, 80)
        image[0, 18:21, 47:50] = 1  # a spot about x 48, y 19
        graph = Graph(torch.tensor([[48.0, 19.0], [40.0, 22.0]]), torch.tensor([[0], [1]]))
        turned = rotate(Sample("a", image, graph, (image[0] > 0).long()), angle, center)
        assert turned.image.shape == image.shape
        x, y = turned.graph.pos[0].tolist()
        # counter-clockwise on the screen, y down
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        assert (x, y) == pytest.approx((40 + cos * 8 + sin * -3, 22 - sin * 8 + cos * -3), abs=1e-4)
        assert turned.graph.pos[1].tolist() == pytest.approx(center)
        for picture in (turned.image[0], turned.annotation.float()):
            rows, columns = torch.meshgrid(torch.arange(50.0), torch.arange(80.0), indexing="ij")
            near = (columns - x).abs().maximum((rows - y).abs()) < 4  # further off lie reflections
            picture = picture * near
            mass = picture.sum()
            assert mass > 6
            assert ((picture * columns).sum() / mass).item() == pytest.approx(x, abs=0.35)
            assert ((picture * rows).sum() / mass).item() == pytest.approx(y, abs=0.35)

    def test_quarter_turn_of_a_square_image_is_exact(self):
        image = torch.rand(1, 21, 21)
        graph, _ = from_detections(torch.tensor([[3.0, 4.0], [10.0, 10.0], [18.0, 2.0]]))
        turned = rotate(Sample("a", image, graph), 90)
        assert torch.allclose(turned.image, torch.rot90(image, 1, (1, 2)), atol=1e-4)
        assert torch.allclose(turned.graph.pos[0], torch.tensor([4.0, 17.0]), atol=1e-4)

    def test_nodes_that_leave_the_image_go_with_their_edges(self):
        pos = torch.tensor([[2.0, 10.0], [50.0, 10.0], [97.0, 10.0]])
        graph = Graph(pos, torch.tensor([[0, 1], [1, 2]]), node_label=torch.tensor([0, 1, 0]))
        turned = rotate(Sample("a", torch.zeros(1, 20, 100), graph), 90)
        assert turned.graph.node_label.tolist() == [1]
        assert turned.graph.num_edges == 0

    def test_annotation_keeps_its_numbers(self, sample):
        turned = rotate(sample, 33)
        assert turned.annotation.dtype == sample.annotation.dtype
        assert set(turned.annotation.unique().tolist()) <= {0, 1, 2, 3}

    def test_a_full_turn_is_the_identity(self, sample):
        assert same(rotate(sample, 360), sample)


class TestFlip:
    @pytest.mark.parametrize(("horizontal", "vertical"), [(True, False), (False, True), (True, True)])
    def test_pixels_labels_and_nodes_move_together_exactly(self, sample, horizontal, vertical):
        sample = sample.replace(graph=translate(sample.graph, sample.graph.pos.round() - sample.graph.pos, (50, 80)))
        flipped = flip(sample, horizontal=horizontal, vertical=vertical)
        assert not torch.equal(flipped.image, sample.image)
        for before, after in ((sample.image[0], flipped.image[0]), (sample.annotation, flipped.annotation)):
            (x, y), (u, v) = sample.graph.pos.long().T, flipped.graph.pos.long().T
            assert torch.equal(before[y, x], after[v, u])
        assert same(flip(flipped, horizontal=horizontal, vertical=vertical), sample)


class TestPixels:
    def test_intensity_is_a_gain_and_an_offset(self, sample):
        torch.manual_seed(0)
        before, after = sample.image.flatten(), RandomIntensity(0.3, 0.5)(sample).image.flatten()
        gain = (after[1] - after[0]) / (before[1] - before[0])
        assert 0.7 <= gain <= 1.3
        assert gain != 1
        offset = after - gain * before
        assert offset.std() < 1e-3
        assert offset.abs().max() <= 0.5 * before.std() + 1e-3

    def test_noise_is_no_stronger_than_asked(self, sample):
        torch.manual_seed(0)
        added = torch.stack([(RandomNoise(0.5)(sample).image - sample.image).std() for _ in range(50)])
        assert added.max() < 0.52 * sample.image.std()
        assert added.max() > 0.4 * sample.image.std()
        assert added.min() < 0.1 * sample.image.std()

    def test_blur_keeps_the_mean_and_lowers_the_deviation(self, sample):
        torch.manual_seed(0)
        blurred = RandomBlur(3)(sample).image
        assert blurred.mean().item() == pytest.approx(sample.image.mean().item(), abs=0.02)
        assert blurred.std() < 0.5 * sample.image.std()


class TestEdgeCrop:
    def test_blanks_one_band_per_patch_at_the_drawn_side(self):
        patches = torch.arange(16.0).reshape(1, 1, 4, 4).repeat(5, 1, 1, 1)
        blanked = blank_band(patches, torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 2, 1, 3, 0]))
        changed = blanked[:, 0] != patches[:, 0]
        assert changed[0].all(1).tolist() == [True, False, False, False]
        assert changed[1].all(1).tolist() == [False, False, True, True]
        assert changed[2].all(0).tolist() == [True, False, False, False]
        assert changed[3].all(0).tolist() == [False, True, True, True]
        assert not changed[4].any()
        assert blanked[changed[:, None]].unique().tolist() == [7.5]

    def test_bands_are_no_wider_than_asked(self):
        patches = torch.rand(500, 1, 20, 20)
        before = patches.clone()
        torch.manual_seed(0)
        blanked = RandomEdgeCrop(max_fraction=0.25)(patches)
        blank = (blanked != before).flatten(1).float().mean(1)
        assert blank.max() == 0.25
        assert torch.equal(patches, before)

    def test_strength_zero_is_the_identity(self):
        patches = torch.rand(10, 1, 8, 8)
        assert torch.equal(RandomEdgeCrop(max_fraction=0)(patches), patches)


def test_reprs_tell_the_parameters():
    assert repr(RandomEdgeCrop(max_fraction=0.2)) == "RandomEdgeCrop(max_fraction=0.2)"
    assert repr(RandomXYTranslation(max_shift=3)) == "RandomXYTranslation(max_shift=3)"


def test_composition_applies_each_step_where_it_belongs_and_skips_null(sample):
    both = Augmentation({"a": RandomXYTranslation(4), "b": None, "c": RandomEdgeCrop(1.0)})
    assert [type(s) for s in both.on_sample] == [RandomXYTranslation]
    assert [type(s) for s in both.on_patches] == [RandomEdgeCrop]
    assert not same(both.sample(sample), sample)
    assert not Augmentation({"a": None})
    assert same(Augmentation({}).sample(sample), sample)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomXYTranslation(-1), "max_shift: -1, expected 0 or more"),
        (lambda: RandomNoise(-1), "max_deviation: -1, expected 0 or more"),
        (lambda: RandomEdgeAdditionAndRemoval(p_add=2), "p_add: 2, expected a fraction"),
        (lambda: RandomEdgeCrop(-0.1), "max_fraction: -0.1"),
        (lambda: RandomImageGraphRotate(rot_center=[1]), "rot_center"),
        (lambda: RandomImageGraphRotate(rot_angle_range=[10, -10]), "rot_angle_range"),
    ],
)
def test_impossible_parameters_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
