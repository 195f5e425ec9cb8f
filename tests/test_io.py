import json
import pickle
import tracemalloc
import warnings
from contextlib import contextmanager
from pathlib import Path

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
from hypothesis import given
from hypothesis import strategies as st

from grace_lightning import io
from grace_lightning.errors import InputError, InputWarning
from grace_lightning.graph import EDGE_PROPERTIES, Graph, edge_geometry


@contextmanager
def fails(path, *words):
    """Expect an InputError of one line that begins with ``path`` and holds ``words``."""
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


# ---- images -----------------------------------------------------------------------------------------------------

PIXELS = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000  # up to 55000: clipped where read as 8 bit
STACK = np.stack([PIXELS, PIXELS // 2, PIXELS // 4, PIXELS // 8, PIXELS // 16])


def write_mrc(path, data, **header):
    with mrcfile.new(path, data, overwrite=True) as file:
        for name, value in header.items():
            file.header[name] = value


def write_image(path, pixels):
    suffix = "".join(Path(path).suffixes).lower()
    if suffix.startswith(".mrc"):
        compression = {".mrc": None, ".mrc.gz": "gzip", ".mrc.bz2": "bzip2"}[suffix]
        with mrcfile.new(path, compression=compression) as file:
            file.set_data(pixels)
    elif suffix == ".png":
        Path(path).write_bytes(imagecodecs.png_encode(pixels))
    else:
        tifffile.imwrite(path, pixels, photometric="minisblack")


@pytest.mark.parametrize("name", ["a.mrc", "a.MRC", "a.mrc.gz", "a.mrc.bz2", "a.tif", "a.TIFF", "a.png", "a.PNG"])
def test_every_format_gives_the_files_own_values(tmp_path, name):
    write_image(tmp_path / name, PIXELS)
    image = io.read_image(tmp_path / name)
    assert image.shape == (1, 3, 4)
    assert image.dtype == torch.float32
    assert image[0].tolist() == PIXELS.tolist()


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "float16", "float32"])
def test_mrc_modes(tmp_path, dtype):
    write_mrc(tmp_path / "a.mrc", np.array([[-3, 7]]).astype(dtype))
    assert io.read_image(tmp_path / "a.mrc")[0].tolist() == np.array([[-3, 7]]).astype(dtype).tolist()


def test_old_mrc_bytes_are_unsigned_where_the_header_says_so(tmp_path):
    write_mrc(tmp_path / "a.mrc", np.array([[144, 159]], dtype=np.uint8).view(np.int8), dmin=144, dmax=159)
    assert io.read_image(tmp_path / "a.mrc")[0].tolist() == [[144, 159]]


def test_eight_bit_png_is_not_stretched(tmp_path):
    write_image(tmp_path / "a.png", np.array([[0, 200]], dtype=np.uint8))
    assert io.read_image(tmp_path / "a.png")[0].tolist() == [[0, 200]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colours_become_luminance_and_alpha_goes(tmp_path, suffix, dtype):
    top = np.iinfo(dtype).max
    colours = np.array([[[top, 0, 0], [0, top, 0], [0, 0, top], [top, top, top]]], dtype=dtype)
    with_alpha = np.concatenate([colours, np.full((1, 4, 1), 7, dtype)], axis=-1)
    for pixels in (colours, with_alpha):
        path = tmp_path / f"a.{suffix}"
        if suffix == "png":
            write_image(path, pixels)
        else:
            tifffile.imwrite(path, pixels, photometric="rgb")
        grey = io.read_image(path)[0, 0] / top
        torch.testing.assert_close(grey, torch.tensor([0.299, 0.587, 0.114, 1.0]))


def test_grey_png_with_alpha(tmp_path):
    write_image(tmp_path / "a.png", np.array([[[9, 255], [8, 0]]], dtype=np.uint8))
    assert io.read_image(tmp_path / "a.png")[0].tolist() == [[9, 8]]


@pytest.mark.slow
def test_png_beyond_pillows_limit(tmp_path):
    pixels = np.zeros((9500, 9500), dtype=np.uint8)
    pixels[-1, -1] = 3
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(pixels, level=1))
    image = io.read_image(tmp_path / "a.png")
    assert image.shape == (1, 9500, 9500)
    assert image[0, -1, -1] == 3


@pytest.mark.parametrize("options", [{"compression": "lzw"}, {"tile": (16, 16)}, {"byteorder": ">"}, {"bigtiff": True}])
def test_tiff_variants(tmp_path, options):
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, **options)
    assert io.read_image(tmp_path / "a.tif")[0].tolist() == PIXELS.tolist()


def test_tiff_where_white_is_zero(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0, 250]], dtype=np.uint8), photometric="miniswhite")
    assert io.read_image(tmp_path / "a.tif")[0].tolist() == [[255, 5]]


@pytest.mark.parametrize("name", ["a.mrc", "a.mrc.gz", "a.tif"])
def test_stack_is_refused_until_a_frame_is_chosen(tmp_path, name):
    write_image(tmp_path / name, STACK)
    with fails(tmp_path / name, "5 frames", "data.frame", "mean"):
        io.read_image(tmp_path / name)
    assert io.read_image(tmp_path / name, frame=2)[0].tolist() == STACK[2].tolist()
    torch.testing.assert_close(io.read_image(tmp_path / name, frame="mean")[0].numpy(), STACK.mean(0, dtype=np.float32))
    for frame in (5, -1, "median"):
        with fails(tmp_path / name, repr(frame), "data.frame"):
            io.read_image(tmp_path / name, frame=frame)


