"""``grace-predict`` as typed, and the same from Python."""

import json
import pickle
import re
import resource
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import hydra
import imagecodecs
import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile
import torch
from torch_geometric.data import Batch

from grace_lightning import Predictor, cli, figures, io, predict
from grace_lightning.config import config_dir
from grace_lightning.data import GraceDataset
from grace_lightning.errors import InputError, InputWarning
from grace_lightning.link import Filaments
from grace_lightning.module import Prediction, mean_prediction
from grace_lightning.simulate import Simulator, simulate_folder
from grace_lightning.tasks import results
from grace_lightning.tasks.common import checkpoint_paths
from grace_lightning.tasks.predict import _Ahead, _only
from grace_lightning.tasks.predictor import _with_duplicates
from grace_lightning.tasks.train import train

NAMES = ["micrograph_0000", "micrograph_0001", "micrograph_0002"]
FILES = {f"{name}{suffix}" for name in NAMES for suffix in (".box", ".cbox", ".grace", ".png", ".star")}
SCALE = 10.0


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Three micrographs of 192 x 192 pixels, 4 Angstrom each, with their detections only."""
    folder = tmp_path_factory.mktemp("simulated")
    simulator = Simulator(
        size=[192, 192],
        num_filaments=2,
        shapes=["line", "curve"],
        width=SCALE,
        period=20,
        spacing=8,
        snr=0.5,
        false_detections=12,
        num_blobs=0,
    )
    simulate_folder(simulator, folder, num_images=3, seed=1)
    return folder


@pytest.fixture(scope="module")
def checkpoint(simulated, tmp_path_factory):
    """Of a small network, trained long enough to find filaments."""
    folder = tmp_path_factory.mktemp("run")
    keys = [
        *("data=folders", *(f"data.{part}_image_dir={simulated}" for part in ("train", "valid"))),
        *(f"features.scale={SCALE}", "features.channels=[8]", "features.width=8", "model.width=8", "model.rounds=1"),
        *("callbacks.progress=null", "callbacks.learning_rate=null", "trainer.accelerator=cpu", "logger=none"),
        *("trainer.max_epochs=25", "optimizer.lr=0.01", "augment=none", f"run_dir={folder}"),
    ]
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        train(hydra.compose("train", keys))
    return folder / "model" / "best.ckpt"


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return Predictor.from_checkpoint(checkpoint)


@pytest.fixture
def data(simulated, tmp_path):
    """Images and detections without annotation, to spoil."""
    folder = tmp_path / "data"
    folder.mkdir()
    for path in [*simulated.glob("*.mrc"), *simulated.glob("*.h5")]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def run(checkpoint, data, tmp_path, monkeypatch, capfd):
    """Run ``grace-predict`` into ``out`` of an empty folder: exit status, stdout, stderr."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def command(*keys):
        given = [f"checkpoint={checkpoint}", f"image_dir={data}", "out_dir=out", "trainer.accelerator=cpu"]
        set_here = {key.partition("=")[0] for key in keys}
        given = [key for key in given if key.partition("=")[0] not in set_here]
        monkeypatch.setattr(sys, "argv", ["grace-predict", *given, *map(str, keys)])
        capfd.readouterr()
        status = 0
        with warnings.catch_warnings():
            warnings.simplefilter("always", InputWarning)
            monkeypatch.setattr(warnings, "showwarning", cli._show_warning)
            try:
                cli.predict()
            except SystemExit as stop:
                status = stop.code
        return status, *capfd.readouterr()

    return command


def made(folder=Path("out")):
    """Names in a folder, hidden ones too."""
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def expect_refusal(result, *parts):
    status, _, err = result
    lines = [line for line in err.splitlines() if line.strip() and not line.startswith("warning:")]
    assert status == 2
    assert len(lines) == 1, err
    for part in parts:
        assert re.search(part, lines[0]), lines[0]


def times(folder=Path("out")):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("micrograph*")}


def set_detections(data, name, pos):
    io.write_detections(data / f"{name}.h5", pd.DataFrame(np.reshape(pos, (-1, 2)), columns=["x", "y"]))


def filaments(name, folder=Path("out")):
    return pd.read_parquet(folder / f"{name}.grace" / "filaments.parquet")


