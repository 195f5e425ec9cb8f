import re
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile
import tifffile
from helpers import LINES, filament, line, line_scene, ring

from grace_lightning import io
from grace_lightning.errors import InputError
from grace_lightning.graph import Filament


def cut(*filaments, pixel_size=1.0, spacing=10.0):
    return io.segments(filaments, pixel_size=pixel_size, spacing=spacing)


def test_segments_of_lines_are_exact():
    table = cut(filament(line(0), [0, 1, 1, 1, 1, 0.5]), filament(line(90, 25)), pixel_size=2.5, spacing=50)  # 20 px
    assert table["filament"].tolist() == [0] * 6 + [1] * 2
    assert table["track_length"].tolist() == [0, 50, 100, 150, 200, 250, 0, 50]
    np.testing.assert_allclose(table["x"], [*range(200, 301, 20), 200, 200], rtol=1e-6)
    np.testing.assert_allclose(table["y"], [300] * 7 + [320], rtol=1e-6)
    assert table["confidence"].iloc[[0, 1, 5]].tolist() == pytest.approx([0, 1, 0.5], abs=1e-5)


@pytest.mark.parametrize(("spacing", "at"), [(4, [0, 4, 8]), (5, [0, 5, 10]), (11, [0])])
def test_the_rest_beyond_the_last_full_step_is_left_out(spacing, at):
    assert cut(filament([[0, 0], [10, 0]]), spacing=spacing)[["x", "y"]].to_numpy().tolist() == [[x, 0] for x in at]


def test_coincident_points():
    table = cut(filament([[0, 0], [0, 0], [5, 0], [5, 0], [10, 0], [10, 0]]), spacing=5)
    np.testing.assert_allclose(np.diff(table[["x", "y"]], axis=0), [[5, 0], [5, 0]], atol=1e-5)
    assert cut(filament([[3, 4]]))[["x", "y", "psi"]].to_numpy().tolist() == [[3, 4, 0]]


@pytest.mark.parametrize("degrees", [0, 30, 135, 180, -120])
@pytest.mark.parametrize("nodes", [2, 20])
def test_psi_of_lines_is_counter_clockwise_on_the_screen(degrees, nodes):
    turned = (cut(filament(line(degrees, nodes=nodes)))["psi"] + degrees + 180) % 360 - 180
    assert turned.abs().max() < 1e-3  # float32 paths


def test_segments_of_a_ring_have_one_distance_and_turn_evenly():
    table = cut(filament(ring(), closed=True), pixel_size=2)
    assert len(table) == 125  # 628 px by 5 px, of which the last gap takes the rest
    points = table[["x", "y"]].to_numpy()
    np.testing.assert_allclose(np.hypot(*np.diff(points, axis=0).T), 5, rtol=1e-3)
    assert 5 <= np.hypot(*(points[-1] - points[0])) < 10
    np.testing.assert_allclose(np.hypot(*(points - 500).T), 100, atol=0.05)
    around = np.degrees(np.arctan2(points[:, 1] - 500, points[:, 0] - 500))
    off = (table["psi"] + around + 90 + 180) % 360 - 180  # the tangent is 90 degrees ahead, towards y
    assert off.abs().max() < 0.2
    assert len(cut(filament(ring(), closed=True), spacing=9999)) == 1


def test_long_bends_stay_as_they_are_and_two_rows_of_points_become_their_middle():
    x = np.arange(0, 1000, 20.0)
    table = cut(filament(np.column_stack([x, 40 * np.sin(2 * np.pi * x / 800)])), spacing=5)
    np.testing.assert_allclose(table["y"], 40 * np.sin(2 * np.pi * table["x"] / 800), atol=0.5)
    table = cut(filament(np.column_stack([np.arange(40) * 10.0, np.tile([-6.0, 6.0], 20)])))
    inside = table.iloc[5:-5]
    assert inside["y"].abs().max() < 0.5
    assert inside["psi"].abs().max() < 3
    assert 380 < table["track_length"].iloc[-1] < 410  # the polyline is 609 long


