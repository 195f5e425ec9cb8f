import json
import pickle
import resource
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path
from typing import get_args

import h5py
import imagecodecs
import mrcfile
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
import torch

from grace_lightning import io
from grace_lightning.errors import InputError, InputWarning
from grace_lightning.graph import Graph, TruthSource, edge_geometry


def refuses(read, *arguments, at=None, words=(), **options):
    """Expect an InputError of one line that begins with ``at`` (or the first argument) and holds ``words``."""
    with pytest.raises(InputError) as caught:
        read(*arguments, **options)
    message = str(caught.value)
    assert message.startswith(f"{at or arguments[0]}: ")
    assert [word for word in ("\n", *words) if word not in message] == ["\n"]


# ---- images ----------------------------------------------------------------------------------------------------

PIXELS = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000  # up to 55000: clipped if read as 8 bit
STACK = np.stack([PIXELS, PIXELS // 2, PIXELS // 4, PIXELS // 8, PIXELS // 16])
BYTES = np.array([[0, 200]], dtype=np.uint8)
ALPHA = np.array([[[0, 255], [200, 0]]], dtype=np.uint8)


def write_image(path, pixels, **options):
    suffix = "".join(path.suffixes).lower()
    if suffix.startswith(".mrc"):
        with mrcfile.new(path, compression={".gz": "gzip", ".bz2": "bzip2"}.get(path.suffix)) as file:
            file.set_data(pixels)
            file.voxel_size = options.pop("voxel_size", 0)
            for name, value in options.items():
                file.header[name] = value
    elif suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(pixels))
    else:
        tifffile.imwrite(path, pixels, **{"photometric": "minisblack"} | options)


@pytest.mark.parametrize(
    ("name", "pixels", "options", "expected"),
    [
        *((name, PIXELS, {}, PIXELS) for name in ("a.MRC", "a.mrc.gz", "a.mrc.bz2", "a.tif", "a.TIFF", "a.PNG")),
        *(("a.mrc", np.array([[-3, 7]], dtype), {}, [[-3, 7]]) for dtype in ("i1", "i2", "f2", "f4")),
        # Old bytes are unsigned if the header says so.
        ("a.mrc", np.array([[-112, -97]], "i1"), {"dmin": 144, "dmax": 159}, [[144, 159]]),
        ("a.png", BYTES, {}, BYTES),
        ("a.png", ALPHA, {}, BYTES),
        ("a.tif", BYTES, {"photometric": "miniswhite"}, 255 - BYTES),
    ],
)
def test_every_format_gives_the_numbers_that_were_meant(tmp_path, name, pixels, options, expected):
    write_image(tmp_path / name, pixels, **options)
    image = io.read_image(tmp_path / name)
    assert image.dtype == torch.float32
    assert image.tolist() == [np.asarray(expected).tolist()]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 3), (np.uint16, 4)])
def test_colours_become_luminance_and_alpha_goes(tmp_path, name, dtype, channels):
    top = np.iinfo(dtype).max
    colours = np.array([[[top, 0, 0, 7], [0, top, 0, 7], [0, 0, top, 7], [top, top, top, 7]]], dtype=dtype)
    write_image(tmp_path / name, np.ascontiguousarray(colours[..., :channels]), photometric="rgb")
    grey = io.read_image(tmp_path / name)[0, 0] / top
    torch.testing.assert_close(grey, torch.tensor([0.299, 0.587, 0.114, 1.0]))


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.mrc", {}), ("a.mrc.gz", {}), ("a.tif", {}), ("a.tif", {"compression": "lzw"}), ("a.tif", {"imagej": True})],
)
def test_stack_is_refused_until_a_frame_is_chosen(tmp_path, name, options):
    write_image(tmp_path / name, STACK, **options)
    refuses(io.read_image, tmp_path / name, words=["5 frames", "set frame to", "mean"])
    assert io.read_image(tmp_path / name, frame=4)[0].tolist() == STACK[4].tolist()
    torch.testing.assert_close(io.read_image(tmp_path / name, frame="mean")[0].numpy(), STACK.mean(0, dtype=np.float32))
    for frame in (5, -1, "median"):
        refuses(io.read_image, tmp_path / name, frame=frame, words=[repr(frame), "set frame to"])


@pytest.mark.parametrize("name", ["a.mrc", "a.tif"])
def test_one_frame_of_an_uncompressed_stack_is_all_that_is_read_and_a_stack_of_one_is_an_image(tmp_path, name):
    write_image(tmp_path / name, PIXELS[None])
    for frame in (None, 0, "mean"):
        assert io.read_image(tmp_path / name, frame=frame).tolist() == [PIXELS.tolist()]
    (tmp_path / name).unlink()
    write_image(tmp_path / name, np.random.default_rng(0).integers(0, 99, (50, 500, 500), dtype=np.int16))
    tracemalloc.start()
    image = io.read_image(tmp_path / name, frame=30)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert image.shape == (1, 500, 500)
    assert peak < 5e6  # the stack has 25 MB, a frame 0.5 MB, and 1 MB as float32


def test_gaps_are_filled_with_the_mean_unless_there_is_nothing_else(tmp_path):
    write_image(tmp_path / "a.tif", np.array([[1, 3, np.nan, np.inf]], dtype=np.float32))
    with pytest.warns(InputWarning, match=r"a\.tif: 2 pixels"):
        assert io.read_image(tmp_path / "a.tif").tolist() == [[[1, 3, 2, 2]]]
    write_image(tmp_path / "a.tif", np.full((2, 2), np.nan, dtype=np.float32))
    refuses(io.read_image, tmp_path / "a.tif", words=["no pixel"])


