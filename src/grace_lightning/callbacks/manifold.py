"""A map of what the network knows of the nodes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from grace_lightning import figures
from grace_lightning.data import GraceDataModule
from grace_lightning.errors import InputError
from grace_lightning.module import GraceModule

FEWEST = 4
"""Nodes below this make no map."""


class Manifold(pl.Callback):
    """At the end of the fit, draws the states of the validation nodes in two dimensions, coloured by label.

    The states are those of the last epoch, as the node head is given them.

    Parameters
    ----------
    path : of the picture
    method : ``tsne`` (van der Maaten and Hinton, 2008) keeps neighbours together and needs scikit-learn; ``pca``, the
        two directions in which the states vary most, needs nothing; None draws nothing
    max_nodes : the most that are drawn, taken at random; t-SNE takes some seconds for a thousand
    """

    def __init__(self, path: str, method: Literal["tsne", "pca"] | None = None, max_nodes: int = 2000) -> None:
        if max_nodes < FEWEST:
            raise InputError(f"callbacks.manifold.max_nodes: {max_nodes}, expected {FEWEST} or more")
        if method == "tsne" and importlib.util.find_spec("sklearn") is None:
            raise InputError(
                "callbacks.manifold.method: tsne needs scikit-learn, which is not installed; "
                "pip install 'grace-lightning[manifold]', or set callbacks.manifold.method=pca"
            )
        self.path = Path(path)
        self.method = method
        self.max_nodes = max_nodes

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the picture; nothing where there are hardly any nodes."""
        if self.method is None or not trainer.is_global_zero:
            return
        states, label = _node_states(cast(Any, trainer).datamodule, cast(GraceModule, pl_module))
        finite = states.isfinite().all(dim=1)  # not where a training diverged
        states, label = states[finite], label[finite]
        count = len(label)
        if count < FEWEST:
            return
        rows = torch.randperm(count, generator=torch.Generator().manual_seed(0))[: self.max_nodes]
        states, label = states[rows], label[rows]
        points = tsne(states) if self.method == "tsne" else principal_components(states)
        name = {"tsne": "t-SNE", "pca": "principal components"}[self.method]
        shown = f"{len(label):,}" if len(label) == count else f"{len(label):,} of {count:,}"
        title = f"{name} of the states of {shown} validation nodes, epoch {trainer.current_epoch - 1}"
        figure = figures.manifold(points, label, title=title)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(self.path)


def _node_states(datamodule: GraceDataModule, module: GraceModule) -> tuple[Tensor, Tensor]:
    """States (N, F) and labels (N,) of all validation nodes, on the CPU."""
    training = module.training
    module.eval()
    states, labels = [], []
    with torch.no_grad():
        for batch in datamodule.val_dataloader():
            states.append(module.node_states(batch.to(module.device)).float().cpu())
            labels.append(batch.node_label.cpu())
    module.train(training)
    return torch.cat(states), torch.cat(labels)


def tsne(states: Tensor) -> NDArray[np.float32]:
    """States (N, F) in two dimensions, (N, 2), neighbours together; the same for the same states."""
    from sklearn.manifold import TSNE

    start = principal_components(states)
    spread = start[:, 0].std()
    if spread == 0:  # scikit-learn 1.9 dies of states that are all the same
        return start
    perplexity = min(30.0, (len(states) - 1) / 3)
    # spread as scikit-learn's own start
    found = TSNE(init=1e-4 / spread * start, perplexity=perplexity, random_state=0).fit_transform(states.numpy())
    return np.asarray(found, dtype=np.float32)


def principal_components(states: Tensor) -> NDArray[np.float32]:
    """States (N, F) along the two directions in which they vary most, (N, 2)."""
    centred = states - states.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    found = centred @ directions[:2].T
    missing = found.new_zeros(len(found), 2 - found.shape[1])  # one feature alone
    return np.asarray(torch.cat([found, missing], dim=1).numpy(), dtype=np.float32)