@pytest.mark.parametrize("options", [{"compression": "lzw"}, {"imagej": True}])
def test_frames_of_other_tiff_stacks(tmp_path, options):
    tifffile.imwrite(tmp_path / "a.tif", STACK, photometric="minisblack", **options)
    assert io.read_image(tmp_path / "a.tif", frame=4)[0].tolist() == STACK[4].tolist()


def test_three_frames_are_not_taken_for_colours(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", STACK[:3], photometric="rgb", planarconfig="separate")
    with fails(tmp_path / "a.tif", "3 frames"):
        io.read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.mrc", "a.tif", "a.png"])
def test_stack_of_one_is_an_image(tmp_path, name):
    write_image(tmp_path / name, PIXELS if name == "a.png" else PIXELS[None])
    assert io.read_image(tmp_path / name).tolist() == io.read_image(tmp_path / name, frame="mean").tolist()
    assert io.read_image(tmp_path / name, frame=0).shape == (1, 3, 4)
    with fails(tmp_path / name, "no frame 3"):
        io.read_image(tmp_path / name, frame=3)


@pytest.mark.parametrize("name", ["a.mrc", "a.tif"])
def test_one_frame_of_an_uncompressed_stack_is_all_that_is_read(tmp_path, name):
    write_image(tmp_path / name, np.zeros((50, 500, 500), dtype=np.int16))
    tracemalloc.start()
    image = io.read_image(tmp_path / name, frame=30)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert image.shape == (1, 500, 500)
    assert peak < 5e6  # the stack has 25 MB, a frame 0.5 MB, and 1 MB as float32


def test_gaps_are_filled_with_the_mean(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.array([[1, 3, np.nan, np.inf]], dtype=np.float32))
    with pytest.warns(InputWarning, match=r"a\.tif: 2 pixels"):
        image = io.read_image(tmp_path / "a.tif")
    assert image[0].tolist() == [[1, 3, 2, 2]]


def test_image_without_any_number(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.full((2, 2), np.nan, dtype=np.float32))
    with fails(tmp_path / "a.tif", "no pixel"):
        io.read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.mrc", "a.tif"])
def test_complex_image(tmp_path, name):
    write_image(tmp_path / name, np.ones((2, 2), dtype=np.complex64))
    with fails(tmp_path / name, "complex64", "real"):
        io.read_image(tmp_path / name)


@pytest.mark.parametrize("name", ["a.mrc", "a.mrc.gz", "a.mrc.bz2", "a.tif", "a.png"])
@pytest.mark.parametrize("part", [0.01, 0.5, 0.9])
def test_truncated_image(tmp_path, name, part):
    write_image(tmp_path / name, np.random.default_rng(0).integers(0, 999, (64, 64), dtype=np.uint16))
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * part)])
    with fails(tmp_path / name):
        io.read_image(tmp_path / name)


def test_truncated_mrc_says_what_is_there(tmp_path):
    write_mrc(tmp_path / "a.mrc", PIXELS)
    (tmp_path / "a.mrc").write_bytes((tmp_path / "a.mrc").read_bytes()[:1030])
    with fails(tmp_path / "a.mrc", "4 x 3 x 1 pixels of mode 6", "1030 bytes"):
        io.read_image(tmp_path / "a.mrc")


