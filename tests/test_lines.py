"""Lines along filaments: files of them, what they say of nodes and edges, and what they leave unknown."""

import json
import re
from pathlib import Path

import hydra
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from conftest import SCALE
from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE, ImagejRoi, roiwrite

from grace_lightning import io
from grace_lightning.config import config_dir
from grace_lightning.errors import InputError
from grace_lightning.graph import Graph, Label, Sample, TruthSource
from grace_lightning.raster import dense
from grace_lightning.ridges import snap_to_ridges
from grace_lightning.simulate import Simulator, image_generator
from grace_lightning.truth import draw_lines, label_by_mask, nodes_of_lines, with_truth, with_unknown

UNKNOWN = Label.UNKNOWN.value
ONE, TWO = [[10.0, 20.0], [40.0, 25.0]], [[5.0, 60.0], [20.0, 50.0], [60.0, 55.0]]


def roi(points, kind=ROI_TYPE.POLYLINE, **fields):
    made = ImagejRoi.frompoints(points)
    made.roitype = kind
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def straight(points):
    (x1, y1), (x2, y2) = points
    return ImagejRoi(roitype=ROI_TYPE.LINE, x1=x1, y1=y1, x2=x2, y2=y2)


SHAPES = "index,shape-type,vertex-index,axis-0,axis-1\n{}\n"
STAR = "\ndata_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n{}"
CBOX = (
    "\ndata_global\n\n_cbox_format_version 1.0\n\ndata_cryolo\n\nloop_\n_CoordinateX #1\n_CoordinateY #2\n"
    "_CoordinateZ #3\n_Width #4\n_Height #5\n_Confidence #6\n_filamentid #7\n{}\n"
)


def rows(template, *lines):
    """Rows of a table, one of each point of lines."""
    points = ((k, j, x, y) for k, line in enumerate(lines) for j, (x, y) in enumerate(line))
    return "\n".join(template.format(k=k, j=j, x=x, y=y, code=-1 - j, left=x - 5, top=y - 10) for k, j, x, y in points)


FILES = {
    "a.zip": (lambda path: roiwrite(path, [straight(ONE), roi(TWO, ROI_TYPE.FREELINE)]), [ONE, TWO]),
    "a.roi": (lambda path: roiwrite(path, roi(TWO)), [TWO]),
    "a.csv": (SHAPES.format(rows("{k},path,{j},{y},{x}", ONE, TWO)), [ONE, TWO]),
    "named.csv": ("filament,x,y\n" + rows("{k},{x},{y}", ONE, TWO), [ONE, TWO]),
    "a.star": (STAR.format("_rlnHelicalTubeID #3\n" + rows("{x} {y} {k}", ONE, TWO)), [ONE, TWO]),
    "pairs.star": (STAR.format(rows("{x} {y}", ONE, TWO[:2])), [ONE, TWO[:2]]),
    "a.box": (rows("{left} {top} 10 20 {code}", ONE, TWO[:2]), [ONE, TWO[:2]]),
    "helix.box": (f"#helix: 1\n{rows('{x} {y}', ONE)}\n#helix: 2\n{rows('{x} {y}', TWO)}", [ONE, TWO]),
    "a.cbox": (CBOX.format(rows("{left} {top} <NA> 10 20 1 {k}", ONE, TWO)), [ONE, TWO]),
    "a.polylines.json": (json.dumps([ONE, TWO]), [ONE, TWO]),
    "dict.polylines.json": (json.dumps({"filaments": [ONE]}), [ONE]),
    "empty.polylines.json": ("[]", []),
    "empty.cbox": (CBOX.format(""), []),
}


def put(path, content):
    content(path) if callable(content) else path.write_text(content)
    return path


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_its_lines(name, tmp_path):
    content, expected = FILES[name]
    lines, notes, _ = io.read_lines(put(tmp_path / name, content))
    assert [line.round(3).tolist() for line in lines] == expected
    assert [bool(re.search("no rlnHelicalTubeID; its 4 points are .* ends of 2 straight", note)) for note in notes] == [
        True
    ] * (name == "pairs.star")