def test_star(tmp_path):
    table = cut(filament(line(0)), filament(line(90)), pixel_size=2, spacing=100)
    io.write_star(tmp_path / "out/a.star", table, "Micrographs/a b.mrc")
    expected = {
        "rlnMicrographName": ["Micrographs/a b.mrc"] * 6,
        "rlnCoordinateX": [200.0, 250, 300, 200, 200, 200],
        "rlnCoordinateY": [300.0, 300, 300, 300, 350, 400],
        "rlnHelicalTubeID": [1, 1, 1, 2, 2, 2],
        "rlnAngleTiltPrior": [90.0] * 6,
        "rlnAnglePsiPrior": [0.0, 0, 0, -90, -90, -90],
        "rlnHelicalTrackLengthAngst": [0.0, 100, 200] * 2,
        "rlnAnglePsiFlipRatio": [0.5] * 6,
        "rlnAutopickFigureOfMerit": [0.5] * 6,
    }
    pd.testing.assert_frame_equal(starfile.read(tmp_path / "out/a.star"), pd.DataFrame(expected), atol=1e-4)
    assert "-0.000000" not in (tmp_path / "out/a.star").read_text()
    found = io.read_detections(tmp_path / "out/a.star")
    np.testing.assert_allclose(found[["x", "y", "confidence"]], table[["x", "y", "confidence"]], atol=1e-6)


ODD = ["p#hash.mrc", "#x.mrc", "_x.mrc", "data_x.mrc", "loop_.mrc", "my  pic.mrc", ";x.mrc", "it's.mrc", 'a "b".mrc']


@pytest.mark.parametrize("micrograph", ODD)
def test_a_star_file_can_be_read_again_whatever_the_image_is_called(micrograph, tmp_path):
    table = cut(filament(line(0)))
    io.write_star(tmp_path / "a.star", table, micrograph)
    found = io.read_detections(tmp_path / "a.star")
    np.testing.assert_allclose(found[["x", "y"]], table[["x", "y"]], atol=1e-6)
    named = set(found["rlnMicrographName"]) if "rlnMicrographName" in found else set()
    assert named == (set() if "'" in micrograph or '"' in micrograph else {micrograph})


def test_box_of_start_and_end(tmp_path):
    open_ones = [filament([[10, 20], [50, 20], [110, 20.0]]), filament(line(-45)), filament([[1, 0.3], [7, 1]])]
    io.write_box_ends(tmp_path / "a.box", [filament(ring(), closed=True), *open_ones])  # a closed one has no ends
    # corner, width twice, and -1 for a start or -2 for an end
    lines = (tmp_path / "a.box").read_text().splitlines()
    assert [*lines[:2], *lines[4:]] == ["9 19 2 2 -1", "109 19 2 2 -2", "0 -1 2 2 -1", "6 0 2 2 -2"]
    found = io.read_detections(tmp_path / "a.box")
    np.testing.assert_allclose(found[["x", "y"]][2:4], line(-45)[[0, -1]], atol=0.5)
    for text in (tmp_path / "a.box").read_text().split():  # EMAN's reader takes nothing else
        int(text)


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
    assert list(starfile.read(tmp_path / "a.cbox", always_dict=True)) == ["global", "cryolo", "cryolo_include"]
    io.write_cbox(tmp_path / "a.cbox", table[["x", "y"]], box_size=40)
    found = io.read_detections(tmp_path / "a.cbox")
    assert found[["x", "y", "confidence"]].to_numpy().tolist() == [[60, 50, 1], [0.5, 5, 1]]


@pytest.mark.shared
def test_a_real_cbox_file_comes_back(shared, tmp_path):
    file = shared / "data/formats/cbox/filament_cbox_2d/ActLifeact_02885.cbox"
    before = io.read_detections(file)
    io.write_cbox(tmp_path / "a.cbox", before, box_size=100)
    written, original = (tmp_path / "a.cbox").read_text().splitlines(), file.read_text().splitlines()
    assert written[:21] == original[:21]
    assert len(written) == len(original)
    pd.testing.assert_frame_equal(io.read_detections(tmp_path / "a.cbox"), before)


