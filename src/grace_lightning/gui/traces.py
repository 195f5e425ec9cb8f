"""Filaments while somebody puts them right, and what is kept of them; nothing here needs a window."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from skimage.draw import polygon2mask
from torch import Tensor

from grace_lightning import io
from grace_lightning.config import check_value
from grace_lightning.errors import InputError
from grace_lightning.estimate import estimate
from grace_lightning.files import make_folder, short
from grace_lightning.graph import Filament, Floats, Graph, from_detections
from grace_lightning.predictor import Findings, Predictor, load_networks
from grace_lightning.raster import dense, values_at
from grace_lightning.ridges import Polarity, snap_to_ridges
from grace_lightning.tasks.results import Export, Micrograph, write_exports
from grace_lightning.tasks.suggest import doubt
from grace_lightning.truth import draw_lines, label_by_mask, nodes_of_lines, with_unknown

Status = Literal["found", "accepted", "rejected"]
STATUSES = get_args(Status)

MOST = 16
"""So many micrographs are looked at to suggest one."""

KEPT = "grace_annotate"
"""Under this key ``metadata.json`` has what was decided, to go on with."""


class Trace(NamedTuple):
    """A filament that was found or drawn, and what somebody thinks of it."""

    line: Floats  # (P, 2) pixels, columns x and y
    status: Status = "accepted"
    probability: float = 1.0


@dataclass
class History:
    """The traces of one micrograph, and those before each change."""

    now: list[Trace] = field(default_factory=list)
    before: list[list[Trace]] = field(default_factory=list)

    def change(self, traces: list[Trace]) -> None:
        """Make these the traces of now."""
        self.before.append(self.now)
        self.now = traces

    def undo(self) -> bool:
        """Take the last change back; return whether there was one."""
        if self.before:
            self.now = self.before.pop()
            return True
        return False


def nearest(traces: Sequence[Trace], point: Floats) -> tuple[int, float]:
    """Return which trace passes nearest to a point (2,), and how far from it, pixels; -1 if there is none."""
    away = [float(np.hypot(*(_foot(trace.line, point)[1] - point))) for trace in traces]
    return (int(np.argmin(away)), min(away)) if away else (-1, np.inf)


def cut(trace: Trace, point: Floats) -> list[Trace]:
    """Cut a trace where it is nearest to a point (2,); a cut at an end leaves it whole."""
    k, foot = _foot(trace.line, point)
    parts = np.vstack([trace.line[: k + 1], foot]), np.vstack([foot, trace.line[k + 1 :]])
    whole = [trace._replace(line=part) for part in parts]
    return whole if all(np.ptp(part.line, axis=0).any() for part in whole) else [trace]


def joined(one: Trace, other: Trace) -> Trace:
    """Join two traces at those of their ends that are nearest to each other; somebody has said that they are one."""
    a, b = one.line, other.line
    ways = [(a, b), (a, b[::-1]), (a[::-1], b), (a[::-1], b[::-1])]
    first, second = min(ways, key=lambda way: float(np.hypot(*(way[0][-1] - way[1][0]))))
    return Trace(np.vstack([first, second]), "accepted", min(one.probability, other.probability))


def _foot(line: Floats, point: Floats) -> tuple[int, Floats]:
    """Return the nearest point of a line to a point (2,), and after which of its points it lies."""
    start, step = line[:-1], np.diff(line, axis=0)
    along = ((point - start) * step).sum(axis=1) / np.maximum((step**2).sum(axis=1), 1e-12)
    feet = start + np.clip(along, 0, 1)[:, None] * step
    k = int(np.argmin(np.hypot(*(feet - point).T)))
    return k, feet[k]


@dataclass(frozen=True)
class Search:
    """How filaments are looked for."""

    checkpoint: str = "general"
    scale: float | None = None  # width of a filament, pixels; None: estimated
    polarity: Polarity | None = None  # None: estimated
    detections: Path | None = None  # None: along ridges


class Opened(NamedTuple):
    """A micrograph with everything that was found in it."""

    path: Path
    image: Tensor  # (1, H, W) float32
    scale: float  # pixels
    polarity: Polarity | None
    findings: Findings

    def traces(self, beside: Sequence[Trace] = ()) -> list[Trace]:
        """Return the filaments as somebody sees them first, but for those that lie on the traces ``beside`` them."""
        paths = [(_closed(f), float(f.score.mean())) for f in self.findings.filaments if len(f.path) > 1]
        found = [Trace(path, "found", probability) for path, probability in paths]
        if not beside:
            return found
        size = self.image.shape[1], self.image.shape[2]
        taken = draw_lines([trace.line for trace in beside], self.scale, size).numpy() > 0
        return [trace for trace in found if values_at(taken, dense(trace.line)).mean() < 0.5]


def _closed(filament: Filament) -> Floats:
    return np.vstack([filament.path, filament.path[: filament.closed]]).astype(np.float64)


def find(path: Path, search: Search) -> Generator[str, None, Opened]:
    """Find the filaments of a micrograph: yield what is done next, so that it can be stopped there; return all."""
    yield "reading the micrograph"
    image = io.read_image(path)
    yield "loading the network"
    networks = load_networks(search.checkpoint)
    configs = [network.config["data"] for network in networks]
    scale, polarity = search.scale, search.polarity
    if (scale is None or polarity is None) and any(config.get("scale") == "each" for config in configs):
        yield "estimating the width"
        seen = estimate([image], scale, polarity)
        scale, polarity = seen.scale, seen.polarity
    predictor = Predictor.of_networks(networks, scale=scale, polarity=polarity)
    yield "looking for detections"
    if search.detections is None:
        points: tuple[Tensor, Tensor | None] = predictor.detect(image)
    else:
        shape = image.shape[1], image.shape[2]
        points = io.Reading().points(search.detections, path, shape, io.pixel_size(path))
    yield "asking the network"
    prepared = predictor.prepare(image, *points, path.name)
    findings = predictor.find(prepared)
    return Opened(path, image, predictor.scale, predictor.polarity, findings)


def most_teaching(paths: Sequence[Path], search: Search, known: Mapping[Path, Opened]) -> Generator[str, None, Opened]:
    """Find the filaments of some micrographs, and return the one of most doubt; those ``known`` are not done again."""
    some = list(paths)[:: -(-len(paths) // MOST)]
    seen: list[Opened] = []
    for number, path in enumerate(some, 1):
        yield f"looking at {path.name}, {number} of {len(some)}"
        if path in known:
            seen.append(known[path])
        else:
            seen.append((yield from find(path, search)))
    return max(seen, key=lambda opened: doubt(opened.findings.node_probability.numpy()))


def snapped(image: Tensor, line: Floats, scale: float) -> Floats:
    """Move a line that was drawn onto the ridge beside it; without any it stays."""
    corner = np.maximum(line.min(axis=0) - 4 * scale, 0).astype(int)
    end = (line.max(axis=0) + 4 * scale).astype(int)
    part = image[:, corner[1] : end[1], corner[0] : end[0]]  # of a large image, all would take a second
    (moved,), _ = snap_to_ridges(part, [line - corner], scale)
    onto: Floats = moved + corner
    return onto


class Kept(NamedTuple):
    """What somebody has decided about a micrograph."""

    traces: Sequence[Trace]
    ignored: Sequence[Floats] = ()  # polygons (P, 2), pixels, columns x and y
    mask: Tensor | None = None  # (H, W), if one was painted


def save(opened: Opened, kept: Kept, out_dir: Path) -> str:
    """Write ``X.grace`` and, for RELION and crYOLO, the filaments that are not rejected; return what was written.

    Accepted filaments are positive, rejected ones negative, everything else and what is ignored is unknown. A mask, if
    one was painted, says instead what is positive, and everything else is negative.
    """
    traces, mask = kept.traces, kept.mask
    scale, path, graph = opened.scale, opened.path, opened.findings.graph
    by_status = {status: [t for t in traces if t.status == status] for status in ("accepted", "rejected", "found")}
    if mask is None and not by_status["accepted"] and not by_status["rejected"]:
        raise InputError("nothing is decided: accept or reject filaments, or draw some, before you save")
    make_folder(out_dir, "out_dir")
    metadata: dict[str, Any] = {"image_filename": path.name, "polarity": opened.polarity}
    metadata[KEPT] = {
        "traces": [[trace.status, trace.probability, trace.line.tolist()] for trace in traces],
        "ignored": [polygon.tolist() for polygon in kept.ignored],
        "painted": mask is not None,
    }
    accepted, rejected = ([trace.line for trace in by_status[status]] for status in ("accepted", "rejected"))
    size, name = (opened.image.shape[1], opened.image.shape[2]), io.stem(path)
    graph = from_detections(graph.pos, graph.confidence)[0]
    inside = [polygon2mask(size, polygon[:, ::-1]) for polygon in kept.ignored]
    ignored = torch.from_numpy(np.any(inside, axis=0)) if inside else None
    drawn = Drawn(accepted, rejected, ignored, mask)
    write_annotation(out_dir / f"{name}.grace", graph, drawn, scale, size, metadata)
    micrograph = Micrograph(name, path.name, size, opened.image, io.pixel_size(path), from_bottom=io.is_tiff(path))
    exported = [as_filament(trace) for trace in traces if trace.status != "rejected"]
    write_exports(out_dir, micrograph, exported, Export(), scale)
    counts = ", ".join(f"{len(lines)} {status}" for status, lines in by_status.items() if lines)
    return f"{short(out_dir / name)}.grace: {counts or 'a mask'}"


class Drawn(NamedTuple):
    """What labels are taken from."""

    accepted: Sequence[Floats]  # lines (P, 2), pixels, columns x and y
    rejected: Sequence[Floats] = ()
    ignored: Tensor | None = None  # (H, W), not 0 where nothing is known
    mask: Tensor | None = None  # (H, W), instead of lines; then everything else is known, too


def write_annotation(
    path: Path, graph: Graph, drawn: Drawn, scale: float, size: tuple[int, int], metadata: Mapping[str, Any]
) -> None:
    """Write a graph, labelled by what was drawn on an image of ``size`` (H, W), into the folder ``X.grace``."""
    annotation = draw_lines(drawn.accepted, scale, size) if drawn.mask is None else drawn.mask
    graph = label_by_mask(graph, annotation)
    instances = nodes_of_lines(graph, drawn.accepted, scale) if drawn.mask is None else None
    known = draw_lines([*drawn.accepted, *drawn.rejected], scale, size)
    graph = with_unknown(graph, known, reach=scale / 2 if drawn.mask is None else None, ignored=drawn.ignored)
    said = {**metadata, "scale": scale, io.KEEP_UNKNOWN: True}
    io.write_grace(path, graph, annotation=annotation, metadata=said, edge_properties=True, instances=instances)


def reopened(path: Path, image: Tensor, out_dir: Path) -> tuple[Opened, Kept] | None:
    """Return what was saved of a micrograph, None if nothing was."""
    folder = out_dir / f"{io.stem(path)}.grace"
    if not folder.is_dir():
        return None
    graph, annotation, metadata = io.read_grace(folder)
    try:
        scale, polarity, kept = float(metadata["scale"]), metadata["polarity"], metadata[KEPT]
        check_value(polarity, Polarity | None, "polarity")
        traces = [Trace(_points(line), status, float(p)) for status, p, line in kept["traces"] if status in STATUSES]
        ignored = [_points(polygon) for polygon in kept["ignored"]]
        said = Kept(traces, ignored, annotation if kept["painted"] else None)
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder}: was not saved from this window ({error!r}), and is replaced if you save"
        ) from error
    nothing = torch.full((graph.num_nodes,), torch.nan), torch.full((graph.num_edges,), torch.nan)
    return Opened(path, image, scale, polarity, Findings(graph, *nothing, [])), said


def _points(values: Any) -> Floats:
    """Return points (P, 2) as a file has them, a :class:`ValueError` if they are none."""
    points = np.array(values, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 2 or not np.isfinite(points).all():
        raise ValueError(f"shape {points.shape}, expected points of x and y")
    return points


def as_filament(trace: Trace) -> Filament:
    """Return a trace as it is exported and measured; it has no nodes."""
    line, none = trace.line.astype(np.float32), np.zeros(0, np.int64)
    return Filament(line, np.full(len(line), trace.probability, np.float32), none, none)
