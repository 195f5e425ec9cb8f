"""The commands, as typed, from a folder of the user's."""

import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import NAMES

from grace_lightning import cli
from grace_lightning.graph import Graph
from grace_lightning.io import write_grace
from grace_lightning.simulate import Simulator

SHORT = ["trainer.max_epochs=2", "callbacks.progress=null", "trainer.accelerator=cpu"]
SMALL = [*SHORT, "features=statistics", "model=gcn", "model.hidden=[8]", "model.dense=[8]"]
UNDRAWN = ["callbacks.figures=null", "callbacks.projector=null", "evaluate.pictures=false"]  # half of a short run
LEARNED = [*SHORT, *UNDRAWN, "model.rounds=1", "features.channels=[4]"]
BALANCED = ["data.num_hops=2", "module.class_weights=balanced"]
TINY = ["simulator.size=[160,160]", "simulator.num_filaments=2", "simulator.false_detections=30"]


@pytest.fixture
def spoiled(simulated, tmp_path):
    """A copy of the annotated images to spoil."""
    return Path(shutil.copytree(simulated, tmp_path / "spoiled"))


def folders(data):
    return ["data=folders", *(f"data.{part}_image_dir={data}" for part in ("train", "valid", "infer"))]


def expect_refusal(result, message):
    """Expect status 2 and one line on stderr that names what is needed."""
    status, _, err = result
    assert (status, err.count("\n")) == (2, 1), err
    assert re.search(message, err), err


@pytest.fixture(scope="module")
def trained(simulated, tmp_path_factory):
    """The run folder of a short training, and what it printed."""
    work = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        patch.chdir(work)
        patch.setenv("HYDRA_FULL_ERROR", "0")
        patch.setattr(warnings, "showwarning", warnings.showwarning)
        patch.setattr(sys, "argv", ["grace-train", *folders(simulated), *SMALL, *UNDRAWN[:2], "hydra.run.dir=run"])
        cli.train()
    assert err.getvalue() == ""
    return work / "run", out.getvalue()


def metrics_in(folder):
    return json.loads(Path(folder, "metrics.json").read_text())


