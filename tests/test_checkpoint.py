"""Checkpoints: nothing in them is run, and old ones load."""

import copy
import pickle
import re
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
import torch

from grace_lightning import Predictor
from grace_lightning.checkpoint import (
    CHECKPOINT_KEY,
    build_linker,
    checkpoint_paths,
    load_module,
    read_checkpoint,
    read_run,
    resume,
    upgraded,
)
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


def leaves(node, path):
    """Return all places at and below a node of a configuration."""
    below = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, value in below for place in leaves(value, (*path, key)))]


@pytest.mark.parametrize("group", ["features", "model", "module", "data", "link"])
@pytest.mark.parametrize("value", [None, "x", -1, 10**7, 1e300, float("nan"), [], {}], ids=str)
def test_whatever_stands_in_a_configuration_is_used_or_refused_in_one_line(group, value, checkpoint, monkeypatch):
    content, refusals = read_checkpoint(checkpoint), []
    for path in leaves(content[CHECKPOINT_KEY][group], (group,)):
        bad = copy.deepcopy(content)
        reduce(getitem, path[:-1], bad[CHECKPOINT_KEY])[path[-1]] = value
        monkeypatch.setattr("grace_lightning.checkpoint.read_checkpoint", lambda _, bad=bad: bad)
        try:
            load_module("bad.ckpt")
        except InputError as error:
            refusals.append(str(error))
    assert refusals
    assert all(re.fullmatch(r"bad.ckpt: .*", refusal) for refusal in refusals)  # the dot is no line break


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("features.patch", "1.0", "features.patch: '1.0', expected float"),
        ("features.scale", 1e-9, "features.scale: 1e-09, expected 1 to 1,000"),
        ("features.patch_samples", 10**6, "features.patch_samples: 1000000, expected 2 to 1,000"),
        ("features.channels", [8, 10**7], r"features.channels: \[8, 10000000\], expected 1 to 100 widths from 1 to"),
        ("model.hidden", 10**7, r"model.hidden: \[10000000\], expected 1 to 100 widths from 1 to 10,000"),
        ("model.dense", [9999, 9999, 9999], "its weights do not fit its configuration"),  # without taking the memory
        ("data.num_hops", 0, "data.num_hops: 0, expected 1 or more"),
        ("link.end_cost", -1, "link.end_cost: -1, expected 0 or more"),
        ("link._partial_", True, "link has '_partial_', expected plain values only"),
    ],
)
def test_numbers_in_a_configuration_are_checked_as_typed_ones(path, value, message, checkpoint, tmp_path):
    setting(path, value)(checkpoint, tmp_path / "bad.ckpt")
    with pytest.raises(InputError, match=rf"bad.ckpt: {message}"):
        Predictor.from_checkpoint(tmp_path / "bad.ckpt")


def test_weights_that_are_no_numbers_are_refused(checkpoint, tmp_path):
    changed(checkpoint, tmp_path / "bad.ckpt", lambda content: content["state_dict"]["temperature"].fill_(torch.nan))
    with pytest.raises(InputError, match=r"bad.ckpt: its weights are not finite"):
        Predictor.from_checkpoint(tmp_path / "bad.ckpt")


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


def test_a_split_of_the_version_before_was_dealt_by_the_seed(checkpoint):
    content = read_checkpoint(checkpoint)
    data = content[CHECKPOINT_KEY]["data"]
    data |= {"image_dir": "images", "seed": 3}
    assert upgraded(content[CHECKPOINT_KEY], {})[0]["data"]["split_seed"] == 0
    del data["split_seed"]
    assert upgraded(content[CHECKPOINT_KEY], {})[0]["data"]["split_seed"] == 3


@pytest.mark.parametrize("change", [lambda c: c.pop("loops"), lambda c: c["grace_lightning"].update(model=None)])
def test_a_checkpoint_that_no_training_can_go_on_from_is_refused(change, checkpoint, tmp_path):
    changed(checkpoint, tmp_path / "bad.ckpt", change)
    with pytest.raises(InputError, match=r"bad.ckpt: no training can go on from it"):
        read_run(tmp_path / "bad.ckpt")


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


def test_the_width_for_the_linker_is_magnified_with_the_image(checkpoint):
    trained = load_module(checkpoint).config | {"link": load_module(checkpoint).config["link"] | {"scale": 7.0}}
    widths = [build_linker(None, trained, scale).scale for scale in (None, 10.0, 20.0)]
    assert widths == [7.0, 7.0, 14.0]  # of a network trained at 10
