"""``grace-evaluate``, and the scores at the end of ``grace-train``."""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning_fabric import Fabric
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from rich.table import Table

from grace_lightning import figures, io
from grace_lightning.config import build, check_value
from grace_lightning.data import GraceDataModule, GraceDataset
from grace_lightning.errors import InputError, InputWarning
from grace_lightning.files import MAX_GIB, short, write_json
from grace_lightning.graph import Filament, Sample
from grace_lightning.metrics import (
    SCORES,
    Outcomes,
    Overlap,
    Scores,
    calibration,
    classification,
    compare,
    compare_pixels,
    eligible,
    object_scores,
    outcomes_of,
    together,
)
from grace_lightning.module import GraceModule
from grace_lightning.predictor import Predictor, Probabilities
from grace_lightning.splits import dealt_before, other_pixel_size
from grace_lightning.tasks.common import Config, on_devices, plain, quiet_lightning
from grace_lightning.tasks.predict import load_predictor

Metrics = dict[str, Any]

SET = "all_images"  # folder in ``infer/`` of the pictures of all images together: beside theirs, a name could be one's


class Image(NamedTuple):
    """Everything that scores of an image are made of; ``approx`` is None if the image has no annotation."""

    outcomes: Outcomes
    exact: Overlap
    approx: Overlap | None


def evaluate(cfg: DictConfig) -> Metrics:
    """Score a checkpoint on annotated images; return the metrics of :func:`evaluate_infer`.

    Writes ``metrics.json`` and ``infer/`` into the run folder.
    """
    config = plain(cfg)
    quiet_lightning()
    data = config["data"]
    images = io.find_images(data["infer_image_dir"]) if data["infer_image_dir"] else []
    predictor = load_predictor(config, images, frame=data["frame"], max_gib=data["max_gib"] or MAX_GIB)
    brush, pictures = drawing(config, predictor.scale)
    datasets = [_infer_images(config, predictor, module) for module in predictor.networks]
    chosen = {key: config["trainer"][key] for key in ("accelerator", "devices")}
    device = on_devices(config["trainer"], lambda: Fabric(**chosen)).device
    if config["features"]["scale"] is None:
        for source in datasets[0].sources:
            if other := other_pixel_size(predictor.configs, io.pixel_size(source.image)):
                warnings.warn(f"{source.name}: {other}", InputWarning, stacklevel=2)
                break
    run_dir, console = Path(config["run_dir"]), Console()
    result = evaluate_infer(predictor.to(device), datasets, brush, run_dir, console, pictures)
    print_scores(console, {"infer": result})
    console.out(f"run folder  {short(run_dir)}", highlight=False)
    return result


def _infer_images(config: Config, predictor: Predictor, module: GraceModule) -> GraceDataset:
    """Return the images to score as a network takes them."""
    trained = module.config["data"]
    made_anew = ("simulation", "scale", "polarity")  # the predictor resamples images
    data = {**trained, **dict.fromkeys(made_anew)}
    data |= {key: value for key, value in config["data"].items() if value is not None}
    if config["data"]["infer_image_dir"] is not None:
        # One folder to split in training, another one to score now: the split is over.
        data |= {"image_dir": None, "grace_dir": None, "infer_grace_dir": config["data"]["infer_grace_dir"]}
    taken_as_they_are = trained.get("scale") is trained.get("polarity") is predictor.polarity is None
    as_trained = taken_as_they_are and predictor.scale == module.features.scale
    at_run_time = {"sigma": module.features.sigma if as_trained else None, "dealt": dealt_before(module.config)}
    datamodule: GraceDataModule = build(data, "data", **at_run_time)
    datamodule.setup("predict")
    if not datamodule.sources["infer"]:
        raise InputError("data.infer_image_dir is not set, and the checkpoint was trained without inference images")
    dataset = datamodule.dataset("infer")
    if not as_trained:
        dataset.as_data = partial(predictor.as_taken_by, module)
    return dataset


def drawing(config: Config, scale: float) -> tuple[float, bool]:
    """Return the brush in pixels, a filament's width unless it is set, and whether pictures are wanted."""
    brush, pictures = config["evaluate"]["brush"], config["evaluate"]["pictures"]
    check_value(brush, float | None, "evaluate.brush")
    check_value(pictures, bool, "evaluate.pictures")
    if brush is not None and brush < 1:
        raise InputError(f"evaluate.brush: {brush}, expected 1 pixel or more")
    return float(scale if brush is None else brush), pictures


def score(parts: Sequence[Outcomes], modules: Sequence[GraceModule]) -> Metrics:
    """Return the :data:`grace_lightning.metrics.SCORES` of ``nodes`` and ``edges`` of several images together.

    And their ``calibration``: temperature, and expected calibration error without and with it. Several networks have no
    temperature in common: then it is None, and so is the error without it.
    """
    outcomes = together(parts)
    metrics: Metrics = {name: classification(*outcome) for name, outcome in outcomes.items()}
    metrics["calibration"] = {}
    for (name, outcome), temperature in zip(outcomes.items(), modules[0].temperature.tolist(), strict=False):
        metrics["calibration"][name] = calibration(*outcome, temperature)
        if len(modules) > 1:
            metrics["calibration"][name] |= {"temperature": None, "error_before": None}
    return metrics


def score_objects(images: Sequence[Image]) -> dict[str, Scores]:
    """Score the filaments of several images together.

    Return values of :data:`grace_lightning.metrics.OBJECT_SCORES`: ``exact`` for sets of nodes; ``approx``, and
    ``pixel_accuracy``, for the images with an annotation.
    """
    masks = [image.approx for image in images if image.approx is not None]
    exact = object_scores([image.exact for image in images])
    return {"exact": exact, "approx": object_scores(masks) if masks else dict.fromkeys((*exact, "pixel_accuracy"))}


