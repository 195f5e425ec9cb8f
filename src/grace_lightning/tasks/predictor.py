"""Filaments of one micrograph, from Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch_geometric.data import Batch

from grace_lightning.config import check_value
from grace_lightning.data import GraphData, prepare
from grace_lightning.errors import InputError
from grace_lightning.graph import Graph, Sample, from_detections, with_candidates
from grace_lightning.io import Filament
from grace_lightning.link import Filaments, Linker
from grace_lightning.module import GraceModule, Prediction, mean_prediction
from grace_lightning.tasks.common import Checkpoints, Config, checkpoint_paths, same_in_all
from grace_lightning.tasks.evaluate import build_linker, load_module


@dataclass(frozen=True)
class Findings:
    """What was found in one micrograph; nodes are the detections, in the order in which they were given.

    Parameters
    ----------
    graph : of N detections, no labels; where several lie at one place, the first of them has the edges
    node_probability, edge_probability : (N,) and (E,) float32, of lying on a filament
    filaments : their nodes; detections at the place of a filament's node are in it too, ``beside`` its path
    """

    graph: Graph
    node_probability: Tensor
    edge_probability: Tensor
    filaments: Filaments

    @property
    def paths(self) -> list[Filament]:
        """The filaments' paths in pixels, scored by the probabilities of their nodes."""
        return self._filaments(self.filaments.paths)

    @property
    def members(self) -> list[Filament]:
        """As :attr:`paths`, with the nodes beside them."""
        return self._filaments(self.filaments.nodes)

    def _filaments(self, nodes: Sequence[NDArray[np.int64]]) -> list[Filament]:
        pos, score = self.graph.pos.numpy(), self.node_probability.numpy()
        closed = self.filaments.closed.tolist()
        return [Filament(pos[n], score[n], n, c) for n, c in zip(nodes, closed, strict=True)]


class Prepared:
    """A micrograph as the network takes it; no dataclass, as Lightning would copy that field by field.

    Parameters
    ----------
    data : what the features of each network extracted of the distinct detections; moves to the device, the rest stays
    graph : of M distinct detections
    pos : (N, 2) float32, pixels, of all detections
    confidence : (N,) float32
    rows : (M,) int64, the first detection at each node
    place : (N,) int64, the node at which each detection lies
    """

    def __init__(
        self,
        data: Sequence[GraphData],
        graph: Graph,
        pos: Tensor,
        confidence: Tensor,
        rows: Tensor,
        place: Tensor,
    ) -> None:
        self.data, self.graph = data, graph
        self.pos, self.confidence = pos, confidence
        self.rows, self.place = rows, place

    @property
    def duplicates(self) -> int:
        """Number of detections that lie exactly on an earlier one."""
        return len(self.place) - len(self.rows)

    def to(self, device: torch.device | str) -> Prepared:
        """The same with its data on ``device``."""
        data = [one.to(device) for one in self.data]
        return Prepared(data, self.graph, self.pos, self.confidence, self.rows, self.place)


class Predictor(nn.Module):
    """Finds filaments in micrographs with a trained network, or with several: then with the mean of their log-odds.

    Parameters
    ----------
    modules : the trained networks with their features, one or more
    linker : makes filaments of their probabilities

    Raises
    ------
    InputError
        Networks for filaments of different widths, or for different graphs.
    """

    def __init__(self, modules: Sequence[GraceModule], linker: Linker) -> None:
        super().__init__()
        self.members = nn.ModuleList(modules).eval()
        self.linker = linker
        self.configs = [module.config for module in modules]
        self.scale: float = same_in_all(self.configs, "features.scale", "give features.scale")
        """Width of a filament, pixels."""
        self.max_candidate: float | None = same_in_all(self.configs, "data.max_candidate", "they see different graphs")

    @classmethod
    def from_checkpoint(cls, path: Checkpoints, *, scale: float | None = None, link: Config | None = None) -> Predictor:
        """The predictor of a checkpoint, on the CPU; ``.to("cuda")`` moves it.

        Parameters
        ----------
        path : of a run's ``model/best.ckpt``, its folder, that of a sweep, or several, whose log-odds are averaged
        scale : width of a filament in the images to come, pixels; None: as in training
        link : configuration of the linker; None: as the first checkpoint has it

        Raises
        ------
        InputError
            Not a checkpoint of this package, a damaged one, or one that names classes of another package; several that
            were trained for filaments of different widths while no ``scale`` is given, or for different graphs.
        """
        modules = [load_module(one, scale=scale) for one in checkpoint_paths(path)]
        if not modules:
            raise InputError("checkpoint: none, expected one or more")
        return cls(modules, build_linker(link, modules[0].config))

    @property
    def frame(self) -> int | Literal["mean"] | None:
        """What the networks took of an image stack in training."""
        return same_in_all(self.configs, "data.frame", "give frame")  # type: ignore[no-any-return]

    def forward(self, image: ArrayLike | Tensor, pos: ArrayLike | Tensor, confidence: Any = None) -> Findings:
        """Filaments of one micrograph.

        Parameters
        ----------
        image : (H, W) or (1, H, W), any real numbers; row 0 is y = 0
        pos : (N, 2) pixels, columns x and y; N may be 0
        confidence : (N,) the detector's scores, or None

        Raises
        ------
        InputError
            Arrays of other shapes, pixels or positions that are not finite, a detection outside the image.
        """
        pixels = _tensor(image, "image")
        pixels = pixels[None] if pixels.ndim == 2 else pixels
        if pixels.ndim != 3 or len(pixels) != 1 or not pixels.numel():
            raise InputError(f"image: shape {tuple(pixels.shape)}, expected (H, W)")
        finite = pixels.isfinite()
        if not finite.all():
            raise InputError(f"image: {int((~finite).sum())} pixels are NaN or infinite, expected finite numbers")
        points = _tensor(pos, "pos")
        points = points.reshape(0, 2) if not points.numel() else points
        if points.ndim != 2 or points.shape[1] != 2:
            raise InputError(f"pos: shape {tuple(points.shape)}, expected (N, 2): columns x and y")
        scores = None if confidence is None else _tensor(confidence, "confidence")
        if scores is not None and scores.shape != (len(points),):
            raise InputError(f"confidence: shape {tuple(scores.shape)}, expected ({len(points)},)")
        device = next(self.parameters()).device
        return self.find(self.prepare(pixels, points, scores).to(device))

    def prepare(self, image: Tensor, pos: Tensor, confidence: Tensor | None = None, name: str = "") -> Prepared:
        """What comes before the networks, on the CPU: the graph, the flattened image, frozen features.

        Parameters
        ----------
        image : (1, H, W) float32
        pos : (N, 2) float32, pixels; detections at one place become one node
        confidence : (N,) float32 or None
        name : of the micrograph
        """
        rows, place = _distinct(pos)
        graph = from_detections(pos[rows])[0]
        if self.max_candidate is not None:
            graph = with_candidates(graph, self.max_candidate)[0]
        sample = Sample(name, image, graph)  # which refuses detections outside the image
        data = [_extracted(member, sample) for member in self.members]  # type: ignore[arg-type]
        scores = torch.ones(len(pos)) if confidence is None else confidence
        return Prepared(data, graph, pos, scores, rows, place)

    @torch.no_grad()
    def probabilities(self, prepared: Prepared) -> Prediction:
        """What the networks say together of one micrograph with one detection at least."""
        pairs = zip(self.members, prepared.data, strict=True)
        return mean_prediction([member.predict_step(data, 0)[0] for member, data in pairs])  # type: ignore[operator]

    @torch.no_grad()
    def find(self, prepared: Prepared) -> Findings:
        """The networks' probabilities, and the filaments they make."""
        rows, place, graph = prepared.rows, prepared.place, prepared.graph
        none = torch.zeros(0)
        prediction = Prediction("", none, none, None, None, None, None, none, none)
        if len(rows):
            prediction = self.probabilities(prepared)
        filaments = prediction.filaments(self.linker, graph)
        return Findings(
            graph=Graph(prepared.pos, rows[graph.edges], confidence=prepared.confidence),
            node_probability=prediction.node_probability[place],
            edge_probability=prediction.edge_probability,
            filaments=_with_duplicates(filaments, place.numpy()),
        )


