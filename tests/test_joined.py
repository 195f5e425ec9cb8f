"""What many images come to: shards of one data set, the page to look them over, and the choice among filaments."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import starfile
from conftest import NAMES
from test_runs import forked

from grace_lightning import io
from grace_lightning.measure import LAGS
from grace_lightning.tasks import joined, together
from grace_lightning.tasks.joined import Joined
from grace_lightning.tasks.overview import HEADER, Done, overview
from grace_lightning.tasks.results import FOUND, RECORD


def files(folder):
    """What is in a folder's files, by name, but for what a launcher keeps."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


NAME_THEIR_FOLDER = {f"relion/coords_suffix{end}" for end in (".box", "_autopick.star")}


@pytest.fixture(scope="module")
def many(simulated, tmp_path_factory):
    """A folder of twelve micrographs with detections, four times the same three."""
    folder = tmp_path_factory.mktemp("many") / "images"
    folder.mkdir()
    for k, name in enumerate(NAMES * 4):
        for suffix in (".mrc", ".h5"):
            shutil.copy(simulated / f"{name}{suffix}", folder / f"{k:02d}_{name}{suffix}")
    return folder


@pytest.mark.slow
def test_eight_processes_make_what_one_makes_though_two_are_killed(many, checkpoint, tmp_path):
    def command(out_dir, *more):
        given = [f"checkpoint={checkpoint}", f"image_dir={many}", f"out_dir={out_dir}", "trainer.accelerator=cpu"]
        return ["predict", *given, "export.png=false", *more]

    def shard(number, at=None):
        return {"command": command("shards", "num_shards=8", f"shard={number}"), "at": at}

    killed = {number: ["probabilities", count, signal.SIGKILL] for number, count in ((1, 2), (6, 1))}
    together = [shard(number, killed.get(number)) for number in range(8)]
    ended = forked(tmp_path, {"whole": {"command": command("whole")}, "shards": together})
    assert ended["whole"]["status"] == [0], ended["whole"]["err"]
    assert [job["status"] for job in ended["shards"]] == [[-9] if number in killed else [0] for number in range(8)]
    assert len(list((tmp_path / "shards").glob("*.grace"))) == 10
    ended = forked(tmp_path, {"again": [shard(number) for number in killed]})
    assert [job["status"] for job in ended["again"]] == [[0], [0]]
    found, expected = files(tmp_path / "shards"), files(tmp_path / "whole")
    assert found.keys() == expected.keys()  # nothing half done is left
    differ = {name for name, content in found.items() if content != expected[name]}
    assert differ == NAME_THEIR_FOLDER


@pytest.fixture
def predicted(many, checkpoint, run):
    """Return a function that does all twelve: exit status, stdout, stderr."""
    given = (f"checkpoint={checkpoint}", f"image_dir={many}", "trainer.accelerator=cpu", "export.png=false")
    return lambda *keys: run("predict", *given, *keys)


@pytest.fixture
def found(predicted):
    """The results of all twelve, one after the other, in ``out``."""
    assert predicted("out_dir=out", "num_workers=1")[0] == 0
    return Path("out")


@pytest.fixture(params=["threads", "processes"])
def several(request, predicted, monkeypatch):
    """Return a function that does all twelve, four at once, by threads alone or with processes that write."""
    processes = request.param == "processes"
    monkeypatch.setattr(together, "MANY", 1 if processes else 100)
    if processes:  # images are done from when these are there
        monkeypatch.setattr(together, "ThreadPoolExecutor", Patient)
    return lambda *keys: predicted("out_dir=together", "num_workers=4", *keys)


class Patient(ThreadPoolExecutor):
    """Does the first thing before it takes others."""

    def submit(self, work, /, *args):
        future = super().submit(work, *args)
        if work.__name__ == "submit":
            future.result()
        return future


def after_an_image(monkeypatch, event):
    real = Joined.show_now_and_then
    monkeypatch.setattr(Joined, "show_now_and_then", lambda self: [event(), real(self)])


def test_several_at_once_make_what_one_makes(found, several):
    assert several()[0] == 0
    expected, made = files(found), files(Path("together"))
    assert made.keys() == expected.keys()
    assert {name for name, content in made.items() if content != expected[name]} == NAME_THEIR_FOLDER


def test_large_images_are_fewer_at_once():
    sources = [io.Source(f"{k}", Path(f"{k}.mrc")) for k in range(12)]
    running, most, all_there = set(), [], threading.Barrier(12)

    def look(source):
        running.add(source)
        most.append(len(running))
        time.sleep(0.01)
        return source

    def write(source):
        running.discard(source)
        return together.Result(None, 10, 0)

    done = {}
    assert len(list(together.together(sources, look, write, done, 12, most_pixels=30))) == len(done) == 12
    assert 1 <= max(most) <= 3

    def wait(source):
        all_there.wait(timeout=60)
        return source

    assert len(list(together.together(sources, wait, write, {}, 12, most_pixels=None))) == 12


