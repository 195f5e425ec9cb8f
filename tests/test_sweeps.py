"""Sweeps, as typed; launchers and Optuna where the extra is installed."""

import importlib.util
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from grace_lightning import cli
from grace_lightning.errors import InputError
from grace_lightning.sweeps import check_objective, flat_metrics, main

EXTRA = importlib.util.find_spec("optuna") and importlib.util.find_spec("submitit")
extra = pytest.mark.skipif(not EXTRA, reason='needs pip install "grace-lightning[sweep]"')

OBJECTIVE = "valid/edge_average_precision"
TINY = ["trainer.max_epochs=1", "trainer.accelerator=cpu", "features=statistics", "model.dense=[4]", "augment=none"]
TINY += [*(f"callbacks.{name}=null" for name in ("progress", "figures", "projector")), "evaluate.pictures=false"]
GCN = ["model=gcn", "model.hidden=[8]"]
GAT = ["model=gat", "model.hidden=[8]"]


@pytest.fixture
def sweep(simulated, run):
    """Train many times in an empty folder: exit status, stdout, stderr, and the table of the newest sweep."""
    data = ["data=folders", *(f"data.{part}_image_dir={simulated}" for part in ("train", "valid", "infer"))]

    def command(*arguments):
        before = set(Path("runs").glob("*/"))
        result = run("train", "-m", *data, *TINY, *arguments)
        made = [folder / "results.csv" for folder in set(Path("runs").glob("*/")) - before]
        return *result, pd.read_csv(made[0]) if made and made[0].exists() else None

    return command


class TestSweep:
    def test_table_has_the_best_run_first_and_says_why_a_run_has_no_result(self, sweep):
        status, out, err, table = sweep(*GAT, "model.heads=3,2", "model.dropout=0.1,0.3", "optimizer.lr=0.001")
        assert status == 1
        assert err == "grace-train: 2 of 4 runs came to no result; the table says why\n"
        assert list(table["status"]) == ["done", "done", "refused", "refused"]
        assert table["rank"].fillna(0).tolist() == [1, 2, 0, 0]
        assert table[OBJECTIVE][:2].is_monotonic_decreasing
        assert set(table["overrides"][:2]) == {"model.heads=2 model.dropout=0.1", "model.heads=2 model.dropout=0.3"}
        assert list(table["model.heads"]) == [2, 2, 3, 3]
        assert all("model.heads: 3, expected a divisor" in why for why in table["message"][2:])
        for row in table.itertuples():
            assert Path(row.run, "train.log").is_file()
            assert Path(row.run, "metrics.json").is_file() == (row.status == "done")
        metrics = json.loads(Path(table["run"][0], "metrics.json").read_text())
        assert table["infer/edge_f1"][0] == pytest.approx(metrics["edges"]["f1"])
        assert table["infer/mask_mean_best_iou"][0] == pytest.approx(metrics["objects"]["approx"]["mean_best_iou"])
        printed = [line for line in out.splitlines() if line.startswith("│ model.heads=")]
        assert [line.split("│")[1].strip() for line in printed] == list(table["overrides"])
        assert "refused: model.heads: 3, expected a divisor" in printed[-1]
        for row in table[:2].itertuples():
            self.assert_tensorboard_lists(row.run, dropout=float(row.overrides[-3:]), best=table[OBJECTIVE][row.Index])

    @staticmethod
    def assert_tensorboard_lists(run, dropout, best):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.plugins.hparams import metadata

        events = EventAccumulator(run)
        events.Reload()
        sessions = events.PluginTagToContent(metadata.PLUGIN_NAME)
        assert metadata.EXPERIMENT_TAG not in sessions  # it would have the columns of one run stand for all
        assert metadata.SESSION_END_INFO_TAG in sessions
        info = metadata.parse_session_start_info_plugin_data(sessions[metadata.SESSION_START_INFO_TAG])
        shown = {key: value.string_value or value.number_value for key, value in info.hparams.items()}
        expected = {"model": "gat", "features": "statistics", "model.dropout": dropout, "optimizer.lr": 0.001}
        assert expected.items() <= shown.items()
        assert not [key for key in shown if key.startswith("callbacks") or key.endswith("_dir")]
        assert [event.value for event in events.Scalars("best/AP_valid_edge")] == [pytest.approx(best)]

    def test_a_bug_ends_one_run_and_an_interruption_all(self, sweep, monkeypatch):
        original, ends = pl.Trainer.fit, iter([ZeroDivisionError("by zero"), None, SystemExit(1)])

        def fit(*arguments, **options):
            end = next(ends)
            if end is not None:
                raise end
            original(*arguments, **options)

        monkeypatch.setattr(pl.Trainer, "fit", fit)
        status, _, err, table = sweep(*GCN, "seed=0,1,2,3")
        assert status == 1
        assert list(table["status"]) == ["done", "failed", "interrupted"]
        assert list(table["message"][1:]) == ["ZeroDivisionError: by zero", "Ctrl-C or a signal"]
        assert "Traceback" in Path(table["run"][1], "train.log").read_text()
        assert "Traceback" not in err

    def test_nothing_runs_if_one_combination_cannot_be_composed(self, sweep):
        status, _, err, table = sweep("model=gcn,gat", "model.heads=2,4")
        assert (status, table) == (2, None)
        assert err == "grace-train: model.heads: no such key; --cfg job prints all keys\n"


