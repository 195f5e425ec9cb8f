"""The network in training and prediction: features, heads, loss, metrics, optimiser."""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from grace_lightning.config import selected
from grace_lightning.data import GraphData
from grace_lightning.errors import InputError, InputWarning, LossError
from grace_lightning.features import Features
from grace_lightning.files import some
from grace_lightning.graph import EDGE_HEADS, HEADS, TYPE, Label
from grace_lightning.metrics import EpochOutcomes, classification, fit_temperature

CHECKPOINT_KEY = "grace_lightning"
"""Where a checkpoint keeps the resolved configuration that it was trained with."""

TRAINED = "trained_weights"
"""Where a checkpoint keeps the weights that training goes on from if ``state_dict`` has a mean of weights."""


class GraceModule(pl.LightningModule):
    """Classifier of nodes and edges, by the heads of :data:`grace_lightning.graph.HEADS`.

    Parameters
    ----------
    features : turn images and graphs into node features (N, F) and edge features (E, G)
    network : turns these and the edges into logits (N, 2) or (E, 2) by head; a network may lack heads
    optimizer : makes the optimiser from the parameters; not needed for prediction
    scheduler : makes the learning rate schedule from the optimiser, stepped once per epoch; None keeps the rate
    node_weight, edge_weight, end_weight, same_filament_weight, two_filaments_weight, three_filaments_weight,
    type_weight : of the heads' cross-entropies in the loss
    class_weights : ``balanced`` weighs classes inversely to their frequency in the training set; None equally
    config : the resolved configuration, plain containers, kept in the checkpoint
    augment : applied to patches in training
    """

    node_class_weight: Tensor
    edge_class_weight: Tensor
    learned: Tensor
    temperature: Tensor

    def __init__(
        self,
        features: Features,
        network: nn.Module,
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[..., LRScheduler] | None = None,
        node_weight: float = 1.0,
        edge_weight: float = 1.0,
        end_weight: float = 2.0,
        same_filament_weight: float = 0.5,
        two_filaments_weight: float = 1.0,
        three_filaments_weight: float = 0.5,
        type_weight: float = 3.0,
        class_weights: Literal["balanced"] | None = None,
        config: dict[str, Any] | None = None,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.features, self.network = features, network
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.loss_weight = {
            "node": node_weight,
            "edge": edge_weight,
            "end": end_weight,
            "same_filament": same_filament_weight,
            "two_filaments": two_filaments_weight,
            "three_filaments": three_filaments_weight,
            TYPE: type_weight,
        }
        self.class_weights, self.config, self.augment = class_weights, config or {}, augment
        self.register_buffer("node_class_weight", torch.ones(2))
        self.register_buffer("edge_class_weight", torch.ones(2))
        self.register_buffer("learned", torch.zeros(len(HEADS), dtype=torch.bool))
        self.register_buffer("temperature", torch.ones(len(HEADS)))
        # By stage, since validation runs inside a training epoch: of each step the losses with the number of images,
        # and the images' names.
        self._losses: dict[str, list[Tensor]] = {"train": [], "valid": []}
        self._names: dict[str, list[list[str]]] = {"train": [], "valid": []}
        self._outcomes = nn.ModuleDict(
            {f"{stage}_{head}": EpochOutcomes() for stage in ("train", "valid") for head in HEADS}
        )
        self._types: dict[str, list[Tensor]] = {"train": [], "valid": []}  # of each step: right ones, known ones
        self._gradient_norms: list[Tensor] = []  # on the device, which is not waited for before the epoch's end
        self._start, self._rate = 0.0, 0.0

    def fit_to(self, graphs: Iterable[GraphData]) -> None:
        """Take the scale of the features and the class weights from the training set, not augmented."""
        by_label, names, typed = torch.zeros(len(HEADS), len(Label), dtype=torch.int64), [], 0
        for data in graphs:
            self.features.fit(data)
            by_label += torch.stack([torch.bincount(data.label(head), minlength=len(Label)) for head in HEADS])
            names += data.names
            typed += int((data.node_type > 0).sum())
        if not typed and TYPE in cast(nn.ModuleDict, getattr(self.network, "heads", {})):
            raise InputError("data.num_classes: types are to be learned, but no annotated filament has one")
        for head, what in {"node": "detections", "edge": "edges"}.items():
            negative, positive, unknown = by_label[HEADS.index(head)].tolist()
            if not (negative and positive):
                found = f"{positive} {what} are positive, {negative} negative and {unknown} unknown"
                expected = "the network cannot learn to tell them apart; were they annotated?"
                warnings.warn(f"training images {some(names)}: {found}; {expected}", InputWarning, stacklevel=2)
        counts = by_label[:, :2]
        self.learned.copy_((counts > 0).all(dim=1))
        if self.class_weights == "balanced":
            self.node_class_weight.copy_(balanced_weights(counts[HEADS.index("node")]))
            self.edge_class_weight.copy_(balanced_weights(counts[HEADS.index("edge")]))

    def forward(self, data: GraphData) -> dict[str, Tensor]:
        """Return logits by head, in float32: (E, 2) for heads on edges, (N, 2) for heads on nodes."""
        x, edge_x = self.features(data, self.augment if self.training else None)
        if not data.has_subgraphs:
            return {head: value.float() for head, value in self.network(x, data.edge_index, edge_x).items()}
        seen = self.network(x[data.member_node], data.member_edges, edge_x[data.member_edge])
        is_centre = data.member_node == data.member_centre
        touches = is_centre[data.member_edges].any(dim=0)
        # Every edge touches a centre twice, once in the neighbourhood of either end.
        row = data.member_edge[touches]

        def mean(logits: Tensor) -> Tensor:
            return logits.new_zeros(len(edge_x), 2).index_add(0, row, logits[touches] / 2)

        return {
            head: mean(value.float()) if head in EDGE_HEADS else value[is_centre].float()
            for head, value in seen.items()
        }

    @torch.no_grad()
    def probabilities(self, data: GraphData) -> dict[str, Tensor]:
        """Return the calibrated probabilities of one image by head, (N,) or (E,) float32, on the CPU.

        ``node`` and ``edge`` are always there, other heads only if the training set had both of their classes. Of
        ``filament_type``, if it was learned, (N, types).
        """
        logits = self(data)
        types = logits.pop(TYPE, None)
        temperature = dict(zip(HEADS, self.temperature, strict=True))
        learned = dict(zip(HEADS, self.learned.tolist(), strict=True)) | {"node": True, "edge": True}
        said = {
            head: torch.sigmoid(margin(values) / temperature[head]).cpu()
            for head, values in logits.items()
            if learned[head]
        }
        return said if types is None else said | {TYPE: types.softmax(dim=1).cpu()}

    def node_states(self, data: GraphData) -> Tensor:
        """Return what the head ``node`` is given of each node, (N, F)."""
        seen: list[Tensor] = []
        head = cast(nn.ModuleDict, self.network.heads)["node"]
        watch = head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:
            self(data)
        finally:
            watch.remove()
        return seen[0][data.member_node == data.member_centre] if data.has_subgraphs else seen[0]

    def training_step(self, batch: GraphData, batch_idx: int) -> Tensor:
        loss = self._step(batch, "train")
        if loss.device.type == "cpu":  # before the weights take it; a GPU would have to be waited for
            self._expect_finite_losses("train", since=batch_idx)
        return loss

    def validation_step(self, batch: GraphData, batch_idx: int) -> None:
        self._step(batch, "valid")

    def _step(self, data: GraphData, stage: str) -> Tensor:
        logits = self(data)
        types = logits.pop(TYPE, None)
        weights = dict.fromkeys(EDGE_HEADS, self.edge_class_weight) | {"node": self.node_class_weight}
        parts = [summed_cross_entropy(logits[head], data.label(head), weights.get(head)) for head in logits]
        # A mean over the images of all processes: then the mean of their gradients is that of one large batch.
        if types is not None:
            target = data.node_type - 1
            total = functional.cross_entropy(types, target, ignore_index=-1, reduction="sum")
            parts.append((total, (target >= 0).sum().to(total.dtype)))
            self._types[stage].append(torch.stack([(types.argmax(dim=1) == target).sum(), (target >= 0).sum()]))
        known = self._mean_over_processes(torch.stack([count for _, count in parts])).clamp(min=1e-12)
        heads = [*logits, *([] if types is None else [TYPE])]
        losses = {head: total / count for head, (total, _), count in zip(heads, parts, known, strict=True)}
        loss = torch.stack([self.loss_weight[head] * value for head, value in losses.items()]).sum()
        for head, value in logits.items():
            self._outcome(stage, head).update(margin(value.detach()), data.label(head))
        missing = loss.new_full((), torch.nan)
        row = [loss, *(losses.get(head, missing) for head in (*HEADS, TYPE)), torch.full_like(loss, data.num_counted)]
        self._losses[stage].append(torch.stack(row).detach())
        self._names[stage].append(data.names)
        return loss

    def _outcome(self, stage: str, head: str) -> EpochOutcomes:
        return cast(EpochOutcomes, self._outcomes[f"{stage}_{head}"])

    def _heads(self, stage: str) -> list[str]:
        """Return the heads that the network has, once an epoch has begun."""
        return [head for head in HEADS if self._outcome(stage, head).update_called]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer, schedule = self._make_optimizer(self.parameters())
        return {"optimizer": optimizer, "lr_scheduler": schedule} if schedule else optimizer

    def _make_optimizer(self, parameters: Iterable[Any]) -> tuple[Optimizer, LRScheduler | None]:
        if self.make_optimizer is None:
            raise RuntimeError("this module was made for prediction: it has no optimizer")
        try:
            optimizer = self.make_optimizer(parameters)
            return optimizer, self.make_scheduler(optimizer) if self.make_scheduler else None
        except ValueError as error:  # of a number that torch does not take
            raise InputError(f"optimizer or scheduler: {error}") from error

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self.loggers:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            self._gradient_norms.append(get_total_norm(gradients).detach())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CHECKPOINT_KEY] = self.config  # so that evaluation and prediction need the checkpoint alone

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the settings of this run count, where what Lightning restores was made by those of the checkpoint."""
        trained = checkpoint[CHECKPOINT_KEY]
        if any(trained[key] != self.config[key] for key in ("optimizer", "scheduler")):
            self._apply_settings(checkpoint)
        if TRAINED in checkpoint and not self.config["callbacks"].get("weight_averaging"):
            checkpoint["state_dict"] = checkpoint.pop(TRAINED)
        for state in (checkpoint["state_dict"], checkpoint.get(TRAINED, {})):
            if state:
                state |= {"node_class_weight": self.node_class_weight, "edge_class_weight": self.edge_class_weight}
                state["learned"] = state["learned"] | self.learned.to(state["learned"].device)
        if judged_anew(trained, self.config):
            states = checkpoint.get("callbacks", {}).items()
            best = ("best_model_path", "wait_count")  # of Checkpoint, of EarlyStopping
            checkpoint["callbacks"] = {key: state for key, state in states if not state.keys() & set(best)}

    def _apply_settings(self, checkpoint: dict[str, Any]) -> None:
        """Give the optimiser and the schedule the settings that they would have if this run had made all the epochs.

        The optimiser's momenta stay.
        """
        trained, epochs = checkpoint[CHECKPOINT_KEY], whole_epochs(checkpoint)
        before, now = (config["optimizer"].get("_target_") for config in (trained, self.config))
        if before != now:
            raise InputError(f"optimizer: {now} cannot go on from the state of {before}; leave it, or ckpt_path, out")
        (saved,) = checkpoint["optimizer_states"]
        # The settings do not depend on the weights: one weight stands for those of each group.
        weights = [torch.zeros(1, requires_grad=True) for _ in saved["param_groups"]]
        optimizer, schedule = self._make_optimizer([{"params": [weight]} for weight in weights])
        for weight in weights:
            weight.grad = torch.zeros(1)
        optimizer.step()
        needed = {name for state in optimizer.state.values() for name in state}
        if lacking := sorted(needed.difference(*saved["state"].values()) if saved["state"] else ()):
            raise InputError(f"optimizer: needs {', '.join(lacking)} of all steps before, which was not kept")
        try:
            for _ in range(epochs if schedule else 0):
                schedule.step()  # type: ignore[union-attr]
        except ValueError as error:  # of a schedule that has an end
            raise InputError(f"scheduler: does not go on after {epochs} epochs ({error})") from error
        for group, new in zip(saved["param_groups"], optimizer.state_dict()["param_groups"], strict=True):
            group |= {**new, "params": group["params"]}
        checkpoint["lr_schedulers"] = [schedule.state_dict()] if schedule else []

    def on_train_epoch_start(self) -> None:
        self._start, self._rate = time.perf_counter(), float(self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]

    def on_validation_epoch_start(self) -> None:
        self._expect_finite_losses("train")  # before weights that are NaN are validated

    def on_validation_epoch_end(self) -> None:
        scores = self._log_losses("valid")
        heads = self._heads("valid")
        for head in heads:
            margins, label = self._outcome("valid", head).compute()
            # Every checkpoint has the temperatures that its own weights need.
            row = HEADS.index(head)
            self.temperature[row] = fit_temperature(margins, label, otherwise=float(self.temperature[row]))
            scores |= self._scores("valid", head)
        precisions = [scores[f"valid/{head}_average_precision"] for head in heads]
        precisions += [scores["valid/type_accuracy"]] if "valid/type_accuracy" in scores else []
        scores["valid/average_precision"] = fmean([p for p in precisions if not math.isnan(p)] or [math.nan])
        self.log_dict(scores, sync_dist=True)  # equal in all processes; through Lightning, as callbacks monitor them

    def on_train_epoch_end(self) -> None:
        seconds = time.perf_counter() - self._start
        images = sum(int(row[-1]) for row in self._losses["train"]) * self.trainer.world_size
        self._log_losses("train")
        values = {"optimizer/learning_rate": self._rate, "time/epoch_seconds": seconds}
        values["time/images_per_second"] = images / seconds
        norms = torch.stack(self._gradient_norms).cpu() if self._gradient_norms else torch.zeros(0)
        norms = norms[norms.isfinite()]  # with half precision, other steps are left out
        if len(norms):
            values["optimizer/gradient_norm"] = float(norms.mean())
        self._gradient_norms.clear()
        for head in self._heads("train"):
            values |= self._scores("train", head)
        # Past Lightning's own log, which takes as long as a layer of the network for every value.
        for logger in self.loggers:
            logger.log_metrics(values, step=self.current_epoch)

    def _scores(self, stage: str, head: str) -> dict[str, float]:
        """Return the scores of one head over an epoch, NaN if undefined, and forget what they were made of."""
        outcome = self._outcome(stage, head)
        margins, label = outcome.compute()
        outcome.reset()
        scores = classification(margins.sigmoid(), label)
        return {f"{stage}/{head}_{name}": math.nan if value is None else value for name, value in scores.items()}

    def _log_losses(self, stage: str) -> dict[str, float]:
        """Log the mean losses of an epoch; return how many types were right, if any were to be told."""
        self._expect_finite_losses(stage)
        steps = self._mean_over_processes(torch.stack(self._losses[stage]))
        self._losses[stage].clear()
        self._names[stage].clear()
        means = (steps[:, :-1] * steps[:, -1:]).sum(0) / steps[:, -1].sum()
        self.log(f"{stage}/loss", means[0], prog_bar=True, sync_dist=True)
        heads = [*self._heads(stage), *([TYPE] if self._types[stage] else [])]
        losses = {f"{stage}/{head}_loss": means[1 + (*HEADS, TYPE).index(head)] for head in heads}
        self.log_dict(losses, sync_dist=True)
        self.log("step", float(self.current_epoch), sync_dist=True)  # Lightning's name for the loggers' x axis
        if not self._types[stage]:
            return {}
        right, known = self._mean_over_processes(torch.stack(self._types[stage]).sum(dim=0).float()).tolist()
        self._types[stage].clear()
        accuracy = {f"{stage}/type_accuracy": right / known if known else math.nan}
        self.log_dict(accuracy, sync_dist=True)
        return accuracy

    def _expect_finite_losses(self, stage: str, since: int = 0) -> None:
        """Name the images of the first step of an epoch, from one on, whose loss is not finite; in every process."""
        if not self._losses[stage]:
            return
        losses = self._mean_over_processes(torch.stack([row[0] for row in self._losses[stage][since:]]))
        if losses.isfinite().all():
            return
        step = since + int((~losses.isfinite()).nonzero()[0])
        found = [(float(self._losses[stage][step][0]), self._names[stage][step])] * self.trainer.world_size
        if len(found) > 1:
            distributed.all_gather_object(found, found[0])
        bad = [(value, names) for value, names in found if not math.isfinite(value)]
        names = sorted({name for _, part in bad for name in part})
        what = {"train": "training", "valid": "validation"}[stage]
        raise LossError(
            f"the {what} loss is {bad[0][0]} in epoch {self.current_epoch} (the first is 0), step {step}, at "
            f"{', '.join(names)}, expected a finite number; set optimizer.lr lower, or look at what these images hold"
        )

    def _mean_over_processes(self, value: Tensor) -> Tensor:
        return cast(Tensor, self.trainer.strategy.reduce(value.clone()))  # which works in place


def whole_epochs(checkpoint: Mapping[str, Any]) -> int:
    """Return how many epochs a checkpoint has had."""
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


JUDGED_BY = (
    *("callbacks.checkpoint.monitor", "callbacks.checkpoint.mode"),
    *(f"data.{name}" for name in ("image_dir", "grace_dir", "valid_image_dir", "valid_grace_dir")),
)
"""Settings that make the score of an epoch."""


def judged_anew(trained: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Return which settings of two configurations make the scores of their epochs incomparable."""

    def value(of: Mapping[str, Any], key: str) -> Any:
        found = selected(of, key)
        return Path(found).resolve() if found and key.endswith("_dir") else found  # however the folder is written

    return [key for key in JUDGED_BY if value(trained, key) != value(config, key)]


def margin(logits: Tensor) -> Tensor:
    """Return the log-odds of the positive class: (M, 2) to (M,)."""
    return logits[:, 1] - logits[:, 0]


def summed_cross_entropy(logits: Tensor, label: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the sum of the cross-entropy over everything that is labelled, and its number (or sum of weights).

    From logits (M, 2), labels (M,) int64, and weights of the classes (2,) or None.
    """
    total = functional.cross_entropy(logits, label, weight, ignore_index=Label.UNKNOWN, reduction="sum")
    known = (label != Label.UNKNOWN).to(total.dtype)
    if weight is not None:
        known = known * weight[label.clamp(max=1)]
    return total, known.sum()


def balanced_weights(counts: Tensor) -> Tensor:
    """Return weights inversely proportional to classes' counts (2,), 1 on the mean; 1 each if a class never occurs."""
    weights = counts.sum() / (2 * counts.clamp(min=1))
    return torch.where((counts > 0).all(), weights, torch.ones(2)).float()