# ---- what is written ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def out(checkpoint, simulated, tmp_path_factory):
    """What the command writes, as typed."""
    folder = tmp_path_factory.mktemp("out")
    keys = [f"checkpoint={checkpoint}", f"image_dir={simulated}", f"out_dir={folder}", "trainer.accelerator=cpu"]
    code = "from grace_lightning.cli import predict; predict()"
    done = subprocess.run([sys.executable, "-c", code, *keys], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"3 images, \d+ filaments in \.(; \d+ closed ones have no ends for .box)?\n", done.stdout)
    assert done.stderr == ""
    return folder


class TestFiles:
    def test_all_files_and_no_others(self, out):
        assert made(out) == FILES | {"filaments.csv"}

    def test_the_graph_has_the_detections_in_their_order(self, out, simulated):
        for name in NAMES:
            graph, annotation, metadata = io.read_grace(out / f"{name}.grace", keep_node_unknown_labels=True)
            given = io.read_detections(simulated / f"{name}.h5")
            assert graph.pos.tolist() == given[["x", "y"]].to_numpy(np.float32).tolist()
            assert set(graph.node_label.tolist()) == {2}
            assert annotation is None
            assert metadata["image_filename"] == name
            assert metadata["pixel_size"] == pytest.approx(4)

    def test_predictions_are_those_of_the_three_labels(self, out, predictor, simulated):
        image, pos = io.read_image(simulated / f"{NAMES[0]}.mrc"), io.read_detections(simulated / f"{NAMES[0]}.h5")
        findings = predictor(image, pos[["x", "y"]])
        for table, column, expected in (
            ("nodes", "node_prediction", findings.node_probability),
            ("edges", "edge_prediction", findings.edge_probability),
        ):
            written = np.stack(pd.read_parquet(out / f"{NAMES[0]}.grace" / f"{table}.parquet")[column])
            assert written[:, 1] == pytest.approx(expected.numpy(), abs=1e-5)
            assert written.sum(axis=1) == pytest.approx(1)

    def test_filaments_are_rows_of_the_detection_file_in_order(self, out, simulated):
        table = filaments(NAMES[0], out)
        assert list(table) == ["filament", "order", "node", "x", "y"]
        given = io.read_detections(simulated / f"{NAMES[0]}.h5")
        assert table[["x", "y"]].to_numpy() == pytest.approx(given.loc[table["node"], ["x", "y"]].to_numpy(), abs=1e-3)
        for _, rows in table.groupby("filament"):
            assert rows["order"].tolist() == list(range(len(rows)))

    def test_segments_are_one_filament_width_apart(self, out):
        star = starfile.read(out / f"{NAMES[0]}.star")
        assert set(star["rlnMicrographName"]) == {f"{NAMES[0]}.mrc"}
        tubes = star.groupby("rlnHelicalTubeID")
        assert len(tubes) == filaments(NAMES[0], out)["filament"].nunique() > 0
        for _, tube in tubes:
            steps = tube["rlnHelicalTrackLengthAngst"].diff().dropna()
            assert steps.to_numpy() == pytest.approx(SCALE * 4)
        boxes = io.read_detections(out / f"{NAMES[0]}.cbox")
        assert boxes["x"].to_numpy() == pytest.approx(star["rlnCoordinateX"].to_numpy(), abs=1e-3)
        assert (boxes["filament"] + 1).tolist() == star["rlnHelicalTubeID"].tolist()
        assert set(boxes["Width"]) == {2 * SCALE}

    def test_ends_are_those_of_the_paths(self, out):
        ends = pd.read_csv(out / f"{NAMES[0]}.box", sep=" ", header=None)
        summary = pd.read_csv(out / "filaments.csv")
        own = summary[(summary["image"] == NAMES[0]) & ~summary["closed"]]
        assert (ends[[0, 1]].to_numpy()[::2] + 1) == pytest.approx(own[["start_x", "start_y"]].to_numpy(), abs=1e-2)
        assert (ends[[0, 1]].to_numpy()[1::2] + 1) == pytest.approx(own[["end_x", "end_y"]].to_numpy(), abs=1e-2)

    def test_one_table_for_all_images(self, out):
        summary = pd.read_csv(out / "filaments.csv")
        assert summary.groupby("image").size().to_dict() == {
            name: filaments(name, out)["filament"].nunique() for name in NAMES
        }
        assert summary["mean_probability"].between(0.5, 1).all()
        assert summary["length_angstrom"].to_numpy() == pytest.approx(4 * summary["length"].to_numpy(), rel=1e-5)

    def test_pictures_have_1200_pixels(self, out):
        assert imagecodecs.png_decode((out / f"{NAMES[1]}.png").read_bytes()).shape[:2] == (1200, 1200)

    def test_what_was_found_is_the_truth(self, out, simulated):
        """Most of the nodes of filaments are true detections: the network was trained on these very images."""
        for name in NAMES:
            truth = io.read_grace(simulated / f"{name}.grace").graph.node_label
            assert truth[filaments(name, out)["node"].tolist()].double().mean() > 0.8


