"""Width and polarity of filaments, from images alone."""

import pytest
import torch
from helpers import line_scene
from scipy import ndimage

from grace_lightning.errors import InputError
from grace_lightning.estimate import estimate
from grace_lightning.ridges import RidgeDetector
from grace_lightning.simulate import Simulator, image_generator


def lines(scale: float) -> torch.Tensor:
    """Return an image (1, 384, 512) of three dark lines of that width."""
    return torch.from_numpy(line_scene(scale)[0])[None]


@pytest.mark.parametrize("scale", [5.0, 10.0, 24.0])
def test_width_and_polarity_of_lines(scale):
    dark, bright = estimate([lines(scale)]), estimate([-3 * lines(scale) + 7])
    assert 0.9 * scale < dark.scale < 1.55 * scale  # a sharp bar looks wider than what blurs towards its rim
    assert (dark.polarity, bright.polarity) == ("dark", "bright")
    assert bright.scale == pytest.approx(dark.scale, rel=0.1)
    assert not dark.doubtful


def test_other_things_do_not_decide():
    """A step is as strong as the lines, and blobs of the other sign are stronger."""
    image, (y, x) = lines(10.0), torch.meshgrid(torch.arange(384), torch.arange(512), indexing="ij")
    image += 12 * (x + 0.2 * y > 420) + 30 * ((x - 200) ** 2 + (y - 230) ** 2 < 10**2)
    found = estimate([image])
    assert (found.polarity, found.scale) == ("dark", pytest.approx(12, rel=0.25))


def test_each_image_has_one_vote():
    found = estimate([lines(10.0), lines(10.0) / 100, -100 * lines(24.0)])
    assert (found.polarity, found.scale) == ("dark", pytest.approx(12, rel=0.25))


def test_only_what_is_annotated_counts_and_how_wide_it_is():
    thin, wide = lines(8.0), lines(24.0).flip(1)
    both = (thin - thin.mean()).clamp(max=0) - 0.5 * (wide - wide.mean())
    assert estimate([both]).polarity == "dark"
    inside = ndimage.gaussian_filter(wide[0].numpy(), 3) < wide.mean().item() - 5
    found = estimate([both], annotations=[torch.from_numpy(inside)])
    assert (found.polarity, found.scale) == ("bright", pytest.approx(24, rel=0.3))
    broad = ndimage.binary_dilation(inside, iterations=8)
    assert estimate([both], annotations=[torch.from_numpy(broad)]).scale > found.scale


def test_what_is_known_is_kept_and_the_rest_is_estimated_for_it():
    both = torch.minimum(lines(8.0), lines(8.0).mean()) + 2 * (-lines(24.0) + lines(24.0).mean()).flip(1).clamp(min=0)
    assert estimate([both], scale=8.0).polarity == "dark"
    assert estimate([both], scale=24.0).polarity == "bright"
    found = estimate([both], polarity="dark")
    assert (found.polarity, found.scale) == ("dark", pytest.approx(11, rel=0.3))


@pytest.mark.parametrize(
    "image", [torch.zeros(1, 300, 300), torch.randn(1, 256, 256, generator=torch.Generator().manual_seed(0))]
)
@pytest.mark.parametrize("side", [300, 12, 1])
def test_of_nothing_the_estimate_is_doubtful(image, side):
    assert estimate([image[:, :side, :side]]).doubtful


def test_only_some_images_are_looked_at():
    def images():
        yield from [lines(10.0)[:, :128, :128]] * 8
        pytest.fail("more than eight")

    assert estimate(images()).polarity == "dark"
    with pytest.raises(InputError, match="no image"):
        estimate([])


@pytest.mark.parametrize(("snr", "inverted"), [(0.5, False), (5.0, True)])
def test_simulated_filaments_between_dirt_and_carbon(snr, inverted):
    simulator = Simulator(size=[512, 512], scale=12.0, period=24.0, snr=snr, pixel_size=8.0, p_carbon=1.0)
    images = [simulator("x", image_generator(seed, "x")).sample.image for seed in range(3)]
    found = estimate([-image if inverted else image for image in images])
    assert (found.polarity, found.scale) == ("bright" if inverted else "dark", pytest.approx(12, rel=0.35))


def test_a_ridge_detector_without_a_width_looks_at_the_image():
    image = -lines(10.0)
    known, estimated = (
        RidgeDetector(scale, spacing=12.0, threshold=5.0, polarity=polarity)(image)
        for scale, polarity in ((10.0, "bright"), (None, None))
    )
    assert len(estimated) == pytest.approx(len(known), rel=0.3)
    assert RidgeDetector()(torch.zeros(1, 100, 100)).empty
