import errno
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import starfile

from grace_lightning import io
from grace_lightning.errors import InputError, InputWarning
from grace_lightning.io import Filament

STAR_COLUMNS = [
    "rlnMicrographName",
    "rlnCoordinateX",
    "rlnCoordinateY",
    "rlnHelicalTubeID",
    "rlnAngleTiltPrior",
    "rlnAnglePsiPrior",
    "rlnHelicalTrackLengthAngst",
    "rlnAnglePsiFlipRatio",
    "rlnAutopickFigureOfMerit",
]


def filament(path, score=None, first_node=0, closed=False):
    path = np.asarray(path, dtype=np.float64)
    score = np.full(len(path), 0.5) if score is None else np.asarray(score)
    return Filament(path, score, np.arange(first_node, first_node + len(path)), closed)


def line(degrees, length=100.0, start=(200.0, 300.0), nodes=6):
    """Nodes at uneven distances along a straight line; ``degrees`` from the x axis towards y, which points down."""
    at = np.linspace(0, 1, nodes) ** 1.5 * length
    return np.asarray(start) + np.outer(at, [np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])


def ring(radius=100.0, nodes=40):
    angles = np.arange(nodes) * 2 * np.pi / nodes
    return 500 + radius * np.column_stack([np.cos(angles), np.sin(angles)])


def gaps(points):
    return np.hypot(*np.diff(points, axis=0).T)


# ---- equal distances ------------------------------------------------------------------------------------------------


def test_resampling_counts_the_way_along_the_path_from_its_first_point():
    corner = [[0, 0], [10, 0], [10, 10]]
    assert io.resample(np.array(corner), 4).tolist() == [[0, 0], [4, 0], [8, 0], [10, 2], [10, 6], [10, 10]]


def test_the_rest_beyond_the_last_full_step_is_left_out():
    assert io.resample(np.array([[0, 0], [10, 0]]), 4).tolist() == [[0, 0], [4, 0], [8, 0]]
    assert io.resample(np.array([[0, 0], [10, 0]]), 11).tolist() == [[0, 0]]


def test_closed_path_goes_round_and_no_two_points_come_too_close():
    square = np.array([[0, 0], [10, 0], [10, 10], [0, 10]])
    assert io.resample(square, 10, closed=True).tolist() == square.tolist()
    assert io.resample(square, 20, closed=True).tolist() == [[0, 0], [10, 10]]
    points = io.resample(square, 11, closed=True)  # 40 = 2 x 11 + 18
    assert points.tolist() == [[0, 0], [10, 1], [8, 10]]
    assert io.resample(square, 99, closed=True).tolist() == [[0, 0]]


@pytest.mark.parametrize("smoothing", [0, 8])
def test_coincident_points(smoothing):
    twice = np.array([[0, 0], [0, 0], [5, 0], [5, 0], [10, 0], [10, 0]])
    points = io.resample(twice, 5, smoothing=smoothing)
    assert points[:, 1].tolist() == [0] * len(points)
    np.testing.assert_allclose(gaps(points), 5)
    assert io.resample(np.array([[3, 4]]), 5, smoothing=smoothing).tolist() == [[3, 4]]
    assert io.resample(np.array([[3, 4]] * 4), 5, closed=True, smoothing=smoothing).tolist() == [[3, 4]]


def test_smoothing_takes_jitter_away_and_leaves_long_bends():
    x = np.arange(0, 1000, 20.0)
    bend = 40 * np.sin(2 * np.pi * x / 800)
    generator, errors = np.random.default_rng(0), []
    for smoothing in (0, io.SMOOTHING):
        jittered = [np.column_stack([x, bend + 3 * generator.standard_normal(len(x))]) for _ in range(20)]
        found = np.concatenate([io.resample(path, 5, smoothing=smoothing) for path in jittered])
        errors.append(np.sqrt(np.mean((found[:, 1] - 40 * np.sin(2 * np.pi * found[:, 0] / 800)) ** 2)))
    assert errors[1] < 0.65 * errors[0]
    exact = io.resample(np.column_stack([x, bend]), 5, smoothing=io.SMOOTHING)
    np.testing.assert_allclose(exact[:, 1], 40 * np.sin(2 * np.pi * exact[:, 0] / 800), atol=0.5)