def write_run(folder, job, status, value=None, **overrides):
    overrides = [f"{key}={value}" for key, value in {"seed": job, "a": 1, **overrides}.items()]
    (folder / str(job) / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(overrides), folder / str(job) / ".hydra" / "overrides.yaml")
    if status != "lost":
        result = {"job": job, "status": status, "message": None, "overrides": overrides, "seconds": 3723.4}
        result |= {"objective": "valid/edge_f1", "metrics": {"valid/edge_f1": value} if status == "done" else {}}
        (folder / str(job) / "result.json").write_text(json.dumps(result))


def test_the_table_of_a_folder_can_be_made_anew(tmp_path, monkeypatch, capsys):
    write_run(tmp_path, 0, "failed")
    write_run(tmp_path, 1, "done", None)
    write_run(tmp_path, 2, "done", 0.5, lr=0.00123456789)
    write_run(tmp_path, 3, "lost")
    write_run(tmp_path, 10, "done", 0.9, lr=1e-05)
    monkeypatch.setattr(sys, "argv", ["sweep", str(tmp_path)])
    main()
    table = pd.read_csv(tmp_path / "results.csv", dtype=str)
    head = ["rank", "status", "overrides", "valid/edge_f1", "seconds", "run", "message", "seed", "lr"]
    assert list(table.columns) == head
    assert [Path(run).name for run in table["run"]] == ["10", "2", "1", "3", "0"]
    assert list(table["rank"][:3]) == ["1", "2", "3"]
    assert list(table["overrides"][1:3]) == ["seed=2 lr=0.00123456789", "seed=1"]  # a=1 tells nothing
    assert list(table["seed"]) == ["10", "2", "1", "3", "0"]
    assert table["message"][3].startswith("ended without saying why")
    printed = capsys.readouterr().out
    assert all(f" {cell} " in printed for cell in ("seed=10 lr=1e-05", "seed=2 lr=0.001235", "0.900", "1:02:03"))


def test_metrics_by_one_name_each():
    results = {"valid": {"edges": {"f1": 0.5, "auroc": None}}, "infer": {"objects": {"exact": {"f1_50": float("nan")}}}}
    assert flat_metrics(results) == {"valid/edge_f1": 0.5, "valid/edge_auroc": None, "infer/filament_f1_50": None}


def test_an_objective_is_a_metric_that_is_measured():
    check_objective("infer/filament_f1_50", infer=True)
    with pytest.raises(InputError, match=r"there are no inference images; set data\.infer_image_dir"):
        check_objective("infer/filament_f1_50", infer=False)
    with pytest.raises(InputError, match="objective: 'valid/loss', expected one of valid/node_accuracy"):
        check_objective("valid/loss", infer=True)


def test_the_extra_is_named_if_it_is_missing(sweep, monkeypatch, capfd):
    with pytest.raises(SystemExit):
        cli._fail("train", HydraException("Could not find 'hydra/launcher/submitit_slurm'\n\nAvailable"))
    message = 'grace-train: submitit_slurm is not installed: pip install "grace-lightning[sweep]"\n'
    assert capfd.readouterr().err == message
    monkeypatch.setitem(sys.modules, "optuna", None)
    status, _, err, _ = sweep("experiment=optuna")
    assert (status, err) == (2, message.replace("submitit_slurm", "optuna"))
    assert not list(Path("runs").iterdir())


@pytest.mark.parametrize("launcher", ["basic", pytest.param("submitit_local", marks=[extra, pytest.mark.slow])])
def test_status_is_2_if_all_are_the_users_mistakes(launcher, sweep):
    status, _, err, table = sweep(*GAT, "model.heads=3", f"hydra/launcher={launcher}")
    assert (status, list(table["status"])) == (2, ["refused"])
    assert "1 of 1 runs" in err
    assert "model.heads: 3, expected a divisor" in table["message"][0]