def test_if_the_processes_that_write_are_killed_the_rest_is_done_without(several, monkeypatch):
    killed = []

    def kill():
        for child in multiprocessing.active_children():
            killed.append(child)
            child.kill()

    after_an_image(monkeypatch, kill)
    status, out, err = several()
    assert (status, out.startswith("12 images, ")) == (0, True), err
    assert bool(killed) == (together.MANY == 1)


def test_if_stopped_what_was_begun_is_done_and_told(several, monkeypatch):
    after_an_image(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    status, out, err = several()
    assert status == 128 + signal.SIGTERM
    assert err.startswith("grace-predict: stopped by SIGTERM; go on with: ")
    done = len(list(Path("together").glob("*.grace")))
    assert 1 <= done <= 8
    assert out.startswith(f"{done} image")
    assert f"; {12 - done} left to do" in out
    assert not [path for path in Path("together").iterdir() if path.name.startswith(".")]


def test_shards_of_a_multirun_and_their_mistakes(found, many, checkpoint, run):
    given = (f"checkpoint={checkpoint}", f"image_dir={many}", "out_dir=shards", "trainer.accelerator=cpu")
    (many / "odd.mrc").write_bytes(b"no image")
    shutil.copy(next(many.glob("*.h5")), many / "odd.h5")
    try:
        status, out, err = run("predict", "-m", "shard=range(0,3)", "num_shards=3", *given, "export.png=false")
    finally:
        for suffix in (".mrc", ".h5"):
            (many / f"odd{suffix}").unlink()
    assert status == 1  # and the other parts are done all the same
    assert out.count(" in shards, ") == 3
    assert "odd.mrc" in err
    assert (found / "filaments.csv").read_bytes() == Path("shards/filaments.csv").read_bytes()
    status, out, _ = run("predict", "join=true", "out_dir=shards")
    assert (status, out.startswith("12 images, ")) == (0, True)
    for wrong in (["num_shards=3"], ["num_shards=3", "shard=3"], ["shard=-1"], ["num_shards=0"]):
        status, _, err = run("predict", *given, *wrong)
        assert (status, "expected a part from 0 to num_shards - 1" in err) == (2, True)
    twice = ["trainer=ddp", "trainer.devices=2", "shard=0,1", "num_shards=2"]
    status, _, err = run("predict", "-m", *given[:-1], "trainer.accelerator=cpu", *twice)
    assert (status, "each of which would run all parts again with -m" in err) == (2, True)
    status, _, err = run("predict", "join=true", "out_dir=nowhere")
    assert (status, "nowhere: no such folder" in err) == (2, True)


# ---- the page -------------------------------------------------------------------------------------------------------


def data_of(page):
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)[1])


def made(lengths, doubt=0.1, width=10.0, pixel_size=2.0, name="a"):
    """An image with filaments of some lengths, pixels."""
    table = pd.DataFrame({"length": lengths, "mean_curvature": 0.01, "mean_probability": 0.9})
    table = table.assign(image=name, length_angstrom=2 * table["length"], mean_curvature_per_angstrom=0.005)
    table = table.reindex(columns=HEADER.strip().split(","))
    pairs = np.arange(LAGS, 0, -1.0)
    lags = {"step": 10.0, "cosines": (pairs * np.exp(-np.arange(1, LAGS + 1) * 10 / 2000)).tolist()}
    said = {"doubt": doubt, "width": width, "pairs": pairs.tolist(), "picture": True} | lags
    _, *rows = table.to_csv(index=False).splitlines(keepends=True)
    return Done(rows, {FOUND: said, RECORD: {"scale": 10.0, "image": [1, 2]}, "pixel_size": pixel_size})


def test_the_page_says_what_stands_out_and_what_all_filaments_are_like():
    done = {f"plain{k}": made([100.0, 300.0], name=f"plain{k}") for k in range(18)}
    done |= {"none": made([], width=None), "many": made([50.0] * 60, name="many")}
    done |= {"doubt": made([100.0], doubt=0.8, name="doubt"), "wide": made([100.0], width=18.0, name="wide")}
    data = data_of(overview(done, 40))
    reasons = {image["name"]: image["reasons"] for image in data["images"] if image["reasons"]}
    assert {name: len(said) for name, said in reasons.items()} == {"none": 1, "many": 1, "doubt": 1, "wide": 1}
    assert reasons["none"] == ["no filaments"]
    assert reasons["many"] == ["13 times the mean number of filaments"]
    assert reasons["wide"] == ["filaments look 1.8 times as wide as elsewhere"]
    assert data["title"] == "98 filaments in 22 micrographs of 40"
    assert data["facts"][1].startswith("Persistence length 2,000 Å (95 % of samples: 2,000 to 2,000)")
    assert [sum(drawn["counts"]) for drawn in data["histograms"]] == [98] * 3
    settings, versions = data["settings"]
    assert (settings["title"], settings["rows"]) == ("22 micrographs", [["scale", "10.0"]])
    assert "torch" in dict(versions["rows"])


