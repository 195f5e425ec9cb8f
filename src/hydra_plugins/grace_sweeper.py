"""A Hydra sweeper for searches: an Optuna study proposes the parameters of runs and learns how each run ended.

Hydra takes sweepers from the namespace package ``hydra_plugins`` alone, and imports them whenever a command starts:
Optuna is imported once a search begins.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from grace_lightning import sweeps
from grace_lightning.config import build, check
from grace_lightning.errors import InputError
from grace_lightning.files import one_line


@dataclass
class OptunaSweeper(Sweeper):
    """Launch the trials that a study lacks, ``n_jobs`` at a time; ``conf/hydra/sweeper/study.yaml`` tells the keys."""

    study_name: str
    storage: str
    n_trials: int
    n_jobs: int
    sampler: Mapping[str, Any]
    params: Mapping[str, Any]
    trial: int | None = None  # of a run; unused by the sweeper

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context
        self.options = dict(config.hydra.runtime.choices)
        self.parser = OverridesParser.create(config_loader=hydra_context.config_loader)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        assert self.config is not None
        assert self.launcher is not None
        storage = sweeps.optuna_storage(str(self.storage))
        from optuna.trial import TrialState

        check(OmegaConf.to_container(self.config.hydra.sweeper, resolve=True), "hydra.sweeper")
        if self.n_jobs < 1:
            raise InputError(f"hydra.sweeper.n_jobs: {self.n_jobs}, expected 1 or more")
        study, left = self._open_study(storage, arguments)
        fixed, space = self._read_space(arguments)
        for first in range(0, left, self.n_jobs):
            trials = [study.ask() for _ in range(min(self.n_jobs, left - first))]
            try:
                # The number is a key of Hydra's, so that it does not appear among the overrides of the run.
                jobs = [[*fixed, *self._draw(trial, space), f"hydra.sweeper.trial={trial.number}"] for trial in trials]
                self.validate_batch_is_legal(jobs)
                for trial, job in zip(trials, self.launcher.launch(jobs, initial_job_idx=first), strict=True):
                    result = job.return_value  # of sweeps.run_job
                    value = result["metrics"].get(result["objective"])
                    state = TrialState.FAIL if value is None else TrialState.COMPLETE
                    if result["status"] == "pruned":
                        value, state = None, TrialState.PRUNED
                    trial.set_user_attr("run", job.hydra_cfg.hydra.runtime.output_dir)  # type: ignore[union-attr]
                    study.tell(trial, value, state=state)
            except HydraException as error:
                raise InputError(one_line(error)) from error
            finally:  # after Ctrl-C, or if a process was killed, no trial of this batch goes on
                for trial in trials:
                    study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)

    def _open_study(self, storage: Any, arguments: list[str]) -> tuple[Any, int]:
        """Make the study, or go on with it; return it and the number of trials that it lacks."""
        import optuna

        study = optuna.create_study(
            study_name=self.study_name, storage=storage, direction="maximize", load_if_exists=True
        )
        valued = len(study.get_trials(states=(optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)))
        asked = [argument for argument in arguments if not argument.startswith("log_dir=")]
        asked = sorted(asked + [f"{key}={value}" for key, value in self.params.items()])
        before = study.user_attrs.get("overrides", asked)
        if valued and asked != before:
            differ = ", ".join(sorted(set(asked) ^ set(before)))
            raise InputError(
                f"hydra.sweeper.study_name: {self.study_name!r} in {self.storage} has {valued} trials with other "
                f"overrides ({differ}); give another study_name, or the same overrides to go on with it"
            )
        earlier = study.user_attrs.get("folders", [])
        study.set_user_attr("overrides", asked)
        study.set_user_attr("folders", [*earlier, str(sweeps.sweep_folders[0])])
        sweeps.sweep_folders.extend(Path(folder) for folder in earlier if Path(folder).is_dir())
        left = max(self.n_trials - valued, 0)
        if valued:
            print(f"study {self.study_name}: {valued} trials done, {left} to go (hydra.sweeper.n_trials)")
        seed = self.sampler.get("seed")
        moved = {} if seed is None else {"seed": seed + len(study.trials)}  # the same seed would propose the same again
        try:
            study.sampler = build(dict(self.sampler) | moved, "hydra.sweeper.sampler")
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"hydra.sweeper.sampler: {one_line(error)}") from error
        return study, left

    def _read_space(self, arguments: list[str]) -> tuple[list[str], list[tuple[str, Override]]]:
        """Return the overrides that all trials have, and what is searched: a condition, group=option, and an override.

        What was typed replaces a parameter. Groups come first and conditions last, since the options drawn decide which
        conditions hold.
        """
        assert self.config is not None
        typed = self.parser.parse_overrides(arguments)
        space = [("", override) for override in typed if override.is_sweep_override()]
        params = {key: {key: value} for key, value in self.params.items() if "=" not in key}
        known = self.options.keys() | {k for k in params if OmegaConf.select(self.config, k, default=...) is not ...}
        if absent := params.keys() - known:
            print(f"not searched, since this configuration has no such key: {', '.join(sorted(absent))}")
        taken = absent | {override.get_key_element() for override in typed}
        for name, below in (dict(self.params) | params).items():
            overrides = self.parser.parse_overrides(
                [f"{key}={value}" for key, value in below.items() if key not in taken]
            )
            space += [(name if "=" in name else "", override) for override in overrides]
        space.sort(key=lambda pair: (pair[0] != "", pair[1].get_key_element() not in self.options))
        return [str(override.input_line) for override in typed if not override.is_sweep_override()], space

    def _draw(self, trial: Any, space: Sequence[tuple[str, Override]]) -> list[str]:
        drawn: dict[str, Any] = {}
        for condition, override in space:
            group, _, option = condition.partition("=")
            if not condition or (self.options | drawn).get(group) == option:
                key = override.get_key_element()
                # Optuna allows one set of choices by name, and an option may have its own.
                drawn[key] = draw(trial, f"{condition} {key}".strip(), override)
        return [f"{key}={value}" for key, value in drawn.items()]


def draw(trial: Any, name: str, override: Override) -> Any:
    """Let Optuna draw a parameter from ``interval(...)``, ``range(...)`` or a choice of Hydra's.

    ``int(interval(1, 4))`` gives whole numbers, both ends included; ``range(1, 4)`` ends before 4, as in a sweep over
    every combination.
    """
    value = override.value()
    if isinstance(value, IntervalSweep):
        suggest = trial.suggest_int if isinstance(value.start, int) else trial.suggest_float
        return suggest(name, value.start, value.end, log="log" in value.tags)
    choices: list[Any] = list(override.sweep_iterator(transformer=Transformer.encode))
    if isinstance(value, RangeSweep) and not value.shuffle:
        suggest = trial.suggest_int if isinstance(choices[0], int) else trial.suggest_float
        return suggest(name, min(choices), max(choices), step=abs(value.step))
    return trial.suggest_categorical(name, choices)
