"""From images, detections and masks to annotated graphs, and detections from images alone."""

import re
import shutil
import sys
import time
import warnings
from pathlib import Path

import imagecodecs
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image
from scipy.spatial import KDTree

from grace_lightning import cli
from grace_lightning.errors import InputError, InputWarning
from grace_lightning.graph import EDGE_PROPERTIES
from grace_lightning.io import (
    find_masks,
    leave_out_masks,
    read_detections,
    read_grace,
    read_image,
    read_mask,
    write_detections,
)
from grace_lightning.ridges import RidgeDetector, spaced
from grace_lightning.simulate import Simulator, image_generator
from grace_lightning.tasks.annotate import annotate_folder
from grace_lightning.tasks.common import each_image

NUMBERS = np.zeros((6, 9), np.int64)
NUMBERS[1:3, :4], NUMBERS[1:3, 5:] = 3, 300
BINARY = (NUMBERS > 0).astype(np.uint8)


def write_png(path, values, palette=False):
    if palette:
        image = Image.fromarray(values.astype(np.uint8)).convert("P")
        image.putpalette([200, 10, 10, 90, 90, 90, *range(6)])
        image.save(path)
    else:
        path.write_bytes(imagecodecs.png_encode(values))


WRITERS = {
    "m.tif": lambda path, values: tifffile.imwrite(path, values),
    "m.TIFF": lambda path, values: tifffile.imwrite(path, values[None], compression="zlib"),
    "inverted.tif": lambda path, values: tifffile.imwrite(path, values, photometric="miniswhite"),
    "m.png": write_png,
    "m.npy": np.save,
    "m.npz": lambda path, values: np.savez(path, values),
    "named.npz": lambda path, values: np.savez_compressed(path, annotation=values, other=np.zeros(3)),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    ("values", "expected"),
    [(BINARY, BINARY), (BINARY * 255, BINARY), (NUMBERS.astype(np.uint16), NUMBERS)],
    ids=["0 and 1", "0 and 255", "numbers"],
)
def test_every_format_gives_the_same_mask(name, values, expected, tmp_path):
    WRITERS[name](tmp_path / name, values)
    mask = read_mask(tmp_path / name, (6, 9))
    assert mask.dtype == torch.int32
    assert mask.tolist() == expected.tolist()


@pytest.mark.parametrize("values", [NUMBERS.astype(np.float32), NUMBERS[None], NUMBERS.astype(np.int16)])
def test_whole_numbers_of_any_type_are_kept(values, tmp_path):
    np.save(tmp_path / "m.npy", values)
    assert read_mask(tmp_path / "m.npy", (6, 9)).tolist() == NUMBERS.tolist()


def test_truth_values_become_zero_and_one(tmp_path):
    np.save(tmp_path / "m.npy", NUMBERS > 0)
    Image.fromarray(NUMBERS > 0).save(tmp_path / "m.png")
    for name in ("m.npy", "m.png"):
        assert read_mask(tmp_path / name, (6, 9)).tolist() == BINARY.tolist()


def test_a_palette_gives_its_numbers_not_its_colours(tmp_path):
    values = np.where(NUMBERS == 300, 2, NUMBERS)
    write_png(tmp_path / "m.png", values, palette=True)
    assert read_mask(tmp_path / "m.png", (6, 9)).tolist() == values.tolist()


