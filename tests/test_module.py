"""The network in training and prediction."""

import math

import pytest
import torch
from helpers import random_sample
from pytorch_lightning import Trainer
from torch_geometric.data import Batch

from grace_lightning.augment import RandomEdgeCrop
from grace_lightning.data import graph_data
from grace_lightning.features import Learned, Statistics
from grace_lightning.graph import HEADS
from grace_lightning.models import GCN, MPNN
from grace_lightning.module import GraceModule, balanced_weights, margin, summed_cross_entropy


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
