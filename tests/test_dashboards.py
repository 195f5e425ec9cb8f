"""What TensorBoard is given, read back from its files; and that training does not notice."""

import io
import sys
import warnings
from functools import partial
from unittest.mock import MagicMock, create_autospec

import imagecodecs
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from helpers import random_sample
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from torch_geometric.data import Batch

from grace_lightning import figures
from grace_lightning.callbacks import Charts, Figures, GradientNorm, LearningRate, Projector, Speed
from grace_lightning.callbacks.attention import attention
from grace_lightning.callbacks.board import evaluating, galleries
from grace_lightning.callbacks.charts import layout
from grace_lightning.data import GraceDataModule, prepare
from grace_lightning.errors import InputError, LossError
from grace_lightning.features import Statistics
from grace_lightning.io import write_grace
from grace_lightning.link import Components
from grace_lightning.models import GAT, GCN, MPNN
from grace_lightning.module import GraceModule

NETWORKS = {GCN: {"hidden": [8, 6]}, GAT: {"hidden": [8, 6], "heads": 2}, MPNN: {"width": 6}}


def small_module(network=GCN):
    torch.manual_seed(0)
    features = Statistics()
    made = network(features.node_width, features.edge_width, dense=[4], **NETWORKS[network])
    return GraceModule(features, made, partial(torch.optim.AdamW, lr=0.03))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three annotated images of 96 x 128 pixels, with 20, 21 and 22 detections."""
    folder = tmp_path_factory.mktemp("images")
    for k in range(3):
        sample = random_sample(f"m{k}", nodes=20 + k, seed=k)
        pixels = ((sample.image[0] + 5) * 25).clamp(0, 255).to(torch.uint8).numpy()
        (folder / f"m{k}.png").write_bytes(imagecodecs.png_encode(pixels))
        metadata = {"image_filename": f"m{k}"}
        write_grace(folder / f"m{k}.grace", sample.graph, annotation=sample.annotation, metadata=metadata)
    return folder


def dashboards(**options):
    pictures = Figures(Components(), **{"every_n_epochs": 2, "max_images": 2} | options)
    return [LearningRate(), GradientNorm(), Speed(), Charts(), pictures, Projector(10.0, max_nodes=50)]


def fit(folder, callbacks, logger=False, network=GCN, epochs=5, trainer_options=None, **options):
    module = small_module(network)
    data = GraceDataModule(module.features, train_image_dir=str(folder), valid_image_dir=str(folder), **options)
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"num_sanity_val_steps": 0, "log_every_n_steps": 1, **(trainer_options or {})}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning would have more workers
        trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=callbacks, logger=logger, **quiet)
        torch.manual_seed(1)
        trainer.fit(module, data)
    return module


def board(path):
    return TensorBoardLogger(path, name="", version="")


def events(path):
    accumulator = EventAccumulator(str(path), size_guidance={IMAGES: 0})
    accumulator.Reload()
    return accumulator


@pytest.fixture(scope="module", params=[GCN, GAT])
def run(request, folder, tmp_path_factory):
    """A training of five epochs with all dashboards: its folder, and what TensorBoard reads there."""
    path = tmp_path_factory.mktemp("run")
    fit(folder, dashboards(), board(path), request.param)
    return request.param, path, events(path)


class TestScalars:
    def test_all_count_epochs(self, run):
        _, _, read = run
        tags = read.Tags()["scalars"]
        assert "epoch" not in tags
        assert {tag: [event.step for event in read.Scalars(tag)] for tag in tags} == {tag: [*range(5)] for tag in tags}

    def test_charts_show_all_curves_and_nothing_else(self, run):
        _, _, read = run
        stored = read.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
        shown = {tag for c in Layout.FromString(stored).category for chart in c.chart for tag in chart.multiline.tag}
        assert shown == {f"^{tag}$" for tag in read.Tags()["scalars"]}

    def test_training_and_validation_share_a_chart(self):
        assert layout()["nodes"]["average precision"][1] == [
            "^train/node_average_precision$",
            "^valid/node_average_precision$",
        ]

    def test_learning_rate_and_speed_are_what_they_say(self, run):
        _, _, read = run
        assert [event.value for event in read.Scalars("optimizer/learning_rate")] == pytest.approx([0.03] * 5)
        seconds = np.array([event.value for event in read.Scalars("time/epoch_seconds")])
        rate = np.array([event.value for event in read.Scalars("time/images_per_second")])
        assert (seconds > 0).all()
        assert (rate > 3 / seconds).all()  # three images, of which the epoch also validates

    def test_gradient_norm_is_the_mean_over_the_steps(self, folder, tmp_path):
        norms = []

        class Watch(pl.Callback):
            def on_before_optimizer_step(self, trainer, pl_module, optimizer):
                gradients = [p.grad.flatten() for p in pl_module.parameters() if p.grad is not None]
                norms.append(float(torch.cat(gradients).norm()))

        fit(folder, [GradientNorm(), Watch()], board(tmp_path), epochs=2, trainer_options={"gradient_clip_val": 0.01})
        logged = [event.value for event in events(tmp_path).Scalars("optimizer/gradient_norm")]
        assert logged == pytest.approx(np.reshape(norms, (2, 3)).mean(axis=1), rel=1e-5)
        assert max(logged) > 0.01


class TestFigures:
    def test_drawn_every_few_epochs_and_after_the_last(self, run):
        network, _, read = run
        tags = {f"valid_{kind}/{head}" for kind in ("confusion", "reliability") for head in ("nodes", "edges")}
        tags |= {"valid_precision_recall/both"}
        kinds = ["graphs", "filaments", *(["attention"] if network is GAT else [])]
        tags |= {f"valid_{kind}/m{k}" for kind in kinds for k in range(2)}
        steps = {tag: [event.step for event in read.Images(tag)] for tag in read.Tags()["images"]}
        assert steps == {tag: [1, 3, 4] for tag in tags}

    def test_pictures_are_of_the_size_they_claim_and_small(self, run):
        _, _, read = run
        for tag in read.Tags()["images"]:
            event = read.Images(tag)[0]
            with Image.open(io.BytesIO(event.encoded_image_string)) as picture:
                assert picture.size == (event.width, event.height)
                assert picture.width <= 1000
            assert len(event.encoded_image_string) < 300_000

    def test_the_last_picture_is_drawn_once(self, folder, tmp_path):
        fit(folder, [Figures(Components(), every_n_epochs=2)], board(tmp_path), epochs=4)
        assert [event.step for event in events(tmp_path).Images("valid_confusion/nodes")] == [1, 3]

    def test_a_run_shorter_than_the_interval_is_drawn(self, folder, tmp_path):
        fit(folder, [Figures(Components())], board(tmp_path), epochs=1)
        assert [event.step for event in events(tmp_path).Images("valid_confusion/nodes")] == [0]

    def test_without_images_the_curves_are_drawn(self, folder, tmp_path):
        fit(folder, [Figures(Components(), max_images=0)], board(tmp_path), epochs=1)
        assert len(events(tmp_path).Tags()["images"]) == 5

    def test_neighbourhoods_have_attention_and_states_too(self, folder, tmp_path):
        fit(folder, dashboards(), board(tmp_path), GAT, epochs=1, num_hops=1)
        assert "valid_attention/m0" in events(tmp_path).Tags()["images"]
        assert len((tmp_path / "00000" / "nodes" / "tensors.tsv").read_text().splitlines()) == 50

    def test_confusion_counts_what_the_module_predicts(self, folder, tmp_path, monkeypatch):
        seen, draw = [], figures.confusion_matrices
        monkeypatch.setattr(figures, "confusion_matrices", lambda outcomes: seen.append(outcomes) or draw(outcomes))
        module = fit(folder, [Figures(Components())], board(tmp_path), epochs=1).eval()
        samples = [random_sample(f"m{k}", nodes=20 + k, seed=k) for k in range(3)]
        assert len(seen[0]["nodes"][0]) == sum(sample.graph.num_nodes for sample in samples)
        data = GraceDataModule(module.features, train_image_dir=str(folder), valid_image_dir=str(folder))
        data.setup("fit")
        with torch.no_grad():
            batch = Batch.from_data_list([data.dataset("valid").prepared(k) for k in range(3)])
            predictions = module.predict_step(batch, 0)
        expected = torch.cat([p.node_probability for p in predictions])
        assert torch.allclose(seen[0]["nodes"][0], expected, atol=1e-6)

    @pytest.mark.parametrize("options", [{"every_n_epochs": 0}, {"max_images": -1}])
    def test_wrong_numbers_are_named(self, options):
        with pytest.raises(
            InputError, match=f"callbacks.figures.{next(iter(options))}: {next(iter(options.values()))}"
        ):
            Figures(Components(), **options)


class TestAttention:
    def data(self, module, **options):
        return Batch.from_data_list([prepare(random_sample(), module.features, **options)])

    @pytest.mark.parametrize("options", [{}, {"num_hops": 1}])
    def test_is_what_the_last_layer_weighs(self, options):
        module = small_module(GAT).eval()
        data = self.data(module, **options)
        with torch.no_grad():
            weights = attention(module, data)
        assert weights.shape == (data.edge_index.shape[1], 2)
        assert (weights > 0).all()
        assert (weights <= 1).all()

    def test_adds_up_at_a_node_of_one_edge(self):
        module = small_module(GAT).eval()
        sample = random_sample()
        keep = sample.graph.edges.eq(0).any(dim=0).nonzero()[0]  # one edge of node 0; all others alone
        kept = {name: getattr(sample.graph, name)[..., keep] for name in ("edges", "edge_label")}
        graph = type(sample.graph)(sample.graph.pos, node_label=sample.graph.node_label, **kept)
        data = Batch.from_data_list([prepare(sample.replace(graph=graph), module.features)])
        # of two nodes and one edge, a node's own state has the rest: with equal scores, one half
        with torch.no_grad():
            module.network.blocks[-1].conv.conv.att.zero_()
            assert torch.allclose(attention(module, data), torch.full((1, 2), 0.5))

    def test_does_not_change_what_the_network_says(self):
        module = small_module(GAT).eval()
        data = self.data(module)
        with torch.no_grad():
            before = module(data)["node"]
            attention(module, data)
            assert torch.equal(module(data)["node"], before)

    def test_networks_without_it_have_none(self):
        module = small_module(MPNN).eval()
        assert attention(module, self.data(module)) is None


class TestProjector:
    def test_has_states_labels_and_patches_of_some_nodes(self, run):
        _, path, _ = run
        folder = path / "00004" / "nodes"
        states = np.loadtxt(folder / "tensors.tsv")
        assert states.shape == (50, 6)
        header, *rows = [line.split("\t") for line in (folder / "metadata.tsv").read_text().splitlines()]
        assert header == ["label", "probability", "image", "node"]
        assert len(rows) == 50
        assert {row[0] for row in rows} == {"negative", "positive"}
        assert {row[2] for row in rows} == {"m0", "m1", "m2"}
        for word, probability, name, node in rows:
            k = int(name[1:])
            label = random_sample(name, nodes=20 + k, seed=k).graph.node_label[int(node)]
            assert word == ("negative", "positive")[int(label)]
            assert 0 <= float(probability) <= 1
        with Image.open(folder / "sprite.png") as sprite:
            assert sprite.size == (8 * 32, 8 * 32)

    def test_configuration_names_the_files(self, run):
        _, path, _ = run
        text = (path / "projector_config.pbtxt").read_text()
        for name in ("tensors.tsv", "metadata.tsv", "sprite.png"):
            assert f'"00004/nodes/{name}"' in text

    def test_wrong_number_is_named(self):
        with pytest.raises(InputError, match=r"callbacks.projector.max_nodes: 0, expected 1 or more"):
            Projector(10.0, max_nodes=0)


@pytest.mark.parametrize("network", NETWORKS)
def test_training_does_not_notice(network, folder, tmp_path):
    """The same weights to the last bit: neither random numbers nor modes are touched."""
    plain = fit(folder, [], network=network, epochs=4).state_dict()
    watched = fit(folder, dashboards(), board(tmp_path), network, epochs=4).state_dict()
    assert all(torch.equal(plain[name], watched[name]) for name in plain)


def test_modes_come_back_as_they_were():
    class Frozen(torch.nn.Module):
        training = False

    module = small_module().train()
    module.frozen = Frozen().eval()
    with evaluating(pl.Trainer(logger=False, accelerator="cpu", barebones=True), module):
        assert not any(part.training for part in module.modules())
    assert [part for part in module.modules() if not part.training] == [module.frozen]


class TestOtherLoggers:
    def test_none(self, folder, monkeypatch):
        monkeypatch.setattr(Figures, "_pictures", lambda *a: pytest.fail("drawn for nobody"))
        fit(folder, dashboards())

    def test_csv_takes_the_numbers(self, folder, tmp_path):
        fit(folder, dashboards(), CSVLogger(tmp_path, name="", version=""), epochs=2)
        import pandas as pd

        table = pd.read_csv(tmp_path / "metrics.csv").groupby("step").first()
        assert list(table.index) == [0, 1]
        wanted = {"optimizer/learning_rate", "optimizer/gradient_norm", "time/epoch_seconds", "valid/node_f1"}
        assert wanted <= set(table.columns)
        assert table["train/edge_average_precision"].notna().all()

    def test_two_at_once(self, folder, tmp_path):
        fit(folder, dashboards(), [CSVLogger(tmp_path, name="", version="csv"), board(tmp_path / "board")], epochs=1)
        assert "valid_confusion/nodes" in events(tmp_path / "board").Tags()["images"]

    def test_wandb_and_mlflow_take_pictures(self):
        loggers = [create_autospec(kind, instance=True) for kind in (WandbLogger, MLFlowLogger)]
        wandb, mlflow = loggers
        mlflow.experiment, mlflow.run_id = MagicMock(), "run 1"
        trainer = MagicMock(is_global_zero=True, loggers=[*loggers, create_autospec(CSVLogger, instance=True)])
        picture = figures.jpeg(figures.confusion_matrices({"nodes": (torch.rand(9), torch.ones(9).long())}), 450)
        for take in galleries(trainer):
            take("valid_confusion/nodes", picture, 7)
        (tag, (shown,)), named = wandb.log_image.call_args
        assert (tag, shown.size, named["step"]) == ("valid_confusion/nodes", (450, picture.height), 7)
        (run, shown), named = mlflow.experiment.log_image.call_args
        assert (run, shown.size, named) == ("run 1", (450, picture.height), {"key": tag, "step": 7})
        trainer.is_global_zero = False
        assert galleries(trainer) == []

    def test_a_run_of_wandb_ends_with_ours(self, monkeypatch):
        from grace_lightning.tasks.train import _own_wandb_run

        wandb = MagicMock()
        monkeypatch.setitem(sys.modules, "wandb", wandb)
        with _own_wandb_run():
            wandb.finish.assert_not_called()
        wandb.finish.assert_called_once_with(exit_code=0)
        with pytest.raises(InputError), _own_wandb_run():
            raise InputError
        wandb.finish.assert_called_with(exit_code=1)
        wandb.run = None
        with _own_wandb_run():
            pass
        assert wandb.finish.call_count == 2


def test_a_training_that_diverged_is_not_drawn(folder, tmp_path):
    class Spoil(pl.Callback):
        def on_validation_start(self, trainer, pl_module):
            next(pl_module.network.parameters()).data.fill_(torch.nan)

    with pytest.raises(LossError, match="the validation loss is nan"):
        fit(folder, [Spoil(), *dashboards()], board(tmp_path), epochs=1)
    assert not events(tmp_path).Tags()["images"]
    assert not (tmp_path / "projector_config.pbtxt").exists()
