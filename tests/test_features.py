import math

import pytest
import torch
from helpers import random_sample

from grace_lightning.data import prepare
from grace_lightning.errors import InputError
from grace_lightning.features import (
    EDGE_WIDTH,
    Learned,
    Standardise,
    Statistics,
    crop_patches,
    edge_strips,
    encode_geometry,
    flatten_image,
    laplacian,
    node_patches,
    patch_statistics,
    standardise_image,
)
from grace_lightning.graph import Sample, edge_geometry, from_detections


def ramp(height, width):
    """Image whose pixel (row, column) is 100 * row + column."""
    return (100 * torch.arange(float(height))[:, None] + torch.arange(float(width)))[None]


class TestPatches:
    def test_odd_patch_is_centred_on_the_nearest_pixel(self):
        patch = crop_patches(ramp(9, 9), torch.tensor([[4.2, 2.8]]), 3)
        assert patch.shape == (1, 1, 3, 3)
        assert patch[0, 0].tolist() == [[203, 204, 205], [303, 304, 305], [403, 404, 405]]

    def test_even_patch_is_centred_as_near_as_whole_pixels_allow(self):
        patches = crop_patches(ramp(9, 9), torch.tensor([[3.6, 3.4], [4.0, 3.0]]), 2)
        assert patches[0, 0].tolist() == [[303, 304], [403, 404]]
        assert patches[1, 0].tolist() == [[304, 305], [404, 405]]  # of two as near, the later

    def test_border_is_reflected_without_repeating_the_edge_pixel(self):
        assert crop_patches(ramp(5, 5), torch.tensor([[0.0, 0.0]]), 5)[0, 0].tolist() == [
            [202, 201, 200, 201, 202],
            [102, 101, 100, 101, 102],
            [2, 1, 0, 1, 2],
            [102, 101, 100, 101, 102],
            [202, 201, 200, 201, 202],
        ]
        assert crop_patches(ramp(5, 5), torch.tensor([[4.0, 2.0]]), 3)[0, 0, 1].tolist() == [203, 204, 203]

    def test_patch_larger_than_the_image(self):
        row = crop_patches(ramp(1, 3), torch.tensor([[1.0, 0.0]]), 9)[0, 0, 4]
        assert row.tolist() == [1, 2, 1, 0, 1, 2, 1, 0, 1]

    def test_statistics_are_mean_deviation_minimum_maximum(self):
        patches = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
        assert patch_statistics(patches)[0].tolist() == pytest.approx([3, 3.5**0.5, 1, 6])


class TestImage:
    def test_standardised_image_has_zero_mean_and_unit_deviation(self):
        image = standardise_image(ramp(30, 40))
        assert image.mean().item() == pytest.approx(0, abs=1e-5)
        assert image.std(correction=0).item() == pytest.approx(1)
        assert standardise_image(torch.full((1, 4, 4), 7.0)).abs().max() == 0

    def test_flattening_removes_a_slope_and_keeps_what_is_small(self):
        generator = torch.Generator().manual_seed(0)
        image = 50 + 3 * ramp(300, 300) / 10_000 + torch.randn(1, 300, 300, generator=generator)
        image[:, 140:160, 140:160] += 6
        flat = flatten_image(image, 30)
        assert flat[:, :100, :100].mean().abs() < 0.2
        assert (flat[:, 200:, 200:].mean() - flat[:, :100, :100].mean()).abs() < 0.3
        assert flat[:, 142:158, 142:158].mean() > 1.5

    def test_flattening_evens_out_the_contrast(self):
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(1, 400, 400, generator=generator)
        image[:, :, 200:] *= 5
        flat = flatten_image(image, 20)
        assert flat[:, :, 300:].std().item() == pytest.approx(flat[:, :, :100].std().item(), rel=0.05)

    @pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 300), (1, 333, 5)])
    def test_flattening_takes_any_size(self, shape):
        flat = flatten_image(torch.rand(shape), 40)
        assert flat.shape == shape
        assert flat.isfinite().all()


