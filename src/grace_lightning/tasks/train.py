"""``grace-train``."""

import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from pytorch_lightning.callbacks import ModelCheckpoint, ProgressBar
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.progress import track

from grace_lightning.augment import Augmentation
from grace_lightning.callbacks import Pruning, SeedEpochs, StopOnSignal, WholeFiles
from grace_lightning.checkpoint import build_linker, build_module, read_checkpoint, resume, whole_epochs
from grace_lightning.config import build, check, check_value
from grace_lightning.data import GraceDataModule, GraphData
from grace_lightning.errors import InputError, InputWarning, LossError
from grace_lightning.files import counted, one_line, short
from grace_lightning.metrics import outcomes_of
from grace_lightning.module import GraceModule
from grace_lightning.predictor import Predictor
from grace_lightning.stopping import Stopped, stopping_on_signals
from grace_lightning.sweeps import check_objective, in_sweep
from grace_lightning.tasks.common import Config, plain, quiet_lightning
from grace_lightning.tasks.evaluate import Metrics, drawing, evaluate_infer, print_scores, score
from grace_lightning.tasks.record import log_best_metrics, log_hyperparameters, resume_command, write_record


def train(cfg: DictConfig) -> Metrics:
    """Train, keep the best and the last checkpoint, and score the best one.

    Return metrics by set, ``valid`` and ``infer``; none in a process that helped another one.
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
    at_run_time = {"sigma": features.sigma, "augment": augment, "views": views if features.frozen else None}
    datamodule: GraceDataModule = build(config["data"], "data", **at_run_time)
    module = build_module(config, features, augment.patches)
    linker = build_linker(config["link"], config)
    brush, pictures = drawing(config, config["features"]["scale"])
    trainer = _build_trainer(config)
    resumed = resume(config["ckpt_path"], config, _checkpoint_dir(config)) if config["ckpt_path"] else None

    datamodule.prepare_data()
    console = Console(quiet=not trainer.is_global_zero)
    if not trainer.is_global_zero:
        warnings.simplefilter("ignore", InputWarning)  # the first process has said it
    datamodule.setup("fit")
    check_objective(config["objective"], infer=bool(datamodule.sources["infer"]))
    # All images are read before the first epoch: a damaged one is reported now, not after an hour.
    module.fit_to(_read_all(datamodule, "train", console))
    for name in ("valid", "infer"):
        for _ in _read_all(datamodule, name, console):
            pass
    if trainer.is_global_zero:
        write_record(config, run_dir, datamodule)
        log_hyperparameters(trainer, config)
    console.print(describe_size(module), highlight=False)
    try:
        trainer.fit(module, datamodule, ckpt_path=resumed, weights_only=True)
    except LossError:
        if not trainer.is_global_zero:  # the first process says so
            sys.exit(2)
        raise
    if not trainer.is_global_zero:
        return {}

    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning does not declare them
    best = next((c.best_model_path for c in callbacks if isinstance(c, ModelCheckpoint)), "") or resumed
    if best:
        module.load_state_dict(read_checkpoint(best)["state_dict"])
    predictor = Predictor([module], linker).to(trainer.strategy.root_device)
    valid = datamodule.dataset("valid")
    outcomes = [
        outcomes_of(valid.sample(k).graph, predictor.probabilities([valid.graph(k)])) for k in range(len(valid))
    ]
    results = {"valid": score(outcomes, [module])}
    if datamodule.sources["infer"]:
        results["infer"] = evaluate_infer(predictor, [datamodule.dataset("infer")], brush, run_dir, console, pictures)
    print_scores(console, results)
    console.out(f"run folder  {short(run_dir)}", highlight=False)
    if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
        console.out("dashboards ", shlex.join(["tensorboard", "--logdir", config["log_dir"]]), highlight=False)
    log_best_metrics(trainer, config, results)
    pruned = [c.reason for c in callbacks if isinstance(c, Pruning) and c.reason]
    return results | ({"pruned": pruned[0]} if pruned else {})


@contextmanager
def _own_wandb_run() -> Iterator[None]:
    """End the run of wandb with ours: in a sweep the next run would go on with it."""
    try:
        yield
    finally:
        if getattr(sys.modules.get("wandb"), "run", None) is not None:
            sys.modules["wandb"].finish(exit_code=int(sys.exc_info()[0] is not None))


def _build_trainer(config: Config) -> pl.Trainer:
    """Build the trainer with its callbacks and loggers, any of which may be switched off by null."""
    callbacks = [build(node, f"callbacks.{name}") for name, node in config["callbacks"].items() if node]
    loggers: list[Logger] = []
    for name, node in (config.get("logger") or {}).items():
        try:
            loggers += [build(node, f"logger.{name}")] if node else []
        except InputError:
            raise
        except Exception as error:  # whatever a service's own package raises
            raise InputError(f"logger.{name}: {one_line(error)}") from error
    try:
        trainer: pl.Trainer = build(
            config["trainer"],
            "trainer",
            callbacks=[SeedEpochs(config["seed"]), StopOnSignal(), *callbacks],
            enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),
            logger=loggers or False,
            plugins=[WholeFiles()],
        )
    except MisconfigurationException as error:
        raise InputError(f"trainer: {error}") from error
    strategy = str(config["trainer"].get("strategy", "auto"))
    if in_sweep() and trainer.world_size > 1 and "spawn" not in strategy:
        raise InputError(
            f"trainer.strategy={strategy} starts this command again for each of {trainer.world_size} processes, and "
            "with -m each would run the whole sweep; give trainer.devices=1, or trainer.strategy=ddp_spawn, or run the "
            "combinations one by one without -m"
        )
    return trainer


def _checkpoint_dir(config: Config) -> Path:
    return Path((config["callbacks"].get("checkpoint") or {}).get("dirpath") or Path(config["run_dir"]) / "model")


def _how_to_go_on(stop: Stopped, config: Config) -> str:
    """Return one line: what stopped, what is kept, what to type."""
    last = _checkpoint_dir(config) / "last.ckpt"
    if not last.is_file():
        return f"stopped by {stop.by} before training began; nothing is kept"
    epochs = whole_epochs(read_checkpoint(last))
    go_on = resume_command(short(last))
    return f"stopped by {stop.by}; {short(last)} holds the state after {epochs} whole epochs; go on with: {go_on}"


def build_augmentation(node: Config | None) -> tuple[Augmentation, int]:
    """Return the configured augmentations, and how many views frozen features see of each image."""
    steps = dict(node or {})
    views = steps.pop("views", 4)
    check_value(views, int, "augment.views")
    if views < 1:
        raise InputError(f"augment.views: {views}, expected 1 or more; augment=none for no augmentation")
    return Augmentation({name: build(step, f"augment.{name}") for name, step in steps.items()}), views


def _read_all(datamodule: GraceDataModule, name: str, console: Console) -> Iterator[GraphData]:
    """Read the images of a set one by one; print how much there is once all are read."""
    dataset = datamodule.dataset(name)
    nodes = edges = 0
    hidden = not console.is_terminal
    for k in track(range(len(dataset)), f"reading {name} images", console=console, transient=True, disable=hidden):
        data = dataset.graph(k)
        nodes, edges = nodes + len(data.node_label), edges + len(data.edge_label)
        yield data
    counts = counted(len(dataset), "image"), counted(nodes, "node"), counted(edges, "edge")
    console.print(f"{name}  {', '.join(counts)}", highlight=False)


def describe_size(module: GraceModule) -> str:
    """Return the number of trained parameters, in all and by part."""
    halves = {"features": module.features, "network": module.network}
    parts = {f"{name} {part}": p for name, half in halves.items() for part, p in half.named_children()}
    counts = {name: sum(p.numel() for p in part.parameters() if p.requires_grad) for name, part in parts.items()}
    listed = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
    return f"parameters  {sum(counts.values()):,} ({listed})".replace("_", " ")
