"""Stopping a run and going on, and what makes it repeatable."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM

import pytest
import torch
from lightning_utilities import apply_to_collection

from grace_lightning.data import EpochSampler
from grace_lightning.simulate import Simulator, simulate_folder
from grace_lightning.tasks.record import git_state, resume_command

SMALL = [
    *("data=folders", *(f"data.{part}_image_dir={part}" for part in ("train", "valid"))),
    *("trainer.accelerator=cpu", "trainer.max_epochs=2", "callbacks.progress=null", "logger=none"),
    *("model.hidden=8", "model.rounds=1", "features.channels=[4]", "features.hidden=8"),
]
SCORED = ["data.infer_image_dir=infer", "evaluate.pictures=false"]
STOPS = {  # two validation steps and two checkpoints to an epoch; one checkpoint at the start
    "while best.ckpt is written": ("write", 2, SIGKILL),
    "before last.ckpt has its name": ("rename", 3, SIGKILL),
    "in the second epoch": ("validation_step", 3, SIGINT),
}


def simulate(folder, train=3):
    simulator = Simulator(
        size=[128, 128], num_filaments=2, scale=10, period=20, spacing=8, false_detections=12, num_blobs=1
    )
    for seed, (part, count) in enumerate({"train": train, "valid": 2, "infer": 1}.items()):
        simulate_folder(simulator, folder / part, num_images=count, seed=seed, prefix=part)


def forked(folder, jobs):
    """Return how the jobs ended in ``folder``, one after another; see ``forked.py``."""
    (folder / "jobs.json").write_text(json.dumps(list(jobs.values())))
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("forked.py")), "jobs.json", "results.json"]
    subprocess.run(command, cwd=folder, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return dict(zip(jobs, json.loads((folder / "results.json").read_text()), strict=True))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of runs, and what each of them answered."""
    folder = tmp_path_factory.mktemp("runs")
    simulate(folder)

    def job(name, *overrides, **disturbed):
        return {"command": ["train", *SMALL, f"hydra.run.dir={name}", *overrides], **disturbed}

    jobs = {"whole": job("whole", *SCORED)}
    for k, (name, at) in enumerate(STOPS.items()):
        jobs[name] = job(f"stop{k}", at=at)
        workers = 0 if k else 2  # of the run that starts at the beginning
        jobs[f"{name}, resumed"] = job(f"on{k}", f"ckpt_path=stop{k}/model/last.ckpt", f"data.num_workers={workers}")
    jobs["again"] = job("again", "ckpt_path=whole/model/last.ckpt", *SCORED)
    jobs["less"] = job("less", "ckpt_path=whole/model/last.ckpt", "trainer.max_epochs=1")
    jobs["longer"] = job("longer", "ckpt_path=whole/model/last.ckpt", "trainer.max_epochs=4", "optimizer.lr=0.1")
    bare = ["ckpt_path=whole/model/last.ckpt", "trainer.max_epochs=4", "optimizer.lr=0.1", "hydra.run.dir=bare"]
    jobs["bare"] = {"command": ["train", *bare]}
    jobs["early"] = job("early", at=("fit_to", 1, SIGTERM))
    jobs["nan"] = job("nan", spoilt="train_0001")
    return folder, forked(folder, jobs)


def checkpoint(folder, run, name="last"):
    return torch.load(folder / run / "model" / f"{name}.ckpt", weights_only=True)


def expect_same(folder, one, other):
    """Compare weights, optimiser, schedule and progress to the bit."""
    for name in ("last", "best"):
        saved = (checkpoint(folder, run, name) for run in (one, other))
        first, second = (apply_to_collection(content, torch.Tensor, torch.Tensor.tolist) for content in saved)
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "loops", "epoch", "global_step"):
            assert first[key] == second[key]


