"""Filaments of one micrograph: the one way from an image and detections to filaments."""

import warnings
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from grace_lightning.checkpoint import (
    Checkpoints,
    Config,
    build_linker,
    checkpoint_paths,
    load_module,
    polarity_of_training,
    same_in_all,
    scale_of_training,
)
from grace_lightning.clean import cleaned
from grace_lightning.config import check_value
from grace_lightning.data import GraphData, as_seen, graph_data
from grace_lightning.errors import InputError, InputWarning
from grace_lightning.estimate import estimate
from grace_lightning.features.crops import node_patches
from grace_lightning.graph import (
    HEADS,
    NODE_HEADS,
    TYPE,
    Filament,
    Graph,
    Ints,
    Sample,
    distinct,
    expect_inside,
    from_detections,
)
from grace_lightning.link import Linker
from grace_lightning.measure import apparent_width
from grace_lightning.module import GraceModule
from grace_lightning.ridges import LEAST_SCALE, Polarity, RidgeDetector

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
    width: float = float("nan")  # of the mean profile across them, pixels; NaN without filaments


class Prepared(NamedTuple):
    """A micrograph on its way to the networks."""

    data: list[GraphData]  # the image and the graph of distinct detections as each network takes them
    graph: Graph  # of M distinct detections
    pos: Tensor  # (N, 2) float32, pixels, of all detections
    confidence: Tensor  # (N,) float32
    rows: Tensor  # (M,) int64, the detection that each node is
    place: Tensor  # (N,) int64, the node that each detection is one with
    image: NDArray[np.float32]  # (h, w), as the first network sees it
    factor: float  # by how much that is enlarged