def evaluate_infer(
    predictor: Predictor,
    datasets: Sequence[GraceDataset],
    brush: float,
    run_dir: Path,
    console: Console,
    pictures: bool,
) -> Metrics:
    """Score the inference images; write ``metrics.json``, and numbers and pictures into ``infer/``.

    Return what :func:`score` does; ``objects``, see :func:`score_objects`; ``images``, scores and objects of each.

    The ``datasets`` hold the images as each network takes them. ``brush`` pixels wide, filaments are drawn as masks.
    """
    names = [[source.name for source in dataset.sources] for dataset in datasets]
    if names != [names[0]] * len(names):
        raise InputError("checkpoint: trained with different inference images; give data.infer_image_dir")
    folder = run_dir / "infer"
    images: list[Image] = []
    each: Metrics = {}
    doing, hidden = "linking and drawing" if pictures else "linking", not console.is_terminal
    for k, name in enumerate(track(names[0], doing, console=console, transient=True, disable=hidden)):
        sample = datasets[0].sample(k)
        said = predictor.probabilities([dataset.graph(k) for dataset in datasets])
        filaments = eligible(predictor.link(sample.graph, said), sample.graph)
        image = _compared(sample, said, filaments, brush)
        each[name] = {head: classification(*outcome) for head, outcome in image.outcomes.items()}
        each[name]["objects"] = score_objects([image])
        write_json(folder / f"{name}.json", each[name])
        if pictures:
            _draw_image(sample, said, filaments, image, folder, {*names[0]} - {name})
        images.append(image)
    metrics = score([image.outcomes for image in images], predictor.networks)
    metrics |= {"objects": score_objects(images), "images": each, "calibration": metrics.pop("calibration")}
    if pictures:
        _draw_set(images, folder / SET)
    write_json(run_dir / "metrics.json", metrics)
    return metrics


def _compared(sample: Sample, said: Probabilities, filaments: Sequence[Filament], brush: float) -> Image:
    assert sample.truth is not None
    exact = compare(sample.truth, filaments, sample.graph)
    approx = None if sample.annotation is None else compare_pixels(sample.annotation, filaments, brush)
    return Image(outcomes_of(sample.graph, said), exact, approx)


def _draw_image(
    sample: Sample, said: Probabilities, found: Sequence[Filament], image: Image, folder: Path, others: set[str]
) -> None:
    """Write ``X.png``, ``X_filaments.png`` and ``X_iou.png``; more underscores if one of ``others`` has the name."""
    assert sample.truth is not None
    pixels, graph, name = sample.image, sample.graph, sample.name
    for what, picture in {
        "": figures.probabilities(pixels, graph, said["node"], said["edge"], title=name),
        "_filaments": figures.filaments(pixels, graph, found, sample.truth, title=name),
        "_iou": figures.iou_histogram(_paired([image]), title=name),
    }.items():
        while f"{name}{what}" in others:
            what = f"_{what}"
        picture.savefig(folder / f"{name}{what}.png", pil_kwargs=figures.PNG)


def _draw_set(images: Sequence[Image], folder: Path) -> None:
    """Write the pictures of all images together: how good the probabilities are, and the filaments."""
    outcomes = together([image.outcomes for image in images])
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in {
        "confusion": figures.confusion_matrices(outcomes),
        "roc": figures.roc_curves(outcomes),
        "precision_recall": figures.precision_recall_curves(outcomes),
        "probabilities": figures.probability_histograms(outcomes),
        "reliability": figures.reliability_diagram(outcomes),
        "iou": figures.iou_histogram(_paired(images), title="all images"),
    }.items():
        picture.savefig(folder / f"{name}.png", pil_kwargs=figures.PNG)


def _paired(images: Sequence[Image]) -> dict[str, np.ndarray]:
    masks = [image.approx.paired for image in images if image.approx is not None]
    paired = {"nodes": np.concatenate([image.exact.paired for image in images])}
    return paired | ({"masks": np.concatenate(masks)} if masks else {})


SHOWN_OBJECT_SCORES = {
    **{"f1_50": "f1", "precision_50": "precision", "recall_50": "recall", "mean_best_iou": "best IoU"},
    **{"instance_iou_mean": "mean IoU", "semantic_iou": "semantic", "pixel_accuracy": "pixels"},
}


def print_scores(console: Console, results: dict[str, Metrics]) -> None:
    """Print a table of the scores by set, nodes and edges; below, one of the filaments if they were linked."""
    heads = [(name, head, metrics[head]) for name, metrics in results.items() for head in ("nodes", "edges")]
    shown = {name: name.replace("_", " ") for name in SCORES}
    _print_table(console, shown, [((name, head), scores) for name, head, scores in heads])
    for name, metrics in results.items():
        for head, found in metrics["calibration"].items():
            if None not in (found["error_before"], found["error_after"]):
                of = "{temperature:.2f}: expected calibration error {error_before:.4f} -> {error_after:.4f}"
                console.print(f"{name} {head}, temperature {of.format(**found)}", highlight=False)
    for objects in (metrics["objects"] for metrics in results.values() if "objects" in metrics):
        _print_table(console, SHOWN_OBJECT_SCORES, [(("nodes",), objects["exact"]), (("masks",), objects["approx"])])


def _print_table(console: Console, shown: dict[str, str], rows: list[tuple[tuple[str, ...], Scores]]) -> None:
    table = Table(*[""] * len(rows[0][0]))
    for heading in shown.values():
        table.add_column(heading, justify="right")
    for words, scores in rows:
        values = [scores.get(name) for name in shown]
        table.add_row(*words, *("-" if value is None else f"{value:.3f}" for value in values))
    console.print(table)