@pytest.mark.slow
class TestRuns:
    @pytest.mark.parametrize("name", STOPS)
    def test_a_run_that_was_stopped_goes_on_to_the_same_bits(self, runs, name):
        folder, results = runs
        number, (_, _, sent) = list(STOPS).index(name), STOPS[name]
        assert results[name]["status"] == [-SIGKILL if sent is SIGKILL else 128 + sent]
        for path in (folder / f"stop{number}" / "model").glob("*.ckpt"):
            assert "state_dict" in torch.load(path, weights_only=True)
        resumed = results[f"{name}, resumed"]
        assert resumed["status"] == [0], resumed["err"]
        expect_same(folder, "whole", f"on{number}")

    def test_a_signal_says_how_to_go_on(self, runs):
        said = (
            "grace-train: stopped by Ctrl-C; stop2/model/last.ckpt holds the state after 1 whole epochs; go on with: "
        )
        go_on = shlex.join(["grace-train", "ckpt_path=stop2/model/last.ckpt", *SMALL])
        assert runs[1]["in the second epoch"]["err"] == f"{said}{go_on}\n"

    def test_a_signal_before_training_is_one_line_too(self, runs):
        result = runs[1]["early"]
        assert result["status"] == [128 + SIGTERM]
        assert result["err"] == "grace-train: stopped by SIGTERM before training began; nothing is kept\n"

    def test_a_finished_run_is_only_scored(self, runs):
        folder, results = runs
        assert results["again"]["status"] == [0]
        expect_same(folder, "whole", "again")
        one, other = (json.loads((folder / r / "metrics.json").read_text()) for r in ("whole", "again"))
        assert one == other

    def test_epochs_that_are_over_cannot_be_asked_for(self, runs):
        result = runs[1]["less"]
        assert result["status"] == [2]
        assert "trainer.max_epochs: 1, but whole/model/last.ckpt has had 2 epochs" in result["err"]

    def test_more_epochs_and_another_rate_count_as_if_from_the_start(self, runs):
        """The rate goes down to the new end, not up from the old one."""
        folder, results = runs
        assert (results["longer"]["status"], results["longer"]["err"]) == ([0], "")
        (schedule,) = checkpoint(folder, "longer")["lr_schedulers"]
        assert (schedule["T_max"], schedule["last_epoch"], schedule["base_lrs"]) == (4, 4, [0.1])
        assert schedule["_last_lr"] == pytest.approx([0], abs=1e-9)

    def test_settings_that_are_left_out_are_refused_and_can_be_pasted(self, runs):
        folder, results = runs
        assert results["bare"]["status"] == [2]
        assert (
            "data.simulation, features.channels"
            in results["bare"]["err"].partition("which this command does not give")[0]
        )
        pasted = re.search(r"of that run: (grace-train .*) \(to change", results["bare"]["err"])[1]
        kept = [word for word in [*SMALL, *SCORED] if not word.startswith("trainer.max_epochs")]
        typed = ["trainer.max_epochs=4", "optimizer.lr=0.1"]
        assert shlex.split(pasted) == ["grace-train", "ckpt_path=whole/model/last.ckpt", *kept, *typed]
        assert not (folder / "bare").exists()

    def test_the_best_checkpoint_is_the_best_of_both_runs(self, runs):
        folder, _ = runs
        whole, on = (
            next(v for k, v in checkpoint(folder, r)["callbacks"].items() if k[:5] == "Check") for r in ("whole", "on2")
        )
        assert on["best_model_score"] == whole["best_model_score"]
        assert on["best_model_path"] == str(folder / "on2" / "model" / "best.ckpt")

    def test_nan_stops_the_run_and_names_the_images(self, runs):
        folder, results = runs
        step = [pick.image for pick in EpochSampler(range(3), 0, lambda: 1, shuffle=True)].index(1)
        assert results["nan"]["status"] == [2]
        said = "grace-train: the training loss is nan in epoch 1 (the first is 0), step"
        assert results["nan"]["err"].startswith(f"{said} {step}, at train_0001, expected")
        assert results["nan"]["err"].count("\n") == 1
        assert checkpoint(folder, "nan")["global_step"] == 3

    def test_the_run_folder_says_what_the_run_was(self, runs):
        folder, _ = runs
        record = json.loads((folder / "whole" / "run.json").read_text())
        assert record["command"] == shlex.join(["grace-train", *SMALL, "hydra.run.dir=whole", *SCORED])
        assert record["packages"]["torch"] == torch.__version__.partition("+")[0]
        assert record["git"]["folder"] is None
        assert {part: list(data["images"]) for part, data in record["data"].items()} == {
            "train": ["train_0000", "train_0001", "train_0002"],
            "valid": ["valid_0000", "valid_0001"],
            "infer": ["infer_0000"],
        }
        assert "T_max: 2" in (folder / "whole" / "config.yaml").read_text()  # which refers to the number of epochs


def test_git_state(tmp_path):
    assert git_state(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    file = tmp_path / "config.yaml"
    file.write_text("a")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    clean = git_state(tmp_path)
    assert len(clean["commit"]) == 40
    assert clean["changed"] == []
    file.write_text("b")
    assert git_state(tmp_path) == git_state(file) == {"commit": clean["commit"], "changed": [" M config.yaml"]}
    (tmp_path / "untracked.py").touch()
    assert git_state(tmp_path / "untracked.py") is None


@pytest.mark.parametrize(("path", "word"), [("a/last.ckpt", "a/last.ckpt"), ("it's/last.ckpt", r"'it\'s/last.ckpt'")])
def test_the_command_that_goes_on_takes_any_path(path, word):
    assert shlex.split(resume_command(path)) == ["grace-train", f"ckpt_path={word}"]
