"""What real images hold beside signal: hot pixels, no data, blank parts."""

import warnings

import numpy as np
import pytest
import tifffile
import torch
from helpers import line_scene
from scipy.ndimage import binary_erosion

from grace_lightning import io
from grace_lightning.errors import InputWarning
from grace_lightning.flatten import blank, flatten_image, mended
from grace_lightning.raster import draw_path
from grace_lightning.ridges import RidgeDetector

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
    detector = RidgeDetector(scale=10.0)
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