# ---- again ----------------------------------------------------------------------------------------------------------


def test_what_is_done_is_skipped_unless_told_otherwise(run):
    assert run()[0] == 0
    first = times()
    status, out, err = run()
    assert (status, err) == (0, "")
    assert "(3 done before, overwrite=true does them anew)" in out
    assert times() == first
    assert run("overwrite=true")[0] == 0
    assert all(times()[name] != first[name] for name in first)


def test_an_interrupted_run_goes_on(run, data):
    assert run()[0] == 0
    whole = Path("out/filaments.csv").read_text()
    shutil.rmtree(f"out/{NAMES[1]}.grace")  # which comes last, so it was under way
    Path(f"out/{NAMES[2]}.png").unlink()
    Path("out/filaments.csv").unlink()
    Path(f"out/.{NAMES[1]}.unfinished").mkdir()
    before = times()
    status, out, _ = run()
    assert status == 0
    assert "(1 done before" in out
    assert made() == FILES | {"filaments.csv"}
    assert Path("out/filaments.csv").read_text() == whole
    assert times()[f"{NAMES[0]}.star"] == before[f"{NAMES[0]}.star"]


def test_other_settings_are_named_not_mixed(run):
    assert run()[0] == 0
    status, _, err = run("export.spacing=20")
    assert status == 0
    assert err.count("\n") == 1
    assert re.match(r"warning: out: 3 images were done with another checkpoint, other settings.*overwrite=true", err)
    assert run("export.spacing=20", "overwrite=true")[::2] == (0, "")
    star = starfile.read(f"out/{NAMES[0]}.star")
    assert star["rlnHelicalTrackLengthAngst"].head(3).tolist() == [0, 20, 40]


def test_files_that_are_switched_off_are_not_written(run):
    off = [f"export.{name}=false" for name in ("star", "box", "cbox", "png")]
    assert run(*off)[0] == 0
    assert made() == {f"{name}.grace" for name in NAMES} | {"filaments.csv"}
    assert run()[0] == 0  # now they are wanted, so the images are not done
    assert made() == FILES | {"filaments.csv"}
    assert run(*off, "overwrite=true")[0] == 0
    assert made() == {f"{name}.grace" for name in NAMES} | {"filaments.csv"}


def test_results_never_replace_images_or_annotations(run, data):
    expect_refusal(run(f"out_dir={data}"), "out_dir: .* is image_dir too")
    own = Path("out") / f"{NAMES[1]}.grace"
    own.mkdir(parents=True)
    (own / "metadata.json").write_text('{"image_filename": "x"}')
    status, out, err = run("overwrite=true")
    assert status == 1
    assert "1 of 3 images failed" in out
    assert "grace-predict did not write it" in err
    assert made(own) == {"metadata.json"}
    assert (Path("out") / f"{NAMES[2]}.grace").is_dir()


# ---- images that fail -----------------------------------------------------------------------------------------------


def test_a_damaged_image_does_not_stop_the_others(run, data):
    path = data / f"{NAMES[1]}.mrc"
    path.write_bytes(path.read_bytes()[:5000])
    status, out, err = run()
    assert status == 1
    assert out.startswith("2 images, ")
    assert out.endswith("; 1 of 3 images failed\n")
    assert len(err.splitlines()) == 1
    assert err.startswith(f"grace-predict: {path}: the header says")
    assert made() == {name for name in FILES if not name.startswith(NAMES[1])} | {"filaments.csv"}
    assert NAMES[1] not in Path("out/filaments.csv").read_text()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: set_detections(data, NAMES[1], [[500, 3], [4, 4]]), "h5: detection 0 .* lies outside"),
        (lambda data: (data / f"{NAMES[1]}.h5").write_bytes(b"\x89HDF\r\n\x1a\n"), "h5: cannot be read"),
        (lambda data: mrcfile.write(data / f"{NAMES[1]}.mrc", np.zeros((3, 9, 9), "f4"), overwrite=True), "set frame "),
    ],
)
def test_failures_name_the_file_or_the_key(spoil, message, run, data):
    spoil(data)
    status, _, err = run()
    assert status == 1
    assert len(err.splitlines()) == 1
    assert re.search(message, err)
    assert f"{NAMES[2]}.grace" in made()


