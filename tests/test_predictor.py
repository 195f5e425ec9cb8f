"""The way from an image and detections to filaments, in Python."""

import warnings
from copy import deepcopy

import numpy as np
import pytest
import torch
from helpers import line_scene

from grace_lightning import Predictor, io
from grace_lightning.errors import InputError, InputWarning
from grace_lightning.features import Learned, Statistics
from grace_lightning.link import Programme
from grace_lightning.models import MPNN
from grace_lightning.module import GraceModule
from grace_lightning.tasks.evaluate import _infer_images


def test_what_was_prepared_stays_on_the_cpu(predictor, monkeypatch):
    """There the rest is done with it, wherever the networks are."""
    prepared = predictor.prepare(torch.rand(1, 50, 60), torch.tensor([[10.0, 20.0], [30.0, 40.5]]))
    given = []

    def probabilities(module, data):
        given.append(data.pixels.device.type)
        return {"node": torch.full((2,), 0.5), "edge": torch.full((1,), 0.5)}

    monkeypatch.setattr(GraceModule, "probabilities", probabilities)
    deepcopy(predictor).to("meta").find(prepared)
    assert given == ["meta"]
    assert prepared.data[0].pixels.device.type == "cpu"


@pytest.mark.parametrize("apart", [0.01, 0.3, 1.0])
def test_picks_that_come_twice_give_each_filament_once(apart, predictor):
    image, pos = line_scene()
    twice = np.concatenate([pos, pos + np.float32([apart, 0])])
    confidence = np.repeat([0.9, 0.8], len(pos))
    with pytest.warns(InputWarning, match="pos: 71 of 142 detections lie within 1.5 pixels of another one"):
        findings = predictor(image, twice, confidence)
    once = predictor(image, pos)
    assert len(once.filaments) == len(findings.filaments) == 3
    for one, other in zip(once.filaments, findings.filaments, strict=True):
        assert one.path.tolist() == other.path.tolist()
        assert one.node.tolist() == other.node.tolist()
        assert {*one.members, *(one.members + len(pos))} == {*other.members}
    assert findings.graph.edges.tolist() == once.graph.edges.tolist()
    assert findings.node_probability.tolist() == 2 * once.node_probability.tolist()


def waves(factor):
    """Return an image of slow waves, 300 x 360 pixels at magnification 1, and detections far from its border."""
    rng = np.random.default_rng(0)
    y, x = ((np.arange(round(length * factor)) + 0.5) / factor for length in (300, 360))
    waves = [np.cos(2 * np.pi * (a * x + b * y[:, None]) / 100 + 6 * c) for a, b, c in rng.uniform(-1, 1, (6, 3))]
    pos = rng.uniform([60, 60], [300, 240], (60, 2))
    return torch.from_numpy(sum(waves)).float()[None], torch.from_numpy(factor * (pos + 0.5) - 0.5).float()