def test_truncated_tiff_stack_is_not_taken_for_its_first_frame(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 50, 60), dtype=np.uint16), imagej=True)
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(data[: len(data) // 2])
    with fails(tmp_path / "a.tif", "corrupted"):
        io.read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.mrc", "a.mrc.gz", "a.mrc.bz2", "a.tif", "a.png"])
def test_text_under_an_images_name(tmp_path, name):
    (tmp_path / name).write_text("this is no image\n" * 100)
    with fails(tmp_path / name):
        io.read_image(tmp_path / name)


def test_missing_and_foreign_images(tmp_path):
    with fails(tmp_path / "a.png", "not found"):
        io.read_image(tmp_path / "a.png")
    with fails(tmp_path / "a.jpg", ".mrc.bz2"):
        io.read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("name", ["a.mrc", "a.mrc.gz"])
def test_pixel_size(tmp_path, name):
    with mrcfile.new(tmp_path / name, compression="gzip" if name.endswith("gz") else None) as file:
        file.set_data(PIXELS)
        file.voxel_size = 1.25
    assert io.pixel_size(tmp_path / name) == 1.25


def test_unknown_pixel_size(tmp_path):
    write_mrc(tmp_path / "a.mrc", PIXELS)
    write_image(tmp_path / "a.png", PIXELS)
    assert io.pixel_size(tmp_path / "a.mrc") is None
    assert io.pixel_size(tmp_path / "a.png") is None


def test_stem():
    names = ["d/451.mrc.gz", "451.MRC", "Foil_1.2.tiff", "451.h5", "451.grace"]
    assert [io.stem(name) for name in names] == ["451", "451", "Foil_1.2", "451", "451"]


@pytest.mark.shared
def test_real_images(shared, tmp_path):
    tardis = shared / "data/formats/tardis/data_type"
    assert io.read_image(tardis / "mrc2D.mrc").aminmax() == (144, 159)  # the minimum and maximum of its header
    assert io.read_image(tardis / "mrc3D.mrc", frame=77).shape == (1, 64, 32)
    assert io.pixel_size(tardis / "mrc2D.mrc") == pytest.approx(23.2, abs=1e-3)
    (tmp_path / "rec2D.mrc").symlink_to(tardis / "rec2D.rec")
    assert torch.equal(io.read_image(tmp_path / "rec2D.mrc"), io.read_image(tardis / "mrc2D.mrc"))
    stack = shared / "data/formats/cylindra/13pf_MT.tif"
    assert io.read_image(stack, frame="mean").shape == (1, 206, 94)
    with fails(stack, "36 frames"):
        io.read_image(stack)


# ---- detections -------------------------------------------------------------------------------------------------

FRAME = pd.DataFrame({"x": [1.5, 20, 3], "y": [4, 5.25, 60], "confidence": [0.5, 0.25, 1], "n": [7, 8, 9]})


def assert_same(found, expected):
    pd.testing.assert_frame_equal(found[list(expected)], expected, check_dtype=False)


@pytest.mark.parametrize(
    "options",
    [
        {"format": "fixed"},
        {"format": "fixed", "complib": "blosc:zstd", "complevel": 5},
        {"format": "table"},
        {"format": "table", "data_columns": True},
        {"format": "table", "data_columns": ["x"], "complib": "blosc", "complevel": 5},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pandas_files(tmp_path, options, dtype):
    frame = FRAME.astype({"x": dtype, "y": dtype}).set_index(np.array([5, 3, 9]))
    frame.to_hdf(tmp_path / "a.h5", key="df", **options)
    found = io.read_detections(tmp_path / "a.h5")
    assert_same(found, FRAME)
    assert found["x"].dtype == dtype


def test_pandas_files_with_text(tmp_path):
    frame = FRAME.assign(name=["a", "b", "c"])
    frame.to_hdf(tmp_path / "a.h5", key="df", format="table")
    assert_same(io.read_detections(tmp_path / "a.h5"), frame)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas: pickles the column
        frame.to_hdf(tmp_path / "b.h5", key="df", format="fixed")
    assert "name" not in io.read_detections(tmp_path / "b.h5")
    assert_same(io.read_detections(tmp_path / "b.h5"), FRAME)


def test_column_names_are_never_unpickled(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    FRAME.to_hdf(tmp_path / "a.h5", key="df", format="table")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["df/table"].attrs["values_block_0_kind"] = np.bytes_(pickle.dumps([Harmful()], 0))
    with fails(tmp_path / "a.h5", "REDUCE", "format='fixed'"):
        io.read_detections(tmp_path / "a.h5")
    assert not (tmp_path / "harm").exists()


@given(
    st.lists(
        st.tuples(*[st.floats(-1e6, 1e6)] * 2, st.floats(allow_nan=False, allow_infinity=False)), min_size=0, max_size=5
    )
)
def test_written_detections_are_read_by_pandas_and_by_us(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("h5") / "a.h5"
    frame = pd.DataFrame(rows, columns=["x", "y", "größe"], dtype=np.float64)
    io.write_detections(path, frame)
    pd.testing.assert_frame_equal(pd.read_hdf(path, "df"), frame)
    pd.testing.assert_frame_equal(io.read_detections(path), frame)
    assert [file.name for file in path.parent.iterdir()] == ["a.h5"]


def test_written_detections_need_coordinates(tmp_path):
    with fails(tmp_path / "a.h5", "no column y"):
        io.write_detections(tmp_path / "a.h5", FRAME[["x"]])
    assert not list(tmp_path.iterdir())


def test_relion_star(tmp_path):
    (tmp_path / "a.star").write_text(
        "data_optics\n\nloop_\n_rlnOpticsGroup #1\n1\n\ndata_particles\n\nloop_\n"
        "_rlnCoordinateX #1\n_rlnCoordinateY #2\n_rlnAutopickFigureOfMerit #3\n_rlnAnglePsi #4\n"
        "10.5 20 0.75 90\n30 40 0.5 45\n"
    )
    expected = pd.DataFrame(
        {"x": [10.5, 30], "y": [20, 40], "confidence": [0.75, 0.5], "rlnAnglePsi": [90, 45]}, dtype=np.float64
    )
    assert_same(io.read_detections(tmp_path / "a.star"), expected)


def test_star_of_several_micrographs(tmp_path):
    (tmp_path / "a.star").write_text(
        "data_\n\nloop_\n_rlnMicrographName #1\n_rlnCoordinateX #2\n_rlnCoordinateY #3\nm1.mrc 1 2\nm2.mrc 3 4\n"
    )
    with fails(tmp_path / "a.star", "2 micrographs", "m1.mrc"):
        io.read_detections(tmp_path / "a.star")


CBOX = (
    "data_global\n\n_cbox_format_version 1.0\n\ndata_cryolo\n\nloop_\n"
    "_CoordinateX #1\n_CoordinateY #2\n_CoordinateZ #3\n_Width #4\n_Height #5\n"
    "_Confidence #6\n_filamentid #7\n{}\ndata_cryolo_include\n\nloop_\n_slice_index #1\n"
)


def test_cbox_gives_centres(tmp_path):
    (tmp_path / "a.cbox").write_text(CBOX.format("10 20 <NA> 100 60 0.5 3\n-5 0 <NA> 10 10 0.25 4\n"))
    expected = pd.DataFrame({"x": [60.0, 0], "y": [50.0, 5], "confidence": [0.5, 0.25], "filament": [3, 4]})
    assert_same(io.read_detections(tmp_path / "a.cbox"), expected)


def test_cbox_without_confidence(tmp_path):
    (tmp_path / "a.cbox").write_text(CBOX.format("10 20 <NA> 100 60 <NA> 3\n"))
    assert "confidence" not in io.read_detections(tmp_path / "a.cbox")


def test_old_cbox(tmp_path):
    (tmp_path / "a.cbox").write_text("10\t20\t100\t60\t0.5\t98\t61\n0\t0\t10\t10\t0.25\t9\t9\n")
    expected = pd.DataFrame({"x": [60.0, 5], "y": [50.0, 5], "confidence": [0.5, 0.25]})
    assert_same(io.read_detections(tmp_path / "a.cbox"), expected)


def test_box(tmp_path):
    (tmp_path / "a.box").write_text("# helix\n10 20 100 60 -1\n  0 0 10 10 -2\n")
    found = io.read_detections(tmp_path / "a.box")
    assert_same(found, pd.DataFrame({"x": [60.0, 5], "y": [50.0, 5]}))
    assert "confidence" not in found


@pytest.mark.parametrize("name", ["a.cbox", "a.box"])
def test_empty_box_file_is_no_detection(tmp_path, name):
    (tmp_path / name).touch()
    assert io.read_detections(tmp_path / name).shape == (0, 2)


@pytest.mark.parametrize("header", ["x,y,n", "X, Y, n", "axis-1,axis-0,n"])
def test_csv(tmp_path, header):
    (tmp_path / "a.csv").write_text(f"{header}\n1.5,2,7\n3,4,8\n")
    assert_same(io.read_detections(tmp_path / "a.csv"), pd.DataFrame({"x": [1.5, 3], "y": [2.0, 4], "n": [7, 8]}))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "a,b\n1,2\n", ["no column x and y", "found a, b"]),
        ("a.csv", "x,y\n1,2\n3,nan\n", ["y of detection 1 is nan"]),
        ("a.csv", "x,y\n1,2\ninf,5\n", ["x of detection 1 is inf"]),
        ("a.csv", "x,y\none,2\n", ["x of detection 0 is one"]),
        ("a.csv", "x,y,confidence\n1,2,0.5\n1,3,\n", ["confidence of detection 1"]),
        ("a.csv", "axis-0,axis-1,axis-2\n1,2,3\n", ["axis-2"]),
        ("a.csv", "", ["csv"]),
        ("a.star", "data_\n\nloop_\n_rlnCoordinateX #1\n1\n", ["rlnCoordinateY", "found rlnCoordinateX"]),
        ("a.star", "nothing at all", ["found nothing"]),
        ("a.cbox", "data_global\n\n_cbox_format_version 1.0\n", ["data_cryolo"]),
        ("a.box", "1 2 3\n", ["3 columns", "Height"]),
        ("a.box", "1 2 wide 4\n", ["x of detection 0"]),
        ("a.h5", "no HDF5", ["h5"]),
        ("a.txt", "1 2", [".h5", ".csv"]),
    ],
)
def test_bad_detections(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with fails(tmp_path / name, *words):
        io.read_detections(tmp_path / name)


@pytest.mark.parametrize("format", ["fixed", "table"])
def test_bad_pandas_files(tmp_path, format):
    path = tmp_path / "a.h5"
    FRAME[["y", "n"]].to_hdf(path, key="df", format=format)
    with fails(path, "no column x", "found y, n"):
        io.read_detections(path)
    FRAME.replace(20, np.nan).to_hdf(path, key="df", format=format)
    with fails(path, "x of detection 1 is nan", "1 of 3"):
        io.read_detections(path)
    path.unlink()
    FRAME.to_hdf(path, key="points", format=format)
    with fails(path, "no key df", "found points"):
        io.read_detections(path)


def test_missing_detections(tmp_path):
    for suffix in io.DETECTION_SUFFIXES:
        with fails(tmp_path / f"a{suffix}"):
            io.read_detections(tmp_path / f"a{suffix}")


def test_find_detections_prefers_h5(tmp_path):
    assert io.find_detections(tmp_path, "a") is None
    for suffix in (".csv", ".box", ".cbox", ".star", ".h5"):
        (tmp_path / f"a{suffix}").touch()
        assert io.find_detections(tmp_path, "a") == tmp_path / f"a{suffix}"


@pytest.mark.shared
def test_real_detections(shared):
    folder = shared / "data/formats/cbox"
    filaments = io.read_detections(folder / "filament_cbox_2d/ActLifeact_02885.cbox")
    assert filaments.loc[0, ["x", "y"]].tolist() == pytest.approx([83.5926053042125, 2540.425803432137])
    assert len(filaments["filament"].unique()) > 1
    particles = io.read_detections(folder / "particle_cbox_2d/TcdA1-0018_frames_sum.cbox")
    assert particles["confidence"].between(0, 1).all()
    path = shared / "data/roots/train/450.h5"
    assert_same(io.read_detections(path), pd.read_hdf(path, "df"))


# ---- .grace folders ---------------------------------------------------------------------------------------------

#   0 --- 1
#   |  \  |
#   2 --- 3
GRAPH = Graph(
    pos=torch.tensor([[0.0, 0], [5, 0], [0, 5], [5, 5]]),
    edges=torch.tensor([[2, 0, 0, 1, 0], [3, 3, 1, 3, 2]]),
    node_label=torch.tensor([0, 1, 1, 2]),
    edge_label=torch.tensor([1, 2, 0, 1, 0]),
    confidence=torch.tensor([0.5, 0.25, 1, 0]),
    embedding=torch.arange(8.0).reshape(4, 2),
)
ANNOTATION = torch.arange(48).reshape(6, 8) % 3
KEEP = {"keep_node_unknown_labels": True, "keep_edge_unknown_labels": True}


def assert_equal_graphs(found, expected):
    for name in ("pos", "edges", "node_label", "edge_label", "confidence"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


@pytest.fixture
def grace(tmp_path):
    io.write_grace(tmp_path / "a.grace", GRAPH, annotation=ANNOTATION, metadata={"microscope": "Krios"})
    return tmp_path / "a.grace"


def edit(path, **columns):
    table = pq.read_table(path)
    for name, values in columns.items():
        table = (
            table.drop_columns(name)
            if values is None
            else table.set_column(table.column_names.index(name), name, pa.array(values))
        )
    pq.write_table(table, path)


def test_round_trip(grace):
    graph, annotation, metadata = io.read_grace(grace, **KEEP)
    assert_equal_graphs(graph, GRAPH)
    assert torch.equal(graph.embedding, GRAPH.embedding)
    assert annotation.tolist() == ANNOTATION.tolist()
    assert metadata == {"image_filename": "a", "microscope": "Krios"}


def test_schema_of_the_original(grace):
    floats, strings = pa.list_(pa.field("element", pa.float32())), pa.list_(pa.field("element", pa.string()))
    assert pq.read_schema(grace / "nodes.parquet") == pa.schema(
        {
            "x": pa.float32(),
            "y": pa.float32(),
            "node_ground_truth": pa.int64(),
            "confidence": pa.float32(),
            "node_image_patch_latent_embedding": floats,
        }
    )
    assert pq.read_schema(grace / "edges.parquet") == pa.schema(
        {
            "source": pa.int64(),
            "target": pa.int64(),
            "edge_ground_truth": pa.int64(),
            "edge_prediction": floats,
            "edge_properties_keys": strings,
            "edge_properties_values": floats,
        }
    )
    assert sorted(file.name for file in grace.iterdir()) == [
        "annotation.npz",
        "edges.parquet",
        "metadata.json",
        "nodes.parquet",
    ]
    assert np.load(grace / "annotation.npz")["annotation"].dtype == np.uint8
    assert json.loads((grace / "metadata.json").read_text())["image_filename"] == "a"


def test_predictions_and_properties_are_written(tmp_path):
    nodes, edges = torch.rand(4, 2), torch.rand(5, 3)
    filaments = pd.DataFrame({"filament": [0, 0], "order": [0, 1], "node": [2, 3], "x": [0.0, 5], "y": [5.0, 5]})
    io.write_grace(
        tmp_path / "a.grace",
        GRAPH,
        node_prediction=nodes,
        edge_prediction=edges,
        edge_properties=True,
        filaments=filaments,
    )
    table = pq.read_table(tmp_path / "a.grace/edges.parquet").to_pydict()
    torch.testing.assert_close(torch.tensor(table["edge_prediction"]), edges)
    assert table["edge_properties_keys"] == [list(EDGE_PROPERTIES)] * 5
    expected = edge_geometry(GRAPH.pos, GRAPH.edges)
    torch.testing.assert_close(torch.tensor(table["edge_properties_values"]), expected)
    table = pq.read_table(tmp_path / "a.grace/nodes.parquet").to_pydict()
    torch.testing.assert_close(torch.tensor(table["node_prediction"]), nodes)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "a.grace/filaments.parquet"), filaments)
    graph, annotation, _ = io.read_grace(tmp_path / "a.grace", **KEEP)
    assert_equal_graphs(graph, GRAPH)
    assert annotation is None


def test_unknown_becomes_negative_unless_kept(grace):
    graph = io.read_grace(grace).graph
    assert graph.node_label.tolist() == [0, 1, 1, 0]
    assert graph.edge_label.tolist() == [1, 0, 0, 1, 0]
    assert io.read_grace(grace, keep_node_unknown_labels=True).graph.node_label.tolist() == [0, 1, 1, 2]
    assert io.read_grace(grace, keep_edge_unknown_labels=True).graph.edge_label.tolist() == [1, 2, 0, 1, 0]


@given(st.lists(st.booleans(), min_size=5, max_size=5), st.lists(st.integers(0, 4), max_size=6))
def test_direction_and_repetition_of_edges_do_not_matter(tmp_path_factory, flip, again):
    path = tmp_path_factory.mktemp("grace") / "a.grace"
    io.write_grace(path, GRAPH)
    rows = pd.read_parquet(path / "edges.parquet", columns=["source", "target", "edge_ground_truth"])
    rows.loc[flip, ["source", "target"]] = rows.loc[flip, ["target", "source"]].to_numpy()
    turned = rows.iloc[again].rename(columns={"source": "target", "target": "source"})
    pd.concat([rows, turned]).to_parquet(path / "edges.parquet", index=False)
    assert_equal_graphs(io.read_grace(path, **KEEP).graph, GRAPH)


def test_empty_graph(tmp_path):
    empty = Graph(torch.zeros(0, 2), torch.zeros(2, 0, dtype=torch.int64))
    io.write_grace(tmp_path / "a.grace", empty, edge_properties=True)
    assert_equal_graphs(io.read_grace(tmp_path / "a.grace").graph, empty)


def test_files_without_the_optional_columns(grace):
    edit(grace / "nodes.parquet", confidence=None, node_image_patch_latent_embedding=None)
    edit(grace / "edges.parquet", edge_prediction=None, edge_properties_keys=None, edge_properties_values=None)
    graph = io.read_grace(grace).graph
    assert graph.confidence.tolist() == [1, 1, 1, 1]
    assert graph.embedding is None
    assert graph.num_edges == 5


def test_writing_replaces_the_folder_as_a_whole(grace):
    (grace / "filaments.parquet").touch()
    io.write_grace(grace, GRAPH.subset(torch.tensor([True, True, False, False])))
    assert io.read_grace(grace).graph.num_nodes == 2
    assert not (grace / "filaments.parquet").exists()
    assert [path.name for path in grace.parent.iterdir()] == ["a.grace"]


def test_failed_writing_leaves_everything_as_it_was(grace):
    with pytest.raises(ValueError, match="expected 5 rows"):
        io.write_grace(grace, GRAPH, edge_prediction=torch.rand(10, 3))
    assert_equal_graphs(io.read_grace(grace, **KEEP).graph, GRAPH)
    assert [path.name for path in grace.parent.iterdir()] == ["a.grace"]


def test_only_grace_folders_are_replaced(tmp_path):
    with fails(tmp_path, ".grace"):
        io.write_grace(tmp_path, GRAPH)


@pytest.mark.parametrize(
    ("file", "columns", "words"),
    [
        ("nodes.parquet", {"x": None}, ["no column x"]),
        ("nodes.parquet", {"x": [0.0, np.nan, 1, 2]}, ["node 1 at x=nan, y=0.0", "1 of 4"]),
        ("nodes.parquet", {"y": [0.0, 1, 2, -np.inf]}, ["node 3", "y=-inf"]),
        ("nodes.parquet", {"x": [0.0, None, 1, 2]}, ["x is empty in 1 of 4"]),
        ("nodes.parquet", {"x": ["a", "b", "c", "d"]}, ["x is string", "expected float"]),
        ("nodes.parquet", {"node_ground_truth": [0, 1, 3, 0]}, ["node_ground_truth 3 in row 2", "2 (unknown)"]),
        ("nodes.parquet", {"node_ground_truth": [0, 0.5, 1, 0]}, ["node_ground_truth is double", "int64"]),
        ("nodes.parquet", {"node_image_patch_latent_embedding": [[1.0], [1.0, 2.0], [1.0], [1.0]]}, ["lengths 1, 2"]),
        ("edges.parquet", {"target": None}, ["no column target"]),
        ("edges.parquet", {"target": [1, 1203, 1, 1, 1]}, ["target 1203 is not a node (the file has 4)", "rebuild"]),
        ("edges.parquet", {"source": [-1, 2, 2, 2, 2]}, ["source -1 is not a node"]),
        ("edges.parquet", {"edge_ground_truth": [0, 0, 0, -1, 0]}, ["edge_ground_truth -1 in row 3"]),
        ("edges.parquet", {"source": [2, 3, 0, 1, 0]}, ["row 1 joins node 3 to itself"]),
        (
            "edges.parquet",
            {"source": [3, 0, 0, 1, 3], "target": [2, 3, 1, 3, 2]},
            ["nodes 2 and 3", "1 and once with 0"],
        ),
    ],
)
def test_bad_tables(grace, file, columns, words):
    edit(grace / file, **columns)
    with fails(grace / file, *words):
        io.read_grace(grace)


@pytest.mark.parametrize("file", ["nodes.parquet", "edges.parquet", "metadata.json"])
def test_missing_and_damaged_files(grace, file):
    (grace / file).write_text("nonsense\n")
    with fails(grace / file):
        io.read_grace(grace)
    (grace / file).unlink()
    with fails(grace / file, "not found"):
        io.read_grace(grace)


def test_bad_metadata(grace):
    (grace / "metadata.json").write_text('{"image": "a"}')
    with fails(grace / "metadata.json", "no image_filename"):
        io.read_grace(grace)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"mask": np.zeros((2, 2))}, ["no array annotation", "found mask"]),
        ({"annotation": np.zeros((2, 2))}, ["float64", "integers"]),
        ({"annotation": np.zeros((2, 2, 2), dtype=int)}, ["(2, 2, 2)", "(H, W)"]),
        ({"annotation": np.array([[None]])}, ["allow_pickle"]),
    ],
)
def test_bad_annotation(grace, arrays, words):
    np.savez(grace / "annotation.npz", **arrays)
    with fails(grace / "annotation.npz", *words):
        io.read_grace(grace)


