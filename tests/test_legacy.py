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
from grace_lightning.io.images import IMAGE_SUFFIXES
from grace_lightning.legacy import FILE_TYPES, KEYS, plain, read_config_file, render, translate

TYPED = {
    "train_image_dir": "my data/train",
    "train_grace_dir": None,
    "valid_image_dir": "2024",
    "valid_grace_dir": "valid's, ${it} [1]=2",
    "infer_image_dir": "infer",
    "infer_grace_dir": "infer_grace",
    "log_dir": "my runs",
    "filetype": "mrc",
    "keep_node_unknown_labels": True,
    "keep_edge_unknown_labels": True,
    "extractor_fn": None,
    "patch_size": [64, 64],
    "feature_dim": 2048,
    "normalise": True,
    "normalize": [False, "per_image"],
    "laplacian": True,
    "img_graph_augs": ["random_edge_addition_and_removal", "RandomXYTranslation", "random_image_graph_rotate"],
    "img_graph_aug_params": [{"p_add": 0.1, "p_remove": 0.3}, {}, {"rot_center": None, "rot_angle_range": [-9, 9]}],
    "patch_augs": ["random_edge_crop"],
    "patch_aug_params": [{"max_fraction": 0.25}],
    "keep_patch_fraction": 0.5,
    "batch_size": 3,
    "num_hops": 2,
    "connection": "fireworks",
    "classifier_type": "GAT",
    "num_attention_heads": 2,
    "num_node_classes": 2,
    "num_edge_classes": 2,
    "hidden_graph_channels": [32, 16],
    "hidden_dense_channels": [8],
    "epochs": 7,
    "dropout": 0.25,
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "scheduler_type": "step",
    "scheduler_step": 4,
    "scheduler_gamma": 0.75,
    "tensorboard_update_frequency": 1,
    "valid_graph_ploter_frequency": 5,
    "animate_valid_progress": True,
    "visualise_tsne_manifold": True,
    "metrics_classifier": ["accuracy", "confusion_matrix"],
    "metrics_objects": ["exact", "approx"],
}
"""Every key, as a YAML file would have it."""

EFFECTS = {
    "train_image_dir": {"data.train_image_dir": "my data/train"},
    "train_grace_dir": {"data.train_grace_dir": None},
    "valid_image_dir": {"data.valid_image_dir": "2024"},
    "valid_grace_dir": {"data.valid_grace_dir": "valid's, ${it} [1]=2"},
    "infer_image_dir": {"data.infer_image_dir": "infer"},
    "infer_grace_dir": {"data.infer_grace_dir": "infer_grace"},
    "log_dir": {"log_dir": "my runs"},
    "keep_node_unknown_labels": {"data.keep_node_unknown_labels": True},
    "keep_edge_unknown_labels": {"data.keep_edge_unknown_labels": True},
    "extractor_fn": {"features._target_": "grace_lightning.features.Statistics"},
    "patch_size": {"features.patch": 3.2},
    "valid_graph_ploter_frequency": {"callbacks.figures.every_n_epochs": 5},
    "laplacian": {"features.laplacian": True},
    "img_graph_augs": {"augment.random_flip": None, "augment.random_xy_translation.max_shift": 2.0},
    "img_graph_aug_params": {
        "augment.random_edge_addition_and_removal.p_add": 0.1,
        "augment.random_edge_addition_and_removal.p_remove": 0.3,
        "augment.random_image_graph_rotate.rot_center": None,
        "augment.random_image_graph_rotate.rot_angle_range": [-9, 9],
    },
    "patch_augs": {"augment.random_edge_crop._target_": "grace_lightning.augment.RandomEdgeCrop"},
    "patch_aug_params": {"augment.random_edge_crop.max_fraction": 0.25},
    "batch_size": {"data.batch_size": 3},
    "num_hops": {"data.num_hops": 2},
    "connection": {"data.connection": "fireworks"},
    "classifier_type": {"model._target_": "grace_lightning.models.GAT"},
    "num_attention_heads": {"model.heads": 2},
    "hidden_graph_channels": {"model.hidden": [32, 16]},
    "hidden_dense_channels": {"model.dense": [8]},
    "epochs": {"trainer.max_epochs": 7},
    "dropout": {"model.dropout": 0.25},
    "learning_rate": {"optimizer.lr": 0.001},
    "weight_decay": {"optimizer.weight_decay": 0.0},
    "scheduler_type": {"scheduler._target_": "torch.optim.lr_scheduler.StepLR"},
    "scheduler_step": {"scheduler.step_size": 4},
    "scheduler_gamma": {"scheduler.gamma": 0.75},
    "animate_valid_progress": {"callbacks.animation.every_n_epochs": 1},
    "visualise_tsne_manifold": {"callbacks.manifold.method": "tsne"},
}


