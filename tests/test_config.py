"""The shipped configuration, and what happens to a wrong one."""

import inspect

import hydra
import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import OmegaConf

from grace_lightning.config import build, check, config_dir, differing, removed
from grace_lightning.errors import InputError

CONF = config_dir()
OPTIONS = [(p.parent.name, p.stem) for p in sorted(CONF.glob("*/*.yaml")) if p.parent.name != "experiment"]
AT_RUN_TIME = {
    "sigma",
    "features_scale",
    "augment",
    "views",
    "dealt",
    "node_features",
    "edge_features",
    "features",
    "network",
    "config",
}


def compose(name, *overrides):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose(name, [*overrides, "hydra.runtime.output_dir=here"], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    config = OmegaConf.to_container(OmegaConf.masked_copy(cfg, [k for k in cfg if k != "hydra"]), resolve=True)
    HydraConfig.instance().cfg = None  # other tests call what asks whether a command runs
    return config


def own_nodes(node):
    """All nodes at and below this one that configure a class of this package."""
    if isinstance(node, dict):
        if node.get("_target_", "").startswith("grace_lightning."):
            yield node
        for value in node.values():
            yield from own_nodes(value)


def parameters(node):
    return inspect.signature(get_object(node["_target_"])).parameters


def keys(node, path=""):
    for key, value in node.items() if isinstance(node, dict) else ():
        yield from (f"{path}{key}", *keys(value, f"{path}{key}."))


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_fits_the_signatures_and_names_every_parameter(group, option):
    """``--cfg job`` is to show all there is to set."""
    at = "@data.simulation.simulator" if group == "simulator" else ""
    config = compose("annotate" if group == "detections" else "train", f"{group}{at}={option}")
    check(config, "")
    for node in own_nodes(config["data"] if group == "simulator" else config[group]):
        assert set(node) - {"_target_"} == set(parameters(node)) - AT_RUN_TIME
    assert not [key for key in keys(config) if removed(key)]


@pytest.mark.parametrize("file", sorted(str(path.relative_to(CONF)) for path in CONF.rglob("*.yaml")))
def test_files_have_the_values_that_signatures_have(file):
    """A class made from Python is the one that the command line makes; ``augment=strong`` is another on purpose."""
    for node in own_nodes(OmegaConf.to_container(OmegaConf.load(CONF / file))):
        for name, parameter in parameters(node).items():
            value = node.get(name)
            refers = isinstance(value, dict) or "${" in str(value)
            if name in node and parameter.default is not parameter.empty and not refers and "strong" not in file:
                default = parameter.default
                assert value == (list(default) if isinstance(default, tuple) else default), f"{node['_target_']}.{name}"


NODE = {"_target_": "grace_lightning.models.GCN", "hidden": [8], "dense": [4], "dropout": 0.1}
SHIFT = {"_target_": "grace_lightning.augment.RandomXYTranslation"}


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (NODE | {"hidden": [8, 2.5]}, r"top.hidden: \[8, 2.5\], expected Sequence\[int\]"),
        (NODE | {"depth": 3}, "top.depth: GCN takes no such key; it takes node_features, .*dropout"),
        ({"_target_": "grace_lightning.models.GNN"}, "top._target_: 'grace_lightning.models.GNN' cannot be imported"),
        ({"shift": SHIFT | {"max_shift": "far"}}, "top.shift.max_shift: 'far', expected float"),
    ],
)
def test_wrong_keys_and_values_are_named(node, message):
    with pytest.raises(InputError, match=f"^{message}"):
        check(node, "top")


@pytest.mark.parametrize(
    ("one", "other", "keys"),
    [
        ({"a": {"b": 1, "c": [1, 2]}, "d": 2}, {"a": {"b": 1.0, "c": [2, 1]}, "e": 3}, ["a.c"]),
        ({"a": NODE}, {"a": NODE | {"_target_": "x", "dropout": 3}}, ["a._target_"]),
        ({"a": NODE, "b": {}, "c": None}, {"a": NODE, "b": NODE, "c": NODE}, ["b", "c"]),
    ],
)
def test_differences_of_what_both_have(one, other, keys):
    assert list(differing(one, other)) == list(differing(other, one)) == keys


class Holder:
    def __init__(self, length: int, held: object):
        self.length, self.held = length, held


def test_run_time_arguments_are_passed_as_they_are():
    made = build({"_target_": f"{__name__}.Holder", "length": 3}, "holder", held=(held := [object()]))
    assert (made.length, made.held is held) == (3, True)
    assert build({}, "scheduler") is None


def test_nothing_in_text_is_resolved():
    held = ["${oc.env:HOME}", {"\\${x}": "\\${x}"}, "$"]
    assert build({"_target_": f"{__name__}.Holder", "length": 3, "held": held}, "holder").held == held