def test_missing_grace_folder(tmp_path):
    with fails(tmp_path / "a.grace", "no such folder"):
        io.read_grace(tmp_path / "a.grace")


@pytest.mark.shared
def test_folders_of_the_original_survive_a_round_trip(shared, tmp_path):
    folders = sorted((shared / "data/roots").glob("*/*.grace"))
    assert len(folders) == 10
    for folder in folders:
        graph, annotation, metadata = io.read_grace(folder, **KEEP)
        copy = tmp_path / folder.name
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


def test_sources(folder):
    assert io.find_sources(folder) == [
        io.Source("a", folder / "a.png", folder / "a.grace", folder / "a.h5"),
        io.Source("b", folder / "b.png", folder / "b.grace", None),
    ]


def test_sources_from_two_folders(folder):
    (folder / "graces").mkdir()
    (folder / "a.grace").rename(folder / "graces/a.grace")
    (folder / "b.grace").rename(folder / "graces/b.grace")
    write_h5(folder / "graces/b.h5", GRAPH.pos)
    assert io.find_sources(folder, folder / "graces") == [
        io.Source("a", folder / "a.png", folder / "graces/a.grace", folder / "a.h5"),
        io.Source("b", folder / "b.png", folder / "graces/b.grace", folder / "graces/b.h5"),
    ]


