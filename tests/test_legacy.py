"""A configuration of GRACE: every key has an effect or a reason, and the command line wins."""

import json
import re
from pathlib import Path

import hydra
import pytest
import yaml
from omegaconf import OmegaConf

from grace_lightning.config import config_dir
from grace_lightning.errors import InputError
from grace_lightning.legacy import KEYS, plain, read_config_file, render, translate

OLD = {
    "train_image_dir": ("my data/train", {"data.train_image_dir": "my data/train"}),
    "train_grace_dir": (None, {"data.train_grace_dir": None}),
    "valid_image_dir": ("2024", {"data.valid_image_dir": "2024"}),
    "valid_grace_dir": ("valid's, ${it} [1]=2", {"data.valid_grace_dir": "valid's, ${it} [1]=2"}),
    "infer_image_dir": ("infer", {"data.infer_image_dir": "infer"}),
    "infer_grace_dir": ("infer_grace", {"data.infer_grace_dir": "infer_grace"}),
    "log_dir": ("my runs", {"log_dir": "my runs"}),
    "filetype": ("mrc", {}),
    "keep_node_unknown_labels": (True, {"data.keep_node_unknown_labels": True}),
    "keep_edge_unknown_labels": (True, {"data.keep_edge_unknown_labels": True}),
    "extractor_fn": (None, {"features._target_": "grace_lightning.features.Statistics"}),
    "patch_size": ([64, 64], {"features.patch": 3.2}),
    "feature_dim": (2048, {}),
    "normalise": (True, {}),
    "normalize": ([False, "per_image"], {}),
    "laplacian": (True, {"features.laplacian": True}),
    "img_graph_augs": (
        ["random_edge_addition_and_removal", "RandomXYTranslation", "random_image_graph_rotate"],
        {"augment.random_flip": None, "augment.random_xy_translation.max_shift": 2.0},
    ),
    "img_graph_aug_params": (
        [{"p_add": 0.1, "p_remove": 0.3}, {}, {"rot_center": None, "rot_angle_range": [-9, 9]}],
        {
            "augment.random_edge_addition_and_removal.p_add": 0.1,
            "augment.random_edge_addition_and_removal.p_remove": 0.3,
            "augment.random_image_graph_rotate.rot_center": None,
            "augment.random_image_graph_rotate.rot_angle_range": [-9, 9],
        },
    ),
    "patch_augs": (
        ["random_edge_crop"],
        {"augment.random_edge_crop._target_": "grace_lightning.augment.RandomEdgeCrop"},
    ),
    "patch_aug_params": ([{"max_fraction": 0.25}], {"augment.random_edge_crop.max_fraction": 0.25}),
    "keep_patch_fraction": (0.5, {}),
    "batch_size": (3, {"data.batch_size": 3}),
    "num_hops": (2, {"data.num_hops": 2}),
    "connection": ("fireworks", {"data.connection": "fireworks"}),
    "classifier_type": ("GAT", {"model._target_": "grace_lightning.models.GAT"}),
    "num_attention_heads": (2, {"model.heads": 2}),
    "num_node_classes": (2, {}),
    "num_edge_classes": (2, {}),
    "hidden_graph_channels": ([32, 16], {"model.hidden": [32, 16]}),
    "hidden_dense_channels": ([8], {"model.dense": [8]}),
    "epochs": (7, {"trainer.max_epochs": 7}),
    "dropout": (0.25, {"model.dropout": 0.25}),
    "learning_rate": (0.001, {"optimizer.lr": 0.001}),
    "weight_decay": (0.0, {"optimizer.weight_decay": 0.0}),
    "scheduler_type": ("step", {"scheduler._target_": "torch.optim.lr_scheduler.StepLR"}),
    "scheduler_step": (4, {"scheduler.step_size": 4}),
    "scheduler_gamma": (0.75, {"scheduler.gamma": 0.75}),
    "tensorboard_update_frequency": (1, {}),
    "valid_graph_ploter_frequency": (5, {"callbacks.figures.every_n_epochs": 5}),
    "animate_valid_progress": (True, {"callbacks.animation.every_n_epochs": 1}),
    "visualise_tsne_manifold": (True, {}),
    "metrics_classifier": (["accuracy", "confusion_matrix"], {}),
    "metrics_objects": (["exact", "approx"], {}),
}
"""Of every key a value, as a YAML file would have it, and what it sets; nothing if it has no effect."""

TYPED = {key: value for key, (value, _) in OLD.items()}


def compose(content, *given):
    """Return the configuration that a file and a command line come to."""
    overrides, _ = translate(content, given)
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        return hydra.compose("train", [*overrides, *given])


def at(cfg, key):
    """Return a value as plain containers; a key that is not there is an error."""
    for part in key.split("."):
        cfg = cfg[part]
    return OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else cfg


def reasons(content, *given):
    """Return by key without effect the reason."""
    _, lines = translate(content, given, "old.json")
    return dict(re.fullmatch(r"old\.json: (\w+) has no effect: (.+)", line).groups() for line in lines)