def test_two_rows_of_points_on_a_thick_filament_become_its_middle():
    zigzag = np.column_stack([np.arange(40) * 10.0, np.tile([-6.0, 6.0], 20)])
    table = io.segments([filament(zigzag)], pixel_size=1, spacing=10)
    inside = table.iloc[5:-5]
    assert inside["y"].abs().max() < 0.5
    assert inside["psi"].abs().max() < 3
    assert 380 < table["track_length"].iloc[-1] < 410  # the polyline is 609 long


# ---- segments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("degrees", "psi"),
    [(0, 0), (30, -30), (45, -45), (90, -90), (135, -135), (180, -180), (-30, 30), (-90, 90), (-120, 120)],
)
@pytest.mark.parametrize("smoothing", [0, 8])
@pytest.mark.parametrize("nodes", [2, 3, 4, 20])
def test_psi_of_lines_is_counter_clockwise_on_the_screen(degrees, psi, smoothing, nodes):
    table = io.segments([filament(line(degrees, nodes=nodes))], pixel_size=1, spacing=10, smoothing=smoothing)
    turned = (table["psi"] - psi + 180) % 360 - 180
    assert turned.abs().max() < 1e-6


def test_psi_is_never_minus_zero():
    assert np.signbit(io.relion_psi(np.array([[1.0, 0.0], [2.0, 0.0]]))).tolist() == [False, False]


def test_segments_of_a_line_are_exact():
    score = [0, 1, 1, 1, 1, 0.5]
    table = io.segments([filament(line(0), score)], pixel_size=2.5, spacing=50)  # 20 px
    assert table["track_length"].tolist() == [0, 50, 100, 150, 200, 250]
    np.testing.assert_allclose(table["x"], 200 + np.arange(6) * 20)
    np.testing.assert_allclose(table["y"], 300)
    assert table["confidence"].iloc[[0, 1, -1]].tolist() == pytest.approx([0, 1, 0.5])
    assert table["filament"].tolist() == [0] * 6


@pytest.mark.parametrize("smoothing", [0, 8])
def test_segments_of_a_ring_have_one_distance_and_turn_evenly(smoothing):
    table = io.segments([filament(ring(), closed=True)], pixel_size=2, spacing=10, smoothing=smoothing)
    assert len(table) == 125  # 628 px less the chords, by 5 px
    points = table[["x", "y"]].to_numpy()
    np.testing.assert_allclose(gaps(points), 5, rtol=1e-3 if smoothing else 1e-2)
    assert 5 <= np.hypot(*(points[-1] - points[0])) < 10
    np.testing.assert_allclose(np.hypot(*(points - 500).T), 100, atol=0.05 if smoothing else 0.32)
    around = np.degrees(np.arctan2(points[:, 1] - 500, points[:, 0] - 500))
    off = (table["psi"] + around + 90 + 180) % 360 - 180  # the tangent is 90 degrees ahead, towards y
    assert off.abs().max() < (0.2 if smoothing else 1)


def test_psi_of_jittered_lines():
    generator = np.random.default_rng(0)
    errors = {0: [], 8: []}
    for _ in range(20):
        jittered = line(-20, length=600, nodes=30) + 2 * generator.standard_normal((30, 2))
        for smoothing in errors:
            table = io.segments([filament(jittered)], pixel_size=1, spacing=5, smoothing=smoothing)
            errors[smoothing].append(((table["psi"] - 20) ** 2).mean())
    rough, smooth = (np.sqrt(np.mean(errors[smoothing])) for smoothing in (0, 8))
    assert smooth < 3 < rough


def test_order_of_the_filaments_is_kept_and_each_begins_anew():
    table = io.segments([filament(line(0)), filament(line(90, 25))], pixel_size=1, spacing=50)
    assert table["filament"].tolist() == [0, 0, 0, 1]
    assert table["track_length"].tolist() == [0, 50, 100, 0]


@pytest.mark.parametrize("value", [0, -1.0, np.nan, np.inf])
def test_bad_numbers(value):
    for options, word in (({"pixel_size": value}, "pixel size"), ({"spacing": value}, "spacing")):
        with pytest.raises(InputError, match=rf"^{word} of .*above 0$"):
            io.segments([], **{"pixel_size": 1, "spacing": 10, **options})