def test_image_without_annotation_is_reported_and_skipped(folder):
    for name in ("c.png", "d.MRC.GZ"):
        (folder / name).touch()
    with pytest.warns(InputWarning, match=r"2 of 4 images have no \.grace folder and were skipped: c, d$") as caught:
        sources = io.find_sources(folder)
    assert [source.name for source in sources] == ["a", "b"]
    assert len(caught) == 1


def test_annotation_without_image_is_reported_and_skipped(folder):
    (folder / "b.png").unlink()
    with pytest.warns(InputWarning, match=r"1 of 2 \.grace folders have no image and were skipped: b$"):
        sources = io.find_sources(folder)
    assert [source.name for source in sources] == ["a"]


def test_nothing_in_common(folder):
    (folder / "a.png").rename(folder / "c.png")
    (folder / "b.png").rename(folder / "d.png")
    with fails(folder, "images: c, d", ".grace folders: a, b", "grace-annotate"):
        io.find_sources(folder)


def test_long_lists_are_cut(folder):
    for number in range(30):
        (folder / f"x{number:02}.png").touch()
    with pytest.warns(InputWarning, match=r"30 of 32 .*: x00, x01, x02, x03, x04, \.\.\.$"):
        io.find_sources(folder)


def test_two_images_of_one_stem(folder):
    (folder / "a.mrc").touch()
    with fails(folder, "a.mrc, a.png"):
        io.find_sources(folder)