def test_every_key_has_its_effect_or_a_reason():
    composed, told = compose(TYPED), reasons(TYPED)
    assert reasons({"epochs": "None", "dropout": None}) == {"epochs": "it is null", "dropout": "it is null"}
    assert OLD.keys() == KEYS.keys()
    for _, effect in OLD.values():
        assert {path: at(composed, path) for path in effect} == effect
    assert told.keys() == {key for key, (_, effect) in OLD.items() if not effect}
    assert told["visualise_tsne_manifold"].startswith("TensorBoard's Projector tab computes t-SNE")


def test_strings_of_json_say_what_typed_yaml_says(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(TYPED, sort_keys=False))
    (tmp_path / "config.json").write_text(json.dumps({key: str(value) for key, value in TYPED.items()}))
    typed, strings = (translate(read_config_file(tmp_path / f"config.{kind}")) for kind in ("yaml", "json"))
    assert typed == strings
    assert read_config_file(tmp_path / "config.json")["epochs"] == "7"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("(64, 64)", [64, 64]),
        ("[{'max_shift': 5, 'rot_center': None}]", [{"max_shift": 5, "rot_center": None}]),
        ("!!python/object/apply:os.system ['true']", "!!python/object/apply:os.system ['true']"),
        ("[1, 2", "[1, 2"),
    ],
)
def test_strings_stand_for_values(text, value):
    assert plain(text) == value
    assert type(plain(text)) is type(value)


def test_text_reaches_hydra_as_it_is():
    texts = [
        "a b",
        "it's",
        "back\\",
        "\\'",
        "${x}",
        "\\${x}",
        "a\\\\${oc.env:HOME}'",
        "a,b",
        "{a: [1]}",
        "",
        "é=1",
        "C:\\new\\x",
        "5",
    ]
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = hydra.compose("train", [f"+texts={render(texts)}", f"log_dir={render('it${s} 5')}"])
    assert (cfg.log_dir, list(cfg.texts)) == ("it${s} 5", texts)


class TestCommandLineWins:
    def test_over_the_file(self):
        given = {
            "model.hidden=[4]": ("model.hidden", [4]),
            "augment.random_edge_crop=null": ("augment.random_edge_crop", None),
            "augment.random_flip.p_vertical=0.25": ("augment.random_flip.p_vertical", 0.25),
            "augment.random_xy_translation.max_shift=20": ("augment.random_xy_translation.max_shift", 20),
            "logger=[tensorboard,csv]": ("logger.csv._target_", "pytorch_lightning.loggers.CSVLogger"),  # no sweep
            "data.image_dir=all": ("data.train_image_dir", None),  # a folder to split takes the place of all
        }
        cfg = compose(TYPED, *given)
        assert {words: (key, at(cfg, key)) for words, (key, _) in given.items()} == given
        assert at(compose(TYPED, "data=simulated"), "data.train_image_dir") == "simulated/train"

    def test_another_network_keeps_what_fits_it(self):
        cfg = compose(TYPED, "model=mpnn")
        assert (at(cfg, "model.dense"), at(cfg, "model.dropout")) == ([8], 0.25)
        told = reasons(TYPED, "model=mpnn")
        assert told["hidden_graph_channels"] == "it is for model=gcn and gat, not model=mpnn"
        assert told["num_attention_heads"] == "it is for model=gat, not model=mpnn"

    def test_a_sweep_takes_what_all_its_options_have(self):
        overrides, _ = translate(TYPED, ["model=gcn,gat"])
        assert "model.hidden=[32, 16]" in overrides
        assert not [o for o in overrides if o.startswith("model.heads")]
        assert "model.heads=2" in translate(TYPED, ["model=choice(gat)"])[0]
        assert "model=gat" in reasons(TYPED, "model=gcn,gat")["num_attention_heads"]

    def test_a_patch_in_pixels_stays_the_same_at_another_scale(self):
        for scale in (10, 40):
            assert at(compose({"patch_size": 60}, f"features.scale={scale}"), "features.patch") == 60 / scale


def test_augmentations_that_are_not_listed_are_off():
    def on(*given):
        return {name for name, step in at(compose(*given), "augment").items() if isinstance(step, dict)}

    every = on({})
    assert on({"img_graph_augs": [], "patch_augs": "None"}) == on(TYPED, "augment=none") == set()
    assert on({"patch_augs": []}) == every - {"random_edge_crop"}
    assert on({"img_graph_augs": ["RandomFlip"]}) == {"random_flip", "random_edge_crop"}


def test_feature_networks_by_name_or_by_file():
    file = "nets/my_resnet18.pth"
    found = [compose({"extractor_fn": value}).features for value in ("resnet152", file)]
    assert [(features.name, features.weights) for features in found] == [("resnet152", None), ("resnet18", file)]