def test_of_a_stack_the_frame_is_taken(tmp_path):
    tifffile.imwrite(tmp_path / "m.tif", np.stack([0 * BINARY, BINARY, 0 * BINARY]), photometric="minisblack")
    assert read_mask(tmp_path / "m.tif", (6, 9), frame=1).tolist() == BINARY.tolist()
    for frame in (None, 3, "mean"):
        with pytest.raises(InputError, match=r"m.tif: an array of shape \(3, 6, 9\), .* frame to an index from 0 to 2"):
            read_mask(tmp_path / "m.tif", (6, 9), frame=frame)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("m.png", np.zeros((6, 9, 3), np.uint8), r"colours \(RGB\), expected one number per pixel; save it as grey"),
        ("m.tif", np.zeros((6, 9, 3), np.uint8), "colours .3 samples per pixel.*ImageJ"),
        ("m.npy", NUMBERS[:, :5], "5 x 6 pixels, expected the image's 9 x 6$"),
        ("m.npy", NUMBERS.T, "6 x 9 pixels, expected the image's 9 x 6; are its axes swapped"),
        ("m.npy", NUMBERS * 0.5, "8 values are no whole numbers, such as 1.5; expected 0 for background.*threshold"),
        ("m.npy", NUMBERS * np.nan, "54 values are no whole numbers, such as nan"),
        ("m.npy", -NUMBERS, "holds the value -300, expected 0 for background"),
        ("m.npy", NUMBERS << 24, "holds the value 5033164800, expected .* below"),
        ("m.npy", NUMBERS + 1, "no pixel is 0, expected 0 for background"),
        ("m.npy", NUMBERS.astype(str), "values are <U21, expected 0"),
        ("m.npy", NUMBERS.astype(object), "cannot be read as a mask"),
        ("m.npy", NUMBERS[0], "9 x 1 pixels, expected the image's 9 x 6"),
        ("m.npz", {"a": NUMBERS, "b": NUMBERS}, "arrays a, b, expected one named annotation, or a single one"),
        ("m.tif", b"no picture", "cannot be read as a mask"),
        ("m.png", b"no picture", "cannot be read as a mask"),
        ("m.npz", b"no arrays", "cannot be read as a mask"),
        ("m.jpg", b"", "not a mask by its name, expected .tif, .tiff, .png, .npy, .npz"),
        ("m.tif", None, "not found, expected a mask"),
    ],
)
def test_bad_masks_are_named(name, values, message, tmp_path):
    if isinstance(values, bytes):
        (tmp_path / name).write_bytes(values)
    elif isinstance(values, dict):
        np.savez(tmp_path / name, **values)
    elif values is not None:
        WRITERS[name](tmp_path / name, values)
    with pytest.raises(InputError, match=message) as caught:
        read_mask(tmp_path / name, (6, 9))
    assert str(caught.value).startswith(f"{tmp_path / name}: ")


def test_an_empty_mask_is_used_with_a_warning(tmp_path):
    np.save(tmp_path / "m.npy", 0 * NUMBERS)
    with pytest.warns(InputWarning, match=r"m.npy: no pixel is annotated"):
        assert not read_mask(tmp_path / "m.npy", (6, 9)).any()


# ---- which mask belongs to which image --------------------------------------------------------------------------


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [folder / name for name in names]


@pytest.mark.parametrize(
    "name", ["a.1.tif", "a.1.NPY", "a.1_mask.png", "a.1-mask.tif", "a.1_Annotation.npz", "a.1.labels.tiff"]
)
def test_names_of_masks(name, tmp_path):
    images = touch(tmp_path / "images", "a.1.mrc", "b.mrc")
    (mask,) = touch(tmp_path / "masks", name)
    touch(tmp_path / "masks", "a.1.txt", "a.1_mask_old.tif", "c.tif", ".a.1.tif")
    assert find_masks(tmp_path / "masks", images) == {"a.1": mask}


def test_masks_may_lie_beside_the_images(tmp_path):
    a, a_mask, b, b_mask, own = touch(tmp_path, "a.tif", "a_mask.tif", "b_mask.png", "b_mask_mask.npy", "x_label.tif")
    images = leave_out_masks([a, a_mask, b, own])
    assert images == [a, b, own]
    assert find_masks(tmp_path, images) == {"a": a_mask, "b_mask": b_mask}


