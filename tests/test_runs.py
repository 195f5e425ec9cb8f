"""Stopping a run and going on, and what makes it repeatable."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from grace_lightning.callbacks import WeightAveraging
from grace_lightning.data import GraceDataset
from grace_lightning.errors import InputError
from grace_lightning.features import Statistics
from grace_lightning.io import find_sources, read_sample
from grace_lightning.sampling import EpochSampler, Pick, drawing_by
from grace_lightning.simulate import Simulator, simulate_folder
from grace_lightning.tasks.record import describe_data, git_state

SMALL = [
    *("data=folders", *(f"data.{part}_image_dir={part}" for part in ("train", "valid", "infer"))),
    *(
        "trainer.accelerator=cpu",
        "trainer.max_epochs=3",
        "callbacks.progress=null",
        "logger=none",
        "evaluate.pictures=false",
    ),
    *("model.width=8", "model.rounds=1", "features.channels=[4]", "features.width=8"),
]
KILLS = {  # four training steps, three validation steps and two or one checkpoints to an epoch; one before the first
    "in the first epoch": ("training_step", 2),
    "in the middle of an epoch": ("training_step", 7),
    "in validation": ("validation_step", 5),
    "while best.ckpt is written": ("write", 2),
    "while last.ckpt is written": ("write", 3),
    "before last.ckpt has its name": ("_rename", 3),
}


def simulate(folder):
    simulator = Simulator(
        size=[128, 128], num_filaments=2, width=10, period=20, spacing=8, false_detections=12, num_blobs=1
    )
    for seed, (part, count) in enumerate({"train": 4, "valid": 3, "infer": 1}.items()):
        simulate_folder(simulator, folder / part, num_images=count, seed=seed, prefix=part)


def forked(folder, jobs):
    """Results of runs in ``folder``, one after another."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("forked.py")), "jobs.json", "results.json"]
    subprocess.run(command, cwd=folder, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads((folder / "results.json").read_text())


def job(name, *overrides, at=None, number=signal.SIGKILL):
    scored = [] if name in ("whole", "again") else ["data.infer_image_dir=null"]
    return {"arguments": [*SMALL, f"hydra.run.dir={name}", *scored, *overrides], "at": at, "signal": int(number)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of runs, and what each of them answered."""
    folder = tmp_path_factory.mktemp("runs")
    simulate(folder)
    jobs = {"whole": job("whole"), "workers": job("workers", "data.num_workers=2")}
    for k, (name, at) in enumerate(KILLS.items()):
        jobs[name] = job(f"kill{k}", at=at)
        jobs[f"{name}, resumed"] = job(f"on{k}", f"ckpt_path=kill{k}/model/last.ckpt", f"data.num_workers={k % 2}")
    jobs["again"] = job("again", "ckpt_path=on0/model/last.ckpt")
    jobs["int"] = job("int", "seed=3", at=("training_step", 6), number=signal.SIGINT)
    jobs["term"] = job("term", at=("validation_step", 2), number=signal.SIGTERM)
    jobs["early term"] = job("early", at=("fit_to", 1), number=signal.SIGTERM)
    jobs["nan"] = job("nan", at=("training_step", 5), number=signal.SIGTERM)
    jobs["nan"] |= {"at": ("forward", 9), "signal": 0}  # seven calls to an epoch: the second step of the second one
    jobs["patience"] = job("patience", "callbacks.early_stopping.patience=1", "optimizer.lr=0.0")
    jobs["patience, resumed"] = job(
        "patient", "callbacks.early_stopping.patience=1", "optimizer.lr=0.0", "ckpt_path=patience/model/last.ckpt"
    )
    for epochs in (2, 3):
        jobs[f"flat {epochs}"] = job(f"flat{epochs}", "scheduler=none", f"trainer.max_epochs={epochs}")
    averaged = ["scheduler=none", "callbacks.weight_averaging.start=1"]
    jobs["averaged"] = job("averaged", *averaged)
    jobs["averaged, killed"] = job("gap", *averaged, at=("training_step", 9))
    jobs["averaged, resumed"] = job("mended", *averaged, "ckpt_path=gap/model/last.ckpt")
    return folder, dict(zip(jobs, forked(folder, list(jobs.values())), strict=True))


def checkpoint(folder, run, name="last"):
    return torch.load(folder / run / "model" / f"{name}.ckpt", weights_only=True)


def differences(first, second, path=""):
    if isinstance(first, dict):
        assert first.keys() == second.keys(), path
        return [d for key in first for d in differences(first[key], second[key], f"{path}/{key}")]
    if isinstance(first, list | tuple):
        return [d for k, pair in enumerate(zip(first, second, strict=True)) for d in differences(*pair, f"{path}/{k}")]
    equal = torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second
    return [] if equal else [path]


def expect_same(folder, one, other, name="last"):
    """Weights, optimiser, schedule and progress, to the bit."""
    first, second = checkpoint(folder, one, name), checkpoint(folder, other, name)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "loops", "epoch", "global_step"):
        assert differences(first[key], second[key]) == []


class TestGoingOn:
    @pytest.mark.parametrize("name", KILLS)
    def test_a_killed_run_goes_on_to_the_same_bits(self, runs, name):
        folder, results = runs
        number = list(KILLS).index(name)
        assert results[name]["status"] == -signal.SIGKILL
        assert results[f"{name}, resumed"]["status"] == 0, results[f"{name}, resumed"]["err"]
        expect_same(folder, "whole", f"on{number}")
        expect_same(folder, "whole", f"on{number}", "best")

    @pytest.mark.parametrize("name", KILLS)
    def test_what_has_a_checkpoints_name_is_whole(self, runs, name):
        for path in (runs[0] / f"kill{list(KILLS).index(name)}" / "model").glob("*.ckpt"):
            assert "state_dict" in torch.load(path, weights_only=True)

    def test_a_finished_run_is_only_scored(self, runs):
        folder, results = runs
        assert results["again"]["status"] == 0
        expect_same(folder, "whole", "again")
        one, other = (json.loads((folder / r / "metrics.json").read_text()) for r in ("whole", "again"))
        assert one == other

    def test_the_best_checkpoint_is_the_best_of_both_runs(self, runs):
        folder, _ = runs
        states = [
            next(v for k, v in checkpoint(folder, r)["callbacks"].items() if k[:5] == "Check") for r in ("on1", "whole")
        ]
        assert states[0]["best_model_score"] == states[1]["best_model_score"]
        assert states[0]["best_model_path"] == str(folder / "on1" / "model" / "best.ckpt")

    @pytest.mark.parametrize(
        ("name", "status", "words"),
        [("int", 130, "stopped by Ctrl-C; "), ("term", 143, "stopped by SIGTERM; ")],
    )
    def test_a_signal_says_how_to_go_on(self, runs, name, status, words):
        result = runs[1][name]
        epochs = {"int": 1, "term": 0}[name]
        assert result["status"] == status
        assert result["err"].count("\n") == 1
        assert f"{words}{name}/model/last.ckpt holds the state after {epochs} whole epochs" in result["err"]
        typed = shlex.split(result["err"].split("go on with: ")[1])
        assert typed[:2] == ["grace-train", f"ckpt_path={name}/model/last.ckpt"]
        assert typed[2:] == [*SMALL, "data.infer_image_dir=null", *(["seed=3"] if name == "int" else [])]

    def test_a_signal_before_training_is_one_line_too(self, runs):
        result = runs[1]["early term"]
        assert result["status"] == 143
        assert result["err"] == "grace-train: stopped by SIGTERM before training began; nothing is kept\n"

    def test_epochs_that_are_over_cannot_be_asked_for(self, runs):
        folder, _ = runs
        overrides = ["ckpt_path=whole/model/last.ckpt", "trainer.max_epochs=2"]
        (result,) = forked(folder, [job("less", *overrides)])
        assert result["status"] == 2
        assert "trainer.max_epochs: 2, but whole/model/last.ckpt has had 3 epochs" in result["err"]


class TestEndings:
    def test_nan_stops_the_run_and_names_the_images(self, runs):
        folder, results = runs
        result = results["nan"]
        sampler = EpochSampler(range(4), 0, lambda: 1, shuffle=True)
        image = [pick.image for pick in sampler][1]
        assert result["status"] == 2
        assert result["err"].count("\n") == 1
        assert f"the training loss is nan in epoch 1 (the first is 0), step 1, at train_000{image}" in result["err"]
        assert checkpoint(folder, "nan")["global_step"] == 4

    def test_early_stopping_by_key(self, runs):
        folder, results = runs
        assert results["patience"]["status"] == 0, results["patience"]["err"]
        assert checkpoint(folder, "patience")["epoch"] == 1  # the second epoch is not better than the first
        assert results["patience, resumed"]["status"] == 0
        assert checkpoint(folder, "patient")["epoch"] == 1

    def test_weight_averaging_keeps_the_mean_of_the_epochs(self, runs):
        folder, results = runs
        assert results["averaged"]["status"] == 0, results["averaged"]["err"]
        second, third = (checkpoint(folder, f"flat{n}")["state_dict"] for n in (2, 3))
        averaged = checkpoint(folder, "averaged")
        for name, mean in averaged["state_dict"].items():
            if name != "temperature" and mean.is_floating_point():
                assert torch.allclose(mean, (second[name] + third[name]) / 2, atol=1e-6), name
        assert differences(averaged["trained_weights"] | {"temperature": 0}, third | {"temperature": 0}) == []
        assert not torch.equal(averaged["state_dict"]["temperature"], third["temperature"])

    def test_weight_averaging_goes_on(self, runs):
        folder, results = runs
        assert results["averaged, resumed"]["status"] == 0, results["averaged, resumed"]["err"]
        expect_same(folder, "averaged", "mended")
        expect_same(folder, "averaged", "mended", "best")

    def test_a_start_that_is_no_epoch_is_refused(self):
        with pytest.raises(
            InputError, match=r"callbacks.weight_averaging.start: 1.5, expected an epoch, or a fraction"
        ):
            WeightAveraging(start=1.5)


class TestRepeatable:
    def test_the_number_of_workers_makes_no_difference(self, runs):
        expect_same(runs[0], "whole", "workers")
        expect_same(runs[0], "whole", "workers", "best")

    def test_the_run_folder_says_what_the_run_was(self, runs):
        folder, _ = runs
        record = json.loads((folder / "whole" / "run.json").read_text())
        assert record["command"] == shlex.join(["grace-train", *SMALL, "hydra.run.dir=whole"])
        assert record["packages"]["torch"] == torch.__version__.partition("+")[0]
        assert record["git"]["folder"] is None
        assert set(record["data"]["train"]["images"]) == {f"train_000{k}" for k in range(4)}
        text = (folder / "whole" / "config.yaml").read_text()
        assert "T_max: 3" in text
        assert "${" not in text

    def test_equal_data_have_equal_hashes_wherever_they_lie(self, runs, tmp_path):
        folder, _ = runs
        known = json.loads((folder / "whole" / "run.json").read_text())["data"]["valid"]
        simulate(tmp_path)

        def described():
            sources = find_sources(tmp_path / "valid")
            data = GraceDataset(sources, read_sample, Statistics())
            for k in range(len(data)):
                data.annotated(k)
            return describe_data({"valid": sources}, data.digests)["valid"]

        assert described() == known
        shutil.copy(tmp_path / "valid" / "valid_0000.mrc", tmp_path / "valid" / "valid_0001.mrc")
        changed = described()
        assert changed["hash"] != known["hash"]
        assert [k for k in known["images"] if known["images"][k] != changed["images"][k]] == ["valid_0001"]

    def test_git_state(self, tmp_path):
        assert git_state(tmp_path) is None
        git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
        (tmp_path / "config.yaml").write_text("a")
        for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
            subprocess.run([*git, *words], check=True)
        clean = git_state(tmp_path)
        assert len(clean["commit"]) == 40
        assert clean["changed"] == []
        (tmp_path / "config.yaml").write_text("b")
        assert git_state(tmp_path) == {"commit": clean["commit"], "changed": [" M config.yaml"]}
        assert git_state(tmp_path, tmp_path / "untracked.py") is None


class TestSampler:
    def test_processes_share_what_one_process_takes(self):
        alone = list(EpochSampler(range(5), seed=1, epoch=lambda: 2, shuffle=True))
        shares = [list(EpochSampler(range(5), 1, lambda: 2, True, processes=2, rank=r)) for r in (0, 1)]
        together = [pick for step in zip(*shares, strict=True) for pick in step]
        assert together[:5] == alone
        assert together[5] == alone[0]._replace(counts=False)

    def test_epochs_differ(self):
        orders = {tuple(p.image for p in EpochSampler(range(20), 0, lambda e=e: e, True)) for e in range(3)}
        assert len(orders) == 3
        assert all(sorted(order) == list(range(20)) for order in orders)
        seeds = [[p.seed for p in EpochSampler(range(3), 0, lambda e=e: e)] for e in range(2)]
        assert not set(seeds[0]) & set(seeds[1])

    def test_drawing_leaves_the_generator_as_it_was(self):
        torch.manual_seed(0)
        expected = torch.rand(3)
        torch.manual_seed(0)
        with drawing_by(7):
            first = torch.rand(3)
        assert torch.equal(torch.rand(3), expected)
        with drawing_by(7):
            assert torch.equal(torch.rand(3), first)

    def test_an_image_that_does_not_count_has_no_labels(self, tmp_path):
        simulate_folder(Simulator(size=[128, 128], num_filaments=2, width=10), tmp_path, num_images=1)
        (source,) = find_sources(tmp_path)
        data = GraceDataset([source], read_sample, Statistics())
        twice = data[Pick(0, 0, counts=False)]
        assert (twice.num_counted, data[0].num_counted) == (0, 1)
        assert set(twice.node_label.tolist()) == set(twice.edge_label.tolist()) == {2}
        assert set(data[0].node_label.tolist()) <= {0, 1}
