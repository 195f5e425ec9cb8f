"""Networks over graphs: features of nodes and edges in, logits of every head out.

A network takes the features of nodes (N, F) float32, edges (2, E) int64, each undirected edge once, and the features
of edges (E, G) float32. It returns logits, (N, 2) or (E, 2) float32, by the names of :data:`.graph.HEADS`;
of ``filament_type``, (N, types).
Messages pass both ways, and no head of an edge knows which end is which.

Keys that they share: ``node_features`` and ``edge_features`` (F and G, given at run time), ``hidden`` (widths of the
states), ``dense`` (widths of the hidden layers of all heads), ``dropout`` (fraction), ``types`` (of filaments, which a
head of its own tells apart; None or 0 for no such head).
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch_geometric.nn import GATv2Conv, GCNConv

from grace_lightning.errors import InputError, expect_range, expect_widths
from grace_lightning.graph import EDGE_HEADS, HEADS, TYPE


def mlp(sizes: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """Build linear layers between the given sizes, with GELU and dropout between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.GELU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers[:-2])


class _Heads(nn.ModuleDict):
    def __init__(
        self, build: Callable[[list[int]], nn.Module], node: int, edge: int, dense: Sequence[int], types: int | None
    ) -> None:
        sizes = {name: 2 * node + edge if name in EDGE_HEADS else node for name in HEADS}
        heads = {name: build([size, *dense, 2]) for name, size in sizes.items()}
        super().__init__(heads | ({TYPE: build([node, *dense, types])} if types else {}))

    def forward(self, h: Tensor, edges: Tensor, edge_h: Tensor) -> dict[str, Tensor]:
        around = torch.cat([pair(h, edges), edge_h], dim=1)
        return {name: head(around if name in EDGE_HEADS else h) for name, head in self.items()}


def _check(hidden: Sequence[int], dense: Sequence[int], dropout: float) -> None:
    expect_widths("model.hidden", hidden)
    expect_widths("model.dense", dense, least=0)
    if not 0 <= dropout < 1:
        raise InputError(f"model.dropout: {dropout}, expected a fraction from 0 to below 1")


def pair(h: Tensor, edges: Tensor) -> Tensor:
    """Return the sum and the absolute difference of each edge's ends: (N, F), (2, E) to (E, 2 F)."""
    first, second = h.index_select(0, edges[0]), h.index_select(0, edges[1])  # backwards faster than h[...]
    return torch.cat([first + second, (first - second).abs()], dim=1)


def both_ways(edges: Tensor, edge_h: Tensor) -> tuple[Tensor, Tensor]:
    """Return each undirected edge as two directed ones: (2, E), (E, G) to (2, 2 E), (2 E, G)."""
    return torch.cat([edges, edges.flip(0)], dim=1), torch.cat([edge_h, edge_h])


def around_nodes(target: Tensor, values: Tensor, num_nodes: int) -> Tensor:
    """Return mean and maximum of the values at each node, zero if there are none: (K,), (K, G) to (N, 2 G)."""
    # PyG's scatter gives the same to the bit, but its maximum takes 30 to 60 % longer backwards, and it warns on GPUs.
    arrived = values.new_zeros(num_nodes, 1).index_add(0, target, values.new_ones(len(target), 1))
    mean = values.new_zeros(num_nodes, values.shape[1]).index_add(0, target, values) / arrived.clamp(min=1)
    lowest = torch.full_like(mean, -torch.inf)
    largest = lowest.scatter_reduce(0, target[:, None].expand_as(values), values, "amax")
    return torch.cat([mean, torch.where(arrived > 0, largest, 0.0)], dim=1)


class _GatedConv(nn.Module):
    def __init__(self, before: int, after: int, edge_features: int) -> None:
        super().__init__()
        self.conv = GCNConv(before, after)
        self.gate = nn.Linear(edge_features, 1)

    def forward(self, h: Tensor, edges: Tensor, edge_h: Tensor) -> Tensor:
        return self.conv(h, edges, self.gate(edge_h).sigmoid().squeeze(1))  # type: ignore[no-any-return]