def test_a_mask_file_goes_before_an_earlier_annotation(tmp_path):
    images = touch(tmp_path / "images", "a.mrc", "b.mrc", "c.mrc")
    mask, _, grace, _ = touch(
        tmp_path / "masks", "a.png", "a.grace/annotation.npz", "b.grace/annotation.npz", "c.grace/nodes.parquet"
    )
    assert find_masks(tmp_path / "masks", images) == {"a": mask, "b": grace}


def test_two_masks_of_one_image_are_named(tmp_path):
    images = touch(tmp_path / "images", "a.mrc")
    touch(tmp_path / "masks", "a_mask.tif", "a.png")
    with pytest.raises(InputError, match=r"masks: a.png, a_mask.tif may each be the mask of a, expected one"):
        find_masks(tmp_path / "masks", images)


def test_a_folder_without_masks_is_named(tmp_path):
    images = touch(tmp_path / "images", "a.mrc")
    with pytest.raises(InputError, match=r"images: no mask for any of the 1 images, expected files such as a_mask.tif"):
        find_masks(tmp_path / "images", images)
    with pytest.raises(InputError, match="nowhere: no such folder"):
        find_masks(tmp_path / "nowhere", images)


# ---- annotation -------------------------------------------------------------------------------------------------

POSITIONS = pd.DataFrame({"x": [2.0, 17.0, 32.0, 17.0], "y": [5.0, 5.0, 5.0, 25.0], "confidence": [0.9, 0.8, 0.7, 0.6]})


@pytest.fixture
def data(tmp_path):
    """An image with a bar that is cut between its second and third detection; a fourth lies below."""
    folder = tmp_path / "data"
    folder.mkdir()
    pixels = np.random.default_rng(0).normal(size=(30, 36)).astype(np.float32)
    mask = np.zeros((30, 36), np.uint8)
    mask[3:8] = 255
    mask[:, 25] = 0
    for name in ("a", "b"):
        tifffile.imwrite(folder / f"{name}.tif", pixels)
        tifffile.imwrite(folder / f"{name}_mask.tif", mask)
        write_detections(folder / f"{name}.h5", POSITIONS)
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Run the command in an empty folder: exit status, stdout, stderr."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["grace-annotate", *map(str, arguments)])
        capfd.readouterr()
        status = 0
        try:
            cli.annotate()
        except SystemExit as stop:
            status = stop.code
        return status, *capfd.readouterr()

    return command


def expect_refusal(result, message):
    status, _, err = result
    assert status == 2
    assert re.fullmatch(f"grace-annotate: .*{message}.*\n", err), err