class TestTrain:
    def test_prints_metrics_and_makes_the_run_folder(self, trained):
        run, out = trained
        for words in (r"│ infer │ edges │ .*\d\.\d{3}", r"│ masks │ .*\d\.\d{3}", "run folder  run", "--logdir runs"):
            assert re.search(words, out)
        names = ["model/best.ckpt", "model/last.ckpt", "metrics.json", "run.json", ".hydra/config.yaml"]
        names += [f"infer/{NAMES[0]}{end}" for end in (".png", ".json", "_filaments.png", "_iou.png")]
        pictures = ("confusion", "roc", "precision_recall", "probabilities", "reliability", "iou")
        names += [f"infer/all_images/{name}.png" for name in pictures]
        assert not [name for name in names if not (run / name).is_file()]

    def test_metrics_have_the_fixed_form(self, trained):
        metrics = metrics_in(trained[0])
        scores = {"accuracy", "precision", "recall", "f1", "auroc", "average_precision"}
        filaments = {"semantic_iou", "instance_iou_mean", "instance_iou_std"}
        filaments |= {"f1_50", "precision_50", "recall_50", "mean_best_iou"}
        assert set(metrics) == {"nodes", "edges", "objects", "images", "calibration"}
        assert list(metrics["images"]) == NAMES
        assert json.loads((trained[0] / "infer" / f"{NAMES[0]}.json").read_text()) == metrics["images"][NAMES[0]]
        for part in (metrics, *metrics["images"].values()):
            assert set(part["nodes"]) == set(part["edges"]) == scores
            assert {way: set(found) for way, found in part["objects"].items()} == {
                **{"exact": filaments, "approx": filaments | {"pixel_accuracy"}}
            }

    def test_evaluation_needs_the_checkpoint_and_the_folder_alone(self, trained, simulated, run):
        best = trained[0] / "model" / "best.ckpt"
        given = [f"checkpoint={best}", f"data.infer_image_dir={simulated}", "evaluate.pictures=false"]
        status, out, err = run("evaluate", *given)
        assert (status, err) == (0, "")
        assert "infer" in out
        made = next(Path("runs").iterdir())
        assert metrics_in(made) == metrics_in(trained[0])
        assert (made / "infer" / f"{NAMES[2]}.json").is_file()

    def test_several_checkpoints_are_evaluated_together(self, trained, simulated, run):
        best = trained[0] / "model" / "best.ckpt"
        other = torch.load(best, weights_only=True)
        other["state_dict"] = {name: t.flip(0) if t.ndim else t for name, t in other["state_dict"].items()}
        torch.save(other, "other.ckpt")
        given = [f"data.infer_image_dir={simulated}", "evaluate.pictures=false"]
        for folder, second in (("twice", best), ("both", "other.ckpt")):
            assert run("evaluate", f"checkpoint=[{best},{second}]", *given, f"hydra.run.dir={folder}")[::2] == (0, "")
        twice, once = metrics_in("twice"), metrics_in(trained[0])
        assert twice["objects"] == once["objects"]
        assert twice["nodes"] == pytest.approx(once["nodes"])
        assert twice["calibration"]["nodes"]["temperature"] is None
        error = once["calibration"]["nodes"]["error_after"]
        assert twice["calibration"]["nodes"]["error_after"] == pytest.approx(error, abs=1e-4)
        assert metrics_in("both")["nodes"] != once["nodes"]

    def test_evaluation_links_and_draws_as_asked(self, trained, simulated, run):
        command = ["evaluate", f"checkpoint={trained[0]}/model/best.ckpt", f"data.infer_image_dir={simulated}"]
        accuracy = {}
        for brush in (1, 100):
            # Every node and edge is linked, so that something is drawn, however well the network has learnt.
            options = ["link=components", "link.threshold=0", f"evaluate.brush={brush}", "evaluate.pictures=false"]
            assert run(*command, *options, f"hydra.run.dir={brush}")[0] == 0
            assert not list(Path(str(brush), "infer").rglob("*.png"))
            accuracy[brush] = metrics_in(str(brush))["objects"]["approx"]["pixel_accuracy"]
        assert accuracy[100] < 0.5 < accuracy[1]

    def test_evaluation_refuses_devices_and_links_as_trained_for_null(self, trained, simulated, run):
        given = [f"checkpoint={trained[0]}/model/best.ckpt", f"data.infer_image_dir={simulated}", *UNDRAWN[2:]]
        expect_refusal(run("evaluate", *given, "trainer.devices=0"), "trainer.devices=0")
        assert run("evaluate", *given, "link=null", "hydra.run.dir=linked")[::2] == (0, "")
        assert metrics_in("linked") == metrics_in(trained[0])

    def test_a_split_folder_is_scored_as_it_was_dealt(self, trained, spoiled, run):
        """Also if an image is gone and another one is new."""
        content = torch.load(trained[0] / "model" / "best.ckpt", weights_only=True)
        config = content["grace_lightning"]
        config["data"] |= {f"{part}_image_dir": None for part in ("train", "valid", "infer")}
        config["data"]["image_dir"] = str(spoiled)
        config["trained_on"] = {
            "split": {"train": [NAMES[1]], "valid": ["gone"], "infer": [NAMES[2]]},
            "pixel_size": 8.0,
        }
        torch.save(content, "split.ckpt")
        status, _, err = run("evaluate", "checkpoint=split.ckpt", "evaluate.pictures=false", "hydra.run.dir=split")
        assert status == 0
        assert list(metrics_in("split")["images"]) == [NAMES[2]]
        for words in ("lost 1 of 3 images: gone", f"1 new image, not scored: {NAMES[0]}"):
            assert words in err
        assert f"{NAMES[2]}: 4 Angstrom per pixel, but the network was trained with 8" in err

    def test_a_validation_image_without_detections_is_no_reason_to_stop(self, spoiled, simulated, run):
        write_grace(spoiled / f"{NAMES[0]}.grace", Graph(torch.zeros(0, 2), torch.zeros(2, 0).long()))
        for end in ("h5", "instances.json"):
            (spoiled / f"{NAMES[0]}.{end}").unlink()
        keys = ["data=folders", f"data.train_image_dir={simulated}", f"data.valid_image_dir={spoiled}"]
        assert run("train", *keys, *SMALL, "model=gat", "model.heads=2", "trainer.max_epochs=1")[::2] == (0, "")

    def test_going_on_with_another_network_is_refused(self, trained, simulated, run):
        last = trained[0] / "model" / "last.ckpt"
        result = run("train", *folders(simulated), *SMALL, f"ckpt_path={last}", "model.hidden=[16]")
        expect_refusal(result, "ckpt_path: .*last.ckpt was trained with model")


