"""What TensorBoard is given, read back from its files; the film of a training; and that training does not notice."""

import io
import re
import sys
import warnings
from functools import partial
from unittest.mock import MagicMock, call, create_autospec

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import NAMES
from helpers import random_sample
from PIL import Image, ImageSequence
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from torch_geometric.nn import GATv2Conv

from grace_lightning import dashboards, figures
from grace_lightning.dashboards import Animation, Charts, Figures, Projector, attention
from grace_lightning.data import GraceDataModule, graph_data
from grace_lightning.errors import InputError
from grace_lightning.features import Statistics
from grace_lightning.link import Components
from grace_lightning.models import GAT, GCN, MPNN
from grace_lightning.module import GraceModule

SIZES = {GCN: {"hidden": [8, 6]}, GAT: {"hidden": [8, 6], "heads": 2}, MPNN: {"hidden": 6}}


def small_module(network=GAT):
    torch.manual_seed(0)
    features = Statistics()
    made = network(features.node_features, features.edge_features, dense=[4], **SIZES[network])
    return GraceModule(features, made, partial(torch.optim.AdamW, lr=0.03))


def fit(folder, callbacks, logger=False, epochs=1):
    module = small_module()
    data = GraceDataModule(module.features.sigma, train_image_dir=str(folder), valid_image_dir=str(folder))
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", callbacks=callbacks, logger=logger, **quiet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning would have more workers
        torch.manual_seed(1)
        trainer.fit(module, data)
    return module


def all_of(path):
    film = Animation(str(path / "film.gif"), every_n_epochs=1, image=1)
    return [Charts(), Figures(Components(), every_n_epochs=3, max_images=1), Projector(10.0, max_nodes=50), film]


@pytest.fixture(scope="module")
def run(simulated, tmp_path_factory):
    """A training of two epochs with all dashboards: its folder, its events, and its network."""
    path = tmp_path_factory.mktemp("run")
    module = fit(simulated, all_of(path), TensorBoardLogger(path, name="", version=""), epochs=2)
    return path, EventAccumulator(str(path), size_guidance={IMAGES: 0}).Reload(), module.eval()


def test_training_does_not_notice(run, simulated):
    """The same weights to the last bit: neither random numbers nor modes are touched."""
    plain, watched = fit(simulated, [], epochs=2).state_dict(), run[2].state_dict()
    assert all(torch.equal(plain[name], watched[name]) for name in plain)


def test_charts_show_all_curves_and_nothing_else(run):
    read = run[1]
    tags = read.Tags()["scalars"]
    assert {tag: [event.step for event in read.Scalars(tag)] for tag in tags} == {tag: [0, 1] for tag in tags}
    stored = read.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    shown = {
        (group.title, chart.title): {tag for tag in tags if any(re.match(one, tag) for one in chart.multiline.tag)}
        for group in Layout.FromString(stored).category
        for chart in group.chart
    }
    assert all(shown.values())
    assert set.union(*shown.values()) == set(tags)
    curves = {f"{stage}/two_filaments_average_precision" for stage in ("train", "valid")}
    assert shown["nodes of two filaments", "average precision"] == curves


class TestFigures:
    def test_drawn_after_the_last_epoch(self, run):
        tags = {f"valid_{kind}/{head}" for kind in ("confusion", "reliability") for head in ("nodes", "edges")}
        tags |= {f"valid_{kind}/{NAMES[0]}" for kind in ("graphs", "filaments", "attention")}
        images = {tag: run[1].Images(tag) for tag in run[1].Tags()["images"]}
        assert set(images) == tags | {"valid_precision_recall/both"}
        for (image,) in images.values():
            picture = Image.open(io.BytesIO(image.encoded_image_string))
            assert (image.step, picture.format, picture.size) == (1, "JPEG", (image.width, image.height))

    def test_show_what_the_module_predicts_for_all_images(self, run, monkeypatch):
        module, seen = run[2], {}
        for name in ("confusion_matrices", "reliability_diagram", "precision_recall_curves"):
            monkeypatch.setattr(figures, name, seen.update)
        monkeypatch.setattr(figures, "jpeg", lambda figure, width: b"")
        assert len([*Figures(Components(), max_images=0)._pictures(module.trainer, module)]) == 5  # and no micrograph
        graphs = [module.trainer.datamodule.dataset("valid").graph(k) for k in range(3)]
        for head in ("node", "edge"):
            probability, label = seen[f"{head}s"]
            expected = torch.cat([module.probabilities(graph)[head] for graph in graphs])
            assert torch.allclose(probability, expected, atol=1e-6)
            assert torch.equal(label, torch.cat([graph.label(head) for graph in graphs]))

    @pytest.mark.parametrize(("epochs", "steps"), [(1, [0]), (3, [1, 2]), (4, [1, 3])])
    def test_the_last_epoch_is_drawn_once(self, epochs, steps, monkeypatch):
        seen, drawing = [], Figures(Components(), every_n_epochs=2)
        monkeypatch.setattr(drawing, "_pictures", lambda *_: [("tag", b"")])
        monkeypatch.setattr(dashboards, "show", lambda logger, tag, picture, epoch: seen.append(epoch))
        trainer = MagicMock(sanity_checking=False, loggers=[create_autospec(TensorBoardLogger, instance=True)])
        for trainer.current_epoch in range(epochs):
            drawing.on_validation_end(trainer, None)
        trainer.current_epoch = epochs
        drawing.on_train_end(trainer, None)
        assert seen == steps