def test_exact_labels_of_a_cut_bar(data, run):
    status, out, err = run(f"image_dir={data}", "out_dir=out")
    assert (status, err) == (0, "")
    assert out == "annotated 2 of 2 images in out\nnodes 8, of which 6 positive; edges 10, of which 2 positive\n"
    graph, annotation, metadata = read_grace("out/a.grace")
    assert graph.pos.tolist() == POSITIONS[["x", "y"]].to_numpy().tolist()
    assert graph.node_label.tolist() == [1, 1, 1, 0]
    assert graph.confidence.tolist() == pytest.approx(POSITIONS["confidence"].tolist())
    assert graph.edges.T.tolist() == [[0, 1], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert graph.edge_label.tolist() == [1, 0, 0, 0, 0]
    assert annotation.unique().tolist() == [0, 1]
    assert metadata == {"image_filename": "a"}
    edges = pd.read_parquet("out/a.grace/edges.parquet")
    assert edges["edge_properties_keys"][0].tolist() == list(EDGE_PROPERTIES)
    assert sorted(map(str, Path().glob("*"))) == ["out"]
    assert sorted(p.name for p in Path("out").iterdir()) == ["a.grace", "b.grace"]


def test_folders_may_differ_and_numbers_are_kept(data, run, tmp_path):
    for folder in ("picks", "masks"):
        (tmp_path / folder).mkdir()
    for name in ("a", "b"):
        POSITIONS.to_csv(tmp_path / "picks" / f"{name}.csv", index=False)
        mask = tifffile.imread(data / f"{name}_mask.tif").astype(np.uint16)
        mask[:, :25] *= 2
        np.save(tmp_path / "masks" / f"{name}.npy", mask)
        (data / f"{name}_mask.tif").unlink()
        (data / f"{name}.h5").unlink()
    folders = [f"image_dir={data}", f"detections_dir={tmp_path}/picks", f"mask_dir={tmp_path}/masks", "out_dir=out"]
    assert run(*folders)[0] == 0
    graph, annotation, _ = read_grace("out/b.grace")
    assert graph.node_label.tolist() == [1, 1, 1, 0]
    assert annotation.unique().tolist() == [0, 255, 510]


def test_what_is_done_is_left_alone_unless_overwritten(data, run):
    run(f"image_dir={data}", "out_dir=out")
    shutil.rmtree("out/b.grace")
    tifffile.imwrite(data / "a_mask.tif", np.eye(30, 36, dtype=np.uint8))
    status, out, _ = run(f"image_dir={data}", "out_dir=out")
    assert status == 0
    assert out.startswith("annotated 1 of 2 images in out, 1 there already (overwrite=true: anew)\n")
    assert read_grace("out/a.grace").graph.node_label.sum() == 3
    with pytest.warns(InputWarning, match=r"a_mask.tif: none of the 4 detections is inside"):
        assert annotate_folder(str(data), "out", overwrite=True) == []
    assert read_grace("out/a.grace").graph.node_label.sum() == 0


def test_a_grace_folder_is_made_anew_from_its_own_annotation(data, run):
    run(f"image_dir={data}", f"out_dir={data}")
    before = read_grace(data / "a.grace").graph
    for path in (data / "a_mask.tif", data / "b_mask.tif", data / "a.grace" / "edges.parquet"):
        path.unlink()
    assert run(f"image_dir={data}", f"out_dir={data}", "overwrite=true")[0] == 0
    assert torch.equal(read_grace(data / "a.grace").graph.edge_label, before.edge_label)


def outside(data):
    write_detections(data / "a.h5", POSITIONS + 30)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: (data / "a_mask.tif").unlink(), r"a.tif: no mask in .*data, expected a file such as a_mask.tif"),
        (lambda data: (data / "a.h5").unlink(), r"a.tif: no detections in .*, expected a with .*detections=ridge"),
        (outside, r"a.h5: detection 0 at x=32.0, y=35.0 lies outside the image of 36 x 30 pixels"),
        (lambda data: (data / "a.tif").write_bytes(b"II*"), r"a.tif: cannot be read"),
        (lambda data: (data / "a.h5").write_text("no"), r"a.h5: cannot be read"),
        (lambda data: np.save(data / "a_mask.npy", BINARY) or (data / "a_mask.tif").unlink(), r"a_mask.npy: 9 x 6 pix"),
    ],
)
def test_an_image_that_fails_is_named_when_the_others_are_done(spoil, message, data, run):
    spoil(data)
    status, out, err = run(f"image_dir={data}", "out_dir=out")
    assert status == 1
    assert out.startswith("annotated 1 of 2 images in out, 1 failed\n")
    assert re.fullmatch(f"grace-annotate: .*{message}.*\n", err), err
    assert [path.name for path in Path("out").iterdir()] == ["b.grace"]


