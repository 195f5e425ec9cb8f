import pytest
import torch
from helpers import batched, random_sample

from grace_lightning.errors import InputError
from grace_lightning.features import Learned, Statistics, node_patches
from grace_lightning.features.common import Standardise, with_laplacian
from grace_lightning.features.crops import crop_patches, edge_strips
from grace_lightning.flatten import flatten_image, flattened, standardise_image
from grace_lightning.graph import Sample, from_detections


def ramp(height, width):
    """Image whose pixel (row, column) is 100 * row + column."""
    return (100 * torch.arange(float(height))[:, None] + torch.arange(float(width)))[None]


@pytest.mark.parametrize(
    ("pos", "size", "columns", "rows"),
    [
        ([4.2, 2.8], 3, [3, 4, 5], [2, 3, 4]),
        ([3.6, 3.4], 2, [3, 4], [3, 4]),
        ([4.0, 3.0], 2, [4, 5], [3, 4]),  # of two as near, the later
        ([0.0, 7.0], 5, [2, 1, 0, 1, 2], [5, 6, 7, 8, 7]),
        ([8.0, 0.0], 19, [1, 0, *range(1, 9), *range(7, -1, -1), 1], [7, 8, *range(7, -1, -1), *range(1, 9), 7]),
    ],
)
def test_patch_is_of_whole_pixels_and_reflected_at_the_border(pos, size, columns, rows):
    patch = crop_patches(ramp(9, 9), torch.tensor([pos]), size)
    assert patch.shape == (1, 1, size, size)
    assert patch[0, 0].tolist() == [[100 * row + column for column in columns] for row in rows]


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


def test_laplacian_is_degree_minus_adjacency():
    both = with_laplacian(torch.eye(4), torch.tensor([[0, 0, 1], [1, 2, 2]]))
    assert both[:, :4].tolist() == torch.eye(4).tolist()
    assert both[:, 4:].tolist() == [[2, -1, -1, 0], [-1, 2, -1, 0], [-1, -1, 2, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("laplacian", [False, True])
def test_statistics_of_a_batch_are_those_of_its_images(laplacian, monkeypatch):
    samples = random_sample(), random_sample("b", nodes=5, seed=1, size=(50, 70))
    features, data = Statistics(scale=7, patch=1, laplacian=laplacian), batched(*samples)
    patches = torch.cat([crop_patches(sample.image, sample.graph.pos, 7).flatten(1) for sample in samples])
    expected = [patches.mean(1), patches.std(1, correction=0), patches.amin(1), patches.amax(1)]
    assert torch.allclose(features.nodes(data)[:, :4], torch.stack(expected, dim=1), atol=1e-6)
    for sample in samples:
        features.fit(batched(sample))
    x, edge_x = features(data)
    assert x.shape == (45, features.node_features)
    assert torch.equal(x, torch.cat([features(batched(sample))[0] for sample in samples]))
    for values in (x, edge_x):
        assert torch.allclose(values.mean(dim=0), torch.zeros(values.shape[1]), atol=1e-5)
    assert features.nodes(data, lambda patches: patches * 0).abs().max() == 0
    monkeypatch.setattr("grace_lightning.features.statistics.CHUNK_BYTES", 4 * 7 * 7 * 3)
    assert torch.equal(features(data)[0], x)


def test_standardise_takes_mean_and_deviation_of_all_batches():
    scale = Standardise(2)
    for batch in ([[0.0, 5.0], [2.0, 5.0]], [], [[4.0, 5.0]]):
        scale.update(torch.tensor(batch).reshape(-1, 2))
    assert scale.mean.tolist() == [2, 5]
    assert scale.deviation.tolist() == pytest.approx([(8 / 3) ** 0.5, 1])
    assert scale(torch.tensor([[2.0, 5.0]])).tolist() == [[0, 0]]
    assert set(scale.state_dict()) == {"mean", "deviation"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            ("patch", 0.0),
            ("patch", float("nan")),
            ("flatten", -1.0),
            ("scale", 0.0),
            ("scale", 1e-9),
            ("scale", 1e308),
        ),
        *(("channels", []), ("channels", [10**7]), ("hidden", 0), ("hidden", 10**7), ("patch_samples", 10**6)),
        *(("strip_samples", (1, 9)), ("strip", 1e9), ("context", 1e9), ("context", 0.0)),
    ],
)
def test_impossible_sizes_are_refused(key, value):
    with pytest.raises(InputError, match=rf"features.{key}: .*, expected"):
        Learned(**{key: value})


