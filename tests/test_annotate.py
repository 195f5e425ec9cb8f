"""From images, detections and masks to annotated graphs, and detections from images alone."""

import os
import re
import shlex
import shutil
import signal
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image
from scipy.spatial import KDTree

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
from grace_lightning.ridges import RidgeDetector
from grace_lightning.simulate import Simulator, image_generator
from grace_lightning.tasks.annotate import annotate_folder

NUMBERS = np.zeros((6, 9), np.int64)
NUMBERS[1:3, :4], NUMBERS[1:3, 5:] = 3, 300
BINARY = (NUMBERS > 0).astype(np.uint8)


def write_palette(path, values):
    image = Image.fromarray(values.astype(np.uint8)).convert("P")
    image.putpalette([200, 10, 10, 90, 90, 90, *range(6)])
    image.save(path)


WRITERS = {
    "m.tif": tifffile.imwrite,
    "m.TIFF": lambda path, values: tifffile.imwrite(path, values[None], compression="zlib"),
    "inverted.tif": lambda path, values: tifffile.imwrite(path, values, photometric="miniswhite"),
    "m.png": lambda path, values: path.write_bytes(imagecodecs.png_encode(values)),
    "bits.png": lambda path, values: Image.fromarray(values > 0).save(path),
    "palette.png": write_palette,
    "m.npy": np.save,
    "m.npz": np.savez,
    "named.npz": lambda path, values: np.savez_compressed(path, annotation=values, other=np.zeros(3)),
}


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        *((name, BINARY * 255, BINARY) for name in WRITERS),
        *((name, NUMBERS.astype(np.uint16), NUMBERS) for name in WRITERS if name not in ("bits.png", "palette.png")),
        ("m.tif", BINARY, BINARY),
        ("m.npy", NUMBERS.astype(np.float32), NUMBERS),
        ("m.npy", NUMBERS[None], NUMBERS),
        ("m.npy", NUMBERS > 0, BINARY),
        ("palette.png", NUMBERS % 298, NUMBERS % 298),  # its numbers, not its colours
    ],
)
def test_every_format_gives_the_numbers_that_it_stores(name, values, expected, tmp_path):
    WRITERS[name](tmp_path / name, values)
    mask = read_mask(tmp_path / name, (6, 9))
    assert mask.dtype == torch.int32
    assert mask.tolist() == expected.tolist()


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
        ("m.npy", NUMBERS.T, "6 x 9 pixels, expected the image's 9 x 6; are its axes swapped"),
        ("m.npy", NUMBERS * 0.5, "8 values are no whole numbers, such as 1.5; expected 0 for background.*threshold"),
        ("m.npy", NUMBERS * np.nan, "54 values are no whole numbers, such as nan"),
        ("m.npy", -NUMBERS, "holds the value -300, expected 0 for background"),
        ("m.npy", NUMBERS << 24, "holds the value 5033164800, expected .* below"),
        ("m.npy", NUMBERS + 1, "no pixel is 0, expected 0 for background"),
        ("m.npy", NUMBERS.astype(str), "values are <U21, expected 0"),
        ("m.npz", {"a": NUMBERS, "b": NUMBERS}, "arrays a, b, expected one named annotation, or a single one"),
        ("m.tif", b"no picture", "cannot be read as a mask"),
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


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("twice", "twice: a.png, a_mask.tif may each be the mask of a, expected one"),
        ("images", "images: no mask for any of 1 image, expected files such as a_mask.tif"),
        ("nowhere", "nowhere: no such folder"),
    ],
)
def test_folders_of_no_use(folder, message, tmp_path):
    images = touch(tmp_path / "images", "a.mrc")
    touch(tmp_path / "twice", "a_mask.tif", "a.png")
    with pytest.raises(InputError, match=message):
        find_masks(tmp_path / folder, images)


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
def annotate(run):
    return lambda *keys: run("annotate", *keys)