def predict(
    checkpoint: Checkpoints | Predictor,
    image: ArrayLike | Tensor,
    pos: ArrayLike | Tensor,
    *,
    scale: float | None = None,
) -> list[Filament]:
    """Filaments of one micrograph.

    Parameters
    ----------
    checkpoint : a run's ``model/best.ckpt``, its folder, that of a sweep, or several, whose log-odds are averaged; or,
        so that they are read once for many micrographs, a :class:`Predictor`
    image : (H, W), any real numbers; row 0 is y = 0
    pos : (N, 2) pixels, columns x and y
    scale : width of a filament, pixels; None: as in training

    Returns
    -------
    Per filament its path (P, 2) in pixels, the probabilities and rows of ``pos`` along it, and whether it is closed.

    Raises
    ------
    InputError
        See :meth:`Predictor.from_checkpoint` and :meth:`Predictor.forward`.
    """
    check_value(scale, float | None, "scale")
    if isinstance(checkpoint, Predictor):
        if scale is not None:
            raise InputError("scale: is set already by the Predictor; give it to Predictor.from_checkpoint")
        predictor = checkpoint
    else:
        predictor = Predictor.from_checkpoint(checkpoint, scale=scale)
    findings: Findings = predictor(image, pos)
    return findings.paths


def _extracted(member: GraceModule, sample: Sample) -> GraphData:
    """A batch of one image as a network takes it."""
    trained = member.config["data"]
    hops = {key: trained[key] for key in ("num_hops", "connection") if key in trained}
    sample = sample.replace(image=member.features.preprocess(sample.image))  # type: ignore[operator]
    with torch.no_grad():
        data = prepare(sample, member.features, **hops)  # type: ignore[arg-type]
    return Batch.from_data_list([data])  # type: ignore[no-any-return]


def _tensor(values: Any, name: str) -> Tensor:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name}: {array.dtype}, expected an array of real numbers")
    return torch.from_numpy(np.array(array, dtype=np.float32))


def _distinct(pos: Tensor) -> tuple[Tensor, Tensor]:
    """(M,) the first of the detections at each place, ascending, and (N,) the place of each, as a row of the first."""
    _, first, group = np.unique(pos.numpy(), axis=0, return_index=True, return_inverse=True)
    rank = np.argsort(first, kind="stable")
    number = np.empty_like(rank)
    number[rank] = np.arange(len(rank))
    return torch.from_numpy(first[rank]), torch.from_numpy(number[group.reshape(-1)])


def _with_duplicates(filaments: Filaments, place: NDArray[np.int64]) -> Filaments:
    """Nodes replaced by the detections at their places; all but the first lie beside the path."""
    count = np.bincount(place)
    detections = np.argsort(place, kind="stable")
    start = np.cumsum(count) - count
    times = count[filaments.node] if len(count) else filaments.node
    row = np.repeat(np.arange(len(times)), times)
    nth = np.arange(len(row)) - np.repeat(np.cumsum(times) - times, times)
    return Filaments(
        filament=filaments.filament[row],
        node=detections[start[filaments.node[row]] + nth] if len(count) else filaments.node,
        beside=filaments.beside[row] | (nth > 0),
        closed=filaments.closed,
    )