def test_a_fitted_spline_goes_through_the_points_that_were_clicked(tmp_path):
    corner = [[10.0, 10.0], [50.0, 10.0], [50.0, 50.0]]
    roiwrite(tmp_path / "a.roi", roi(corner, options=ROI_OPTIONS.SPLINE_FIT | ROI_OPTIONS.SUB_PIXEL_RESOLUTION))
    ((line,), *_) = io.read_lines(tmp_path / "a.roi")
    assert np.abs(line[[0, -1]] - np.array(corner)[[0, -1]]).max() < 1e-6
    assert np.hypot(*(line - corner[1]).T).min() < 1
    assert line[:, 0].max() > 52  # the curve swings past the corner
    assert np.hypot(*np.diff(line, axis=0).T).max() < 1.5


def test_what_is_no_line_is_left_out_and_told(tmp_path):
    others = [roi([[1, 2]], ROI_TYPE.POINT), ImagejRoi(roitype=ROI_TYPE.OVAL), straight(ONE)]
    others[2].subtype = ROI_SUBTYPE.ARROW
    roiwrite(tmp_path / "a.zip", [straight(ONE), *others], name=map(str, range(4)))
    lines, notes, _ = io.read_lines(tmp_path / "a.zip")
    assert len(lines) == 1
    assert notes == [f"{tmp_path}/a.zip: 3 of 4 ROIs are no lines and were left out: 1 point, 1 oval, 1 arrow"]
    shapes = SHAPES.format(rows("{k},path,{j},{y},{x}", ONE) + "\n1,polygon,0,1,1\n1,polygon,1,2,2")
    lines, notes, _ = io.read_lines(put(tmp_path / "a.csv", shapes))
    assert len(lines) == 1
    assert notes == [f"{tmp_path}/a.csv: 1 of 2 shapes are no lines and were left out: 1 polygon"]


def test_of_a_stack_the_lines_of_the_frame_are_taken(tmp_path):
    roiwrite(tmp_path / "a.zip", [roi(TWO, name="1", position=1), roi(ONE, name="2", position=2), roi(TWO, name="all")])
    assert [line.tolist() for line in io.read_lines(tmp_path / "a.zip", frame=1).lines] == [ONE, TWO]
    assert len(io.read_lines(tmp_path / "a.zip").lines) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.roi",
            lambda path: roiwrite(path, roi([[1, 2]], ROI_TYPE.POINT)),
            r"no ROI is a line \(1 point\), expected",
        ),
        ("a.roi", "Iout", "cannot be read as lines .roi. .*too short"),
        ("a.zip", "no zip", "cannot be read as lines"),
        ("a.csv", SHAPES.format(rows("{k},ellipse,{j},{y},{x}", ONE)), r"no shape is a line \(1 ellipse\)"),
        ("a.csv", SHAPES.replace("axis-0", "axis-0,axis-2").format("0,path,0,1,1,1"), "three dimensions"),
        ("a.csv", "x,y\n1,2\n", "nothing says which filament each of 1 points is on, expected a column filament"),
        ("a.star", STAR.format("1 2\n3 4\n5 6\n"), "expected rlnHelicalTubeID, or a start and an end"),
        ("a.box", "1 2 3 4\n5 6 7 8\n", "expected boxes with code -1 at the start"),
        ("a.cbox", CBOX.replace("_filamentid", "_other").format("1 2 <NA> 4 4 1 1"), "expected _filamentid"),
        ("a.polylines.json", '{"lines": []}', "no list of lines, expected .*filaments"),
        ("a.polylines.json", "[[[1, 2], [3, NaN]]]", "line 1 is not a list of finite x and y"),
        ("a.polylines.json", "[[1, 2]]", "line 1 is not a list of finite x and y"),
        ("a.txt", "", "not a file of lines by its name, expected .roi"),
    ],
)
def test_bad_files_are_named(name, content, message, tmp_path):
    with pytest.raises(InputError, match=f"{re.escape(str(tmp_path / name))}: .*{message}"):
        io.read_lines(put(tmp_path / name, content))


