"""What people's images and masks are like: hot pixels, blank parts, odd headers, bombs, masks upside down."""

import gzip
import io as streams
import struct
import tracemalloc
import warnings

import imagecodecs
import mrcfile
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from helpers import LINES, line_scene
from scipy.ndimage import binary_erosion

from grace_lightning import io
from grace_lightning.clean import blank, cleaned, mended
from grace_lightning.errors import InputError, InputWarning
from grace_lightning.flatten import flatten_image
from grace_lightning.raster import draw_path
from grace_lightning.ridges import RidgeDetector, better_fit

HALF, ROWS, DOWN = np.s_[:, 256:], np.s_[100:104], np.s_[:, 261]
FAULTS = {  # which pixels of the scene have which value
    "nothing": (np.s_[:0], 0, 3),
    "a pixel of counts": ((200, 250), 32767, 3),
    "a pixel beyond measure": ((200, 250), 1e7, 3),
    "a dead pixel": ((200, 250), -32768, 3),
    "a cluster": (np.s_[200:203, 250:253], 5e5, 3),
    "many pixels": ((np.arange(384), 37 * np.arange(384) % 512), np.linspace(900, 65535, 384), 3),
    "rows without data": (ROWS, -3.4e38, 3),
    "rows of a mark": (ROWS, -9999, 3),
    "a dead column": (DOWN, 0, 3),
    "a hot column": (DOWN, np.random.default_rng(0).normal(5000, 500, 384), 3),
    "padding": (np.s_[:30], 0, 3),
    "half blank": (HALF, 0, 2),
    "half blank, a mark": (HALF, -9999, 2),
    "half blank, the mean": (HALF, 30, 2),
    "constant": (np.s_[:], 30, 0),
}


@pytest.fixture(params=FAULTS.values(), ids=FAULTS)
def spoiled(request, tmp_path):
    """The file of a scene with a fault, which pixels that is, and how many filaments are in the rest."""
    where, value, count = request.param
    image, _ = line_scene()
    spoilt = np.zeros(image.shape, bool)
    image[where], spoilt[where] = value, True
    tifffile.imwrite(tmp_path / "a.tif", image)
    return tmp_path / "a.tif", spoilt, count


def read(path, told):
    if not told:
        return io.read_image(path)
    with pytest.warns(InputWarning, match=rf"{path}: "):
        return io.read_image(path)


@pytest.mark.filterwarnings("ignore:image.*blank|image.*one value")
def test_what_is_no_signal_makes_no_filaments_and_takes_none(spoiled, predictor):
    path, spoilt, count = spoiled
    _, pos = line_scene()
    findings = predictor(read(path, spoilt.any()), pos)
    assert len(findings.filaments) == count
    if count < 3:
        deep = torch.from_numpy(binary_erosion(spoilt, np.ones((11, 11)))[tuple(pos.astype(int).T[::-1])])
        assert deep.sum() > 20
        assert findings.node_probability[deep].max() == 0
        assert findings.edge_probability[deep[findings.graph.edges].any(dim=0)].max() == 0


def test_arrays_from_python_are_guarded_too(predictor):
    image, pos = line_scene()
    image[200, 250] = 1e7
    with pytest.warns(InputWarning, match="image: 1 pixel is hot or dead, such as 1e\\+07"):
        assert len(predictor(image, pos).filaments) == 3


def test_what_is_no_signal_has_no_ridges(spoiled):
    path, spoilt, _ = spoiled
    detector = RidgeDetector(scale=10.0, threshold=5.0)
    found, expected = detector(read(path, spoilt.any())), detector(torch.from_numpy(line_scene()[0])[None])
    x, y = found[["x", "y"]].to_numpy().round().astype(int).T
    assert spoilt[y, x].sum() <= 3 * (spoilt.sum() < 4000)  # ridges run on over a few rows
    x, y = expected[["x", "y"]].to_numpy().round().astype(int).T
    assert len(found) == pytest.approx((~spoilt[y, x]).sum(), abs=5)