def test_bad_folders(folder):
    with fails(folder / "nowhere", "no such folder"):
        io.find_sources(folder / "nowhere")
    with fails(folder / "nowhere", "no such folder"):
        io.find_sources(folder, folder / "nowhere")
    with fails(folder / "a.png", "not a folder"):
        io.find_images(folder / "a.png")
    with fails(folder / "a.grace", "no images", "4 other files", "nodes.parquet"):
        io.find_images(folder / "a.grace")


def test_images_are_found_by_suffix_and_sorted_by_stem(tmp_path):
    for name in ("b.PNG", "a10.tif", "a1.mrc.gz", "a.mrc.bz2", "notes.txt", ".hidden.png", "a.h5"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in io.find_images(tmp_path)] == ["a.mrc.bz2", "a1.mrc.gz", "a10.tif", "b.PNG"]


# ---- samples ----------------------------------------------------------------------------------------------------


def sample(folder, **options):
    return io.read_sample(io.find_sources(folder)[0], **options)


def test_sample(folder):
    found = sample(folder, **KEEP)
    assert found.name == "a"
    assert found.image.flatten().tolist() == list(range(48))
    assert_equal_graphs(found.graph, GRAPH)
    assert found.annotation.tolist() == ANNOTATION.tolist()
    assert found.metadata == {"image_filename": "a"}
    assert sample(folder).graph.node_label.tolist() == [0, 1, 1, 0]


