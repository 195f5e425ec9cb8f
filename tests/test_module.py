import math

import pytest
import torch
from helpers import random_sample
from torch_geometric.data import Batch

from grace_lightning.augment import RandomEdgeCrop
from grace_lightning.data import prepare
from grace_lightning.errors import InputError
from grace_lightning.features import Learned, Statistics
from grace_lightning.models import GCN, MPNN
from grace_lightning.module import GraceModule, balanced_weights, class_counts, read_checkpoint, summed_cross_entropy


def test_loss_leaves_the_unknown_out():
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.0], [5.0, -5.0]])
    total, known = summed_cross_entropy(logits, torch.tensor([1, 0, 2]))
    assert total.item() == pytest.approx(math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2)))
    assert known == 2


def test_loss_of_nothing_known_is_zero_with_zero_gradients():
    logits = torch.randn(3, 2, requires_grad=True)
    total, known = summed_cross_entropy(logits, torch.tensor([2, 2, 2]))
    total.backward()
    assert logits.grad.abs().sum() == 0
    assert known == 0
    assert [v.item() for v in summed_cross_entropy(logits[:0], torch.zeros(0, dtype=torch.int64))] == [0, 0]


def test_loss_weighs_the_classes():
    logits = torch.zeros(2, 2)
    logits[1, 0] = 3
    total, known = summed_cross_entropy(logits, torch.tensor([1, 0]), torch.tensor([1.0, 4.0]))
    assert total.item() == pytest.approx(4 * math.log(2) + math.log(1 + math.exp(-3)))
    assert known == 5


def test_balanced_weights_are_inverse_frequencies():
    weights = balanced_weights(class_counts(torch.tensor([0, 0, 1, 2, 0, 2])))
    assert weights.tolist() == pytest.approx([4 / 6, 4 / 2])
    assert balanced_weights(class_counts(torch.tensor([0, 0]))).tolist() == [1, 1]


@pytest.fixture(params=[lambda: Statistics(scale=9, patch=1), lambda: Learned(scale=8, channels=[4], width=8)])
def module(request):
    torch.manual_seed(0)
    features = request.param()
    module = GraceModule(features, GCN(features.node_width, features.edge_width, hidden=[16], dense=[8]))
    return module.eval()


@pytest.mark.parametrize("options", [{}, {"num_hops": 1}], ids=str)
def test_a_batch_of_images_gives_each_images_own_prediction(module, options):
    samples = [random_sample("a", 30, 0), random_sample("b", 1, 1), random_sample("c", 20, 2)]
    graphs = [prepare(s, module.features, **options) for s in samples]
    with torch.no_grad():
        together = module.predict_step(Batch.from_data_list(graphs), 0)
        alone = [module.predict_step(Batch.from_data_list([g]), 0)[0] for g in graphs]
    assert [p.name for p in together] == ["a", "b", "c"]
    for one, other, sample in zip(together, alone, samples, strict=True):
        assert torch.allclose(one.node_probability, other.node_probability, atol=1e-6)
        assert torch.allclose(one.edge_probability, other.edge_probability, atol=1e-6)
        assert torch.equal(one.node_label, sample.graph.node_label)
        assert torch.equal(one.edge_label, sample.graph.edge_label)


def test_scale_of_the_features_is_part_of_the_weights(module):
    module.fit_to([prepare(random_sample(), module.features)])
    state = module.state_dict()
    assert (state["features.edge_scale.deviation"] != 1).any()


class TestReadCheckpoint:
    def test_missing(self, tmp_path):
        with pytest.raises(InputError, match=r"best.ckpt: no such checkpoint"):
            read_checkpoint(tmp_path / "best.ckpt")

    def test_truncated(self, tmp_path):
        path = tmp_path / "best.ckpt"
        torch.save({"state_dict": {"w": torch.zeros(1000)}, "grace_lightning": {}}, path)
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(InputError, match="cannot be read as a checkpoint"):
            read_checkpoint(path)

    def test_of_another_program(self, tmp_path):
        torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
        with pytest.raises(InputError, match="not a checkpoint of grace-train"):
            read_checkpoint(tmp_path / "other.ckpt")

    def test_code_in_a_file_is_not_run(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return (open, (str(tmp_path / "ran"), "w"))

        torch.save({"state_dict": {}, "grace_lightning": Evil()}, tmp_path / "evil.ckpt")
        with pytest.raises(InputError, match="cannot be read as a checkpoint"):
            read_checkpoint(tmp_path / "evil.ckpt")
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("features", [Statistics(scale=9, patch=1), Learned(scale=8, channels=[4], width=8)], ids=repr)
def test_a_training_step_makes_nothing_on_the_cpu(features):
    """On the meta device, tensors have no values: a tensor made on the CPU, or a value asked for, is an error."""
    network = MPNN(features.node_width, features.edge_width, width=8, dense=[8])
    module = GraceModule(features, network, augment=RandomEdgeCrop(0.2)).to("meta")
    batch = Batch.from_data_list([prepare(random_sample(name, seed=k), features) for k, name in enumerate("ab")])
    loss = module.training_step(batch.to("meta"), 0)
    loss.backward()
    assert loss.device.type == "meta"
    assert all(p.grad is not None for p in module.parameters())