def test_laplacian_is_degree_minus_adjacency_and_sparse():
    matrix = laplacian(torch.tensor([[0, 0, 1], [1, 2, 2]]), 4)
    assert matrix.toarray().tolist() == [[2, -1, -1, 0], [-1, 2, -1, 0], [-1, -1, 2, 0], [0, 0, 0, 0]]
    assert laplacian(torch.tensor([[0], [1]]), 100_000).nnz <= 100_002


def test_laplacian_features_are_appended():
    pos = torch.tensor([[5.0, 5.0], [25.0, 5.0], [15.0, 20.0]])
    sample = Sample("a", torch.rand(1, 30, 30), from_detections(pos)[0])
    plain = Statistics(scale=5, patch=1).extract(sample)["x"]
    both = Statistics(scale=5, patch=1, laplacian=True).extract(sample)["x"]
    assert torch.equal(both[:, :4], plain)
    assert torch.allclose(both[:, 4:], 3 * plain - plain.sum(dim=0), atol=1e-5)  # a triangle: degree 2 each


def test_encoding_marks_missing_neighbours_and_forgets_the_ends():
    pos = torch.tensor([[0.0, 0.0], [10.0, 4.0], [3.0, 9.0]])
    edges = torch.tensor([[0, 0, 1], [1, 2, 2]])
    encoded = encode_geometry(edge_geometry(pos, edges))
    assert encoded.shape == (3, EDGE_WIDTH)
    assert sorted(encoded[:, [8, 14]].flatten().tolist()) == [0, 0, 0, 1, 1, 1]
    assert encoded.isfinite().all()
    swapped = encode_geometry(edge_geometry(pos, edges.flip(0)))
    assert torch.equal(swapped, encoded)


def test_extraction_in_chunks_gives_the_same(monkeypatch):
    pos = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) * 60
    sample = Sample("a", torch.rand(1, 64, 64), from_detections(pos)[0])
    features = Statistics(scale=7, patch=1)
    whole = features.extract(sample)["x"]
    monkeypatch.setattr("grace_lightning.features.statistics.CHUNK_BYTES", 4 * 7 * 7 * 3)
    assert torch.equal(features.extract(sample)["x"], whole)


def test_standardise_takes_mean_and_deviation_of_all_batches():
    scale = Standardise(2)
    for batch in ([[0.0, 5.0], [2.0, 5.0]], [], [[4.0, 5.0]]):
        scale.update(torch.tensor(batch).reshape(-1, 2))
    assert scale.mean.tolist() == [2, 5]
    assert scale.deviation.tolist() == pytest.approx([(8 / 3) ** 0.5, 1])
    assert scale(torch.tensor([[2.0, 5.0]])).tolist() == [[0, 0]]
    assert set(scale.state_dict()) == {"mean", "deviation"}


@pytest.mark.parametrize(("key", "value"), [("patch", 0.0), ("flatten", -1.0), ("scale", 0.0)])
def test_impossible_sizes_are_refused(key, value):
    with pytest.raises(InputError, match=f"features.{key}: {value}"):
        Statistics(**{key: value})


