import pytest
import torch

from grace_lightning.errors import InputError
from grace_lightning.features import (
    EDGE_WIDTH,
    Standardise,
    Statistics,
    crop_patches,
    encode_geometry,
    flatten_image,
    laplacian,
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
    plain = Statistics(patch_size=5).extract(sample)["x"]
    both = Statistics(patch_size=5, laplacian=True).extract(sample)["x"]
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
    features = Statistics(patch_size=7)
    whole = features.extract(sample)["x"]
    monkeypatch.setattr("grace_lightning.features.CHUNK_BYTES", 4 * 7 * 7 * 3)
    assert torch.equal(features.extract(sample)["x"], whole)


def test_standardise_takes_mean_and_deviation_of_all_batches():
    scale = Standardise(2)
    for batch in ([[0.0, 5.0], [2.0, 5.0]], [], [[4.0, 5.0]]):
        scale.update(torch.tensor(batch).reshape(-1, 2))
    assert scale.mean.tolist() == [2, 5]
    assert scale.deviation.tolist() == pytest.approx([(8 / 3) ** 0.5, 1])
    assert scale(torch.tensor([[2.0, 5.0]])).tolist() == [[0, 0]]
    assert set(scale.state_dict()) == {"mean", "deviation"}


@pytest.mark.parametrize(("key", "value"), [("patch_size", 0), ("flatten_sigma", 0.2)])
def test_impossible_sizes_are_refused(key, value):
    with pytest.raises(InputError, match=f"features.{key}: {value}"):
        Statistics(**{key: value})
