"""Checkpoints: read without running anything in them, made into modules and linkers, gone on from."""

import inspect
import io
import pickle
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from grace_lightning.config import build, differing, selected
from grace_lightning.errors import InputError, InputWarning
from grace_lightning.features import Features
from grace_lightning.files import replacing
from grace_lightning.link import Linker
from grace_lightning.module import CHECKPOINT_KEY, GraceModule, judged_anew, whole_epochs
from grace_lightning.ridges import Polarity

Config = dict[str, Any]

Checkpoints = str | Path | Sequence[str | Path]
"""One checkpoint, or several whose networks predict together; a folder stands for the checkpoints of the runs in it."""

BEST = Path("model", "best.ckpt")
"""Where a run's folder has its best checkpoint."""

GENERAL, GENERAL_FILE = "general", Path(__file__).with_name("general.ckpt")
"""Name and file of the network that comes with the package; it was trained on simulated filaments of many kinds."""

OWN = "grace_lightning"
"""The package whose classes a checkpoint's configuration may name; the user may trust others."""


def checkpoint_paths(given: Checkpoints) -> list[Path]:
    """Return the files of checkpoints: of files, folders of runs, folders of sweeps, and of the word ``general``.

    That is the network of the package, whatever lies in the current folder; ``./general`` is a path.
    """
    files: list[Path] = []
    for one in [given] if isinstance(given, str | Path) else given:
        if one == GENERAL:
            if not GENERAL_FILE.is_file():
                lacks = f"{GENERAL_FILE} is missing, the network of the package"
                raise InputError(f"checkpoint={GENERAL}: {lacks}; install it anew, or give a run's {BEST}")
            files.append(GENERAL_FILE)
            continue
        path = Path(one)
        found = [path / BEST] if (path / BEST).is_file() else sorted(path.glob(f"*/{BEST.as_posix()}"))
        if path.is_dir() and not found:
            raise InputError(f"{path}: no checkpoint in it, expected a run's folder with {BEST}, or that of a sweep")
        files += found if path.is_dir() else [path]
    return files


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint's content; refuse a file that is missing, damaged, or no checkpoint of this package."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; a run keeps its own in <run folder>/model/best.ckpt")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "it holds more than numbers and text, which is never loaded"
        raise InputError(f"{path}: cannot be read as a checkpoint ({reason}); is it one of grace-train?") from error
    except Exception as error:  # torch raises whatever zip and pickle raise
        reason = _first_line(error)
        raise InputError(f"{path}: cannot be read as a checkpoint ({reason}); is the file complete?") from error
    if not (isinstance(content, dict) and CHECKPOINT_KEY in content and isinstance(content.get("state_dict"), dict)):
        raise InputError(f"{path}: not a checkpoint of grace-train (it has no '{CHECKPOINT_KEY}' and 'state_dict')")
    return content


