"""``X.grace`` folders, in the schema of the original program."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from grace_lightning.errors import InputError
from grace_lightning.files import MAX_GIB, expect_folder, expect_room, reading, replacing, some
from grace_lightning.graph import EDGE_PROPERTIES, Graph, Ints, Label, edge_geometry

NODES, EDGES, ANNOTATION, METADATA = "nodes.parquet", "edges.parquet", "annotation.npz", "metadata.json"
EMBEDDING = "node_image_patch_latent_embedding"
INSTANCES = "instances.json"
KEEP_UNKNOWN = "keep_unknown_labels"
"""Key of the metadata that says that UNKNOWN labels were meant, and do not stand for negative ones."""
JSON_GROWTH = 24
"""How many times its text JSON takes in memory, at most: ``{},`` becomes a dictionary of 64 bytes and 8 in a list."""


class Grace(NamedTuple):
    """What a ``.grace`` folder holds: the graph, (H, W) int32 annotation or None, and the metadata."""

    graph: Graph
    annotation: Tensor | None
    metadata: dict[str, Any]


def read_grace(
    path: str | Path,
    *,
    keep_node_unknown_labels: bool | None = None,
    keep_edge_unknown_labels: bool | None = None,
    max_gib: float = MAX_GIB,
) -> Grace:
    """Read the annotated graph of one micrograph, the folder ``X.grace``.

    In the graph, each edge comes once, in the file's order, its smaller node first; in the file, it may have either
    direction and come twice with the same label. UNKNOWN labels become TRUE_NEGATIVE unless they are kept; None: as the
    metadata say (:data:`KEEP_UNKNOWN`). It is an error if a file unpacks to more than ``max_gib`` GiB.
    """
    path = Path(path)
    expect_folder(path)
    metadata = _read_metadata(path / METADATA, max_gib)
    keep_node, keep_edge = (
        metadata.get(KEEP_UNKNOWN) is True if keep is None else keep
        for keep in (keep_node_unknown_labels, keep_edge_unknown_labels)
    )
    nodes, node_label = _read_nodes(path / NODES, keep_node, max_gib)
    edges, edge_label = _read_edges(path / EDGES, len(nodes["pos"]), keep_edge, max_gib)
    graph = Graph(**nodes, edges=edges).with_labels(node=node_label, edge=edge_label)
    annotation = _read_annotation(path / ANNOTATION, max_gib) if (path / ANNOTATION).exists() else None
    return Grace(graph, annotation, metadata)


def write_grace(
    path: str | Path,
    graph: Graph,
    *,
    annotation: Tensor | None = None,
    metadata: Mapping[str, Any] | None = None,
    node_prediction: Tensor | None = None,
    edge_prediction: Tensor | None = None,
    edge_properties: bool = False,
    tables: Mapping[str, pd.DataFrame] = MappingProxyType({}),
    instances: Mapping[str, Ints] | None = None,
) -> None:
    """Write a folder ``X.grace``, whole or not at all; a folder of that name is replaced.

    Labels of the heads ``node`` and ``edge`` are written, an ``annotation`` of (H, W) integers, ``metadata`` besides
    ``image_filename`` (``X`` if not given), and if wanted, :func:`edge_geometry`. Predictions are probabilities, (N, K)
    or (E, K); the original has those of edges, with K = 3, one per :class:`Label`, and neither further ``tables``, by
    the names of their files, nor ``instances.json``: the nodes of each true filament.
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
    if graph.node_type.any():
        nodes["node_type"] = graph.node_type.numpy()
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
        for name, table in tables.items():
            table.to_parquet(unfinished / name, index=False)
        if instances is not None:
            nodes_by_name = {name: nodes.tolist() for name, nodes in instances.items()}
            (unfinished / INSTANCES).write_text(json.dumps(nodes_by_name))


def _lists(values: Tensor | None, rows: int) -> pa.Array:
    if values is None:
        return pa.nulls(rows, pa.list_(pa.float32()))
    array = values.detach().float().numpy()
    offsets = np.arange(len(array) + 1, dtype=np.int32) * array.shape[1]
    return pa.ListArray.from_arrays(offsets, array.ravel())


def _read_table(path: Path, required: tuple[str, ...], optional: tuple[str, ...], max_gib: float) -> pa.Table:
    """Read columns of numbers, or of lists of numbers, each from one column of the file."""
    with reading(path, "a table of the .grace folder"), pq.ParquetFile(path) as file:
        names, wanted = file.schema_arrow.names, (*required, *optional)
        if missing := [name for name in required if name not in names]:
            raise InputError(f"{path}: no column {some(missing)}, expected {', '.join(required)}")
        if twice := [name for name in wanted if names.count(name) > 1]:
            raise InputError(f"{path}: {names.count(twice[0])} columns are named {twice[0]}, expected one")
        size = 0  # bytes; a value that repeats takes none in the file
        for k, column in enumerate(map(file.schema.column, range(len(file.schema)))):
            name = column.path.partition(".")[0]
            if name in wanted:
                if column.physical_type == "BYTE_ARRAY":
                    raise InputError(f"{path}: {name} is text, expected numbers")
                for group in map(file.metadata.row_group, range(file.num_row_groups)):
                    chunk, width = group.column(k), max(8, column.length)
                    size += max(chunk.total_uncompressed_size, width * max(group.num_rows, chunk.num_values))
        expect_room(path, size, max_gib, "data.")
        return file.read([name for name in wanted if name in names])