class Predictor(nn.Module):
    """Finds filaments in micrographs with a trained network, or with several: then with the mean of their log-odds.

    ``scale`` is the width of a filament in the images to come, pixels, and ``polarity`` says what filaments are there:
    the networks are shown the image resampled so that filaments are as wide as in training, and negated if they are
    bright. None: as in training, which has to be the same for all networks. A network that was trained on images of
    many kinds, such as ``general``, needs both; :func:`grace_lightning.estimate.estimate` tells them from the images.
    """

    def __init__(
        self,
        modules: Sequence[GraceModule],
        linker: Linker,
        scale: float | None = None,
        polarity: Polarity | None = None,
    ) -> None:
        super().__init__()
        self.networks = cast(Sequence[GraceModule], nn.ModuleList(modules).eval())
        self.linker = linker
        self.configs = [module.config for module in modules]
        self.scale, self.polarity = _of_filaments(modules, scale, polarity)

    @classmethod
    def from_checkpoint(
        cls,
        path: Checkpoints,
        *,
        scale: float | None = None,
        polarity: Polarity | None = None,
        link: Config | None = None,
        trust: str | Sequence[str] | None = None,
    ) -> "Predictor":
        """Return the predictor of a checkpoint, on the CPU; ``.to("cuda")`` moves it.

        Parameters
        ----------
        path : of a run's ``model/best.ckpt``, its folder, a sweep's folder, or several, whose log-odds are averaged;
            ``general`` is the network of the package
        scale : width of a filament in the images to come, pixels; None: as in training
        polarity : whether filaments are dark or bright there; None: as in training
        link : configuration of the linker; None: as the first checkpoint has it
        trust : packages beside this one whose classes a checkpoint may name

        Raises an :class:`InputError` if a checkpoint is damaged or not of this package, or names other classes.
        """
        return cls.of_networks(load_networks(path, trust), scale=scale, polarity=polarity, link=link)

    @classmethod
    def of_networks(
        cls,
        modules: Sequence[GraceModule],
        *,
        scale: float | None = None,
        polarity: Polarity | None = None,
        link: Config | None = None,
    ) -> "Predictor":
        """Return the predictor of trained networks; see :meth:`from_checkpoint`."""
        scale, polarity = _of_filaments(modules, scale, polarity)  # before the linker, which says less about them
        return cls(modules, build_linker(link, modules[0].config, scale), scale, polarity)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        # Not module.device: Lightning does not notice if it is moved as a part of this one.
        return self.networks[0].temperature.device

    @property
    def frame(self) -> int | Literal["mean"] | None:
        """What the networks took of an image stack in training."""
        return frame_of_training(self.networks)

    def forward(
        self, image: ArrayLike | Tensor, pos: ArrayLike | Tensor | None = None, confidence: Any = None
    ) -> Findings:
        """Find the filaments of one micrograph.

        Parameters
        ----------
        image : (H, W) or (1, H, W), any real numbers; row 0 is y = 0
        pos : (N, 2) pixels, columns x and y; N may be 0. None: points along the ridges of the image
        confidence : (N,) the detector's scores, or None

        Raises an :class:`InputError` for other shapes, values that are not finite, and detections outside the image.
        """
        pixels = _pixels(image)
        if pos is None:
            return self.find(self.prepare(pixels := cleaned(pixels, "image"), *self.detect(pixels)))
        points = _tensor(pos, "pos")
        points = points.reshape(0, 2) if not points.numel() else points
        if points.ndim != 2 or points.shape[1] != 2:
            raise InputError(f"pos: shape {tuple(points.shape)}, expected (N, 2): columns x and y")
        scores = None if confidence is None else _tensor(confidence, "confidence")
        if scores is not None and scores.shape != (len(points),):
            raise InputError(f"confidence: shape {tuple(scores.shape)}, expected ({len(points)},)")
        return self.find(self.prepare(cleaned(pixels, "image"), points, scores))

    def detect(self, image: Tensor, detector: RidgeDetector | None = None) -> tuple[Tensor, Tensor]:
        """Find detections along the ridges of an image (1, H, W): positions (N, 2), and confidence (N,), float32.

        Without a ``detector``, ridges of this predictor's width and polarity are looked for.
        """
        detector = detector or RidgeDetector(scale=max(self.scale, LEAST_SCALE), polarity=self.polarity)
        found = torch.from_numpy(detector(image, self.device).to_numpy(np.float32).copy())
        return found[:, :2], found[:, 2]

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
        ((seen, _, _),) = data[0].images()
        confidence = torch.ones(len(pos)) if confidence is None else confidence
        factor = self.networks[0].features.scale / self.scale
        return Prepared(data, graph, pos, confidence, rows, place, seen[0].numpy(), factor)

    def as_taken_by(self, module: GraceModule, sample: Sample) -> GraphData:
        """Return a sample, its image not yet flattened, as a network takes it: filaments look as in its training."""
        factor, trained = module.features.scale / self.scale, module.config["data"]
        hops = {key: trained[key] for key in ("num_hops", "connection") if key in trained}
        return graph_data(as_seen(sample, module.features.sigma, factor, self.polarity), **hops)

    def probabilities(self, data: Sequence[GraphData]) -> dict[str, Tensor]:
        """Return the mean of the networks for one micrograph, given as each network takes it."""
        ((image, pos, edges),), width = data[0].images(), self.networks[0].features.scale
        shown = node_patches(image, pos, size=width, samples=5).flatten(1).any(dim=1)  # False where it is blank
        there = [copy(one).to(self.device) for one in data]  # which works in place
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
        types = [part[TYPE] for part in said if TYPE in part]
        if len({part.shape for part in types}) > 1:
            raise InputError("checkpoint: the networks tell different numbers of types apart; give one of them")
        return ({TYPE: torch.stack(types).mean(dim=0)} if types else {}) | {
            head: torch.where(shown if head in NODE_HEADS else shown[edges].all(dim=0), probability, 0.0)
            for head, probability in mean.items()
        }

    def link(self, graph: Graph, probabilities: Probabilities) -> list[Filament]:
        """Make filaments of probabilities."""
        return link_filaments(self.linker, graph, probabilities)

    def find(self, prepared: Prepared) -> Findings:
        """Find the filaments of a prepared micrograph."""
        return findings_of(prepared, self.probabilities(prepared.data), self.linker, self.scale)