def test_merged_detections_are_counted_under_their_file(data):
    write_detections(data / "b.h5", pd.concat([POSITIONS, POSITIONS[:2]]))
    with pytest.warns(InputWarning, match=r"b.h5: 2 of 6 detections lie exactly on another one"):
        annotate_folder(str(data), str(data / "out"))
    assert read_grace(data / "out" / "b.grace").graph.num_nodes == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out_dir=out"], "image_dir is not set, expected the folder of micrographs"),
        (["image_dir=x"], "out_dir is not set, expected the folder for the .grace folders; give out_dir=FOLDER"),
        (["image_dir=x", "out_dir=out"], "image_dir: x: no such folder"),
        (["image_dir=.", "out_dir=out", "mask_dir=x"], "mask_dir: x: no such folder"),
        (["image_dir=.", "out_dir=out", "detections_dir=x"], "detections_dir: x: no such folder"),
        (["image_dir=x", "out_dir=out", "overwrite=maybe"], "overwrite: 'maybe', expected bool"),
        (["image_dir=x", "out_dir=out", "detections=rigde"], "files.*ridge"),
        (["image_dir=x", "out_dir=out", "mask_dri=y"], "did you mean mask_dir"),
        (
            ["image_dir=x", "out_dir=out", "detections=ridge", "detections.polarity=white"],
            "polarity: 'white', expected",
        ),
        (["image_dir=x", "out_dir=out", "detections=ridge", "detections.scale=0"], "scale: 0, expected 3 or more"),
        (["image_dir=x", "out_dir=out", "detections=ridge", "detections_dir=y"], "leave out one of detections_dir"),
    ],
)
def test_wrong_words_on_the_command_line(arguments, message, run):
    expect_refusal(run(*arguments), message)
    assert not list(Path().iterdir())


def test_each_image_goes_on_after_a_failure_but_not_after_a_bug():
    seen = []

    def work(name):
        seen.append(name)
        if name == "b":
            raise InputError("b:  wrong\nsize")
        if name == "d":
            raise ZeroDivisionError

    assert each_image(["a", "b", "c"], work, doing="working") == ["b: wrong size"]
    assert seen == ["a", "b", "c"]
    with pytest.raises(ZeroDivisionError):
        each_image(["d"], work, doing="working")


@pytest.mark.shared
@pytest.mark.parametrize("part", ["train", "valid", "infer"])
def test_labels_of_the_photographs(part, shared, tmp_path):
    """As the original program stored them; an edge may differ where one pixel at a mask's rim decides."""
    folder = shared / "data" / "roots" / part
    started = time.perf_counter()
    assert annotate_folder(str(folder), str(tmp_path)) == []
    seconds = time.perf_counter() - started
    graces = sorted(folder.glob("*.grace"))
    assert seconds / len(graces) < 2
    for path in graces:
        stored, made = (read_grace(p, keep_edge_unknown_labels=True).graph for p in (path, tmp_path / path.name))
        assert torch.equal(made.pos, stored.pos)
        assert torch.equal(made.edges, stored.edges)
        assert torch.equal(made.node_label, stored.node_label)
        assert (made.edge_label != stored.edge_label).sum() <= 3


# ---- ridges -----------------------------------------------------------------------------------------------------


def bar(angle, offset=0.0, size=200, width=10.0):
    """A bright bar through the centre of the image, shifted across itself; its distance from every point."""
    x, y = np.meshgrid(np.arange(size), np.arange(size))

    def away(x, y):
        return -(x - size / 2) * np.sin(angle) + (y - size / 2) * np.cos(angle) - offset

    return torch.from_numpy(np.exp(-((away(x, y) / (0.4 * width)) ** 2)).astype(np.float32))[None], away


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.0, np.pi / 2, 2.5])
@pytest.mark.parametrize("offset", [0.0, 3.3])
def test_points_on_a_bar_lie_on_its_centre_line_at_equal_distances(angle, offset):
    image, away = bar(angle, offset)
    noise = 0.05 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    found = RidgeDetector(scale=10.0, spacing=12.0, polarity="bright", threshold=20.0)(image + noise)
    # at the border the image is reflected, and a line with it
    found = found[found["x"].between(15, 184) & found["y"].between(15, 184)]
    assert np.abs(away(found["x"], found["y"])).max() < 0.5
    along = np.sort(found["x"] * np.cos(angle) + found["y"] * np.sin(angle))
    assert np.diff(along) == pytest.approx(12.0, abs=2.5)
    assert np.ptp(along) > 150
    assert found["confidence"].between(0.5, 1).all()