def drawn(count, width, size=(384, 512)):
    """Lines of ones on zeros, at random places."""
    generator, image = np.random.default_rng(count), np.zeros(size, np.float32)
    for ends in generator.uniform([0, 0], size[::-1], (count, 2, 2)):
        image.flat[draw_path(ends, width, size)] = 1
    return image


NOISE = np.random.default_rng(1).normal(0, 2, (384, 512))
RARE = np.random.default_rng(2).poisson(0.009, (384, 512))
GOOD = {
    "thin bright lines on black": 255 * drawn(3, 1),
    "thin bright lines on noise": 100 + NOISE + 60000 * drawn(3, 2),
    "dotted lines on noise": 100 + NOISE + 60000 * drawn(9, 3) * (NOISE > 1),
    "saturated lines": np.clip(10 + NOISE + 5000 * drawn(20, 16), 0, 255),
    "counts of electrons": RARE,
    "a drawing": 255 * drawn(10, 20),
    "masked heights": np.where(drawn(10, 14) > 0, 5 + NOISE, 0),
    "stripes": np.sin(np.arange(384) / 9)[:, None].repeat(512, 1),
    "gold": 100 + NOISE - 60 * np.kron(RARE[:24, :32], np.ones((16, 16))),
    "lines": line_scene()[0],
}


@pytest.mark.parametrize("pixels", GOOD.values(), ids=GOOD)
def test_signal_is_never_taken_for_a_fault(pixels, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", pixels.astype(np.float32))
    assert np.array_equal(io.read_image(tmp_path / "a.tif")[0].numpy(), pixels.astype(np.float32))
    assert blank(torch.from_numpy(pixels.astype(np.float32))[None]) is None


def test_the_median_around_takes_the_place_of_a_hot_pixel():
    image = torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0)) + torch.arange(64)
    spoiled = image.clone()
    spoiled[0, 20, 50] = 1e6
    found, bad = mended(spoiled)
    assert np.argwhere(bad).tolist() == [[20, 50]]
    assert found[0, 20, 50].item() == pytest.approx(50, abs=2)
    found[0, 20, 50] = image[0, 20, 50]
    assert torch.equal(found, image)
    assert mended(image)[0] is image


def test_the_rest_of_a_partly_blank_image_is_flattened_as_if_it_were_all():
    image = torch.randn(1, 200, 300, generator=torch.Generator().manual_seed(0))
    image[:, :, 100:] = -40
    flat = flatten_image(image, 10)
    assert flat[:, :, 100:].abs().max() == 0
    assert flat[:, :, 90:100].std().item() == pytest.approx(1, abs=0.1)
    torch.testing.assert_close(flat[:, :, :60], flatten_image(image[:, :, :100], 10)[:, :, :60], atol=0.05, rtol=0)


@pytest.mark.shared
def test_real_images_have_no_faults(shared):
    with warnings.catch_warnings(action="error"):
        for path in sorted(shared.glob("data/[rw]*/**/*[0-9Rmt].png")):
            io.read_image(path)
    heights = np.load(shared / "data/formats/afm-dna/example_catenanes.npy").astype(np.float32)
    empty = blank(torch.from_numpy(heights)[None])
    expected = torch.zeros_like(empty)
    expected[:200, 330:], expected[200:, :70] = True, True  # two images, padded to one
    assert torch.equal(empty, expected)


# ---- what MRC headers say ---------------------------------------------------------------------------------------


def mrc(path, pixels, *, changes=(), **header):
    """Write an MRC file; ``changes`` are numbers of 4 bytes by their place in the header."""
    with streams.BytesIO() as stream, mrcfile.mrcinterpreter.MrcInterpreter() as file:
        file._iostream = stream
        file._create_default_attributes()
        file.set_data(pixels)
        for name, value in header.items():
            file.header[name] = value
        file.flush()
        content = bytearray(stream.getvalue())
    for place, value in dict(changes).items():
        struct.pack_into("<i", content, place, value)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


IMOD = {152: 1146047817}
UNKNOWN = {"dmin": 0, "dmax": -1}