def test_filaments_table_has_all_members_in_their_order():
    pos = np.array([[0, 0], [10, 1], [10, 1], [20, 2], [5, 9]], dtype=np.float32)
    first = Filament(pos[[0, 1, 3]], np.ones(3, "f4"), np.array([0, 1, 3]), np.array([0, 1, 2, 3]))
    second = Filament(pos[[4, 1]], np.ones(2, "f4"), np.array([4, 1]), np.array([4, 1, 2]))
    node = [0, 1, 2, 3, 4, 1, 2]
    expected = pd.DataFrame({"filament": [0, 0, 0, 0, 1, 1, 1], "order": [0, 1, 2, 3, 0, 1, 2], "node": node})
    pd.testing.assert_frame_equal(
        io.filaments_table([first, second], pos), expected.assign(x=pos[node, 0], y=pos[node, 1])
    )


def test_paths_come_back(tmp_path):
    traced = [filament(line(0), [0.25, 0.5, 1, 1, 0.5, 0.5]), filament(ring(), closed=True), filament([[3, 4]])]
    for given in (traced, []):
        io.paths_table(given).to_parquet(tmp_path / "paths.parquet")
        found = io.read_paths(tmp_path / "paths.parquet")
        assert len(found) == len(given)
        for one, other in zip(found, given, strict=True):
            assert (one.path.tolist(), one.score.tolist()) == (other.path.tolist(), other.score.tolist())
            assert (one.node.tolist(), one.closed) == (other.node.tolist(), other.closed)


WRITERS = {
    "a.star": lambda path, found: io.write_star(path, cut(*found), "a.mrc"),
    "a.box": io.write_box_ends,
    "a.cbox": lambda path, found: io.write_cbox(path, cut(*found), box_size=40),
}


# ---- into RELION ----------------------------------------------------------------------------------------------------


@pytest.fixture
def done(tmp_path, monkeypatch):
    """Return a function that makes an image and its results, as ``io.write_project`` takes them, in ``here``."""
    (tmp_path / "here/out").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")

    def make(image, pixels=None, pixel_size=1.0):
        image = Path(image)
        stem = Path("out", io.stem(image))
        WRITERS["a.star"](f"{stem}.star", [filament(line(0))])
        io.write_box_ends(f"{stem}.box", [filament(line(0))])
        image.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((1, 9, 9), np.float32) if pixels is None else pixels
        if image.suffix == ".mrc":
            mrcfile.write(image, pixels)
        else:
            tifffile.imwrite(image, pixels, photometric="rgb" if pixels.shape[-1] == 3 else "minisblack")
        return stem, image, pixel_size

    return make


def project():
    """Names of the files in ``relion``."""
    return {str(path.relative_to("relion")) for path in Path("relion").rglob("*") if path.is_file()}


SUFFIXES = {"coords_suffix_autopick.star", "coords_suffix.box", "micrographs.star"}


@pytest.mark.parametrize(
    ("image", "path", "coordinates"),
    [
        ("a.mrc", "a.mrc", "a"),
        ("mics/../mics/a.b.mrc", "mics/a.b.mrc", "mics/a.b"),
        ("MotionCorr/job002/sums/a.mrc", "MotionCorr/job002/sums/a.mrc", "sums/a"),
        ("job002/a.tif", "job002/a.tif", "a"),
        ("../there/a (1).mrc", "{here}/there/a (1).mrc", "{here}/there/a (1)"),
    ],
)
def test_coordinates_lie_where_relion_looks_for_them(image, path, coordinates, done, tmp_path):
    path, coordinates = path.format(here=tmp_path), coordinates.format(here=tmp_path).lstrip("/")
    stem, *rest = done(image)
    assert io.write_project(Path("relion"), [(stem, *rest)]) == {}
    assert starfile.read("relion/micrographs.star")["micrographs"]["rlnMicrographName"].tolist() == [path]
    assert project() == SUFFIXES | {f"{coordinates}_autopick.star", f"{coordinates}.box"}
    assert Path("relion", f"{coordinates}.box").read_text() == Path(f"{stem}.box").read_text()


