"""Networks over graphs: node and edge features in; logits of both, and of what links filaments, out.

All treat an edge as undirected: messages pass both ways, and the edge head does not know which end is which.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.nn import GATv2Conv, GCNConv

from grace_lightning.errors import InputError


class Logits(NamedTuple):
    """What a network says, (N, 2) or (E, 2) each.

    ``node`` and ``edge``: do they lie on a filament? ``end``: does one end at the node? ``link``: does one and the same
    go from the edge's one end to the other? ``second``, ``third``: do two or more, three or more pass the node?
    """

    node: Tensor
    edge: Tensor
    end: Tensor
    link: Tensor
    second: Tensor
    third: Tensor


EDGE_HEADS = ("edge", "link")
"""Those of :class:`Logits` that are of edges; the others are of nodes."""


def _ask_heads(network: nn.Module, h: Tensor, around: Tensor) -> Logits:
    """What the heads of a network say of node states (N, F) and of what is known of edges (E, G)."""
    return Logits(*(getattr(network, f"{name}_head")(around if name in EDGE_HEADS else h) for name in Logits._fields))


def mlp(widths: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """Linear layers of the given widths with GELU and dropout between them."""
    layers: list[nn.Module] = []
    for k, (before, after) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(before, after))
        if k < len(widths) - 2:
            layers += [nn.GELU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def both_ways(edges: Tensor, edge_values: Tensor) -> tuple[Tensor, Tensor]:
    """Each undirected edge as two directed ones: (2, E), (E, ...) to (2, 2 E), (2 E, ...)."""
    return torch.cat([edges, edges.flip(0)], dim=1), torch.cat([edge_values, edge_values])


class GatedGCNConv(nn.Module):
    """Kipf and Welling's graph convolution (ICLR 2017) with a weight per edge learned from the edge's features."""

    def __init__(self, width_in: int, width_out: int, edge_width: int) -> None:
        super().__init__()
        self.conv = GCNConv(width_in, width_out)
        self.gate = nn.Linear(edge_width, 1)

    def forward(self, h: Tensor, edges: Tensor, edge_h: Tensor) -> Tensor:
        """(N, in), (2, K) directed edges, (K, G) to (N, out)."""
        return self.conv(h, edges, self.gate(edge_h).sigmoid().squeeze(1))  # type: ignore[no-any-return]


class AttentionConv(nn.Module):
    """Brody's attention GATv2 (ICLR 2022), edge features included; the heads share the output width."""

    def __init__(self, width_in: int, width_out: int, edge_width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width_out % heads:
            raise InputError(f"model.heads: {heads}, expected a divisor of every width in model.hidden ({width_out})")
        self.conv = GATv2Conv(width_in, width_out // heads, heads=heads, edge_dim=edge_width)

    def forward(self, h: Tensor, edges: Tensor, edge_h: Tensor) -> Tensor:
        """(N, in), (2, K) directed edges, (K, G) to (N, out)."""
        return self.conv(h, edges, edge_attr=edge_h)  # type: ignore[no-any-return]


class _ResidualBlock(nn.Module):
    def __init__(self, conv: nn.Module, width_in: int, width_out: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width_in)
        self.conv = conv
        self.act = nn.GELU()
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Identity() if width_in == width_out else nn.Linear(width_in, width_out)

    def forward(self, h: Tensor, edges: Tensor, edge_h: Tensor) -> Tensor:
        return self.skip(h) + self.dropout(self.act(self.conv(self.norm(h), edges, edge_h)))  # type: ignore[no-any-return]


class _NodeEdgeNetwork(nn.Module):
    """Encoders, residual blocks of some convolution, and the two heads: what GCN and GAT share."""

    def __init__(
        self,
        node_width: int,
        edge_width: int,
        hidden: Sequence[int],
        dense: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__()
        if not hidden or min([*hidden, *dense]) < 1:
            raise InputError(
                f"model.hidden: {list(hidden)}, model.dense: {list(dense)}, expected widths of 1 or more, "
                "and one hidden at least"
            )
        check_dropout(dropout)
        widths = [hidden[0], *hidden]
        self.edge_encoder = mlp([edge_width, hidden[0], hidden[0]])
        # A node is told its own features and the mean and maximum of its edges'.
        self.node_encoder = mlp([node_width + 2 * hidden[0], hidden[0], hidden[0]])
        self.blocks = nn.ModuleList(
            _ResidualBlock(self.convolution(before, after, hidden[0]), before, after, dropout)
            for before, after in pairwise(widths)
        )
        self.node_norm = nn.LayerNorm(widths[-1])
        self.node_head = mlp([widths[-1], *dense, 2], dropout)
        self.edge_head = mlp([2 * widths[-1] + hidden[0], *dense, 2], dropout)
        self.end_head = mlp([widths[-1], *dense, 2], dropout)
        self.link_head = mlp([2 * widths[-1] + hidden[0], *dense, 2], dropout)
        self.second_head = mlp([widths[-1], *dense, 2], dropout)
        self.third_head = mlp([widths[-1], *dense, 2], dropout)

    def convolution(self, width_in: int, width_out: int, edge_width: int) -> nn.Module:
        raise NotImplementedError

    def forward(self, x: Tensor, edges: Tensor, edge_x: Tensor) -> Logits:
        """Logits of nodes and edges.

        Parameters
        ----------
        x : (N, F) float32
        edges : (2, E) int64, each undirected edge once
        edge_x : (E, G) float32

        Returns
        -------
        float32
        """
        edge_h = self.edge_encoder(edge_x)
        directed, directed_h = both_ways(edges, edge_h)
        h = self.node_encoder(torch.cat([x, around_nodes(directed[1], directed_h, len(x))], dim=1))
        for block in self.blocks:
            h = block(h, directed, directed_h)
        h = self.node_norm(h)
        around = torch.cat([pair(h, edges), edge_h], dim=1)
        return _ask_heads(self, h, around)


def around_nodes(target: Tensor, values: Tensor, num_nodes: int) -> Tensor:
    """Mean and maximum of what arrives at each node: (K,) targets and (K, G) values to (N, 2 G); zero where none."""
    arrived = values.new_zeros(num_nodes, 1).index_add(0, target, values.new_ones(len(target), 1))
    mean = values.new_zeros(num_nodes, values.shape[1]).index_add(0, target, values) / arrived.clamp(min=1)
    lowest = torch.full_like(mean, -torch.inf)
    largest = lowest.scatter_reduce(0, target[:, None].expand_as(values), values, "amax")
    return torch.cat([mean, torch.where(arrived > 0, largest, 0.0)], dim=1)


class GCN(_NodeEdgeNetwork):
    """Graph convolutional network with node and edge heads.

    Parameters
    ----------
    node_width, edge_width : features per node and per edge; given at run time
    hidden : widths of the convolutions, one block each
    dense : widths of the hidden layers of both heads
    dropout : fraction
    """

    def __init__(
        self,
        node_width: int,
        edge_width: int,
        hidden: Sequence[int] = (64, 64, 64),
        dense: Sequence[int] = (64,),
        dropout: float = 0.1,
    ) -> None:
        super().__init__(node_width, edge_width, hidden, dense, dropout)

    def convolution(self, width_in: int, width_out: int, edge_width: int) -> nn.Module:
        """One graph convolution."""
        return GatedGCNConv(width_in, width_out, edge_width)


class GAT(_NodeEdgeNetwork):
    """Graph attention network with node and edge heads.

    Parameters
    ----------
    node_width, edge_width : features per node and per edge; given at run time
    hidden : widths of the convolutions, one block each; divisible by ``heads``
    dense : widths of the hidden layers of both heads
    heads : attention heads of every convolution
    dropout : fraction
    """

    def __init__(
        self,
        node_width: int,
        edge_width: int,
        hidden: Sequence[int] = (64, 64, 64),
        dense: Sequence[int] = (64,),
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        self.heads = heads
        super().__init__(node_width, edge_width, hidden, dense, dropout)

    def convolution(self, width_in: int, width_out: int, edge_width: int) -> nn.Module:
        """One attention layer."""
        return AttentionConv(width_in, width_out, edge_width, self.heads)


class MPNN(nn.Module):
    """Message passing between edge states and node states, with node and edge heads.

    In every round an edge is told of its two ends, then a node of its edges (their mean and maximum); both are added
    to what was known before (edge-updating message passing, Gilmer et al., ICML 2017; Battaglia et al., 2018).

    Parameters
    ----------
    node_width, edge_width : features per node and per edge; given at run time
    width : of the states
    rounds : of messages
    dense : widths of the hidden layers of both heads
    dropout : fraction
    """

    def __init__(
        self,
        node_width: int,
        edge_width: int,
        width: int = 64,
        rounds: int = 4,
        dense: Sequence[int] = (64,),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if min([width, *dense]) < 1 or rounds < 0:
            raise InputError(
                f"model.width: {width}, model.rounds: {rounds}, model.dense: {list(dense)}, expected positive widths"
            )
        check_dropout(dropout)
        self.node_encoder = mlp([node_width, width, width])
        self.edge_encoder = mlp([edge_width, width, width])
        self.edge_updates = nn.ModuleList(_update(3 * width, width, dropout) for _ in range(rounds))
        self.node_updates = nn.ModuleList(_update(3 * width, width, dropout) for _ in range(rounds))
        self.node_head = nn.Sequential(nn.LayerNorm(width), mlp([width, *dense, 2], dropout))
        self.edge_head = nn.Sequential(nn.LayerNorm(3 * width), mlp([3 * width, *dense, 2], dropout))
        self.end_head = nn.Sequential(nn.LayerNorm(width), mlp([width, *dense, 2], dropout))
        self.link_head = nn.Sequential(nn.LayerNorm(3 * width), mlp([3 * width, *dense, 2], dropout))
        self.second_head = nn.Sequential(nn.LayerNorm(width), mlp([width, *dense, 2], dropout))
        self.third_head = nn.Sequential(nn.LayerNorm(width), mlp([width, *dense, 2], dropout))

    def forward(self, x: Tensor, edges: Tensor, edge_x: Tensor) -> Logits:
        """Logits of nodes and edges from (N, F) features, (2, E) undirected edges and (E, G) features."""
        h, edge_h = self.node_encoder(x), self.edge_encoder(edge_x)
        for update_edges, update_nodes in zip(self.edge_updates, self.node_updates, strict=True):
            edge_h = edge_h + update_edges(torch.cat([pair(h, edges), edge_h], dim=1))
            directed, directed_h = both_ways(edges, edge_h)
            h = h + update_nodes(torch.cat([h, around_nodes(directed[1], directed_h, len(h))], dim=1))
        around = torch.cat([pair(h, edges), edge_h], dim=1)
        return _ask_heads(self, h, around)


def _update(width_in: int, width: int, dropout: float) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(width_in), mlp([width_in, width, width], dropout))


def check_dropout(dropout: float) -> None:
    """Refuse what is not a fraction."""
    if not 0 <= dropout < 1:
        raise InputError(f"model.dropout: {dropout}, expected a fraction from 0 to below 1")


def pair(h: Tensor, edges: Tensor) -> Tensor:
    """Sum and absolute difference of an edge's ends, whichever comes first: (N, F), (2, E) to (E, 2 F)."""
    first, second = h.index_select(0, edges[0]), h.index_select(0, edges[1])  # backwards faster than h[...]
    return torch.cat([first + second, (first - second).abs()], dim=1)