def compose(content, *given):
    """The configuration that a file and a command line come to."""
    overrides = translate(content, given).overrides
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        return hydra.compose("train", [*overrides, *given])


def at(cfg, key):
    """A value as plain containers; a key that is not there is an error."""
    value = OmegaConf.select(cfg, key, throw_on_missing=True)
    parent = OmegaConf.select(cfg, key.rpartition(".")[0]) if "." in key else cfg
    assert key.rpartition(".")[2] in parent
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def reasons(content, *given):
    """By key without effect the reason."""
    lines = translate(content, given, "old.json").lines
    return dict(re.fullmatch(r"old\.json: (\w+) has no effect: (.+)", line).groups() for line in lines)


@pytest.fixture(scope="module")
def composed():
    return compose(TYPED)


def test_every_key_is_tried():
    assert set(TYPED) == set(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_has_its_effect_or_a_reason(key, composed):
    for path, value in EFFECTS.get(key, {}).items():
        assert at(composed, path) == value
    assert (key in EFFECTS) != (key in reasons(TYPED))


def as_strings(content):
    return {key: value if isinstance(value, str) else str(value) for key, value in content.items()}


def test_strings_of_json_say_what_typed_yaml_says(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(TYPED, sort_keys=False))
    (tmp_path / "config.json").write_text(json.dumps(as_strings(TYPED)))
    typed, strings = (translate(read_config_file(tmp_path / f"config.{kind}")) for kind in ("yaml", "json"))
    assert typed == strings
    assert read_config_file(tmp_path / "config.json")["epochs"] == "7"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.01", 0.01),
        ("1e-3", 0.001),
        ("5", 5),
        ("[64, 32]", [64, 32]),
        ("(64, 64)", [64, 64]),
        ("True", True),
        ("false", False),
        ("None", None),
        ("none", None),
        ("", None),
        ("[{'max_shift': 5, 'rot_center': None}]", [{"max_shift": 5, "rot_center": None}]),
        ("['GAT']", ["GAT"]),
        ("2024-01-01", "2024-01-01"),
        ("__import__('os').system('true')", "__import__('os').system('true')"),
        ("!!python/object/apply:os.system ['true']", "!!python/object/apply:os.system ['true']"),
        ("[1, 2", "[1, 2"),
    ],
)
def test_strings_stand_for_values(text, value):
    assert plain(text) == value
    assert type(plain(text)) is type(value)


@pytest.mark.parametrize(
    "text", ["a b", "it's", "back\\", "\\'", "${x}", "a,b", "{a: [1]}", "", "é=1", "C:\\new\\x", "5"]
)
def test_text_reaches_hydra_as_it_is(text):
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        assert hydra.compose("train", [f"log_dir={render(text)}"]).log_dir == text