def test_dark_lines_are_the_negative_of_bright_ones():
    image, _ = bar(0.7)
    bright, dark = RidgeDetector(scale=10.0, polarity="bright"), RidgeDetector(scale=10.0, polarity="dark")
    pd.testing.assert_frame_equal(bright(image), dark(-image))


@pytest.mark.parametrize("image", [torch.zeros(1, 64, 64), torch.ones(1, 5, 7)])
def test_a_blank_image_has_no_detections(image):
    found = RidgeDetector()(image)
    assert len(found) == 0
    assert list(found.columns) == ["x", "y", "confidence"]


def test_a_row_of_pixels_is_cut_into_equal_pieces():
    row, column = np.zeros(40, np.int64), np.arange(40)
    assert column[spaced(row, column, spacing=10.0, shortest=5.0)].tolist() == [4, 14, 24, 34]
    assert spaced(row, column, spacing=10.0, shortest=50.0).tolist() == []


def test_two_rows_of_pixels_are_cut_each_on_its_own():
    row, column = np.repeat([0, 5], 20), np.tile(np.arange(20), 2)
    chosen = spaced(row, column, spacing=10.0, shortest=5.0)
    assert sorted(zip(row[chosen].tolist(), column[chosen].tolist(), strict=True)) == [(0, 4), (0, 14), (5, 4), (5, 14)]


@pytest.fixture(scope="module")
def simulation():
    return Simulator(size=(600, 600), num_filaments=3, num_blobs=3, p_carbon=0.0)("m", image_generator(2, "m"))


def test_ridges_of_a_simulated_micrograph_are_its_filaments(simulation):
    found = RidgeDetector(scale=20.0)(simulation.sample.image)[["x", "y"]].to_numpy()
    truth = np.concatenate(simulation.centre_lines)
    truth = truth[((truth >= 0) & (truth <= 599)).all(axis=1)]
    assert (KDTree(found).query(truth)[0] <= 15).mean() > 0.95
    assert (KDTree(truth).query(found)[0] <= 5).mean() > 0.75


def test_ridge_detections_are_written_beside_the_graph(simulation, tmp_path, run):
    image, annotation = simulation.sample.image, simulation.sample.annotation
    tifffile.imwrite(tmp_path / "m.tif", image[0].numpy())
    np.savez(tmp_path / "m_mask.npz", annotation.numpy())
    arguments = [f"image_dir={tmp_path}", "out_dir=out", "detections=ridge", "detections.spacing=15"]
    status, _, err = run(*arguments)
    assert (status, err) == (0, "")
    graph = read_grace("out/m.grace").graph
    frame = read_detections("out/m.h5")
    assert list(frame.columns) == ["x", "y", "confidence"]
    assert torch.equal(graph.pos, torch.from_numpy(frame[["x", "y"]].to_numpy(np.float32)))
    assert graph.node_label.float().mean() > 0.7
    assert graph.edge_label.sum() > 50

    shutil.rmtree("out/m.grace")
    status, _, err = run(*arguments)
    assert status == 1
    assert "m.h5: is there already; set out_dir to another folder, or overwrite=true" in err
    assert run(*arguments, "overwrite=true")[0] == 0
    pd.testing.assert_frame_equal(read_detections("out/m.h5"), frame)


@pytest.mark.shared
def test_ridges_of_photographs_are_their_roots(shared):
    for path in sorted((shared / "data" / "roots" / "train").glob("*.png"))[:2]:
        graph, _, _ = read_grace(path.with_suffix(".grace"))
        found = RidgeDetector(scale=20.0, polarity="bright")(read_image(path))
        away = KDTree(found[["x", "y"]].to_numpy()).query(graph.pos[graph.node_label == 1].numpy())[0]
        assert (away <= 15).mean() > 0.93