@pytest.mark.parametrize(
    ("overrides", "logs"),
    [
        ([*SMALL, *UNDRAWN, "model=gat", "model.heads=2", "data.num_hops=1", "logger=none"], set()),
        ([*SMALL, *UNDRAWN, "features.laplacian=true", "augment=none", "logger=[tensorboard,csv]"], {"events", "csv"}),
        ([*LEARNED, *BALANCED, "augment=strong", "data.batch_size=2", "trainer.precision=bf16-mixed"], {"events"}),
    ],
    ids=["hops", "laplacian", "learned"],
)
def test_variants_train(overrides, logs, simulated, run):
    status, out, err = run("train", *folders(simulated), *overrides, "features.scale=10", "hydra.run.dir=run")
    assert (status, err) == (0, "")
    assert "parameters  " in out
    assert metrics_in("run")["nodes"]["average_precision"] > 0.5
    assert {path.name.split(".")[0] for path in Path("run").iterdir()} & {"events", "csv"} == logs
    assert ("tensorboard --logdir" in out) == ("events" in logs)
    assert [p.name for p in Path().iterdir()] == ["run"]
    if "csv" in logs:
        assert len(pd.read_csv("run/csv/metrics.csv")["valid/edge_average_precision"].dropna()) == 2


def test_same_seed_same_result_in_two_folders(run):
    """As of two runs that start in one second; the first one makes the simulated data."""
    simulation = ["data.simulation.num_images={train: 2, valid: 1, infer: 1}"]
    simulation += [f"data.simulation.{key}" for key in TINY]
    for _ in range(2):
        given = [*SMALL, *UNDRAWN, *simulation, "hydra.run.dir=${new_folder:a}", "seed=3", "trainer.max_epochs=1"]
        assert run("train", *given)[0] == 0
    assert len(list(Path("simulated").glob("*/*.mrc"))) == 4
    first, second = (torch.load(f"{n}/model/last.ckpt", weights_only=True)["state_dict"] for n in ("a", "a-2"))
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_simulate_writes_what_train_reads(run):
    status, out, err = run("simulate", "out_dir=sim", "num_images=2", "seed=4", *TINY)
    assert (status, err) == (0, "")
    assert "2 micrographs in sim" in out
    assert [p.name for p in Path().iterdir()] == ["sim"]
    assert len(list(Path("sim").glob("*.grace"))) == 2


class TestConfigFile:
    @pytest.fixture
    def old(self, simulated, run):
        """A configuration of GRACE in the current folder."""
        content = {f"{part}_image_dir": str(simulated) for part in ("train", "valid", "infer")}
        content |= {"log_dir": "old runs", "filetype": "mrc", "extractor_fn": "None", "patch_size": "(12, 12)"}
        content |= {"classifier_type": "GAT", "num_attention_heads": "2", "epochs": "3", "learning_rate": "0.01"}
        content |= {"hidden_graph_channels": "[8, 8]", "hidden_dense_channels": "[4]", "scheduler_type": "expo"}
        content |= {"img_graph_augs": "['random_xy_translation']", "img_graph_aug_params": "[{'max_shift': 1.5}]"}
        content |= {"patch_augs": "[]", "animate_valid_progress": "True", "visualise_tsne_manifold": "True"}
        Path("old config.json").write_text(json.dumps(content))
        return "config_file=old config.json"

    def test_trains_as_the_file_says_but_for_what_is_typed(self, run, old):
        status, _, err = run("train", *SHORT, old, *UNDRAWN, "model.dropout=0.2")
        assert status == 0
        untold = [line.partition(" has no effect")[0] for line in err.splitlines()]
        assert untold == ["old config.json: filetype", "old config.json: visualise_tsne_manifold"]
        made = next(Path("old runs").iterdir())
        assert (made / "animation.gif").is_file()
        config = torch.load(made / "model" / "last.ckpt", weights_only=True)["grace_lightning"]
        gat = {"_target_": "grace_lightning.models.GAT", "hidden": [8, 8], "dense": [4], "heads": 2, "dropout": 0.2}
        assert config["model"] == gat | {"types": None}
        assert (config["trainer"]["max_epochs"], config["features"]["patch"]) == (2, 0.6)
        assert config["config_file"] == "old config.json"
        on = {name for name, step in config["augment"].items() if isinstance(step, dict)}
        assert on == {"random_xy_translation"}

    def test_a_sweep_runs_over_it(self, run, old):
        off = [*UNDRAWN, "callbacks.animation=null"]
        assert run("train", "-m", *SHORT[1:], old, *off, "trainer.max_epochs=1", "model=gat,gcn")[0] == 0
        found = sorted(Path("old runs").glob("*/*/model/last.ckpt"))
        models = [torch.load(path, weights_only=True)["grace_lightning"]["model"] for path in found]
        assert [(model["_target_"][-3:], model["hidden"]) for model in models] == [("GAT", [8, 8]), ("GCN", [8, 8])]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ('{"epoch": "3"}', "old.json: epoch: no such key in GRACE; its keys are"),
            ('{"hidden_graph_channels": "[6]", "classifier_type": "GAT"}', "model.heads: 4, expected a divisor"),
        ],
    )
    def test_mistakes_in_it_are_named(self, content, message, run):
        Path("old.json").write_text(content)
        expect_refusal(run("train", "config_file=old.json"), message)