def test_exact_labels_of_a_cut_bar(data, annotate):
    status, out, err = annotate(f"image_dir={data}", "out_dir=out")
    assert (status, err) == (0, "")
    assert out == "annotated 2 of 2 images in out\nnodes 8, of which 6 positive; edges 10, of which 2 positive\n"
    graph, annotation, metadata = read_grace("out/a.grace")
    assert graph.pos.tolist() == POSITIONS[["x", "y"]].to_numpy().tolist()
    assert graph.label("node").tolist() == [1, 1, 1, 0]
    assert graph.confidence.tolist() == pytest.approx(POSITIONS["confidence"].tolist())
    assert graph.edges.T.tolist() == [[0, 1], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert graph.label("edge").tolist() == [1, 0, 0, 0, 0]
    assert annotation.unique().tolist() == [0, 1]
    assert metadata == {"image_filename": "a"}
    edges = pd.read_parquet("out/a.grace/edges.parquet")
    assert edges["edge_properties_keys"][0].tolist() == list(EDGE_PROPERTIES)
    assert {str(path) for path in [*Path().glob("*"), *Path().glob("out/*")]} == {"out", "out/a.grace", "out/b.grace"}


def test_picks_that_come_twice_are_told(data, annotate):
    twice = pd.concat([POSITIONS, POSITIONS.assign(x=POSITIONS["x"] + 1)], ignore_index=True)
    write_detections(data / "a.h5", twice)
    status, _, err = annotate(f"image_dir={data}", "out_dir=out")
    assert status == 0
    assert re.search(r"a.h5: 4 of 8 detections lie within 2 pixels of another one; .*a network learns", err)
    assert read_grace("out/a.grace")[0].num_nodes == 8


def test_folders_may_differ_and_numbers_are_kept(data, annotate, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "picks").mkdir(exist_ok=True)
        POSITIONS.to_csv(tmp_path / "picks" / f"{name}.csv", index=False)
        mask = tifffile.imread(data / f"{name}_mask.tif").astype(np.uint16)
        mask[:, :25] *= 2
        (tmp_path / "masks").mkdir(exist_ok=True)
        np.save(tmp_path / "masks" / f"{name}.npy", mask)
    for path in [*data.glob("*_mask.tif"), *data.glob("*.h5")]:
        path.unlink()
    folders = [f"image_dir={data}", f"detections_dir={tmp_path}/picks", f"mask_dir={tmp_path}/masks", "out_dir=out"]
    assert annotate(*folders)[0] == 0
    graph, annotation, _ = read_grace("out/b.grace")
    assert graph.label("node").tolist() == [1, 1, 1, 0]
    assert annotation.unique().tolist() == [0, 255, 510]


def test_several_files_of_detections_are_asked_for(data, annotate):
    POSITIONS[:3].to_csv(data / "a.CSV", index=False)
    status, out, err = annotate(f"image_dir={data}", "out_dir=out")
    assert (status, out.partition("\n")[0]) == (1, "annotated 1 of 2 images in out, 1 failed")
    assert re.fullmatch("grace-annotate: .*data: a.h5, a.CSV .*set detections_format=h5 or csv\n", err)
    assert annotate(f"image_dir={data}", "out_dir=out", "detections_format=h5")[0] == 0
    assert read_grace("out/a.grace").graph.num_nodes == 4
    status, _, err = annotate(f"image_dir={data}", "out_dir=csv", "detections_format=csv")
    assert status == 1
    assert re.fullmatch("grace-annotate: .*b.tif: no detections in .*, expected b with one of .csv; .*\n", err)
    assert read_grace("csv/a.grace").graph.num_nodes == 3


def test_what_is_done_is_left_alone_unless_overwritten(data, annotate):
    annotate(f"image_dir={data}", "out_dir=out")
    shutil.rmtree("out/b.grace")
    tifffile.imwrite(data / "a_mask.tif", np.eye(30, 36, dtype=np.uint8))
    status, out, _ = annotate(f"image_dir={data}", "out_dir=out")
    assert status == 0
    assert out.startswith("annotated 1 of 2 images in out, 1 there already (overwrite=true: anew)\n")
    assert read_grace("out/a.grace").graph.label("node").sum() == 3
    with pytest.warns(InputWarning, match=r"a_mask.tif: none of the 4 detections is inside"):
        assert annotate_folder(str(data), "out", overwrite=True) == {}
    assert read_grace("out/a.grace").graph.label("node").sum() == 0


def test_a_grace_folder_is_made_anew_from_its_own_annotation(data, annotate):
    annotate(f"image_dir={data}", f"out_dir={data}")
    before = read_grace(data / "a.grace").graph
    for path in (data / "a_mask.tif", data / "b_mask.tif", data / "a.grace" / "edges.parquet"):
        path.unlink()
    assert annotate(f"image_dir={data}", f"out_dir={data}", "overwrite=true")[0] == 0
    assert torch.equal(read_grace(data / "a.grace").graph.edge_label, before.edge_label)


FAILING = {
    "a": (lambda a, mask, h5: None, "a: a bug, please report it\n(.*\n)+ZeroDivisionError: division by zero\n"),
    "c": (lambda c, mask, h5: c.write_bytes(b"II*"), "c.tif: cannot be read"),
    "h": (lambda h, mask, h5: h5.unlink(), "h.tif: no detections in .*, expected h with .*detections=ridge"),
    "m": (lambda m, mask, h5: mask.unlink(), "m.tif: no mask in .*data, expected a file such as m_mask.tif"),
    "n": (lambda n, mask, h5: tifffile.imwrite(mask, BINARY), "n_mask.tif: 9 x 6 pixels"),
    "o": (lambda o, mask, h5: write_detections(h5, POSITIONS + 30), "o.h5: detection 0 at x=32.0, y=35.0 lies out"),
}


def test_images_that_fail_are_named_when_the_others_are_done(data, annotate, monkeypatch):
    def read_with_a_bug(path, **keys):
        return 1 / 0 if path.stem == "a" else read_image(path, **keys)

    monkeypatch.setattr("grace_lightning.io.read_image", read_with_a_bug)
    for name, (spoil, _) in FAILING.items():
        spoil(*(Path(shutil.copy(data / f"b{end}", data / f"{name}{end}")) for end in (".tif", "_mask.tif", ".h5")))
    status, out, err = annotate(f"image_dir={data}", "out_dir=out")
    assert status == 1
    assert out.startswith("annotated 1 of 7 images in out, 6 failed\n")
    assert re.fullmatch("".join(f"grace-annotate: .*{message}.*\n" for _, message in FAILING.values()), err), err
    assert [path.name for path in Path("out").iterdir()] == ["b.grace"]


def test_a_signal_ends_the_command_after_the_image_in_hand(data, annotate, monkeypatch):
    def read_and_ask(path, **keys):
        os.kill(os.getpid(), signal.SIGINT)
        return read_image(path, **keys)

    shutil.copy(data / "b.tif", data / "[c] (1) ü.tif")
    shutil.copy(data / "b_mask.tif", data / "[c] (1) ü_mask.tif")
    command = [f"image_dir={data}", "out_dir=[bold] (1) ü"]
    with monkeypatch.context() as patch:
        patch.setattr("grace_lightning.io.read_image", read_and_ask)
        status, out, err = annotate(*command)
    assert status == 128 + signal.SIGINT
    assert out == "annotated 0 of 3 images in [bold] (1) ü, 1 failed, 2 left to do\n"
    failed, said = err.splitlines()
    assert "no detections" in failed
    assert said == f"grace-annotate: stopped by Ctrl-C; go on with: {shlex.join(['grace-annotate', *command])}"
    assert annotate(*command)[1].startswith("annotated 2 of 3 images in [bold] (1) ü, 1 failed\n")


def test_an_out_dir_that_cannot_be_made_is_named(data, annotate):
    Path("taken").touch()
    for folder in ("taken", "taken/out"):
        status, _, err = annotate(f"image_dir={data}", f"out_dir={folder}")
        assert status == 2
        assert re.fullmatch(f"grace-annotate: out_dir: {folder} cannot be made .*\n", err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("out_dir=out", "image_dir is not set, expected the folder of micrographs"),
        ("image_dir=x out_dir=out", "image_dir: x: no such folder"),
        ("image_dir=. out_dir=out detections_dir=x", "detections_dir: x: no such folder"),
        ("image_dir=x out_dir=out overwrite=maybe", "overwrite: 'maybe', expected bool"),
        ("image_dir=x out_dir=out detections=rigde", "files.*ridge"),
        ("image_dir=x out_dir=out detections=ridge detections.scale=0", "scale: 0, expected 3 or more"),
        ("image_dir=x out_dir=out detections=ridge detections_dir=y", "leave out one of detections_dir"),
        ("image_dir=x out_dir=out detections=ridge detections_format=h5", "leave out one of detections_format"),
        ("image_dir=x out_dir=out detections_format=txt", "detections_format: 'txt', expected .*'h5'"),
    ],
)
def test_wrong_words_on_the_command_line(arguments, message, annotate):
    status, _, err = annotate(*arguments.split())
    assert status == 2
    assert re.fullmatch(f"grace-annotate: .*{message}.*\n", err), err
    assert not list(Path().iterdir())


