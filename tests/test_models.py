import pytest
import torch

from grace_lightning.errors import InputError
from grace_lightning.graph import EDGE_HEADS, HEADS, delaunay, subgraphs
from grace_lightning.models import GAT, GCN, MPNN, around_nodes

NETWORKS = [GCN, GAT, MPNN]


def network(kind, **options):
    torch.manual_seed(0)
    return kind(5, 3, hidden=16 if kind is MPNN else [16, 24], dense=[8], **options).eval()


def inputs(nodes=40):
    generator = torch.Generator().manual_seed(1)
    edges = delaunay(100 * torch.rand(nodes, 2, generator=generator))
    x, edge_x = (torch.randn(rows, columns, generator=generator) for rows, columns in ((nodes, 5), (edges.shape[1], 3)))
    return x, edges, edge_x


@torch.no_grad()
def node_logits(network, x, edges, edge_x, **neighbourhood):
    """What a network says of nodes if it sees nothing but the neighbourhood of each."""
    parts = subgraphs(edges, len(x), **neighbourhood)
    return network(x[parts.node], parts.edges, edge_x[parts.edge])["node"][parts.node == parts.centre]


@pytest.mark.parametrize("kind", NETWORKS)
class TestAllNetworks:
    @torch.no_grad()
    def test_renumbering_the_detections_renumbers_the_logits(self, kind):
        ask, (x, edges, edge_x) = network(kind), inputs()
        generator = torch.Generator().manual_seed(5)
        order, rows = (torch.randperm(count, generator=generator) for count in (len(x), len(edge_x)))
        renumbered = x[order], order.argsort()[edges[:, rows]].sort(dim=0).values, edge_x[rows]
        first, second = ask(x, edges, edge_x), ask(*renumbered)
        for head in HEADS:
            expected = first[head][rows if head in EDGE_HEADS else order]
            assert torch.allclose(second[head], expected, atol=1e-5), head
            assert expected.std() > 1e-3  # not constant
        for options in ({"num_hops": 1}, {"num_hops": 2, "connection": "fireworks"}):
            before, after = node_logits(ask, x, edges, edge_x, **options), node_logits(ask, *renumbered, **options)
            assert torch.allclose(after, before[order], atol=1e-5)

    @torch.no_grad()
    def test_swapping_the_ends_of_edges_changes_nothing(self, kind):
        ask, (x, edges, edge_x) = network(kind), inputs()
        swapped = torch.where(torch.arange(edges.shape[1]) % 2 == 0, edges.flip(0), edges)
        first, second = ask(x, edges, edge_x), ask(x, swapped, edge_x)
        for head in HEADS:
            assert torch.allclose(first[head], second[head], atol=1e-5), head

    @torch.no_grad()
    def test_messages_pass_both_ways_along_a_path(self, kind):
        ask, edges, edge_x = network(kind), torch.tensor([[0, 1], [1, 2]]), torch.zeros(2, 3)
        plain = ask(torch.zeros(3, 5), edges, edge_x)["node"]
        for here in (0, 2):
            changed = ask(3.0 * (torch.arange(3) == here)[:, None].expand(3, 5), edges, edge_x)["node"]
            assert not torch.allclose(plain[2 - here], changed[2 - here], atol=1e-6)

    @torch.no_grad()
    def test_evaluation_is_deterministic_at_high_dropout_and_training_is_not(self, kind):
        ask, graph = network(kind, dropout=0.9), inputs()
        first, second = ask(*graph), ask(*graph)
        assert all(torch.equal(first[head], second[head]) for head in HEADS)
        ask.train()
        assert not torch.equal(ask(*graph)["node"], ask(*graph)["node"])

    @pytest.mark.parametrize("nodes", [0, 1, 2])
    def test_tiny_graphs(self, kind, nodes):
        out = network(kind)(*inputs(nodes))
        shapes = {head: (max(0, nodes - 1) if head in EDGE_HEADS else nodes, 2) for head in HEADS}
        assert {head: tuple(logits.shape) for head, logits in out.items()} == shapes
        assert all(logits.isfinite().all() for logits in out.values())

    @torch.no_grad()
    def test_neighbourhoods_that_reach_beyond_the_network_equal_the_whole_graph(self, kind):
        # Two convolutions or rounds, and edges that see the edges of their ends: three hops hold all that a node sees.
        ask, graph = network(kind, **({"rounds": 2} if kind is MPNN else {})), inputs()
        whole = ask(*graph)["node"]
        assert torch.allclose(whole, node_logits(ask, *graph, num_hops=3), atol=1e-5)
        assert not torch.allclose(whole, node_logits(ask, *graph, num_hops=1), atol=1e-3)


def test_what_arrives_at_a_node():
    values = torch.tensor([[1.0], [3.0], [-5.0]])
    assert around_nodes(torch.tensor([0, 0, 2]), values, 3).tolist() == [[2, 3], [0, 0], [-5, -5]]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (GAT, {"hidden": [30], "heads": 4}, "model.heads: 4, expected a divisor"),
        (GCN, {"hidden": []}, "model.hidden"),
        (GCN, {"dropout": 1.0}, "model.dropout: 1.0"),
        (MPNN, {"hidden": 0}, "model.hidden"),
        (MPNN, {"rounds": -1}, "model.rounds: -1"),
    ],
)
def test_impossible_sizes_are_refused(kind, options, message):
    with pytest.raises(InputError, match=message):
        kind(4, 4, **options)