@pytest.mark.parametrize(("name", "cls"), [("wandb", "WandbLogger"), ("mlflow", "MLFlowLogger")])
def test_a_missing_package_is_named(name, cls, run):
    if find_spec(name):
        pytest.skip(f"{name} is installed")
    result = run("train", f"logger={name}")
    expect_refusal(result, rf"logger.{name}: {cls} needs a package that is not installed: .*pip install .*{name}")
    assert [p.name for p in Path().iterdir()] == ["runs"]


@pytest.mark.parametrize(
    ("command", "override", "message"),
    [
        ("train", "callbacks.manifold.method=tsne", "callbacks.manifold.method: TensorBoard's Projector tab"),
        ("train", "~callbacks.learning_rate", "callbacks.learning_rate: is always logged now"),
        ("train", "model.width=32,64", "model.width: is called model.hidden now"),
        ("train", "modle=gcn", "^grace-train: modle: no such key"),
        ("train", "model=gnn", "Could not find 'model/gnn' Available options in 'model': gat gcn mpnn$"),
        ("train", "model.dropout=high", "model.dropout: 'high', expected float"),
        ("train", "augment.random_edge_crop.max_fraction=2", "max_fraction: 2, expected a fraction"),
        ("train", "log_dir=/dev/null/runs", "/dev/null/runs.*set log_dir="),
        ("train", "ckpt_path=nowhere.ckpt", "nowhere.ckpt: no such checkpoint"),
        ("train", "data=folders", "data.train_image_dir is not set"),
        ("train", "evaluate.brush=0", "evaluate.brush: 0, expected 1 pixel or more"),
        ("train", "trainer.devices=0", "trainer.devices=0"),
        ("train", "trainer.accelerator=abc", "trainer.accelerator=abc.*: .*invalid accelerator"),
        ("train", "trainer.devices=999", "trainer.devices=999.*at most"),
        ("train", "link=null", "link: null, expected one of components, programme"),
        ("evaluate", "trainer.devices=1", "checkpoint is not set"),
        ("simulate", "simulator.snr=-1", "snr"),
    ],
)
def test_wrong_words_on_the_command_line(command, override, message, run):
    expect_refusal(run(command, override), message)
    assert not [path for path in Path().rglob("*") if path.is_file()]


def test_a_refused_run_leaves_a_folder_that_something_is_in(run):
    Path("mine").mkdir()
    Path("mine/notes.txt").touch()
    for folder in ("mine", "."):
        expect_refusal(run("train", "data=folders", f"hydra.run.dir={folder}"), "data.train_image_dir is not set")
    assert Path("mine/notes.txt").is_file()


def move_a_detection(data):
    path = data / f"{NAMES[1]}.grace" / "nodes.parquet"
    frame = pd.read_parquet(path)
    frame.loc[3, "x"] = 500.0
    frame.to_parquet(path)


