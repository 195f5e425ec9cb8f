"""The commands, as typed, from a folder of the user's."""

import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import imagecodecs
import numpy as np
import pandas as pd
import pytest
import torch

from grace_lightning import cli
from grace_lightning.errors import InputWarning
from grace_lightning.simulate import Simulator, simulate_folder

SHORT = ["trainer.max_epochs=2", "callbacks.progress=null", "trainer.accelerator=cpu"]
SMALL = [*SHORT, "features=statistics", "model=gcn", "model.hidden=[8]", "model.dense=[8]"]
UNDRAWN = ["callbacks.figures=null", "callbacks.projector=null", "evaluate.pictures=false"]  # half of a short run
LEARNED = [*SHORT, "model.width=8", "features.channels=[4]", "features.width=8"]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Four annotated micrographs of 128 x 128 pixels."""
    folder = tmp_path_factory.mktemp("simulated")
    simulator = Simulator(
        size=[128, 128], num_filaments=2, width=10, period=20, spacing=8, false_detections=12, num_blobs=1
    )
    simulate_folder(simulator, folder, num_images=4, seed=1)
    return folder


@pytest.fixture
def data(simulated, tmp_path):
    """A copy of them to spoil."""
    return Path(shutil.copytree(simulated, tmp_path / "data"))


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Run a command in an empty folder: exit status, stdout, stderr."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    # what a command changes in its process, put back after the test
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def command(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"grace-{name}", *map(str, arguments)])
        capfd.readouterr()
        status = 0
        try:
            getattr(cli, name)()
        except SystemExit as stop:
            status = stop.code
        return status, *capfd.readouterr()

    return command


def folders(data):
    return ["data=folders", *(f"data.{part}_image_dir={data}" for part in ("train", "valid", "infer"))]


def expect_refusal(result, *parts):
    """Status 2 and one line on stderr that names what is needed."""
    status, _, err = result
    lines = [line for line in err.splitlines() if line.strip()]
    assert status == 2
    assert len(lines) == 1, err
    for part in parts:
        assert re.search(part, lines[0]), lines[0]


@pytest.fixture(scope="module")
def trained(simulated, tmp_path_factory):
    """The run folder of a short training, and what it printed."""
    work = tmp_path_factory.mktemp("work")
    code = "from grace_lightning.cli import train; train()"
    command = [sys.executable, "-c", code, *folders(simulated), *SMALL, "hydra.run.dir=run", "trainer.max_epochs=3"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return work / "run", done


class TestTrain:
    def test_prints_metrics_the_folder_and_the_dashboard_and_nothing_else(self, trained):
        _, done = trained
        assert re.search(r"│ infer │ edges │ .*\d\.\d{3}", done.stdout)
        assert re.search(r"│ masks │ .*\d\.\d{3}", done.stdout)
        assert "run folder  run" in done.stdout
        assert "tensorboard --logdir runs" in done.stdout
        assert done.stderr == ""

    def test_run_folder_holds_what_the_design_says(self, trained):
        run, _ = trained
        names = {
            "model/best.ckpt",
            "model/last.ckpt",
            "metrics.json",
            ".hydra/config.yaml",
            *(f"infer/micrograph_0000{end}" for end in (".png", ".json", "_filaments.png", "_iou.png")),
            *(f"infer/all_images/{name}.png" for name in ("confusion", "roc", "precision_recall", "probabilities")),
            *(f"infer/all_images/{name}.png" for name in ("reliability", "iou")),
        }
        assert all((run / name).is_file() for name in names)
        assert list(run.glob("events.out.tfevents.*"))

    def test_metrics_have_the_fixed_form(self, trained):
        text = (trained[0] / "metrics.json").read_text()
        metrics = json.loads(text)
        scores = {"accuracy", "precision", "recall", "f1", "auroc", "average_precision"}
        filaments = {"semantic_iou", "instance_iou_mean", "instance_iou_std"}
        filaments |= {"f1_50", "precision_50", "recall_50", "mean_best_iou"}
        assert set(metrics) == {"nodes", "edges", "objects", "images", "calibration"}
        assert set(metrics["images"]) == {f"micrograph_000{k}" for k in range(4)}
        for part in (metrics, *metrics["images"].values()):
            assert set(part["nodes"]) == set(part["edges"]) == scores
            assert set(part["objects"]) == {"exact", "approx"}
            assert set(part["objects"]["exact"]) == filaments
            assert set(part["objects"]["approx"]) == filaments | {"pixel_accuracy"}
        assert "NaN" not in text
        one = json.loads((trained[0] / "infer" / "micrograph_0002.json").read_text())
        assert one == metrics["images"]["micrograph_0002"]

    def test_metrics_of_every_epoch_are_logged(self, trained):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(trained[0]))
        events.Reload()
        tags = set(events.Tags()["scalars"])
        for stage in ("train", "valid"):
            assert {f"{stage}/loss", f"{stage}/node_loss", f"{stage}/edge_average_precision"} <= tags
        assert len(events.Scalars("valid/edge_average_precision")) == 3

    def test_checkpoints_load_without_running_code(self, trained):
        for name in ("best", "last"):
            checkpoint = torch.load(trained[0] / "model" / f"{name}.ckpt", weights_only=True)
            assert checkpoint["grace_lightning"]["model"]["hidden"] == [8]

    def test_last_is_the_last_epoch(self, trained):
        assert torch.load(trained[0] / "model" / "last.ckpt", weights_only=True)["epoch"] == 2

    def test_evaluation_needs_the_checkpoint_and_the_folder_alone(self, trained, simulated, run):
        checkpoint = trained[0] / "model" / "best.ckpt"
        status, out, err = run("evaluate", f"checkpoint={checkpoint}", f"data.infer_image_dir={simulated}")
        assert (status, err) == (0, "")
        made = next(Path("runs").iterdir())
        assert json.loads((made / "metrics.json").read_text()) == json.loads((trained[0] / "metrics.json").read_text())
        assert (made / "infer" / "micrograph_0003.png").is_file()
        assert "infer" in out

    def test_several_checkpoints_are_evaluated_together(self, trained, simulated, run):
        best, last = (trained[0] / "model" / f"{name}.ckpt" for name in ("best", "last"))
        given = [f"data.infer_image_dir={simulated}", "evaluate.pictures=false"]
        status, _, err = run("evaluate", f"checkpoint=[{best},{best}]", *given, "hydra.run.dir=twice")
        assert (status, err) == (0, "")
        twice, once = (json.loads(Path(p, "metrics.json").read_text()) for p in ("twice", trained[0]))
        assert twice["objects"] == once["objects"]
        for head, scores in once["nodes"].items():
            assert twice["nodes"][head] == pytest.approx(scores)
        assert twice["calibration"]["nodes"]["temperature"] is None
        assert twice["calibration"]["nodes"]["error_after"] == pytest.approx(
            once["calibration"]["nodes"]["error_after"], abs=1e-4
        )
        assert run("evaluate", f"checkpoint=[{best},{last}]", *given, "hydra.run.dir=both")[0] == 0
        assert json.loads(Path("both", "metrics.json").read_text())["nodes"] != once["nodes"]

    def test_evaluation_links_and_draws_as_asked(self, trained, simulated, run):
        command = ["evaluate", f"checkpoint={trained[0]}/model/best.ckpt", f"data.infer_image_dir={simulated}"]
        accuracy = {}
        for name, overrides in {"thin": ["evaluate.brush=1", UNDRAWN[-1]], "wide": ["evaluate.brush=100"]}.items():
            # every node and edge is linked, so that something is drawn, however well the network has learnt
            options = ["link=components", "link.threshold=0", *overrides, f"hydra.run.dir={name}"]
            assert run(*command, *options)[0] == 0
            assert bool(list(Path(name, "infer").rglob("*.png"))) == (name == "wide")
            objects = json.loads(Path(name, "metrics.json").read_text())["objects"]
            accuracy[name] = objects["approx"]["pixel_accuracy"]
        assert accuracy["wide"] < 0.5 < accuracy["thin"]

    def test_resuming_goes_on_where_the_run_stopped(self, trained, simulated, run):
        last = trained[0] / "model" / "last.ckpt"
        status, _, _ = run(
            *("train", *folders(simulated), *SMALL, *UNDRAWN),
            *(f"ckpt_path={last}", "trainer.max_epochs=5", "hydra.run.dir=on"),
        )
        assert status == 0
        assert torch.load("on/model/last.ckpt", weights_only=True)["epoch"] == 4

    def test_resuming_with_another_network_is_refused(self, trained, simulated, run):
        last = trained[0] / "model" / "last.ckpt"
        result = run("train", *folders(simulated), *SMALL, f"ckpt_path={last}", "model.hidden=[16]")
        expect_refusal(result, "ckpt_path: .*last.ckpt was trained with model")

    def test_a_checkpoint_may_name_classes_of_this_package_only(self, trained, run, tmp_path):
        checkpoint = torch.load(trained[0] / "model" / "best.ckpt", weights_only=True)
        checkpoint["grace_lightning"]["model"] = {"_target_": "os.system", "command": f"touch {tmp_path}/ran"}
        torch.save(checkpoint, tmp_path / "evil.ckpt")
        result = run("evaluate", f"checkpoint={tmp_path}/evil.ckpt", f"data.infer_image_dir={tmp_path}")
        expect_refusal(result, "model names 'os.system', expected classes of grace_lightning")
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "overrides",
    [
        [*SMALL, "model=gat", "model.heads=2", "data.num_hops=1"],
        [*SMALL, *UNDRAWN, "features.laplacian=true", "augment=none", "logger=none", "callbacks.learning_rate=null"],
        [*SMALL, UNDRAWN[-1], "augment=none", "logger=csv", "callbacks.figures.every_n_epochs=1"],
        [*LEARNED, *UNDRAWN, "augment=strong", "data.batch_size=2"],
        [*LEARNED, "trainer.precision=bf16-mixed", "data.num_hops=2", "module.class_weights=balanced"],
    ],
    ids=lambda overrides: " ".join(overrides[-3:]),
)
def test_variants_train(overrides, simulated, run):
    status, out, err = run("train", *folders(simulated), *overrides)
    assert (status, err) == (0, "")
    assert "parameters  " in out
    metrics = json.loads(next(Path("runs").glob("*/metrics.json")).read_text())
    assert metrics["nodes"]["average_precision"] > 0.3  # a third of the nodes are positive


def test_simulated_data_is_made_once_and_used_again(run):
    simulation = [
        "data.simulation.num_images={train: 2, valid: 1, infer: 1}",
        "data.simulation.simulator.size=[128,128]",
    ]
    simulation += [f"data.simulation.simulator.{k}" for k in ("width=10", "num_filaments=2", "false_detections=10")]
    assert run("train", *SMALL, *UNDRAWN, *simulation)[0] == 0
    image = Path("simulated/train/train_0000.mrc")
    made = image.stat().st_mtime_ns
    assert run("train", *SMALL, *UNDRAWN, *simulation, "log_dir=again")[0] == 0
    assert image.stat().st_mtime_ns == made


def test_two_runs_of_one_second_have_two_folders(simulated, run):
    for _ in range(2):
        run("train", *folders(simulated), *SMALL, *UNDRAWN, "hydra.job.name=x", "trainer.max_epochs=1")
    assert len([p for p in Path("runs").iterdir() if (p / "metrics.json").is_file()]) == 2


def test_same_seed_same_result(simulated, run):
    for name in ("a", "b"):
        run("train", *folders(simulated), *SMALL, *UNDRAWN, f"hydra.run.dir={name}", "seed=3")
    first, second = (torch.load(f"{n}/model/last.ckpt", weights_only=True)["state_dict"] for n in "ab")
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_simulate_writes_what_train_reads(run):
    small = ["simulator.size=[128,128]", "simulator.width=10", "simulator.num_filaments=2"]
    status, out, err = run("simulate", "out_dir=sim", "num_images=2", "seed=4", *small)
    assert (status, err) == (0, "")
    assert "2 micrographs in sim" in out
    assert sorted(p.name for p in Path().iterdir()) == ["sim"]
    assert len(list(Path("sim").glob("*.grace"))) == 2


class TestConfigFile:
    OLD = {  # noqa: RUF012
        "filetype": "mrc",
        "extractor_fn": "None",
        "patch_size": "(12, 12)",
        "classifier_type": "GAT",
        "hidden_graph_channels": "[8, 8]",
        "hidden_dense_channels": "[4]",
        "num_attention_heads": "2",
        "epochs": "3",
        "learning_rate": "0.01",
        "scheduler_type": "expo",
        "img_graph_augs": "['random_xy_translation']",
        "img_graph_aug_params": "[{'max_shift': 1.5}]",
        "patch_augs": "[]",
        "animate_valid_progress": "True",
        "visualise_tsne_manifold": "True",
    }

    @pytest.fixture
    def old(self, simulated, run):
        """A configuration of GRACE in the current folder."""
        parts = {f"{part}_image_dir": str(simulated) for part in ("train", "valid", "infer")}
        Path("old config.json").write_text(json.dumps({**self.OLD, **parts, "log_dir": "old runs"}))
        return "config_file=old config.json"

    def test_trains_as_the_file_says_but_for_what_is_typed(self, run, old):
        status, out, err = run("train", *SHORT[1:], old, "model.dropout=0.2", "trainer.max_epochs=2")
        assert status == 0
        assert (
            err == "old config.json: filetype has no effect: every type of image that can be read is found by itself\n"
        )
        assert "valid  4 images" in out
        made = next(Path("old runs").iterdir())
        config = torch.load(made / "model" / "last.ckpt", weights_only=True)["grace_lightning"]
        assert config["model"] == {
            **{"_target_": "grace_lightning.models.GAT", "hidden": [8, 8], "dense": [4], "heads": 2, "dropout": 0.2}
        }
        assert (config["trainer"]["max_epochs"], config["features"]["patch"]) == (2, 0.6)
        assert config["config_file"] == "old config.json"
        assert {name for name, step in config["augment"].items() if step} == {"random_xy_translation", "views"}
        assert (made / "animation.gif").is_file()
        assert (made / "manifold.png").is_file()
        assert (made / "metrics.json").is_file()

    def test_a_sweep_runs_over_it(self, run, old):
        off = [*UNDRAWN, "callbacks.animation=null", "callbacks.manifold=null"]
        status, _, _ = run("train", "-m", *SHORT[1:], old, *off, "trainer.max_epochs=1", "model=gat,gcn")
        assert status == 0
        found = sorted(Path("old runs").glob("*/*/model/last.ckpt"))
        config = [torch.load(path, weights_only=True)["grace_lightning"] for path in found]
        assert [c["model"]["_target_"][-3:] for c in config] == ["GAT", "GCN"]
        assert [c["model"]["hidden"] for c in config] == [[8, 8], [8, 8]]

    def test_cfg_job_shows_what_it_comes_to_without_loading_torch(self, old, tmp_path):
        code = "import sys; from grace_lightning.cli import train\ntry: train()\nfinally: print('torch' in sys.modules)"
        command = [sys.executable, "-c", code, "--cfg", "job", "seed=5", old]
        done = subprocess.run(command, cwd=Path.cwd(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "hidden:\n  - 8\n  - 8\n" in done.stdout
        assert "seed: 5" in done.stdout
        assert done.stdout.splitlines()[-1] == "False"

    @pytest.mark.parametrize(
        ("content", "parts"),
        [
            (None, ["config_file: old.json, no such file"]),
            ("{", ["old.json cannot be read"]),
            ('{"epoch": "3"}', ["old.json: epoch: no such key in GRACE; did you mean epochs"]),
            ('{"num_edge_classes": "3"}', ["old.json: num_edge_classes: '3', expected 2"]),
            ('{"hidden_graph_channels": "[6]", "classifier_type": "GAT"}', ["model.heads: 4, expected a divisor"]),
        ],
    )
    def test_mistakes_in_it_are_named(self, content, parts, run):
        if content is not None:
            Path("old.json").write_text(content)
        expect_refusal(run("train", "config_file=old.json"), *parts)

    def test_a_pickled_network_is_refused_with_what_to_do(self, run):
        pytest.importorskip("timm")
        torch.save(torch.nn.Linear(2, 2), "resnet18.pickle")
        Path("old.json").write_text('{"extractor_fn": "resnet18.pickle"}')
        simulation = ["data.simulation.num_images={train: 1, valid: 1, infer: 1}"]
        result = run("train", "config_file=old.json", *simulation, "data.simulation.simulator.size=[256,256]")
        expect_refusal(result, r"resnet18.pickle holds Python objects.*torch.save\(model.state_dict\(\), FILE\)")


class TestLoggers:
    def test_csv(self, run, simulated):
        status, out, err = run("train", *folders(simulated), *SMALL, UNDRAWN[-1], "logger=csv", "hydra.run.dir=run")
        assert (status, err) == (0, "")
        assert "tensorboard" not in out
        table = pd.read_csv("run/csv/metrics.csv")
        assert len(table["valid/edge_average_precision"].dropna()) == 2
        assert table["optimizer/learning_rate"].notna().any()
        assert not list(Path("run").glob("events.*"))
        assert sorted(p.name for p in Path().iterdir()) == ["run"]

    def test_two_at_once(self, run, simulated):
        assert (
            run("train", *folders(simulated), *SMALL, UNDRAWN[-1], "logger=[tensorboard,csv]", "hydra.run.dir=run")[0]
            == 0
        )
        assert Path("run/csv/metrics.csv").is_file()
        assert list(Path("run").glob("events.*"))

    def test_none(self, run, simulated):
        status, out, err = run("train", *folders(simulated), *SMALL, UNDRAWN[-1], "logger=none", "hydra.run.dir=run")
        assert (status, err) == (0, "")
        assert "tensorboard" not in out
        assert not list(Path("run").glob("events.*"))
        assert Path("run/model/best.ckpt").is_file()

    @pytest.mark.parametrize(("name", "cls"), [("wandb", "WandbLogger"), ("mlflow", "MLFlowLogger")])
    def test_a_missing_package_is_named(self, name, cls, run, monkeypatch):
        # as where it is not installed, whether it is here or not
        module = sys.modules[f"pytorch_lightning.loggers.{name}"]
        flag = next(key for key in vars(module) if key.endswith("_AVAILABLE") and "SKINNY" not in key)
        for key in [k for k in vars(module) if k.endswith("_AVAILABLE")]:
            missing = type(getattr(module, flag))(f"{name}_that_is_not_there>=1")
            monkeypatch.setattr(module, key, missing)
        result = run("train", f"logger={name}")
        expect_refusal(result, rf"logger.{name}: {cls} needs a package that is not installed: .*pip install .*{name}")
        assert not list(Path().glob("simulated"))


@pytest.mark.parametrize(
    ("command", "override", "parts"),
    [
        ("train", "callbacks.manifold.method=umap", ["callbacks.manifold.method: 'umap', expected"]),
        ("train", "model.widht=8", ["model.widht", "did you mean model.width"]),
        ("train", "data.train_imge_dir=x", ["did you mean data.train_image_dir"]),
        ("train", "model=gnn", ["gnn", "gat.*gcn"]),
        ("train", "model.dropout=high", ["model.dropout: 'high', expected float"]),
        ("train", "trainer.max_epochs=soon", ["trainer.max_epochs: 'soon', expected"]),
        ("train", "optimizer.lr=fast", ["optimizer.lr: 'fast', expected"]),
        ("train", "seed=a", ["seed: 'a', expected int"]),
        ("train", "+model.depth=3", ["model.depth: MPNN takes no such key"]),
        ("train", "augment.random_edge_crop.max_fraction=2", ["max_fraction: 2, expected a fraction"]),
        ("train", "log_dir=/dev/null/runs", ["/dev/null/runs", "log_dir"]),
        ("train", "ckpt_path=nowhere.ckpt", ["nowhere.ckpt: no such checkpoint"]),
        ("train", "data=folders", ["data.train_image_dir is not set"]),
        ("train", "evaluate.brush=thick", ["evaluate.brush: 'thick', expected float"]),
        ("train", "evaluate.pictures=perhaps", ["evaluate.pictures: 'perhaps', expected bool"]),
        ("train", "evaluate.brush=0", ["evaluate.brush: 0, expected 1 pixel or more"]),
        ("train", "link.end_cost=high", ["link.end_cost: 'high', expected float"]),
        ("evaluate", "trainer.devices=1", ["checkpoint is not set"]),
        ("evaluate", "checkpoint=nowhere.ckpt", ["nowhere.ckpt: no such checkpoint"]),
        ("simulate", "num_images=many", ["num_images: 'many', expected int"]),
        ("simulate", "simulator.snr=-1", ["snr"]),
    ],
)
def test_wrong_words_on_the_command_line(command, override, parts, run):
    expect_refusal(run(command, override), *parts)


def spoil_nodes(data, **columns):
    path = data / "micrograph_0001.grace" / "nodes.parquet"
    frame = pd.read_parquet(path)
    for name, value in columns.items():
        frame.loc[3, name] = value
    frame.to_parquet(path)


def spoil_edges(data, **columns):
    path = data / "micrograph_0001.grace" / "edges.parquet"
    frame = pd.read_parquet(path)
    for name, value in columns.items():
        frame.loc[3, name] = value
    frame.to_parquet(path)


def truncate(data):
    path = data / "micrograph_0001.mrc"
    path.write_bytes(path.read_bytes()[:5000])


def text_as_png(data):
    (data / "micrograph_0001.mrc").unlink()
    (data / "micrograph_0001.png").write_text("not a picture")


def without_x(data):
    import h5py

    with h5py.File(data / "micrograph_0001.h5", "a") as file:
        for name in ("axis0", "block0_items"):
            file[f"df/{name}"][...] = np.array([b"q", *file[f"df/{name}"][1:]])


def other_metadata(data):
    (data / "micrograph_0001.grace" / "metadata.json").write_text('{"image_filename": "micrograph_0002"}')


def other_annotation(data):
    np.savez(data / "micrograph_0001.grace" / "annotation.npz", annotation=np.zeros((64, 128), np.uint8))


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (shutil.rmtree, ["data.train_image_dir: ", "data: no such folder"]),
        (lambda data: [p.unlink() for p in data.glob("*.mrc")], ["data: no images"]),
        (truncate, ["micrograph_0001.mrc"]),
        (text_as_png, ["micrograph_0001.png"]),
        (without_x, ["micrograph_0001.h5", "x"]),
        (lambda data: spoil_nodes(data, x=float("nan")), ["micrograph_0001.grace/nodes.parquet", "x is empty in 1 of"]),
        (lambda data: spoil_nodes(data, y=float("inf")), ["micrograph_0001.grace/nodes.parquet", "3", "finite"]),
        (lambda data: spoil_nodes(data, x=500.0), ["nodes.parquet", "detection 3", "outside the image of 128 x 128"]),
        (lambda data: spoil_nodes(data, node_ground_truth=7), ["nodes.parquet", "7", "0.*1.*2"]),
        (lambda data: spoil_edges(data, edge_ground_truth=-1), ["edges.parquet", "-1"]),
        (lambda data: spoil_edges(data, target=1203), ["edges.parquet", "1203", "grace-annotate"]),
        (lambda data: (data / "micrograph_0001.grace" / "edges.parquet").unlink(), ["edges.parquet"]),
        (
            lambda data: (data / "micrograph_0001.instances.json").write_text('{"1": [0, 9999]}'),
            ["micrograph_0001.instances.json", "filament 1 has node 9999", "0 to"],
        ),
        (other_metadata, ["metadata.json", "micrograph_0002", "expected micrograph_0001"]),
        (other_annotation, ["annotation.npz", "128 x 64", "128 x 128"]),
    ],
)
def test_bad_files_are_named_before_training(spoil, parts, data, run):
    spoil(data)
    expect_refusal(run("train", *folders(data), *SMALL), *parts)


def test_a_bad_inference_image_is_found_before_training(data, simulated, run):
    truncate(data)
    result = run("train", *folders(simulated), *SMALL, f"data.infer_image_dir={data}")
    expect_refusal(result, "micrograph_0001.mrc")
    assert not list(Path().glob("runs/*/model/*.ckpt"))


def test_skipped_images_are_counted_and_named(data, run):
    shutil.rmtree(data / "micrograph_0002.grace")
    with warnings.catch_warnings():
        warnings.simplefilter("default", InputWarning)
        status, out, err = run("train", *folders(data), *SMALL, *UNDRAWN, "trainer.max_epochs=1")
    assert status == 0
    assert err == f"warning: {data}: 1 of 4 images have no .grace folder and were skipped: micrograph_0002\n"
    assert "train  3 images" in out


def test_warnings_are_one_line_without_source(capsys):
    cli._show_warning(InputWarning("two files differ"), InputWarning, "x.py", 3)
    assert capsys.readouterr().err == "warning: two files differ\n"


def test_a_bug_shows_its_traceback(simulated, run, monkeypatch):
    monkeypatch.setattr("grace_lightning.tasks.train.build_module", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("train", *folders(simulated), *SMALL)


def test_help_and_typos_answer_without_loading_torch(tmp_path):
    code = "import sys; from grace_lightning.cli import train\ntry: train()\nfinally: print('torch' in sys.modules)"
    for argument, status, text in (("--help", 0, "grace-train data=folders"), ("model.widht=3", 2, "model.width")):
        command = [sys.executable, "-c", code, argument]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == status
        assert text in done.stdout + done.stderr
        assert done.stdout.splitlines()[-1] == "False"
    assert not list(tmp_path.iterdir())


@pytest.mark.shared
@pytest.mark.parametrize("model", ["gcn", "gat"])
def test_real_photographs(model, shared, run):
    roots = shared / "data" / "roots"
    parts = [f"data.{part}_image_dir={roots / part}" for part in ("train", "valid", "infer")]
    options = ["data=folders", f"model={model}", "trainer.max_epochs=2", "callbacks.progress=null"]
    options += UNDRAWN if model == "gcn" else []
    status, _, err = run("train", *options, *parts)
    assert (status, err) == (0, "")
    metrics = json.loads(next(Path("runs").glob("*/metrics.json")).read_text())
    assert set(metrics["images"]) == {"455", "457R"}
    assert metrics["nodes"]["average_precision"] > 0.6  # chance is .41


@pytest.mark.slow
def test_wheel_brings_commands_and_configuration(tmp_path):
    root = Path(__file__).parents[1]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", tmp_path / "dist", root], check=True)
    wheel = next((tmp_path / "dist").glob("*.whl"))
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    code = (
        "import grace_lightning, sys; from grace_lightning.cli import train; print(grace_lightning.__file__); train()"
    )
    command = [sys.executable, "-c", code, "--cfg", "job"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(str(tmp_path / "site"))
    assert "_target_: grace_lightning.models.MPNN" in done.stdout
    assert (tmp_path / "site" / "bin" / "grace-train").is_file()


def test_png_micrographs_train_too(data, run):
    import mrcfile

    for path in data.glob("*.mrc"):
        pixels = mrcfile.read(path)
        scaled = ((pixels - pixels.min()) / np.ptp(pixels) * 65535).astype(np.uint16)
        path.with_suffix(".png").write_bytes(imagecodecs.png_encode(scaled))
        path.unlink()
    assert run("train", *folders(data), *SMALL, *UNDRAWN, "trainer.max_epochs=1")[0] == 0