def test_a_bug_in_one_image_is_shown_at_the_end(run, monkeypatch):
    find = Predictor.find

    def broken(self, prepared):
        return 1 / 0 if prepared.data[0].name == [NAMES[0]] else find(self, prepared)

    monkeypatch.setattr(Predictor, "find", broken)
    status, _, err = run()
    assert status == 1
    assert "ZeroDivisionError" in err
    assert f"{NAMES[1]}.grace" in made()


def test_a_full_disk_leaves_no_half_written_file(run):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # the pictures are larger
    try:
        status, _, err = run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 1
    assert err.count("cannot be written (File too large)") == 3
    assert made() == {"filaments.csv"}
    assert Path("out/filaments.csv").read_text().count("\n") == 1


@pytest.mark.parametrize("function", ["write_grace", "write_star", "write_cbox", "write_box_ends"])
def test_whatever_cannot_be_written(function, run, monkeypatch):
    def full(path, *args, **kwargs):
        Path(path).write_text("half")
        raise OSError(28, "No space left on device")

    assert run()[0] == 0
    before = times()
    monkeypatch.setattr(results.io, function, full)
    status, _, err = run("overwrite=true")
    assert status == 1
    assert err.count("No space left on device") == 3
    assert times() == before  # what was there is as it was
    assert made() == FILES | {"filaments.csv"}


def test_a_table_that_cannot_be_written_is_a_failure(run, monkeypatch):
    Path("out/filaments.csv").mkdir(parents=True)
    status, _, err = run()
    assert status == 1
    assert "filaments.csv: cannot be written" in err
    assert not any(name.endswith(".unfinished") for name in made())


# ---- few detections, few filaments ----------------------------------------------------------------------------------


def test_images_without_detections_or_filaments_are_results(run, data):
    set_detections(data, NAMES[0], [])
    set_detections(data, NAMES[1], [[30.0, 40.0]])
    set_detections(data, NAMES[2], [[30.0, 40.0], [150.0, 140.0], [30.0, 150.0]])
    status, out, err = run()
    assert (status, err) == (0, "")
    assert "3 images, 0 filaments" in out
    assert made() == FILES | {"filaments.csv"}
    for name, count in zip(NAMES, (0, 1, 3), strict=True):
        assert io.read_grace(Path("out") / f"{name}.grace").graph.num_nodes == count
        assert list(filaments(name)) == ["filament", "order", "node", "x", "y"]
        assert filaments(name).empty
        assert io.read_detections(f"out/{name}.cbox").empty
    assert len(pd.read_csv("out/filaments.csv")) == 0


def test_duplicates_have_the_predictions_of_the_first(run, data, predictor):
    frame = io.read_detections(data / f"{NAMES[0]}.h5")[["x", "y"]]
    findings = predictor(io.read_image(data / f"{NAMES[0]}.mrc"), frame)
    node = int(findings.filaments.paths[0][1])
    other = next(k for k in range(len(frame)) if k not in findings.filaments.node)
    doubled = pd.concat([frame, frame.iloc[[node, other, node]]], ignore_index=True)
    io.write_detections(data / f"{NAMES[0]}.h5", doubled)
    status, _, err = run()
    assert status == 0
    assert re.match(r"warning: .*micrograph_0000.h5: 3 of \d+ detections lie exactly on another one", err)
    nodes = pd.read_parquet(f"out/{NAMES[0]}.grace/nodes.parquet")
    assert nodes[["x", "y"]].to_numpy().tolist() == doubled.to_numpy(np.float32).tolist()
    prediction = np.stack(nodes["node_prediction"])
    assert (prediction[len(frame) :] == prediction[[node, other, node]]).all()
    sets = filaments(NAMES[0]).groupby("filament")["node"].apply(set).tolist()
    twins = {len(frame), len(frame) + 2}
    assert sets == [set(own) | (twins if node in own else set()) for own in findings.filaments.nodes]
    star = starfile.read(f"out/{NAMES[0]}.star")  # the path does not stop at them
    expected = io.segments(findings.paths, pixel_size=4, spacing=40)
    assert star["rlnCoordinateX"].to_numpy() == pytest.approx(expected["x"].to_numpy(), abs=1e-3)