class TestCommandLineWins:
    @pytest.mark.parametrize(
        ("given", "key", "value"),
        [
            ("model=gcn", "model._target_", "grace_lightning.models.GCN"),
            ("model.hidden=[4]", "model.hidden", [4]),
            ("features=learned", "features._target_", "grace_lightning.features.Learned"),
            ("features.patch=1.5", "features.patch", 1.5),
            ("augment=none", "augment", {"views": 4}),
            ("augment.random_edge_crop=null", "augment.random_edge_crop", None),
            ("augment.random_flip.p_vertical=0.25", "augment.random_flip.p_vertical", 0.25),
            ("augment.random_xy_translation.max_shift=20", "augment.random_xy_translation.max_shift", 20),
            ("callbacks.animation=null", "callbacks.animation", None),
            ("data=simulated", "data.train_image_dir", "simulated/train"),
            ("data.infer_image_dir=null", "data.infer_image_dir", None),
            ("scheduler=cosine", "scheduler._target_", "torch.optim.lr_scheduler.CosineAnnealingLR"),
            ("trainer.max_epochs=2", "trainer.max_epochs", 2),
            ("log_dir=here", "log_dir", "here"),
        ],
    )
    def test_over_the_file(self, given, key, value):
        cfg = compose(TYPED, given)
        assert at(cfg, key) == value

    def test_a_folder_to_split_takes_the_place_of_all(self):
        cfg = compose(TYPED, "data.image_dir=all")
        assert (at(cfg, "data.image_dir"), at(cfg, "data.train_image_dir")) == ("all", None)
        assert at(cfg, "data._target_") == "grace_lightning.data.GraceDataModule"

    def test_a_list_of_options_is_no_sweep(self):
        assert compose(TYPED, "logger=[tensorboard,csv]").logger.keys() == {"tensorboard", "csv"}

    def test_another_network_keeps_what_fits_it(self):
        cfg = compose(TYPED, "model=mpnn")
        assert (at(cfg, "model.dense"), at(cfg, "model.dropout")) == ([8], 0.25)
        told = reasons(TYPED, "model=mpnn")
        assert told["hidden_graph_channels"] == "it is for model=gcn and gat, not model=mpnn"
        assert told["num_attention_heads"] == "it is for model=gat, not model=mpnn"

    def test_a_sweep_takes_what_all_its_options_have(self):
        overrides = translate(TYPED, ["model=gcn,gat"]).overrides
        assert "model.hidden=[32, 16]" in overrides
        assert not [o for o in overrides if o.startswith("model.heads")]
        assert "model.heads=2" in translate(TYPED, ["model=choice(gat)"]).overrides
        assert "model=gat" in reasons(TYPED, "model=gcn,gat")["num_attention_heads"]

    def test_a_patch_in_pixels_stays_the_same_at_another_scale(self):
        for scale in (10, 40):
            assert at(compose({"patch_size": 60}, f"features.scale={scale}"), "features.patch") == 60 / scale


def test_no_folders_leave_the_simulated_images():
    cfg = compose({"train_image_dir": "None", "epochs": "3"})
    assert at(cfg, "data.train_image_dir") == "simulated/train"


def test_augmentations_that_are_not_listed_are_off():
    cfg = compose({"img_graph_augs": [], "patch_augs": "None"})
    assert {key: value for key, value in at(cfg, "augment").items() if value is not None} == {"views": 4}
    only = compose({"patch_augs": []})
    assert at(only, "augment.random_edge_crop") is None
    assert at(only, "augment.random_flip.p_vertical") == 0.5


def test_null_leaves_what_is_set_here():
    assert reasons({"epochs": "None", "dropout": None}) == {"epochs": "it is null", "dropout": "it is null"}


@pytest.mark.parametrize(
    ("found", "option", "weights"),
    [("resnet152", "resnet152", None), ("nets/my_resnet18.pth", "resnet18", "nets/my_resnet18.pth")],
)
def test_feature_networks_by_name_or_by_file(found, option, weights):
    cfg = compose({"extractor_fn": found})
    assert (cfg.features.name, cfg.features.weights) == (option, weights)