def test_optics_groups_are_pixel_sizes(done):
    files = [done(f"{name}.mrc", pixel_size=size) for name, size in zip("abcd", (1.2, 0.8, None, 1.2), strict=True)]
    assert io.write_project(Path("relion"), files) == {}
    star = starfile.read("relion/micrographs.star")
    assert star["optics"]["rlnMicrographPixelSize"].tolist() == [1.2, 0.8]
    assert star["micrographs"].to_numpy().tolist() == [["a.mrc", 1], ["b.mrc", 2], ["d.mrc", 1]]


def test_what_is_gone_in_the_results_is_gone_in_the_project_and_other_files_stay(done):
    files = [done("a.mrc"), done("b.mrc")]
    io.write_project(Path("relion"), files)
    Path("relion/mine.txt").write_text("mine")
    Path("out/a.star").unlink()
    Path("out/a.box").unlink()
    Path("out/b.star").unlink()
    io.write_project(Path("relion"), files)
    assert project() == SUFFIXES | {"b.box", "mine.txt"}
    Path("out/b.box").unlink()
    io.write_project(Path("relion"), files)
    assert "micrographs.star" not in project()


def test_what_relion_cannot_read_is_left_out_and_named(done):
    zeros = np.zeros((3, 9, 9), np.float32)
    good = [done("a.mrc"), done("b.tif"), done("c.tif", zeros[0].astype(np.uint16))]
    bad = [done("stack.mrc", zeros), done("stack.tif", zeros), done("double.tif", zeros[0].astype(np.float64))]
    bad += [done("rgb.tif", np.zeros((9, 9, 3), np.uint8)), done("x.png"), done("x.mrc.gz"), done("my mics/x.mrc")]
    bad += [done(name) for name in ("p#hash.mrc", "_x.mrc", "it's.mrc", "two  blanks.mrc", "sums/job123.mrc")]
    bad.append((good[0][0], Path("gone.mrc"), 1.0))
    assert list(io.write_project(Path("relion"), good + bad)) == [path.name for _, path, _ in bad]
    listed = starfile.read("relion/micrographs.star")["micrographs"]["rlnMicrographName"]
    assert listed.tolist() == ["a.mrc", "b.tif", "c.tif"]


@pytest.mark.parametrize("name", WRITERS)
def test_no_filaments_are_a_readable_file(tmp_path, name):
    WRITERS[name](tmp_path / name, [])
    found = io.read_detections(tmp_path / name)
    assert len(found) == 0
    assert {"x", "y"} <= set(found)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", WRITERS)
def test_what_cannot_be_written_is_named_and_leaves_nothing_behind(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=rf"{name}: cannot be written"):
        WRITERS[name](tmp_path / name, [filament(line(0))])
    assert [path.name for path in tmp_path.iterdir()] == [name]


# ---- from where y counts in a TIFF file -----------------------------------------------------------------------------


FLIPPED = (".star", ".box", ".cbox")
WRITE = {
    ".csv": lambda path, table: table.to_csv(path, index=False),
    ".h5": io.write_detections,
    ".cbox": lambda path, table: io.write_cbox(path, table, box_size=10),
    ".star": lambda path, table: io.write_star(path, table.assign(filament=0, psi=0.0, confidence=1.0), "t.tif"),
    ".box": lambda path, table: np.savetxt(path, np.column_stack([table - 5, np.full((len(table), 2), 10)]), fmt="%d"),
}


@pytest.fixture
def scene(checkpoint, run):
    """Return a function that predicts a scene from a TIFF file with detections as RELION counts them."""
    image, pos = line_scene()
    Path("mics").mkdir()
    tifffile.imwrite("mics/t.tif", image)
    table = pd.DataFrame(pos, columns=["x", "y"])
    io.write_cbox("mics/t.cbox", table.assign(y=383 - table["y"]), box_size=20)

    def command(*keys):
        given = [f"checkpoint={checkpoint}", "image_dir=mics", "pixel_size=2", "export.png=false"]
        status, out, err = run("predict", *given, "trainer.accelerator=cpu", *keys)
        assert status == 0, err
        return out, err, pd.read_csv("predictions/filaments.csv")[["start_x", "start_y", "end_x", "end_y"]]

    return command