@pytest.mark.parametrize("kind", [Learned, Statistics])
@pytest.mark.parametrize("factor", [0.5, 2, 3])
def test_a_network_is_shown_the_same_at_every_magnification(kind, factor):
    torch.manual_seed(0)
    features = kind(scale=10.0)
    network = MPNN(features.node_features, features.edge_features)
    module = GraceModule(features, network, config={"features": {"scale": 10.0}, "data": {}}).eval()
    data = []
    for scale, seen in ((None, waves(1)), (10.0 * factor, waves(factor))):
        data += Predictor([module], Programme(scale=scale or 10.0), scale).prepare(*seen).data
    assert torch.equal(data[0].edge_index, data[1].edge_index)
    with torch.no_grad():
        for one, other in zip(*([one.edge_attr, one.pos, *features(one)] for one in data), strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_detections_at_one_place_or_on_one_line_do_no_harm(predictor):
    image, _ = line_scene()
    line = np.stack([np.linspace(1, 510, 10_000), np.full(10_000, 200.0)], axis=1)
    for pos, nodes in ((line, 500), (np.full((10_000, 2), 50.0), 1), ([[50, 50], [50.01, 50]], 1)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InputWarning)
            prepared = predictor.prepare(torch.from_numpy(image)[None], torch.tensor(pos, dtype=torch.float32))
        assert 1 <= prepared.graph.num_nodes <= nodes
        assert len(predictor.find(prepared).node_probability) == len(pos)


def test_a_network_that_gives_nan_is_refused(checkpoint):
    spoiled = Predictor.from_checkpoint(checkpoint)
    spoiled.networks[0].features.edge_scale.deviation.zero_()
    with pytest.raises(InputError, match="checkpoint: the network gives NaN"):
        spoiled(*line_scene())


@pytest.mark.parametrize("factor", [0.5, 2])
def test_filaments_are_found_at_another_magnification(factor, checkpoint, predictor):
    image, pos = line_scene()
    pixels = torch.nn.functional.interpolate(torch.from_numpy(image)[None, None], scale_factor=factor, mode="area")[0]
    found = Predictor.from_checkpoint(checkpoint, scale=10 * factor)(pixels, (pos + 0.5) * factor - 0.5).filaments
    expected = predictor(image, pos).filaments
    assert len(found) == len(expected) == 3
    for one, other in zip(found, expected, strict=True):
        assert len({*one.members} & {*other.members}) > 0.9 * len({*one.members} | {*other.members})


@pytest.mark.parametrize("scale", [None, 20.0])
def test_evaluation_shows_a_network_what_prediction_does(scale, checkpoint, simulated):
    predictor = Predictor.from_checkpoint(checkpoint, scale=scale)
    config = {"data": {"infer_image_dir": str(simulated), "infer_grace_dir": None, "frame": None, "batch_size": None}}
    dataset = _infer_images(config, predictor, predictor.networks[0])
    image = io.read_image(dataset.sources[0].image)
    (predicted,) = predictor.prepare(image, dataset.sample(0).graph.pos[:5]).data
    evaluated = dataset.graph(0)
    assert evaluated.image_shape == predicted.image_shape == ((96, 96) if scale else (192, 192))
    torch.testing.assert_close(evaluated.pixels, predicted.pixels, atol=1e-4, rtol=0)
    torch.testing.assert_close(evaluated.pos[:5], predicted.pos)


@pytest.mark.parametrize("scale", [1e-9, 0.0, -3.0, float("nan"), 1e308, "wide"])
def test_widths_out_of_range_are_refused(scale, checkpoint):
    with pytest.raises(InputError, match=r"features\.scale: .*expected"):
        Predictor.from_checkpoint(checkpoint, scale=scale)


def test_an_image_is_not_enlarged_without_end(checkpoint):
    predictor = Predictor.from_checkpoint(checkpoint, scale=0.1)
    with pytest.raises(InputError, match=r"features\.scale: .* 400 x 300 pixels would be resampled to 40000 x 30000"):
        predictor(np.arange(120000).reshape(300, 400), [[3, 4]])


def test_networks_trained_at_different_widths_see_what_they_saw_in_training(checkpoint, tmp_path):
    saved = torch.load(checkpoint, weights_only=True)
    saved["grace_lightning"]["features"]["scale"] = 20.0
    torch.save(saved, tmp_path / "wider.ckpt")
    both = Predictor.from_checkpoint([checkpoint, tmp_path / "wider.ckpt"], scale=10.0)
    one, other = both.prepare(torch.rand(1, 100, 120), torch.tensor([[10.0, 20.0], [30.0, 40.5]])).data
    assert one.image_shape == (100, 120)
    assert other.image_shape == (200, 240)
    torch.testing.assert_close(other.pos, 2 * one.pos + 0.5)


def test_images_are_taken_to_where_the_weights_are(checkpoint, monkeypatch):
    predictor = Predictor.from_checkpoint(checkpoint).to("meta")  # a device that every machine has
    seen = []
    monkeypatch.setattr(GraceModule, "probabilities", lambda self, data: seen.append(data.pos.device.type) or {})
    predictor.probabilities(predictor.prepare(torch.rand(1, 50, 60), torch.tensor([[10.0, 20.0], [30.0, 40.5]])).data)
    assert seen == ["meta"]