def test_which_file_has_the_lines_of_an_image(tmp_path):
    names = (
        "a.1.roi",
        "b_lines.csv",
        "b.csv",
        "c.polylines.json",
        "c.instances.json",
        "d_RoiSet.ZIP",
        "e.star",
        "x.roi",
    )
    for name in (*names, "e.box"):
        put(tmp_path / name, STAR.format("1 2\n3 4\n"))
    found = io.find_lines(tmp_path, ["a.1", "b", "c", "d", "e", "f"], detections=[tmp_path / "b.csv"])
    assert {name: path.name for name, path in found.files.items()} == {
        **{"a.1": "a.1.roi", "b": "b_lines.csv", "c": "c.polylines.json", "d": "d_RoiSet.ZIP"}
    }
    assert re.search(
        "e.box, e.star all hold lines, expected one file; set lines_format=box or star", found.failures["e"]
    )
    assert any(re.search("lines are .*of 4 images; lines_format takes", note) for note in found.notes)
    assert io.find_lines(tmp_path, ["e"], "star").files == {"e": tmp_path / "e.star"}
    with pytest.raises(InputError, match=r"no lines for any of 1 image, expected files such as g.roi or g_lines.csv"):
        io.find_lines(tmp_path, ["g"])


@pytest.mark.shared
def test_filaments_that_cryolo_traced(shared):
    folder = shared / "data" / "formats" / "cbox" / "filament_cbox_2d"
    lines, *_ = io.read_lines(folder / "ActLifeact_02885.cbox")
    assert len(lines) == 4
    assert max(np.hypot(*np.diff(line, axis=0).T).max() for line in lines) < 26  # in order, 25 pixels apart


# ---- labels -----------------------------------------------------------------------------------------------------

#    0    1    2    3         a line through 0 to 3; 4 lies beside it, 5 and 6 far from it, 7 beyond 3
#         4
#
#    5         6           7
POS = torch.tensor([[5.0, 10], [20, 10], [35, 10], [50, 10], [20, 18], [5, 60], [35, 60], [70, 60]])
EDGES = torch.tensor([[0, 1, 2, 1, 0, 4, 5, 6, 0], [1, 2, 3, 4, 4, 6, 6, 7, 5]])
LINE = [np.array([[0.0, 10], [55, 10]])]


def labelled(reach=5.0, ignored=None):
    annotation = draw_lines(LINE, 10.0, (80, 80))
    graph = label_by_mask(Graph(POS, EDGES), annotation)
    instances = nodes_of_lines(graph, LINE, 10.0)
    return with_unknown(graph, annotation, reach=reach, ignored=ignored), annotation, instances


def test_nodes_within_half_a_width_are_the_lines_own_and_nothing_is_known_beyond_a_width():
    graph, _, instances = labelled()
    assert {name: nodes.tolist() for name, nodes in instances.items()} == {"1": [0, 1, 2, 3]}
    assert graph.label("node").tolist() == [1, 1, 1, 1, 0, UNKNOWN, UNKNOWN, UNKNOWN]
    # beside the line and away from it edges are known to be negative, those between two unknown nodes are not
    assert graph.label("edge").tolist() == [1, 1, 1, 0, 0, 0, UNKNOWN, UNKNOWN, 0]
    assert UNKNOWN not in labelled(reach=None)[0].edge_label[:, 0]


def test_where_nothing_is_to_be_asked_all_is_unknown_and_filaments_have_no_ends():
    ignored = torch.zeros(80, 80)
    ignored[:, 45:] = 255
    graph, annotation, instances = labelled(reach=None, ignored=ignored)
    assert graph.label("node").tolist() == [1, 1, 1, UNKNOWN, 0, 0, 0, UNKNOWN]
    assert graph.label("edge").tolist() == [1, 1, UNKNOWN, 0, 0, 0, 0, UNKNOWN, 0]
    sample = with_truth(Sample("a", torch.zeros(1, 80, 80), graph, annotation), instances)
    assert [nodes.tolist() for nodes in sample.truth.filaments] == [[0, 1, 2]]
    assert sample.graph.label("end").tolist() == [1, 1, 1, *[UNKNOWN] * 5]  # 2 is near the end 3
    assert sample.graph.label("same_filament").tolist() == graph.label("edge").tolist()
    ignored[:, 15:] = 255
    sample = with_truth(
        Sample("a", torch.zeros(1, 80, 80), with_unknown(graph, annotation, reach=None, ignored=ignored)), instances
    )
    assert sample.truth.filaments == []  # most of it is unknown


