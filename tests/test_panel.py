"""The plugin's widget, without a screen; and once the whole way in a real window, where there is an X server."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mrcfile
import numpy as np
import pytest
from helpers import LINES, line_scene

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
pytest.importorskip("pytestqt")
napari = pytest.importorskip("napari")

from grace_lightning import io  # noqa: E402
from grace_lightning.gui import panel as module  # noqa: E402
from grace_lightning.gui.panel import ACTIONS, Panel  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def folder(tmp_path):
    """Two micrographs of three lines each."""
    images = tmp_path / "images"
    images.mkdir()
    for name, seed in (("a", 4), ("b", 5)):
        with mrcfile.new(images / f"{name}.mrc") as file:
            file.set_data(line_scene(seed=seed)[0])
            file.voxel_size = 2.0
    return images


@pytest.fixture
def warned(monkeypatch):
    told = []
    monkeypatch.setattr(module, "show_warning", told.append)
    return told


@pytest.fixture
def panel(folder, qtbot, warned):
    """The widget with the first micrograph open."""
    made = Panel(napari.components.ViewerModel(), folder)
    qtbot.waitUntil(lambda: made.sheet is not None, timeout=60_000)
    yield made
    made.stop()


@pytest.fixture
def found(panel, qtbot):
    """The widget with what was found in the first micrograph."""
    panel.filament_width.value, panel.polarity.value = 10, "dark"
    panel.find()
    qtbot.waitUntil(lambda: not panel.busy, timeout=120_000)
    return panel


def layer_of(panel):
    return panel.viewer.layers["filaments"]


def statuses(panel):
    return list(layer_of(panel).features["status"])


def drawn(panel, line):
    """Do what napari does when somebody has drawn a line (P, 2), columns x and y."""
    layer_of(panel).add_paths([np.asarray(line)[:, ::-1]])


def test_it_opens_a_folder(panel):
    assert panel.chosen.choices == ("a", "b")
    assert panel.viewer.layers["micrograph"].data.shape == (384, 512)
    low, high = panel.viewer.layers["micrograph"].contrast_limits
    assert low < 25 < 35 < high


def test_it_finds_filaments_and_tells_their_width(found):
    assert (len(layer_of(found).data), statuses(found)) == (3, ["found"] * 3)
    assert found.status.value == "3 filaments, 10 px wide and dark"
    (bar,) = found.viewer.layers["width"].data
    assert np.hypot(*(bar[1] - bar[0])) == pytest.approx(10, rel=1e-5)
    features = layer_of(found).features
    assert np.allclose(features["length_angstrom"], 2 * features["length"])
    assert len(found.viewer.layers["edges"].data) > len(found.viewer.layers["detections"].data) > 40


def test_a_width_that_is_not_given_is_estimated(panel, qtbot):
    panel.find()
    qtbot.waitUntil(lambda: not panel.busy, timeout=120_000)
    assert 9 < panel.sheet.opened.scale < 16  # of sharp flat bars up to 1.55 times the width
    assert panel.sheet.opened.polarity == "dark"


def test_what_is_drawn_is_snapped_and_accepted(found, qtbot):
    start, end = LINES[0]
    drawn(found, [start, (start + end) / 2 + [0, 3], end])
    qtbot.waitUntil(lambda: statuses(found).count("accepted") == 1)
    assert len(layer_of(found).data) == len(found.sheet.history.now) == 4
    assert len(layer_of(found).data[-1]) > 50
    found.undo()
    assert len(layer_of(found).data) == 3


def test_a_click_that_is_no_line_leaves_nothing(found, qtbot):
    drawn(found, [[50.0, 50.0], [50.0, 50.0]])
    qtbot.waitUntil(lambda: len(layer_of(found).data) == 3)
    assert len(found.sheet.history.now) == 3


def test_the_selected_are_decided_else_that_under_the_cursor(found):
    layer_of(found).selected_data = {0, 2}
    found.accept()
    assert statuses(found) == ["found", "accepted", "accepted"]
    found.viewer.cursor.position = tuple(layer_of(found).data[0][5])
    found.reject()
    assert statuses(found) == ["accepted", "accepted", "rejected"]
    found.viewer.cursor.position = (0, 0)
    found._attempt(found.accept)
    assert "no filament is under the cursor" in found.status.value


def test_cut_join_and_undo(found, warned):
    line = layer_of(found).data[0]
    found.viewer.cursor.position = tuple(line[len(line) // 2])
    found.cut()
    assert len(layer_of(found).data) == 4
    layer_of(found).selected_data = {2, 3}
    found.join()
    assert len(layer_of(found).data) == 3
    found.undo()
    found.undo()
    assert sorted(map(len, layer_of(found).data)) == sorted(len(t.line) for t in found.sheet.opened.traces())
    for _ in range(2):
        found._attempt(found.undo)
    assert len(layer_of(found).data) == 0
    assert warned[-1] == "nothing to undo"
    found._attempt(found.join)
    assert warned[-1].startswith("select two filaments to join")


def test_what_is_deleted_or_moved_by_napari_is_taken_over(found, qtbot):
    layer = layer_of(found)
    layer.selected_data = {1}
    layer.remove_selected()
    qtbot.waitUntil(lambda: len(found.sheet.history.now) == 2)
    found.undo()
    assert len(layer.data) == 3


@pytest.mark.parametrize("name", ACTIONS)
def test_every_action_has_its_key(found, name):
    key = ACTIONS[name][0]
    assert any(str(bound).upper().replace("CTRL+", "CONTROL-") == key.upper() for bound in layer_of(found).keymap)
    assert key in found.buttons[name].text


def test_saved_and_open_again(found, folder, qtbot):
    layer_of(found).selected_data = {0, 1}
    found.accept()
    found.viewer.layers["ignore"].add_polygons([np.array([[0, 0], [0, 50], [50, 50], [50, 0.0]])])
    found.save()
    assert found.status.value.endswith("a.grace: 2 accepted, 1 found")
    assert {path.suffix for path in (folder / "annotated").iterdir()} == {".grace", ".star", ".box", ".cbox"}
    found.chosen.value = "b"
    qtbot.waitUntil(lambda: found.sheet.path.stem == "b", timeout=60_000)
    assert len(layer_of(found).data) == len(found.viewer.layers["ignore"].data) == 0
    found.chosen.value = "a"
    assert statuses(found) == ["found", "accepted", "accepted"]
    assert len(found.viewer.layers["ignore"].data) == 1
    again = Panel(napari.components.ViewerModel(), folder)
    qtbot.waitUntil(lambda: again.sheet is not None, timeout=60_000)
    assert sorted(statuses(again)) == ["accepted", "accepted", "found"]
    assert len(again.viewer.layers["ignore"].data) == 1


def test_a_layer_that_was_removed_comes_back_with_the_micrograph(found, folder, qtbot):
    found.viewer.layers.remove("filaments")
    found._attempt(found.accept)
    assert "the layer filaments was removed" in found.status.value
    for name in "ba":
        found.chosen.value = name
        qtbot.waitUntil(lambda name=name: found.sheet.path.stem == name, timeout=60_000)
    assert statuses(found) == ["found"] * 3


def test_what_is_found_late_is_not_shown_in_another_micrograph(found, qtbot):
    found.chosen.value = "b"
    qtbot.waitUntil(lambda: found.sheet.path.stem == "b", timeout=60_000)
    found.find()
    found.chosen.value = "a"
    qtbot.wait(3000)
    assert (found.sheet.path.stem, statuses(found)) == ("a", ["found"] * 3)


def test_a_mask_is_saved_as_in_grace(found, folder, qtbot):
    found.mask()
    found.viewer.layers["mask"].data[:, :256] = 1
    found.save()
    saved = io.read_grace(folder / "annotated" / "a.grace")
    assert saved.annotation[:, :256].all()
    assert not saved.annotation[:, 256:].any()
    found.chosen.value = "b"
    qtbot.waitUntil(lambda: found.sheet.path.stem == "b", timeout=60_000)
    assert not found.viewer.layers["mask"].data.any()


def test_what_was_decided_is_saved_when_the_window_goes(found, folder):
    found.leave()
    assert not (folder / "annotated").exists()
    layer_of(found).selected_data = {0, 1, 2}
    found.accept()
    found.leave()
    assert (
        len(json.loads((folder / "annotated" / "a.grace" / "metadata.json").read_text())["grace_annotate"]["traces"])
        == 3
    )


def test_next_opens_another_one_with_what_was_found(found, qtbot):
    layer_of(found).selected_data = {0}
    found.accept()
    found.save()
    found.next()
    qtbot.waitUntil(lambda: not found.busy, timeout=120_000)
    assert (found.sheet.path.stem, found.chosen.value) == ("b", "b")
    assert len(layer_of(found).data) == 3
    layer_of(found).selected_data = {0}
    found.reject()
    found.save()
    found._attempt(found.next)
    assert found.status.value == "every micrograph of the folder is annotated"


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda p, d: setattr(p.folder, "value", d / "none"), "none: no such folder"),
        (lambda p, d: setattr(p.folder, "value", d.parent), "no images"),
        (lambda p, d: p._attempt(p.save), "nothing is decided"),
        (lambda p, d: p._attempt(p.train), "nothing is annotated yet"),
        (
            lambda p, d: (setattr(p.checkpoint, "value", "none.ckpt"), p._attempt(p.find)),
            "none.ckpt: no such checkpoint",
        ),
        (lambda p, d: (setattr(p.detections, "value", module.FILE), p._attempt(p.find)), "no detections of a"),
    ],
)
def test_what_is_wrong_is_said_in_the_window(found, folder, warned, qtbot, spoil, expected):
    spoil(found, folder)
    qtbot.waitUntil(lambda: any(expected in message for message in warned), timeout=60_000)
    assert len(layer_of(found).data) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_is_named(found, folder, warned):
    folder.chmod(0o500)
    layer_of(found).selected_data = {0}
    found.accept()
    found._attempt(found.save)
    folder.chmod(0o700)
    assert "annotated" in warned[-1]
    assert "accepted" in statuses(found)


def test_detections_of_another_image_are_refused(found, folder, warned, qtbot):
    (folder / "a.csv").write_text("x,y\n5000,5000\n")
    found.detections.value = module.FILE
    found.find()
    qtbot.waitUntil(lambda: bool(warned), timeout=60_000)
    assert "a.csv" in warned[-1]


def test_what_is_under_the_cursor_is_attempt(found):
    place = layer_of(found).data[1][7]
    found._hover(found.viewer, SimpleNamespace(position=tuple(place)))
    assert re.fullmatch(r"filament 2: status found, length \d+.*, probability .*, curvature .*", found.viewer.status)


def test_the_low_pass_smooths_what_is_seen_only(found, qtbot):
    before = found.viewer.layers["micrograph"].data
    found.low_pass.value = 40.0  # Angstrom, 20 pixels
    qtbot.waitUntil(lambda: found.viewer.layers["micrograph"].data.std() < 0.8 * before.std(), timeout=60_000)
    assert np.array_equal(found.sheet.image[0], before)


def test_a_stopped_search_changes_nothing(found, qtbot):
    found.find()
    found.stop()
    qtbot.wait(500)
    assert found.status.value == "stopped"
    assert len(found.sheet.history.before) == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("xvfb-run") is None, reason="needs Xvfb")
def test_the_whole_way_in_a_real_window(folder, tmp_path):
    """Open, find, correct, save, train two epochs, find again."""
    script = Path(__file__).with_name("real_window.py")
    command = ["xvfb-run", "-a", "-s", "-screen 0 1600x1000x24", sys.executable, str(script), str(folder)]
    surroundings = {key: value for key, value in os.environ.items() if key != "QT_QPA_PLATFORM"}
    run = subprocess.run(
        [*command, str(tmp_path)], env=surroundings, capture_output=True, text=True, timeout=600, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert len(list(tmp_path.glob("*.png"))) == 3