def test_duplicates_lie_beside_the_path():
    linked = Filaments(np.array([0, 0, 1]), np.array([2, 0, 1]), np.array([False] * 3), np.array([False, True]))
    spread = _with_duplicates(linked, np.array([0, 1, 1, 2, 0, 0]))
    assert spread.filament.tolist() == [0, 0, 0, 0, 1, 1]
    assert spread.node.tolist() == [3, 0, 4, 5, 1, 2]
    assert spread.beside.tolist() == [False, False, True, True, False, True]
    assert [path.tolist() for path in spread.paths] == [[3, 0], [1]]


def test_renumbered_detections_give_the_same_filaments(predictor, simulated):
    image = io.read_image(simulated / f"{NAMES[0]}.mrc")[0].numpy()
    pos = io.read_detections(simulated / f"{NAMES[0]}.h5")[["x", "y"]].to_numpy()
    pos = np.concatenate([pos, pos[3:6]])
    order = np.random.default_rng(0).permutation(len(pos))
    first, second = predictor(image, pos), predictor(image, pos[order])
    assert len(first.filaments) > 0
    for a, b in zip(first.filaments.nodes, second.filaments.nodes, strict=True):
        assert sorted(a) == sorted(order[b])
    for a, b in zip(first.paths, second.paths, strict=True):
        assert a.path.tolist() == b.path.tolist()
    assert second.node_probability.numpy() == pytest.approx(first.node_probability.numpy()[order], abs=1e-5)


# ---- which files belong together ------------------------------------------------------------------------------------


def test_what_has_no_partner_is_named(run, data):
    (data / f"{NAMES[0]}.mrc").unlink()
    (data / f"{NAMES[1]}.h5").unlink()
    status, out, err = run()
    assert status == 0
    assert "1 images" in out
    assert f"no detections for 1 of 2 images, left out: {NAMES[1]}" in err
    assert f"no image for 1 detection files, left out: {NAMES[0]}.h5" in err
    assert {name for name in made() if name.endswith(".grace")} == {f"{NAMES[2]}.grace"}


def test_detections_may_lie_elsewhere(run, data, tmp_path):
    picks = tmp_path / "picks"
    picks.mkdir()
    for name in NAMES:
        table = io.read_detections(data / f"{name}.h5")
        io.write_cbox(picks / f"{name}.cbox", table[["x", "y"]], box_size=20)
        (data / f"{name}.h5").unlink()
    assert run(f"detections_dir={picks}")[0] == 0
    assert made() == FILES | {"filaments.csv"}
    expect_refusal(run(), "no detections .* for any of the 3 images", r"micrograph_0000\.h5")


def test_pixel_size_is_the_headers_or_the_keys(run, data):
    assert run("pixel_size=2", "export.spacing=30")[0] == 0
    star = starfile.read(f"out/{NAMES[0]}.star")
    first = star[star["rlnHelicalTubeID"] == 1]
    step = np.hypot(*first[["rlnCoordinateX", "rlnCoordinateY"]].diff().dropna().to_numpy().T)
    assert step.max() <= 15.01
    assert pd.read_csv("out/filaments.csv")["length_angstrom"].gt(0).all()


def test_without_a_pixel_size_no_angstrom_is_invented(run, data):
    for name in NAMES:
        pixels = mrcfile.read(data / f"{name}.mrc")
        scaled = ((pixels - pixels.min()) / np.ptp(pixels) * 65535).astype(np.uint16)
        (data / f"{name}.png").write_bytes(imagecodecs.png_encode(scaled))
        (data / f"{name}.mrc").unlink()
    status, _, err = run()
    assert status == 0
    assert err.count("\n") == 1
    assert re.match(r"warning: pixel_size is not set, and 3 images do not say it.*set pixel_size=", err)
    star = starfile.read(f"out/{NAMES[0]}.star")
    assert "rlnHelicalTrackLengthAngst" not in star
    steps = np.hypot(
        *star[star["rlnHelicalTubeID"] == 1][["rlnCoordinateX", "rlnCoordinateY"]].diff().dropna().to_numpy().T
    )
    assert steps.max() <= SCALE + 0.01
    assert pd.read_csv("out/filaments.csv")["length_angstrom"].isna().all()
    assert run("pixel_size=4", "overwrite=true")[::2] == (0, "")
    assert "rlnHelicalTrackLengthAngst" in starfile.read(f"out/{NAMES[0]}.star")


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("checkpoint=null", ["checkpoint is not set"]),
        ("image_dir=null", ["image_dir is not set"]),
        ("image_dir=nowhere", ["image_dir: nowhere: no such folder"]),
        ("detections_dir=nowhere", ["detections_dir: nowhere: no such folder"]),
        ("overwrite=perhaps", ["overwrite: 'perhaps', expected bool"]),
        ("pixel_size=0", ["pixel_size: 0, expected Angstrom per pixel"]),
        ("export.spacing=-1", ["export.spacing: -1, expected a length above 0"]),
        ("export.png=maybe", ["export.png: 'maybe', expected bool"]),
        ("export.svg=true", ["export.svg", "did you mean export"]),
        ("frame=first", ["frame: 'first', expected"]),
        ("out_dir=/dev/null/out", ["out_dir: /dev/null/out cannot be made"]),
        ("features.scale=-3", ["features.scale: -3"]),
    ],
)
def test_wrong_words_on_the_command_line(key, parts, run):
    expect_refusal(run(key), *parts)