def _column(path: Path, table: pa.Table, name: str, dtype: pa.DataType) -> Tensor:
    column = table[name]
    if column.null_count:
        raise InputError(f"{path}: {name} is empty in {column.null_count} of {len(column)} rows, expected {dtype}")
    with reading(path, f"a table whose {name}, here {column.type}, is {dtype}"):
        return torch.from_numpy(column.cast(dtype).to_numpy().copy())


def _finite(path: Path, table: pa.Table, name: str) -> Tensor:
    """Return a column as float32."""
    wide = _column(path, table, name, pa.float64())
    values = wide.float()
    _refuse(path, ~values.isfinite(), lambda row: f"{name} of node {row} is {wide[row]:g}, expected a finite float32")
    return values


def _refuse(path: Path, wrong: Tensor, describe: Callable[[int], str]) -> None:
    if wrong.any():
        raise InputError(f"{path}: {describe(int(wrong.nonzero()[0, 0]))} ({int(wrong.sum())} of {len(wrong)} rows)")


def _labels(path: Path, table: pa.Table, name: str, keep_unknown: bool) -> Tensor:
    label = _column(path, table, name, pa.int64())
    expected = "expected 0 (negative), 1 (positive) or 2 (unknown)"
    _refuse(path, (label < 0) | (label > 2), lambda row: f"{name} {int(label[row])} in row {row}, {expected}")
    return label if keep_unknown else label.masked_fill(label == Label.UNKNOWN, Label.TRUE_NEGATIVE)


def _read_nodes(path: Path, keep_unknown: bool, max_gib: float) -> tuple[dict[str, Any], Tensor]:
    table = _read_table(path, ("x", "y", "node_ground_truth"), ("confidence", EMBEDDING, "node_type"), max_gib)
    nodes: dict[str, Any] = {"pos": torch.stack([_finite(path, table, axis) for axis in ("x", "y")], dim=1)}
    given = {name for name in table.column_names if table[name].null_count < len(table)}
    if "confidence" in given:
        nodes["confidence"] = _finite(path, table, "confidence")
    if "node_type" in given:
        nodes["node_type"] = _column(path, table, "node_type", pa.int64())
        expected = "expected a type from 1, or 0 if it is not known"
        _refuse(path, nodes["node_type"] < 0, lambda row: f"node_type {int(nodes['node_type'][row])}, {expected}")
    if EMBEDDING in given:
        with reading(path, f"a table whose {EMBEDDING} are lists of numbers, all of one length"):
            (length,) = pc.unique(pc.list_value_length(table[EMBEDDING])).to_pylist()
            values = pc.list_flatten(table[EMBEDDING]).cast(pa.float32()).to_numpy()
            nodes["embedding"] = torch.from_numpy(values.reshape(len(table), length).copy())
    return nodes, _labels(path, table, "node_ground_truth", keep_unknown)


def _read_edges(path: Path, num_nodes: int, keep_unknown: bool, max_gib: float) -> tuple[Tensor, Tensor]:
    table = _read_table(path, ("source", "target", "edge_ground_truth"), (), max_gib)
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


def _read_annotation(path: Path, max_gib: float) -> Tensor:
    with reading(path, "the annotation of a .grace folder"), np.load(path, allow_pickle=False) as arrays:
        if "annotation" not in arrays:
            raise InputError(f"{path}: no array annotation (found {some(arrays) or 'none'})")
        entries = {entry.filename.removesuffix(".npy"): entry for entry in arrays.zip.infolist()}
        expect_room(path, entries["annotation"].file_size, max_gib, "data.")
        annotation = np.asarray(arrays["annotation"])
        expect_room(path, 4 * annotation.size, max_gib, "data.")
    if annotation.ndim != 2 or annotation.dtype.kind not in "biu":
        raise InputError(f"{path}: {annotation.dtype} of shape {annotation.shape}, expected integers of shape (H, W)")
    lowest, highest = int(annotation.min(initial=0)), int(annotation.max(initial=0))
    if lowest < 0 or highest > np.iinfo(np.int32).max:
        found = lowest if lowest < 0 else highest
        raise InputError(f"{path}: holds {found}, expected 0 for background, or an object's number below 2**31")
    return torch.from_numpy(annotation.astype(np.int32))


def _read_metadata(path: Path, max_gib: float) -> dict[str, Any]:
    with reading(path, "the metadata of a .grace folder"):
        expect_room(path, JSON_GROWTH * path.stat().st_size, max_gib, "data.")
        metadata = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(metadata, dict) or not isinstance(metadata.get("image_filename"), str):
        raise InputError(f"{path}: no image_filename, expected the name of the image the graph belongs to")
    return metadata