@extra
class TestOptuna:
    def trials(self):
        import optuna

        return optuna.load_study(study_name="grace", storage="sqlite:///runs/optuna.db").trials

    def test_a_study_goes_on_where_it_was(self, sweep):
        search = ["experiment=optuna", "model=gcn", "model.dropout=0.2", "augment=none"]
        search += ["model.hidden=choice([4],[8])", "module.end_weight=interval(0.5, 2)"]
        status, out, err, table = sweep(*search, "hydra.sweeper.n_trials=1")
        assert (status, err) == (0, "")
        assert "not searched, since this configuration has no such key: features.hidden\n" in out
        assert len(self.trials()) == len(table) == 1
        status, out, _, table = sweep(*search, "hydra.sweeper.n_trials=3", "log_dir=./runs")
        assert status == 0
        assert "study grace: 1 trials done, 2 to go" in out
        trials = self.trials()
        assert len(trials) == 3
        searched = {"optimizer.lr", "optimizer.weight_decay", "model.hidden", "module.end_weight"}
        assert all(set(trial.params) == searched for trial in trials)
        assert {trial.params["optimizer.lr"] for trial in trials} == set(table["optimizer.lr"])  # all sweeps' runs
        assert table["optimizer.lr"].is_unique  # the seed has moved on
        assert max(trial.value for trial in trials) == table[OBJECTIVE][0]
        assert all(set(trial.intermediate_values) == {0} for trial in trials)
        assert {Path(trial.user_attrs["run"]) for trial in trials} == {Path(run).absolute() for run in table["run"]}
        status, _, err, table = sweep(*search, "hydra.sweeper.n_trials=3", "seed=1")
        assert status == 2
        assert "'grace' in sqlite:///runs/optuna.db has 3 trials with other overrides (seed=1)" in err
        assert table is None

    def test_what_optuna_refuses_is_named(self, sweep):
        status, _, err, _ = sweep("experiment=optuna", *GCN, "hydra.sweeper.sampler.seed=-5")
        assert status == 2
        assert "hydra.sweeper.sampler: Seed must be between 0 and" in err

    def test_bad_trials_are_stopped(self, sweep, monkeypatch):
        """Of four runs, two are never stopped; two are worse and stop after the first epoch."""
        from grace_lightning.callbacks import Pruning

        original, seen = Pruning.on_validation_end, []

        def report(self, trainer, pl_module):
            seen.append((self.number, trainer.current_epoch))
            trainer.callback_metrics["told"] = torch.tensor(0.9 - 0.1 * self.number)
            original(self, trainer, pl_module)

        monkeypatch.setattr(Pruning, "on_validation_end", report)
        pruning = ("monitor=told", "pruner.n_startup_trials=2", "pruner.n_warmup_steps=0")
        search = ["experiment=optuna", *GCN, "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2"]
        search += ["trainer.max_epochs=2", *(f"callbacks.pruning.{key}" for key in pruning)]
        status, _, _, table = sweep(*search)
        assert status == 0
        assert seen == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (3, 0)]
        assert sorted(table["status"]) == ["done", "done", "pruned", "pruned"]
        why = set(table["message"].dropna())
        assert why == {f"told was {value}00 after epoch 1, less than other runs had" for value in (0.7, 0.6)}
        assert table[OBJECTIVE].notna().all()
        assert [trial.state.name for trial in self.trials()] == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]

    def test_failed_trials_do_not_end_a_search_over_networks(self, sweep, monkeypatch):
        """What is searched besides fits the network of each trial."""
        monkeypatch.setattr(pl.Trainer, "fit", lambda *_, **__: 1 / 0)
        search = ["experiment=optuna", "model=choice(mpnn,gcn,gat)", "features=learned", "seed=6"]
        status, _, err, table = sweep(*search, "hydra.sweeper.n_trials=3")
        assert (status, list(table["status"])) == (1, ["failed"] * 3)
        assert err == "grace-train: 3 of 3 runs came to no result; the table says why\n"
        assert [trial.state.name for trial in self.trials()] == ["FAIL"] * 3
        assert set(table["model"]) == {"mpnn", "gcn", "gat"}
        assert (table["model.hidden"].astype(str).str.startswith("[") == (table["model"] != "mpnn")).all()
        assert (table["model.rounds"].notna() == (table["model"] == "mpnn")).all()
        assert (table["model.heads"].notna() == (table["model"] == "gat")).all()
        always = ["optimizer.lr", "optimizer.weight_decay", "model.dropout", "features.hidden"]
        assert table[always].notna().all(axis=None)

    @pytest.mark.slow
    def test_processes_of_joblib_report_to_one_study(self, sweep):
        at_once = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_jobs=2"]
        status, _, _, table = sweep("experiment=optuna", *GCN, *at_once, "hydra.sweeper.n_trials=2")
        assert (status, list(table["status"])) == (0, ["done", "done"])
        assert [set(trial.intermediate_values) for trial in self.trials()] == [{0}, {0}]
        assert sorted(trial.value for trial in self.trials()) == sorted(table[OBJECTIVE])

    def test_the_syntax_of_a_search(self):
        import optuna

        from hydra_plugins.grace_sweeper import draw

        written = {
            "int(interval(1, 4))": "IntDistribution(high=4, log=False, low=1, step=1)",
            "tag(log, interval(0.5, 4))": "FloatDistribution(high=4.0, log=True, low=0.5, step=None)",
            "range(1, 8, 3)": "IntDistribution(high=7, log=False, low=1, step=3)",
            "range(0, 1, 0.25)": "FloatDistribution(high=0.75, log=False, low=0.0, step=0.25)",
            "choice(none, 2, [4,8])": "CategoricalDistribution(choices=('none', 2, '[4,8]'))",
        }
        trial = optuna.create_study().ask()
        overrides = OverridesParser.create().parse_overrides([f"k={text}" for text in written])
        for text, override in zip(written, overrides, strict=True):
            assert draw(trial, text, override) == trial.params[text]
        assert {key: repr(found) for key, found in trial.distributions.items()} == written
