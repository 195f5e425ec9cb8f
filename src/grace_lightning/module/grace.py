"""The network in training: features, loss, metrics, optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any, Literal, NoReturn, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from grace_lightning.data import GraphData
from grace_lightning.errors import LossError
from grace_lightning.features import PatchAugmentation
from grace_lightning.metrics import EpochOutcomes, classification, fit_temperature
from grace_lightning.models import EDGE_HEADS, Logits
from grace_lightning.module.checkpoint import CHECKPOINT_KEY
from grace_lightning.module.loss import balanced_weights, class_counts, margin, summed_cross_entropy
from grace_lightning.module.prediction import Prediction
from grace_lightning.module.processes import Arriving, from_all_processes, mean_over_processes

HEADS = Logits._fields

Heads = dict[str, Tensor]


class GraceModule(pl.LightningModule):
    """Node and edge classifier.

    Parameters
    ----------
    features : turns a prepared graph into node features (N, F) and edge features (E, G)
    network : turns these and the edges into :class:`grace_lightning.models.Logits`
    optimizer : makes the optimiser from the parameters; not needed for prediction
    scheduler : makes the learning rate schedule from the optimiser, stepped once per epoch; None keeps the rate
    node_weight, edge_weight, end_weight, link_weight, second_weight, third_weight : of the cross-entropies in the loss
    class_weights : ``balanced`` weighs classes inversely to their frequency in the training set; None equally
    config : the resolved configuration, plain containers, kept in the checkpoint
    augment : applied, in training, to patches that the features cut on the device
    """

    node_class_weight: Tensor
    edge_class_weight: Tensor
    learned: Tensor
    temperature: Tensor

    def __init__(
        self,
        features: nn.Module,
        network: nn.Module,
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[..., LRScheduler] | None = None,
        node_weight: float = 1.0,
        edge_weight: float = 1.0,
        end_weight: float = 2.0,
        link_weight: float = 0.5,
        second_weight: float = 1.0,
        third_weight: float = 0.5,
        class_weights: Literal["balanced"] | None = None,
        config: dict[str, Any] | None = None,
        augment: PatchAugmentation | None = None,
    ) -> None:
        super().__init__()
        self.features = features
        self.network = network
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        weights = (node_weight, edge_weight, end_weight, link_weight, second_weight, third_weight)
        self.loss_weight = dict(zip(HEADS, weights, strict=True))
        self.class_weights = class_weights
        self.config = config or {}
        self.augment = augment
        self.register_buffer("node_class_weight", torch.ones(2))
        self.register_buffer("edge_class_weight", torch.ones(2))
        self.register_buffer("learned", torch.zeros(len(HEADS), dtype=torch.bool))
        self.register_buffer("temperature", torch.ones(len(HEADS)))
        # by stage, since validation runs inside a training epoch: the losses and the number of images of each step
        self._losses: dict[str, list[Tensor]] = {"train": [], "valid": []}
        self._names: dict[str, list[list[str]]] = {"train": [], "valid": []}
        self._latest: Arriving | None = None
        self.scores = nn.ModuleDict(
            {f"{stage}_{head}": EpochOutcomes() for stage in ("train", "valid") for head in HEADS}
        )

    def fit_to(self, prepared: Iterable[GraphData]) -> None:
        """Take the scale of the features and the class weights from the training set, not augmented."""
        counts = torch.zeros(len(HEADS), 2, dtype=torch.int64)
        for data in prepared:
            self.features.update_scale(data)  # type: ignore[operator]
            counts += torch.stack([class_counts(data[f"{head}_label"]) for head in HEADS])
        self.learned.copy_((counts > 0).all(dim=1))
        if self.class_weights == "balanced":
            self.node_class_weight.copy_(balanced_weights(counts[HEADS.index("node")]))
            self.edge_class_weight.copy_(balanced_weights(counts[HEADS.index("edge")]))

    def forward(self, data: GraphData) -> Heads:
        """Logits by head, in float32: (E, 2) for ``edge`` and ``link``, (N, 2) for the others."""
        x, edge_x = self.features(data, self.augment if self.training else None)
        if not data.has_subgraphs:
            logits = self.network(x, data.edge_index, edge_x)
            return {head: value.float() for head, value in logits._asdict().items()}
        seen: Logits = self.network(x[data.member_node], data.member_edges, edge_x[data.member_edge])
        is_centre = data.member_node == data.member_centre
        touches = is_centre[data.member_edges].any(dim=0)
        # Every edge touches a centre twice, once in the neighbourhood of either end.
        row = data.member_edge[touches]

        def mean(logits: Tensor) -> Tensor:
            return logits.new_zeros(len(edge_x), 2).index_add(0, row, logits[touches] / 2)

        return {
            head: mean(value.float()) if head in EDGE_HEADS else value[is_centre].float()
            for head, value in seen._asdict().items()
        }

    def node_states(self, data: GraphData) -> Tensor:
        """What the network's ``node_head`` is given of each node, (N, F)."""
        seen: list[Tensor] = []
        head = cast(nn.Module, self.network.node_head)
        watch = head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:
            self(data)
        finally:
            watch.remove()
        return seen[0][data.member_node == data.member_centre] if data.has_subgraphs else seen[0]

    def _step(self, data: GraphData, stage: str) -> Tensor:
        logits = self(data)
        weights = {"node": self.node_class_weight, "edge": self.edge_class_weight, "link": self.edge_class_weight}
        parts = {head: summed_cross_entropy(logits[head], data[f"{head}_label"], weights.get(head)) for head in HEADS}
        # A mean over the images of all processes: then the mean of their gradients is that of one large batch.
        known = mean_over_processes(torch.stack([count for _, count in parts.values()])).clamp(min=1e-12)
        losses = {head: total / count for (head, (total, _)), count in zip(parts.items(), known, strict=True)}
        loss = sum((self.loss_weight[head] * value for head, value in losses.items()), torch.zeros_like(losses["node"]))
        for head in losses:
            self._metric(stage, head).update(margin(logits[head].detach()), data[f"{head}_label"])
        images = torch.full_like(loss, data.num_counted)
        self._losses[stage].append(torch.stack([loss, *losses.values(), images]).detach())
        self._names[stage].append(data.name)
        return loss

    def training_step(self, batch: GraphData, batch_idx: int) -> Tensor:
        """Loss of one batch of images."""
        return self._step(batch, "train")

    def on_train_batch_end(self, outputs: Any, batch: GraphData, batch_idx: int) -> None:
        """Stop where a loss is not finite: of this step on a CPU, of the one before on a GPU, which need not wait."""
        loss = mean_over_processes(self._losses["train"][-1][:1])
        before, self._latest = self._latest, Arriving(loss)
        seen = self._latest if self._latest.ready is None else before
        if seen is not None and not seen.value().isfinite():
            self._refuse_losses("train")

    def validation_step(self, batch: GraphData, batch_idx: int) -> None:
        """Metrics of one batch of images."""
        self._step(batch, "valid")

    def _refuse_losses(self, stage: str) -> NoReturn:
        """Say at which images the loss is not finite; in every process."""
        steps = zip(self._losses[stage], self._names[stage], strict=True)
        own = [(k, float(row[0]), names) for k, (row, names) in enumerate(steps) if not row[0].isfinite()]
        found = from_all_processes(own)
        step = min(k for k, _, _ in found)
        value = next(value for k, value, _ in found if k == step)
        names = sorted({name for k, _, names in found if k == step for name in names})
        what = {"train": "training", "valid": "validation"}[stage]
        raise LossError(
            f"the {what} loss is {value} in epoch {self.current_epoch} (the first is 0), step {step}, at "
            f"{', '.join(names)}, expected a finite number; set optimizer.lr lower, or look at what these images hold"
        )

    def predict_step(self, batch: GraphData, batch_idx: int) -> list[Prediction]:
        """Calibrated probabilities of the images of one batch, on the CPU."""
        logits = self(batch)
        nodes, edges = batch.nodes_per_image, batch.edges_per_image
        columns: list[tuple[Tensor, list[int]]] = [
            (torch.sigmoid(margin(logits[head]) / t), edges if head in EDGE_HEADS else nodes)
            for head, t in zip(HEADS, self.temperature, strict=True)
        ]
        columns += [(batch.node_label, nodes), (batch.edge_label, edges)]
        parts: list[Sequence[Tensor | None]] = [torch.split(column.cpu(), size) for column, size in columns]
        for index, head in enumerate(HEADS):
            if not self.learned[index] and head not in ("node", "edge"):
                parts[index] = [None] * len(batch.name)
        return [Prediction(*image) for image in zip(batch.name, *parts, strict=True)]

    def on_train_epoch_start(self) -> None:
        """Forget what a validation or an epoch that was broken off left behind."""
        self._latest = None

    def on_train_epoch_end(self) -> None:
        """Log the epoch's metrics."""
        self._log_scores("train")

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._log_scores("valid")

    def _metric(self, stage: str, head: str) -> EpochOutcomes:
        return cast(EpochOutcomes, self.scores[f"{stage}_{head}"])

    def _log_scores(self, stage: str) -> None:
        """Log losses and scores of an epoch.

        Lightning's own log, which takes as long as a layer of the network for every value, gets what callbacks
        monitor: the losses, and the validation scores. The rest goes to the loggers directly.
        """
        steps = mean_over_processes(torch.stack(self._losses[stage]))
        if not steps[:, 0].isfinite().all():
            self._refuse_losses(stage)
        self._losses[stage].clear()
        self._names[stage].clear()
        means = (steps[:, :-1] * steps[:, -1:]).sum(0) / steps[:, -1].sum()
        self.log(f"{stage}/loss", means[0], prog_bar=True, sync_dist=True)
        self.log_dict(
            {f"{stage}/{head}_loss": mean for head, mean in zip(HEADS, means[1:], strict=True)}, sync_dist=True
        )
        self.log("step", float(self.current_epoch), sync_dist=True)  # Lightning's name for the loggers' x axis
        shown: dict[str, float] = {}
        monitored: dict[str, float] = {}
        for index, head in enumerate(HEADS):
            metric = self._metric(stage, head)
            margins, label = metric.compute()
            metric.reset()
            if stage == "valid":  # every checkpoint has the temperatures that its own weights need
                self.temperature[index] = fit_temperature(margins, label)
            probability = margins.sigmoid()
            scores = classification(probability, label)
            values = {f"{stage}/{head}_{name}": float("nan") if v is None else v for name, v in scores.items()}
            (monitored if stage == "valid" else shown).update(values)
        if stage == "valid":
            precisions = [monitored[f"valid/{head}_average_precision"] for head in HEADS]
            monitored["valid/average_precision"] = fmean([p for p in precisions if not math.isnan(p)] or [math.nan])
        self.log_dict(monitored, sync_dist=True)  # equal in all processes
        for logger in self.loggers:
            logger.log_metrics(shown, step=self.current_epoch)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The configured optimiser and schedule."""
        if self.make_optimizer is None:
            raise RuntimeError("this module was made for prediction: it has no optimizer")
        optimizer = self.make_optimizer(self.parameters())
        if self.make_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.make_scheduler(optimizer)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the configuration, so that evaluation and prediction need the checkpoint alone."""
        checkpoint[CHECKPOINT_KEY] = self.config
