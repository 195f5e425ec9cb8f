"""``X.grace`` folders, in the schema of the original program."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from grace_lightning.errors import InputError
from grace_lightning.graph import EDGE_PROPERTIES, Graph, Label, edge_geometry
from grace_lightning.io._reading import reading, some

NODES, EDGES, ANNOTATION, METADATA = "nodes.parquet", "edges.parquet", "annotation.npz", "metadata.json"
_FLOATS = pa.list_(pa.float32())


class Grace(NamedTuple):
    """What a ``.grace`` folder holds: the graph, (H, W) int32 annotation or None, and the metadata."""

    graph: Graph
    annotation: Tensor | None
    metadata: dict[str, Any]


def read_grace(
    path: str | Path, *, keep_node_unknown_labels: bool = False, keep_edge_unknown_labels: bool = False
) -> Grace:
    """Annotated graph of one micrograph.

    Edges may stand in the file in either direction and twice with the same label; here the smaller node comes first and
    every edge is there once, in the file's order.

    Parameters
    ----------
    path : the folder ``X.grace``
    keep_node_unknown_labels, keep_edge_unknown_labels : whether UNKNOWN stays, or becomes TRUE_NEGATIVE

    Raises
    ------
    InputError
        A file or column is missing or damaged; a coordinate is not finite; a label is outside 0..2; an edge
        names a node that does not exist, joins a node to itself, or is there twice with different labels.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder, expected {NODES}, {EDGES}, {ANNOTATION} and {METADATA} in it")
    pos, node_label, confidence, embedding = _read_nodes(path / NODES)
    edges, edge_label = _read_edges(path / EDGES, len(pos))
    graph = Graph(
        pos=pos,
        edges=edges,
        node_label=node_label if keep_node_unknown_labels else _unknown_as_negative(node_label),
        edge_label=edge_label if keep_edge_unknown_labels else _unknown_as_negative(edge_label),
        confidence=confidence,
        embedding=embedding,
    )
    return Grace(graph, _read_annotation(path / ANNOTATION), _read_metadata(path / METADATA))


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
    """Write a ``.grace`` folder; one that is there is replaced as a whole.

    The folder appears under its name only when it is complete.

    Parameters
    ----------
    path : the folder ``X.grace``
    graph : nodes and edges, row by row
    annotation : (H, W) integers; None writes no ``annotation.npz``
    metadata : what ``metadata.json`` says besides ``image_filename``, which is ``X`` where not given
    node_prediction : (N, K) probabilities, an additional column
    edge_prediction : (E, K) probabilities; the original has K = 3, one per :class:`Label`
    edge_properties : whether to write :func:`edge_geometry`
    filaments : columns of ``filaments.parquet``, an additional file
    """
    path = Path(path)
    if path.suffix != ".grace":
        raise InputError(f"{path}: a folder of this name may be replaced, expected a name that ends in .grace")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished, replaced = (path.with_name(f".{path.name}.{uuid.uuid4().hex}") for _ in range(2))
    try:
        unfinished.mkdir()
        pq.write_table(_node_table(graph, node_prediction), unfinished / NODES)
        pq.write_table(_edge_table(graph, edge_prediction, edge_properties), unfinished / EDGES)
        if annotation is not None:
            array = annotation.cpu().numpy()
            array = array.astype(np.min_scalar_type(int(array.max(initial=0))))
            np.savez_compressed(unfinished / ANNOTATION, annotation=array)
        (unfinished / METADATA).write_text(json.dumps({"image_filename": path.stem, **(metadata or {})}))
        if filaments is not None:
            filaments.to_parquet(unfinished / "filaments.parquet", index=False)
        if path.exists():
            path.rename(replaced)
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _node_table(graph: Graph, prediction: Tensor | None) -> pa.Table:
    columns = {
        "x": graph.pos[:, 0].cpu().numpy(),
        "y": graph.pos[:, 1].cpu().numpy(),
        "node_ground_truth": graph.node_label.cpu().numpy(),
        "confidence": graph.confidence.cpu().numpy(),
        "node_image_patch_latent_embedding": _lists(graph.embedding, graph.num_nodes),
    }
    if prediction is not None:
        columns["node_prediction"] = _lists(prediction, graph.num_nodes)
    return pa.table(columns)


def _edge_table(graph: Graph, prediction: Tensor | None, with_properties: bool) -> pa.Table:
    count = graph.num_edges
    keys = [list(EDGE_PROPERTIES) if with_properties else None] * count
    values = edge_geometry(graph.pos.cpu(), graph.edges.cpu()) if with_properties else None
    return pa.table(
        {
            "source": graph.edges[0].cpu().numpy(),
            "target": graph.edges[1].cpu().numpy(),
            "edge_ground_truth": graph.edge_label.cpu().numpy(),
            "edge_prediction": _lists(prediction, count),
            "edge_properties_keys": pa.array(keys, pa.list_(pa.string())),
            "edge_properties_values": _lists(values, count),
        }
    )


