"""Filaments of one micrograph: the one way from an image and detections to filaments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from grace_lightning.checkpoint import Checkpoints, Config, build_linker, checkpoint_paths, load_module, same_in_all
from grace_lightning.config import check_value
from grace_lightning.data import GraphData, graph_data
from grace_lightning.errors import InputError
from grace_lightning.features.crops import node_patches
from grace_lightning.flatten import cleaned, flattened
from grace_lightning.graph import HEADS, NODE_HEADS, Filament, Graph, Ints, Sample, expect_inside, from_detections
from grace_lightning.link import Linker
from grace_lightning.module import GraceModule

SURE = 1e-6
"""Probabilities closer to 0 or 1 count as this, so that one network, sure beyond measure, does not outvote others."""

Probabilities = Mapping[str, Tensor]
"""By head, (N,) or (E,) float32; ``node`` and ``edge`` are always there, other heads if a network learned them."""


@dataclass(frozen=True)
class Findings:
    """Everything that was found in one micrograph; nodes are the detections, in the order in which they were given.

    Of several at one place the first has the edges, and all are members of a filament there. The probabilities are of
    lying on a filament, (N,) and (E,) float32.
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
    place: Tensor  # (N,) int64, the node at which each detection lies


class Predictor(nn.Module):
    """Finds filaments in micrographs with a trained network, or with several: then with the mean of their log-odds.

    It is an error if the networks were trained for filaments of different widths.
    """

    def __init__(self, modules: Sequence[GraceModule], linker: Linker) -> None:
        super().__init__()
        self.networks = cast(Sequence[GraceModule], nn.ModuleList(modules).eval())
        self.linker = linker
        self.configs = [module.config for module in modules]
        self.scale: float = same_in_all(self.configs, "features.scale", "give features.scale")
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
        modules = [load_module(one, scale, packages) for one in checkpoint_paths(path)]
        if not modules:
            raise InputError("checkpoint: none, expected one or more")
        return cls(modules, build_linker(link, modules[0].config))

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
        graph, place = from_detections(pos)
        data = []
        for module in self.networks:
            trained = module.config["data"]
            hops = {key: trained[key] for key in ("num_hops", "connection") if key in trained}
            sample = Sample(name, flattened(image, module.features.sigma), graph)
            data.append(graph_data(sample, **hops))
        return Prepared(data, graph, pos, torch.ones(len(pos)) if confidence is None else confidence, place)

    def probabilities(self, data: Sequence[GraphData]) -> dict[str, Tensor]:
        """Return the mean of the networks for one micrograph, given as each network takes it."""
        said = [module.probabilities(one.to(module.device)) for module, one in zip(self.networks, data, strict=True)]
        by_head = {head: [part[head] for part in said if head in part] for head in HEADS}
        mean = {
            head: torch.stack(parts).double().logit(eps=SURE).mean(dim=0).sigmoid().float() if parts[1:] else parts[0]
            for head, parts in by_head.items()
            if parts
        }
        ((image, pos, edges),) = data[0].images()
        shown = node_patches(image, pos, size=self.scale, samples=5).flatten(1).any(dim=1).cpu()  # False where blank
        return {
            head: torch.where(shown if head in NODE_HEADS else shown[edges.cpu()].all(dim=0), probability, 0.0)
            for head, probability in mean.items()
        }

    def link(self, graph: Graph, probabilities: Probabilities) -> list[Filament]:
        """Make filaments of probabilities."""
        return link_filaments(self.linker, graph, probabilities)

    def find(self, prepared: Prepared) -> Findings:
        """Find the filaments of a prepared micrograph."""
        graph, place = prepared.graph, prepared.place
        said = self.probabilities(prepared.data)
        order = torch.argsort(place, stable=True).numpy()  # the detections, by their places
        start = np.concatenate([[0], np.cumsum(np.bincount(place.numpy(), minlength=graph.num_nodes))])
        return Findings(
            graph=Graph(prepared.pos, torch.from_numpy(order[start[graph.edges]]), confidence=prepared.confidence),
            node_probability=said["node"][place],
            edge_probability=said["edge"],
            filaments=[_of_detections(filament, order, start) for filament in self.link(graph, said)],
        )


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
    """Name the detections in the place of nodes: the first at each node of the path, all of them as members.

    ``order`` (N,) has the detections by their places, of which node k's begin at ``start[k]`` (M + 1,).
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
