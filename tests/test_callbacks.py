"""The film of a training, and the map of its nodes."""

import importlib.util
import warnings
from functools import partial

import imagecodecs
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from helpers import random_sample
from PIL import Image
from torch_geometric.data import Batch

from grace_lightning import figures
from grace_lightning.callbacks import Animation, Manifold
from grace_lightning.callbacks.manifold import principal_components, tsne
from grace_lightning.data import GraceDataModule, prepare
from grace_lightning.errors import InputError
from grace_lightning.features import Statistics
from grace_lightning.io import write_grace
from grace_lightning.models import GAT, GCN, MPNN
from grace_lightning.module import GraceModule


def small_module(network=GCN):
    torch.manual_seed(0)
    features = Statistics()
    sizes = {GCN: {"hidden": [8, 6]}, GAT: {"hidden": [8, 6], "heads": 2}, MPNN: {"width": 6}}[network]
    made = network(features.node_width, features.edge_width, dense=[4], **sizes)
    return GraceModule(features, made, partial(torch.optim.AdamW, lr=0.03)).eval()


@pytest.fixture
def folder(tmp_path):
    """Two annotated images of 96 x 128 pixels."""
    for k in range(2):
        sample = random_sample(f"m{k}", nodes=20 + k, seed=k)
        pixels = ((sample.image[0] + 5) * 25).clamp(0, 255).to(torch.uint8).numpy()
        (tmp_path / f"m{k}.png").write_bytes(imagecodecs.png_encode(pixels))
        metadata = {"image_filename": f"m{k}"}
        write_grace(tmp_path / f"m{k}.grace", sample.graph, annotation=sample.annotation, metadata=metadata)
    return tmp_path


def fit(folder, callback, epochs=5, **options):
    module = small_module()
    data = GraceDataModule(module.features, train_image_dir=str(folder), valid_image_dir=str(folder), **options)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning would have more workers
        trainer = pl.Trainer(
            max_epochs=epochs, accelerator="cpu", callbacks=[callback], enable_model_summary=False, **quiet
        )
        trainer.fit(module, data)
    return module


def frames(path):
    """Colours and milliseconds of each frame."""
    with Image.open(path) as film:
        found = []
        for k in range(film.n_frames):
            film.seek(k)
            found.append((np.asarray(film.convert("RGB")).astype(int), film.info["duration"]))
    return found


def watched(callback):
    """The epochs that frames were drawn of, filled while training."""
    drawn, draw = [], callback._draw

    def note(trainer, module):
        drawn.append(trainer.current_epoch + 1)
        return draw(trainer, module)

    callback._draw = note
    return drawn


class TestAnimation:
    def test_has_a_frame_of_every_epoch_that_shows_its_graph(self, folder):
        path = folder / "run" / "film.gif"
        callback = Animation(str(path), every_n_epochs=1, image=1)
        drawn = watched(callback)
        fit(folder, callback, epochs=3)
        assert drawn == [1, 2, 3]
        first, _, last = film = frames(path)
        assert [duration for _, duration in film] == [200, 200, 2000]
        assert np.abs(first[0] - last[0]).max() > 50  # the title, at least, is another one
        coloured = np.ptp(last[0], axis=2) > 60
        assert coloured[:, :600].sum() == 0  # the micrograph is grey
        assert coloured[:, 600:].sum() > 500  # the colour bar, nodes and edges

    @pytest.mark.parametrize(
        ("every", "most", "epochs", "drawn", "kept"),
        [
            (2, 100, 5, [2, 4, 5], 3),
            (None, 100, 2, [], 0),
            (1, 4, 9, [1, 2, 3, 4, 6, 8, 9], 3),  # 1 to 4, then 2, 4, 6, 8, then 4, 8 and the last
        ],
    )
    def test_frames_are_evenly_apart_and_the_last_is_the_last_epoch(self, every, most, epochs, drawn, kept, folder):
        callback = Animation(str(folder / "film.gif"), every_n_epochs=every, max_frames=most)
        found = watched(callback)
        fit(folder, callback, epochs=epochs)
        assert found == drawn
        assert (len(frames(folder / "film.gif")) if kept else 0) == kept
        assert (folder / "film.gif").exists() == bool(kept)

    def test_drawing_changes_nothing_in_the_training(self, folder):
        plain = fit(folder, pl.Callback(), epochs=2)
        drawn = fit(folder, Animation(str(folder / "film.gif"), every_n_epochs=1), epochs=2)
        other = drawn.state_dict()
        assert all(torch.equal(value, other[key]) for key, value in plain.state_dict().items())

    def test_an_image_that_is_not_there_is_refused_before_training(self, folder):
        with pytest.raises(InputError, match=r"callbacks.animation.image: 2, expected 0 to 1"):
            fit(folder, Animation(str(folder / "film.gif"), every_n_epochs=1, image=2))

    @pytest.mark.parametrize("options", [{"every_n_epochs": 0}, {"max_frames": 1}, {"image": -1}, {"seconds": 0}])
    def test_wrong_values_are_refused(self, options):
        with pytest.raises(InputError, match=r"callbacks.animation"):
            Animation("film.gif", **options)


