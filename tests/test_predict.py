"""``grace-predict`` as typed, and the same from Python."""

import itertools
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import hydra
import imagecodecs
import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile
import torch
from conftest import NAMES, SCALE

from grace_lightning import Predictor, figures, io, predict
from grace_lightning.config import config_dir
from grace_lightning.errors import InputError
from grace_lightning.files import HOST
from grace_lightning.graph import Filament, Graph
from grace_lightning.predictor import link_filaments
from grace_lightning.tasks import predict as task
from grace_lightning.tasks import results, together
from grace_lightning.tasks.joined import Joined
from grace_lightning.tasks.results import SUMMARY

JOINED = {"filaments.csv", "index.html", "relion"}
FILES = {f"{name}.{end}" for name in NAMES for end in ("box", "cbox", "grace", "star")} | JOINED


@pytest.fixture
def predicted(run, checkpoint, data):
    """Return a function that runs ``grace-predict`` into ``out``: exit status, stdout, stderr."""

    def command(*keys):
        given = {"checkpoint": checkpoint, "image_dir": data, "out_dir": "out", "trainer.accelerator": "cpu"}
        given |= {"export.png": "false"} | dict(key.split("=", 1) for key in keys)
        return run("predict", *(f"{key}={value}" for key, value in given.items()))

    return command


def made(folder=Path("out")):
    """Names in a folder, hidden ones too."""
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def expect_refusal(result, message):
    status, _, err = result
    assert status == 2
    assert re.fullmatch(f"grace-predict: .*{message}.*\n", err), err


def times(folder=Path("out")):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("micrograph*")}


def set_detections(path, pos):
    io.write_detections(path, pd.DataFrame(np.reshape(pos, (-1, 2)), columns=["x", "y"]))


def filaments(name, folder=Path("out")):
    return pd.read_parquet(folder / f"{name}.grace" / "filaments.parquet")


# ---- what is written ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def out(checkpoint, simulated, tmp_path_factory):
    """Files that the task writes."""
    folder = tmp_path_factory.mktemp("out")
    keys = [f"checkpoint={checkpoint}", f"image_dir={simulated}", f"out_dir={folder}", "trainer.accelerator=cpu"]
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        task.predict(hydra.compose("predict", keys))
    return folder


@pytest.fixture
def given(simulated):
    """An image and its detections."""
    pos = io.read_detections(simulated / f"{NAMES[0]}.h5")[["x", "y"]].to_numpy()
    return io.read_image(simulated / f"{NAMES[0]}.mrc"), pos


@pytest.fixture
def findings(predictor, given):
    """What the files of the first image are made of."""
    found = predictor.find(predictor.prepare(given[0], torch.from_numpy(given[1].astype(np.float32))))
    return results.Micrograph(NAMES[0], f"{NAMES[0]}.mrc", (192, 192), given[0], 4.0), found


class TestFiles:
    def test_all_files_and_no_others(self, out):
        assert made(out) == FILES | {f"{name}.png" for name in NAMES}
        assert imagecodecs.png_decode((out / f"{NAMES[1]}.png").read_bytes()).shape[:2] == (1200, 1200)

    def test_the_graph_has_the_detections_in_their_order(self, out, given):
        graph, annotation, metadata = io.read_grace(out / f"{NAMES[0]}.grace", keep_node_unknown_labels=True)
        assert graph.pos.tolist() == given[1].astype(np.float32).tolist()
        assert set(graph.label("node").tolist()) == {2}
        assert annotation is None
        assert (metadata["image_filename"], metadata["pixel_size"]) == (NAMES[0], pytest.approx(4))

    def test_predictions_are_those_of_the_three_labels(self, out, predictor, given):
        findings = predictor(*given)
        for kind in ("node", "edge"):
            table = pd.read_parquet(out / f"{NAMES[0]}.grace" / f"{kind}s.parquet")
            written = np.stack(table[f"{kind}_prediction"])
            assert written[:, 1] == pytest.approx(getattr(findings, f"{kind}_probability").numpy(), abs=1e-5)
            assert written.sum(axis=1) == pytest.approx(1)

    def test_filaments_are_rows_of_the_detection_file_in_order(self, out, given):
        table = filaments(NAMES[0], out)
        assert list(table) == ["filament", "order", "node", "x", "y"]
        assert table[["x", "y"]].to_numpy() == pytest.approx(given[1][table["node"]], abs=1e-3)
        assert table["order"].tolist() == table.groupby("filament").cumcount().tolist()

    def test_segments_are_one_filament_width_apart(self, out):
        star = starfile.read(out / f"{NAMES[0]}.star")
        assert set(star["rlnMicrographName"]) == {f"{NAMES[0]}.mrc"}
        tubes = star.groupby("rlnHelicalTubeID")
        assert len(tubes) == filaments(NAMES[0], out)["filament"].nunique() > 0
        assert tubes["rlnHelicalTrackLengthAngst"].diff().dropna().to_numpy() == pytest.approx(SCALE * 4)
        boxes = io.read_detections(out / f"{NAMES[0]}.cbox")
        assert boxes["x"].to_numpy() == pytest.approx(star["rlnCoordinateX"].to_numpy(), abs=1e-3)
        assert (boxes["filament"] + 1).tolist() == star["rlnHelicalTubeID"].tolist()
        assert set(boxes["Width"]) == {2 * SCALE}

    def test_ends_are_those_of_the_paths(self, out):
        ends = io.read_detections(out / f"{NAMES[0]}.box")[["x", "y"]].to_numpy().reshape(-1, 4)
        summary = pd.read_csv(out / "filaments.csv").query(f"image == '{NAMES[0]}' and not closed")
        assert ends == pytest.approx(summary[["start_x", "start_y", "end_x", "end_y"]].to_numpy(), abs=0.5)

    def test_one_table_for_all_images(self, out):
        found = pd.read_csv(out / "filaments.csv").groupby("image").size().to_dict()
        assert found == {name: filaments(name, out)["filament"].nunique() for name in NAMES}

    def test_what_was_found_is_the_truth(self, out, simulated):
        """Most of the nodes of filaments are true detections: the network was trained on these very images."""
        for name in NAMES:
            truth = io.read_grace(simulated / f"{name}.grace")[0].label("node")
            assert truth[filaments(name, out)["node"].tolist()].double().mean() > 0.8


