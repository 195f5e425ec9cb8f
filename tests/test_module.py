"""The network in training and prediction."""

import copy
import math

import pytest
import torch
from helpers import random_sample
from pytorch_lightning import Trainer
from torch_geometric.data import Batch

from grace_lightning.augment import RandomEdgeCrop
from grace_lightning.config import build
from grace_lightning.data import graph_data
from grace_lightning.errors import InputError, InputWarning, LossError
from grace_lightning.features import Learned, Statistics
from grace_lightning.graph import HEADS
from grace_lightning.models import GCN, MPNN
from grace_lightning.module import (
    CHECKPOINT_KEY,
    TRAINED,
    GraceModule,
    balanced_weights,
    judged_anew,
    margin,
    summed_cross_entropy,
)


@pytest.mark.parametrize(
    ("labels", "weights", "total", "known"),
    [
        ([1, 0, 2], None, math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2)), 2),  # 2: not known
        ([1, 0, 2], [1.0, 4.0], 4 * math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2)), 5),
        ([2, 2, 2], None, 0, 0),
        ([], None, 0, 0),
    ],
)
def test_loss_weighs_the_classes_and_leaves_the_unknown_out(labels, weights, total, known):
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.0], [5.0, -5.0]], requires_grad=True)
    labels, weights = torch.tensor(labels, dtype=torch.int64), weights and torch.tensor(weights)
    found = summed_cross_entropy(logits[: len(labels)], labels, weights)
    assert [value.item() for value in found] == pytest.approx([total, known])
    found[0].backward()
    assert (logits.grad[: len(labels)][labels == 2] == 0).all()


def test_balanced_weights_are_inverse_frequencies():
    assert balanced_weights(torch.tensor([3, 1])).tolist() == pytest.approx([4 / 6, 4 / 2])
    assert balanced_weights(torch.tensor([2, 0])).tolist() == [1, 1]


def statistics():
    return Statistics(scale=9, patch=1)


def learned():
    return Learned(scale=8, channels=[4], hidden=8)


@pytest.fixture(params=[statistics, learned])
def module(request):
    torch.manual_seed(0)
    features = request.param()
    return GraceModule(features, GCN(features.node_features, features.edge_features, hidden=[16], dense=[8])).eval()


@pytest.mark.parametrize("options", [{}, {"num_hops": 1}], ids=str)
def test_a_batch_gives_the_logits_of_each_of_its_images(module, options):
    samples = [random_sample("a", 30, 0), random_sample("b", 1, 1), random_sample("c", 20, 2)]
    graphs = [graph_data(sample, **options) for sample in samples]
    with torch.no_grad():
        together = module(Batch.from_data_list(graphs))
        alone = [module(graph) for graph in graphs]
    assert set(together) == set(HEADS)
    for head, logits in together.items():
        assert torch.allclose(logits, torch.cat([part[head] for part in alone]), atol=1e-5), head


def test_probabilities_are_calibrated_and_of_learned_heads_only(module):
    data = graph_data(random_sample())
    assert set(module.probabilities(data)) == {"node", "edge"}
    module.learned.fill_(True)
    module.temperature.fill_(2.0)
    found = module.probabilities(data)
    assert set(found) == set(HEADS)
    with torch.no_grad():
        assert torch.allclose(found["end"], torch.sigmoid(margin(module(data)["end"]) / 2))


def test_scale_of_the_features_is_part_of_the_weights(module):
    module.fit_to([graph_data(random_sample())])
    assert (module.state_dict()["features.edge_scale.deviation"] != 1).any()
    assert module.learned.tolist() == [True, True, False, False, False, False]  # a sample without filaments


@pytest.mark.parametrize("make", [statistics, learned])
def test_a_training_step_makes_nothing_on_the_cpu(make):
    """On the meta device, tensors have no values: a tensor made on the CPU, or a value asked for, is an error."""
    features = make()
    network = MPNN(features.node_features, features.edge_features, hidden=8, dense=[8])
    module = GraceModule(features, network, augment=RandomEdgeCrop(0.2)).to("meta")
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    batch = Batch.from_data_list([graph_data(random_sample(name, seed=k)) for k, name in enumerate("ab")])
    loss = module.training_step(batch.to("meta"), 0)
    loss.backward()
    assert loss.device.type == "meta"
    assert all(p.grad is not None for p in module.parameters())


ADAM = {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 0.1, "weight_decay": 0.01}
COSINE = {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "_partial_": True, "T_max": 4}


def trainable(optimizer=ADAM, scheduler=COSINE, **others):
    config = {"optimizer": optimizer, "scheduler": scheduler, "callbacks": {"weight_averaging": None}, "data": {}}
    made = {name: build(config[name], name) for name in ("optimizer", "scheduler")}
    network = torch.nn.ModuleDict({"node": torch.nn.Linear(2, 2)})
    return GraceModule(statistics(), network, config=config | others, **made)


def trained(module, epochs):
    """Return a checkpoint after some epochs of one step each."""
    made = module.configure_optimizers()
    optimizer, schedule = made["optimizer"], made.get("lr_scheduler")
    for _ in range(epochs):
        optimizer.zero_grad()
        module.network["node"](torch.ones(2)).sum().backward()
        optimizer.step()
        schedule.step()
    progress = {"fit_loop": {"epoch_progress": {"current": {"processed": epochs}}}}
    states = {"optimizer_states": [optimizer.state_dict()], "lr_schedulers": [schedule.state_dict()]}
    return {
        CHECKPOINT_KEY: module.config,
        "state_dict": module.state_dict(),
        "loops": progress,
        "callbacks": {},
    } | states