# ---- checkpoints ----------------------------------------------------------------------------------------------------


class Payload:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def changed(checkpoint, path, change):
    content = torch.load(checkpoint, weights_only=True)
    change(content)
    torch.save(content, path)


def set_config(*keys, value):
    def change(content):
        node = content["grace_lightning"]
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda good, bad: None, ["no such checkpoint"]),
        (lambda good, bad: bad.write_bytes(good.read_bytes()[:-3000]), ["cannot be read as a checkpoint"]),
        (lambda good, bad: bad.write_text("weights"), ["cannot be read as a checkpoint"]),
        (lambda good, bad: torch.save({"state_dict": {}}, bad), ["not a checkpoint of grace-train"]),
        (lambda good, bad: torch.save(torch.nn.Linear(2, 2).state_dict(), bad), ["not a checkpoint of grace-train"]),
        (lambda good, bad: bad.write_bytes(pickle.dumps(Payload())), ["cannot be read as a checkpoint"]),
        (lambda good, bad: torch.save({"state_dict": Payload()}, bad), ["cannot be read as a checkpoint"]),
        *(
            (lambda good, bad, change=change: changed(good, bad, change), parts)
            for change, parts in [
                (
                    set_config("link", value={"_target_": "os.system", "command": "touch ran"}),
                    ["link names 'os.system', expected classes of grace_lightning"],
                ),
                (
                    set_config("link", value={"_target_": "grace_lightning.cli.os.system", "command": "touch ran"}),
                    ["link names 'grace_lightning.cli.os.system', expected classes of grace_lightning"],
                ),
                (
                    set_config("model", "width", value=[{"_target_": "subprocess.run", "args": "touch ran"}]),
                    ["model names 'subprocess.run'"],
                ),
                (set_config("model", "width", value="${oc.env:HOME}"), [r"'\$\{oc.env:HOME\}', expected plain"]),
                (set_config("model", "width", value=64), ["its weights do not fit its configuration"]),
                (set_config("model", "_target_", value="grace_lightning.models.Gone"), ["grace_lightning.models.Gone"]),
                (set_config("link", value=None), ["its configuration has no link"]),
                (lambda content: content.update(grace_lightning=[]), ["its configuration has no features"]),
                (lambda content: content.update(state_dict=3), ["its weights do not fit"]),
            ]
        ),
    ],
)
def test_other_checkpoints_are_refused_and_run_nothing(make, parts, checkpoint, run, tmp_path):
    make(checkpoint, tmp_path / "bad.ckpt")
    expect_refusal(run(f"checkpoint={tmp_path}/bad.ckpt"), "bad.ckpt", *parts)
    assert not Path("ran").exists()
    assert not Path("out").exists()


# ---- from Python ----------------------------------------------------------------------------------------------------


def test_five_lines(checkpoint, predictor, simulated):
    image = mrcfile.read(simulated / f"{NAMES[0]}.mrc")
    with h5py.File(simulated / f"{NAMES[0]}.h5") as file:
        pos = file["df/block0_values"][:]
    found = predict(checkpoint, image, pos)
    assert len(found) > 0
    for filament in found:
        assert filament.path.tolist() == pos.astype(np.float32)[filament.node].tolist()
        assert filament.score.shape == filament.node.shape
    again = predict(predictor, torch.from_numpy(image), torch.from_numpy(pos))
    assert [f.node.tolist() for f in again] == [f.node.tolist() for f in found]


