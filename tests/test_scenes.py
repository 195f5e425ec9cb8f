"""Scenes of many kinds: what is said about them is true, whatever is drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial import KDTree

from grace_lightning.errors import InputError
from grace_lightning.graph import Label
from grace_lightning.scenes import CONTRASTS, KINDS, SHORTEST, AnyScene
from grace_lightning.simulate import STEP, Simulation, image_generator, in_image

SMALL = AnyScene(size=(200, 240), scale=(5.0, 10.0))


def scene(seed: int = 0, **changes) -> Simulation:
    return replace(SMALL, **changes)("x", image_generator(seed, "x"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_says_what_it_shows(kind):
    right = []
    for seed in range(4):
        drawn = scene(seed, kinds=[kind], contrast=CONTRASTS["clear"])
        sample, said = drawn.sample, drawn.sample.metadata
        assert (said["kind"], said["polarity"]) in {(kind, polarity) for polarity in KINDS[kind].polarity}
        assert 5 <= said["scale"] <= 10
        assert torch.isfinite(sample.image).all()
        assert sample.annotation.shape == sample.image.shape[1:] == (200, 240)
        assert len(drawn.centre_lines) == len(drawn.instances) > 0
        assert min(map(len, drawn.centre_lines)) * STEP >= 0.7 * SHORTEST * said["scale"]
        lines, pos = np.concatenate(drawn.centre_lines), sample.graph.pos.numpy()
        away = KDTree(lines).query(pos)[0]
        positive = (sample.graph.label("node") == Label.TRUE_POSITIVE).numpy()
        assert (away[positive] <= said["scale"]).all()

        pixels = sample.image[0].numpy()
        column, row = lines[in_image(lines, pixels.shape)].astype(int).T
        places = np.argwhere(sample.annotation.numpy() == 0)[:, ::-1]
        beside = places[KDTree(lines).query(places)[0] < 1.2 * said["scale"]]
        difference = np.median(pixels[row, column]) - np.median(pixels[beside[:, 1], beside[:, 0]])
        right.append((difference > 0) == (said["polarity"] == "bright"))
    assert sum(right) >= 3


def test_scene_depends_on_seed_and_name_alone():
    one, same, other = scene(3), scene(3), scene(4)
    assert torch.equal(one.sample.image, same.sample.image)
    assert torch.equal(one.sample.graph.pos, same.sample.graph.pos)
    assert one.sample.metadata == same.sample.metadata != other.sample.metadata


def test_clearer_filaments_are_found_by_more_ridges():
    def found(contrast: float) -> float:
        scenes = [scene(seed, contrast=(contrast, contrast), p_picker=0.0, threshold=(4.0, 4.0)) for seed in range(4)]
        near = []
        for drawn in scenes:
            line = np.concatenate(drawn.centre_lines)
            pos = np.concatenate([drawn.sample.graph.pos.numpy(), [[-1e6, 0]]])
            near += [(KDTree(pos).query(line)[0] < 2 * drawn.sample.metadata["scale"]).mean()]
        return float(np.mean(near))

    assert found(1.0) < found(3.0) < found(15.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": ["cryo", "x-ray"]}, "kinds: .*expected one or more of any, cryo"),
        ({"kinds": []}, "kinds"),
        ({"scale": (5.0, 100.0)}, "scale: .*a sixteenth of the shorter side"),
        ({"contrast": (4.0, 2.0)}, "contrast: .*the smaller first"),
        ({"p_picker": 1.5}, "p_picker: 1.5, expected a probability"),
    ],
)
def test_impossible_parameters_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        replace(SMALL, **changes)
