"""Copies of filaments within their image."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.spatial import KDTree

from grace_lightning.augment import Augmentation, RandomCopyPaste, RandomFlip
from grace_lightning.data import GraceDataset
from grace_lightning.errors import InputError
from grace_lightning.features import Statistics
from grace_lightning.graph import Label, Sample, from_detections, label_by_mask, second_neighbours
from grace_lightning.io import Source
from grace_lightning.metrics import draw_path
from grace_lightning.targets import with_targets

SHAPE, SCALE, STEP = (260, 300), 10.0, 8.0
LINES = np.array([[[30, 40], [200, 60]], [[60, 220], [150, 100]], [[220, 230], [250, 120]]], dtype=float)


def annotated(*, instances=True, numbered=True, background=30, embedding=False, polarity=1.0):
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
    false = rng.uniform(0, np.array(SHAPE[::-1]) - 1, (background, 2))
    far = KDTree(np.concatenate(points)).query(false)[0] > SCALE
    pos = torch.from_numpy(np.concatenate([*points, false[far]]).astype(np.float32))
    graph, _ = from_detections(pos)
    graph = label_by_mask(graph, torch.from_numpy(annotation))
    if embedding:
        graph = dataclasses.replace(graph, embedding=pos.clone())
    sample = Sample("a", torch.from_numpy(image.astype(np.float32))[None], graph, torch.from_numpy(annotation))
    owner = np.array(owner)
    nodes = {str(k): np.flatnonzero(owner == k) for k in range(len(LINES))}
    return with_targets(sample, nodes if instances else None)


def filaments(graph):
    node, filament = graph.members.numpy()
    return [node[filament == k] for k in range(filament.max() + 1)]


def pasted(sample, seed=0, **keys):
    torch.manual_seed(seed)
    return RandomCopyPaste(**{"p": 1.0, "scale": SCALE, "max_copies": 3, **keys})(sample)


@pytest.fixture
def sample():
    return annotated()


@pytest.mark.parametrize("seed", range(8))
class TestCopies:
    def test_every_copy_is_a_filament_with_its_own_annotation(self, seed, sample):
        changed = pasted(sample, seed)
        new = filaments(changed.graph)[len(LINES) :]
        numbers = set(torch.unique(changed.annotation).tolist()) - set(range(len(LINES) + 1))
        assert 1 <= len(numbers) <= len(new) <= 3
        for nodes in new:
            assert len(nodes) >= 4
            # within six tenths of a width of a straight line, as its original is one
            points = changed.graph.pos.numpy()[nodes].astype(float)
            across = np.linalg.svd(points - points.mean(axis=0))[2][1]
            assert np.abs((points - points.mean(axis=0)) @ across).max() < 1.2 * 0.6 * SCALE

    def test_labels_agree_with_the_annotation(self, seed, sample):
        graph = (changed := pasted(sample, seed)).graph
        expected = label_by_mask(graph, changed.annotation)
        assert torch.equal(graph.node_label, expected.node_label)
        assert torch.equal(graph.edge_label, expected.edge_label)
        assert graph.num_nodes > sample.graph.num_nodes - 10
        passes = np.bincount(graph.members[0].numpy(), minlength=graph.num_nodes)
        assert (graph.passes.numpy() == np.where(graph.node_label == Label.TRUE_POSITIVE, passes, -1)).all()
        assert (passes[graph.node_label == Label.TRUE_POSITIVE] > 0).mean() > 0.9
        share = torch.from_numpy((passes > 0) & (graph.node_label.numpy() == Label.TRUE_POSITIVE))
        assert ((graph.end_label != Label.UNKNOWN) == share).all()

    def test_pixels_change_near_copies_only(self, seed, sample):
        changed = pasted(sample, seed)
        differs = (changed.image != sample.image)[0].numpy()
        rows, columns = np.nonzero(changed.annotation.numpy() > len(LINES))
        away = KDTree(np.stack([columns, rows], axis=1)).query(np.argwhere(differs)[:, ::-1])[0]
        assert differs.any()
        assert away.max() <= SCALE  # where copies hide each other, what is left of one lies further off
        on_copies = changed.image[0].numpy()[rows, columns]
        assert on_copies.mean() > 3  # filaments stand out by 5, their rims fade

    def test_old_detections_stay_but_false_ones_under_a_copy(self, seed, sample):
        changed = pasted(sample, seed)
        old, new = sample.graph.pos.numpy(), changed.graph.pos.numpy()
        gone = KDTree(new).query(old)[0] > 1e-3
        x, y = np.round(old[gone]).astype(int).T
        assert (sample.graph.node_label.numpy()[gone] == Label.TRUE_NEGATIVE).all()
        assert (changed.annotation.numpy()[y, x] > len(LINES)).all()
        added = new[KDTree(old).query(new)[0] > 1e-3]
        assert (KDTree(old).query(added)[0] >= 0.4 * SCALE - 1e-3).mean() > 0.95  # of those that went, some lay near


def test_copies_beside_their_originals_run_along_them(sample):
    for seed in range(10):
        graph = pasted(sample, seed, max_copies=1, p_beside=1.0).graph
        new = graph.pos.numpy()[filaments(graph)[-1]].astype(float)
        direction = np.linalg.svd(new - new.mean(axis=0))[2][0]
        lines = LINES[:, 1] - LINES[:, 0]
        cosine = np.abs(lines @ direction) / np.hypot(*lines.T)
        assert np.degrees(np.arccos(cosine.max())) < 20
        assert KDTree(sample.graph.pos[sample.graph.node_label == 1]).query(new)[0].min() < 1.4 * SCALE


def test_dark_filaments_stay_dark(sample):
    dark = annotated(polarity=-1.0)
    for seed in range(8):
        changed = pasted(dark, seed)
        assert changed.image[0][changed.annotation > len(LINES)].mean() < -3


def test_a_node_where_a_copy_crosses_belongs_to_both():
    sample = annotated()
    counts = [pasted(sample, seed, max_copies=8).graph.passes.max() for seed in range(5)]
    assert min(counts) >= 2


def test_without_instances_the_numbers_tell(sample):
    by_number = annotated(instances=False)
    assert by_number.graph.members is None
    changed = pasted(by_number)
    assert changed.annotation.max() > len(LINES)
    assert changed.graph.members is None
    assert (changed.graph.passes == -1).all()
    assert (changed.graph.link_label == 1).sum() > (by_number.graph.link_label == 1).sum()


def test_nothing_happens_where_filaments_are_not_told_apart(sample):
    binary = annotated(instances=False, numbered=False)
    assert pasted(binary) is binary
    bare = sample.replace(annotation=None)
    assert pasted(bare) is bare
    assert pasted(sample, p=0.0) is sample


def test_unknown_labels_stay_unknown(sample):
    label = sample.graph.node_label.clone()
    label[::5] = Label.UNKNOWN
    graph = pasted(sample.replace(graph=dataclasses.replace(sample.graph, node_label=label))).graph
    unknown = graph.node_label == Label.UNKNOWN
    assert unknown.sum() > 5
    touches = unknown[graph.edges].any(dim=0)
    assert (graph.edge_label[touches] == Label.UNKNOWN).all()
    assert (graph.edge_label[~touches] != Label.UNKNOWN).all()


def test_copies_have_the_scores_and_embeddings_of_their_originals():
    sample = annotated(embedding=True)
    confidence = torch.rand(sample.graph.num_nodes)
    sample = sample.replace(graph=dataclasses.replace(sample.graph, confidence=confidence))
    graph = pasted(sample).graph
    away, row = KDTree(sample.graph.pos).query(graph.embedding)
    assert away.max() == 0
    assert torch.equal(graph.confidence, confidence[row])


def test_candidates_beyond_the_triangulation_are_there_too(sample):
    plain, more = pasted(sample).graph, pasted(sample, max_candidate=30.0).graph
    assert more.num_edges - plain.num_edges == second_neighbours(plain.pos, plain.edges, 30.0).shape[1] > 0
    assert (more.edge_label != Label.UNKNOWN).all()


def test_detections_on_the_very_border_are_no_trouble(sample):
    pos = sample.graph.pos.clone()
    pos[-2:] = torch.tensor([[SHAPE[1] - 0.5, SHAPE[0] - 0.5], [-0.5, -0.5]])
    changed = pasted(sample.replace(graph=dataclasses.replace(sample.graph, pos=pos)))
    assert changed.graph.num_nodes > sample.graph.num_nodes


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"p": 2}, "p: 2, expected a fraction"),
        ({"p_beside": -1}, "p_beside: -1, expected a fraction"),
        ({"max_copies": 0}, "max_copies: 0, expected 1 or more"),
        ({"scale": 0.0}, "scale: 0.0, expected pixels above 0"),
    ],
)
def test_impossible_parameters_are_refused(keys, message):
    with pytest.raises(InputError, match=message):
        RandomCopyPaste(**keys)


def test_the_annotation_goes_once_nothing_needs_it(sample):
    steps = {"paste": RandomCopyPaste(p=1.0, scale=SCALE), "flip": RandomFlip()}
    both, flip = Augmentation(steps), Augmentation({"flip": steps["flip"]})
    assert both.uses_annotation
    assert not flip.uses_annotation
    assert both.sample(sample).annotation is None
    assert flip.sample(sample).annotation is not None


def test_a_data_set_keeps_annotations_where_an_augmentation_looks_at_them(tmp_path):
    source, features = Source("a", tmp_path / "a.mrc", None), Statistics(scale=SCALE, patch=1)
    paste = Augmentation({"paste": RandomCopyPaste(p=1.0, scale=SCALE)})

    def read(_):
        return annotated(instances=False)

    data = GraceDataset([source], read, features, augment=paste)
    assert data.sample(0).annotation is not None
    torch.manual_seed(0)
    assert len({data[0].num_nodes for _ in range(4)}) > 1
    assert (
        GraceDataset([source], read, features, augment=Augmentation({"f": RandomFlip()})).sample(0).annotation is None
    )