def test_scale_may_differ_from_the_training(checkpoint):
    predictor = Predictor.from_checkpoint(checkpoint, scale=17)
    assert predictor.scale == predictor.linker.scale == 17
    assert predictor.members[0].features.patch_size == pytest.approx(2.4 * 17)


def test_nothing_in_nothing_out(predictor):
    assert predict(predictor, np.zeros((50, 60)), []) == []
    assert predict(predictor, np.zeros((50, 60), np.uint8), [[3, 4]]) == []


@pytest.mark.parametrize(
    ("image", "pos", "message"),
    [
        (np.zeros((5, 5, 5)), [], r"image: shape \(5, 5, 5\), expected \(H, W\)"),
        (np.zeros((5, 5), complex), [], "image: complex128, expected"),
        (np.full((5, 5), np.nan), [], "image: 25 pixels are NaN or infinite"),
        (np.zeros((50, 60)), [[1, 2, 3]], r"pos: shape \(1, 3\), expected \(N, 2\)"),
        (np.zeros((50, 60)), [[55, 3], [3, 55]], "detection 1 at x=3.0, y=55.0 lies outside the image of 60 x 50"),
        (np.zeros((50, 60)), [[np.nan, 3]], "expected finite pixels"),
    ],
)
def test_wrong_arrays_are_named(image, pos, message, predictor):
    with pytest.raises(InputError, match=message):
        predict(predictor, image, pos)


def test_importing_the_package_is_quick():
    code = "import sys, grace_lightning; print('torch' in sys.modules, grace_lightning.predict.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "predict"]
    with pytest.raises(ImportError):
        from grace_lightning import foretell  # noqa: F401


def test_filaments_are_those_that_evaluation_scores(checkpoint, simulated):
    """The linker is given the same, the learned ends too."""
    predictor = Predictor.from_checkpoint(checkpoint)
    predictor.members[0].learned.fill_(True)
    source = io.Source(NAMES[0], simulated / f"{NAMES[0]}.mrc", None, simulated / f"{NAMES[0]}.h5")
    dataset = GraceDataset([source], io.read_sample, predictor.members[0].features)
    with torch.no_grad():
        (scored,) = predictor.members[0].predict_step(Batch.from_data_list([dataset[0]]), 0)
    graph = dataset.sample(0).graph
    expected = scored.filaments(predictor.linker, graph)
    found = predictor(io.read_image(source.image), io.read_detections(source.detections)[["x", "y"]]).filaments
    assert scored.end_probability is not None
    assert scored.link_probability is not None
    assert scored.third_probability is not None
    assert [nodes.tolist() for nodes in found.nodes] == [nodes.tolist() for nodes in expected.nodes]


# ---- parts ----------------------------------------------------------------------------------------------------------


def test_one_image_is_read_ahead_and_no_more():
    read = []

    class Numbers(torch.utils.data.Dataset):
        def __len__(self):
            return 5

        def __getitem__(self, index):
            read.append(index)
            return index

    seen = []
    for number in _Ahead(Numbers(), batch_size=1, collate_fn=_only):
        seen.append(number)
        assert len(read) <= len(seen) + 1
    assert seen == list(range(5))


def test_filaments_near_each_other_differ_in_colour():
    lines = [np.array([[10.0 * k, 0.0], [10.0 * k, 100.0]]) for k in range(30)]
    figure = figures.overview(torch.rand(1, 100, 300), (100, 300), lines, [False] * 30)
    assert figure.get_size_inches().tolist() == [12, 4]
    colours = [tuple(c) for c in figure.axes[0].collections[1].get_colors()]
    assert len(set(colours[:12])) == 12
    for k in range(30):
        assert not set(colours[k + 1 : k + 4]) & {colours[k]}


@pytest.mark.parametrize("image", [torch.zeros(1, 40, 30), torch.rand(1, 1, 500), torch.rand(1, 3000, 10)])
def test_any_image_can_be_drawn(image, tmp_path):
    small = figures.thumbnail(image)
    assert max(small.shape) <= 1200
    figures.overview(small, image.shape[1:], [], []).savefig(tmp_path / "x.png")
    assert max(imagecodecs.png_decode((tmp_path / "x.png").read_bytes()).shape) == 1200


def test_settings_are_kept_with_the_results(run, checkpoint):
    run("pixel_size=3")
    record = json.loads(Path(f"out/{NAMES[0]}.grace/metadata.json").read_text())["grace_predict"]
    assert record["pixel_size"] == 3
    assert record["scale"] == SCALE
    assert len(record["checkpoint"]) == 16