@pytest.mark.parametrize(
    ("flags", "statistics", "expected"),
    [
        ({}, UNKNOWN, [-56, 7]),
        (IMOD, UNKNOWN, [200, 7]),
        (IMOD | {156: 2}, {"dmin": 0, "dmax": 0}, [200, 7]),
        (IMOD | {156: 1}, UNKNOWN, [-56, 7]),
        (IMOD, {"dmin": -56, "dmax": 7}, [-56, 7]),
        (IMOD | {156: 1}, {"dmin": 7, "dmax": 200}, [200, 7]),
    ],
)
def test_bytes_are_unsigned_if_imod_or_the_statistics_say_so(flags, statistics, expected, tmp_path):
    path = mrc(tmp_path / "a.mrc", np.array([[-56, 7]], np.int8), changes=flags, **statistics)
    assert io.read_image(path).tolist() == [[expected]]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ((10.8, 10.8), 1.08),
        ((6500, 6500), 650),
        ((10, 0), 1),
        ((4e-9, 4e-9), None),
        ((1e9, 1e9), None),
        ((10, 20), None),
    ],
)
def test_a_pixel_size_that_cannot_be_is_doubted_by_name(cell, expected, tmp_path):
    path = mrc(tmp_path / "a.mrc", np.zeros((10, 10), np.int16), cella=(*cell, 0))
    if expected is None:
        with pytest.warns(InputWarning, match="a.mrc: .* Angstrom .*in the header, expected"):
            assert io.pixel_size(path) is None
    else:
        assert io.pixel_size(path) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({12: 101}, "two pixels in a byte .mode 101.*newstack"),
        (IMOD | {156: 16, 12: 0}, "two pixels in a byte"),
        ({12: 3}, "complex numbers"),
        ({12: 7}, "mode '7'"),
        ({0: 0}, "0 x 20 x 1 pixels of mode 1; is it an MRC file"),
        ({0: -30}, "is it an MRC file"),
        ({92: 2**31 - 1}, "is it cut short"),
        ({92: -9}, "is it an MRC file"),
    ],
)
@pytest.mark.parametrize("suffix", [".mrc", ".mrc.gz"])
def test_odd_headers(changes, message, suffix, tmp_path):
    path = mrc(tmp_path / f"a{suffix}", np.zeros((20, 30), np.int16), changes=changes)
    with pytest.raises(InputError, match=message) as caught:
        io.read_image(path)
    assert str(caught.value).startswith(f"{path}: ")


# ---- bombs ------------------------------------------------------------------------------------------------------


