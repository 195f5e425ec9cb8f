"""The keys of a configuration of GRACE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from grace_lightning.legacy import augmentations, values
from grace_lightning.legacy.effects import Effect, metrics, nothing, nothing_more, patch, sets, switch, weights
from grace_lightning.legacy.values import NETWORKS, Reader, flag, items, number, one_of, text, whole


class Key(NamedTuple):
    """What becomes of a key.

    Attributes
    ----------
    read : how its value is read
    effect : what the value sets, or why it sets nothing
    chooses : by config group the option that the value asks for
    """

    read: Reader
    effect: Effect
    chooses: Callable[[Any], dict[str, str]] = lambda value: {}


def _option(group: str) -> Callable[[str], dict[str, str]]:
    """The value is an option of a group."""
    return lambda value: {group: value}


def _folders(value: str | None) -> dict[str, str]:
    return {} if value is None else {"data": "folders"}


def _augmented(value: Any) -> dict[str, str]:
    return {"augment": "default"}


CONVOLUTIONS = ("gcn", "gat")
STANDARDISED = "images are always standardised (features.flatten says how)"
WITH_LAPLACIAN = ("statistics", *NETWORKS)
PARTS = ("train", "valid", "infer")
NAMES = items(augmentations.name, "a list of names")
PARAMETERS = items(augmentations.parameters, "a list with the parameters of each augmentation")

KEYS: dict[str, Key] = {
    **{f"{part}_image_dir": Key(text, sets(f"data.{part}_image_dir", "folders"), _folders) for part in PARTS},
    **{f"{part}_grace_dir": Key(text, sets(f"data.{part}_grace_dir", "folders")) for part in PARTS},
    "log_dir": Key(text, sets("log_dir")),
    "filetype": Key(values.file_type, nothing("every type of image that can be read is found by itself")),
    "keep_node_unknown_labels": Key(flag, sets("data.keep_node_unknown_labels")),
    "keep_edge_unknown_labels": Key(flag, sets("data.keep_edge_unknown_labels")),
    "extractor_fn": Key(values.extractor, weights, lambda value: {"features": value.option}),
    "patch_size": Key(values.side, patch),
    "feature_dim": Key(whole(1), nothing("the number of features follows from features=")),
    "normalise": Key(values.normalised, nothing(STANDARDISED)),
    "normalize": Key(values.normalised, nothing(STANDARDISED)),
    "laplacian": Key(flag, sets("features.laplacian", *WITH_LAPLACIAN)),
    "img_graph_augs": Key(NAMES, augmentations.augments, _augmented),
    "img_graph_aug_params": Key(PARAMETERS, nothing_more),
    "patch_augs": Key(NAMES, augmentations.augments, _augmented),
    "patch_aug_params": Key(PARAMETERS, nothing_more),
    "keep_patch_fraction": Key(
        number(0, 1),
        nothing("every node of an image is trained on, in one graph; to train on less, leave images out"),
    ),
    "batch_size": Key(whole(1), sets("data.batch_size")),
    "num_hops": Key(values.hops, sets("data.num_hops")),
    "connection": Key(one_of(spiderweb="spiderweb", fireworks="fireworks"), sets("data.connection")),
    "classifier_type": Key(one_of(gcn="gcn", gat="gat"), nothing_more, _option("model")),
    "num_attention_heads": Key(whole(1), sets("model.heads", "gat")),
    "num_node_classes": Key(values.two, nothing("a node is negative or positive, always")),
    "num_edge_classes": Key(values.two, nothing("an edge is negative or positive, always")),
    "hidden_graph_channels": Key(items(whole(1), "a list of widths"), sets("model.hidden", *CONVOLUTIONS)),
    "hidden_dense_channels": Key(items(whole(1), "a list of widths"), sets("model.dense")),
    "epochs": Key(whole(1), sets("trainer.max_epochs")),
    "dropout": Key(number(0, 1), sets("model.dropout")),
    "learning_rate": Key(number(), sets("optimizer.lr")),
    "weight_decay": Key(number(), sets("optimizer.weight_decay")),
    "scheduler_type": Key(one_of(none="none", step="step", expo="exponential"), nothing_more, _option("scheduler")),
    "scheduler_step": Key(whole(1), sets("scheduler.step_size", "step")),
    "scheduler_gamma": Key(number(), sets("scheduler.gamma", "step", "exponential")),
    "tensorboard_update_frequency": Key(whole(1), nothing("metrics are logged in every epoch")),
    "valid_graph_ploter_frequency": Key(whole(1), sets("callbacks.figures.every_n_epochs", "default")),
    "animate_valid_progress": Key(flag, switch("callbacks.animation.every_n_epochs", 1)),
    "visualise_tsne_manifold": Key(flag, switch("callbacks.manifold.method", "tsne")),
    "metrics_classifier": Key(items(str, "a list of names"), metrics("classifier")),
    "metrics_objects": Key(items(str, "a list of names"), metrics("objects")),
}

NULL_SAYS_SOMETHING = {
    *(key for key, (read, *_) in KEYS.items() if read is text),
    *("extractor_fn", "scheduler_type", "normalise", "normalize"),
    *("img_graph_augs", "img_graph_aug_params", "patch_augs", "patch_aug_params"),
}
"""Keys of which null is a value; of the others it leaves what is set here."""