@pytest.mark.parametrize("name", ["a.mrc", "a.mrc.gz", "a.mrc.bz2", "a.tif", "a.png"])
def test_truncated_images_and_text_under_an_images_name(tmp_path, name):
    write_image(tmp_path / name, np.random.default_rng(0).integers(0, 999, (64, 64), dtype=np.uint16))
    data = (tmp_path / name).read_bytes()
    for part in (data[: len(data) // 100], data[: len(data) * 9 // 10], b"\n" * 2000):  # letters: huge MRC headers
        (tmp_path / name).write_bytes(part)
        refuses(io.read_image, tmp_path / name)


def test_images_of_no_use(tmp_path):
    write_image(tmp_path / "b.tif", STACK[:3], photometric="rgb", planarconfig="separate")
    refuses(io.read_image, tmp_path / "b.tif", words=["3 frames"])  # colour planes that are stored apart
    for name in ("c.mrc", "c.tif"):
        write_image(tmp_path / name, np.ones((2, 2), dtype=np.complex64))
        refuses(io.read_image, tmp_path / name, words=["complex64", "real"])
    write_image(tmp_path / "a.tif", np.zeros((4, 50, 60), dtype=np.uint16), imagej=True)
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:12000])
    refuses(io.read_image, tmp_path / "a.tif", words=["corrupted"])  # not taken for its first frame
    for name, words in (("a.png", "not found"), ("a.jpg", ".mrc.bz2")):
        refuses(io.read_image, tmp_path / name, words=[words])


def test_pixel_size(tmp_path):
    for name, size in (("a.mrc", 1.25), ("b.mrc.gz", 1.25), ("c.mrc", None), ("d.png", None)):
        write_image(tmp_path / name, PIXELS, voxel_size=size or 0)
        assert io.pixel_size(tmp_path / name) == size


def test_stem():
    names = ["d/451.mrc.gz", "451.MRC", "Foil_1.2.tiff", "451.h5", "451.grace"]
    assert [io.stem(name) for name in names] == ["451", "451", "Foil_1.2", "451", "451"]


@pytest.mark.shared
def test_real_images(shared):
    tardis = shared / "data/formats/tardis/data_type"
    assert io.read_image(tardis / "mrc2D.mrc").aminmax() == (144, 159)  # the minimum and maximum of its header
    assert io.pixel_size(tardis / "mrc2D.mrc") == pytest.approx(23.2, abs=1e-3)


# ---- detections -------------------------------------------------------------------------------------------------

FRAME = pd.DataFrame({"x": [1.5, 20, 3], "y": [4, 5.25, 60], "confidence": [0.5, 0.25, 1], "n": [7, 8, 9]})


def assert_same(found, expected):
    pd.testing.assert_frame_equal(found[list(expected)], expected, check_dtype=False)


@pytest.mark.parametrize("options", [{"format": "fixed"}, {"format": "table", "data_columns": ["x"]}])
def test_pandas_files(tmp_path, options):
    frame = FRAME.astype({"x": "float32"}).set_index(np.array([5, 3, 9]))
    frame.to_hdf(tmp_path / "a.h5", key="df", complib="blosc:zstd", complevel=5, **options)
    found = io.read_detections(tmp_path / "a.h5")
    assert_same(found, FRAME)
    assert (found["x"].dtype, found["y"].dtype) == ("float32", "float64")


def test_text_is_read_unless_it_is_pickled_and_nothing_is_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    frame = FRAME.assign(name=["a", "b", "c"])
    with warnings.catch_warnings(action="ignore"):  # pandas: pickles the column
        frame.to_hdf(tmp_path / "a.h5", key="df", format="fixed")
    pd.testing.assert_index_equal(io.read_detections(tmp_path / "a.h5").columns, FRAME.columns, exact=False)
    frame.to_hdf(tmp_path / "a.h5", key="df", format="table", mode="w")
    assert_same(io.read_detections(tmp_path / "a.h5"), frame)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["df/table"].attrs["values_block_0_kind"] = np.bytes_(pickle.dumps([Harmful()], 0))
    refuses(io.read_detections, tmp_path / "a.h5", words=["expected plain strings", "format='fixed'"])
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("rows", [[], [[1.5, -2, 1e300]], [[0, 1e6, np.nan], [3, 1e-9, 7]]])
def test_written_detections_are_read_by_pandas_and_by_us(tmp_path, rows):
    frame = pd.DataFrame(rows, columns=["x", "y", "größe"], dtype=np.float64)
    io.write_detections(tmp_path / "a.h5", frame)
    pd.testing.assert_frame_equal(pd.read_hdf(tmp_path / "a.h5", "df"), frame)
    pd.testing.assert_frame_equal(io.read_detections(tmp_path / "a.h5"), frame)


