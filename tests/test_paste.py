"""Copies of filaments within their image: three lines, of which copies are laid beside and across each other."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.spatial import KDTree

from grace_lightning.augment import Augmentation, RandomCopyPaste, RandomFlip
from grace_lightning.graph import Label, Sample, TruthSource, from_detections
from grace_lightning.raster import draw_path, values_at
from grace_lightning.truth import label_by_mask, with_truth

SHAPE, SCALE, STEP = (260, 300), 10.0, 8.0
LINES = np.array([[[30, 40], [200, 60]], [[60, 220], [150, 100]], [[220, 230], [250, 120]]], dtype=float)


def annotated(*, instances=True, numbered=True, polarity=1.0):
    """Three lines that stand out by 5, noise of 1, detections every 8 px along them, and false ones."""
    rng = np.random.default_rng(0)
    image, annotation = rng.normal(size=SHAPE), np.zeros(SHAPE, dtype=np.int64)
    points, owner = [], []
    for k, (start, end) in enumerate(LINES):
        pixels = draw_path(np.array([start, end]), SCALE, SHAPE)
        annotation.flat[pixels] = k + 1 if numbered else 1
        image.flat[pixels] += 5 * polarity
        share = np.arange(0, 1, STEP / np.hypot(*(end - start)))[:, None]
        points.append(start + share * (end - start))
        owner += [k] * len(share)
    false = rng.uniform(0, np.array(SHAPE[::-1]) - 1, (30, 2))
    far = KDTree(np.concatenate(points)).query(false)[0] > SCALE
    pos = torch.from_numpy(np.concatenate([*points, false[far]]).astype(np.float32))
    graph, _ = from_detections(pos, torch.rand(len(pos)))
    graph = label_by_mask(dataclasses.replace(graph, embedding=pos.clone()), torch.from_numpy(annotation))
    sample = Sample("a", torch.from_numpy(image.astype(np.float32))[None], graph, torch.from_numpy(annotation))
    nodes = {str(k): np.flatnonzero(np.array(owner) == k) for k in range(len(LINES))}
    return with_truth(sample, nodes if instances else None)


def pasted(sample, seed=0, **keys):
    torch.manual_seed(seed)
    return RandomCopyPaste(**{"p": 1.0, "scale": SCALE, "max_copies": 3, **keys})(sample)


@pytest.fixture(scope="module")
def sample():
    return annotated()


@pytest.fixture(scope="module", params=range(8))
def changed(sample, request):
    return pasted(sample, request.param)


class TestCopies:
    def test_every_copy_is_a_filament_with_its_own_annotation(self, changed):
        new = changed.truth.filaments[len(LINES) :]
        numbers = set(torch.unique(changed.annotation).tolist()) - set(range(len(LINES) + 1))
        assert 1 <= len(numbers) <= len(new) <= 3
        for nodes in new:
            assert len(nodes) >= 4
            # within six tenths of a width of a straight line, as its original is one
            points = changed.graph.pos.numpy()[nodes].astype(float)
            across = np.linalg.svd(points - points.mean(axis=0))[2][1]
            assert np.abs((points - points.mean(axis=0)) @ across).max() < 1.2 * 0.6 * SCALE

    def test_labels_agree_with_the_annotation_and_with_the_filaments(self, sample, changed):
        graph, by_mask = changed.graph, label_by_mask(changed.graph, changed.annotation)
        assert graph.num_nodes > sample.graph.num_nodes - 10
        for head in ("node", "edge"):
            assert torch.equal(graph.label(head), by_mask.label(head))
        passes = np.bincount(np.concatenate(changed.truth.filaments), minlength=graph.num_nodes)
        positive = graph.label("node").numpy() == Label.TRUE_POSITIVE
        assert (passes[positive] > 0).mean() > 0.9

    def test_pixels_change_near_copies_only(self, sample, changed):
        differs = (changed.image != sample.image)[0].numpy()
        copies = changed.annotation.numpy() > len(LINES)
        away = KDTree(np.argwhere(copies)).query(np.argwhere(differs))[0]
        assert differs.any()
        assert away.max() <= SCALE  # where copies hide each other, what is left of one lies further off
        assert changed.image[0].numpy()[copies].mean() > 3  # filaments stand out by 5, their rims fade

    def test_nodes_are_the_old_ones_but_false_ones_under_a_copy_and_those_of_the_originals(self, sample, changed):
        old, new = sample.graph.pos.numpy(), changed.graph.pos.numpy()
        gone = KDTree(new).query(old)[0] > 1e-3
        assert (sample.graph.label("node").numpy()[gone] == Label.TRUE_NEGATIVE).all()
        assert (values_at(changed.annotation.numpy(), old[gone]) > len(LINES)).all()
        added = new[KDTree(old).query(new)[0] > 1e-3]
        assert (KDTree(old).query(added)[0] >= 0.4 * SCALE - 1e-3).mean() > 0.95  # of those that went, some lay near
        away, original = KDTree(old).query(changed.graph.embedding)
        assert away.max() == 0
        assert torch.equal(changed.graph.confidence, sample.graph.confidence[original])


def test_copies_beside_their_originals_run_along_them(sample):
    for seed in range(10):
        changed = pasted(sample, seed, max_copies=1, p_beside=1.0)
        new = changed.graph.pos.numpy()[changed.truth.filaments[-1]].astype(float)
        direction = np.linalg.svd(new - new.mean(axis=0))[2][0]
        lines = LINES[:, 1] - LINES[:, 0]
        cosine = np.abs(lines @ direction) / np.hypot(*lines.T)
        assert np.degrees(np.arccos(cosine.max())) < 20
        assert KDTree(sample.graph.pos[sample.graph.label("node") == 1]).query(new)[0].min() < 1.4 * SCALE


def test_dark_filaments_stay_dark():
    dark = annotated(polarity=-1.0)
    for seed in range(8):
        changed = pasted(dark, seed)
        assert changed.image[0][changed.annotation > len(LINES)].mean() < -3


def test_a_node_where_a_copy_crosses_belongs_to_both(sample):
    for seed in range(5):
        assert (pasted(sample, seed, max_copies=8).graph.label("two_filaments") == Label.TRUE_POSITIVE).any()


def test_without_instances_the_numbers_tell():
    by_number = annotated(instances=False)
    changed = pasted(by_number)
    assert changed.truth.source is TruthSource.NUMBERS
    assert len(changed.truth.filaments) > len(LINES)
    assert (changed.graph.label("two_filaments") == Label.UNKNOWN).all()
    same = [(graph.label("same_filament") == 1).sum() for graph in (by_number.graph, changed.graph)]
    assert same[1] > same[0]


def test_nothing_happens_if_filaments_are_not_told_apart(sample):
    binary = annotated(instances=False, numbered=False)
    for same in (binary, sample.replace(annotation=None), sample.replace(truth=None)):
        assert pasted(same) is same
    assert pasted(sample, p=0.0) is sample


def test_unknown_labels_stay_unknown(sample):
    label = sample.graph.label("node").clone()
    label[::5] = Label.UNKNOWN
    graph = pasted(sample.replace(graph=sample.graph.with_labels(node=label))).graph
    unknown = graph.label("node") == Label.UNKNOWN
    assert unknown.sum() > 5
    touches = unknown[graph.edges].any(dim=0)
    assert torch.equal(graph.label("edge") == Label.UNKNOWN, touches)


def test_detections_on_the_very_border_are_no_trouble(sample):
    pos = torch.cat([sample.graph.pos[:-2], torch.tensor([[SHAPE[1] - 0.5, SHAPE[0] - 0.5], [-0.5, -0.5]])])
    changed = pasted(sample.replace(graph=dataclasses.replace(sample.graph, pos=pos)))
    assert changed.graph.num_nodes > sample.graph.num_nodes


def test_the_annotation_goes_once_nothing_needs_it(sample):
    for first in ({"paste": RandomCopyPaste(scale=SCALE)}, {}):
        assert Augmentation({**first, "flip": RandomFlip()}).sample(sample).annotation is None
