"""``grace-evaluate``, and the scores at the end of ``grace-train``."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from rich.table import Table

from grace_lightning import figures
from grace_lightning.config import build, check_value
from grace_lightning.data import GraceDataModule
from grace_lightning.errors import InputError
from grace_lightning.features import PatchAugmentation
from grace_lightning.graph import Sample
from grace_lightning.link import Linker
from grace_lightning.metrics import SCORES, Scores, calibration, classification
from grace_lightning.module import CHECKPOINT_KEY, GraceModule, Prediction, gather, mean_prediction, read_checkpoint
from grace_lightning.tasks.common import (
    Config,
    checkpoint_paths,
    plain,
    quiet_lightning,
    same_in_all,
    short,
    write_json,
)
from grace_lightning.tasks.objects import (
    Objects,
    brush_width,
    draw_objects,
    draw_set,
    find_objects,
    print_objects,
    score_objects,
    wants_pictures,
)

Metrics = dict[str, Any]

OWN_CLASSES = "grace_lightning."
"""Only classes of this package are made from a checkpoint's configuration."""

SET = "all_images"
"""Folder in ``infer/`` of the pictures of all images together: beside theirs, a name could be an image's."""


def evaluate(cfg: DictConfig) -> Metrics:
    """Score a checkpoint on annotated images; writes ``metrics.json`` and ``infer/`` into the run folder.

    Returns
    -------
    metrics, see :func:`score`
    """
    config = plain(cfg)
    quiet_lightning()
    check_value(config["checkpoint"], str | list[str] | None, "checkpoint")
    paths = checkpoint_paths(config["checkpoint"] or [])
    if not paths:
        raise InputError("checkpoint is not set; give a file such as checkpoint=runs/<run>/model/best.ckpt")
    modules = [load_module(path, scale=config["features"]["scale"]) for path in paths]
    configs = [module.config for module in modules]
    scale = same_in_all(configs, "features.scale", "give features.scale")
    same_in_all(configs, "data.max_candidate", "they see different graphs")
    linker = build_linker(config.get("link"), configs[0])
    brush = brush_width(config, scale)
    members = [(module, _infer_data(config, module)) for module in modules]
    trainer = single_process(config["trainer"])
    console = Console()
    pictures = wants_pictures(config)
    result = evaluate_infer(trainer, members, linker, brush, Path(config["run_dir"]), console, pictures)
    print_scores(console, {"infer": result})
    console.print(f"run folder  {short(Path(config['run_dir']))}", highlight=False)
    return result


def _infer_data(config: Config, module: GraceModule) -> GraceDataModule:
    """The images to score, as a network takes them."""
    data = {**module.config["data"], "simulation": None}
    data |= {key: value for key, value in config["data"].items() if value is not None}
    if config["data"]["infer_image_dir"] is not None:
        # One folder to split in training, another one to score now: the split is over.
        data |= {"image_dir": None, "grace_dir": None, "infer_grace_dir": config["data"]["infer_grace_dir"]}
    datamodule: GraceDataModule = build(data, "data", features=module.features)
    datamodule.setup("predict")
    if not datamodule.sources["infer"]:
        raise InputError("data.infer_image_dir is not set, and the checkpoint was trained without inference images")
    return datamodule


def single_process(node: Config, device: torch.device | None = None) -> pl.Trainer:
    """A trainer that predicts in this process alone, for one that may train in several.

    Parameters
    ----------
    node : the configured trainer
    device : that it is to use; None: the first of the configured ones
    """
    devices = 1 if device is None or device.index is None else [device.index]
    alone = {"strategy": "auto", "devices": devices, "num_nodes": 1, "sync_batchnorm": False}
    trainer: pl.Trainer = build({**node, **alone}, "trainer", logger=False, plugins=[LightningEnvironment()])
    return trainer


def load_module(path: str | Path, scale: float | None = None) -> GraceModule:
    """The trained module of a checkpoint, ready to predict.

    Parameters
    ----------
    path : of the checkpoint
    scale : width of a filament in the images to come, pixels; None: as in training

    Raises
    ------
    InputError
        Not a checkpoint of this package, or one whose configuration names another package's classes.
    """
    checkpoint = read_checkpoint(path)
    config = checkpoint[CHECKPOINT_KEY]
    for key in ("features", "model", "module", "data", "link"):
        if not isinstance(config, dict) or not isinstance(config.get(key), dict):
            raise InputError(f"{path}: its configuration has no {key}; was it made by another version?")
        _check_own(config[key], f"{path}: {key}")
    if scale is not None:
        for key in ("features", "link"):
            config[key] |= {"scale": scale} if "scale" in config[key] else {}
    try:
        features = build(config["features"], "features")
        module = build_module({**config, "optimizer": None, "scheduler": None}, features)
    except InputError:
        raise
    except Exception as error:  # a configuration that nobody trained with fails in any way
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path}: nothing can be built from its configuration ({reason}); was it changed?") from error
    module.config = config
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: its weights do not fit its configuration; was it made by another version?"
        ) from error
    return module.eval()


def build_linker(node: Config | None, trained: Config) -> Linker:
    """What links filaments: as ``node`` says or, where it is empty, as the checkpoint's configuration does."""
    if not node:
        node = trained["link"]
    elif "scale" in node and node["scale"] is None:
        node = {**node, "scale": trained["features"]["scale"]}
    linker: Linker = build(node, "link")
    return linker