@pytest.mark.shared
@pytest.mark.parametrize("part", ["train", "valid", "infer"])
def test_labels_of_the_photographs(part, shared, tmp_path):
    """As the original program stored them; an edge may differ where one pixel at a mask's rim decides."""
    folder = shared / "data" / "roots" / part
    assert annotate_folder(str(folder), str(tmp_path)) == {}
    for path in sorted(folder.glob("*.grace")):
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


@pytest.mark.parametrize(("angle", "offset"), [(0.0, 3.3), (0.4, 0.0), (1.0, 3.3), (np.pi / 2, 0.0), (2.5, 3.3)])
def test_points_on_a_bar_lie_on_its_centre_line_at_equal_distances(angle, offset):
    image, away = bar(angle, offset)
    noise = 0.05 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    found = RidgeDetector(scale=10.0, spacing=12.0, polarity="bright", threshold=20.0)(image + noise)
    # at the border the image is reflected, and a line with it
    found = found[found["x"].between(15, 184) & found["y"].between(15, 184)]
    assert np.abs(away(found["x"], found["y"])).max() < 0.5
    along = np.sort(found["x"] * np.cos(angle) + found["y"] * np.sin(angle))
    assert np.diff(along) == pytest.approx(12.0, abs=3.5)  # the image is reduced by 2
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