@pytest.mark.parametrize(
    ("part", "spoil", "message"),
    [
        ("train", shutil.rmtree, "data.train_image_dir: .*spoiled: no such folder"),
        ("train", lambda data: [path.unlink() for path in data.glob("*.mrc")], "spoiled: no images"),
        ("train", move_a_detection, "nodes.parquet.*detection 3.*outside the image of 192 x 192"),
        ("infer", lambda data: (data / f"{NAMES[1]}.mrc").write_bytes(b"cut"), f"{NAMES[1]}.mrc"),
    ],
)
def test_bad_files_are_named_before_training(part, spoil, message, spoiled, simulated, run):
    spoil(spoiled)
    expect_refusal(run("train", *folders(simulated), *SMALL, f"data.{part}_image_dir={spoiled}"), message)
    assert not list(Path().rglob("*.ckpt"))


def test_skipped_images_are_counted_and_named(spoiled, run):
    shutil.rmtree(spoiled / f"{NAMES[2]}.grace")
    status, out, err = run("train", *folders(spoiled), *SMALL, *UNDRAWN, "trainer.max_epochs=1")
    assert status == 0
    told = f"warning: {spoiled}: 1 of 3 images have no .grace folder and were skipped: {NAMES[2]}"
    assert set(err.splitlines()) == {told}
    assert "train  2 images" in out


@pytest.mark.parametrize(
    ("typed", "taken"),
    [
        ("image_dir=my (1) folder", r"image_dir='my (1) folder'"),
        ("+image_dir=R&D #2 ~ü, {x}=", r"+image_dir='R&D #2 ~ü, {x}='"),
        ("out_dir=it's\\", r"out_dir='it\'s\\'"),
        ("out_dir=20240115", "out_dir='20240115'"),
        ("data.train_image_dir=1e5", "data.train_image_dir='1e5'"),
        ("out_dir=a,b", "out_dir='a,b'"),
        ("out_dir=[bold]", "out_dir='[bold]'"),
        ("ckpt_path=runs/[1]/last.ckpt", "ckpt_path='runs/[1]/last.ckpt'"),
        ("checkpoint=[a (1).ckpt, b.ckpt]", "checkpoint=['a (1).ckpt', 'b.ckpt']"),
        ("image_dir=~/data", f"image_dir={Path.home()}/data"),
        *((same, same) for same in ("image_dir=my folder", "image_dir='2024'", 'image_dir="a,b"', "image_dir=null")),
        *(
            (same, same)
            for same in ("checkpoint=[a.ckpt,b.ckpt]", "log_dir=${oc.env:HOME}/x", "seed=3", "model=gcn,gat")
        ),
        *((same, same) for same in ("simulator.size=[64,64]", "~logger", "-m", "--config-dir=a (1)", "folder")),
    ],
)
def test_what_hydra_would_misread_is_taken_as_typed(typed, taken):
    assert cli._readable(typed, in_sweep=False) == taken
    assert cli._readable(taken, in_sweep=False) == taken


def test_the_values_of_a_sweep_stay_apart():
    for same in ("data.image_dir=a,b", "data.image_dir=a (1),b"):
        assert cli._readable(same, in_sweep=True) == same


def test_paths_that_mean_something_to_hydra_or_rich(simulated, run):
    for name in ("[bold]x (1) #ü", "x[/red]", "2024", ":star:,{a}=b"):
        shutil.copytree(simulated, name)
        shutil.copy(Path(name) / f"{NAMES[0]}.grace" / "annotation.npz", Path(name) / f"{NAMES[0]}_mask.npz")
        status, out, err = run("annotate", f"image_dir={name}", f"out_dir={name}/out", "detections=files")
        assert status == 0, err
        assert out.startswith(f"annotated 3 of 3 images in {name}/out\n")


@pytest.mark.parametrize("key", ["image_dir=", "out_dir=''"])
def test_an_empty_path_is_not_the_current_folder(key, run):
    expect_refusal(run("annotate", key), f"{key.partition('=')[0]}: nothing follows the =")