class TestResampledCrops:
    @pytest.mark.parametrize(
        ("pos", "rows", "columns"),
        [
            ([10.5, 8.0], [6, 7, 8, 9, 10], [8.5, 9.5, 10.5, 11.5, 12.5]),
            ([0.0, 23.0], [21, 22, 23, 22, 21], [2.0, 1, 0, 1, 2]),
        ],
    )
    def test_patch_is_interpolated_about_the_position_and_reflected_at_the_border(self, pos, rows, columns):
        patch = node_patches(ramp(24, 24), torch.tensor([pos]), size=4, samples=5)
        assert torch.allclose(patch[0, 0], 100 * torch.tensor(rows)[:, None] + torch.tensor(columns), atol=1e-2)

    def test_strip_runs_from_south_to_north_with_east_on_its_right(self):
        # an upright edge from y 15 to y 7; a quarter of its length, 2 pixels, beyond both ends
        pos, edges = torch.tensor([[10.0, 7.0], [10.0, 15.0]]), torch.tensor([[0], [1]])
        strip = edge_strips(ramp(24, 24), pos, edges, half_width=3, samples=(4, 3))
        rows, columns = torch.tensor([17.0, 13.0, 9.0, 5.0]), torch.tensor([7.0, 10.0, 13.0])
        assert torch.allclose(strip, 100 * rows[:, None] + columns, atol=1e-2)
        assert torch.equal(edge_strips(ramp(24, 24), pos, edges.flip(0), half_width=3, samples=(4, 3)), strip)
        # a level one runs to the east with south on its right
        level = edge_strips(ramp(24, 24), pos.flip(1), edges.flip(0), half_width=3, samples=(4, 3))
        assert torch.allclose(level, 100 * columns + rows.flip(0)[:, None], atol=1e-2)

    def test_two_detections_at_one_place_give_a_finite_strip(self):
        pos = torch.tensor([[5.0, 5.0], [5.0, 5.0]])
        assert edge_strips(ramp(9, 9), pos, torch.tensor([[0], [1]]), half_width=2, samples=(3, 3)).isfinite().all()


class TestLearned:
    def features(self):
        torch.manual_seed(0)
        return Learned(scale=8, patch_samples=9, strip_samples=[8, 5], channels=[4, 8], hidden=6)

    def test_what_is_normalised_per_image_is_so_in_prediction_too(self):
        one, other = random_sample("a", nodes=30), random_sample("b", nodes=20, seed=1)
        for per_image in (True, False):
            features = Learned(scale=8, channels=[4, 8], hidden=6, per_image=per_image)
            with torch.no_grad():
                trained = features.train()(batched(one, other))
                predicted = features.eval()(batched(one))
            for before, after, rows in zip(trained, predicted, (30, one.graph.num_edges), strict=True):
                assert torch.allclose(before[:rows], after, atol=1e-5) == per_image

    def test_context_is_what_lies_beyond_the_patch(self):
        one = random_sample()
        others = one.image.clone()
        x, y = one.graph.pos[0]
        rows, columns = torch.meshgrid(torch.arange(96), torch.arange(128), indexing="ij")
        beyond = torch.maximum((rows - y).abs(), (columns - x).abs())
        others[0, (beyond > 12) & (beyond < 20)] += 2.0
        data, changed = batched(one), batched(one.replace(image=others))
        for context in (None, 6.0):
            features = Learned(scale=8, patch=2.4, context=context, channels=[4, 8], hidden=6).eval()
            with torch.no_grad():
                before, after = features(data)[0], features(changed)[0]
            assert before.shape == (one.graph.num_nodes, 6 if context is None else 12)
            assert torch.equal(before[0, :6], after[0, :6])
            assert torch.equal(before[0], after[0]) == (context is None)

    def test_another_magnification_needs_one_number(self):
        # the same scene at twice the size: nearly the same features
        generator = torch.Generator().manual_seed(0)
        coarse, pos = (torch.randn(1, 1, 12, 12, generator=generator), 10 + 80 * torch.rand(12, 2, generator=generator))
        values = []
        for scale, size in ((8.0, 101), (16.0, 201)):
            torch.manual_seed(0)
            features = Learned(scale=scale, flatten=None, channels=[4], hidden=6).eval()
            image = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)[0]
            sample = Sample("a", flattened(image, features.sigma), from_detections(pos * scale / 8)[0])
            with torch.no_grad():
                values.append(features(batched(sample))[0])
        assert torch.allclose(*values, atol=0.02)
        assert values[0].std(dim=0).min() > 0.02

    @pytest.mark.parametrize("training", [False, True])
    def test_chunks_give_the_same_as_all_at_once(self, training, monkeypatch):
        features = self.features().eval()  # batch statistics would differ between chunks
        data = batched(random_sample(), random_sample("b", nodes=5, seed=1))
        with torch.set_grad_enabled(training):
            whole = features(data)
            monkeypatch.setattr("grace_lightning.features.learned.CHUNK", 7)
            parts = features(data)
        assert torch.allclose(whole[0], parts[0], atol=1e-5)
        assert torch.allclose(whole[1], parts[1], atol=1e-5)
        if training:
            parts[1].sum().backward()
            assert all(p.grad is not None for p in features.edge_encoder.parameters())

    def test_an_image_without_detections_changes_nothing(self):
        empty = Sample("c", torch.zeros(1, 9, 9), from_detections(torch.zeros(0, 2))[0])
        one, other = (self.features()(batched(random_sample(), *rest)) for rest in ([], [empty]))
        assert all(map(torch.equal, one, other))

    def test_patches_are_augmented_where_asked(self):
        features = self.features().eval()
        data = batched(random_sample(), random_sample("b", nodes=5, seed=1))
        with torch.no_grad():
            nodes, edges = features(data)
            blank, same = features(data, lambda patches: patches * 0)
        assert torch.allclose(blank, blank[:1].expand_as(blank))
        assert not torch.allclose(blank, nodes)
        assert torch.equal(edges, same)