@pytest.fixture(scope="module")
def simulation():
    return Simulator(size=(600, 600), num_filaments=3, num_blobs=3, p_carbon=0.0)("m", image_generator(2, "m"))


def test_ridges_of_a_simulated_micrograph_are_its_filaments(simulation):
    found = RidgeDetector(scale=20.0)(simulation.sample.image)[["x", "y"]].to_numpy()
    truth = np.concatenate(simulation.centre_lines)
    truth = truth[((truth >= 0) & (truth <= 599)).all(axis=1)]
    assert (KDTree(found).query(truth)[0] <= 15).mean() > 0.95
    assert (KDTree(truth).query(found)[0] <= 5).mean() > 0.6  # false ones do no harm


def test_ridge_detections_are_written_beside_the_graph(simulation, tmp_path, annotate):
    image, annotation = simulation.sample.image, simulation.sample.annotation
    tifffile.imwrite(tmp_path / "m.tif", image[0].numpy())
    np.savez(tmp_path / "m_mask.npz", annotation.numpy())
    arguments = [f"image_dir={tmp_path}", "out_dir=out", "detections=ridge", "detections.spacing=15"]
    status, _, err = annotate(*arguments)
    assert (status, err) == (0, "")
    graph = read_grace("out/m.grace").graph
    frame = read_detections("out/m.h5")
    assert list(frame.columns) == ["x", "y", "confidence"]
    assert torch.equal(graph.pos, torch.from_numpy(frame[["x", "y"]].to_numpy(np.float32)))
    assert graph.label("node").float().mean() > 0.7
    assert graph.label("edge").sum() > 50

    shutil.rmtree("out/m.grace")
    assert annotate(*arguments)[0] == 0  # a run that was killed has left the same detections
    pd.testing.assert_frame_equal(read_detections("out/m.h5"), frame)
    write_detections("out/m.h5", frame[1:])
    shutil.rmtree("out/m.grace")
    status, _, err = annotate(*arguments)
    assert status == 1
    assert "m.h5: is there already; set out_dir to another folder, or overwrite=true" in err
    assert annotate(*arguments, "overwrite=true")[0] == 0
    pd.testing.assert_frame_equal(read_detections("out/m.h5"), frame)


@pytest.mark.shared
def test_ridges_of_photographs_are_their_roots(shared):
    for path in sorted((shared / "data" / "roots" / "train").glob("*.png"))[:2]:
        graph, _, _ = read_grace(path.with_suffix(".grace"))
        found = RidgeDetector(scale=20.0, polarity="bright")(read_image(path))
        away = KDTree(found[["x", "y"]].to_numpy()).query(graph.pos[graph.label("node") == 1].numpy())[0]
        assert (away <= 15).mean() > 0.93


def test_the_window_needs_napari(annotate, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "napari", None)
    monkeypatch.delitem(sys.modules, "grace_lightning.gui.panel", raising=False)
    status, _, err = annotate(f"image_dir={data}", "gui=true")
    assert status == 2
    assert "gui: the window needs napari, which cannot be imported" in err
    assert "pip install 'grace-lightning[napari]'" in err
    assert annotate("image_dir=nowhere", "gui=true")[2].startswith("grace-annotate: image_dir: nowhere")