class TestResampledCrops:
    def test_patch_is_interpolated_about_the_position(self):
        patch = node_patches(ramp(20, 20), torch.tensor([[10.5, 8.0]]), size=4, samples=3)
        rows, columns = torch.tensor([6.0, 8.0, 10.0]), torch.tensor([8.5, 10.5, 12.5])
        assert torch.allclose(patch[0, 0], 100 * rows[:, None] + columns, atol=1e-2)

    def test_patch_is_reflected_at_the_border(self):
        patch = node_patches(ramp(9, 9), torch.tensor([[0.0, 4.0]]), size=4, samples=5)
        assert torch.allclose(patch[0, 0, 2], 400 + torch.tensor([2.0, 1, 0, 1, 2]), atol=1e-2)

    def test_strip_runs_from_south_to_north_with_east_on_its_right(self):
        # an upright edge from y 15 to y 7; a quarter of its length, 2 pixels, beyond both ends
        pos, edges = torch.tensor([[10.0, 7.0], [10.0, 15.0]]), torch.tensor([[0], [1]])
        strip = edge_strips(ramp(24, 24), pos, edges, half_width=3, samples=(4, 3))
        rows, columns = torch.tensor([17.0, 13.0, 9.0, 5.0]), torch.tensor([7.0, 10.0, 13.0])
        assert strip.shape == (1, 1, 4, 3)
        assert torch.allclose(strip[0, 0], 100 * rows[:, None] + columns, atol=1e-2)
        assert torch.equal(edge_strips(ramp(24, 24), pos, edges.flip(0), half_width=3, samples=(4, 3)), strip)

    def test_level_strip_runs_to_the_east_with_south_on_its_right(self):
        pos, edges = torch.tensor([[16.0, 12.0], [8.0, 12.0]]), torch.tensor([[0], [1]])
        strip = edge_strips(ramp(24, 24), pos, edges, half_width=3, samples=(4, 3))
        columns, rows = torch.tensor([6.0, 10.0, 14.0, 18.0]), torch.tensor([9.0, 12.0, 15.0])
        assert torch.allclose(strip[0, 0], 100 * rows + columns[:, None], atol=1e-2)

    @pytest.mark.parametrize("angle", [0.3, 1.2, 2.9])
    def test_a_filament_along_an_edge_lies_straight_in_its_strip(self, angle):
        rows, columns = torch.meshgrid(torch.arange(80.0), torch.arange(80.0), indexing="ij")
        across = (columns - 40) * math.sin(angle) - (rows - 40) * math.cos(angle)
        image = torch.exp(-((across / 3) ** 2))[None]
        half = 12 * torch.tensor([math.cos(angle), math.sin(angle)])
        pos = torch.stack([40 - half, 40 + half])
        strip = edge_strips(image, pos, torch.tensor([[0], [1]]), half_width=12, samples=(9, 9))[0, 0]
        expected = torch.exp(-((torch.linspace(-12, 12, 9) / 3) ** 2)).expand(9, 9)
        assert (strip - expected).abs().max() < 0.05

    def test_two_detections_at_one_place_give_a_finite_strip(self):
        pos = torch.tensor([[5.0, 5.0], [5.0, 5.0]])
        assert edge_strips(ramp(9, 9), pos, torch.tensor([[0], [1]]), half_width=2, samples=(3, 3)).isfinite().all()


class TestLearned:
    def features(self):
        torch.manual_seed(0)
        return Learned(scale=8, patch_samples=9, strip_samples=[8, 5], channels=[4, 8], width=6)

    def test_another_magnification_needs_one_number(self):
        # the same scene at twice the size: nearly the same features
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randn(1, 12, 12, generator=generator)
        small, large = (
            torch.nn.functional.interpolate(coarse[None], size=(s, s), mode="bicubic", align_corners=True)[0]
            for s in (101, 201)
        )
        pos = 10 + 80 * torch.rand(12, 2, generator=generator)
        values = []
        for scale, image, points in ((8.0, small, pos), (16.0, large, 2 * pos)):
            torch.manual_seed(0)
            features = Learned(scale=scale, flatten=None, channels=[4], width=6).eval()
            sample = Sample("a", features.preprocess(image), from_detections(points)[0])
            with torch.no_grad():
                values.append(features(prepare(sample, features))[0])
        assert torch.allclose(*values, atol=0.02)
        assert values[0].std(dim=0).min() > 0.02

    @pytest.mark.parametrize("training", [False, True])
    def test_chunks_give_the_same_as_all_at_once(self, training, monkeypatch):
        features = self.features().eval()  # batch statistics would differ between chunks
        data = prepare(random_sample(), features)
        with torch.set_grad_enabled(training):
            whole = features(data)
            monkeypatch.setattr("grace_lightning.features.learned.CHUNK", 7)
            parts = features(data)
        assert torch.allclose(whole[0], parts[0], atol=1e-5)
        assert torch.allclose(whole[1], parts[1], atol=1e-5)
        if training:
            parts[1].sum().backward()
            assert all(p.grad is not None for p in features.edge_encoder.parameters())

    def test_patches_are_augmented_where_asked(self):
        features = self.features().eval()
        data = prepare(random_sample(), features)
        with torch.no_grad():
            nodes, edges = features(data)
            blank, same = features(data, lambda patches: patches * 0)
        assert torch.allclose(blank, blank[:1].expand_as(blank))
        assert not torch.allclose(blank, nodes)
        assert torch.equal(edges, same)
