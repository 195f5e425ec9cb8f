import pytest
import torch
from helpers import random_sample

from grace_lightning.data import prepare
from grace_lightning.errors import InputError
from grace_lightning.features import Learned, Statistics
from grace_lightning.models import GAT, GCN, MPNN, around_nodes
from grace_lightning.module import GraceModule

NETWORKS = [GCN, GAT, MPNN]
FEATURES = {
    "statistics": lambda: Statistics(scale=9, patch=1),
    "learned": lambda: Learned(scale=8, patch_samples=7, strip_samples=[8, 5], channels=[4, 8], width=8),
}


def network(kind, features="statistics", **options):
    torch.manual_seed(0)
    features = FEATURES[features]()
    sizes = {"width": 16} if kind is MPNN else {"hidden": [16, 24]}
    module = GraceModule(features, kind(features.node_width, features.edge_width, **sizes, dense=[8], **options))
    module.fit_to([prepare(random_sample(), features)])
    return module.eval()


def logits(module, sample, **options):
    with torch.no_grad():
        return module(prepare(sample, module.features, **options))


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("options", [{}, {"num_hops": 1}, {"num_hops": 2, "connection": "fireworks"}], ids=str)
@pytest.mark.parametrize("features", FEATURES)
def test_renumbering_the_detections_renumbers_the_logits(kind, options, features):
    module, sample = network(kind, features), random_sample()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(5))
    other = sample.replace(graph=sample.graph.renumber(order))
    first, second = logits(module, sample, **options), logits(module, other, **options)
    assert torch.allclose(second["node"], first["node"][order], atol=1e-5)
    assert torch.allclose(second["end"], first["end"][order], atol=1e-5)
    row = {tuple(e): k for k, e in enumerate(sample.graph.edges.T.tolist())}
    rows = [row[tuple(sorted((int(order[a]), int(order[b]))))] for a, b in other.graph.edges.T.tolist()]
    assert torch.allclose(second["edge"], first["edge"][rows], atol=1e-5)
    assert first["edge"].std() > 1e-3  # not constant


@pytest.mark.parametrize("kind", NETWORKS)
def test_swapping_the_ends_of_edges_changes_nothing(kind):
    module, data = network(kind), prepare(random_sample(), Statistics(scale=9, patch=1))
    with torch.no_grad():
        x, edge_x = module.features(data)
        node, edge, end = module.network(x, data.edge_index, edge_x)
        swap = torch.arange(data.edge_index.shape[1]) % 2 == 0
        swapped = torch.where(swap, data.edge_index.flip(0), data.edge_index)
        other_node, other_edge, other_end = module.network(x, swapped, edge_x)
    assert torch.allclose(node, other_node, atol=1e-5)
    assert torch.allclose(edge, other_edge, atol=1e-5)
    assert torch.allclose(end, other_end, atol=1e-5)


@pytest.mark.parametrize("kind", NETWORKS)
def test_messages_pass_both_ways(kind):
    # a path 0 - 1 - 2: what node 0 carries reaches node 2, and the other way round
    module = network(kind)
    edges, edge_x = torch.tensor([[0, 1], [1, 2]]), torch.zeros(2, module.features.edge_width)
    base = torch.zeros(3, module.features.node_width)
    with torch.no_grad():
        plain = module.network(base, edges, edge_x)[0]
        for here, there in ((0, 2), (2, 0)):
            changed = base.clone()
            changed[here] = 3
            assert not torch.allclose(module.network(changed, edges, edge_x)[0][there], plain[there], atol=1e-6)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("features", FEATURES)
def test_evaluation_is_deterministic_at_high_dropout_and_training_is_not(kind, features):
    module, sample = network(kind, features, dropout=0.9), random_sample()
    first, second = logits(module, sample), logits(module, sample)
    assert torch.equal(first["node"], second["node"])
    assert torch.equal(first["edge"], second["edge"])
    module.train()
    assert not torch.equal(logits(module, sample)["node"], logits(module, sample)["node"])


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("nodes", [0, 1, 2])
@pytest.mark.parametrize("features", FEATURES)
def test_tiny_graphs(kind, nodes, features):
    out = logits(network(kind, features), random_sample(nodes=nodes))
    assert out["node"].shape == (nodes, 2)
    assert out["edge"].shape == (max(0, nodes - 1), 2)
    assert out["node"].isfinite().all()


@pytest.mark.parametrize("kind", NETWORKS)
def test_whole_graph_equals_neighbourhoods_that_reach_beyond_the_network(kind):
    # two convolutions, and edges that see their ends' edges: three hops hold all that a node depends on
    module, sample = network(kind), random_sample()
    whole, parts = logits(module, sample), logits(module, sample, num_hops=3)
    assert torch.allclose(whole["node"], parts["node"], atol=1e-5)
    nearer = logits(module, sample, num_hops=1)
    assert not torch.allclose(whole["node"], nearer["node"], atol=1e-3)


def test_what_arrives_at_a_node():
    values = torch.tensor([[1.0], [3.0], [-5.0]])
    out = around_nodes(torch.tensor([0, 0, 2]), values, 3)
    assert out.tolist() == [[2, 3], [0, 0], [-5, -5]]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (GAT, {"hidden": [30], "heads": 4}, "model.heads: 4, expected a divisor"),
        (GCN, {"hidden": []}, "model.hidden"),
        (GCN, {"dropout": 1.0}, "model.dropout: 1.0"),
    ],
)
def test_impossible_sizes_are_refused(kind, options, message):
    with pytest.raises(InputError, match=message):
        kind(4, 4, **options)
