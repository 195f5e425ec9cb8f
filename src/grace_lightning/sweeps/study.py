"""The study of an Optuna sweep: kept in a storage, so that a sweep that was interrupted goes on."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from grace_lightning.errors import InputError


def quiet_optuna() -> Any:
    """The module ``optuna``, of an extra, without what it says at every start."""
    os.environ.setdefault("SQLALCHEMY_SILENCE_UBER_WARNING", "1")  # that SQLAlchemy 2 differs; the extra asks for 1
    import optuna

    optuna.logging.set_verbosity(logging.WARNING)
    return optuna


def leave_out_unknown(config: DictConfig) -> None:
    """Search no keys that the configuration does not have: one search serves several networks."""
    params, groups = config.hydra.sweeper.params or {}, config.hydra.runtime.choices
    unknown = [key for key in params if key not in groups and OmegaConf.select(config, key, default=...) is ...]
    if unknown:
        print(f"not searched, since this configuration has no such key: {', '.join(unknown)}")
    with open_dict(config):
        for key in unknown:
            del params[key]


def continue_study(config: DictConfig, folder: Path) -> list[Path]:
    """Make the study, or go on with the one that is stored.

    ``hydra.sweeper.n_trials`` counts all trials of the study that came to a value, so what is left is run. The
    sampler's seed moves on, or it would propose again what it did before.

    Parameters
    ----------
    config : ``n_trials`` and the seed are changed in it
    folder : of this sweep

    Returns
    -------
    folders of the study's earlier sweeps that are still there

    Raises
    ------
    InputError
        The study has no name, or its trials were made with other overrides than this command's.
    """
    optuna = quiet_optuna()
    sweeper = config.hydra.sweeper
    if sweeper.study_name is None:
        raise InputError("hydra.sweeper.study_name: null, expected a name for the study that is stored")
    if sweeper.storage.startswith("sqlite:///"):
        Path(sweeper.storage.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    direction = sweeper.direction if isinstance(sweeper.direction, str) else sweeper.direction.name
    study = optuna.create_study(
        study_name=sweeper.study_name, storage=sweeper.storage, direction=direction, load_if_exists=True
    )
    trials = study.get_trials(deepcopy=False)
    valued = sum(trial.state is optuna.trial.TrialState.COMPLETE for trial in trials)
    asked = sorted(o for o in config.hydra.overrides.task if not o.startswith("log_dir="))
    before = study.user_attrs.get("overrides", asked)
    if valued and asked != before:
        differ = ", ".join(sorted(set(asked) ^ set(before)))
        raise InputError(
            f"hydra.sweeper.study_name: {sweeper.study_name!r} in {sweeper.storage} has {valued} trials with other "
            f"overrides ({differ}); give another study_name, or the same overrides to go on with it"
        )
    earlier = [Path(path) for path in study.user_attrs.get("folders", [])]
    study.set_user_attr("overrides", asked)
    study.set_user_attr("folders", [*map(str, earlier), str(folder)])
    left = max(sweeper.n_trials - valued, 0)
    if valued:
        print(f"study {sweeper.study_name}: {valued} trials done, {left} to go (hydra.sweeper.n_trials)")
    with open_dict(sweeper):
        sweeper.n_trials = left
        if OmegaConf.select(sweeper, "sampler.seed") is not None:
            sweeper.sampler.seed += len(trials)
    return [path for path in earlier if path.is_dir()]