class TestAttention:
    @pytest.mark.parametrize("hops", ["whole", 1])
    @torch.no_grad()
    def test_is_a_share(self, hops):
        module, data = small_module().eval(), graph_data(random_sample(), hops)
        weights = attention(module, data)
        assert weights.shape == (data.edge_index.shape[1], 2)
        assert ((weights > 0) & (weights <= 1)).all()
        assert attention(small_module(GCN).eval(), data) is None

    @torch.no_grad()
    def test_adds_up_at_a_node_of_one_edge(self):
        module, sample = small_module().eval(), random_sample()
        keep = sample.graph.edges.eq(0).any(dim=0).nonzero()[0]  # one edge of node 0; all other nodes have none
        kept = type(sample.graph)(sample.graph.pos, sample.graph.edges[:, keep])
        # With equal scores, a node of one edge listens to itself and to its neighbour alike.
        [*(part for part in module.modules() if isinstance(part, GATv2Conv))][-1].att.zero_()
        weights = attention(module, graph_data(sample.replace(graph=kept)))
        assert torch.allclose(weights, torch.full((1, 2), 0.5))


class TestProjector:
    def test_has_states_labels_and_patches_of_some_nodes(self, run):
        folder = run[0] / "00001" / "nodes"
        assert np.loadtxt(folder / "tensors.tsv").shape == (50, 6)
        table = pd.read_csv(folder / "metadata.tsv", sep="\t")
        assert (len(table), list(table)) == (50, ["label", "probability", "image", "node"])
        assert table["probability"].between(0, 1).all()
        samples = {sample.name: sample for sample in map(run[2].trainer.datamodule.dataset("valid").sample, range(3))}
        labels = [int(samples[row.image].graph.label("node")[row.node]) for row in table.itertuples()]
        assert list(table["label"]) == [("negative", "positive")[label] for label in labels]
        assert Image.open(folder / "sprite.png").size == (8 * 32, 8 * 32)
        text = (run[0] / "projector_config.pbtxt").read_text()
        assert all(f'"00001/nodes/{name}"' in text for name in ("tensors.tsv", "metadata.tsv", "sprite.png"))

    @pytest.mark.parametrize("network", SIZES)
    @pytest.mark.parametrize("hops", ["whole", 1])
    @torch.no_grad()
    def test_states_are_what_the_node_head_makes_logits_of(self, network, hops):
        module, data = small_module(network).eval(), graph_data(random_sample(), hops)
        states, head = module.node_states(data), module.network.heads["node"]
        assert states.shape == (40, 6)
        assert torch.allclose(head(states), module(data)["node"], atol=1e-6)

    def test_a_network_without_a_node_head_has_none(self, tmp_path):
        logger = TensorBoardLogger(tmp_path)
        trainer = MagicMock(is_global_zero=True, current_epoch=1, loggers=[logger])
        Projector(10.0).on_train_end(trainer, MagicMock(network=torch.nn.Module()))
        assert not list(tmp_path.rglob("projector_config.pbtxt"))


