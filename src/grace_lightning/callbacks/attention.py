"""What an attention layer looks at."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import GATv2Conv

from grace_lightning.data import GraphData
from grace_lightning.module import GraceModule


def attention(module: GraceModule, data: GraphData) -> Tensor | None:
    """How much each head of the last attention layer makes of each edge, of its two directions the greater.

    What arrives at a node, its own state included, has weights that add up to one.

    Parameters
    ----------
    module : not in training
    data : a graph, or a batch

    Returns
    -------
    (E, heads) float32 on the CPU; None where the network has no attention
    """
    layers = [part for part in module.network.modules() if isinstance(part, GATv2Conv)]
    if not layers:
        return None
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    watch = layers[-1].register_forward_pre_hook(lambda _, *call: given.append(call), with_kwargs=True)
    try:
        module(data)
    finally:
        watch.remove()
    (arguments, named), count = given[0], data.edge_index.shape[1]
    _, (_, weights) = layers[-1](*arguments, **named, return_attention_weights=True)
    edge = data.member_edge if data.has_subgraphs else torch.arange(count, device=weights.device)
    edge = torch.cat([edge, edge])  # both ways; what follows are the weights of the nodes' own states
    largest: Tensor = weights.new_zeros(count, weights.shape[1])
    where = edge[:, None].expand(-1, weights.shape[1])
    largest = largest.scatter_reduce(0, where, weights[: len(edge)], "amax")
    return largest.float().cpu()