def _check_own(node: Any, where: str) -> None:
    """Refuse a checkpoint's configuration that names anything but classes of this package, or refers elsewhere.

    A prefix alone would not do: ``grace_lightning.cli.os.system`` is a name as well.
    """
    if isinstance(node, str) and "${" in node:
        raise InputError(f"{where} has {node!r}, expected plain values only")
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _check_own(value, where)
    if not isinstance(node, dict) or "_target_" not in node:
        return
    target, found = node["_target_"], None
    if isinstance(target, str) and target.startswith(OWN_CLASSES):
        module, _, name = target.rpartition(".")
        with suppress(ImportError):
            found = getattr(import_module(module), name, None)
    if not (inspect.isclass(found) and found.__module__.startswith(OWN_CLASSES)):
        raise InputError(f"{where} names {target!r}, expected classes of {OWN_CLASSES[:-1]} only")


def build_module(config: Config, features: Any, augment: PatchAugmentation | None = None) -> GraceModule:
    """The module that a resolved configuration describes."""
    network = build(config["model"], "model", node_width=features.node_width, edge_width=features.edge_width)
    module: GraceModule = build(
        config["module"],
        "module",
        features=features,
        network=network,
        optimizer=build(config["optimizer"], "optimizer"),
        scheduler=build(config["scheduler"], "scheduler"),
        config=config,
        augment=augment,
    )
    return module


def predict(trainer: pl.Trainer, module: GraceModule, loader: Any) -> list[Prediction]:
    """Probabilities of all images of a loader, in its order."""
    batches = trainer.predict(module, loader)
    return [prediction for batch in batches or [] for prediction in batch]


def score(predictions: Sequence[Prediction]) -> Metrics:
    """Metrics of all nodes and edges together, and of each image.

    Returns
    -------
    ``nodes`` and ``edges``: values of :data:`grace_lightning.metrics.SCORES`; ``images``: the same by image
    """

    def both(part: Sequence[Prediction]) -> dict[str, Scores]:
        return {head: classification(*outcome) for head, outcome in gather(part).items()}

    return {**both(predictions), "images": {p.name: both([p]) for p in predictions}}


def score_calibration(modules: Sequence[GraceModule], predictions: Sequence[Prediction]) -> Metrics:
    """Of ``nodes`` and ``edges`` the temperature, and the expected calibration error without and with it.

    Several networks have no temperature in common, and no error without it: None.
    """
    found: Metrics = {}
    for (head, (probability, label)), temperature in zip(
        gather(predictions).items(), modules[0].temperature.tolist(), strict=False
    ):
        found[head] = calibration(probability, label, temperature)._asdict()
        if len(modules) > 1:
            found[head] |= {"temperature": None, "error_before": None}
    return found


def evaluate_infer(
    trainer: pl.Trainer,
    members: Sequence[tuple[GraceModule, GraceDataModule]],
    linker: Linker,
    brush: float,
    run_dir: Path,
    console: Console,
    pictures: bool,
) -> Metrics:
    """Score the inference images; write ``metrics.json``, and numbers and pictures into ``infer/``.

    Parameters
    ----------
    members : networks, and the images as each takes them; the log-odds of several are averaged
    linker : makes filaments of the probabilities
    brush : width of the line that a filament is drawn with, pixels
    pictures : whether to draw any

    Returns
    -------
    metrics, see :func:`score`; ``objects``, of all and of each image, see :func:`score_objects`
    """
    dataset = members[0][1].dataset("infer")
    said = [predict(trainer, module, data.predict_dataloader()) for module, data in members]
    names = [[prediction.name for prediction in part] for part in said]
    if names != [names[0]] * len(names):
        raise InputError("checkpoint: trained with different inference images; give data.infer_image_dir")
    predictions = [mean_prediction(of_image) for of_image in zip(*said, strict=True)]
    metrics = score(predictions)
    folder = run_dir / "infer"
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Objects] = []
    hidden = not console.is_terminal
    shown = track(
        predictions, "linking and drawing" if pictures else "linking", console=console, transient=True, disable=hidden
    )
    for index, prediction in enumerate(shown):
        sample = dataset.annotated(index)  # one image at a time; of the others, sets of nodes and numbers are kept
        objects = find_objects(sample, dataset.sources[index], prediction, linker, brush)
        metrics["images"][prediction.name]["objects"] = score_objects([objects])
        write_json(folder / f"{prediction.name}.json", metrics["images"][prediction.name])
        if pictures:
            _draw(sample, prediction, folder / f"{prediction.name}.png")
            draw_objects(sample, objects, prediction.name, folder, set(names[0]))
        found.append(objects)
    metrics = {**metrics, "objects": score_objects(found), "images": metrics.pop("images")}
    metrics["calibration"] = score_calibration([module for module, _ in members], predictions)
    if pictures:
        draw_set(gather(predictions), found, folder / SET)
    write_json(run_dir / "metrics.json", metrics)
    return metrics


def _draw(sample: Sample, prediction: Prediction, path: Path) -> None:
    figure = figures.probabilities(
        sample.image, sample.graph, prediction.node_probability, prediction.edge_probability, title=sample.name
    )
    figure.savefig(path)


def print_scores(console: Console, results: dict[str, Metrics]) -> None:
    """A table of the scores by set, nodes and edges; below, one of the filaments where they were linked."""
    table = Table(*["", "", *(name.replace("_", " ") for name in SCORES)])
    for column in table.columns[2:]:
        column.justify = "right"
    for name, metrics in results.items():
        for head in ("nodes", "edges"):
            values = [metrics[head][key] for key in SCORES]
            table.add_row(name, head, *("-" if value is None else f"{value:.3f}" for value in values))
    console.print(table)
    for name, metrics in results.items():
        for head, found in metrics["calibration"].items():
            errors = [found["error_before"], found["error_after"]]
            if None not in errors:
                of = "{temperature:.2f}: expected calibration error {error_before:.4f} -> {error_after:.4f}"
                console.print(f"{name} {head}, temperature {of.format(**found)}", highlight=False)
    for metrics in results.values():
        if "objects" in metrics:
            print_objects(console, metrics["objects"])