class TestAnimation:
    def test_shows_a_graph_over_the_epochs(self, run):
        with Image.open(run[0] / "film.gif") as film:
            frames = [(np.array(f.convert("RGB"), int), f.info["duration"]) for f in ImageSequence.Iterator(film)]
        (first, short), (last, long) = frames  # of both epochs
        assert (short, long) == (200, 2000)
        assert np.abs(first - last).max() > 50  # the title, at least, is another one
        coloured = np.ptp(last, axis=2) > 60
        assert coloured[:, :600].sum() == 0 < 500 < coloured[:, 600:].sum()  # a grey micrograph, a coloured graph

    @pytest.mark.parametrize(
        ("every", "most", "epochs", "drawn", "kept"),
        [
            (2, 100, 5, [2, 4, 5], [2, 4, 5]),
            (None, 100, 2, [], []),
            (1, 4, 9, [1, 2, 3, 4, 6, 8, 9], [4, 8, 9]),  # 1 to 4, then 2, 4, 6, 8, then 4, 8 and the last
        ],
    )
    def test_frames_are_evenly_apart_and_the_last_is_the_last_epoch(self, every, most, epochs, drawn, kept, tmp_path):
        film, seen, png = Animation(str(tmp_path / "film.gif"), every, max_frames=most), [], io.BytesIO()
        Image.new("P", (8, 8)).save(png, "PNG")
        film._frame = lambda trainer, _: seen.append(trainer.current_epoch + 1) or png.getvalue()
        for epoch in range(epochs):
            film.on_validation_end(MagicMock(current_epoch=epoch, max_epochs=epochs, sanity_checking=False), None)
        assert (seen, list(film._frames)) == (drawn, kept)
        film.on_fit_end(None, None)
        assert (tmp_path / "film.gif").exists() == bool(kept)

    def test_an_image_that_is_not_there_is_refused_before_training(self, simulated):
        with pytest.raises(InputError, match=r"callbacks.animation.image: 3, expected 0 to 2"):
            fit(simulated, [Animation("film.gif", every_n_epochs=1, image=3)])


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (partial(Figures, Components()), {"every_n_epochs": 0, "max_images": -1}),
        (partial(Projector, 10.0), {"max_nodes": 0}),
        (partial(Animation, "film.gif"), {"every_n_epochs": 0, "image": -1, "max_frames": 1, "seconds": 0}),
    ],
)
def test_wrong_values_are_named(kind, wrong):
    for key, value in wrong.items():
        with pytest.raises(InputError, match=f"callbacks.{kind.func.__name__.lower()}.*{key}:? {value}.*expected"):
            kind(**{key: value})


class TestOtherLoggers:
    def test_nothing_is_drawn_for_csv(self, simulated, tmp_path, monkeypatch):
        monkeypatch.setattr(Figures, "_pictures", lambda *_: pytest.fail("drawn for nobody"))
        fit(simulated, all_of(tmp_path), CSVLogger(tmp_path, name="", version=""))

    @pytest.mark.parametrize("first", [True, False])
    def test_wandb_and_mlflow_take_pictures_of_the_first_process(self, first, monkeypatch):
        wandb, mlflow = loggers = [create_autospec(kind, instance=True) for kind in (WandbLogger, MLFlowLogger)]
        mlflow.experiment, mlflow.run_id = MagicMock(), "run 1"
        monkeypatch.setattr(Figures, "_pictures", lambda *_: [("valid_confusion/nodes", b"...")])
        monkeypatch.setattr(dashboards.Image, "open", lambda file: file.read())
        trainer = MagicMock(is_global_zero=first, current_epoch=7, sanity_checking=False, loggers=loggers)
        Figures(Components(), every_n_epochs=4).on_validation_end(trainer, None)
        told = call("valid_confusion/nodes", [b"..."], step=7, file_type=["jpg"])
        assert wandb.log_image.call_args_list == [told] * first
        told = call("run 1", b"...", key="valid_confusion/nodes", step=7)
        assert mlflow.experiment.log_image.call_args_list == [told] * first

    def test_a_run_of_wandb_ends_with_ours(self, monkeypatch):
        from grace_lightning.tasks.train import _own_wandb_run

        wandb = MagicMock()
        monkeypatch.setitem(sys.modules, "wandb", wandb)
        with _own_wandb_run():
            wandb.finish.assert_not_called()
        with pytest.raises(InputError), _own_wandb_run():
            raise InputError
        wandb.run = None
        with _own_wandb_run():
            pass
        assert wandb.finish.call_args_list == [call(exit_code=0), call(exit_code=1)]
