"""Two processes on this machine."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_runs import simulate

# a file, since Lightning starts the other processes by sys.argv[0]; each leaves its weights behind
SCRIPT = """
import os, sys, torch
from grace_lightning.cli import train
from grace_lightning.module import GraceModule

def keep(self):
    torch.save(dict(self.named_parameters()), f"weights_{self.trainer.world_size}_{self.trainer.global_rank}.pt")

def forward(self, data, real=GraceModule.forward):
    logits = real(self, data)
    spoilt = os.environ.get("SPOILT", "none") in data.name and self.current_epoch == 1
    return {head: value * torch.nan for head, value in logits.items()} if spoilt else logits

GraceModule.on_train_end, GraceModule.forward = keep, forward
if __name__ == "__main__":
    train()
"""
SMALL = [
    *("data=folders", *(f"data.{part}_image_dir={part}" for part in ("train", "valid", "infer"))),
    *("trainer.max_epochs=3", "callbacks.progress=null", "features=statistics"),
    *("model.width=8", "model.rounds=1", "model.dropout=0.0"),  # what dropout draws would differ
]
DDP = ["trainer=ddp", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    simulate(folder)
    for path in (folder / "train").glob("train_0003*"):  # three images: one process has one more than the other
        path.rename(folder / path.name)
    (folder / "train.py").write_text(SCRIPT)
    return folder


def start(folder, *overrides, **environment):
    command = [sys.executable, "train.py", *SMALL, *overrides]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **environment}
    return subprocess.Popen(command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def expect_end(process, status):
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    return out, err


@pytest.fixture(scope="module")
def two(folder):
    """What two processes print, and their only run folder."""
    out, err = expect_end(start(folder, *DDP), 0)
    (run,) = (folder / "runs").iterdir()
    return out, err, run


@pytest.fixture(scope="module")
def one(folder):
    """One process with twice the batch."""
    undrawn = ["callbacks.figures=null", "callbacks.projector=null", "evaluate.pictures=false"]
    expect_end(start(folder, "trainer.accelerator=cpu", "data.batch_size=2", "hydra.run.dir=one", *undrawn), 0)
    return folder / "one"


def scalars(run):
    events = EventAccumulator(str(run))
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_both_have_the_same_weights(folder, two):
    first, second = (torch.load(folder / f"weights_2_{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    last = torch.load(two[2] / "model" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(first[name], last[name]) for name in first)


def test_curves_are_those_of_one_process_with_twice_the_batch(two, one):
    first, second = scalars(two[2]), scalars(one)
    assert first.keys() == second.keys()
    compared = [tag for tag in first if not tag.startswith("time/")]
    for tag in compared:  # over all images of both processes, each counted once
        assert first[tag] == pytest.approx(second[tag], abs=1e-4, nan_ok=True), tag
    assert any("average_precision" in tag for tag in compared)


def test_one_of_them_speaks_and_writes(two):
    out, err, run = two
    assert err == ""
    assert out.count("run folder") == 1
    assert out.count("train  3 images") == 1
    writers = {path.name.split(".")[-2] for path in run.glob("events.*")}  # their process numbers
    assert len(writers) == 1
    assert (run / "run.json").is_file()
    assert (run / ".hydra" / "config.yaml").is_file()


def test_all_images_are_scored(two, one):
    first, second = (json.loads((run / "metrics.json").read_text()) for run in (two[2], one))
    assert first["images"].keys() == {"infer_0000"}
    assert first["nodes"]["average_precision"] == pytest.approx(second["nodes"]["average_precision"], abs=1e-3)


def test_sigterm_stops_both(folder):
    process = start(folder, *DDP, "trainer.max_epochs=5000", "hydra.run.dir=stopped")
    last = folder / "stopped" / "model" / "best.ckpt"
    deadline = time.monotonic() + 60
    while not last.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    process.send_signal(signal.SIGTERM)
    _, err = expect_end(process, 143)
    assert err.startswith("grace-train: stopped by SIGTERM; stopped/model/last.ckpt holds the state after")
    assert err.count("\n") == 1
    pids = children.stdout.split()
    assert pids
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_prediction_is_shared_out(folder, two):
    """Two processes find what one finds; one image has none for the second, which tells that there are two."""
    (folder / "predict.py").write_text("from grace_lightning.cli import predict\n\npredict()\n")
    given = [f"checkpoint={two[2]}/model/best.ckpt", "trainer.accelerator=cpu"]
    runs = {"one": ["image_dir=train"], "two": ["image_dir=train", DDP[0]], "alone": ["image_dir=.", DDP[0]]}
    ends = {}
    for name, words in runs.items():
        command = [sys.executable, "-W", "ignore", "predict.py", *given, *words, f"out_dir=found/{name}"]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        ends[name] = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env)
    assert [end.returncode for end in ends.values()] == [0, 0, 2], ends
    first, second = ((folder / "found" / name / "filaments.csv").read_text() for name in ("one", "two"))
    assert first == second
    assert "trainer.devices: 2 processes for 1 images" in ends["alone"].stderr


def test_nan_in_one_stops_both_with_one_line(folder):
    _, err = expect_end(start(folder, *DDP, "hydra.run.dir=nan", SPOILT="train_0002"), 2)
    assert err.count("\n") == 1
    assert "grace-train: the training loss is nan in epoch 1 (the first is 0), step " in err
    assert "at train_0002, expected a finite number" in err


def test_a_sweep_of_several_processes_is_refused(folder):
    command = [sys.executable, "-W", "ignore", "train.py", "-m", *SMALL, *DDP, "seed=1,2", "log_dir=sweep"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    reasons = next((folder / "sweep").glob("*/results.csv")).read_text()
    assert reasons.count("trainer.strategy=ddp") >= 2
    assert "with -m each would run the whole sweep; give trainer.devices=1, or" in reasons


@pytest.mark.parametrize("given", [{"RANK": "1"}, {"LOCAL_RANK": "1"}, {"SLURM_PROCID": "3"}, {"NODE_RANK": "1"}])
def test_only_the_first_process_has_a_run_folder(given, tmp_path, monkeypatch):
    from grace_lightning.cli import _new_folder

    for name, value in given.items():
        monkeypatch.setenv(name, value)
    path = _new_folder(str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    os.rmdir(path)
    monkeypatch.setenv("RANK", "0")
    assert _new_folder(str(tmp_path / "run")) == str(tmp_path / "run")