def findings_of(prepared: Prepared, said: Probabilities, linker: Linker, scale: float) -> Findings:
    """Return what networks ``said`` of a prepared micrograph's nodes (N,) and edges (E,), and the filaments of it.

    ``scale`` is the width of a filament, pixels. The :attr:`Prepared.data` are not needed any more.
    """
    graph, rows, place, factor = prepared.graph, prepared.rows, prepared.place, prepared.factor
    # The detections by their nodes; at each node, first the one that it is.
    order = np.lexsort((rows[place] != torch.arange(len(place)), place))
    start = np.concatenate([[0], np.cumsum(np.bincount(place.numpy(), minlength=graph.num_nodes))])
    filaments = link_filaments(linker, graph, said)
    if TYPE in said:
        filaments = [_typed(filament, said[TYPE].argmax(dim=1).numpy() + 1) for filament in filaments]
    paths = [(filament.path + 0.5) * factor - 0.5 for filament in filaments]
    return Findings(
        graph=Graph(prepared.pos, torch.from_numpy(order[start[graph.edges]]), confidence=prepared.confidence),
        node_probability=said["node"][place],
        edge_probability=said["edge"],
        filaments=[_of_detections(filament, order, start) for filament in filaments],
        width=apparent_width(prepared.image, paths, factor * scale) / factor,
    )


def load_networks(path: Checkpoints, trust: str | Sequence[str] | None = None) -> list[GraceModule]:
    """Return the trained networks of checkpoints, on the CPU; see :meth:`Predictor.from_checkpoint`."""
    packages = [trust] if isinstance(trust, str) else trust or ()
    modules = [load_module(one, packages) for one in checkpoint_paths(path)]
    if not modules:
        raise InputError("checkpoint: none, expected one or more")
    return modules


def frame_of_training(modules: Sequence[GraceModule]) -> int | Literal["mean"] | None:
    """Return what networks took of an image stack in training."""
    frames = [module.config["data"].get("frame") for module in modules]
    return same_in_all(frames, "data.frame", "give frame")  # type: ignore[no-any-return]


def _of_filaments(
    modules: Sequence[GraceModule], scale: float | None, polarity: Polarity | None
) -> tuple[float, Polarity | None]:
    """Return the width of filaments, pixels, and what they are, as in training if that is not given."""
    check_value(polarity, Polarity | None, "polarity")
    _expect_width(scale, modules)
    configs = [module.config for module in modules]
    given = scale or scale_of_training(configs), polarity or polarity_of_training(configs)
    for key, value in zip(("features.scale", "polarity"), given, strict=True):
        if value == "auto":
            raise InputError(
                f"{key}: is not given, and the network was trained on images of many kinds; "
                "grace_lightning.estimate.estimate(images) tells scale and polarity of filaments"
            )
    return given  # type: ignore[return-value]


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


def _typed(filament: Filament, node_type: Ints) -> Filament:
    """Give a filament the type of most of its nodes, from the types of all nodes (M,), from 1."""
    number = np.bincount(node_type[filament.node])
    return replace(filament, type=int(number.argmax()), type_share=float(number.max() / number.sum()))


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
    pos: ArrayLike | Tensor | None = None,
    *,
    scale: float | None = None,
    polarity: Polarity | None = None,
) -> list[Filament]:
    """Find the filaments of one micrograph; see :meth:`Predictor.from_checkpoint` and :meth:`Predictor.forward`.

    Instead of a checkpoint, a :class:`Predictor` may be given, so that it is read once for many micrographs. If the
    network was trained on images of many kinds, ``scale`` and ``polarity`` that are not given are estimated.
    """
    check_value(scale, float | None, "scale")
    if isinstance(checkpoint, Predictor):
        if scale is not None or polarity is not None:
            key = "polarity" if scale is None else "scale"
            raise InputError(f"{key}: is set already by the Predictor; give it to Predictor.from_checkpoint")
        predictor = checkpoint
    else:
        modules = load_networks(checkpoint)
        configs = [module.config for module in modules]
        if "auto" in (scale or scale_of_training(configs), polarity or polarity_of_training(configs)):
            found = estimate([cleaned(_pixels(image), "image")], scale, polarity)
            scale, polarity = found.scale, found.polarity
        predictor = Predictor.of_networks(modules, scale=scale, polarity=polarity)
    findings: Findings = predictor(image, pos)
    return findings.filaments


def _pixels(image: ArrayLike | Tensor) -> Tensor:
    pixels = _tensor(image, "image")
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or len(pixels) != 1 or not pixels.numel():
        raise InputError(f"image: shape {tuple(pixels.shape)}, expected (H, W)")
    return pixels


def _tensor(values: Any, name: str) -> Tensor:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name}: {array.dtype}, expected an array of real numbers")
    array = np.array(array, dtype=np.float32)
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise InputError(f"{name}: {count} values are NaN or infinite, expected finite numbers")
    return torch.from_numpy(array)