def write_checkpoint(content: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint whole or not at all; an :class:`InputError` says why it cannot be written."""
    whole = io.BytesIO()  # torch would say "unexpected pos" of a full disk
    torch.save(content, whole)
    with replacing(path) as unfinished:
        unfinished.write_bytes(whole.getbuffer())


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def load_module(path: str | Path, trust: Sequence[str] = ()) -> GraceModule:
    """Make the trained module of a checkpoint, ready to predict; see :meth:`Predictor.from_checkpoint`."""
    checkpoint = read_checkpoint(path)
    config = checkpoint[CHECKPOINT_KEY]
    try:
        for key in ("features", "model", "module", "data", "link"):
            if not isinstance(config, dict) or not isinstance(config.get(key), dict) or "_target_" not in config[key]:
                raise InputError(f"its configuration has no {key}; was it made by another version?")
            expect_trusted(config[key], key, (OWN, *trust))
        config, state = upgraded(config, checkpoint["state_dict"])
        if "cache_dir" in config["features"]:  # nothing is written where a file from elsewhere says
            config["features"]["cache_dir"] = None
        # What is not built here is checked as if it was typed.
        build_linker(None, config)
        build({**config["data"], "simulation": None}, "data")
        if not trust:  # without memory, in case it asks for more than there is
            with torch.device("meta"):
                _expect_fitting(state, _for_prediction(config))
        module = _for_prediction(config)
        _expect_fitting(state, module)
        if not all(values.isfinite().all() for values in state.values()):
            raise InputError("its weights are not finite; is the file intact, did the training go wrong?")
        module.load_state_dict(state)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # a configuration that nobody trained with fails in any way
        reason = _first_line(error)
        raise InputError(f"{path}: nothing can be built from its configuration ({reason}); was it changed?") from error
    module.config = config
    return module.eval()


def _for_prediction(config: Config) -> GraceModule:
    return build_module({**config, "optimizer": None, "scheduler": None}, build(config["features"], "features"))


def _expect_fitting(state: Mapping[str, Any], module: GraceModule) -> None:
    """Refuse weights that are not those of the module, by their names and sizes, or that are no numbers."""
    own, found = ({k: getattr(v, "shape", None) for k, v in s.items()} for s in (module.state_dict(), state))
    if own != found:
        raise InputError("its weights do not fit its configuration; is it of another version?")


def build_module(config: Config, features: Features, augment: Callable[[Tensor], Tensor] | None = None) -> GraceModule:
    """Make the module that a resolved configuration describes."""
    sizes = {"node_features": features.node_features, "edge_features": features.edge_features}
    module: GraceModule = build(
        config["module"],
        "module",
        features=features,
        network=build(config["model"], "model", **sizes),
        optimizer=build(config["optimizer"], "optimizer"),
        scheduler=build(config["scheduler"], "scheduler"),
        config=config,
        augment=augment,
    )
    return module


def build_linker(node: Config | None, trained: Config, scale: float | None = None) -> Linker:
    """Make the linker that ``node`` describes or, if it is empty, the linker of the checkpoint's configuration.

    It is told that filaments are ``scale`` pixels wide, as in training if that is None, unless ``node`` says how wide.
    """
    given = node or trained["link"]
    width = trained["features"]["scale"]
    if "scale" in given and (given["scale"] is None or (not node and scale is not None)):
        factor = 1.0 if scale is None else scale / width
        given = {**given, "scale": factor * (width if given["scale"] is None else given["scale"])}
    linker: Linker = build(given, "link")
    return linker


def same_in_all(values: Sequence[Any], key: str, hint: str) -> Any:
    """Return the value that the configurations of all checkpoints have at ``key``."""
    if any(value != values[0] for value in values):
        found = ", ".join("null" if value is None else str(value) for value in values)
        raise InputError(f"checkpoint: trained with different {key}, {found}: {hint}")
    return values[0]


def scale_of_training(configs: Sequence[Config]) -> float | Literal["auto"]:
    """Return how wide filaments were in the images that all networks were trained on, pixels.

    It is ``auto`` if each image had a width of its own: then that of images to come has to be estimated, too.
    """
    own = [config["data"].get("scale") or config["features"]["scale"] for config in configs]
    scale: float | Literal["each"] = same_in_all(own, "features.scale", "give features.scale")
    return "auto" if scale == "each" else scale


def polarity_of_training(configs: Sequence[Config]) -> Polarity | Literal["auto"] | None:
    """Return what filaments were in the images that all networks were trained on, dark or bright; ``auto`` as above.

    None: images were taken as they are.
    """
    own = [config["data"].get("polarity") for config in configs]
    polarity: Polarity | Literal["each"] | None = same_in_all(own, "data.polarity", "give polarity")
    return "auto" if polarity == "each" else polarity


def expect_trusted(node: Any, where: str, packages: Sequence[str]) -> None:
    """Refuse a configuration that names anything but classes of trusted packages, or is more than plain values.

    A prefix alone would not do: ``grace_lightning.cli.os.system`` is a name as well.
    """
    # OmegaConf resolves references, and keys such as _partial_ change what is built.
    orders = [key for key in node if str(key).startswith("_") and key != "_target_"] if isinstance(node, dict) else []
    if orders or (isinstance(node, str) and "${" in node):
        raise InputError(f"{where} has {orders[0] if orders else node!r}, expected plain values only")
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        expect_trusted(value, where, packages)
    if not isinstance(node, dict) or "_target_" not in node:
        return
    target, found = node["_target_"], None
    if isinstance(target, str) and _is_of(target, packages):
        module, _, name = target.rpartition(".")
        with suppress(ImportError):
            found = getattr(import_module(module), name, None)
    if not (inspect.isclass(found) and _is_of(found.__module__, packages)):
        expected = f"expected classes of {' and '.join(packages)} only; if you trust its package, trust=PACKAGE"
        raise InputError(f"{where} names {target!r}, {expected}")


def _is_of(name: str, packages: Sequence[str]) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


RENAMED_HEADS = {"link": "same_filament", "second": "two_filaments", "third": "three_filaments"}
GONE_KEYS = {
    "link": ("end_weight", "share_cost", "share_weight", "max_edge_gain", "max_node_gain"),
    "data": ("max_candidate",),
}


def upgraded(config: Config, state: Mapping[str, Any]) -> tuple[Config, dict[str, Any]]:
    """Return the configuration and the weights of a checkpoint under the names that they have in this version."""
    config = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    for group, keys in GONE_KEYS.items():
        for key in keys:
            config[group].pop(key, None)
    _keep_old_split(config["data"])
    for group in ("model", "features"):
        if "width" in config[group]:
            config[group]["hidden"] = config[group].pop("width")
    for old, new in RENAMED_HEADS.items():
        if f"{old}_weight" in config["module"]:
            config["module"][f"{new}_weight"] = config["module"].pop(f"{old}_weight")

    def renamed(name: str) -> str:
        if str(config["model"].get("_target_")).endswith(".GAT"):
            name = name.replace(".conv.conv.", ".conv.")
        return re.sub(
            r"^network\.(\w+)_head\.", lambda match: f"network.heads.{RENAMED_HEADS.get(match[1], match[1])}.", name
        )

    return config, {renamed(name): value for name, value in state.items()}


def _keep_old_split(data: Config) -> None:
    """Let ``split_seed`` be what it was before it had a key of its own."""
    if data.get("image_dir"):
        data.setdefault("split_seed", data.get("seed", 0))


def read_run(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint as :func:`read_checkpoint` does; refuse one that no training can go on from."""
    checkpoint = read_checkpoint(path)
    try:
        whole_epochs(checkpoint)
        _ = checkpoint["optimizer_states"][0]["param_groups"], checkpoint["lr_schedulers"]
        for group in ("model", "features", "optimizer", "scheduler"):
            _ = checkpoint[CHECKPOINT_KEY][group].keys()
        _keep_old_split(checkpoint[CHECKPOINT_KEY]["data"])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: no training can go on from it; give a run's model/last.ckpt") from error
    return checkpoint


def expect_same_network(path: str | Path, checkpoint: Mapping[str, Any], config: Config) -> None:
    """Refuse a run of ``config`` that would go on with another network, or has had all its epochs."""
    trained = checkpoint[CHECKPOINT_KEY]
    for key in ("model", "features"):
        before, now = ({**node, "cache_dir": None} for node in (trained[key], config[key]))
        if before != now:
            changed = [*differing(trained[key], config[key], key)] or [key]
            found = f"{_values(changed, trained)}, this run has {_values(changed, config)}"
            expected = "a network goes on as it is: leave that, or ckpt_path, out"
            raise InputError(f"ckpt_path: {path} was trained with {found}; {expected}")
    limit, epochs = config["trainer"].get("max_epochs"), whole_epochs(checkpoint)
    if limit not in (None, -1) and epochs > limit:
        raise InputError(f"trainer.max_epochs: {limit}, but {path} has had {epochs} epochs; give that many or more")


def resume(path: str | Path, config: Config, folder: Path) -> Path:
    """Prepare a run of ``config`` to go on from a checkpoint; return the file in its own ``folder`` to go on from.

    The best checkpoint beside it is taken along, so that the new run's own is the best of both: Lightning keeps their
    places in the checkpoint, which become those of the new run. See also :meth:`GraceModule.on_load_checkpoint`.
    """
    path = Path(path)
    checkpoint = read_run(path)
    trained = checkpoint[CHECKPOINT_KEY]
    own = folder / "last.ckpt"
    if getattr(rank_zero_only, "rank", 0) != 0:  # the first process has written it, if the disk is shared
        return own if own.is_file() else path
    anew = judged_anew(trained, config)
    if anew:
        judged = f"earlier epochs were judged by {_values(anew, trained)}"
        warnings.warn(f"{_values(anew, config)}: {judged}, and none counts as the best", InputWarning, stacklevel=2)
    for callback, state in list(checkpoint.get("callbacks", {}).items()):
        if state.get("best_model_path"):
            earlier = Path(state["best_model_path"])
            best = path.with_name(earlier.name) if path.with_name(earlier.name).is_file() else earlier
            if anew or not best.is_file():  # the next epoch is the best so far
                del checkpoint["callbacks"][callback]
                continue
            if best.parent.resolve() != folder.resolve():
                write_checkpoint(read_checkpoint(best), folder / best.name)
            moved = {"dirpath": str(folder.resolve()), "last_model_path": str(own.resolve())}
            moved |= dict.fromkeys(("best_model_path", "kth_best_model_path"), str(folder.resolve() / best.name))
            state |= moved | {"best_k_models": {moved["best_model_path"]: state["best_model_score"]}}
    write_checkpoint(checkpoint, own)
    return own


def _values(keys: Sequence[str], config: Config) -> str:
    return ", ".join(f"{key}={'null' if (value := selected(config, key)) is None else value}" for key in keys)
