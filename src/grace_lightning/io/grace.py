"""``X.grace`` folders, in the schema of the original program."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from grace_lightning.errors import InputError
from grace_lightning.files import expect_folder, reading, replacing, some
from grace_lightning.graph import EDGE_PROPERTIES, Graph, Label, edge_geometry

NODES, EDGES, ANNOTATION, METADATA = "nodes.parquet", "edges.parquet", "annotation.npz", "metadata.json"


class Grace(NamedTuple):
    """What a ``.grace`` folder holds: the graph, (H, W) int32 annotation or None, and the metadata."""

    graph: Graph
    annotation: Tensor | None
    metadata: dict[str, Any]


def read_grace(
    path: str | Path, *, keep_node_unknown_labels: bool = False, keep_edge_unknown_labels: bool = False
) -> Grace:
    """Read the annotated graph of one micrograph, the folder ``X.grace``.

    In the graph, each edge comes once, in the file's order, its smaller node first; in the file, it may have either
    direction and come twice with the same label. UNKNOWN labels become TRUE_NEGATIVE unless they are kept.
    """
    path = Path(path)
    expect_folder(path)
    nodes, node_label = _read_nodes(path / NODES, keep_node_unknown_labels)
    edges, edge_label = _read_edges(path / EDGES, len(nodes["pos"]), keep_edge_unknown_labels)
    graph = Graph(**nodes, edges=edges).with_labels(node=node_label, edge=edge_label)
    annotation = _read_annotation(path / ANNOTATION) if (path / ANNOTATION).exists() else None
    return Grace(graph, annotation, _read_metadata(path / METADATA))


def write_grace(
    path: str | Path,
    graph: Graph,
    *,
    annotation: Tensor | None = None,
    metadata: Mapping[str, Any] | None = None,
    node_prediction: Tensor | None = None,
    edge_prediction: Tensor | None = None,
    edge_properties: bool = False,
    filaments: pd.DataFrame | None = None,
) -> None:
    """Write a folder ``X.grace``, whole or not at all; a folder of that name is replaced.

    Labels of the heads ``node`` and ``edge`` are written, an ``annotation`` of (H, W) integers, ``metadata`` besides
    ``image_filename`` (``X`` if not given), and if wanted, :func:`edge_geometry`. Predictions are probabilities, (N, K)
    or (E, K); the original has those of edges, with K = 3, one per :class:`Label`, and no ``filaments.parquet``.
    """
    path = Path(path)
    if path.suffix != ".grace":
        raise InputError(f"{path}: a folder of this name may be replaced, expected a name that ends in .grace")
    nodes = {
        **{"x": graph.pos[:, 0].numpy(), "y": graph.pos[:, 1].numpy()},
        "node_ground_truth": graph.label("node").numpy(),
        "confidence": graph.confidence.numpy(),
        "node_image_patch_latent_embedding": _lists(graph.embedding, graph.num_nodes),
    }
    if node_prediction is not None:
        nodes["node_prediction"] = _lists(node_prediction, graph.num_nodes)
    keys, values = (list(EDGE_PROPERTIES), edge_geometry(graph.pos, graph.edges)) if edge_properties else (None, None)
    edges = {
        **{"source": graph.edges[0].numpy(), "target": graph.edges[1].numpy()},
        "edge_ground_truth": graph.label("edge").numpy(),
        "edge_prediction": _lists(edge_prediction, graph.num_edges),
        "edge_properties_keys": pa.array([keys] * graph.num_edges, pa.list_(pa.string())),
        "edge_properties_values": _lists(values, graph.num_edges),
    }
    with replacing(path) as unfinished:
        unfinished.mkdir()
        pq.write_table(pa.table(nodes), unfinished / NODES)
        pq.write_table(pa.table(edges), unfinished / EDGES)
        if annotation is not None:
            array = annotation.numpy()
            array = array.astype(np.min_scalar_type(int(array.max(initial=0))))
            np.savez_compressed(unfinished / ANNOTATION, annotation=array)
        (unfinished / METADATA).write_text(json.dumps({"image_filename": path.stem, **(metadata or {})}))
        if filaments is not None:
            filaments.to_parquet(unfinished / "filaments.parquet", index=False)


def _lists(values: Tensor | None, rows: int) -> pa.Array:
    if values is None:
        return pa.nulls(rows, pa.list_(pa.float32()))
    array = values.detach().float().numpy()
    offsets = np.arange(len(array) + 1, dtype=np.int32) * array.shape[1]
    return pa.ListArray.from_arrays(offsets, array.ravel())


def _read_table(path: Path, required: tuple[str, ...]) -> pa.Table:
    with reading(path, "a table of the .grace folder"):
        table = pq.ParquetFile(path).read()
    if missing := [name for name in required if name not in table.column_names]:
        raise InputError(f"{path}: no column {some(missing)}, expected {', '.join(required)}")
    return table


def _column(path: Path, table: pa.Table, name: str, dtype: pa.DataType) -> Tensor:
    column = table[name]
    if column.null_count:
        raise InputError(f"{path}: {name} is empty in {column.null_count} of {len(column)} rows, expected {dtype}")
    with reading(path, f"a table whose {name}, here {column.type}, is {dtype}"):
        return torch.from_numpy(column.cast(dtype).to_numpy().copy())


def _refuse(path: Path, wrong: Tensor, describe: Callable[[int], str]) -> None:
    if wrong.any():
        raise InputError(f"{path}: {describe(int(wrong.nonzero()[0, 0]))} ({int(wrong.sum())} of {len(wrong)} rows)")


def _labels(path: Path, table: pa.Table, name: str, keep_unknown: bool) -> Tensor:
    label = _column(path, table, name, pa.int64())
    expected = "expected 0 (negative), 1 (positive) or 2 (unknown)"
    _refuse(path, (label < 0) | (label > 2), lambda row: f"{name} {int(label[row])} in row {row}, {expected}")
    return label if keep_unknown else label.masked_fill(label == Label.UNKNOWN, Label.TRUE_NEGATIVE)


def _read_nodes(path: Path, keep_unknown: bool) -> tuple[dict[str, Any], Tensor]:
    table = _read_table(path, ("x", "y", "node_ground_truth"))
    pos = torch.stack([_column(path, table, axis, pa.float32()) for axis in ("x", "y")], dim=1)
    wrong, found = ~pos.isfinite().all(dim=1), "node {} at x={}, y={}, expected finite pixels"
    _refuse(path, wrong, lambda row: found.format(row, *pos[row].tolist()))
    nodes: dict[str, Any] = {"pos": pos}
    given = {name for name in table.column_names if table[name].null_count < len(table)}
    if "confidence" in given:
        nodes["confidence"] = _column(path, table, "confidence", pa.float32())
    name = "node_image_patch_latent_embedding"
    if name in given:
        with reading(path, f"a table whose {name} are lists of numbers, all of one length"):
            nodes["embedding"] = torch.from_numpy(np.stack(table[name].to_pandas()).astype(np.float32))
    return nodes, _labels(path, table, "node_ground_truth", keep_unknown)


def _read_edges(path: Path, num_nodes: int, keep_unknown: bool) -> tuple[Tensor, Tensor]:
    table = _read_table(path, ("source", "target", "edge_ground_truth"))
    ends = torch.stack([_column(path, table, name, pa.int64()) for name in ("source", "target")])
    label = _labels(path, table, "edge_ground_truth", keep_unknown)
    known = f"expected nodes from 0 to {num_nodes - 1}; rebuild it with grace-annotate"
    low, high = ends.amin(dim=0), ends.amax(dim=0)
    _refuse(path, (low < 0) | (high >= num_nodes), lambda row: f"row {row} joins {ends[:, row].tolist()}, {known}")
    _refuse(path, low == high, lambda row: f"row {row} joins node {int(low[row])} to itself, expected two nodes")
    _, first, group = np.unique((low * num_nodes + high).numpy(), return_index=True, return_inverse=True)
    earlier = label[first[group]]
    twice = "nodes {} and {} are joined twice, once with edge_ground_truth {} and once with {}, expected one label"
    _refuse(path, label != earlier, lambda r: twice.format(*(int(a[r]) for a in (low, high, earlier, label))))
    keep = torch.from_numpy(np.sort(first))
    return torch.stack([low, high])[:, keep], label[keep]


def _read_annotation(path: Path) -> Tensor:
    with reading(path, "the annotation of a .grace folder"), np.load(path, allow_pickle=False) as arrays:
        if "annotation" not in arrays:
            raise InputError(f"{path}: no array annotation (found {some(arrays) or 'none'})")
        annotation = arrays["annotation"]
    if annotation.ndim != 2 or annotation.dtype.kind not in "biu":
        raise InputError(f"{path}: {annotation.dtype} of shape {annotation.shape}, expected integers of shape (H, W)")
    return torch.from_numpy(annotation.astype(np.int32))


def _read_metadata(path: Path) -> dict[str, Any]:
    with reading(path, "the metadata of a .grace folder"):
        metadata = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(metadata, dict) or not isinstance(metadata.get("image_filename"), str):
        raise InputError(f"{path}: no image_filename, expected the name of the image the graph belongs to")
    return metadata