def test_metrics_that_are_not_computed_are_told():
    assert reasons({"metrics_classifier": ["accuracy", "kappa"]})["metrics_classifier"].endswith(
        "kappa is not among them"
    )
    assert "among" not in reasons({"metrics_classifier": ["accuracy_metric", "f1_score"]})["metrics_classifier"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, r"old.json: epoch: no such key in GRACE; did you mean epochs\?"),
        ({"train_img_dir": "x"}, r"train_img_dir: .* did you mean train_image_dir\?"),
        ({"epochs": "many"}, "old.json: epochs: 'many', expected a whole number of 1 or more"),
        ({"epochs": 2.5}, "epochs: 2.5, expected a whole number"),
        ({"epochs": True}, "epochs: True, expected a whole number"),
        ({"dropout": "high"}, "dropout: 'high', expected 0 to 1"),
        ({"learning_rate": -1}, "learning_rate: -1, expected a number of 0 or more"),
        ({"laplacian": "maybe"}, "laplacian: 'maybe', expected true or false"),
        ({"normalise": 3}, "normalise: 3, expected true or false"),
        ({"log_dir": 5}, "log_dir: 5, expected text"),
        ({"classifier_type": "GNN"}, "classifier_type: 'GNN', expected one of gcn, gat"),
        ({"scheduler_type": "cosine"}, "scheduler_type: 'cosine', expected one of none, step, expo"),
        ({"connection": "web"}, "connection: 'web', expected one of spiderweb, fireworks"),
        ({"num_hops": 0}, "num_hops: 0, expected whole, or a number of 1 or more"),
        ({"num_node_classes": "4"}, "num_node_classes: '4', expected 2: negative and positive"),
        ({"num_edge_classes": 3}, "num_edge_classes: 3, expected 2"),
        ({"patch_size": "(64, 32)"}, "patch_size: .*expected the side of a square in pixels"),
        ({"hidden_graph_channels": ["a"]}, r"hidden_graph_channels: \['a'\], expected a list of widths"),
        ({"filetype": "jpg"}, "filetype: 'jpg', expected one of mrc, "),
        ({"extractor_fn": "net.pickle"}, r"extractor_fn: .*state dict.*torch.save\(model.state_dict\(\), FILE\)"),
        (
            {"img_graph_augs": ["random_flop"]},
            "img_graph_augs: 'random_flop', expected random_copy_paste or random_xy_translation or",
        ),
        ({"patch_augs": ["random_flip"]}, "patch_augs: 'random_flip', expected random_edge_crop"),
        ({"patch_augs": [3]}, r"patch_augs: \[3\], expected a list of names"),
        (
            {"patch_augs": ["random_edge_crop"], "patch_aug_params": [{"fraction": 1}]},
            "patch_aug_params: random_edge_crop takes no 'fraction', but max_fraction",
        ),
        ({"patch_augs": [], "patch_aug_params": [{}]}, "patch_aug_params: 1 entries, expected 0 as in patch_augs"),
        ({"patch_aug_params": [{}]}, r"patch_aug_params: \[{}\], expected none without patch_augs"),
    ],
)
def test_wrong_keys_and_values_are_named(content, message):
    with pytest.raises(InputError, match=message):
        translate(content, name="old.json")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gone.json", None, "gone.json, no such file"),
        ("cut.json", '{"epochs": 3,', "cut.json cannot be read .*complete"),
        ("cut.yaml", "epochs: [3", "cut.yaml cannot be read"),
        ("list.yaml", "[1, 2]", "list.yaml holds a list, expected keys and values"),
        ("empty.yaml", "", "empty.yaml holds a NoneType, expected keys and values"),
        ("old.toml", "epochs = 3", r"old.toml, expected a file that ends in .json, .yaml, .yml"),
        ("latin.json", b"\xe9", "latin.json cannot be read"),
        ("evil.yaml", "a: !!python/object/apply:os.system ['true']", "evil.yaml cannot be read"),
    ],
)
def test_bad_files_are_named(name, text, message, tmp_path):
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        read_config_file(tmp_path / name)


def test_the_file_types_are_those_that_can_be_read():
    assert set(FILE_TYPES) == {suffix[1:] for suffix in IMAGE_SUFFIXES}


def test_the_manual_tells_about_every_key():
    text = (Path(__file__).parents[1] / "docs" / "from-grace.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("|")]
    told = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert set(KEYS) <= told