def laughs(alias, depth=9):
    """Return a list of YAML in which an alias comes nine times, in a list that comes nine times, and so on."""
    names = [alias, *(f"*l{k}" for k in range(depth))]
    return ", ".join(f"&l{k} [{', '.join([name] * 9)}]" for k, name in enumerate(names))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, r"old.json: epoch: no such key in GRACE; its keys are train_image_dir, .*, epochs"),
        ({"learning_rate": -1}, "learning_rate: -1, expected a number of 0 or more"),
        ({"dropout": 2}, "dropout: 2, expected 0 to 1"),
        ({"log_dir": 5}, "log_dir: 5, expected text"),
        ({"patch_augs": [3]}, r"patch_augs: \[3\], expected a list of names"),
        ({"classifier_type": "GNN"}, "classifier_type: 'GNN', expected one of gcn, gat"),
        ({"num_hops": 0}, "num_hops: 0, expected whole, or a number of 1 or more"),
        ({"num_node_classes": "4"}, "num_node_classes: '4', expected 2: negative and positive"),
        ({"patch_size": "(64, 32)"}, "patch_size: .*expected the side of a square in pixels"),
        ({"extractor_fn": "net.pickle"}, r"extractor_fn: .*state dict.*torch.save\(model.state_dict\(\), FILE\)"),
        ({"img_graph_augs": ["random_flop"]}, "img_graph_augs: 'random_flop', expected random_copy_paste or "),
        ({"learning_rate": "1e999"}, "learning_rate: '1e999', expected a number of 0 or more"),
        ({"log_dir": "${oc.env:HOME}"}, r"log_dir: '\$\{oc.env:HOME\}', expected text without \$\{"),
        ({"epochs": "1" * 50_000}, r"epochs: '1{99}\.\.\., expected a whole number"),  # nor does it take a minute
        ({"patch_size": "[" * 600 + "]" * 600}, r"patch_size: '\[{99}\.\.\., expected the side"),
        ({"patch_size": f"[&a 1, {laughs('*a')}]"}, r"patch_size: '\[&a 1, .*\.\.\., expected the side"),
        ({"patch_augs": ["random_edge_crop"], "patch_aug_params": [{"a=1, b": 2}]}, "patch_aug_params: .*by name"),
        (
            {"patch_augs": ["random_edge_crop"], "patch_aug_params": [{"p": {"${x}, b": 2}}]},
            "patch_aug_params: .*by name",
        ),
        ({"patch_augs": ["random_edge_crop"], "patch_aug_params": [{"p": [1, float("inf")]}]}, "patch_aug_params: "),
        ({"patch_augs": [], "patch_aug_params": [{}]}, "patch_aug_params: 1 entries, expected 0 as in patch_augs"),
    ],
)
def test_wrong_keys_and_values_are_named(content, message):
    with pytest.raises(InputError, match=message):
        translate(content, name="old.json")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.json", None, "gone.json: not found, expected a configuration of GRACE"),
        ("cut.json", b'{"epochs": 3,', "cut.json: cannot be read as"),
        ("empty.yaml", b"", "empty.yaml: holds a NoneType, expected keys and values"),
        (
            "deep.json",
            b'{"epochs": ' + b"[" * 500 + b"]" * 500 + b"}",
            "deep.json: cannot be read .*nested more than 10",
        ),
        ("deep.yaml", b"epochs: " + b"[" * 600, "deep.yaml: cannot be read .*recursion"),
        ("itself.yaml", b"epochs: &a [*a]", "itself.yaml: cannot be read .*nested"),
        (
            "laughs.yaml",
            f"a: &a 1\nb: [{laughs('*a')}]".encode(),
            "laughs.yaml: cannot be read .*more than 10,000 values",
        ),
        ("long.json", b" " * 100_001, "long.json: cannot be read .*more than 100,000 characters"),
        ("twice.json", b'{"epochs": 3, "epochs": 5}', "twice.json: cannot be read .*epochs is there twice"),
        ("twice.yaml", b"epochs: 3\nepochs: 5", "twice.yaml: cannot be read .*epochs is there twice"),
        ("zero.json", b'{"log_dir": "\\u0000"}', r"zero.json: cannot be read .*character '\\x00'"),
        ("half.json", b'{"log_dir": "\\ud800"}', r"half.json: cannot be read .*character '\\ud800'"),
        ("evil.yaml", b"a: !!python/object/apply:os.system ['true']", "evil.yaml: cannot be read"),
    ],
)
def test_bad_files_are_named(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_config_file(tmp_path / name)


def test_aliases_and_dates_of_yaml(tmp_path):
    (tmp_path / "a.yaml").write_text("hidden_dense_channels: &w [8, 4]\nhidden_graph_channels: *w\nlog_dir: 2024-01-31")
    content = read_config_file(tmp_path / "a.yaml")
    assert content == {"hidden_dense_channels": [8, 4], "hidden_graph_channels": [8, 4], "log_dir": "2024-01-31"}


def test_the_manual_tells_about_every_key():
    text = (Path(__file__).parents[1] / "docs" / "from-grace.md").read_text()
    assert set(KEYS) <= {key for row in re.findall(r"^\|.*", text, re.M) for key in re.findall(r"`(\w+)`", row)}