@pytest.mark.parametrize(
    ("trained", "keys", "told"),
    [
        (4.0, {}, False),
        (4.7, {}, False),
        (8.0, {}, True),
        (3.0, {}, True),
        (4.0, {"pixel_size": 2}, True),
        (8.0, {"features.scale": 20}, False),
        (None, {}, False),
    ],
)
def test_another_pixel_size_than_in_training_is_told_once(trained, keys, told, predicted, checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    assert content["grace_lightning"]["trained_on"] == {"split": None, "pixel_size": 4.0}
    content["grace_lightning"]["trained_on"] = {"split": None, "pixel_size": trained}
    torch.save(content, "other.ckpt")
    status, _, err = predicted("checkpoint=other.ckpt", *(f"{key}={value}" for key, value in keys.items()))
    assert (status, err.count("\n")) == (0, int(told)), err
    if told:
        size = keys.get("pixel_size", 4)
        said = (
            rf"{NAMES[0]}: {size} Angstrom per pixel, but .* with {trained:g}; .*scale={SCALE * trained / size:.3g}\n"
        )
        assert re.search(said, err)


def test_devices_that_are_not_there_are_refused(predicted):
    expect_refusal(predicted("trainer.accelerator=abc"), "trainer.accelerator=abc.*invalid accelerator")


# ---- again ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def again(out, predicted, simulated):
    """Return a function that runs ``grace-predict`` where all images of ``out`` are done."""
    shutil.copytree(out, "out")
    return lambda *keys: predicted(f"image_dir={simulated}", *keys)


def test_what_is_done_is_skipped_unless_told_otherwise(again):
    first = times()
    status, out, err = again()
    assert (status, err) == (0, "")
    assert "(3 done before, overwrite=true does them anew)" in out
    status, _, err = again("export.spacing=20")
    assert status == 0
    assert re.fullmatch(
        "warning: out: done with another .*, other settings.* skipped: 3 images.*overwrite=true.*\n", err
    )
    assert times() == first
    status, out, err = again("export.spacing=20", "overwrite=true")
    assert (status, err) == (0, "")
    assert re.fullmatch(r"3 images, \d+ filaments in out, pixel size 4 Angstrom by the MRC headers(; .*)?\n", out)
    assert all(changed != first[name] for name, changed in times().items())
    star = starfile.read(f"out/{NAMES[0]}.star")
    assert star["rlnHelicalTrackLengthAngst"].head(3).tolist() == [0, 20, 40]


def test_an_interrupted_run_goes_on(again):
    whole, before, files = Path("out/filaments.csv").read_text(), times(), made()
    shutil.rmtree(f"out/{NAMES[1]}.grace")  # which comes last, so it was under way
    Path(f"out/{NAMES[2]}.star").unlink()
    Path("out/filaments.csv").unlink()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    Path(f"out/.{HOST}-{ended.pid}-0123abcd.unfinished").mkdir()
    status, out, _ = again("export.png=true")
    assert status == 0
    assert "(1 done before" in out
    assert made() == files
    assert Path("out/filaments.csv").read_text() == whole
    assert times()[f"{NAMES[0]}.star"] == before[f"{NAMES[0]}.star"]


def test_files_that_are_switched_off_are_not_written(again):
    off = [f"export.{name}=false" for name in ("star", "box", "cbox")]
    assert again(*off, "overwrite=true")[0] == 0
    assert made() == {f"{name}.grace" for name in NAMES} | {*("filaments.csv", "index.html", "relion")}
    assert not [*Path("out/relion").rglob("micrograph*")]
    assert again()[0] == 0  # now they are wanted, so the images are not done
    assert made() == FILES


def test_on_a_full_disk_everything_stays_as_it_was(again):
    before, files = times(), made()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # the pictures, which come last, are larger
    try:
        status, _, err = again("export.png=true", "overwrite=true")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 1
    assert err.count("cannot be written (File too large)") == 3
    assert (times(), made()) == (before, files)


def test_a_table_that_cannot_be_written_is_a_failure(again):
    Path("out/filaments.csv").unlink()
    Path("out/filaments.csv").mkdir()
    status, _, err = again()
    assert status == 1
    assert "filaments.csv: cannot be written" in err


def test_counts_add_up(predicted, data):
    """Of eight images two are done before, two now; one fails again, one now, one is somebody's, one ambiguous."""
    for name in ("again", "now", "whose", "x", "y"):
        for end in ("mrc", "h5"):
            shutil.copy(data / f"{NAMES[1]}.{end}", data / f"{name}.{end}")
    (data / "again.mrc").write_bytes(b"cut")
    kept = {f"{name}.mrc": (data / f"{name}.mrc").rename(data.parent / name) for name in ("now", "whose", *NAMES[1:])}
    status, out, _ = predicted()
    assert status == 1
    number = len(pd.read_csv("out/filaments.csv"))
    assert out.startswith(f"3 images, {number} filaments in out")
    assert re.search("; 1 of 4 images failed\n$", out)

    for name, path in kept.items():
        path.rename(data / name)
    (data / "now.mrc").write_bytes(b"cut")
    (data / "x.mrc").unlink()
    shutil.copy(data / "y.h5", data / "ambiguous.h5")
    shutil.copy(data / "y.mrc", data / "ambiguous.mrc")
    (data / "ambiguous.csv").write_text("x,y\n30,40\n")
    Path("out/whose.grace").mkdir()
    status, out, err = predicted()
    assert status == 1
    assert re.search("grace-predict: .*again.mrc: .*\n.*ambiguous.*\n.*now.mrc: .*\n.*whose.grace: .*\n$", err)
    table = pd.read_csv("out/filaments.csv")
    number = (table["image"] != "x").sum()
    assert out.startswith(f"4 images, {number} filaments in out")
    assert " (2 done before, " in out
    assert re.search("; 4 of 8 images failed; filaments.csv has 1 other image, too\n$", out)


def test_a_signal_ends_the_command_after_the_image_in_hand(predicted, monkeypatch):
    real, calls = together.write_results, itertools.count(1)

    def write(*arguments, **keys):
        if next(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        real(*arguments, **keys)

    monkeypatch.setattr(together, "write_results", write)
    status, out, err = predicted("num_workers=1")
    assert status == 128 + signal.SIGTERM
    assert re.match(r"2 images, .*; 1 left to do\n", out)
    assert set(pd.read_csv("out/filaments.csv")["image"]) == set(NAMES[:2])
    said, go_on = err.rstrip("\n").split("go on with: ")
    assert said == "grace-predict: stopped by SIGTERM; "
    command = shlex.split(go_on)
    assert command[0] == "grace-predict"
    status, out, _ = predicted(*command[1:])
    assert status == 0
    assert "(2 done before" in out
    assert made() == FILES


def test_two_predictions_into_one_folder_at_once(findings, tmp_path, monkeypatch):
    """The second one does everything while the first one has its files half written."""
    real, started = results.write_exports, []

    def write(*arguments):
        real(*arguments)
        if not started:
            started.append(True)
            one("a")
            one("b")

    def one(name):
        micrograph = findings[0]._replace(name=name)
        results.write_results(tmp_path, micrograph, findings[1], results.Export(), scale=SCALE, record={})
        Joined(tmp_path).join()

    monkeypatch.setattr(results, "write_exports", write)
    one("a")
    assert made(tmp_path) == {f"{n}.{e}" for n in "ab" for e in ("box", "cbox", "grace", "png", "star")} | JOINED - {
        "relion"
    }
    assert set(pd.read_csv(tmp_path / SUMMARY)["image"]) == {"a", "b"}


def test_an_image_that_another_run_adds_while_the_table_is_made_is_in_it(findings, tmp_path, monkeypatch):
    real, listed = Joined.done, []

    def list_then_add(joined):
        done = real(joined)
        if not listed:
            listed.append(True)
            results.write_results(joined.out_dir, *findings, results.Export(png=False), scale=SCALE, record={})
            Joined(joined.out_dir).join()
        return done

    monkeypatch.setattr(Joined, "done", list_then_add)
    assert list(Joined(tmp_path).join()) == [NAMES[0]]
    assert set(pd.read_csv(tmp_path / SUMMARY)["image"]) == {NAMES[0]}


def test_segments_closer_than_pixels_are_refused_image_by_image(predicted):
    status, out, err = predicted("export.spacing=0.2")
    assert status == 1
    assert err.count("export.spacing: 0.2 Angstrom, but a pixel of micrograph_000") == 3
    assert out.startswith("0 images, 0 filaments in out; 3 of 3 images failed")


SPOILT = {
    "cut": (lambda image, h5: image.write_bytes(image.read_bytes()[:5000]), "cut.mrc: the header says"),
    "outside": (lambda image, h5: set_detections(h5, [[500, 3], [4, 4]]), "outside.h5: detection 0 .* lies outside"),
    "somebody's": (lambda image, h5: None, "somebody's.grace: .*grace-predict did not write it"),
    "stack": (lambda image, h5: mrcfile.write(image, np.zeros((3, 9, 9), "f4"), True), "stack.mrc: .*set frame "),
    "unreadable": (lambda image, h5: h5.write_bytes(b"\x89HDF\r\n\x1a\n"), "unreadable.h5: cannot be read"),
}


def test_images_that_fail_are_named_and_do_not_stop_the_rest(predicted, data):
    for name, (spoil, _) in SPOILT.items():
        files = [Path(shutil.copy(data / f"{NAMES[1]}.{end}", data / f"{name}.{end}")) for end in ("mrc", "h5")]
        spoil(*files)
    own = Path("out/somebody's.grace/metadata.json")
    own.parent.mkdir(parents=True)
    own.write_text('{"image_filename": "x"}')
    status, out, err = predicted("overwrite=true")
    assert status == 1
    assert re.fullmatch("3 images, .*; 5 of 8 images failed\n", out)
    assert re.fullmatch("".join(f"grace-predict: .*{message}.*\n" for _, message in SPOILT.values()), err), err
    assert made() == FILES | {"somebody's.grace"}
    assert made(own.parent) == {"metadata.json"}
    assert set(pd.read_csv("out/filaments.csv")["image"]) == set(NAMES)


def test_a_folder_whose_record_cannot_be_read_is_somebody_elses(tmp_path):
    (tmp_path / "a.grace").mkdir()
    (tmp_path / "a.grace/metadata.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"a\.grace: .*grace-predict did not write it"):
        results.read_record(tmp_path, "a")


# ---- few detections, few filaments ----------------------------------------------------------------------------------


def test_images_without_detections_or_filaments_are_results(predicted, data):
    points = [], [[30.0, 40.0]], [[30.0, 40.0], [150.0, 140.0], [30.0, 150.0]]
    for name, pos in zip(NAMES, points, strict=True):
        set_detections(data / f"{name}.h5", pos)
    status, out, err = predicted("export.png=true")
    assert (status, err) == (0, "")
    assert "3 images, 0 filaments" in out
    assert made() == FILES | {f"{name}.png" for name in NAMES}
    assert pd.read_csv("out/filaments.csv").empty
    for name, pos in zip(NAMES, points, strict=True):
        assert io.read_grace(Path("out") / f"{name}.grace").graph.num_nodes == len(pos)
        assert filaments(name).empty
        assert io.read_detections(f"out/{name}.cbox").empty


def keep_one(data):
    for name in NAMES[1:]:
        (data / f"{name}.mrc").unlink()
        (data / f"{name}.h5").unlink()


def test_duplicates_have_the_predictions_of_the_first(predicted, data, predictor):
    keep_one(data)
    frame = io.read_detections(data / f"{NAMES[0]}.h5")[["x", "y"]]
    findings = predictor(io.read_image(data / f"{NAMES[0]}.mrc"), frame)
    node = int(findings.filaments[0].node[1])
    other = next(k for k in range(len(frame)) if not any(k in f.members for f in findings.filaments))
    doubled = pd.concat([frame, frame.iloc[[node, other, node]]], ignore_index=True)
    io.write_detections(data / f"{NAMES[0]}.h5", doubled)
    status, _, err = predicted()
    assert status == 0
    assert re.match(r"warning: .*micrograph_0000.h5: 3 of \d+ detections lie exactly on another one", err)
    nodes = pd.read_parquet(f"out/{NAMES[0]}.grace/nodes.parquet")
    assert nodes[["x", "y"]].to_numpy().tolist() == doubled.to_numpy(np.float32).tolist()
    prediction = np.stack(nodes["node_prediction"])
    assert (prediction[len(frame) :] == prediction[[node, other, node]]).all()
    sets = filaments(NAMES[0]).groupby("filament")["node"].apply(set).tolist()
    twins = {len(frame), len(frame) + 2}
    assert sets == [set(f.members) | (twins if node in f.members else set()) for f in findings.filaments]
    star = starfile.read(f"out/{NAMES[0]}.star")  # the path does not stop at them
    expected = io.segments(findings.filaments, pixel_size=4, spacing=40)
    assert star["rlnCoordinateX"].to_numpy() == pytest.approx(expected["x"].to_numpy(), abs=1e-3)


def test_renumbered_detections_give_the_same_filaments(predictor, given):
    image, pos = given[0], np.concatenate([given[1], given[1][3:6]])
    order = np.random.default_rng(0).permutation(len(pos))
    first, second = predictor(image, pos), predictor(image, pos[order])
    assert len(first.filaments) > 0
    for a, b in zip(first.filaments, second.filaments, strict=True):
        assert sorted(a.members) == sorted(order[b.members])
        assert a.path.tolist() == b.path.tolist()
    assert second.node_probability.numpy() == pytest.approx(first.node_probability.numpy()[order], abs=1e-5)


# ---- which files belong together ------------------------------------------------------------------------------------


def test_detections_may_lie_elsewhere_and_what_has_no_partner_is_named(predicted, data, tmp_path):
    picks = tmp_path / "picks"
    picks.mkdir()
    for name in (NAMES[0], NAMES[2]):
        table = io.read_detections(data / f"{name}.h5")
        io.write_cbox(picks / f"{name}.cbox", table[["x", "y"]].assign(confidence=1.0, filament=0), box_size=20)
    for path in [data / f"{NAMES[0]}.mrc", *data.glob("*.h5")]:
        path.unlink()
    status, out, err = predicted(f"detections_dir={picks}")
    assert status == 0
    assert "1 image," in out
    assert f"no detections for 1 of 2 images, left out: {NAMES[1]}" in err
    assert f"no image for 1 detection file, left out: {NAMES[0]}.cbox" in err
    assert {name for name in made() if name.endswith(".grace")} == {f"{NAMES[2]}.grace"}
    refused = r"no detections .* for any of 2 images in .*, such as micrograph_0001\.h5"
    expect_refusal(predicted("detections=files"), refused)
    expect_refusal(predicted(f"out_dir={data}"), "out_dir: .* is image_dir too")


def test_several_files_of_detections_are_asked_for(predicted, data):
    table = io.read_detections(data / f"{NAMES[0]}.h5")
    table[:3].to_csv(data / f"{NAMES[0]}.csv")
    (data / f"{NAMES[1]}.h5").rename(data / f"{NAMES[1]}.H5")
    (data / f"{NAMES[1]}.star").write_text("data_hot_pixels\n\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n1 2\n")
    status, out, err = predicted()
    assert status == 1
    assert out.endswith("; 1 of 3 images failed\n")
    assert f"1 of 1 .star files hold no picks and were passed over: {NAMES[1]}.star" in err
    assert re.search(f"grace-predict: .*data: {NAMES[0]}.h5, {NAMES[0]}.csv .*set detections_format=h5 or csv\n", err)
    assert predicted("detections_format=h5")[::2] == (0, "")
    assert io.read_grace(f"out/{NAMES[0]}.grace").graph.num_nodes == len(table)
    status, _, err = predicted("detections_format=csv", "out_dir=csv")
    assert (status, err.count("no detections for 2 of 3 images")) == (0, 1)
    assert io.read_grace(f"csv/{NAMES[0]}.grace").graph.num_nodes == 3
    expect_refusal(predicted("detections_format=box"), r"no detections \(\.box\) for any of 3 images")
    expect_refusal(predicted("detections_format=xml"), "detections_format: 'xml', expected .*'star'")
    for name in NAMES[1:]:
        table.to_csv(data / f"{name}.csv")
    expect_refusal(predicted(), "data: no image has a single file of detections; .*set detections_format=h5 or csv")


def test_origins_of_particles_take_the_pixel_size_of_the_image(predicted, data):
    keep_one(data)
    table = io.read_detections(data / f"{NAMES[0]}.h5")
    columns = "".join(f"_{name}\n" for name in ("rlnCoordinateX", "rlnCoordinateY", "rlnOriginXAngst"))
    rows = "".join(f"{x + 5} {y} 20\n" for x, y in table[["x", "y"]].to_numpy())  # 4 Angstrom per pixel
    (data / f"{NAMES[0]}.star").write_text(f"data_particles\n\nloop_\n{columns}{rows}")
    assert predicted("detections_format=star")[0] == 0
    found = io.read_grace(f"out/{NAMES[0]}.grace").graph.pos.numpy()
    assert found == pytest.approx(table[["x", "y"]].to_numpy(), abs=1e-3)


@pytest.mark.parametrize(
    "metadata", ["[]", '{"grace_predict": {}, "image_path": 7}', '{"grace_predict": []}', "[" * 9**6]
)
def test_a_folder_of_somebody_else_in_out_dir_does_no_harm(predicted, metadata):
    Path("out/foreign.grace").mkdir(parents=True)
    Path("out/foreign.grace/metadata.json").write_text(metadata)
    status, out, err = predicted()
    assert (status, err) == (0, "")
    assert "3 images, " in out


def test_a_file_that_unpacks_to_more_than_the_bound_fails_by_name(predicted):
    status, _, err = predicted("io.max_gib=1e-5")
    assert status == 1
    assert re.findall(r"(micrograph_\d+)\.mrc: holds \S+ GiB of data, .* set io\.max_gib higher", err) == NAMES


def test_without_a_pixel_size_no_angstrom_is_invented(predicted, data):
    keep_one(data)
    pixels = mrcfile.read(data / f"{NAMES[0]}.mrc")
    scaled = ((pixels - pixels.min()) / np.ptp(pixels) * 65535).astype(np.uint16)
    (data / f"{NAMES[0]}.png").write_bytes(imagecodecs.png_encode(scaled))
    (data / f"{NAMES[0]}.mrc").unlink()

    def largest_step():
        star = starfile.read(f"out/{NAMES[0]}.star")
        tube = star[star["rlnHelicalTubeID"] == 1][["rlnCoordinateX", "rlnCoordinateY"]]
        return np.hypot(*tube.diff().dropna().to_numpy().T).max(), "rlnHelicalTrackLengthAngst" in star

    status, _, err = predicted()
    assert status == 0
    assert re.fullmatch(r"warning: no pixel size is known for 1 image: .*set pixel_size=.*\n", err)
    assert largest_step() == (pytest.approx(SCALE, abs=0.2), False)
    assert pd.read_csv("out/filaments.csv")["length_angstrom"].isna().all()
    given = ["pixel_size=2", "export.spacing=30", f"features.scale={SCALE}", "overwrite=true"]
    status, _, err = predicted(*given)
    assert status == 0
    assert re.fullmatch(r"warning: out/relion: left out 1 of 1 image, which RELION cannot read \(.*png: .*\n", err)
    assert largest_step() == (pytest.approx(15, abs=0.2), True)
    summary = pd.read_csv("out/filaments.csv")
    assert summary["length_angstrom"].to_numpy() == pytest.approx(2 * summary["length"].to_numpy(), rel=1e-5)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("checkpoint=[]", "checkpoint is not set"),
        ("image_dir=null", "image_dir is not set"),
        ("image_dir=nowhere", "image_dir: nowhere: no such folder"),
        ("overwrite=perhaps", "overwrite: 'perhaps', expected bool"),
        ("pixel_size=0", "pixel_size: 0, expected Angstrom per pixel"),
        ("export.spacing=1e-9", "export.spacing: 1e-09, expected a length of 0.1 to"),
        ("export.box_size=1e300", r"export.box_size: 1e\+300, expected a length of 1 to"),
        ("pixel_size=1e308", r"pixel_size: 1e\+308, expected Angstrom per pixel"),
        ("features.scale=1e308", r"features.scale: 1e\+308, expected the width of a filament, 1 to 1000 pixels"),
        ("trust=3", "trust: 3, expected str"),
        ("frame=first", "frame: 'first', expected"),
        ("out_dir=/dev/null/out", "out_dir: /dev/null/out cannot be made"),
        ("features.scale=-3", "features.scale: -3"),
    ],
)
def test_wrong_words_on_the_command_line(key, message, predicted):
    expect_refusal(predicted(key), message)


# ---- from Python ----------------------------------------------------------------------------------------------------


def test_five_lines(checkpoint, predictor, given):
    image, pos = given[0][0].numpy(), given[1]
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
    assert predictor.networks[0].features.patch_size == pytest.approx(2.4 * SCALE)  # the image is resampled


def test_nothing_in_nothing_out(predictor):
    assert predict(predictor, np.eye(50, 60), []) == []
    assert predict(predictor, np.eye(50, 60, dtype=np.uint8), [[3, 4]]) == []


@pytest.mark.parametrize(
    ("image", "pos", "message"),
    [
        (np.zeros((5, 5, 5)), [], r"image: shape \(5, 5, 5\), expected \(H, W\)"),
        (np.zeros((5, 5), complex), [], "image: complex128, expected"),
        (np.full((5, 5), np.nan), [], "image: 25 values are NaN or infinite"),
        (np.zeros((50, 60)), [[1, 2, 3]], r"pos: shape \(1, 3\), expected \(N, 2\)"),
        (np.eye(50, 60), [[55, 3], [3, 55]], "detection 1 at x=3.0, y=55.0 lies outside the image of 60 x 50"),
        (np.zeros((50, 60)), [[np.nan, 3]], "pos: 1 values are NaN or infinite"),
    ],
)
def test_wrong_arrays_are_named(image, pos, message, predictor):
    with pytest.raises(InputError, match=message):
        predict(predictor, image, pos)


def test_the_linker_is_given_everything_that_the_network_learned():
    def linker(pos, edges, node, link, end, passes):
        return link, end, passes

    graph = Graph(torch.zeros(3, 2), torch.tensor([[0], [1]]))
    said = {"node": torch.ones(3), "edge": torch.zeros(1)}
    assert link_filaments(linker, graph, said) == (said["edge"], None, None)
    further = {"same_filament": torch.ones(1), "end": torch.ones(3) / 2, "two_filaments": torch.ones(3) / 4}
    *learned, passes = link_filaments(linker, graph, said | further)
    assert learned == [further["same_filament"], further["end"]]
    assert passes.tolist() == [[0.25]] * 3


def test_filaments_near_each_other_differ_in_colour():
    lines = [np.array([[10.0 * k, 0.0], [10.0 * k, 100.0]]) for k in range(30)]
    none = np.zeros(2, dtype=np.int64)
    figure = figures.tracing((100, 300), [Filament(line, none, none, none) for line in lines])
    assert figure.get_size_inches().tolist() == [12, 4]
    colours = [tuple(c) for c in figure.axes[0].collections[1].get_colors()]
    assert len(set(colours[:12])) == 12
    for k in range(30):
        assert not set(colours[k + 1 : k + 4]) & {colours[k]}


@pytest.mark.parametrize("image", [torch.zeros(1, 40, 30), torch.rand(1, 1, 500), torch.rand(1, 3000, 10)])
def test_any_image_can_be_drawn(image):
    small = figures.thumbnail(image)
    assert max(small.shape) <= 1200
    assert max(figures.overview(small, image.shape[1:], []).size) == 1200


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

    def test_probabilities_are_the_mean_of_log_odds(self, checkpoint, other, given):
        paths = (checkpoint, other, [checkpoint, other])
        found = [Predictor.from_checkpoint(path)(*given) for path in paths]
        for key in ("node_probability", "edge_probability"):
            a, b, mean = (getattr(findings, key).double() for findings in found)
            assert (a - b).abs().max() > 0.01
            torch.testing.assert_close(mean, torch.sigmoid((a.logit() + b.logit()) / 2), atol=1e-4, rtol=0)

    def test_a_head_that_one_network_has_learned_comes_from_that_network(self, checkpoint, given):
        predictor = Predictor.from_checkpoint([checkpoint, checkpoint])
        predictor.networks[1].learned.fill_(True)
        prepared = predictor.prepare(given[0], torch.from_numpy(given[1].astype(np.float32)))
        together = predictor.probabilities(prepared.data)
        alone = predictor.networks[1].probabilities(prepared.data[1])
        learned = set(together) - set(predictor.networks[0].probabilities(prepared.data[0]))
        assert learned
        assert all(torch.allclose(together[head], alone[head], atol=1e-4) for head in learned)

    def test_the_command_takes_a_list(self, predicted, data, checkpoint, other):
        keep_one(data)
        status, out, _ = predicted(f"checkpoint=[{checkpoint},{other}]")
        assert status == 0
        assert re.match("1 image, .* filaments? in out, by 2 networks together", out)
        assert "done with another checkpoint" in predicted(f"checkpoint=[{other},{checkpoint}]")[2]

    def test_networks_that_do_not_belong_together_are_refused(self, checkpoint, tmp_path):
        saved = torch.load(checkpoint, weights_only=True)
        saved["grace_lightning"]["features"]["scale"] = SCALE + 1
        torch.save(saved, tmp_path / "wider.ckpt")
        both = [checkpoint, tmp_path / "wider.ckpt"]
        with pytest.raises(InputError, match=r"trained with different features.scale, 10.0, 11.0: give features.scale"):
            Predictor.from_checkpoint(both)
        assert Predictor.from_checkpoint(both, scale=SCALE).scale == SCALE
        with pytest.raises(InputError, match="checkpoint: none, expected one or more"):
            Predictor.from_checkpoint([])


class TestNothingButImages:
    """No checkpoint, no detections, no width: the network of the package, which knows many kinds of images."""

    @pytest.fixture
    def alone(self, run, checkpoint, data, tmp_path, monkeypatch):
        saved = torch.load(checkpoint, weights_only=True)
        saved["grace_lightning"]["data"] |= {"scale": "each", "polarity": "each"}
        torch.save(saved, tmp_path / "general.ckpt")
        monkeypatch.setattr("grace_lightning.checkpoint.GENERAL_FILE", tmp_path / "general.ckpt")
        for path in data.glob("*.h5"):
            path.rename(tmp_path / path.name)
        keys = [f"image_dir={data}", "out_dir=out", "trainer.accelerator=cpu"]
        return lambda *more: run("predict", *keys, *more)

    def test_what_filaments_look_like_is_estimated_told_and_remembered(self, alone, data):
        (data / f"{NAMES[2]}.mrc").rename("later.mrc")
        status, out, err = alone()
        assert (status, err) == (0, "")
        told = r"no detections beside any image; found along ridges\nfilaments are (\S+) pixels wide and dark "
        scale = float(
            re.match(told + r"\(estimated from 2 of 2 images; features.scale= and polarity= override\)", out)[1]
        )
        assert scale == pytest.approx(SCALE, rel=0.35)
        assert len(pd.read_csv("out/filaments.csv")) > 0
        Path("later.mrc").rename(data / f"{NAMES[2]}.mrc")
        status, out, err = alone()
        assert (status, err) == (0, "")
        assert re.match(told + r"\(as in the images that are done; .*\n3 images, .* \(2 done before", out)
        record = results.read_record(Path("out"), NAMES[2])
        assert (record["scale"], record["polarity"], record["detections"]["scale"]) == (scale, "dark", scale)

    def test_bright_filaments_are_found_as_dark_ones_are(self, alone, data):
        given = [f"features.scale={SCALE}", "export.png=false"]
        assert alone(*given, "polarity=dark")[:2][1].count("filaments are") == 0
        dark = pd.read_csv("out/filaments.csv")
        for name in NAMES:
            mrcfile.write(data / f"{name}.mrc", -mrcfile.read(data / f"{name}.mrc"), overwrite=True, voxel_size=4)
        status, out, _ = alone(*given, "overwrite=true")
        assert status == 0
        assert "filaments are bright (estimated from 3 of 3 images; polarity= overrides)" in out
        pd.testing.assert_frame_equal(dark, pd.read_csv("out/filaments.csv"), rtol=1e-3)

    def test_ridges_where_some_images_have_files(self, alone, data, tmp_path):
        shutil.copy(tmp_path / f"{NAMES[0]}.h5", data)
        status, out, err = alone("export.png=false")
        assert (status, out.count("found along ridges")) == (0, 0)
        assert "no detections for 2 of 3 images, left out" in err
        assert "detections=ridge finds" in err
        status, out, _ = alone("export.png=false", "detections=ridge", "detections.threshold=4", "overwrite=true")
        assert status == 0
        assert "3 images" in out
        expect_refusal(alone("detections=ridge", f"detections_dir={tmp_path}"), "leave out one of detections_dir and")
        expect_refusal(alone("detections=files", f"image_dir={tmp_path}"), "no images")

    def test_doubt_is_said_and_nothing_fails(self, alone, data):
        for name, shape in zip(NAMES, [(90, 90), (7, 9), (300, 40)], strict=True):
            noise = np.random.default_rng(0).normal(size=shape).astype(np.float32)
            mrcfile.write(data / f"{name}.mrc", noise, overwrite=True, voxel_size=4)
        status, out, err = alone()
        assert status == 0
        assert "3 images, 0 filaments" in out
        assert err.startswith("warning: little in the images looks like filaments")

    def test_bad_words_and_a_missing_network(self, alone, data, monkeypatch, tmp_path):
        expect_refusal(alone("polarity=foo"), "polarity: 'foo', expected")
        expect_refusal(alone("features.scale=wide"), "features.scale: 'wide', expected")
        monkeypatch.setattr("grace_lightning.checkpoint.GENERAL_FILE", tmp_path / "none.ckpt")
        expect_refusal(alone(), "checkpoint=general: .*none.ckpt is missing")
        for path in data.glob("*.mrc"):
            path.write_bytes(b"cut")
        expect_refusal(alone(), "is missing")

    def test_from_python(self, checkpoint, given, tmp_path):
        saved = torch.load(checkpoint, weights_only=True)
        saved["grace_lightning"]["data"] |= {"scale": "each", "polarity": "each"}
        torch.save(saved, tmp_path / "general.ckpt")
        with pytest.raises(InputError, match=r"features\.scale: is not given.*estimate"):
            Predictor.from_checkpoint(tmp_path / "general.ckpt")
        known = Predictor.from_checkpoint(tmp_path / "general.ckpt", scale=SCALE, polarity="bright")
        image = given[0][0].numpy()
        assert [f.path.tolist() for f in known(-image).filaments] == [
            f.path.tolist() for f in predict(tmp_path / "general.ckpt", image, scale=SCALE)
        ]

    def test_as_in_training(self, checkpoint, tmp_path):
        saved = torch.load(checkpoint, weights_only=True)
        saved["grace_lightning"]["data"] |= {"scale": 17.5, "polarity": "bright"}
        torch.save(saved, tmp_path / "own.ckpt")
        predictor = Predictor.from_checkpoint(tmp_path / "own.ckpt")
        assert (predictor.scale, predictor.linker.scale, predictor.polarity) == (17.5, 17.5, "bright")
        with pytest.raises(InputError, match=r"different data\.polarity, null, bright: give polarity"):
            Predictor.from_checkpoint([checkpoint, tmp_path / "own.ckpt"], scale=10.0)
