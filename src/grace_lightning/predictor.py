"""Filaments of one micrograph: the one way from an image and detections to filaments."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from grace_lightning.checkpoint import Checkpoints, Config, build_linker, checkpoint_paths, load_module, same_in_all
from grace_lightning.clean import cleaned
from grace_lightning.config import check_value
from grace_lightning.data import GraphData, graph_data
from grace_lightning.errors import InputError, InputWarning
from grace_lightning.features.crops import node_patches
from grace_lightning.flatten import flattened, magnified
from grace_lightning.graph import (
    HEADS,
    NODE_HEADS,
    Filament,
    Graph,
    Ints,
    Sample,
    distinct,
    expect_inside,
    from_detections,
)
from grace_lightning.link import Linker
from grace_lightning.module import GraceModule

SURE = 1e-6
"""Probabilities closer to 0 or 1 count as this, so that one network, sure beyond measure, does not outvote others."""

NEAR = 0.15
"""Detections within so many filament widths of each other are one node: of picks that come twice, a pixel apart, every
filament would be found twice. Pickers and ridge detectors place points further apart than .2."""

MANY = 0.1
"""If more than this part of the detections are one node with another, a warning says so."""

RANGE = 100
"""Filaments in the images may be up to so many times wider or thinner than in training."""

Probabilities = Mapping[str, Tensor]
"""By head, (N,) or (E,) float32; ``node`` and ``edge`` are always there, other heads if a network learned them."""


@dataclass(frozen=True)
class Findings:
    """Everything that was found in one micrograph; nodes are the detections, in the order in which they were given.

    Of several within :data:`NEAR` filament widths the most confident has the edges, of equals at one place the first;
    the others have its probability, and all are members of a filament there. The probabilities are of lying on a
    filament, (N,) and (E,) float32.
    """

    graph: Graph
    node_probability: Tensor
    edge_probability: Tensor
    filaments: list[Filament]


class Prepared(NamedTuple):
    """A micrograph on its way to the networks."""

    data: list[GraphData]  # the image and the graph of distinct detections as each network takes them
    graph: Graph  # of M distinct detections
    pos: Tensor  # (N, 2) float32, pixels, of all detections
    confidence: Tensor  # (N,) float32
    rows: Tensor  # (M,) int64, the detection that each node is
    place: Tensor  # (N,) int64, the node that each detection is one with


class Predictor(nn.Module):
    """Finds filaments in micrographs with a trained network, or with several: then with the mean of their log-odds.

    ``scale`` is the width of a filament in the images to come, pixels; None: as in training, which has to be one width
    for all networks. Each network is shown the image resampled so that filaments are as wide as in its training.
    """

    def __init__(self, modules: Sequence[GraceModule], linker: Linker, scale: float | None = None) -> None:
        super().__init__()
        self.networks = cast(Sequence[GraceModule], nn.ModuleList(modules).eval())
        self.linker = linker
        self.configs = [module.config for module in modules]
        _expect_width(scale, modules)
        self.scale: float = scale or same_in_all(self.configs, "features.scale", "give features.scale")
        """Width of a filament, pixels."""

    @classmethod
    def from_checkpoint(
        cls,
        path: Checkpoints,
        *,
        scale: float | None = None,
        link: Config | None = None,
        trust: str | Sequence[str] | None = None,
    ) -> "Predictor":
        """Return the predictor of a checkpoint, on the CPU; ``.to("cuda")`` moves it.

        Parameters
        ----------
        path : of a run's ``model/best.ckpt``, its folder, a sweep's folder, or several, whose log-odds are averaged
        scale : width of a filament in the images to come, pixels; None: as in training
        link : configuration of the linker; None: as the first checkpoint has it
        trust : packages beside this one whose classes a checkpoint may name

        Raises an :class:`InputError` if a checkpoint is damaged or not of this package, or names other classes.
        """
        packages = [trust] if isinstance(trust, str) else trust or ()
        modules = [load_module(one, packages) for one in checkpoint_paths(path)]
        if not modules:
            raise InputError("checkpoint: none, expected one or more")
        _expect_width(scale, modules)  # before the linker, which says less about it
        return cls(modules, build_linker(link, modules[0].config, scale), scale)

    @property
    def frame(self) -> int | Literal["mean"] | None:
        """What the networks took of an image stack in training."""
        return same_in_all(self.configs, "data.frame", "give frame")  # type: ignore[no-any-return]

    def forward(self, image: ArrayLike | Tensor, pos: ArrayLike | Tensor, confidence: Any = None) -> Findings:
        """Find the filaments of one micrograph.

        Parameters
        ----------
        image : (H, W) or (1, H, W), any real numbers; row 0 is y = 0
        pos : (N, 2) pixels, columns x and y; N may be 0
        confidence : (N,) the detector's scores, or None

        Raises an :class:`InputError` for other shapes, values that are not finite, and detections outside the image.
        """
        pixels = _tensor(image, "image")
        pixels = pixels[None] if pixels.ndim == 2 else pixels
        if pixels.ndim != 3 or len(pixels) != 1 or not pixels.numel():
            raise InputError(f"image: shape {tuple(pixels.shape)}, expected (H, W)")
        points = _tensor(pos, "pos")
        points = points.reshape(0, 2) if not points.numel() else points
        if points.ndim != 2 or points.shape[1] != 2:
            raise InputError(f"pos: shape {tuple(points.shape)}, expected (N, 2): columns x and y")
        scores = None if confidence is None else _tensor(confidence, "confidence")
        if scores is not None and scores.shape != (len(points),):
            raise InputError(f"confidence: shape {tuple(scores.shape)}, expected ({len(points)},)")
        return self.find(self.prepare(cleaned(pixels, "image"), points, scores))

    def prepare(self, image: Tensor, pos: Tensor, confidence: Tensor | None = None, name: str = "") -> Prepared:
        """Build the graph and flatten the image, on the CPU; arguments as for :meth:`forward`, as float32 tensors."""
        expect_inside(pos, (image.shape[1], image.shape[2]))
        rows, place = distinct(pos, NEAR * self.scale, confidence)
        if (near := len(distinct(pos)[0]) - len(rows)) > MANY * len(pos):
            found = f"{near} of {len(pos)} detections lie within {NEAR * self.scale:.3g} pixels of another one"
            hint = f"are filaments {self.scale:g} pixels wide, as features.scale says?"
            warnings.warn(f"{name or 'pos'}: {found} and are one node with it; {hint}", InputWarning, stacklevel=2)
        graph = from_detections(pos[rows])[0]
        data = [self.as_taken_by(module, Sample(name, image, graph)) for module in self.networks]
        return Prepared(data, graph, pos, torch.ones(len(pos)) if confidence is None else confidence, rows, place)

    def as_taken_by(self, module: GraceModule, sample: Sample) -> GraphData:
        """Return a sample, its image not yet flattened, as a network takes it: at the magnification of its training."""
        factor, trained = module.features.scale / self.scale, module.config["data"]
        hops = {key: trained[key] for key in ("num_hops", "connection") if key in trained}
        image = flattened(magnified(sample.image, factor), module.features.sigma)
        data = graph_data(sample.replace(image=image), **hops)
        if factor != 1:
            data.pos = (data.pos + 0.5) * factor - 0.5
        return data

    def probabilities(self, data: Sequence[GraphData]) -> dict[str, Tensor]:
        """Return the mean of the networks for one micrograph, given as each network takes it."""
        ((image, pos, edges),), width = data[0].images(), self.networks[0].features.scale
        shown = node_patches(image, pos, size=width, samples=5).flatten(1).any(dim=1)  # False where it is blank
        # Not module.device: Lightning does not notice if it is moved as a part of this one.
        devices = [module.temperature.device for module in self.networks]
        there = [one.to(device) for one, device in zip(data, devices, strict=True)]
        said = [module.probabilities(one) for module, one in zip(self.networks, there, strict=True)]
        if not all(values.isfinite().all() for by_head in said for values in by_head.values()):
            raise InputError(
                "checkpoint: the network gives NaN for probabilities; are its weights as they were trained?"
            )
        by_head = {head: [part[head] for part in said if head in part] for head in HEADS}
        mean = {
            head: torch.stack(parts).double().logit(eps=SURE).mean(dim=0).sigmoid().float() if parts[1:] else parts[0]
            for head, parts in by_head.items()
            if parts
        }
        return {
            head: torch.where(shown if head in NODE_HEADS else shown[edges].all(dim=0), probability, 0.0)
            for head, probability in mean.items()
        }

    def link(self, graph: Graph, probabilities: Probabilities) -> list[Filament]:
        """Make filaments of probabilities."""
        return link_filaments(self.linker, graph, probabilities)

    def find(self, prepared: Prepared) -> Findings:
        """Find the filaments of a prepared micrograph."""
        graph, rows, place = prepared.graph, prepared.rows, prepared.place
        said = self.probabilities(prepared.data)
        # The detections by their nodes; at each node, first the one that it is.
        order = np.lexsort((rows[place] != torch.arange(len(place)), place))
        start = np.concatenate([[0], np.cumsum(np.bincount(place.numpy(), minlength=graph.num_nodes))])
        return Findings(
            graph=Graph(prepared.pos, torch.from_numpy(order[start[graph.edges]]), confidence=prepared.confidence),
            node_probability=said["node"][place],
            edge_probability=said["edge"],
            filaments=[_of_detections(filament, order, start) for filament in self.link(graph, said)],
        )


def _expect_width(scale: float | None, modules: Sequence[GraceModule]) -> None:
    """Refuse a width of filaments, pixels, that is far from those that the networks were trained with."""
    check_value(scale, float | None, "features.scale")
    for trained in (module.features.scale for module in modules):
        if scale is not None and not trained / RANGE <= scale <= trained * RANGE:
            expected = f"expected {trained / RANGE:g} to {trained * RANGE:g} pixels"
            raise InputError(f"features.scale: {scale:g}, {expected}, since the network was trained with {trained:g}")


def link_filaments(linker: Linker, graph: Graph, probabilities: Probabilities) -> list[Filament]:
    """Make filaments of probabilities; if a network tells edges along one filament from others, these count."""
    further = [probabilities[head] for head in ("two_filaments", "three_filaments") if head in probabilities]
    return linker(
        graph.pos,
        graph.edges,
        probabilities["node"],
        probabilities.get("same_filament", probabilities["edge"]),
        probabilities.get("end"),
        torch.stack(further, dim=1) if further else None,
    )


def _of_detections(filament: Filament, order: Ints, start: Ints) -> Filament:
    """Name the detections in the place of nodes: the first of each node of the path, all of them as members.

    ``order`` (N,) has the detections by their nodes, of which node k's begin at ``start[k]`` (M + 1,).
    """
    first, count = start[filament.members], np.diff(start)[filament.members]
    nth = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return replace(filament, node=order[start[filament.node]], members=order[np.repeat(first, count) + nth])


def predict(
    checkpoint: Checkpoints | Predictor,
    image: ArrayLike | Tensor,
    pos: ArrayLike | Tensor,
    *,
    scale: float | None = None,
) -> list[Filament]:
    """Find the filaments of one micrograph; see :meth:`Predictor.from_checkpoint` and :meth:`Predictor.forward`.

    Instead of a checkpoint, a :class:`Predictor` may be given, so that it is read once for many micrographs.
    """
    check_value(scale, float | None, "scale")
    if isinstance(checkpoint, Predictor) and scale is not None:
        raise InputError("scale: is set already by the Predictor; give it to Predictor.from_checkpoint")
    predictor = checkpoint if isinstance(checkpoint, Predictor) else Predictor.from_checkpoint(checkpoint, scale=scale)
    findings: Findings = predictor(image, pos)
    return findings.filaments


def _tensor(values: Any, name: str) -> Tensor:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name}: {array.dtype}, expected an array of real numbers")
    array = np.array(array, dtype=np.float32)
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise InputError(f"{name}: {count} values are NaN or infinite, expected finite numbers")
    return torch.from_numpy(array)