def test_sample_of_a_stack(folder):
    (folder / "a.png").unlink()
    write_image(folder / "a.tif", np.stack([np.full((6, 8), k, dtype=np.uint8) for k in range(5)]))
    assert sample(folder, frame="mean").image.unique().tolist() == [2]
    with fails(folder / "a.tif", "5 frames"):
        sample(folder)


def test_sample_without_annotation(folder):
    found = io.read_sample(io.Source("a", folder / "a.png", detections=folder / "a.h5"))
    assert torch.equal(found.graph.pos, GRAPH.pos)
    assert found.graph.num_edges == 5
    assert found.annotation is None
    with fails(folder / "a.png", "neither"):
        io.read_sample(io.Source("a", folder / "a.png"))


def test_metadata_of_another_image(folder):
    (folder / "a.grace/metadata.json").write_text('{"image_filename": "b"}')
    with fails(folder / "a.grace/metadata.json", "image_filename is b", "expected a"):
        sample(folder)


@pytest.mark.parametrize("name", ["a.png", "a.mrc.gz"])
def test_metadata_may_name_the_image_with_its_suffix(folder, name):
    (folder / "a.grace/metadata.json").write_text(json.dumps({"image_filename": name}))
    assert sample(folder).name == "a"


def test_annotation_of_another_size(folder):
    np.savez(folder / "a.grace/annotation.npz", annotation=np.zeros((8, 6), dtype=int))
    with fails(folder / "a.grace/annotation.npz", "6 x 8 pixels", "a.png has 8 x 6"):
        sample(folder)