STAR = (
    "data_optics\n\nloop_\n_rlnOpticsGroup #1\n1\n\ndata_particles\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n"
)
CBOX = (
    "data_global\n\n_cbox_format_version 1.0\n\ndata_cryolo\n\nloop_\n"
    "_CoordinateX #1\n_CoordinateY #2\n_CoordinateZ #3\n_Width #4\n_Height #5\n"
    "_Confidence #6\n_filamentid #7\n{}\ndata_cryolo_include\n\nloop_\n_slice_index #1\n"
)
CENTRES = {"x": [60.0, 5], "y": [50.0, 5]}
HELICON = """#micrograph: a.mrc
#segment length: 200
#segment width: 200
#helix: (1.5, 2.0),(9.0, 9.0),200
1.5\t2.0
#helix: (3.0, 4.0),(9.0, 9.0),200
3.0\t4.0
"""


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.star", STAR + "_rlnAutopickFigureOfMerit #3\n1.5 2 0.75\n3 4 0.5\n", {"confidence": [0.75, 0.5]}),
        ("a.star", STAR + "_rlnAnglePsi #3\n1.5 2 7\n3 4 8\n", {"rlnAnglePsi": [7, 8]}),
        (
            "a.star",
            "data_\n\n_rlnCoordinateX 1.5\n_rlnImageName 'a b' # one\n_rlnCoordinateY 2\n",
            {"x": [1.5], "y": [2]},
        ),
        ("a.csv", "x,y,n\n1.5,2,7\n3,4,8\n", {"n": [7, 8]}),
        ("a.csv", "X, Y, n\n1.5,2,7\n3,4,8\n", {"n": [7, 8]}),
        ("a.csv", "axis-1,axis-0,n\n1.5,2,7\n3,4,8\n", {"n": [7, 8]}),
        ("a.csv", "X , Y,n\n1.5 , 2,7\n3,4,8\n", {"n": [7, 8]}),
        ("a.csv", "\ufeffx;y;n\r\n1,5;2;7\r\n3;4;8\r\n", {"n": [7, 8]}),
        ("a.CSV", "# x\ty\tn\n1.5\t2\t7\n3\t4\t8\n", {"n": [7, 8]}),
        ("a.csv", "x,y,confidence\n1.5,2,0.5\n3,4,\n", {"confidence": [0.5, 1]}),
        ("a.cbox", CBOX.format("10 20 <NA> 100 60 0.5 3\n0 0 <NA> 10 10 0.25 4\n"), CENTRES | {"filament": [3, 4]}),
        ("a.cbox", CBOX.format("10 20 <NA> 100 60 <NA> 3\n0 0 <NA> 10 10 <NA> 4\n"), CENTRES),
        ("a.cbox", "10\t20\t100\t60\t0.5\t98\t61\n0\t0\t10\t10\t0.25\t9\t9\n", CENTRES | {"confidence": [0.5, 0.25]}),
        ("a.cbox", CBOX.format("10 20 5 100 60 0.5 3\n0 0 5 10 10 <NA> 4\n"), CENTRES | {"confidence": [0.5, 1]}),
        ("a.box", "# helix\n10 20 100 60 -1\n  0 0 10 10 -2\n", CENTRES),
        ("a.box", "-20 -30 43 64\n-2 -1 10 10\n", {"y": [2.0, 4]}),
        ("a.box", HELICON, {"filament": [0, 1]}),
        ("a.box", "#micrograph: a.mrc\n\n", {"x": [], "y": []}),
        *((name, "", {"x": [], "y": []}) for name in ("a.cbox", "a.box")),
        ("a.cbox", CBOX.format(""), {"x": [], "y": []}),
        ("a.cbox", "data_global\n\n_cbox_format_version 1.0\n\ndata_cryolo\n\nloop_\n\n", {"x": [], "y": []}),
    ],
)
def test_text_files(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    found = io.read_detections(tmp_path / name)
    assert_same(found, pd.DataFrame({"x": [1.5, 3], "y": [2.0, 4]} | expected))
    assert ("confidence" in found and not found.empty) == ("0.5" in text)


def test_points(tmp_path):
    (tmp_path / "a.csv").write_text("x,y,confidence\n1,2,0.5\n3,4,0.25\n")
    assert [values.tolist() for values in io.read_points(tmp_path / "a.csv")] == [[[1, 2], [3, 4]], [0.5, 0.25]]
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    assert io.read_points(tmp_path / "a.csv")[1] is None


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "a,b\n1,2\n", ["no column x and y", "found a, b"]),
        ("a.csv", "x,y\n1,2\n3,nan\n", ["y of detection 1 is nan", "1 of 2"]),
        ("a.csv", "x,y,confidence\n1,2,0.5\n1,3,high\n", ["confidence of detection 1 is high"]),
        ("a.csv", "x,y\n1,2\n1e300,3\n", ["x of detection 1 is 1e+300"]),
        ("a.csv", "x , y,x\n1,2,3\n", ["two columns", "x"]),
        ("a.csv", "x;y\n1.234,5;2\n", ["x of detection 0 is 1.234,5"]),
        ("a.csv", "x,y,z\n1,2,3\n1,2,4\n", ["three dimensions (z)"]),
        ("a.csv", "x y\n1 2\n", ["no column x and y", "found x y"]),
        ("a.csv", "axis-0,axis-1,axis-2\n1,2,3\n", ["axis-2"]),
        ("a.csv", "index,shape-type,vertex-index,axis-0,axis-1\n0,path,0,1,2\n", ["shape-type"]),
        ("a.star", "data_\n\nloop_\n_rlnCoordinateX #1\n1\n", ["rlnCoordinateY", "found rlnCoordinateX"]),
        ("a.star", STAR + "_rlnMicrographName #3\n1 2 m1.mrc\n3 4 m2.mrc\n", ["2 micrographs", "m1.mrc"]),
        ("a.star", STAR + "_rlnCoordinateX #3\n1 2 3\n", ["two columns", "rlnCoordinateX"]),
        ("a.star", STAR + "_rlnCoordinateZ #3\n1 2 3\n1 2 4\n", ["three dimensions (rlnCoordinateZ)"]),
        ("a.star", STAR + "_rlnAutopickFigureOfMerit #3\n1 2 3\n1 2\n", ["3 columns", "cut short"]),
        ("a.star", STAR + "1 2 3\n1 2 3\n", ["2 columns"]),
        ("a.star", STAR.replace("particles", "hot_pixels") + "1 2\n", ["of picks"]),
        ("a.cbox", "data_global\n\n_cbox_format_version 1.0\n", ["data_cryolo"]),
        ("a.cbox", CBOX.replace("Confidence", "Width").format("1 2 <NA> 4 4 4 4\n"), ["two columns", "Width"]),
        ("a.cbox", CBOX.format("1 2 3 4 4 1 1\n1 2 7 4 4 1 1\n"), ["three dimensions (CoordinateZ)"]),
        ("a.cbox", CBOX.replace("Confidence", "Depth").format("1 2 3 4 4 4 1\n"), ["three dimensions (Depth"]),
        ("a.box", "1 2 3\n", ["3 columns", "Height"]),
        ("a.box", "1 2 wide 4\n", ["x of detection 0"]),
        ("a.txt", "1 2", [".h5", ".csv"]),
    ],
)
def test_bad_detections(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    refuses(io.read_detections, tmp_path / name, words=words)


@pytest.mark.parametrize("odd", ["\ufeff{}", "{}"])
def test_a_star_of_another_system_holds_picks(tmp_path, odd):
    (tmp_path / "a.star").write_bytes(odd.format(STAR + "1 2\n").replace("\n", "\r").encode())
    assert io.find_detections(tmp_path, {"a"}).files == {"a": tmp_path / "a.star"}
    assert io.read_points(tmp_path / "a.star")[0].tolist() == [[1, 2]]


def test_pandas_file_of_another_key(tmp_path):
    FRAME.to_hdf(tmp_path / "a.h5", key="points")
    refuses(io.read_detections, tmp_path / "a.h5", words=["no frame under key df", "keys: points"])


WRITTEN_BY_RELION = [  # relion_star_handler 3.1 writes names so, and reads them
    *("p#hash.mrc", "data_x.mrc", "loop_.mrc", "it's.mrc", "[x].mrc", "$x.mrc"),
    *('"a b.mrc"', '"a #b.mrc"', '""q.mrc"'),
    *("'#x.mrc'", "'_x.mrc'", "';x.mrc'", "'a\"b.mrc'"),  # it reads these
]


@pytest.mark.parametrize("written", WRITTEN_BY_RELION)
def test_names_of_micrographs_in_a_star_file(tmp_path, written):
    columns = "data_\n\nloop_ \n_rlnMicrographName #1 \n_rlnCoordinateX #2 \n_rlnCoordinateY #3 \n"
    (tmp_path / "a.star").write_text(f"# version 30001\n\n{columns}{written} 1.5 2\n {written} 3 4 # twice\n \n")
    found = io.read_detections(tmp_path / "a.star")
    assert_same(found, pd.DataFrame({"x": [1.5, 3], "y": [2.0, 4]}))
    quoted = written[0] == written[-1] and written[0] in "'\""
    assert set(found["rlnMicrographName"]) == {written[1:-1] if quoted else written}


def test_a_star_file_that_was_repaired_is_read_anew(tmp_path):
    (tmp_path / "a.star").write_text(STAR + "7 8\n9 10 11\n")
    refuses(io.read_detections, tmp_path / "a.star")
    (tmp_path / "a.star").write_text(STAR + "1 2\n3 4\n")
    assert io.read_detections(tmp_path / "a.star")["x"].tolist() == [1, 3]


def write_particles(path, sizes, origins):
    """Write a particle on a micrograph of 2 Angstrom per pixel; ``sizes`` are columns of the optics, of value."""
    optics = "".join(f"_{name} #{number}\n" for number, name in enumerate(["rlnOpticsGroup", *sizes], 1))
    columns = "".join(f"_{name} #{number}\n" for number, name in enumerate(origins, 3))
    path.write_text(
        STAR.replace("_rlnOpticsGroup #1\n1\n", f"{optics}1 {' '.join(map(str, sizes.values()))}\n")
        + f"{columns}100 200 {' '.join(map(str, origins.values()))}\n"
    )


ANGSTROM = {"rlnOriginXAngst": 30, "rlnOriginYAngst": -11}


@pytest.mark.parametrize(
    ("sizes", "origins", "pixel_size"),
    [
        ({"rlnMicrographOriginalPixelSize": 1, "rlnImagePixelSize": 4, "rlnMicrographPixelSize": 2}, ANGSTROM, 9),
        ({"rlnMicrographOriginalPixelSize": 1, "rlnImagePixelSize": 4}, ANGSTROM, 2),
        ({"rlnMicrographOriginalPixelSize": 2, "rlnImagePixelSize": 2}, ANGSTROM, None),
        ({"rlnImagePixelSize": 2}, ANGSTROM, None),
        ({}, {"rlnOriginX": 15, "rlnOriginY": -5.5}, None),
        ({}, {"rlnOriginX": 7.5, "rlnOriginY": -2.75, "rlnMagnification": 10000, "rlnDetectorPixelSize": 4}, 2),
    ],
)
def test_origins_are_subtracted(tmp_path, sizes, origins, pixel_size):
    """RELION 3.1 re-extracts these with --recenter at (85, 206), which leaves an origin of 0 and 1 Angstrom."""
    write_particles(tmp_path / "a.star", sizes, origins)
    found = io.read_detections(tmp_path / "a.star", pixel_size=pixel_size)
    assert found[["x", "y"]].to_numpy().tolist() == [[85, 205.5]]


def test_origins_without_a_pixel_size(tmp_path):
    for sizes in ({}, {"rlnMicrographOriginalPixelSize": 1, "rlnImagePixelSize": 4}):
        write_particles(tmp_path / "a.star", sizes, ANGSTROM)
        refuses(io.read_detections, tmp_path / "a.star", words=["rlnOriginXAngst", "rlnMicrographPixelSize"])
        write_particles(tmp_path / "a.star", sizes, dict.fromkeys(ANGSTROM, 0))
        assert io.read_detections(tmp_path / "a.star")[["x", "y"]].to_numpy().tolist() == [[100, 200]]


def write_raw_h5(path, names=("x", "y"), **values):
    with h5py.File(path, "w") as file:
        group = file.create_group("df")
        group.attrs["nblocks"] = 1
        group["block0_items"] = np.array(names, dtype="S")
        group.create_dataset("block0_values", **values)


def test_a_small_file_that_unpacks_to_more_than_the_bound(tmp_path):
    write_raw_h5(tmp_path / "a.h5", shape=(2**26, 2), dtype="f8", chunks=True)  # nothing of it is stored
    write_raw_h5(tmp_path / "b.h5", shape=(1, 2), maxshape=(None, 2), dtype="f8", chunks=(2**26, 2))
    with (tmp_path / "c.csv").open("wb") as file:
        file.truncate(2**30)
    for name in ("a.h5", "b.h5", "c.csv"):
        assert (tmp_path / name).stat().st_blocks < 100
        refuses(io.read_detections, tmp_path / name, max_gib=0.9, words=["1 GiB", "set io.max_gib higher"])
        refuses(io.read_detections, tmp_path / name, max_gib=0.9, group="data.", words=["set data.max_gib higher"])


def test_pandas_files_that_lead_elsewhere_or_nowhere(tmp_path):
    write_raw_h5(tmp_path / "a.h5", shape=(4, 2), dtype="u1", external=[("/etc/hostname", 0, 8)])
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["df"] = h5py.ExternalLink(tmp_path / "a.h5", "df")
    for name in ("a.h5", "b.h5"):
        refuses(io.read_detections, tmp_path / name, words=["another file"])
    write_raw_h5(tmp_path / "c.h5", ["x", "y", "x"], data=np.zeros((3, 4)))
    refuses(io.read_detections, tmp_path / "c.h5", words=["two columns are called x"])
    nested = ["x"]
    for _ in range(40):  # of 2^40 names
        nested = [nested, nested]
    FRAME.to_hdf(tmp_path / "d.h5", key="df", format="table")
    with h5py.File(tmp_path / "d.h5", "r+") as file:
        file["df/table"].attrs["values_block_0_kind"] = np.bytes_(pickle.dumps(nested, 0))
    refuses(io.read_detections, tmp_path / "d.h5", words=["expected plain strings"])


def test_detections_are_written_whole_or_not_at_all(tmp_path):
    frame = pd.DataFrame(np.random.default_rng(0).random((2000, 2)), columns=["x", "y"])
    io.write_detections(tmp_path / "a.h5", frame[:5])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (24 * 1024, hard))  # as on a full disk
    try:
        for name in ("a.h5", "b.h5"):
            refuses(io.write_detections, tmp_path / name, frame, words=["cannot be written"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
    pd.testing.assert_frame_equal(io.read_detections(tmp_path / "a.h5"), frame[:5])


# A folder of a motion correction by RELION: the coordinates are of hot pixels and of patches.
MOTION = (
    "data_general\n\n_rlnImageSizeX 256\n\ndata_local_shift\n\nloop_\n_rlnMicrographFrameNumber #1\n"
    "_rlnCoordinateX #2\n_rlnCoordinateY #3\n1 9 9\n\ndata_hot_pixels\n\nloop_\n_rlnCoordinateX #1\n"
    "_rlnCoordinateY #2\n50 40\n"
)


def test_the_one_file_of_each_image_that_holds_detections(tmp_path):
    for name in ("a.H5", "b.csv", "b.star", "c.Star", "d.box", "d.txt", "e.star", "other.csv", ".a.csv"):
        (tmp_path / name).write_text(STAR if name == "c.Star" else MOTION)
    found = io.find_detections(tmp_path, {*"abcdefg"})
    assert {name: path.name for name, path in found.files.items()} == {
        "a": "a.H5",
        "b": "b.csv",
        "c": "c.Star",
        "d": "d.box",
    }
    assert found.failures == {}
    assert "2 of 3 .star files hold no picks and were passed over: b.star, e.star" in found.notes[0]
    assert ".h5 of 1" in found.notes[1]
    found = io.find_detections(tmp_path, {*"abcd"}, "csv")
    assert found == ({"b": tmp_path / "b.csv"}, {}, [])


def test_every_format_can_be_asked_for():
    assert [f".{name}" for name in get_args(io.DetectionsFormat)] == list(io.DETECTION_SUFFIXES)


def test_several_files_of_detections_are_refused(tmp_path):
    for name in ("a.h5", "a.csv", "b.csv", "b.CSV"):
        (tmp_path / name).touch()
    refuses(io.find_detections, tmp_path, {"a", "b"}, words=["of a, a.h5, a.csv", "detections_format=h5 or csv"])
    refuses(io.find_detections, tmp_path, {"b"}, words=["of b, b.CSV, b.csv", "move the others away"])
    (tmp_path / "c.h5").touch()
    found = io.find_detections(tmp_path, {"a", "b", "c"})
    assert found.files == {"c": tmp_path / "c.h5"}
    assert sorted(found.failures) == ["a", "b"]
    assert found.failures["a"].startswith(f"{tmp_path}: a.h5, a.csv ")
    found = io.find_detections(tmp_path, {"a", "c"}, "h5")
    assert found == ({"a": tmp_path / "a.h5", "c": tmp_path / "c.h5"}, {}, [])


# ---- .grace folders ---------------------------------------------------------------------------------------------

#   0 --- 1
#   |  \  |
#   2 --- 3
GRAPH = Graph(
    pos=torch.tensor([[0.0, 0], [5, 0], [0, 5], [5, 5]]),
    edges=torch.tensor([[2, 0, 0, 1, 0], [3, 3, 1, 3, 2]]),
    confidence=torch.tensor([0.5, 0.25, 1, 0]),
    embedding=torch.arange(8.0).reshape(4, 2),
).with_labels(node=torch.tensor([0, 1, 1, 2]), edge=torch.tensor([1, 2, 0, 1, 0]))
ANNOTATION = torch.arange(48).reshape(6, 8) % 3
KEEP = {"keep_node_unknown_labels": True, "keep_edge_unknown_labels": True}


def assert_equal_graphs(found, expected):
    for name in ("pos", "edges", "confidence"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    for head in ("node", "edge"):
        assert torch.equal(found.label(head), expected.label(head)), head


@pytest.fixture
def grace(tmp_path):
    io.write_grace(tmp_path / "a.grace", GRAPH, annotation=ANNOTATION, metadata={"microscope": "Krios"})
    return tmp_path / "a.grace"


def edit(path, **columns):
    """Replace columns of a table, or drop them."""
    table = pq.read_table(path)
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.remove_column(place) if values is None else table.set_column(place, name, pa.array(values))
    pq.write_table(table, path)


def test_round_trip_in_the_schema_of_the_original(grace):
    graph, annotation, metadata = io.read_grace(grace, **KEEP)
    assert_equal_graphs(graph, GRAPH)
    assert torch.equal(graph.embedding, GRAPH.embedding)
    assert annotation.tolist() == ANNOTATION.tolist()
    assert metadata == {"image_filename": "a", "microscope": "Krios"}
    number, label = pa.float32(), pa.int64()
    numbers, strings = (pa.list_(pa.field("element", kind)) for kind in (number, pa.string()))
    nodes = {"x": number, "y": number, "node_ground_truth": label, "confidence": number}
    nodes |= {"node_image_patch_latent_embedding": numbers}
    edges = {"source": label, "target": label, "edge_ground_truth": label, "edge_prediction": numbers}
    edges |= {"edge_properties_keys": strings, "edge_properties_values": numbers}
    assert pq.read_schema(grace / "nodes.parquet") == pa.schema(nodes)
    assert pq.read_schema(grace / "edges.parquet") == pa.schema(edges)
    assert np.load(grace / "annotation.npz")["annotation"].dtype == np.uint8


def test_edge_properties_are_written(tmp_path):
    io.write_grace(tmp_path / "a.grace", GRAPH, edge_properties=True)
    values = pd.read_parquet(tmp_path / "a.grace/edges.parquet")["edge_properties_values"]
    assert np.stack(values).tolist() == edge_geometry(GRAPH.pos, GRAPH.edges).tolist()


@pytest.mark.parametrize(("node", "edge"), [(True, False), (False, True)])
def test_unknown_becomes_negative_unless_kept(grace, node, edge):
    graph = io.read_grace(grace, keep_node_unknown_labels=node, keep_edge_unknown_labels=edge).graph
    assert graph.label("node").tolist() == [0, 1, 1, 2 * node]
    assert graph.label("edge").tolist() == [1, 2 * edge, 0, 1, 0]


def test_direction_and_repetition_of_edges_do_not_matter(grace):
    rows = pd.read_parquet(grace / "edges.parquet", columns=["source", "target", "edge_ground_truth"])
    turned = rows.rename(columns={"source": "target", "target": "source"})
    pd.concat([turned[:1], rows[1:], turned[3:], rows[1:2]]).to_parquet(grace / "edges.parquet", index=False)
    assert_equal_graphs(io.read_grace(grace, **KEEP).graph, GRAPH)


def test_files_without_the_optional_columns(grace):
    edit(grace / "nodes.parquet", confidence=None, node_image_patch_latent_embedding=None)
    edit(grace / "edges.parquet", edge_prediction=None, edge_properties_keys=None, edge_properties_values=None)
    graph = io.read_grace(grace, **KEEP).graph
    assert_equal_graphs(graph, replace(GRAPH, confidence=torch.ones(4)))
    assert graph.embedding is None


def test_writing_replaces_the_whole_folder(grace):
    (grace / "filaments.parquet").touch()
    io.write_grace(grace, GRAPH.subset(torch.tensor([True, True, False, False])))
    assert io.read_grace(grace).graph.num_nodes == 2
    assert not (grace / "filaments.parquet").exists()
    refuses(io.write_grace, grace.parent, GRAPH, at=grace.parent, words=[".grace"])


@pytest.mark.parametrize(
    ("file", "columns", "words"),
    [
        ("nodes.parquet", {"x": None}, ["no column x"]),
        ("nodes.parquet", {"x": [0.0, np.nan, 1, 2]}, ["x of node 1 is nan", "1 of 4"]),
        ("nodes.parquet", {"x": [0.0, None, 1, 2]}, ["x is empty in 1 of 4"]),
        ("nodes.parquet", {"node_ground_truth": [0, 1, 3, 0]}, ["node_ground_truth 3 in row 2", "2 (unknown)"]),
        ("nodes.parquet", {"node_ground_truth": [0, 0.5, 1, 0]}, ["node_ground_truth, here double, is int64"]),
        ("nodes.parquet", {"y": [0.0, 0, 1e300, 2]}, ["y of node 2 is 1e+300", "finite"]),  # infinite as float32
        ("nodes.parquet", {"confidence": [0.0, 0, np.nan, 2]}, ["confidence of node 2 is nan"]),
        ("nodes.parquet", {"x": ["1", "2", "3", "4"]}, ["x is text, expected numbers"]),
        ("nodes.parquet", {"node_image_patch_latent_embedding": [[1.0], [1.0, 2], [1], [1]]}, ["one length"]),
        ("nodes.parquet", {"node_image_patch_latent_embedding": [1.0, 2, 3, 4]}, ["lists"]),
        ("edges.parquet", {"target": [1, 1203, 1, 1, 1]}, ["row 1 joins [0, 1203]", "from 0 to 3", "rebuild"]),
        ("edges.parquet", {"source": [-1, 2, 2, 2, 2]}, ["row 0 joins [-1, 3]"]),
        ("edges.parquet", {"edge_ground_truth": [0, 0, 0, -1, 0]}, ["edge_ground_truth -1 in row 3"]),
        ("edges.parquet", {"source": [2, 3, 0, 1, 0]}, ["row 1 joins node 3 to itself"]),
        ("edges.parquet", {"source": [3, 0, 0, 1, 3], "target": [2, 3, 1, 3, 2]}, ["nodes 2 and 3", "once with 0"]),
    ],
)
def test_bad_tables(grace, file, columns, words):
    edit(grace / file, **columns)
    refuses(io.read_grace, grace, at=grace / file, words=words)


@pytest.mark.parametrize(("file", "name"), [("nodes.parquet", "x"), ("edges.parquet", "target")])
def test_two_columns_of_one_name(grace, file, name):
    table = pq.read_table(grace / file)
    pq.write_table(table.append_column(name, table[name]), grace / file)
    refuses(io.read_grace, grace, at=grace / file, words=[f"2 columns are named {name}"])


def huge_nodes(folder, rows=4, length=1):
    """Write a small table of many rows, or of long lists."""
    lists = pa.ListArray.from_arrays(pa.array([0, length]), pa.array(np.ones(length, np.float32)))
    columns = {name: pa.nulls(rows, kind) for name, kind in (("x", pa.float32()), ("y", pa.float32()))}
    columns |= {"node_ground_truth": pa.nulls(rows, pa.int64())}
    columns |= {"node_image_patch_latent_embedding": lists} if length > 1 else {}
    pq.write_table(pa.table(columns), folder / "nodes.parquet", compression="zstd")


def huge_annotation(folder, size):
    """Write a small file of many pixels."""
    np.savez_compressed(folder / "annotation.npz", annotation=np.zeros((size, size), np.uint8))


@pytest.mark.parametrize(
    ("file", "write"),
    [
        ("nodes.parquet", lambda folder: huge_nodes(folder, rows=200_000)),
        ("nodes.parquet", lambda folder: huge_nodes(folder, rows=1, length=600_000)),
        ("annotation.npz", lambda folder: huge_annotation(folder, 2_100)),
        ("annotation.npz", lambda folder: huge_annotation(folder, 1_050)),  # as int32
        ("metadata.json", lambda folder: (folder / "metadata.json").write_text(f"[{'{},' * 70_000}0]")),
    ],
)
def test_small_files_that_unpack_to_more_than_there_is_room_for(grace, file, write):
    write(grace)
    assert (grace / file).stat().st_size < 2**18
    refuses(io.read_grace, grace, at=grace / file, max_gib=2**-8, words=["expected at most 0.00390625", "data.max_gib"])


def test_an_archive_that_lies_about_its_size_is_not_unpacked(grace):
    huge_annotation(grace, 4_000)
    content, size = (grace / "annotation.npz").read_bytes(), (4_000**2 + 128).to_bytes(4, "little")
    assert size in content
    (grace / "annotation.npz").write_bytes(content.replace(size, (1000).to_bytes(4, "little")))
    tracemalloc.start()
    refuses(io.read_grace, grace, at=grace / "annotation.npz")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("file", ["nodes.parquet", "edges.parquet", "metadata.json"])
def test_missing_and_damaged_files(grace, file):
    (grace / file).write_text('{"image": "a"}')
    refuses(io.read_grace, grace, at=grace / file)
    (grace / file).unlink()
    refuses(io.read_grace, grace, at=grace / file, words=["not found"])


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("mask", np.zeros((2, 2)), ["no array annotation", "found mask"]),
        ("annotation", np.zeros((2, 2, 2)), ["float64", "(2, 2, 2)", "integers of shape (H, W)"]),
        ("annotation", np.array([[None]]), ["allow_pickle"]),
        ("annotation", np.array([[0, -3]]), ["holds -3"]),
        ("annotation", np.array([[0, 2**40]]), ["holds 1099511627776", "below 2**31"]),
    ],
)
def test_bad_annotation(grace, name, array, words):
    np.savez(grace / "annotation.npz", **{name: array})
    refuses(io.read_grace, grace, at=grace / "annotation.npz", words=words)


@pytest.mark.shared
def test_folders_of_the_original_survive_a_round_trip(shared, tmp_path):
    for source in io.find_sources(shared / "data/roots/train"):
        folder, copy = source.grace, tmp_path / source.grace.name
        graph, annotation, metadata = io.read_grace(folder, **KEEP)
        io.write_grace(copy, graph, annotation=annotation, metadata=metadata)
        for name in ("nodes.parquet", "edges.parquet"):
            assert pq.read_table(copy / name).equals(pq.read_table(folder / name), check_metadata=True)
        before, after = (np.load(path / "annotation.npz")["annotation"] for path in (folder, copy))
        np.testing.assert_array_equal(after, before, strict=True)
        assert json.loads((copy / "metadata.json").read_text()) == json.loads((folder / "metadata.json").read_text())


# ---- which files belong together --------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Two annotated images of 8 x 6 pixels, ``a`` with its detections."""
    for name in ("b", "a"):
        write_image(tmp_path / f"{name}.png", np.arange(48, dtype=np.uint8).reshape(6, 8))
        io.write_grace(tmp_path / f"{name}.grace", GRAPH, annotation=ANNOTATION)
    write_h5(tmp_path / "a.h5", GRAPH.pos)
    return tmp_path


def write_h5(path, pos):
    io.write_detections(path, pd.DataFrame(np.asarray(pos), columns=["x", "y"]))


def test_sources_from_one_folder_and_from_two(folder):
    (folder / "b.instances.json").touch()
    assert io.find_sources(folder) == [
        io.Source("a", folder / "a.png", folder / "a.grace", folder / "a.h5"),
        io.Source("b", folder / "b.png", folder / "b.grace", None, folder / "b.instances.json"),
    ]
    graces = folder / "graces"
    graces.mkdir()
    (folder / "b.grace").rename(graces / "b.grace")
    for name in ("b.h5", "b.instances.json"):
        (graces / name).touch()
    with pytest.warns(InputWarning, match=r"1 of 2 images have no \.grace folder and were skipped: a$"):
        found = io.find_sources(folder, graces)
    expected = io.Source("b", folder / "b.png", graces / "b.grace", graces / "b.h5", graces / "b.instances.json")
    assert found == [expected]


def test_grace_folder_without_an_image_is_reported_and_skipped(folder):
    (folder / "b.png").unlink()
    with pytest.warns(InputWarning, match=r"1 of 2 \.grace folders have no image and were skipped: b$"):
        assert [source.name for source in io.find_sources(folder)] == ["a"]


def test_folders_of_no_use(folder):
    refuses(io.find_sources, folder, folder / "nowhere", at=folder / "nowhere", words=["no such folder"])
    refuses(io.find_images, folder / "a.png", words=["not a folder"])
    refuses(io.find_images, folder / "a.grace", words=["no images", "4 other files", "nodes.parquet"])
    (folder / "a.mrc").touch()
    refuses(io.find_sources, folder, words=["a.mrc, a.png"])
    (folder / "a.mrc").unlink()
    for old, new in (("a.png", "c.png"), ("b.png", "d.png")):
        (folder / old).rename(folder / new)
    refuses(io.find_sources, folder, words=["images: c, d", ".grace folders: a, b", "grace-annotate"])


def test_images_are_found_by_suffix_and_sorted_by_stem(tmp_path):
    (tmp_path / "folder.png").mkdir()
    for name in ("b.PNG", "a10.tif", "a1.mrc.gz", "a.mrc.bz2", "notes.txt", ".hidden.png", "a.h5"):
        (tmp_path / name).touch()
    assert [path.name for path in io.find_images(tmp_path)] == ["a.mrc.bz2", "a1.mrc.gz", "a10.tif", "b.PNG"]


# ---- samples ----------------------------------------------------------------------------------------------------


def sample(folder, **options):
    return io.read_sample(io.find_sources(folder)[0], **options)


@pytest.mark.parametrize("named", ["a", "a.mrc.gz"])
def test_sample(folder, named):
    (folder / "a.grace/metadata.json").write_text(json.dumps({"image_filename": named}))
    found = sample(folder, **KEEP)
    assert (found.name, found.metadata) == ("a", {"image_filename": named})
    assert found.image.flatten().tolist() == list(range(48))
    assert_equal_graphs(found.graph, GRAPH)
    assert found.annotation.tolist() == ANNOTATION.tolist()
    write_image(folder / "a.tif", np.stack([np.full((6, 8), k, dtype=np.uint8) for k in range(5)]))
    source = io.Source("a", folder / "a.tif", folder / "a.grace")
    assert io.read_sample(source, frame="mean").image.unique().tolist() == [2]


def test_sample_knows_its_filaments(folder):
    assert sample(folder).truth.source == TruthSource.NUMBERS
    (folder / "a.instances.json").write_text('{"1": [2, 1, 0, 2], "2": [1], "3": []}')
    found = sample(folder)
    assert found.truth.source == TruthSource.INSTANCES
    assert [nodes.tolist() for nodes in found.truth.filaments] == [[0, 1, 2]]
    assert found.graph.label("two_filaments").tolist() == [2, 0, 0, 2]


def test_sample_without_annotation(folder):
    source = io.Source("a", folder / "a.png", detections=folder / "a.h5")
    found = io.read_sample(source)
    assert torch.equal(found.graph.pos, GRAPH.pos)
    assert found.graph.num_edges == 5
    assert found.annotation is found.truth is None
    refuses(io.read_sample, io.Source("a", folder / "a.png"), at=folder / "a.png", words=["neither"])


def test_files_of_another_image(folder):
    np.savez(folder / "a.grace/annotation.npz", annotation=np.zeros((8, 6), dtype=int))
    refuses(sample, folder, at=folder / "a.grace/annotation.npz", words=["6 x 8 pixels", "a.png has 8 x 6"])
    (folder / "a.grace/metadata.json").write_text('{"image_filename": "b"}')
    refuses(sample, folder, at=folder / "a.grace/metadata.json", words=["image_filename is b", "expected a"])


def test_detections_that_disagree_with_the_nodes(folder):
    write_h5(folder / "a.h5", GRAPH.pos.flip(0) + 0.005)  # warnings are errors here, and the order does not matter
    assert_equal_graphs(sample(folder, **KEEP).graph, GRAPH)
    for pos, found in ((GRAPH.pos + 0.75, r"4 .* up to 1\.06 px"), (GRAPH.pos[:3], r"3 .* up to 5\.00 px")):
        write_h5(folder / "a.h5", pos)
        with pytest.warns(InputWarning, match=rf"a\.h5: {found}"):
            assert_equal_graphs(sample(folder, **KEEP).graph, GRAPH)
    (folder / "a.h5").rename(folder / "a.H5")
    (folder / "a.star").write_text(MOTION)
    with pytest.warns(InputWarning, match=r"a\.H5: 3 "):
        sample(folder)


# ---- instances.json ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[0, 1]]", "a JSON list, expected the nodes of each filament"),
        ('{"1": [0, 1.0]}', "filament 1 is not a list of whole numbers"),
        ('{"1": [0], "7": [1, -1]}', "filament 7 has node -1, expected numbers from 0 to 3"),
    ],
)
def test_bad_instances(tmp_path, text, words):
    (tmp_path / "a.instances.json").write_text(text)
    refuses(io.read_instances, tmp_path / "a.instances.json", 4, words=[words])
