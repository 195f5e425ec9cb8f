"""Two processes on this machine."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_runs import forked, simulate

# a file, since Lightning starts the other processes by sys.argv[0]; each leaves its weights behind
SCRIPT = """
import torch
from grace_lightning.cli import train
from grace_lightning.module import GraceModule

def keep(self):
    torch.save(dict(self.named_parameters()), f"weights_{self.trainer.global_rank}.pt")

GraceModule.on_train_end = keep
if __name__ == "__main__":
    train()
"""
SMALL = [
    *("data=folders", *(f"data.{part}_image_dir={part}" for part in ("train", "valid", "infer"))),
    *("trainer.max_epochs=2", "callbacks.progress=null", "features=statistics", "evaluate.pictures=false"),
    *("model.hidden=8", "model.rounds=1"),
    *("model.dropout=0.0", "augment.random_edge_crop=null"),  # what the network itself draws would differ
]
CPU = "trainer.accelerator=cpu"
DDP = ["trainer=ddp", CPU]
STOPPED = """
import os, signal
from grace_lightning import cli
from grace_lightning.tasks import together

def write(*arguments, real=together.write_results, **keys):
    real(*arguments, **keys)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.kill(os.getpid(), signal.SIGTERM)

together.write_results = write
cli.predict()
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three training images: one process has one more than the other."""
    folder = tmp_path_factory.mktemp("ddp")
    simulate(folder)
    (folder / "train.py").write_text(SCRIPT)
    return folder


def start(folder, *overrides):
    command = [sys.executable, "train.py", *SMALL, *DDP, *overrides]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def expect_end(process, status):
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    return out, err


@pytest.fixture(scope="module")
def two(folder):
    """What two processes print, and their only run folder."""
    out, err = expect_end(start(folder), 0)
    (run,) = (folder / "runs").iterdir()
    return out, err, run


@pytest.fixture(scope="module")
def jobs(folder):
    """Runs of one process, with twice the batch, and of two that something else than Lightning has started."""
    # After two epochs the network is sure of nothing.
    given = ["predict", "checkpoint=one/model/best.ckpt", "link=components", "link.threshold=0.1"]
    undrawn = ["callbacks.figures=null", "callbacks.projector=null"]
    return forked(
        folder,
        {
            "one": {"command": ["train", *SMALL, CPU, "data.batch_size=2", "hydra.run.dir=one", *undrawn]},
            "nan": {"command": ["train", *SMALL, *DDP, "hydra.run.dir=nan"], "ranks": 2, "spoilt": "train_0002"},
            "found": {"command": [*given, CPU, "image_dir=train", "out_dir=found"]},
            "shared": {"command": [*given, *DDP, "image_dir=train", "out_dir=shared"], "ranks": 2},
            "alone": {"command": [*given, *DDP, "image_dir=infer", "out_dir=alone"], "ranks": 2},
        },
    )


def scalars(run):
    events = EventAccumulator(str(run)).Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_both_have_the_same_weights(folder, two):
    first, second = (torch.load(folder / f"weights_{rank}.pt") for rank in (0, 1))
    last = torch.load(two[2] / "model" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(first[name], other[name]) for name in first for other in (second, last))


def test_curves_are_those_of_one_process_with_twice_the_batch(folder, two, jobs):
    assert jobs["one"]["status"] == [0], jobs["one"]["err"]
    first, second = scalars(two[2]), scalars(folder / "one")
    assert first.keys() == second.keys()
    assert "valid/node_average_precision" in first
    for tag in [tag for tag in first if not tag.startswith("time/")]:  # over all images, each counted once
        assert first[tag] == pytest.approx(second[tag], abs=1e-4, nan_ok=True), tag


def test_one_of_them_speaks_and_writes(two):
    out, err, run = two
    assert err == ""
    assert out.count("run folder") == 1
    assert out.count("train  3 images") == 1
    writers = {path.name.split(".")[-2] for path in run.glob("events.*")}  # their process numbers
    assert len(writers) == 1
    assert (run / "run.json").is_file()
    assert (run / ".hydra" / "config.yaml").is_file()


def test_all_images_are_scored(folder, two, jobs):
    first, second = (json.loads((run / "metrics.json").read_text()) for run in (two[2], folder / "one"))
    assert first["images"].keys() == {"infer_0000"}
    assert first["nodes"]["average_precision"] == pytest.approx(second["nodes"]["average_precision"], abs=1e-3)


def test_sigterm_stops_both(folder):
    process = start(folder, "trainer.max_epochs=5000", "hydra.run.dir=stopped")
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


def test_nan_in_one_stops_both_with_one_line(jobs):
    assert jobs["nan"]["status"] == [2, 2]
    said = r"grace-train: the training loss is nan in epoch 1 .*, at train_0002, expected a finite number.*\n"
    assert re.fullmatch(said, jobs["nan"]["err"])


def test_prediction_is_shared_out(folder, jobs):
    """Also a single image, which leaves nothing for the second process."""
    assert [jobs[name]["status"] for name in ("found", "shared", "alone")] == [[0], [0, 0], [0, 0]], jobs
    first, second = ((folder / name / "filaments.csv").read_text() for name in ("found", "shared"))
    assert first == second
    assert first.count("\n") > 1
    assert jobs["shared"]["out"].startswith("3 images")
    assert jobs["shared"]["out"].count("\n") == 1
    assert (folder / "alone" / "infer_0000.grace").is_dir()


def test_a_sweep_of_several_processes_is_refused(folder, run, monkeypatch):
    monkeypatch.chdir(folder)
    assert run("train", "-m", *SMALL, *DDP, "seed=1,2", "log_dir=sweep")[0] == 2
    reasons = next((folder / "sweep").glob("*/results.csv")).read_text()
    assert "with -m each would run the whole sweep; give trainer.devices=1, or" in reasons


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK"])
def test_only_the_first_process_has_a_run_folder(name, tmp_path, monkeypatch):
    from grace_lightning.cli import _new_folder

    monkeypatch.setenv(name, "1")
    _new_folder(str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("RANK", "0")  # which counts over all machines
    assert _new_folder(str(tmp_path / "run")) == str(tmp_path / "run")


def test_a_signal_to_the_first_process_ends_all_after_the_image_in_hand(folder, jobs):
    (folder / "stopped.py").write_text(STOPPED)
    given = ["checkpoint=one/model/best.ckpt", "image_dir=train", "out_dir=stopped", "export.png=false"]
    command = [sys.executable, "stopped.py", *DDP, *given]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert done.stderr.count("grace-predict: stopped by SIGTERM; go on with: ") == 1
    results = len(list((folder / "stopped").glob("*.grace")))
    assert 1 <= results <= 2  # of three; the first process would have done two
    assert done.stdout.startswith(f"{results} image")
    assert f"; {3 - results} left to do" in done.stdout
    assert (folder / "stopped/filaments.csv").is_file()
