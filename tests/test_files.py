"""Files that are never seen half written, and what a process that was killed leaves to the next one."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from grace_lightning import files, io
from grace_lightning.errors import InputError
from grace_lightning.files import HOST, counted, replacing, some, unfinished_in
from grace_lightning.ridges import RidgeDetector
from grace_lightning.simulate import Simulator, simulate_folder
from grace_lightning.tasks import results
from grace_lightning.tasks.annotate import annotate_folder
from grace_lightning.tasks.joined import Joined


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def ended_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture(autouse=True)
def _as_in_a_new_process(monkeypatch):
    monkeypatch.setattr(files, "_tidied", set())


def test_only_what_a_dead_process_of_this_computer_left_is_removed(tmp_path):
    dead, own_number = (f".{HOST}-{number}-0123abcd.unfinished" for number in (ended_process(), os.getpid()))
    living = f".{HOST}-{os.getppid()}-0123abcd.unfinished"
    elsewhere = dead.replace(HOST, "0" * 8 if HOST != "0" * 8 else "1" * 8)
    kept = [".notes.unfinished", elsewhere, living]
    for name in (dead, own_number, *kept):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    with unfinished_in(tmp_path) as mine:
        (mine / "y").touch()
        files.remove_unfinished(tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted([mine.name, *kept])
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)


def test_two_processes_may_replace_one_folder_at_once(tmp_path):
    """While the second one is about to put its folder there, the first one does so, again and again."""
    with replacing(tmp_path / "x") as first:
        first.mkdir()
        with replacing(tmp_path / "x") as second:
            second.mkdir()
            (second / "2").touch()
        (first / "1").touch()
    assert names(tmp_path) == ["x", "x/1"]


def test_a_folder_that_appears_between_two_steps_is_replaced_too(tmp_path, monkeypatch):
    real, others = Path.replace, iter([1])

    def replace(self, target):
        for _ in others:
            target.mkdir()
            (target / "other").touch()
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with replacing(tmp_path / "x") as unfinished:
        unfinished.mkdir()
        (unfinished / "mine").touch()
    assert names(tmp_path) == ["x", "x/mine"]


def test_a_disk_that_says_late_that_it_is_full_gives_no_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"x.txt: cannot be written \(No space left on device\)"):
        files.write_json(tmp_path / "x.txt", [1])
    assert names(tmp_path) == []


def test_numbers_of_things():
    assert [counted(number, "image") for number in (0, 1, 1200)] == ["0 images", "1 image", "1,200 images"]


# ---- killed at every step --------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the death of the process: from then on nothing reaches the disk."""


STEPS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
kill = SimpleNamespace(folder=None, steps=0)


def _watch(event, arguments):
    if kill.folder is None or event not in STEPS or not str(arguments[0]).startswith(kill.folder):
        return
    if event != "open" or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
        kill.steps -= 1
        if kill.steps < 0:
            raise Killed


sys.addaudithook(_watch)


def content(folder):
    """Names of everything, and the bytes of what has no date in it."""
    bare = (".h5", ".parquet", ".csv", ".json", ".box", ".cbox")
    return {name: (folder / name).read_bytes() if name.endswith(bare) else None for name in names(folder)}


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    """A micrograph of one filament with its detections, its annotation and its mask."""
    folder = tmp_path_factory.mktemp("annotated")
    simulate_folder(SMALL, folder, num_images=1)
    np.save(folder / "micrograph_0000_mask.npy", io.read_grace(folder / "micrograph_0000.grace").annotation.numpy())
    return folder


SMALL = Simulator(size=(96, 96), num_filaments=1, scale=8, period=16, spacing=8, snr=1, num_blobs=0, false_detections=6)


def ridge(folder, source):
    assert annotate_folder(str(source), str(folder), detector=RidgeDetector(scale=8.0)) == {}


def annotation_of_its_own(folder, source):
    assert annotate_folder(str(folder), str(folder), overwrite=True) == {}


def simulated_anew(folder, source):
    simulate_folder(SMALL, folder, num_images=1, seed=2, overwrite=True)


@pytest.fixture(scope="module")
def findings(predictor, simulated):
    image = io.read_image(simulated / "micrograph_0000.mrc")
    found = predictor.find(predictor.prepare(image, io.read_points(simulated / "micrograph_0000.h5")[0]))
    return results.Micrograph("a", "a.mrc", (192, 192), image, 4.0), found


def expect_resumed(work, folder, tmp_path):
    """Kill ``work`` at each of its steps, from the state of ``folder`` on, do it again, and compare."""
    out = tmp_path / "out"

    def start():
        shutil.rmtree(out, ignore_errors=True)
        if folder is not None:
            shutil.copytree(folder, out)
        files._tidied.clear()

    start()
    work(out)
    expected, steps = content(out), 0
    while True:
        start()
        kill.folder, kill.steps = str(out), steps
        try:
            work(out)
            break
        except Killed:
            pass
        finally:
            kill.folder = None
        files._tidied.clear()
        work(out)
        assert content(out) == expected, steps
        steps += 1
    assert steps > 5


@pytest.mark.slow
@pytest.mark.parametrize("work", [ridge, annotation_of_its_own, simulated_anew])
def test_annotation_and_simulation_go_on_wherever_they_were_killed(work, annotated, tmp_path):
    before = None
    if work is annotation_of_its_own:
        before = shutil.copytree(annotated, tmp_path / "before", ignore=shutil.ignore_patterns("*_mask.npy"))
    expect_resumed(lambda out: work(out, annotated), before, tmp_path)


@pytest.mark.slow
def test_prediction_goes_on_wherever_it_was_killed(findings, tmp_path):
    def work(out, **export):
        settings = results.Export(png=False, **export)
        out.mkdir(exist_ok=True)
        files.remove_unfinished(out)
        if export or results.read_record(out, "a") is None or not results.is_done(out, "a", settings):
            results.write_results(out, *findings, settings, scale=10.0, record=export)
        Joined(out).join()

    expect_resumed(work, None, tmp_path)
    work(tmp_path / "before")
    expect_resumed(lambda out: work(out, cbox=False), tmp_path / "before", tmp_path)
    assert not (tmp_path / "out/a.cbox").exists()


def test_names_in_a_message_stay_on_its_line():
    assert some(["a\nb", "c\x0bd"]) == "a b, c d"
