"""The network in training: features, loss, metrics, optimiser, checkpoints."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from grace_lightning.data import GraphData
from grace_lightning.errors import InputError, LossError
from grace_lightning.features import PatchAugmentation
from grace_lightning.graph import Graph, Label
from grace_lightning.link import Filaments, Linker
from grace_lightning.metrics import EpochOutcomes, classification, fit_temperature
from grace_lightning.models import EDGE_HEADS, Logits

CHECKPOINT_KEY = "grace_lightning"
"""Where a checkpoint keeps the resolved configuration it was trained with."""

HEADS = Logits._fields

Heads = dict[str, Tensor]

T = TypeVar("T")


class Prediction(NamedTuple):
    """Probabilities of one image.

    Attributes
    ----------
    name : stem of the image
    node_probability, edge_probability : (N,) and (E,) float32, of the positive class
    end_probability : (N,) float32, that a filament ends at a node of one; None where that was never learned
    link_probability : (E,) float32, that one filament goes from the edge's one end to the other; None likewise
    second_probability, third_probability : (N,) float32, that two filaments or more, or three or more, pass a node of
        one; None likewise
    node_label, edge_label : (N,) and (E,) int64
    """

    name: str
    node_probability: Tensor
    edge_probability: Tensor
    end_probability: Tensor | None
    link_probability: Tensor | None
    second_probability: Tensor | None
    third_probability: Tensor | None
    node_label: Tensor
    edge_label: Tensor

    def filaments(self, linker: Linker, graph: Graph) -> Filaments:
        """What ``linker`` makes of the probabilities; those of links count where they are known, or else of edges."""
        edge = self.edge_probability if self.link_probability is None else self.link_probability
        further = [p for p in (self.second_probability, self.third_probability) if p is not None]
        more = torch.stack(further, dim=1) if further else None
        return linker(graph.pos, graph.edges, self.node_probability, edge, self.end_probability, more)


def gather(predictions: Sequence[Prediction]) -> dict[str, tuple[Tensor, Tensor]]:
    """Probabilities and labels of all ``nodes`` and of all ``edges``."""
    return {
        "nodes": (torch.cat([p.node_probability for p in predictions]), torch.cat([p.node_label for p in predictions])),
        "edges": (torch.cat([p.edge_probability for p in predictions]), torch.cat([p.edge_label for p in predictions])),
    }


def masked_cross_entropy(logits: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean cross-entropy over what is labelled; 0 where all is UNKNOWN.

    Parameters
    ----------
    logits : (M, 2)
    label : (M,) int64
    weight : (2,) per class or None
    """
    total, known = summed_cross_entropy(logits, label, weight)
    return total / known.clamp(min=1e-12)


def summed_cross_entropy(logits: Tensor, label: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropy over what is labelled, and the number (or sum of weights) of that."""
    total = functional.cross_entropy(logits, label, weight, ignore_index=Label.UNKNOWN, reduction="sum")
    known = (label != Label.UNKNOWN).to(total.dtype)
    if weight is not None:
        known = known * weight[label.clamp(max=1)]
    return total, known.sum()


def margin(logits: Tensor) -> Tensor:
    """Log-odds of the positive class: (M, 2) to (M,)."""
    return logits[:, 1] - logits[:, 0]


def _processes() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a tensor without gradient over the processes that train together; itself where there is one."""
    if _processes() == 1:
        return value
    value = value.clone()
    distributed.all_reduce(value)
    return value / _processes()


def _from_all_processes(found: list[T]) -> list[T]:
    if _processes() == 1:
        return found
    gathered: list[list[T]] = [[] for _ in range(_processes())]
    distributed.all_gather_object(gathered, found)
    return [one for part in gathered for one in part]


class _Arriving:
    """A tensor on its way to the CPU."""

    def __init__(self, tensor: Tensor) -> None:
        self.copy = tensor.to("cpu", non_blocking=True)
        self.ready = torch.cuda.Event() if tensor.is_cuda else None  # type: ignore[no-untyped-call]
        if self.ready is not None:
            self.ready.record()

    def value(self) -> Tensor:
        """The tensor, waited for."""
        if self.ready is not None:
            self.ready.synchronize()
        return self.copy


def class_counts(label: Tensor) -> Tensor:
    """Number of negatives and of positives among labels (M,): (2,) int64."""
    return torch.bincount(label, minlength=3)[:2]


def balanced_weights(counts: Tensor) -> Tensor:
    """Class weights inversely proportional to the classes' counts (2,), 1 on the mean over all examples: (2,) float32.

    A class that never occurs weighs like the other.
    """
    weights = counts.sum() / (2 * counts.clamp(min=1))
    return torch.where((counts > 0).all(), weights, torch.ones(2)).float()


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
        self._latest: _Arriving | None = None
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
        known = _mean_over_processes(torch.stack([count for _, count in parts.values()])).clamp(min=1e-12)
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
        loss = _mean_over_processes(self._losses["train"][-1][:1])
        before, self._latest = self._latest, _Arriving(loss)
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
        found = _from_all_processes(own)
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
        steps = _mean_over_processes(torch.stack(self._losses[stage]))
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


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's content, without running anything in it.

    Raises
    ------
    InputError
        The file is missing, cannot be read, or is not a checkpoint of this package.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; a run keeps its own in <run folder>/model/best.ckpt")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "it holds more than numbers and text, which is never loaded"
        raise InputError(f"{path}: cannot be read as a checkpoint ({reason}); is it one of grace-train?") from error
    except Exception as error:  # torch raises whatever zip and pickle raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path}: cannot be read as a checkpoint ({reason}); is the file complete?") from error
    if not isinstance(content, dict) or not {CHECKPOINT_KEY, "state_dict"} <= content.keys():
        raise InputError(f"{path}: not a checkpoint of grace-train (it has no '{CHECKPOINT_KEY}' and 'state_dict')")
    return content