@pytest.mark.parametrize("network", [GCN, GAT, MPNN])
@pytest.mark.parametrize("hops", ["whole", 1])
def test_node_states_are_what_the_node_head_makes_logits_of(network, hops):
    module = small_module(network)
    data = Batch.from_data_list(
        [prepare(random_sample(k, 12 + 3 * k, k), module.features, num_hops=hops) for k in (0, 1)]
    )
    with torch.no_grad():
        states = module.node_states(data)
        assert states.shape == (27, 6)
        assert torch.allclose(module.network.node_head(states), module(data)["node"], atol=1e-6)
    assert not module.network.node_head._forward_pre_hooks


class TestManifold:
    @pytest.mark.parametrize("method", ["tsne", "pca"])
    @pytest.mark.parametrize("options", [{}, {"num_hops": 1, "batch_size": 2}], ids=str)
    def test_draws_all_nodes_at_the_end(self, method, options, folder, monkeypatch):
        seen = {}
        draw = figures.manifold
        monkeypatch.setattr(figures, "manifold", lambda *a, **k: seen.update(a=a, **k) or draw(*a, **k))
        fit(folder, Manifold(str(folder / "run" / "map.png"), method), epochs=2, **options)
        points, label = seen["a"]
        assert points.shape == (41, 2)
        assert np.isfinite(points).all()
        name = {"tsne": "t-SNE", "pca": "principal components"}[method]
        assert seen["title"] == f"{name} of the states of 41 validation nodes, epoch 1"
        truth = torch.cat([random_sample(f"m{k}", 20 + k, k).graph.node_label for k in (0, 1)])
        assert label.sum() == truth.sum()
        assert (folder / "run" / "map.png").stat().st_size > 5000

    def test_takes_some_of_many_nodes(self, folder, monkeypatch):
        titles = []
        draw = figures.manifold
        monkeypatch.setattr(figures, "manifold", lambda *a, title: titles.append(title) or draw(*a, title=title))
        fit(folder, Manifold(str(folder / "map.png"), "pca", max_nodes=10), epochs=1)
        assert titles == ["principal components of the states of 10 of 41 validation nodes, epoch 0"]

    def test_a_training_that_diverged_has_no_map(self, folder, monkeypatch):
        monkeypatch.setattr(GraceModule, "node_states", lambda self, data: torch.full((data.num_nodes, 3), torch.nan))
        fit(folder, Manifold(str(folder / "map.png"), "tsne"), epochs=1)
        assert not (folder / "map.png").exists()

    def test_is_off_unless_asked_for(self, folder):
        fit(folder, Manifold(str(folder / "map.png")), epochs=1)
        assert not (folder / "map.png").exists()

    def test_says_what_to_install(self, monkeypatch):
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else find(name))
        with pytest.raises(InputError, match=r"needs scikit-learn.*pip install 'grace-lightning\[manifold\]'.*=pca"):
            Manifold("map.png", "tsne")
        Manifold("map.png", "pca")


@pytest.mark.parametrize("reduce", [tsne, principal_components])
def test_two_clouds_stay_apart(reduce):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(60, 5, generator=generator)
    states[30:] += 20
    points = reduce(states)
    between = np.linalg.norm(points[:30].mean(0) - points[30:].mean(0))
    within = max(np.linalg.norm(part - part.mean(0), axis=1).mean() for part in (points[:30], points[30:]))
    assert between > 2 * within
    assert np.array_equal(points, reduce(states))


def test_principal_components_keep_a_plane_as_it_is():
    points = torch.tensor([[3.0, 1.0], [-3.0, 1.0], [3.0, -1.0], [-3.0, -1.0]])
    turned = points @ torch.linalg.qr(torch.randn(5, 5))[0][:2]
    assert np.allclose(np.abs(principal_components(turned)), points.abs().numpy(), atol=1e-5)


@pytest.mark.parametrize("reduce", [tsne, principal_components])
@pytest.mark.parametrize("states", [torch.zeros(4, 3), torch.eye(4)[:, :1], torch.eye(5)], ids=str)
@pytest.mark.filterwarnings("error::grace_lightning.errors.InputWarning")
def test_few_or_equal_states_can_be_drawn(reduce, states, tmp_path):
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        points = reduce(states)
    assert points.shape == (len(states), 2)
    figures.manifold(points, torch.tensor([0, 1, 2, 1, 0])[: len(states)]).savefig(tmp_path / "map.png")


def test_map_names_the_classes_with_their_numbers():
    figure = figures.manifold(np.zeros((4, 2), dtype=np.float32), torch.tensor([0, 1, 1, 2]), title="t")
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts == ["unknown (1)", "negative in truth (1)", "positive in truth (2)"]