@pytest.mark.parametrize(
    "path", [np.zeros((0, 2)), np.zeros((3, 3)), np.array([[0, np.nan]])], ids=["none", "3d", "nan"]
)
def test_bad_paths(path):
    with pytest.raises(InputError, match="finite x and y"):
        io.resample(path, 5)


# ---- curvature ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0, 8])
@pytest.mark.parametrize("radius", [50, 400])
def test_curvature_of_a_circle_is_one_by_its_radius(radius, smoothing):
    closed = io.mean_curvature(ring(radius), closed=True, smoothing=smoothing)
    half = io.mean_curvature(ring(radius, 80)[:41], smoothing=smoothing)
    assert [closed * radius, half * radius] == pytest.approx([1, 1], rel=3e-3)


def test_curvature_does_not_know_left_from_right():
    wave = np.column_stack([np.arange(0, 801, 10.0), 30 * np.sin(np.arange(0, 801, 10.0) * 2 * np.pi / 400)])
    assert io.mean_curvature(wave) == pytest.approx(io.mean_curvature(wave * [1, -1]))
    assert io.mean_curvature(wave) > 1e-3


def test_curvature_of_lines_and_of_too_few_points():
    assert io.mean_curvature(line(33, nodes=20)) == pytest.approx(0, abs=1e-9)
    assert io.mean_curvature(line(33, nodes=2)) == 0
    assert io.mean_curvature(line(33, nodes=1)) == 0


# ---- RELION ---------------------------------------------------------------------------------------------------------


def test_star(tmp_path):
    table = io.segments([filament(line(0)), filament(line(90))], pixel_size=2, spacing=100)
    io.write_star(tmp_path / "out/a.star", table, "Micrographs/a b.mrc")
    found = starfile.read(tmp_path / "out/a.star")
    assert list(found) == STAR_COLUMNS
    assert found["rlnMicrographName"].unique().tolist() == ["Micrographs/a b.mrc"]
    assert found["rlnHelicalTubeID"].tolist() == [1, 1, 1, 2, 2, 2]
    assert found["rlnAngleTiltPrior"].tolist() == [90] * 6
    assert found["rlnAnglePsiPrior"].tolist() == pytest.approx([0, 0, 0, -90, -90, -90], abs=1e-6)
    assert found["rlnHelicalTrackLengthAngst"].tolist() == [0, 100, 200] * 2
    assert found["rlnAnglePsiFlipRatio"].tolist() == [0.5] * 6
    assert found["rlnAutopickFigureOfMerit"].tolist() == [0.5] * 6
    assert found["rlnCoordinateX"].tolist() == [200, 250, 300, 200, 200, 200]
    assert "-0.000000" not in (tmp_path / "out/a.star").read_text()


def test_star_is_read_as_detections(tmp_path):
    table = io.segments([filament(ring(), closed=True)], pixel_size=2, spacing=10)
    io.write_star(tmp_path / "a.star", table, "a.mrc")
    found = io.read_detections(tmp_path / "a.star")
    np.testing.assert_allclose(found[["x", "y", "confidence"]], table[["x", "y", "confidence"]], atol=1e-6)