@pytest.mark.parametrize("name", ["</script><b>", "<!--<script>", 'a"b', "NA", "007", "ä % #"])
def test_names_are_no_markup(name):
    page = overview({name: made([10.0], name=name)}, 1)
    assert [image["name"] for image in data_of(page)["images"]] == [name]
    assert data_of(page)["images"][0]["filaments"] == 1
    assert page.count("</script>") == 2


def test_pages_of_nothing_and_of_results_of_other_programs():
    assert data_of(overview({}, 3))["title"] == "0 filaments in 0 micrographs of 3"
    assert data_of(overview({"a": Done([], {})}, 1))["images"][0]["reasons"] == ["no filaments"]


def test_the_page_is_written_after_every_image_of_few_and_seldom_of_many(found, monkeypatch):
    pages = Joined(found)
    clock = iter([0.0, 1.0, 40.0, 51.5, 52.5])
    monkeypatch.setattr(joined.time, "monotonic", lambda: next(clock))
    page, written = found / "index.html", []
    for _ in range(3):  # at 0, which takes a second, at 40, and at 51.5
        page.unlink(missing_ok=True)
        pages.show_now_and_then()
        written.append(page.exists())
    assert written == [True, False, True]


def test_a_table_of_an_older_version_is_read_and_an_edited_one_is_kept(found, run):
    of_image = next(found.glob("*.grace")) / "filaments.csv"
    old = pd.read_csv(of_image).drop(columns=["nearest", "crossings"])
    old.to_csv(of_image, index=False)
    table = pd.read_csv(found / "filaments.csv").assign(keep=1)
    table.to_csv(found / "filaments.csv", index=False)
    status, _, err = run("predict", "join=true", "out_dir=out")
    assert (status, "is called filaments.edited.csv now" in err) == (0, True)
    pd.testing.assert_frame_equal(pd.read_csv(found / "filaments.edited.csv"), table)
    joined_table = pd.read_csv(found / "filaments.csv")
    assert joined_table["length"].tolist() == table["length"].tolist()
    assert joined_table["crossings"].isna().sum() == len(old)


# ---- grace-export ---------------------------------------------------------------------------------------------------


def test_exported_anew_all_is_as_it_was(found, run):
    before = files(found)
    status, out, _ = run("export", "out_dir=out")
    assert (status, re.fullmatch(r"(\d+) of \1 filaments in 12 images: .*\n", out) is not None) == (0, True)
    assert files(found) == before


def test_what_is_chosen_is_exported(found, run):
    table = pd.read_csv(found / "filaments.csv")
    assert len(table) > 12
    least = table["length"].median()
    status, out, _ = run("export", "out_dir=out", f"min_length={least}", "export.box=false")
    assert (status, out.split()[0]) == (0, str((table["length"] >= least).sum()))
    table["keep"] = np.where(table["filament"] == 0, "yes", "no")
    table.to_csv("mine.csv", index=False, sep=";")
    assert run("export", "out_dir=out", "keep=mine.csv", "export.spacing=60")[0] == 0
    name = table["image"][0]
    segments = starfile.read(found / f"{name}.star")
    assert set(segments["rlnHelicalTubeID"]) == {1}
    assert np.diff(segments["rlnHelicalTrackLengthAngst"]).tolist() == pytest.approx([60] * (len(segments) - 1))
    assert (found / f"relion/{name}_autopick.star").exists() or list((found / "relion").rglob(f"{name}_autopick.star"))
    table.drop(columns="keep")[:1].to_csv("mine.csv", index=False)  # rows that were removed are out
    status, out, _ = run("export", "out_dir=out", "keep=mine.csv", "pixel_size=2")
    assert (status, out.split()[0]) == (0, "1")
    assert len(starfile.read(found / "relion/micrographs.star")["micrographs"]) == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.assign(keep="perhaps"), "keep is 'perhaps' in row 1, expected 1 or 0"),
        (lambda t: t.assign(nodes=t["nodes"] + 1), "row 1, filament 0 of .*, is not among the results"),
        (lambda t: t.assign(image="b"), "row 1, filament 0 of b, is not among the results"),
        (lambda t: t.drop(columns="image"), "no column image"),
    ],
)
def test_tables_that_do_not_fit_are_refused(change, message, found, run):
    change(pd.read_csv(found / "filaments.csv")).to_csv("mine.csv", index=False)
    before = files(found)
    status, _, err = run("export", "out_dir=out", "keep=mine.csv")
    assert (status, re.search(message, err) is not None) == (2, True), err
    assert files(found) == before


def test_a_folder_without_results_is_refused(run):
    Path("empty").mkdir()
    status, _, err = run("export", "out_dir=empty")
    assert (status, "there is nothing that grace-predict found" in err) == (2, True)