def test_what_lies_behind_the_pixels_of_a_packed_image_stays_packed(tmp_path):
    path = mrc(tmp_path / "a.mrc.gz", np.zeros((4, 4), np.int16))
    with gzip.open(path, "ab", 1) as file:
        file.write(bytes(2**26))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"a\.mrc\.gz: the header says 4 x 4 x 1 pixels of mode 1, but more follows"):
        io.read_image(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


WRITERS = {
    "a.mrc": mrc,
    "a.mrc.gz": mrc,
    "a.tif": lambda path, pixels: tifffile.imwrite(path, pixels),
    "b.tif": lambda path, pixels: tifffile.imwrite(path, pixels, compression="zlib"),
    "a.png": lambda path, pixels: path.write_bytes(imagecodecs.png_encode(pixels)),
    "a.npz": lambda path, pixels: np.savez_compressed(path, annotation=pixels),
}


@pytest.mark.parametrize("name", WRITERS)
def test_an_image_or_a_mask_larger_than_the_bound_is_not_unpacked(name, tmp_path):
    WRITERS[name](tmp_path / name, np.eye(300, 400, dtype=np.uint16))
    gib = 300 * 400 * 2 / 2**30
    if name != "a.npz":
        assert io.read_image(tmp_path / name, max_gib=5 * gib).shape == (1, 300, 400)
        with pytest.raises(InputError, match=rf"{name}: holds .* expected at most .*; .*io\.max_gib"):
            io.read_image(tmp_path / name, max_gib=0.9 * gib)
        with pytest.raises(InputError, match=r"data\.max_gib"):
            io.read_image(tmp_path / name, max_gib=0.9 * gib, group="data.")
    if not name.startswith("a.mrc"):
        assert io.read_mask(tmp_path / name, (300, 400), max_gib=5 * gib).sum() == 300
        with pytest.raises(InputError, match=rf"{name}: holds .* expected at most .*; .*max_gib"):
            io.read_mask(tmp_path / name, (300, 400), max_gib=0.9 * gib)


def test_messages_name_the_key_that_the_command_has(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.random.default_rng(0).normal(size=(3, 40, 50)))
    with pytest.raises(InputError, match=r"a\.tif: a stack of 3 frames, expected one image; set frame to 0"):
        io.read_image(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"set data\.frame to 0"):
        io.read_sample(io.Source("a", tmp_path / "a.tif"))


def test_links_that_lead_nowhere_are_named(tmp_path):
    (tmp_path / "a.mrc").symlink_to(tmp_path / "gone.mrc")
    with pytest.raises(InputError, match=r"1 link to images that are not there: a\.mrc; expected images"):
        io.find_images(tmp_path)
    (tmp_path / "b.mrc").touch()
    with pytest.warns(InputWarning, match=r"1 link to images that are not there: a\.mrc; left out"):
        assert io.find_images(tmp_path) == [tmp_path / "b.mrc"]


# ---- masks that do not fit --------------------------------------------------------------------------------------


def scene_mask():
    mask = np.zeros((384, 512), np.uint8)
    for ends in LINES:
        mask.flat[draw_path(ends, 10, mask.shape)] = 255
    return mask


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda mask: mask, ""),
        (lambda mask: mask[::-1], "mirrored in y"),
        (lambda mask: mask[:, ::-1], "mirrored in x"),
        (lambda mask: mask[::-1, ::-1], "turned by 180 degrees"),
        (lambda mask: 255 - mask, "inverted"),
        (lambda mask: 255 - mask[::-1], "inverted, mirrored in y"),
        (lambda mask: 0 * mask, ""),
        (lambda mask: np.where(np.arange(512) < 256, mask, 0), ""),  # a part of the filaments
        (lambda mask: np.random.default_rng(0).permutation(mask), ""),  # of another image
    ],
)
@pytest.mark.parametrize("given", ["both", "few detections", "no ridges"])
def test_a_mask_that_would_fit_otherwise_is_told_how(spoil, expected, given):
    image, pos = line_scene()
    image = image if given != "no ridges" else image.std() * np.random.default_rng(0).normal(size=image.shape)
    pos = pos if given != "few detections" else pos[:3]
    mask = torch.from_numpy(spoil(scene_mask()).astype(np.int32))
    said = better_fit(torch.from_numpy(image.astype(np.float32))[None], torch.from_numpy(pos), mask)
    assert said in ((expected,) if given == "both" else (expected, ""))
    assert given != "few detections" or said == expected


def test_a_mirrored_mask_is_told_and_mirrored_back_by_a_key(run, tmp_path):
    image, pos = line_scene()
    mrc(tmp_path / "a.mrc", image)
    pd.DataFrame(pos, columns=["x", "y"]).to_csv(tmp_path / "a.csv", index=False)
    mask = scene_mask()
    tifffile.imwrite(tmp_path / "a_mask.tif", mask[::-1])
    status, _, err = run("annotate", f"image_dir={tmp_path}", "out_dir=out")
    assert (status, err.count("\n")) == (0, 1)
    assert "a_mask.tif: mirrored in y, it would fit" in err
    assert "mask_flip=y" in err
    status, _, err = run("annotate", f"image_dir={tmp_path}", "out_dir=out", "overwrite=true", "mask_flip=y")
    assert (status, err) == (0, "")
    graph, annotation, _ = io.read_grace("out/a.grace")
    assert annotation.tolist() == (mask > 0).tolist()
    assert graph.label("node").sum() == 47


def test_drawn_rows_are_filaments():
    drawn = torch.zeros(1, 512, 512)
    drawn[:, 200:204] = 1
    assert cleaned(drawn.clone(), "a").equal(drawn)


def test_an_image_of_no_data_is_refused():
    with pytest.raises(InputError, match=r"a: no pixel is a finite number below 1e\+30"):
        cleaned(torch.full((1, 40, 50), 3e38), "a")