def relion_ends(path):
    """How RELION's convertEmanHelicalTubeCoordsToMetaDataTable takes start and end from a .box file."""
    rows = [row.split() for row in path.read_text().splitlines()]
    assert [len(row) for row in rows] == [5] * len(rows)
    assert [int(row[4]) for row in rows] == [-1, -2] * (len(rows) // 2)
    assert all(row[2] == row[3] for row in rows)
    half = np.array([[float(row[2]) / 2] for row in rows])
    start, end = np.split((np.array([row[:2] for row in rows], dtype=float) + half).reshape(-1, 2, 2), 2, axis=1)
    along = (end - start) / np.linalg.norm(end - start, axis=2, keepdims=True)
    return start + half[::2, None] * along, end - half[::2, None] * along


def test_box_of_start_and_end(tmp_path):
    io.write_box_ends(tmp_path / "a.box", [filament([[10, 20], [50, 20], [110, 20.0]]), filament(line(-45))])
    assert (tmp_path / "a.box").read_text().splitlines()[:2] == ["9 19 2 2 -1", "109 19 2 2 -2"]
    found = io.read_detections(tmp_path / "a.box")
    np.testing.assert_allclose(found[["x", "y"]], [[10, 20], [110, 20], *line(-45)[[0, -1]]], atol=1e-6)
    starts, ends = relion_ends(tmp_path / "a.box")
    assert starts[0].tolist() == [[11, 20]]  # a pixel is cut off either end
    assert ends[0].tolist() == [[109, 20]]


def test_closed_filaments_have_no_ends(tmp_path):
    with pytest.warns(InputWarning, match=r"a\.box: 1 of 2 filaments are closed"):
        io.write_box_ends(tmp_path / "a.box", [filament(ring(), closed=True), filament(line(0))])
    assert len(io.read_detections(tmp_path / "a.box")) == 2


# ---- crYOLO ---------------------------------------------------------------------------------------------------------


def test_cbox(tmp_path):
    table = pd.DataFrame({"x": [60, 0.5], "y": [50, 5], "confidence": [0.5, 0.25], "filament": [0, 1], "psi": [1, 2]})
    io.write_cbox(tmp_path / "a.cbox", table, box_size=40)
    assert (tmp_path / "a.cbox").read_text().partition("_filamentid #12\n")[2].splitlines()[:2] == [
        "40.0 30.0 <NA> 40.0 40.0 1.0 <NA> <NA> 0.5 <NA> <NA> 0.0",
        "-19.5 -15.0 <NA> 40.0 40.0 1.0 <NA> <NA> 0.25 <NA> <NA> 1.0",
    ]
    found = io.read_detections(tmp_path / "a.cbox")
    names = ["x", "y", "confidence", "filament"]
    pd.testing.assert_frame_equal(found[names], table[names], check_dtype=False)
    blocks = starfile.read(tmp_path / "a.cbox", always_dict=True)
    assert list(blocks) == ["global", "cryolo", "cryolo_include"]
    assert float(blocks["global"]["cbox_format_version"]) == 1
    assert list(blocks["cryolo"]) == list(io.CBOX_COLUMNS)


def test_cbox_of_points_alone(tmp_path):
    io.write_cbox(tmp_path / "a.cbox", pd.DataFrame({"x": [60], "y": [50]}), box_size=40)
    found = io.read_detections(tmp_path / "a.cbox")
    assert found[["x", "y", "confidence"]].to_numpy().tolist() == [[60, 50, 1]]
    assert "filament" not in found


def test_cbox_keeps_sizes_of_its_own(tmp_path):
    table = pd.DataFrame({"x": [60], "y": [50], "Width": [20], "Height": [10]})
    io.write_cbox(tmp_path / "a.cbox", table, box_size=999)
    assert io.read_detections(tmp_path / "a.cbox")[["x", "y", "Width", "Height"]].to_numpy().tolist() == [
        [60, 50, 20, 10]
    ]


def test_cbox_without_a_size(tmp_path):
    with pytest.raises(InputError, match=r"a\.cbox: boxes without Width"):
        io.write_cbox(tmp_path / "a.cbox", pd.DataFrame({"x": [60], "y": [50]}))
    assert not list(tmp_path.iterdir())


@pytest.mark.shared
def test_real_cbox_files_come_back(shared, tmp_path):
    files = sorted((shared / "data/formats/cbox").glob("*/*.cbox"))
    assert len(files) == 4
    for file in files:
        before = io.read_detections(file)
        io.write_cbox(tmp_path / file.name, before)
        after = io.read_detections(tmp_path / file.name)
        pd.testing.assert_frame_equal(after, before, check_exact=True)
        assert ("filament" in after) == file.parent.name.startswith("filament")


@pytest.mark.shared
def test_real_filaments_keep_their_course(shared):
    boxes = io.read_detections(shared / "data/formats/cbox/filament_cbox_2d/ActLifeact_03047.cbox")
    traced = [filament(rows[["x", "y"]]) for _, rows in boxes.groupby("filament")]
    table = io.segments(traced, pixel_size=1, spacing=25)
    np.testing.assert_allclose(gaps(table[["x", "y"]].to_numpy()), 25, atol=1e-3)
    chord = traced[0].path[-1] - traced[0].path[0]
    assert table["psi"].mean() == pytest.approx(-np.degrees(np.arctan2(chord[1], chord[0])), abs=0.1)


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_filaments_table(tmp_path):
    table = io.filaments_table([filament(line(0, nodes=3), first_node=7), filament(line(90, nodes=2), first_node=8)])
    assert table.dtypes.astype(str).to_dict() == {
        **dict.fromkeys(["filament", "order", "node"], "int64"),
        **dict.fromkeys(["x", "y"], "float32"),
    }
    assert table[["filament", "order", "node"]].to_numpy().tolist() == [
        [0, 0, 7],
        [0, 1, 8],
        [0, 2, 9],
        [1, 0, 8],
        [1, 1, 9],
    ]
    np.testing.assert_allclose(table[["x", "y"]].iloc[-1], [200, 400])
    table.to_parquet(tmp_path / "filaments.parquet", index=False)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "filaments.parquet"), table)


