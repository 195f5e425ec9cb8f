"""``grace-train``."""

import shlex
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.callbacks import ModelCheckpoint, ProgressBar
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.progress import track

from grace_lightning.augment import Augmentation
from grace_lightning.callbacks import FreeMemory, Pruning, SeedEpochs, StopOnSignal, WholeFiles
from grace_lightning.checkpoint import (
    build_linker,
    build_module,
    expect_same_network,
    read_checkpoint,
    read_run,
    resume,
)
from grace_lightning.config import build, check, check_value
from grace_lightning.data import GraceDataModule, GraphData
from grace_lightning.errors import InputError, InputWarning, LossError
from grace_lightning.files import DISK_ERRORS, counted, one_line, short
from grace_lightning.metrics import outcomes_of
from grace_lightning.module import CHECKPOINT_KEY, GraceModule, whole_epochs
from grace_lightning.predictor import Predictor
from grace_lightning.splits import TRAINED_ON, dealt_before
from grace_lightning.stopping import Stopped, stopping_on_signals
from grace_lightning.sweeps import check_objective, in_sweep
from grace_lightning.tasks.common import Config, on_devices, plain, quiet_lightning
from grace_lightning.tasks.evaluate import Metrics, drawing, evaluate_infer, print_scores, score
from grace_lightning.tasks.record import (
    expect_typed,
    log_best_metrics,
    log_hyperparameters,
    resume_command,
    write_record,
)
from grace_lightning.tasks.start import go_on_as, network_to_start_from, take_weights


def train(cfg: DictConfig) -> Metrics:
    """Train, keep the best and the last checkpoint, and score the best one.

    Return metrics by set, ``valid`` and ``infer``; none in a process that helped another one.
    """
    with stopping_on_signals(first=getattr(rank_zero_only, "rank", 0) == 0), _full_disks_told_once():
        config = plain(cfg)
        try:
            check_value(config["seed"], int, "seed")
            for key in ("ckpt_path", "init"):
                check_value(config[key], str | None, key)
            check({"trainer": config["trainer"], **config}, "")  # the trainer first: other nodes refer to its values
            quiet_lightning()
            earlier = None
            start: tuple[GraceModule | None, str] = (None, "")
            if path := config["ckpt_path"]:
                earlier = read_run(path)
                config = go_on_as(cfg, earlier[CHECKPOINT_KEY])
                expect_typed(Path(path), earlier[CHECKPOINT_KEY], cfg)
                expect_same_network(path, earlier, config)
            else:
                start = network_to_start_from(cfg)
                config = plain(cfg)
            pl.seed_everything(config["seed"], workers=True, verbose=False)
            with _own_wandb_run():
                return _train(config, earlier, *start)
        except Stopped as stop:
            print(f"grace-train: {_how_to_go_on(stop, config)}", file=sys.stderr)
            sys.exit(128 + stop.signal)
        except OSError as error:  # of pictures, logs and whatever else libraries write
            if error.errno not in DISK_ERRORS:
                raise
            raise InputError(f"{error.filename or config['run_dir']}: cannot be written ({error.strerror})") from error


def _train(config: Config, earlier: Config | None, start: GraceModule | None, told: str) -> Metrics:
    """Train as configured.

    ``earlier`` is what is in the checkpoint to go on from, ``start`` the network whose weights to start from, of which
    something is ``told``.
    """
    run_dir = Path(config["run_dir"])
    features = build(config["features"], "features")
    augment, views = build_augmentation(config["augment"])
    at_run_time = {"sigma": features.sigma, "features_scale": features.scale, "augment": augment}
    at_run_time["views"] = views if features.frozen else None
    at_run_time["dealt"] = dealt_before(earlier[CHECKPOINT_KEY], config["ckpt_path"]) if earlier else None
    datamodule: GraceDataModule = build(config["data"], "data", **at_run_time)
    module = build_module(config, features, augment.patches)
    linker = build_linker(config["link"], config)
    brush, pictures = drawing(config, config["features"]["scale"])
    trainer = _build_trainer(config)
    if earlier:
        module.on_load_checkpoint(earlier)  # what it refuses is said now, not after the images are read

    datamodule.prepare_data()
    console = Console(quiet=not trainer.is_global_zero)
    if not trainer.is_global_zero:
        warnings.simplefilter("ignore", InputWarning)  # the first process has said it
    datamodule.setup("fit")
    if told:
        console.out(told, highlight=False)
    for source in datamodule.cut:
        console.out(f"{source.name} is annotated alone: a third of it validates, the rest trains", highlight=False)
    if estimated := {key: getattr(datamodule, key) for key in ("scale", "polarity") if config["data"][key] == "auto"}:
        config["data"] |= estimated  # in the checkpoint, too: images to come are taken to be like these
        keys = " ".join(f"data.{key}={value}" for key, value in estimated.items())
        found = [f"{value:g} pixels wide" if key == "scale" else value for key, value in estimated.items()]
        console.out(f"filaments are {' and '.join(found)}, by the images ({keys})", highlight=False)
    if config["evaluate"]["brush"] is not None and isinstance(datamodule.scale, int | float):
        brush *= features.scale / datamodule.scale
    resumed = resume(config["ckpt_path"], config, _checkpoint_dir(config)) if earlier else None
    check_objective(config["objective"], infer=bool(datamodule.sources["infer"]))
    # All images are read before the first epoch: a damaged one is reported now, not after an hour.
    module.fit_to(_read_all(datamodule, "train", console))
    if start:
        take_weights(module, start)
    for name in ("valid", "infer"):
        for _ in _read_all(datamodule, name, console):
            pass
    if trainer.is_global_zero:
        write_record(config, run_dir, datamodule)
        log_hyperparameters(trainer, config)
    module.config[TRAINED_ON] = datamodule.described()
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
    predictor = Predictor([module], linker, features.scale, "dark").to(trainer.strategy.root_device)
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
def _full_disks_told_once() -> Iterator[None]:
    """Let TensorBoard's writer, a thread, not print a traceback: the next call that it is given raises the same."""
    before = threading.excepthook

    def told(failed: Any) -> None:
        if getattr(failed.exc_value, "errno", None) not in DISK_ERRORS:
            before(failed)

    threading.excepthook = told
    try:
        yield
    finally:
        threading.excepthook = before


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
    at_run_time = {
        "callbacks": [SeedEpochs(config["seed"]), StopOnSignal(), FreeMemory(), *callbacks],
        "enable_progress_bar": any(isinstance(c, ProgressBar) for c in callbacks),
        "logger": loggers or False,
        "plugins": [WholeFiles()],
    }
    trainer: pl.Trainer = on_devices(config["trainer"], lambda: build(config["trainer"], "trainer", **at_run_time))
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
    if name != "infer" and (again := datamodule.read_again(name)):
        told = f"{again} of them are read again in every epoch, as data.cache_gib is full"
        console.print(f"{told}; set it higher, or data.num_workers=1 to read ahead", highlight=False)


def describe_size(module: GraceModule) -> str:
    """Return the number of trained parameters, in all and by part."""
    halves = {"features": module.features, "network": module.network}
    parts = {f"{name} {part}": p for name, half in halves.items() for part, p in half.named_children()}
    counts = {name: sum(p.numel() for p in part.parameters() if p.requires_grad) for name, part in parts.items()}
    listed = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
    return f"parameters  {sum(counts.values()):,} ({listed})".replace("_", " ")
