"""Training that starts from the weights of another network."""

import re

import hydra
import pytest
import torch

from grace_lightning.checkpoint import build_module, load_module, read_checkpoint
from grace_lightning.config import build, config_dir
from grace_lightning.errors import InputError
from grace_lightning.graph import HEADS
from grace_lightning.module import CHECKPOINT_KEY
from grace_lightning.tasks.start import take_weights
from grace_lightning.tasks.train import train

BRIEF = ["trainer.max_epochs=1", "trainer.accelerator=cpu", "callbacks.progress=null", "logger=none", "augment=none"]


@pytest.fixture
def started(checkpoint, simulated, tmp_path):
    """Return a function that trains from the weights of the small network and returns the last checkpoint."""

    def start(*keys, run="run", init=checkpoint):
        folder = tmp_path / run
        data = ["data=folders", *(f"data.{part}_image_dir={simulated}" for part in ("train", "valid"))]
        with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
            train(hydra.compose("train", [*data, *BRIEF, f"init='{init}'", f"run_dir={folder}", *keys]))
        return read_checkpoint(folder / "model" / "last.ckpt")

    return start


def test_it_has_the_network_and_the_weights_of_the_other_one(started, checkpoint):
    before, after = read_checkpoint(checkpoint), started("optimizer.lr=0.0")
    for group in ("features", "model"):
        assert after[CHECKPOINT_KEY][group] == before[CHECKPOINT_KEY][group]
    learned = [name for name in before["state_dict"] if name.startswith("network.") or "edge_scale" in name]
    for name in learned:
        assert torch.equal(after["state_dict"][name], before["state_dict"][name]), name
    assert after["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] == 1


def test_by_default_another_kind_of_network_starts_from_nothing(started, checkpoint, monkeypatch, capfd):
    monkeypatch.setattr("grace_lightning.tasks.start.GENERAL_FILE", checkpoint)
    monkeypatch.setattr("grace_lightning.checkpoint.GENERAL_FILE", checkpoint)
    assert started(init="auto", run="many")[CHECKPOINT_KEY]["init"] is None  # of three images
    monkeypatch.setattr("grace_lightning.tasks.start.FEW", 3)
    small = ["features=statistics", "model.hidden=4", "model.rounds=0"]
    config = started(*small, init="auto")[CHECKPOINT_KEY]
    assert config["init"] is None
    assert re.search(r"starts from nothing: features\._target_=\S+Statistics, model.hidden=4", capfd.readouterr().out)
    assert started(init="auto", run="other")[CHECKPOINT_KEY]["init"] == "general"


def test_the_width_that_is_typed_is_that_of_the_images(started, capfd):
    config = started("features.scale=12", "data.polarity=auto")[CHECKPOINT_KEY]
    assert (config["features"]["scale"], config["data"]["scale"], config["data"]["polarity"]) == (10.0, 12.0, "dark")
    assert config["link"]["scale"] == 10.0
    assert "filaments are dark, by the images (data.polarity=dark)" in capfd.readouterr().out
    assert started(run="other")[CHECKPOINT_KEY]["data"]["scale"] is None  # images like those of the other training


def test_a_run_that_goes_on_keeps_the_network_and_what_was_estimated(started, tmp_path):
    before = started("data.scale=auto", "data.polarity=auto")[CHECKPOINT_KEY]
    last = f"ckpt_path={tmp_path / 'run' / 'model' / 'last.ckpt'}"
    after = started("data.scale=auto", last, "trainer.max_epochs=2", run="on")[CHECKPOINT_KEY]
    assert after["data"] == before["data"]
    assert after["features"] == before["features"]
    with pytest.raises(InputError, match=r"^init: other\.ckpt, but a run that goes on has its own weights"):
        started(last, init="other.ckpt")


def test_another_network_that_is_typed_is_refused(started):
    with pytest.raises(
        InputError, match=r"^model\.rounds=3, but init=.*best.ckpt has model\.rounds=1; leave that, or init"
    ):
        started("model.rounds=3")
    with pytest.raises(InputError, match=r"features.scale=20.5, but .* has features.scale=10.0"):
        started("features.scale=20.5", "data.scale=12")


def test_heads_of_another_size_are_made_anew_and_others_stay_learned(checkpoint):
    start = load_module(checkpoint)
    start.temperature.fill_(2.0)
    start.learned.fill_(True)
    others = {**start.config, "model": {**start.config["model"], "dense": [4]}}
    for config, taken in ((start.config, True), (others, False)):
        module = build_module({**config, "optimizer": None, "scheduler": None}, build(config["features"], "features"))
        own = {name: value.clone() for name, value in module.network.heads["end"].state_dict().items()}
        module.node_class_weight.fill_(3.0)
        module.learned[HEADS.index("node")] = True
        take_weights(module, start)
        assert module.temperature.tolist() == [2.0 if taken else 1.0] * len(HEADS)
        assert module.learned.tolist() == [taken or head == "node" for head in HEADS]
        same = [torch.equal(value, own[name]) for name, value in module.network.heads["end"].state_dict().items()]
        assert all(same) != taken
        assert torch.equal(module.features.edge_scale.mean, start.features.edge_scale.mean)
        assert module.node_class_weight.tolist() == [3.0, 3.0]
