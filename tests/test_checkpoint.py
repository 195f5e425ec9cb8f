"""Checkpoints: nothing in them is run, and old ones load."""

import pickle
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
import torch

from grace_lightning import Predictor
from grace_lightning.checkpoint import CHECKPOINT_KEY, checkpoint_paths, read_checkpoint, resume
from grace_lightning.errors import InputError


class Payload:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def changed(good, bad, change):
    content = torch.load(good, weights_only=True)
    change(content)
    torch.save(content, bad)


def setting(path, value):
    """Return a change of the configuration in a checkpoint."""

    def change(content):
        *parents, key = path.split(".")
        reduce(getitem, parents, content["grace_lightning"])[key] = value

    return lambda good, bad: changed(good, bad, change)


SHELL = {"_target_": "grace_lightning.cli.os.system", "command": "touch ran"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda good, bad: None, "no such checkpoint"),
        (lambda good, bad: bad.write_bytes(good.read_bytes()[:-3000]), "cannot be read as a checkpoint"),
        (lambda good, bad: bad.write_bytes(pickle.dumps(Payload())), "cannot be read as a checkpoint"),
        (lambda good, bad: torch.save({"state_dict": Payload()}, bad), "cannot be read as a checkpoint"),
        (lambda good, bad: torch.save(torch.nn.Linear(2, 2).state_dict(), bad), "not a checkpoint of grace-train"),
        (
            lambda good, bad: torch.save({"state_dict": 3, "grace_lightning": {}}, bad),
            "not a checkpoint of grace-train",
        ),
        (
            setting("link", SHELL | {"_target_": "os.system"}),
            "link names 'os.system', expected classes of grace_lightning only; if you trust its package, trust=",
        ),
        (setting("link", SHELL), "link names 'grace_lightning.cli.os.system', expected classes of grace_lightning"),
        (setting("model.hidden", [SHELL | {"_target_": "os.system"}]), "model names 'os.system'"),
        (setting("model.hidden", "${oc.env:HOME}"), r"'\$\{oc.env:HOME\}', expected plain"),
        (setting("model.hidden", 64), "its weights do not fit its configuration"),
        (setting("model._target_", "grace_lightning.models.Gone"), "grace_lightning.models.Gone"),
        (setting("link", None), "its configuration has no link"),
    ],
)
def test_other_checkpoints_are_refused_and_run_nothing(make, message, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(checkpoint, tmp_path / "bad.ckpt")
    with pytest.raises(InputError, match=rf"bad.ckpt.*{message}"):
        Predictor.from_checkpoint(tmp_path / "bad.ckpt")
    assert not Path("ran").exists()


OLD_HEADS = {"same_filament": "link", "two_filaments": "second", "three_filaments": "third"}


def as_before(content):
    """Give a checkpoint the names that it had before version 0.2."""
    config, state = content["grace_lightning"], content["state_dict"]
    for group in ("model", "features"):
        config[group]["width"] = config[group].pop("hidden")
    for new, old in OLD_HEADS.items():
        config["module"][f"{old}_weight"] = config["module"].pop(f"{new}_weight")
    config["data"]["max_candidate"] = None
    config["link"] |= {"end_weight": 2.0, "share_cost": 0.05, "max_edge_gain": 1.5}
    for name in [name for name in state if name.startswith("network.heads.")]:
        _, _, head, rest = name.split(".", 3)
        state[f"network.{OLD_HEADS.get(head, head)}_head.{rest}"] = state.pop(name)


def test_checkpoints_of_the_version_before_load(checkpoint, tmp_path):
    changed(checkpoint, tmp_path / "old.ckpt", as_before)
    new, old = (Predictor.from_checkpoint(path).state_dict() for path in (checkpoint, tmp_path / "old.ckpt"))
    assert new.keys() == old.keys()
    assert all(torch.equal(new[name], old[name]) for name in new)


def test_a_folder_stands_for_the_checkpoints_of_the_runs_in_it(checkpoint, tmp_path):
    assert checkpoint_paths(checkpoint.parent.parent) == [checkpoint]
    for number in ("0", "1"):
        (tmp_path / "sweep" / number / "model").mkdir(parents=True)
        (tmp_path / "sweep" / number / "model" / "best.ckpt").symlink_to(checkpoint)
    (tmp_path / "sweep" / "2").mkdir()  # a run that failed
    assert len(checkpoint_paths([str(tmp_path / "sweep"), checkpoint])) == 3
    with pytest.raises(InputError, match=r"2: no checkpoint in it, expected a run's folder with model/best.ckpt"):
        checkpoint_paths(tmp_path / "sweep" / "2")


def test_a_run_goes_on_without_the_best_checkpoint(checkpoint, tmp_path):
    content = read_checkpoint(checkpoint)
    for state in content["callbacks"].values():
        state |= {"best_model_path": "gone/best.ckpt"} if "best_model_path" in state else {}
    torch.save(content, tmp_path / "last.ckpt")
    resumed = read_checkpoint(resume(tmp_path / "last.ckpt", content[CHECKPOINT_KEY], tmp_path / "on"))
    assert not [state for state in resumed["callbacks"].values() if "best_model_path" in state]
