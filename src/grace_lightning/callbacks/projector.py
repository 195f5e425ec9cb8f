"""What the network knows of the nodes, in TensorBoard's projector."""

from __future__ import annotations

from typing import cast

import pytorch_lightning as pl
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from grace_lightning.callbacks.board import boards, evaluating, validation_graphs, validation_set
from grace_lightning.errors import InputError
from grace_lightning.features import node_patches
from grace_lightning.figures import contrast
from grace_lightning.graph import Label
from grace_lightning.module import GraceModule

LABELS = {Label.TRUE_NEGATIVE: "negative", Label.TRUE_POSITIVE: "positive", Label.UNKNOWN: "unknown"}

COLUMNS = ["label", "probability", "image", "node"]

PATCH = 3.0
"""Filament widths, side of the picture of a node."""

SAMPLES = 32
"""Pixels to a side of that picture."""

BLUR = 0.1
"""Filament widths, deviation of the Gaussian that takes noise away there."""


class Projector(pl.Callback):
    """At the end, gives the states of validation nodes to TensorBoard's projector, with labels and patches.

    The states are those of the last epoch, as the node head is given them.

    Parameters
    ----------
    scale : pixels, width of a filament
    max_nodes : the most that are shown, taken at random
    """

    def __init__(self, scale: float, max_nodes: int = 2000) -> None:
        if max_nodes < 1:
            raise InputError(f"callbacks.projector.max_nodes: {max_nodes}, expected 1 or more")
        self.scale = scale
        self.max_nodes = max_nodes

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write states, labels and patches; nothing where the network never trained."""
        writers = boards(trainer)
        if not writers or trainer.current_epoch == 0:
            return
        states, rows, patches = self._nodes(trainer, cast(GraceModule, pl_module))
        finite = states.isfinite().all(dim=1)
        if not finite.all() or not len(states):  # a training that diverged
            return
        for board in writers:
            board.add_embedding(
                states.numpy(),
                metadata=rows,
                metadata_header=COLUMNS,
                label_img=patches,
                global_step=trainer.current_epoch - 1,
                tag="nodes",
            )

    def _nodes(self, trainer: pl.Trainer, module: GraceModule) -> tuple[Tensor, list[list[str]], Tensor]:
        """States (M, F), values of :data:`COLUMNS` and patches (M, 1, rows, columns) of the nodes that are shown."""
        dataset = validation_set(trainer)
        counts = torch.tensor([len(dataset.prepared(k).node_label) for k in range(len(dataset))])
        total = int(counts.sum())
        generator = torch.Generator().manual_seed(0)  # training draws from another
        chosen = torch.randperm(total, generator=generator)[: self.max_nodes].sort().values
        states, rows, patches = [], [], []
        first = 0
        with evaluating(trainer, module):
            for k, batch in enumerate(validation_graphs(trainer, module)):
                count = len(batch.node_label)
                node = chosen[(chosen >= first) & (chosen < first + count)] - first
                first += count
                if not len(node):
                    continue
                states.append(module.node_states(batch).float().cpu()[node])
                probability = module.predict_step(batch, 0)[0].node_probability[node]
                label = [LABELS[Label(value)] for value in batch.node_label.cpu()[node].tolist()]
                name = dataset.sources[k].name
                rows += [
                    [word, f"{p:.3f}", name, str(n)]
                    for word, p, n in zip(label, probability.tolist(), node.tolist(), strict=True)
                ]
                patches.append(self._patches(dataset.sample(k).image[:1], batch.pos.cpu()[node]))
        return torch.cat(states), rows, torch.cat(patches)

    def _patches(self, image: Tensor, pos: Tensor) -> Tensor:
        """Patches around positions, without the finest noise, of the image's contrast, 0 to 1."""
        blur = BLUR * self.scale
        image = torch.from_numpy(gaussian_filter(image.numpy(), (0, blur, blur), truncate=3))
        low, high = contrast(image)
        cut = node_patches(image, pos, size=PATCH * self.scale, samples=SAMPLES)
        return ((cut - low) / max(high - low, 1e-6)).clamp(0, 1)