def test_filaments_summary(tmp_path):
    score = [0.25, 0.5, 1, 1, 0.5, 0.5]
    traced = [filament(line(0), score), filament(ring(), closed=True)]
    table = io.filaments_summary("451", traced, pixel_size=2)
    assert table["image"].tolist() == ["451", "451"]
    assert table["filament"].tolist() == [0, 1]
    assert table["nodes"].tolist() == [6, 40]
    assert table["length"].tolist() == pytest.approx([100, 200 * np.pi], rel=1e-3)
    assert table["length_angstrom"].tolist() == pytest.approx([200, 400 * np.pi], rel=1e-3)
    assert table["mean_probability"].tolist() == [0.625, 0.5]
    assert table["mean_curvature"].tolist() == pytest.approx([0, 0.01], rel=1e-3, abs=1e-9)
    assert table["mean_curvature_per_angstrom"].tolist() == pytest.approx([0, 0.005], rel=1e-3, abs=1e-9)
    ends = table[["start_x", "start_y", "end_x", "end_y"]]
    assert ends.iloc[0].tolist() == [200, 300, 300, 300]
    assert table["closed"].tolist() == [False, True]
    unknown = io.filaments_summary("451", traced)
    assert unknown["length_angstrom"].isna().all()
    assert unknown["length"].tolist() == table["length"].tolist()


# ---- nothing to write, and nowhere to write it ----------------------------------------------------------------------

WRITERS = {
    "a.star": lambda path, found: io.write_star(path, io.segments(found, pixel_size=1, spacing=10), "a.mrc"),
    "a.box": io.write_box_ends,
    "a.cbox": lambda path, found: io.write_cbox(path, io.segments(found, pixel_size=1, spacing=10), box_size=40),
}


@pytest.mark.parametrize("name", WRITERS)
def test_no_filaments_are_a_readable_file(tmp_path, name):
    WRITERS[name](tmp_path / name, [])
    found = io.read_detections(tmp_path / name)
    assert len(found) == 0
    assert {"x", "y"} <= set(found)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_no_filaments_are_empty_tables():
    assert list(io.filaments_table([])) == ["filament", "order", "node", "x", "y"]
    assert list(io.filaments_summary("a", [])) == list(io.filaments_summary("a", [filament(line(0))]))
    full = io.segments([filament(line(0))], pixel_size=1, spacing=10)
    assert io.segments([], pixel_size=1, spacing=10).dtypes.to_dict() == full.dtypes.to_dict()


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("there", [False, True])
def test_full_disk_leaves_what_was_there(tmp_path, monkeypatch, name, there):
    if there:
        (tmp_path / name).write_text("before")

    def half(self, text, *_, **__):
        with self.open("w") as file:
            file.write(text[: len(text) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(InputError, match=rf"^\S*{name}: cannot be written \(No space left on device\)$"):
        WRITERS[name](tmp_path / name, [filament(line(0))])
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == ([(name, "before")] if there else [])


@pytest.mark.parametrize("name", WRITERS)
def test_no_place_to_write(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        WRITERS[name](tmp_path / "file" / name, [filament(line(0))])


@pytest.mark.parametrize("name", WRITERS)
def test_a_written_file_is_replaced(tmp_path, name):
    WRITERS[name](tmp_path / name, [filament(line(0)), filament(line(90))])
    WRITERS[name](tmp_path / name, [filament(line(0))])
    assert len(io.read_detections(tmp_path / name)) == (2 if name == "a.box" else 11)
    assert [path.name for path in tmp_path.iterdir()] == [name]