@pytest.fixture(scope="module")
def other(checkpoint, tmp_path_factory):
    """The same network with other weights."""
    saved = torch.load(checkpoint, weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for name, value in saved["state_dict"].items():
        if name.startswith("network") and value.is_floating_point():
            value += 0.1 * torch.randn(value.shape, generator=generator)
    path = tmp_path_factory.mktemp("other") / "best.ckpt"
    torch.save(saved, path)
    return path


class TestSeveralCheckpoints:
    """Their log-odds are averaged."""

    @pytest.fixture
    def given(self, simulated):
        pos = io.read_detections(simulated / f"{NAMES[0]}.h5")[["x", "y"]].to_numpy()
        return io.read_image(simulated / f"{NAMES[0]}.mrc"), pos

    def test_probabilities_are_the_mean_of_log_odds(self, checkpoint, other, given):
        first, second, both = (
            Predictor.from_checkpoint(paths)(*given) for paths in (checkpoint, other, [checkpoint, other])
        )
        for key in ("node_probability", "edge_probability"):
            a, b, mean = (getattr(found, key).double() for found in (first, second, both))
            assert (a - b).abs().max() > 0.01
            torch.testing.assert_close(mean, torch.sigmoid((a.logit() + b.logit()) / 2), atol=1e-4, rtol=0)

    def test_one_and_the_same_twice_changes_nothing(self, checkpoint, given):
        once, twice = (predict(paths, *given) for paths in (checkpoint, [checkpoint, str(checkpoint)]))
        assert len(once) > 0
        assert [f.node.tolist() for f in once] == [f.node.tolist() for f in twice]

    def test_what_only_one_has_learned_comes_from_that_one(self):
        def said(end):
            return Prediction("a", torch.tensor([0.5]), torch.zeros(0), end, None, None, None, *[torch.zeros(0)] * 2)

        together = mean_prediction([said(None), said(torch.tensor([0.25]))])
        assert together.end_probability.tolist() == pytest.approx([0.25])
        assert together.link_probability is None
        sure = mean_prediction([said(torch.tensor([1.0])), said(torch.tensor([0.0]))])
        assert sure.end_probability.tolist() == pytest.approx([0.5])

    def test_the_command_takes_a_list(self, run, checkpoint, other):
        status, out, _ = run(f"checkpoint=[{checkpoint},{other}]")
        assert status == 0
        assert f"{len(NAMES)} images" in out
        status, _, err = run(f"checkpoint=[{other},{checkpoint}]")
        assert status == 0
        assert "were done with another checkpoint" in err

    def test_a_folder_stands_for_the_runs_in_it(self, run, checkpoint, other, tmp_path):
        run_folder = checkpoint.parent.parent
        assert checkpoint_paths(run_folder) == [checkpoint]
        for number, path in (("0", checkpoint), ("1", other)):
            (tmp_path / "sweep" / number / "model").mkdir(parents=True)
            shutil.copy(path, tmp_path / "sweep" / number / "model" / "best.ckpt")
        (tmp_path / "sweep" / "2").mkdir()  # a run that failed
        status, out, _ = run(f"checkpoint={tmp_path}/sweep", "export.png=false")
        assert status == 0
        assert "by 2 networks together" in out
        status, _, err = run(f"checkpoint=[{checkpoint},{other}]", "export.png=false")
        assert status == 0
        assert "with another checkpoint" not in err
        (tmp_path / "empty").mkdir()
        expect_refusal(run(f"checkpoint={tmp_path}/empty"), "empty: no checkpoint in it", "model/best.ckpt")

    def test_networks_that_do_not_belong_together_are_refused(self, run, checkpoint, tmp_path):
        saved = torch.load(checkpoint, weights_only=True)
        saved["grace_lightning"]["features"]["scale"] = SCALE + 1
        torch.save(saved, tmp_path / "wider.ckpt")
        both = f"checkpoint=[{checkpoint},{tmp_path}/wider.ckpt]"
        expect_refusal(run(both), "trained with different features.scale", str(SCALE + 1), "give features.scale")
        assert run(both, f"features.scale={SCALE}")[0] == 0
        expect_refusal(run("checkpoint=[]"), "checkpoint is not set")
        with pytest.raises(InputError, match="checkpoint: none, expected one or more"):
            Predictor.from_checkpoint([])
        expect_refusal(run(f"checkpoint=[{checkpoint},gone.ckpt]"), "gone.ckpt: no such checkpoint")