def test_a_node_where_lines_cross_is_on_both():
    graph, _, _ = labelled()
    cross = [*LINE, np.array([[20.0, 0], [20, 30]])]
    graph = label_by_mask(graph, draw_lines(cross, 10.0, (80, 80)))
    assert {k: nodes.tolist() for k, nodes in nodes_of_lines(graph, cross, 10.0).items()} == {
        **{"1": [0, 1, 2, 3], "2": [1, 4]}
    }


# ---- snapping ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
def test_lines_are_moved_onto_the_ridge_within_half_a_width(sign):
    y, x = np.mgrid[:120, :200].astype(np.float32)
    bar = np.exp(-(((y - 60 - 8 * np.sin(x / 40)) / 4) ** 2))
    image = torch.from_numpy(sign * bar)[None] + 0.1 * torch.randn(
        1, 120, 200, generator=torch.Generator().manual_seed(0)
    )
    along = np.arange(5.0, 195, 20)
    course = 60 + 8 * np.sin(along / 40)
    lines = [np.column_stack([along, course + shift]) for shift in (0, 4, -3, 30)]
    snapped, moved = snap_to_ridges(image, lines, 10.0)
    for line in snapped[:3]:
        middle = line[10:-10]
        assert np.abs(middle[:, 1] - 60 - 8 * np.sin(middle[:, 0] / 40)).max() < 1.5
    assert moved[0] < 0.5 < 2.5 < moved[1]
    away = np.hypot(*(snapped[3] - dense(lines[3], 1.0)).T)
    assert away.max() <= 5  # half a width; there is nothing to go to


# ---- the command ------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(simulated, tmp_path):
    """Folders of images with detections, and of lines along all of their filaments, as ImageJ saves them."""
    simulator = Simulator(
        **{"size": [192, 192], "num_filaments": 2, "shapes": ["line", "curve"], "scale": SCALE, "period": 20},
        **{"spacing": 8, "snr": 0.5, "false_detections": 12, "num_blobs": 0},
    )
    (tmp_path / "lines").mkdir()
    for path in sorted(simulated.glob("*.mrc")):
        inside = []
        for line in simulator(path.stem, image_generator(1, path.stem)).centre_lines:
            shown = ((line >= 0) & (line <= 191)).all(axis=1)
            parts = np.split(np.arange(len(line)), np.flatnonzero(np.diff(shown)) + 1)
            inside += [line[part] for part in parts if shown[part[0]] and len(part) > 20]
        rois = [roi(line[::5], name=str(k)) for k, line in enumerate(inside)]
        roiwrite(tmp_path / "lines" / f"{path.stem}_RoiSet.zip", rois)
    return simulated, tmp_path / "lines"


@pytest.mark.parametrize(("unannotated", "least"), [("negative", 0.98), ("unknown", 0.96)])  # of what is known
def test_lines_give_the_labels_of_the_simulator(drawn, unannotated, least, run):
    images, lines = drawn
    keys = [f"image_dir={images}", f"lines_dir={lines}", "out_dir=out", f"scale={SCALE}"]
    status, out, err = run("annotate", *keys, f"unannotated={unannotated}")
    assert (status, err) == (0, "")
    assert re.search(r"annotated 3 of 3 images in out\n(.*moved onto.*\n)?nodes \d+, of which \d+ positive", out)
    same = {head: [] for head in ("node", "edge", "same_filament")}
    for own, source in zip(io.find_sources(images), io.find_sources(images, "out"), strict=True):
        true, made = io.read_sample(own), io.read_sample(source)
        assert made.truth.source is TruthSource.INSTANCES
        assert made.metadata["scale"] == SCALE
        for head, equal in same.items():
            label = made.graph.label(head)
            equal.append((label == true.graph.label(head))[label != UNKNOWN])
        assert (UNKNOWN in made.graph.label("node")) == (unannotated == "unknown")
    assert all(torch.cat(equal).float().mean() >= least for equal in same.values())
    assert io.read_sample(source, keep_node_unknown_labels=False).graph.label("node").max() == 1


