"""The shipped configuration, and what happens to a wrong one."""

from pathlib import Path

import hydra
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from grace_lightning.config import build, call, check, config_dir
from grace_lightning.errors import InputError

CONF = config_dir()
GROUPS = [
    "augment",
    "callbacks",
    "data",
    "detections",
    "features",
    "link",
    "logger",
    "model",
    "optimizer",
    "scheduler",
    "trainer",
    "simulator",
]
OPTIONS = [(path.parent.name, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]


def compose(name, *overrides):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose(name, [*overrides, "hydra.runtime.output_dir=here"], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    plain = OmegaConf.to_container(OmegaConf.masked_copy(cfg, [k for k in cfg if k != "hydra"]), resolve=True)
    return plain


def selecting(group, option):
    """A command that has the group, and the override that selects the option."""
    if group == "simulator":
        return "train", f"simulator@data.simulation.simulator={option}"
    return "annotate" if group == "detections" else "train", f"{group}={option}"


def test_every_group_is_tried():
    assert {p.parent.name for p in CONF.glob("*/*.yaml")} == {*GROUPS, "experiment"}  # for that see test_sweeps.py


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_fits_the_signatures_it_configures(group, option):
    for key, node in compose(*selecting(group, option)).items():
        check(node, key)


@pytest.mark.parametrize("name", [p.stem for p in sorted(CONF.glob("*.yaml"))])
def test_every_command_composes_to_what_it_configures(name):
    for key, node in compose(name).items():
        check(node, key)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_shipped_options_name_every_parameter(group, option):
    """``--cfg job`` is to show all there is to set: the file and the signature have the same keys."""
    import inspect

    from hydra.utils import get_object

    given_at_run_time = {"features", "augment", "views", "node_width", "edge_width"}
    config = compose(*selecting(group, option))
    node = config["data"]["simulation"]["simulator"] if group == "simulator" else config[group]
    nodes = [node] if "_target_" in node else list(node.values())
    for own in (n for n in nodes if isinstance(n, dict) and n["_target_"].startswith("grace_lightning")):
        parameters = set(inspect.signature(get_object(own["_target_"])).parameters)
        assert set(own) - {"_target_"} == parameters - given_at_run_time


NODE = {"_target_": "grace_lightning.models.GCN", "hidden": [8], "dense": [4], "dropout": 0.1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dropout": "high"}, "model.dropout: 'high', expected float"),
        ({"hidden": 8}, r"model.hidden: 8, expected Sequence\[int\]"),
        ({"hidden": [8, 2.5]}, r"model.hidden: \[8, 2.5\], expected Sequence\[int\]"),
        ({"depth": 3}, "model.depth: GCN takes no such key; it takes node_width, .*dropout"),
        ({"_target_": "grace_lightning.models.GNN"}, "model._target_: 'grace_lightning.models.GNN' cannot be imported"),
    ],
)
def test_wrong_keys_and_values_are_named(change, message):
    with pytest.raises(InputError, match=message):
        build({**NODE, **change}, "model", node_width=4, edge_width=4)


def test_nested_nodes_are_checked_under_their_own_path():
    with pytest.raises(InputError, match=r"augment.shift.max_shift: 'far', expected float"):
        check({"shift": {"_target_": "grace_lightning.augment.RandomXYTranslation", "max_shift": "far"}}, "augment")


def test_what_a_constructor_says_reaches_the_user():
    with pytest.raises(InputError, match="max_shift: -2"):
        build({"_target_": "grace_lightning.augment.RandomXYTranslation", "max_shift": -2}, "augment.shift")


def test_run_time_arguments_are_passed_as_they_are():
    marker = object()

    assert build({"_target_": "grace_lightning.data.GraceDataModule"}, "data", features=marker).features is marker
    assert build({}, "scheduler") is None


def test_call_checks_a_function_the_same_way():
    def area(width: float, height: float = 2.0) -> float:
        return width * height

    assert call(area, {"width": 3}) == 6
    with pytest.raises(InputError, match=r"^width: 'wide', expected float"):
        call(area, {"width": "wide"})


def test_config_tree_lies_at_the_top_of_the_repository():
    assert Path(__file__).parents[1] / "conf" == CONF