def _lists(values: Tensor | None, rows: int) -> pa.Array:
    if values is None:
        return pa.nulls(rows, _FLOATS)
    array = values.detach().float().cpu().numpy()
    if array.ndim != 2 or len(array) != rows:
        raise ValueError(f"predictions of shape {array.shape}, expected {rows} rows of probabilities")
    offsets = np.arange(rows + 1, dtype=np.int32) * array.shape[1]
    return pa.ListArray.from_arrays(offsets, array.ravel())


def _read_table(path: Path, required: tuple[str, ...]) -> pa.Table:
    with reading(path, "a table of the .grace folder"):
        table = pq.ParquetFile(path).read()
    missing = [name for name in required if name not in table.column_names]
    if missing:
        raise InputError(f"{path}: no column {some(missing)}, expected {', '.join(required)}")
    return table


def _column(path: Path, table: pa.Table, name: str, dtype: pa.DataType) -> Tensor:
    column = table[name]
    if column.null_count:
        raise InputError(f"{path}: {name} is empty in {column.null_count} of {len(column)} rows, expected {dtype}")
    try:
        values = column.cast(dtype).to_numpy()
    except pa.ArrowException as error:
        raise InputError(f"{path}: {name} is {column.type}, expected {dtype}") from error
    return torch.from_numpy(values.copy())


def _labels(path: Path, table: pa.Table, name: str) -> Tensor:
    label = _column(path, table, name, pa.int64())
    wrong = (label < Label.TRUE_NEGATIVE) | (label > Label.UNKNOWN)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise InputError(
            f"{path}: {name} {int(label[row])} in row {row}, expected 0 (negative), 1 (positive) or 2 (unknown)"
        )
    return label


def _unknown_as_negative(label: Tensor) -> Tensor:
    return label.masked_fill(label == Label.UNKNOWN, Label.TRUE_NEGATIVE)


def _read_nodes(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    table = _read_table(path, ("x", "y", "node_ground_truth"))
    pos = torch.stack([_column(path, table, axis, pa.float32()) for axis in ("x", "y")], dim=1)
    wrong = ~pos.isfinite().all(dim=1)
    if wrong.any():
        node = int(wrong.nonzero()[0])
        x, y = pos[node].tolist()
        raise InputError(
            f"{path}: node {node} at x={x}, y={y}, expected finite pixels ({int(wrong.sum())} of {len(pos)} are not)"
        )
    has_confidence = "confidence" in table.column_names and table["confidence"].null_count < len(table)
    confidence = _column(path, table, "confidence", pa.float32()) if has_confidence else torch.ones(len(pos))
    return pos, _labels(path, table, "node_ground_truth"), confidence, _read_embedding(path, table)


def _read_embedding(path: Path, table: pa.Table) -> Tensor | None:
    name = "node_image_patch_latent_embedding"
    if name not in table.column_names or table[name].null_count == len(table):
        return None
    column = table[name].combine_chunks()
    with reading(path, f"a table whose {name} are lists of numbers"):
        lengths = pc.list_value_length(column).unique().to_pylist()
        flat = pc.list_flatten(column).cast(pa.float32()).to_numpy()
    if len(lengths) != 1:
        raise InputError(f"{path}: {name} of lengths {some(map(str, lengths))}, expected one length for all nodes")
    return torch.from_numpy(flat.copy()).reshape(len(table), lengths[0])


def _read_edges(path: Path, num_nodes: int) -> tuple[Tensor, Tensor]:
    table = _read_table(path, ("source", "target", "edge_ground_truth"))
    ends = torch.stack([_column(path, table, name, pa.int64()) for name in ("source", "target")])
    label = _labels(path, table, "edge_ground_truth")
    for name, nodes in zip(("source", "target"), ends, strict=True):
        wrong = nodes[(nodes < 0) | (nodes >= num_nodes)]
        if len(wrong):
            raise InputError(
                f"{path}: {name} {int(wrong[0])} is not a node (the file has {num_nodes}); "
                "rebuild it with grace-annotate"
            )
    low, high = ends.amin(dim=0), ends.amax(dim=0)
    if (low == high).any():
        row = int((low == high).nonzero()[0])
        raise InputError(f"{path}: row {row} joins node {int(low[row])} to itself, expected two nodes")
    _, first, group = np.unique((low * num_nodes + high).numpy(), return_index=True, return_inverse=True)
    differs = label != label[first[group]]
    if differs.any():
        row = int(differs.nonzero()[0])
        raise InputError(
            f"{path}: nodes {int(low[row])} and {int(high[row])} are joined twice, once with edge_ground_truth "
            f"{int(label[first[group[row]]])} and once with {int(label[row])}, expected one label"
        )
    keep = torch.from_numpy(np.sort(first))
    return torch.stack([low, high])[:, keep], label[keep]


def _read_annotation(path: Path) -> Tensor | None:
    if not path.exists():
        return None
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