@pytest.mark.slow
def test_what_lines_leave_unknown_is_not_trained_as_negative(drawn, run, tmp_path):
    from grace_lightning.tasks.train import train

    images, lines = drawn
    assert run("annotate", f"image_dir={images}", f"lines_dir={lines}", "out_dir=out", f"scale={SCALE}")[0] == 0
    keys = [
        "data=folders",
        *(f"data.{part}_{kind}_dir={folder}" for part in ("train", "valid", "infer") for kind, folder in
          (("image", images), ("grace", "out"))),
        *(f"features.scale={SCALE}", "features.channels=[8]", "features.hidden=8", "model.hidden=8", "model.rounds=1"),
        *("callbacks.progress=null", "trainer.accelerator=cpu", "logger=none", "trainer.max_epochs=1"),
        *("evaluate.pictures=false", f"run_dir={tmp_path}/run"),
    ]  # fmt: skip
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        train(hydra.compose("train", keys))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["nodes"]["average_precision"] is not None


SCENE = np.random.default_rng(0).normal(size=(60, 90)).astype(np.float32)


@pytest.fixture
def scene(tmp_path):
    """An image with three detections on a line, one beside it, and one far away."""
    folder = tmp_path / "data"
    folder.mkdir()
    tifffile.imwrite(folder / "a.tif", SCENE)
    pd.DataFrame({"x": [10.0, 30, 50, 30, 70], "y": [10.0, 10, 10, 18, 50]}).to_csv(folder / "a.csv", index=False)
    (folder / "a.polylines.json").write_text(json.dumps([[[5, 10], [55, 10]]]))
    return folder


def annotated(folder, run, *keys):
    status, out, err = run("annotate", f"image_dir={folder}", f"lines_dir={folder}", "out_dir=out", "scale=10", *keys)
    return status, out, err


def test_labels_metadata_and_instances_of_a_line(scene, run):
    status, out, err = annotated(scene, run, "snap=false")
    assert (status, err) == (0, "")
    assert re.fullmatch(
        r"annotated 1 of 1 image in out\nnodes 5, of which 3 positive and 1 unknown; edges \d, of which 2 positive\n",
        out,
    )
    graph, annotation, metadata = io.read_grace("out/a.grace")
    assert graph.label("node").tolist() == [1, 1, 1, 0, UNKNOWN]
    assert metadata == {"image_filename": "a", "lines": "a.polylines.json", "scale": 10, "keep_unknown_labels": True}
    assert json.loads(Path("out/a.grace/instances.json").read_text()) == {"1": [0, 1, 2]}
    assert annotation[10].unique().tolist() == [0, 1]
    tifffile.imwrite(scene / "a_mask.tif", (annotation > 0).numpy())  # masks leave nothing of the lines behind
    assert run("annotate", f"image_dir={scene}", "out_dir=out", "overwrite=true")[0] == 0
    assert {path.name for path in Path("out/a.grace").iterdir()} == {
        *("annotation.npz", "edges.parquet", "metadata.json", "nodes.parquet")
    }


def test_an_ignore_mask_and_masks_with_unknown(scene, run):
    ignore = np.zeros((60, 90), np.uint8)
    ignore[:, 40:] = 255
    tifffile.imwrite(scene / "a_ignore.tif", ignore)
    assert annotated(scene, run, "snap=false", "unannotated=negative", f"ignore_dir={scene}")[0] == 0
    assert io.read_grace("out/a.grace").graph.label("node").tolist() == [1, 1, UNKNOWN, 0, UNKNOWN]
    mask = np.zeros((60, 90), np.uint8)
    mask[6:15, 5:56] = 1
    tifffile.imwrite(scene / "a_mask.tif", mask)
    keys = f"image_dir={scene}", "out_dir=masks", f"ignore_dir={scene}", "unannotated=unknown", "scale=10"
    assert run("annotate", *keys)[0] == 0
    assert io.read_grace("masks/a.grace").graph.label("node").tolist() == [1, 1, UNKNOWN, 0, UNKNOWN]


