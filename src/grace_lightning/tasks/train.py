"""``grace-train``."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.progress import track

from grace_lightning.augment import Augmentation
from grace_lightning.callbacks import SeedEpochs, StopOnSignal, Stopped, stopping_on_signals
from grace_lightning.config import build, check, check_value
from grace_lightning.data import GraceDataModule, GraphData
from grace_lightning.errors import InputError, InputWarning, LossError
from grace_lightning.io import read_instances
from grace_lightning.module import CHECKPOINT_KEY, GraceModule, read_checkpoint
from grace_lightning.sweeps import check_objective
from grace_lightning.sweeps.hparams import conclude, introduce
from grace_lightning.tasks.common import Config, plain, quiet_lightning, short
from grace_lightning.tasks.evaluate import (
    Metrics,
    build_linker,
    build_module,
    evaluate_infer,
    predict,
    print_scores,
    score,
    score_calibration,
    single_process,
)
from grace_lightning.tasks.objects import brush_width, wants_pictures
from grace_lightning.tasks.record import describe_data, resume_command, write_record


def train(cfg: DictConfig) -> Metrics:
    """Train, keep the best and the last checkpoint, and score the best one.

    Returns
    -------
    metrics by set, see :func:`score`; none in a process that helped another one to train
    """
    config = plain(cfg)
    check_value(config["seed"], int, "seed")
    check_value(config["ckpt_path"], str | None, "ckpt_path")
    check({"trainer": config["trainer"], **config}, "")  # the trainer first: other nodes refer to its values
    quiet_lightning()
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    with stopping_on_signals(first=getattr(rank_zero_only, "rank", 0) == 0):
        try:
            with _own_wandb_run():
                return _train(config)
        except Stopped as stop:
            print(f"grace-train: {_how_to_go_on(stop, config)}", file=sys.stderr)
            sys.exit(128 + stop.signal)


def _train(config: Config) -> Metrics:
    run_dir = Path(config["run_dir"])
    features = build(config["features"], "features")
    augment, views = build_augmentation(config["augment"])
    datamodule: GraceDataModule = build(config["data"], "data", features=features, augment=augment, views=views)
    module = build_module(config, features, augment.patches)
    linker = build_linker(config["link"], config)
    brush, pictures = brush_width(config, config["features"]["scale"]), wants_pictures(config)
    callbacks = {name: build(node, f"callbacks.{name}") for name, node in config["callbacks"].items()}
    loggers = {name: _build_logger(node, f"logger.{name}") for name, node in (config.get("logger") or {}).items()}
    if not any(loggers.values()):  # Lightning would refuse to watch the learning rate for nobody
        callbacks = {name: c for name, c in callbacks.items() if not isinstance(c, LearningRateMonitor)}
    trainer = _build_trainer(config, callbacks, loggers)
    resumed = _resume_from(config)

    datamodule.prepare_data()
    console = Console(quiet=not trainer.is_global_zero)
    if not trainer.is_global_zero:
        warnings.simplefilter("ignore", InputWarning)  # the first process has said it
    datamodule.setup("fit")
    check_objective(config["objective"], infer=bool(datamodule.sources["infer"]))
    # All images are read before the first epoch: a damaged one is reported now, not after an hour.
    module.fit_to(_read_all(datamodule, "train", console))
    for name in ("valid", "infer"):
        for source, data in zip(datamodule.sources[name], _read_all(datamodule, name, console), strict=True):
            if name == "infer" and source.instances is not None:
                read_instances(source.instances, len(data.node_label))
    if trainer.is_global_zero:
        write_record(config, run_dir, describe_data(datamodule.sources, datamodule.digests))
        introduce(trainer, config)
    if features.frozen:
        console.print(features.report(), highlight=False)
    console.print(describe_size(module), highlight=False)
    try:
        trainer.fit(module, datamodule, ckpt_path=resumed, weights_only=True)
    except LossError:
        if not trainer.is_global_zero:  # the first process says so
            sys.exit(2)
        raise
    if not trainer.is_global_zero:
        return {}

    best = _best_checkpoint(callbacks.values(), config["ckpt_path"])
    if best is not None:
        module.load_state_dict(read_checkpoint(best)["state_dict"])
    alone = trainer if trainer.world_size == 1 else single_process(config["trainer"], trainer.strategy.root_device)
    valid = predict(alone, module, datamodule.loader("valid"))
    results = {"valid": {**score(valid), "calibration": score_calibration([module], valid)}}
    if datamodule.sources["infer"]:
        results["infer"] = evaluate_infer(alone, [(module, datamodule)], linker, brush, run_dir, console, pictures)
    print_scores(console, results)
    console.print(f"run folder  {short(run_dir)}", highlight=False)
    if any(isinstance(logger, TensorBoardLogger) for logger in loggers.values()):
        console.print(f"dashboards  tensorboard --logdir {config['log_dir']}", highlight=False)
    conclude(trainer, config, results)
    return results


def _build_logger(node: Config | None, path: str) -> Logger | None:
    try:
        return cast(Logger | None, build(node, path))
    except InstantiationException as error:  # whatever a service's own package raises
        raise InputError(f"{path}: {error.__cause__}") from error


@contextmanager
def _own_wandb_run() -> Iterator[None]:
    """End the run of wandb with that of ours: in a sweep the next one would go on with it."""
    failed = 1
    try:
        yield
        failed = 0
    finally:
        wandb = sys.modules.get("wandb")
        if wandb is not None and getattr(wandb, "run", None) is not None:
            wandb.finish(exit_code=failed)


def _build_trainer(config: Config, callbacks: dict[str, Any], loggers: dict[str, Any]) -> pl.Trainer:
    own = [SeedEpochs(config["seed"]), StopOnSignal()]
    try:
        trainer: pl.Trainer = build(
            config["trainer"],
            "trainer",
            callbacks=own + [c for c in callbacks.values() if c is not None],
            enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks.values()),
            logger=[logger for logger in loggers.values() if logger is not None] or False,
        )
    except MisconfigurationException as error:
        raise InputError(f"trainer: {error}") from error
    sweeps = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if sweeps and trainer.world_size > 1 and isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
        raise InputError(
            f"trainer.strategy={config['trainer'].get('strategy', 'auto')} starts this command again for each of "
            f"{trainer.world_size} processes, and with -m each would run the whole sweep; give trainer.devices=1, or "
            "trainer.strategy=ddp_spawn, or run the combinations one by one without -m"
        )
    return trainer


def _how_to_go_on(stop: Stopped, config: Config) -> str:
    """One line: what stopped, what is kept, what to type."""
    by = "Ctrl-C" if stop.signal is signal.SIGINT else stop.signal.name
    last = Path((config["callbacks"].get("checkpoint") or {}).get("dirpath") or config["run_dir"]) / "last.ckpt"
    if not last.is_file():
        return f"stopped by {by} before training began; nothing is kept"
    epochs = _whole_epochs(read_checkpoint(last))
    go_on = resume_command(short(last))
    return f"stopped by {by}; {short(last)} holds the state after {epochs} whole epochs; go on with: {go_on}"


def build_augmentation(node: Config | None) -> tuple[Augmentation, int]:
    """The configured augmentations, and the number of views: how often frozen features see each image augmented."""
    steps = dict(node or {})
    views = steps.pop("views", 4)
    check_value(views, int, "augment.views")
    if views < 1:
        raise InputError(f"augment.views: {views}, expected 1 or more; augment=none for no augmentation")
    return Augmentation({name: build(step, f"augment.{name}") for name, step in steps.items()}), views


def _read_all(datamodule: GraceDataModule, name: str, console: Console) -> Iterator[GraphData]:
    """Prepare the images of a set one by one; print how much there is once all are read."""
    dataset = datamodule.dataset(name, augmented=name == "train")
    nodes = edges = 0
    hidden = not console.is_terminal
    for k in track(range(len(dataset)), f"reading {name} images", console=console, transient=True, disable=hidden):
        for view in range(dataset.views):  # now, where there is a GPU, not in the processes that prepare samples
            dataset.view(k, view)
        data = dataset.prepared(k)
        nodes, edges = nodes + len(data.node_label), edges + len(data.edge_label)
        yield data
    console.print(f"{name}  {len(dataset)} images, {nodes:,} nodes, {edges:,} edges", highlight=False)


def describe_size(module: GraceModule) -> str:
    """Number of trained parameters, in all and by part."""
    halves = {"features": module.features, "network": module.network}
    parts = {f"{name} {part}": p for name, half in halves.items() for part, p in half.named_children()}
    counts = {name: sum(p.numel() for p in part.parameters() if p.requires_grad) for name, part in parts.items()}
    listed = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
    return f"parameters  {sum(counts.values()):,} ({listed})".replace("_", " ")


def _resume_from(config: Config) -> str | None:
    path = config["ckpt_path"]
    if path is None:
        return None
    checkpoint = read_checkpoint(path)
    trained = checkpoint[CHECKPOINT_KEY]
    for key in ("model", "features"):
        if trained[key] != config[key]:
            raise InputError(f"ckpt_path: {path} was trained with {key} {trained[key]}, this run has {config[key]}")
    limit, epochs = config["trainer"].get("max_epochs"), _whole_epochs(checkpoint)
    if limit not in (None, -1) and epochs > limit:
        raise InputError(f"trainer.max_epochs: {limit}, but {path} has had {epochs} epochs; give that many or more")
    return str(path)


def _whole_epochs(checkpoint: dict[str, Any]) -> int:
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def _best_checkpoint(callbacks: Any, resumed: str | None) -> str | None:
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.best_model_path:
            return callback.best_model_path
    return resumed