def test_files_of_other_programs_count_from_the_bottom_of_a_tiff_image(scene):
    out, _, ends = scene()
    assert "y in .star, .box, .cbox of TIFF images counts from the bottom" in out
    assert len(ends) == 3
    assert ends.sort_values("start_x").to_numpy() == pytest.approx(LINES.reshape(3, 4), abs=25)
    for suffix, tube in {".star": "rlnHelicalTubeID", ".cbox": "filament", ".box": None}.items():
        table = io.read_detections(f"predictions/t{suffix}")
        first = table.groupby(table[tube] if tube else table.index // 2)[["x", "y"]].first().to_numpy()
        expected = np.column_stack([ends["start_x"], 383 - ends["start_y"]])
        assert first == pytest.approx(expected, abs=3), suffix  # the smoothed path is that far from its first node


def test_tiff_origin_top_takes_files_as_they_are_and_is_part_of_what_an_image_was_done_with(scene):
    scene()
    _, err, _ = scene("io.tiff_origin=top")
    assert "skipped: 1 image," in err
    out, _, ends = scene("io.tiff_origin=top", "overwrite=true")
    assert "counts from the bottom" not in out
    first = io.read_detections("predictions/t.box")[["x", "y"]].to_numpy()[::2]
    assert first == pytest.approx(ends[["start_x", "start_y"]].to_numpy(), abs=0.5)


@pytest.mark.parametrize("suffix", [".star", ".box", ".cbox", ".csv", ".h5"])
def test_annotating_a_tiff_image(suffix, run):
    pos = pd.DataFrame({"x": [20.0, 70, 40], "y": [10.0, 30, 50]})
    tifffile.imwrite("t.tif", np.random.default_rng(0).normal(size=(64, 96)).astype(np.float32))
    mask = np.zeros((64, 96), np.uint8)
    mask[[10, 30, 50], [20, 70, 40]] = 1
    np.save("t.npy", mask)
    WRITE[suffix](f"t{suffix}", pos.assign(y=63 - pos["y"]) if suffix in FLIPPED else pos)
    status, out, err = run("annotate", "image_dir=.", "out_dir=annotated")
    assert (status, err) == (0, "")
    assert ("counts from the bottom" in out) == (suffix in FLIPPED)
    graph = io.read_grace("annotated/t.grace").graph
    assert graph.pos.tolist() == pos.to_numpy().tolist()
    assert graph.label("node").tolist() == [1, 1, 1]
    status, _, err = run("annotate", "image_dir=.", "out_dir=again", "io.tiff_origin=upside")
    assert status == 2
    assert re.match("grace-annotate: io.tiff_origin: 'upside', expected", err)


def test_a_sample_of_detections_alone(tmp_path):
    tifffile.imwrite(tmp_path / "t.tif", np.arange(64 * 96, dtype=np.float32).reshape(64, 96))
    WRITE[".cbox"](tmp_path / "t.cbox", pd.DataFrame({"x": [20.0], "y": [10.0]}))
    source = io.Source("t", tmp_path / "t.tif", detections=tmp_path / "t.cbox")
    assert io.read_sample(source).graph.pos.tolist() == [[20, 53]]
    assert io.read_sample(source, tiff_origin="top").graph.pos.tolist() == [[20, 10]]


def test_a_point_outside_a_tiff_image_is_named_as_the_file_has_it(run):
    tifffile.imwrite("t.tif", np.arange(64 * 96, dtype=np.float32).reshape(64, 96))
    np.save("t.npy", np.eye(64, 96, dtype=np.uint8))
    WRITE[".cbox"]("t.cbox", pd.DataFrame({"x": [20.0, 70], "y": [10.0, 99]}))
    status, _, err = run("annotate", "image_dir=.", "out_dir=annotated")
    assert status == 1
    assert "x=70.0, y=99.0 lies outside" in err