@pytest.mark.parametrize(
    ("lines", "keys", "status", "message"),
    [
        ([[[5, 10], [55, 10]], [[5, 60.6], [50, 70]]], "", 1, "line 2 lies outside the image of 90 x 60 .*; are x"),
        ([[[5, 10], [55, 10]], [[5, 40], [50, 40]]], "", 0, "1 of 2 lines have no detection within .*x=5, y=40"),
        ([[[5, 10], [55, 10]], [[5, 40], [9, 40]]], "", 0, "1 of 2 lines are shorter than .*10 pixels .* x=5, y=40"),
        ([], "", 0, "no line; every node becomes unknown"),
        ([], "unannotated=negative", 0, "no line; every node becomes negative"),
        ([], "scale=0", 2, "scale: 0, expected auto, or the width"),
        ([], "mask_dir=.", 2, "mask_dir: ., but lines_dir says where filaments are"),
        ([], "unannotated=nothing", 2, "unannotated: 'nothing', expected .*'negative'"),
        ([], "lines_format=roi", 2, "no lines for any of 1 image, expected files such as a.roi"),
    ],
)  # fmt: skip
def test_what_is_told_in_one_line(lines, keys, status, message, scene, run):
    (scene / "a.polylines.json").write_text(json.dumps(lines))
    found, _, err = annotated(scene, run, "snap=false", *keys.split())
    assert found == status
    assert re.fullmatch(f"(grace-annotate|warning): .*{message}.*\n", err), err


def test_images_without_lines_are_left_out_and_upside_down_lines_are_told(scene, run):
    tifffile.imwrite(scene / "b.tif", SCENE)
    status, out, err = annotated(scene, run, "snap=false")
    assert (status, out.partition("\n")[0]) == (0, "annotated 1 of 1 image in out")
    assert re.search("no lines for 1 of 2 images, which were left out: b\n", err)
    (scene / "a.polylines.json").write_text("[[[5, 49], [55, 49]]]")
    assert annotated(scene, run, "snap=false", "mask_flip=y", "overwrite=true")[0] == 0
    assert io.read_grace("out/a.grace").graph.label("node").tolist() == [1, 1, 1, 0, UNKNOWN]


def test_y_counts_from_the_bottom_in_star_files_of_tiff_images(scene, run):
    (scene / "a.polylines.json").unlink()
    (scene / "a.star").write_text(STAR.format("5 49\n55 49\n"))
    assert annotated(scene, run, "snap=false", "detections_format=csv")[0] == 0
    assert io.read_grace("out/a.grace").graph.label("node").tolist() == [1, 1, 1, 0, UNKNOWN]


def test_types_of_lines(tmp_path):
    shapes = "index,shape-type,vertex-index,axis-0,axis-1,type\n0,path,0,1,2,2\n0,path,1,9,2,2\n"
    typed = {
        "a.csv": "filament,x,y,type\n0,10,20,2\n0,90,20,2\n1,10,50,\n1,90,50,\n",
        "b.csv": shapes + "1,line,0,5,5,0\n1,line,1,9,9,0\n",
        "a.polylines.json": json.dumps({"filaments": [ONE, TWO], "types": [2, 0]}),
    }
    for name, content in typed.items():
        assert io.read_lines(put(tmp_path / name, content)).types == [2, 0], name
    grouped = [roi(ONE), roi(TWO)]
    for number, one in enumerate(grouped):
        one.group = 3 * number
    roiwrite(tmp_path / "a.zip", grouped)
    assert io.read_lines(tmp_path / "a.zip").types == [0, 3]
    roiwrite(tmp_path / "b.roi", grouped[0])
    assert io.read_lines(tmp_path / "b.roi").types is None
    for types, message in (([1], "types are not a list of 2 numbers"), ([1, -1], "type -1, expected whole numbers")):
        bad = put(tmp_path / "b.polylines.json", json.dumps({"filaments": [ONE, TWO], "types": types}))
        with pytest.raises(InputError, match=message):
            io.read_lines(bad)
