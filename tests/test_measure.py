"""What filaments are like, against shapes of which it is known."""

import numpy as np
import pandas as pd
import pytest
from helpers import filament, line, ring, worm_like_chain

from grace_lightning.measure import (
    FEWEST_IMAGES,
    apparent_width,
    cosines,
    filaments_summary,
    persistence_length,
    stiffness,
)


def test_curvature_of_a_circle_is_one_by_its_radius_and_of_a_line_zero():
    for radius in (50, 400):
        half = ring(radius, 80)[:41]
        turned = [filament(ring(radius), closed=True), filament(half), filament(half[::-1])]
        found = filaments_summary("a", turned)["mean_curvature"]
        assert found.tolist() == pytest.approx([1 / radius] * 3, rel=3e-3)
    lines = [filament(line(33, nodes=nodes)) for nodes in (20, 2, 1)]
    assert filaments_summary("a", lines)["mean_curvature"].tolist() == pytest.approx([0] * 3, abs=1e-5)


def test_filaments_summary():
    traced = [filament(line(0), [0.25, 0.5, 1, 1, 0.5, 0.5]), filament(ring(), closed=True)]
    columns = {
        **{"image": ["451", "451"], "filament": [0, 1], "nodes": [6, 40], "length": [100, 200 * np.pi]},
        **{"end_to_end": [100.0, 0], "persistence_length": [np.nan, np.nan], "nearest": [182.843] * 2},
        **{"mean_probability": [0.625, 0.5], "mean_curvature": [0, 0.01], "crossings": [0, 0], "start_x": [200.0, 600]},
        **{"start_y": [300.0, 500], "end_x": [300.0, ring()[-1, 0]], "end_y": [300.0, ring()[-1, 1]]},
        **{"closed": [False, True], "type": pd.array([None, None], "Int64"), "type_share": [np.nan, np.nan]},
        **{"length_angstrom": [200, 400 * np.pi], "end_to_end_angstrom": [200.0, 0]},
        **{"persistence_length_angstrom": [np.nan] * 2, "nearest_angstrom": [2 * 182.843] * 2},
        "mean_curvature_per_angstrom": [0, 0.005],
    }
    found = filaments_summary("451", traced, 10.0, pixel_size=2)
    pd.testing.assert_frame_equal(found, pd.DataFrame(columns), rtol=1e-3, atol=1e-8)


def chains(persistence, images, seed=0, jitter=1.0):
    """Summed cosines and pairs of ten filaments in each of some images, nodes 20 pixels apart."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(images):
        paths = [worm_like_chain(persistence, generator.uniform(300, 1500), generator)[::20] for _ in range(10)]
        drawn = [filament(path + generator.normal(0, jitter, path.shape)) for path in paths]
        found.append(np.sum(cosines(drawn, 20.0), axis=1))
    sums, pairs = np.swapaxes(found, 0, 1)
    return sums, pairs


@pytest.mark.parametrize("persistence", [200.0, 1000.0, 5000.0])
def test_persistence_length_of_worm_like_chains(persistence):
    length, low, high = stiffness(*chains(persistence, images=40), 20.0)
    assert length == pytest.approx(persistence, rel=0.3)
    assert low < length < high < 3 * low


def test_what_does_not_bend_or_is_short_has_no_persistence_length():
    straight, short = filament(line(20, length=900, nodes=45)), filament(line(20, length=60, nodes=4))
    for one in (straight, short):
        assert np.isnan(persistence_length(*cosines([one], 20.0), 20.0)).all()
    assert np.isnan(cosines([filament(ring(), closed=True)], 20.0)[1]).sum() == 0
    sums, pairs = chains(1000.0, images=FEWEST_IMAGES - 1)
    assert np.isnan(stiffness(sums, pairs, 20.0)[1:]).all()
    assert np.isnan(filaments_summary("a", [], 20.0)["persistence_length"]).all()


def test_cosines_are_those_of_the_angles():
    sums, pairs = cosines([filament(ring(400, 80)[:60])], 20.0)
    lags = np.flatnonzero(pairs[0])
    np.testing.assert_allclose((sums / np.maximum(pairs, 1))[0, lags], np.cos((lags + 1) * 20 / 400), atol=0.01)


def test_crossings_and_the_nearest_other_filament():
    across = filament([[0, 50], [100, 50]])
    twice = filament([[20, 0], [20, 100], [60, 100], [60, 20]])
    ends_on_it, apart = filament([[80, 50], [80, 90]]), filament([[0, 130], [100, 130]])
    shared = [filament([[0, 200], [50, 200], [100, 200]]), filament([[0, 240], [50, 200], [60, 200], [110, 160]])]
    found = filaments_summary("a", [across, twice, ends_on_it, apart, *shared])
    assert found["crossings"].tolist() == [2, 2, 0, 0, 1, 1]
    assert found["nearest"].tolist() == [0, 0, 0, 30, 0, 0]
    assert np.isnan(filaments_summary("a", [across])["nearest"]).all()
    assert filaments_summary("a", [across, across])["nearest"].tolist() == [0, 0]


@pytest.mark.parametrize("width", [6.0, 10.0, 16.0])
def test_apparent_width_of_bars(width):
    rows, _ = np.indices((120, 300))
    image = -(np.abs(rows - 60) < width / 2).astype(float) + np.random.default_rng(0).normal(0, 0.3, rows.shape)
    path = np.column_stack([np.arange(20, 280, 10.0), np.full(26, 60.0)])
    assert apparent_width(image, [path, path[:1]], 10.0) == pytest.approx(width, rel=0.2)
    assert np.isnan(apparent_width(image, [], 10.0))