def test_node_outside_the_image(folder):
    edit(folder / "a.grace/nodes.parquet", x=[0.0, 5, 0, 70])
    (folder / "a.h5").unlink()
    with fails(folder / "a.grace/nodes.parquet", "detection 3 at x=70.0, y=5.0", "8 x 6", "1 of 4"):
        sample(folder)


def test_detection_outside_the_image(folder):
    write_h5(folder / "a.h5", [[0, 0], [5, 0], [0, 6.0]])
    with fails(folder / "a.h5", "detection 2 at x=0.0, y=6.0"):
        io.read_sample(io.Source("a", folder / "a.png", detections=folder / "a.h5"))


def test_detections_that_agree_in_any_order_are_silent(folder):
    write_h5(folder / "a.h5", GRAPH.pos.flip(0) + 0.005)
    assert_equal_graphs(sample(folder, **KEEP).graph, GRAPH)


def test_detections_that_disagree(folder):
    moved = GRAPH.pos.clone()
    moved[2, 1] += 0.75
    write_h5(folder / "a.h5", moved)
    with pytest.warns(InputWarning, match=r"a\.h5: differs from .*nodes\.parquet by up to 0\.75 px"):
        assert_equal_graphs(sample(folder, **KEEP).graph, GRAPH)


def test_another_number_of_detections(folder):
    write_h5(folder / "a.h5", GRAPH.pos[:3])
    with pytest.warns(InputWarning, match=r"3 detections, but .*nodes\.parquet has 4; one lies 5\.00 px"):
        sample(folder)


def test_detections_without_coordinates(folder):
    FRAME[["x"]].to_hdf(folder / "a.h5", key="df")
    with fails(folder / "a.h5", "no column y"):
        sample(folder)


@pytest.mark.shared
def test_real_samples(shared):
    sources = io.find_sources(shared / "data/roots/valid")
    samples = [io.read_sample(source) for source in sources]
    assert [(s.name, s.graph.num_nodes, s.graph.num_edges) for s in samples] == [
        ("454R", 981, 2924),
        ("457", 833, 2481),
    ]
    assert [tuple(s.image.shape) for s in samples] == [(1, 1573, 1432), (1, 1548, 1423)]


# ---- instances.json -------------------------------------------------------------------------------------------------


def test_instances_are_sorted_and_may_share_nodes(tmp_path):
    path = tmp_path / "a.instances.json"
    path.write_text('{"1": [3, 0, 3], "b": [], "2": [1, 3]}')
    found = io.read_instances(path, 4)
    assert {name: nodes.tolist() for name, nodes in found.items()} == {"1": [0, 3], "b": [], "2": [1, 3]}
    assert all(nodes.dtype == np.int64 for nodes in found.values())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read as the nodes of each filament"),
        ("[[0, 1]]", "a JSON list, expected the nodes of each filament"),
        ('{"1": 0}', "filament 1 is not a list of whole numbers"),
        ('{"1": [0, 1.0]}', "filament 1 is not a list of whole numbers"),
        ('{"1": [true]}', "filament 1 is not a list of whole numbers"),
        ('{"1": [0], "7": [1, 4]}', "filament 7 has node 4, expected numbers from 0 to 3"),
        ('{"1": [-1]}', "filament 1 has node -1"),
        ('{"1": [123456789012345678901234567890]}', "filament 1 has node 123456789012345678901234567890"),
    ],
)
def test_bad_instances(tmp_path, text, words):
    path = tmp_path / "a.instances.json"
    path.write_text(text)
    with fails(path, words):
        io.read_instances(path, 4)


def test_missing_instances(tmp_path):
    path = tmp_path / "a.instances.json"
    with fails(path, "not found"):
        io.read_instances(path, 4)


@pytest.mark.parametrize("beside", [["grace"], ["image"], ["image", "grace"], []])
def test_instances_lie_beside_the_annotation_or_the_image(tmp_path, beside):
    for name in ("image", "grace"):
        (tmp_path / name).mkdir()
    write_image(tmp_path / "image" / "a.png", np.zeros((4, 4), dtype=np.uint8))
    (tmp_path / "grace" / "a.grace").mkdir()
    for name in beside:
        (tmp_path / name / "a.instances.json").write_text("{}")
    (source,) = io.find_sources(tmp_path / "image", tmp_path / "grace")
    assert source.instances == (tmp_path / beside[-1] / "a.instances.json" if beside else None)
