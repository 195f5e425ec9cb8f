"""What napari opens and saves by itself: micrographs, annotated graphs, picks of other programs, and a sample."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from grace_lightning import io
from grace_lightning.errors import InputError
from grace_lightning.files import reading
from grace_lightning.graph import Floats, Label, from_detections
from grace_lightning.gui.traces import Drawn, write_annotation

LayerData = tuple[Any, dict[str, Any], str]
Reader = Callable[[str], list[LayerData]]

SOME_PIXELS = 250_000
"""So many pixels tell the contrast."""


def contrast(image: NDArray[Any]) -> list[float]:
    """Return what is shown as black and as white: all but the darkest and the brightest half per cent."""
    plane = image[len(image) // 2] if image.ndim > 2 else image
    step = max(1, int((plane.size / SOME_PIXELS) ** 0.5))
    values = np.asarray(plane[::step, ::step], np.float32)
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [0.005, 0.995]) if values.size else (0.0, 1.0)
    return [float(low), float(max(high, low + 1e-6))]


def rows_first(xy: NDArray[Any]) -> NDArray[Any]:
    """Turn columns x and y into napari's rows and columns, or back."""
    return xy[..., ::-1]


def micrograph_reader(path: str | list[str]) -> Reader | None:
    """Return what reads one ``.mrc``; it stays on disk and is read where it is looked at."""
    return None if isinstance(path, list) else _read_micrograph


def _read_micrograph(path: str) -> list[LayerData]:
    import mrcfile

    with reading(Path(path), "an MRC file"):
        data = mrcfile.mmap(path, mode="r", permissive=True).data
    if data is None or data.ndim < 2 or not data.size:
        raise InputError(f"{path}: no image that mrcfile can read")
    return [(data, {"name": Path(path).stem, "contrast_limits": contrast(data), "colormap": "gray"}, "image")]


def grace_reader(path: str | list[str]) -> Reader | None:
    """Return what reads an ``X.grace`` folder."""
    return None if isinstance(path, list) else _read_grace


def _read_grace(path: str) -> list[LayerData]:
    found = io.read_grace(path, keep_node_unknown_labels=True, keep_edge_unknown_labels=True)
    graph, name = found.graph, Path(path).stem
    labels = {head: [Label(value).name for value in graph.label(head).tolist()] for head in ("node", "edge")}
    pos = rows_first(graph.pos.numpy())
    start, end = pos[graph.edges.numpy()]
    layers: list[LayerData] = []
    if found.annotation is not None:
        layers.append((found.annotation.numpy(), {"name": f"{name} annotation", "opacity": 0.3}, "labels"))
    edges = {"name": f"{name} edges", "features": {"label": labels["edge"]}, "edge_color": "label"}
    nodes = {"name": f"{name} detections", "features": {"label": labels["node"]}, "face_color": "label", "size": 5}
    layers.append((np.stack([start, end - start], axis=1), edges | {"vector_style": "line"}, "vectors"))
    return [*layers, (pos, nodes, "points")]


def picks_reader(path: str | list[str]) -> Reader | None:
    """Return what reads detections, or filaments, of RELION, EMAN and crYOLO; y counts from the top."""
    return None if isinstance(path, list) else _read_picks


def _read_picks(path: str) -> list[LayerData]:
    name = Path(path).stem
    try:
        lines = [line for line in io.read_lines(path).lines if len(line) > 1]
    except InputError:
        lines = []
    if lines:
        return [(list(map(rows_first, lines)), {"name": name, "shape_type": "path", "edge_width": 3}, "shapes")]
    pos, confidence = io.read_points(Path(path))
    shown: dict[str, Any] = {"name": name, "size": 8}
    if confidence is not None:
        shown["features"] = {"confidence": confidence.numpy()}
    return [(rows_first(pos.numpy()), shown, "points")]


def write_layers(path: str, layers: list[LayerData]) -> list[str]:
    """Write points, as detections, and paths, as filaments, into an ``X.grace`` folder; what is away is unknown."""
    points = [rows_first(np.asarray(data, float)) for data, _, kind in layers if kind == "points"]
    shapes = [(data, meta) for data, meta, kind in layers if kind == "shapes"]
    if not points:
        raise InputError(f"{path}: no points layer is selected, which has the detections")
    lines: list[Floats] = [rows_first(np.asarray(line, float)) for data, _ in shapes for line in data if len(line) > 1]
    pos = np.concatenate(points)
    known: dict[str, Any] = next((meta["metadata"] for _, meta in shapes if meta.get("metadata", {}).get("size")), {})
    far = np.concatenate([pos, *lines]).max(axis=0).clip(min=0) if len(pos) else np.zeros(2)
    rows, columns = known.get("size") or (far[::-1] + 2).astype(int).tolist()
    width = float(
        known.get("scale") or max((float(np.max(meta.get("edge_width", 1))) for _, meta in shapes), default=1)
    )
    graph = from_detections(torch.from_numpy(pos.astype(np.float32)))[0]
    write_annotation(Path(path), graph, Drawn(lines), width, (rows, columns), {})
    return [path]


def sample() -> list[LayerData]:
    """Return a simulated micrograph."""
    from grace_lightning.scenes import AnyScene
    from grace_lightning.simulate import image_generator

    scene = AnyScene(kinds=["cryo"], contrast=[8.0, 20.0], size=(1024, 1024))
    image = scene("sample", image_generator(0, "sample")).sample.image[0].numpy()
    return [(image, {"name": "simulated", "contrast_limits": contrast(image), "colormap": "gray"}, "image")]