class TestGoingOn:
    def test_settings_that_stay_leave_the_state_as_it_is(self):
        checkpoint = trained(trainable(), 3)
        before = copy.deepcopy({key: checkpoint[key] for key in ("optimizer_states", "lr_schedulers")})
        trainable().on_load_checkpoint(checkpoint)
        assert repr(before) == repr({key: checkpoint[key] for key in before})

    @pytest.mark.parametrize(
        ("optimizer", "scheduler", "rates"),
        [
            ({}, {"T_max": 8}, [0.05 * (1 + math.cos(math.pi * epoch / 8)) for epoch in range(4, 9)]),
            ({"lr": 0.5}, {"T_max": 8}, [0.25 * (1 + math.cos(math.pi * epoch / 8)) for epoch in range(4, 9)]),
            ({"weight_decay": 0.3}, None, [0.1] * 5),
        ],
    )
    def test_settings_that_are_changed_count_as_if_from_the_start(self, optimizer, scheduler, rates):
        checkpoint = trained(trainable(), 4)
        module = trainable(ADAM | optimizer, scheduler and COSINE | scheduler)
        momenta = repr(checkpoint["optimizer_states"][0]["state"])
        module.on_load_checkpoint(checkpoint)
        (saved,) = checkpoint["optimizer_states"]
        assert repr(saved["state"]) == momenta
        made = module.configure_optimizers()
        made = made if isinstance(made, dict) else {"optimizer": made}
        made["optimizer"].load_state_dict(saved)
        for state in checkpoint["lr_schedulers"]:
            made["lr_scheduler"].load_state_dict(state)
        found = []
        for _ in rates:
            found.append(saved["param_groups"][0]["lr"] if not found else made["optimizer"].param_groups[0]["lr"])
            made["optimizer"].step()
            made["lr_scheduler"].step() if scheduler else None
        assert found == pytest.approx(rates)
        assert made["optimizer"].param_groups[0]["weight_decay"] == (ADAM | optimizer)["weight_decay"]

    @pytest.mark.parametrize(
        ("optimizer", "scheduler", "message"),
        [
            ({"_target_": "torch.optim.Adam"}, {}, "torch.optim.Adam cannot go on from the state of torch.optim.AdamW"),
            ({"amsgrad": True}, {}, "optimizer: needs max_exp_avg_sq of all steps before"),
            ({"lr": -1.0}, {}, "optimizer or scheduler: Invalid learning rate"),
        ],
    )
    def test_what_cannot_be_taken_over_is_refused(self, optimizer, scheduler, message):
        with pytest.raises(InputError, match=message):
            trainable(ADAM | optimizer, COSINE | scheduler).on_load_checkpoint(trained(trainable(), 2))

    def test_class_weights_are_those_of_this_run(self):
        module, checkpoint = trainable(), trained(trainable(), 1)
        module.node_class_weight.copy_(torch.tensor([0.5, 3.0]))
        module.on_load_checkpoint(checkpoint)
        assert checkpoint["state_dict"]["node_class_weight"].tolist() == [0.5, 3.0]

    def test_without_averaging_training_goes_on_from_its_own_weights(self):
        checkpoint = trained(trainable(), 1)
        checkpoint[TRAINED] = {**checkpoint["state_dict"], "network.node.bias": torch.tensor([7.0, 7.0])}
        trainable().on_load_checkpoint(checkpoint)
        assert checkpoint["state_dict"]["network.node.bias"].tolist() == [7, 7]
        assert TRAINED not in checkpoint

    def test_the_best_score_by_another_measure_or_of_other_images_is_forgotten(self):
        for others in ({"callbacks": {"checkpoint": {"monitor": "a"}}}, {"data": {"valid_image_dir": "b"}}):
            checkpoint = trained(trainable(), 1)
            checkpoint["callbacks"] = {
                "best": {"best_model_path": "x"},
                "stop": {"wait_count": 3},
                "mean": {"count": 1},
            }
            trainable(**others).on_load_checkpoint(checkpoint)
            assert list(checkpoint["callbacks"]) == ["mean"]


@pytest.mark.parametrize(
    ("label", "found"), [(0, "0 detections are positive, 40 negative and 0"), (2, "0 negative and 40")]
)
def test_labels_of_one_class_are_told(label, found):
    graph = random_sample().graph
    graph = graph.with_labels(node=torch.full((40,), label), edge=graph.label("edge"))
    with pytest.warns(InputWarning, match=f"training images a: .*{found} unknown"):
        trainable().fit_to([graph_data(random_sample().replace(graph=graph))])


def test_a_loss_that_is_not_finite_stops_before_the_step(module):
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    batches = [Batch.from_data_list([graph_data(random_sample(name))]) for name in "ab"]
    assert module.training_step(batches[0], 0).isfinite()
    batches[1].edge_attr.fill_(torch.nan)
    batches[1].pixels.fill_(torch.nan)
    with pytest.raises(LossError, match=r"the training loss is nan in epoch 0 .*, step 1, at b, expected"):
        module.training_step(batches[1], 1)


def test_scores_of_epochs_are_compared_however_their_folder_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before, same, other = ({"data": {"valid_image_dir": str(path)}} for path in ("a", tmp_path / "a", "b"))
    assert judged_anew(before, same) == []
    assert judged_anew(before, other) == ["data.valid_image_dir"]