def test_blanks_that_the_shell_has_split(run):
    expect_refusal(run("annotate", "image_dir=my", "images"), "images: expected key=value; quote blanks")
    result = run("train", "-m", "data.image_dir=a (1),b")
    expect_refusal(result, re.escape("""in a sweep, quote each value: 'data.image_dir="a (1)","b"'"""))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_libraries_are_imported_is_one_line(number, tmp_path):
    code = f"""
import os, sys
from grace_lightning import cli

def import_slowly(name):
    try:
        os.kill(os.getpid(), {int(number)})
    except BaseException:  # as many libraries have it
        pass

cli.import_module = import_slowly
sys.argv = ["grace-predict", "image_dir=a (1)", "out_dir=b"]
cli.predict()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    by = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert done.returncode == 128 + number
    assert done.stderr == f"grace-predict: stopped by {by}; go on with: grace-predict 'image_dir=a (1)' out_dir=b\n"


def test_simulation_that_was_stopped_says_how_it_is_made_whole(run, monkeypatch):
    def ask(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    real = Simulator.__call__
    with monkeypatch.context() as patch:
        patch.setattr(Simulator, "__call__", ask)
        status, _, err = run("simulate", "out_dir=sim (1)", "num_images=2", *TINY)
    assert status == 128 + signal.SIGINT
    command = shlex.split(err.partition("start again with: ")[2])
    assert command == ["grace-simulate", "out_dir=sim (1)", "num_images=2", *TINY, "overwrite=true"]
    assert run("simulate", *command[1:])[:2] == (0, "2 micrographs in sim (1)\n")


@pytest.mark.parametrize("command", ["simulate", "annotate"])
def test_a_disk_that_fails_anywhere_is_one_line(command, run, monkeypatch):
    def fail(cfg):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some/file")

    monkeypatch.setattr(f"grace_lightning.tasks.{command}.{command}", fail)
    expect_refusal(run(command), "some/file: No space left on device")


def test_the_backend_of_a_notebook_and_an_output_that_nobody_reads(tmp_path):
    code = (
        "from grace_lightning import cli; cli.simulate(); import matplotlib; assert matplotlib.get_backend() == 'agg'"
    )
    command = [sys.executable, "-c", code, "out_dir=sim", "num_images=1", *TINY]
    env = {**os.environ, "MPLBACKEND": "module://no_such_notebook.backend"}
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, cwd=tmp_path, env=env, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
    (tmp_path / "sim").rename(tmp_path / "first")
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_bug_shows_its_traceback(run, monkeypatch):
    monkeypatch.setattr("grace_lightning.tasks.train.train", lambda cfg: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("train")


def test_a_disk_that_is_full_is_one_line_also_of_a_thread_that_writes_logs(run, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "events.out")

    def written(*_):
        thread = threading.Thread(target=full)
        thread.start()
        thread.join()
        full()

    monkeypatch.setattr("grace_lightning.tasks.train._train", written)
    expect_refusal(run("train"), r"events.out: cannot be written \(No space left on device\)")


def test_help_and_typos_answer_without_loading_torch(tmp_path):
    (tmp_path / "old.yaml").write_text("epochs: 3")
    code = """
import sys
from grace_lightning.cli import train
for arguments in (["--help"], ["model.dropuot=3"], ["--cfg", "job", "config_file=old.yaml"]):
    sys.argv[1:] = arguments
    try:
        train()
    except SystemExit as stop:
        print("status", stop.code)
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    for words in ("grace-train data=folders", "max_epochs: 3", "status 2"):
        assert words in done.stdout
    assert done.stderr == "grace-train: model.dropuot: no such key; --cfg job prints all keys\n"
    assert done.stdout.splitlines()[-1] == "False"
    assert [p.name for p in tmp_path.iterdir()] == ["old.yaml"]


@pytest.mark.slow
@pytest.mark.shared
def test_real_photographs(shared, run):
    parts = [f"data.{part}_image_dir={shared / 'data' / 'roots' / part}" for part in ("train", "valid", "infer")]
    options = ["data=folders", "model=gcn", "features=statistics", "trainer.max_epochs=2", "callbacks.progress=null"]
    assert run("train", *options, *UNDRAWN, *parts)[::2] == (0, "")
    metrics = metrics_in(next(Path("runs").iterdir()))
    assert set(metrics["images"]) == {"455", "457R"}
    assert metrics["nodes"]["average_precision"] > 0.6  # chance is .41


@pytest.mark.slow
def test_wheel_brings_commands_and_configuration(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", tmp_path / "dist", Path(__file__).parents[1]], check=True)
    wheel = next((tmp_path / "dist").glob("*.whl"))
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    code = "import grace_lightning.cli; print(grace_lightning.__file__); grace_lightning.cli.train()"
    command = [sys.executable, "-c", code, "--cfg", "job"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(str(tmp_path / "site"))
    assert "_target_: grace_lightning.models.MPNN" in done.stdout
    assert (tmp_path / "site" / "bin" / "grace-train").is_file()