class _ResidualBlock(nn.Module):
    def __init__(self, conv: nn.Module, before: int, after: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(before)
        self.conv = conv
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Identity() if before == after else nn.Linear(before, after)

    def forward(self, h: Tensor, edges: Tensor, edge_h: Tensor) -> Tensor:
        return self.skip(h) + self.dropout(nn.functional.gelu(self.conv(self.norm(h), edges, edge_h)))  # type: ignore[no-any-return]


class GCN(nn.Module):
    """Graph convolutional network: Kipf and Welling's (ICLR 2017), with a weight per edge learned from its features."""

    def __init__(
        self,
        node_features: int,
        edge_features: int,
        hidden: Sequence[int] = (64, 64, 64),
        dense: Sequence[int] = (64,),
        dropout: float = 0.1,
        types: int | None = None,
    ) -> None:
        super().__init__()
        _check(hidden, dense, dropout)
        first, last = hidden[0], hidden[-1]
        self.edge_encoder = mlp([edge_features, first, first])
        # A node is told its own features and the mean and maximum of its edges'.
        self.node_encoder = mlp([node_features + 2 * first, first, first])
        self.blocks = nn.ModuleList(
            _ResidualBlock(self._convolution(before, after, first), before, after, dropout)
            for before, after in pairwise([first, *hidden])
        )
        self.node_norm = nn.LayerNorm(last)
        self.heads = _Heads(partial(mlp, dropout=dropout), last, first, dense, types)

    def _convolution(self, before: int, after: int, edge_features: int) -> nn.Module:
        return _GatedConv(before, after, edge_features)

    def forward(self, x: Tensor, edges: Tensor, edge_x: Tensor) -> dict[str, Tensor]:
        edge_h = self.edge_encoder(edge_x)
        directed, directed_h = both_ways(edges, edge_h)
        h = self.node_encoder(torch.cat([x, around_nodes(directed[1], directed_h, len(x))], dim=1))
        for block in self.blocks:
            h = block(h, directed, directed_h)
        return self.heads(self.node_norm(h), edges, edge_h)  # type: ignore[no-any-return]


class GAT(GCN):
    """Graph attention network: the same with Brody's GATv2 (ICLR 2022), edge features included.

    ``heads`` is the number of attention heads of every convolution, a divisor of every width in ``hidden``.
    """

    def __init__(
        self,
        node_features: int,
        edge_features: int,
        hidden: Sequence[int] = (64, 64, 64),
        dense: Sequence[int] = (64,),
        heads: int = 4,
        dropout: float = 0.1,
        types: int | None = None,
    ) -> None:
        self.attention_heads = heads
        super().__init__(node_features, edge_features, hidden, dense, dropout, types)

    def _convolution(self, before: int, after: int, edge_features: int) -> nn.Module:
        heads = self.attention_heads
        if heads < 1 or after % heads:
            raise InputError(f"model.heads: {heads}, expected a divisor of every width in model.hidden ({after})")
        return GATv2Conv(before, after // heads, heads=heads, edge_dim=edge_features)  # type: ignore[no-any-return]


class MPNN(nn.Module):
    """Message passing between edge states and node states (Gilmer et al., ICML 2017; Battaglia et al., 2018).

    In every round an edge is told of its two ends, then a node of the mean and maximum of its edges.
    """

    def __init__(
        self,
        node_features: int,
        edge_features: int,
        hidden: int = 64,
        rounds: int = 4,
        dense: Sequence[int] = (64,),
        dropout: float = 0.1,
        types: int | None = None,
    ) -> None:
        super().__init__()
        _check([hidden], dense, dropout)
        expect_range("model.rounds", rounds, 0, 100)
        self.node_encoder = mlp([node_features, hidden, hidden])
        self.edge_encoder = mlp([edge_features, hidden, hidden])

        def normed(sizes: Sequence[int]) -> nn.Sequential:
            return nn.Sequential(nn.LayerNorm(sizes[0]), mlp(sizes, dropout))

        sizes = [3 * hidden, hidden, hidden]
        self.edge_updates, self.node_updates = (nn.ModuleList(normed(sizes) for _ in range(rounds)) for _ in range(2))
        self.heads = _Heads(normed, hidden, hidden, dense, types)

    def forward(self, x: Tensor, edges: Tensor, edge_x: Tensor) -> dict[str, Tensor]:
        h, edge_h = self.node_encoder(x), self.edge_encoder(edge_x)
        for update_edges, update_nodes in zip(self.edge_updates, self.node_updates, strict=True):
            edge_h = edge_h + update_edges(torch.cat([pair(h, edges), edge_h], dim=1))
            directed, directed_h = both_ways(edges, edge_h)
            h = h + update_nodes(torch.cat([h, around_nodes(directed[1], directed_h, len(h))], dim=1))
        return self.heads(h, edges, edge_h)  # type: ignore[no-any-return]
