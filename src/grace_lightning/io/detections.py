"""Detections: the points that a particle picker or a ridge filter put on a micrograph."""

import io
import pickle
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  # registers blosc with h5py
import numpy as np
import pandas as pd
import starfile
import torch
from torch import Tensor

from grace_lightning.errors import InputError, InputWarning
from grace_lightning.files import reading, replacing, some
from grace_lightning.graph import distinct


def find_detections(directory: str | Path, stem: str) -> Path | None:
    """Return the first file that exists of ``stem`` with the :data:`DETECTION_SUFFIXES`, in their order."""
    paths = (Path(directory) / f"{stem}{suffix}" for suffix in DETECTION_SUFFIXES)
    return next(filter(Path.is_file, paths), None)


def read_detections(path: str | Path) -> pd.DataFrame:
    """Read the detections on one micrograph, one row each, in the file's order.

    ==========  =======================================================================================
    ``.h5``     pandas frame under key ``df``, fixed or table format; columns of Python objects are left out
    ``.star``   RELION: ``rlnCoordinateX``, ``rlnCoordinateY``, ``rlnAutopickFigureOfMerit``
    ``.cbox``   crYOLO, as STAR or as the older bare table: box corner, width, height, confidence
    ``.box``    EMAN: box corner, width, height
    ``.csv``    columns ``x``, ``y`` or ``X``, ``Y`` or napari's ``axis-0`` (y), ``axis-1`` (x)
    ==========  =======================================================================================

    Columns: ``x``, ``y`` in pixels (boxes by their centre); ``confidence``, ``filament`` (crYOLO's number) and others
    if the file has them. ``x``, ``y`` and ``confidence`` must be finite.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise InputError(f"{path}: not a detection file by its name, expected {', '.join(DETECTION_SUFFIXES)}")
    with reading(path, f"{suffix[1:]} detections"):
        frame = _READERS[suffix](path).reset_index(drop=True)
    if missing := [name for name in ("x", "y") if name not in frame]:
        raise InputError(f"{path}: no column {' and '.join(missing)}, expected x and y (found {some(frame.columns)})")
    if "confidence" in frame and len(frame) and frame["confidence"].isna().all():
        del frame["confidence"]
    for name in frame.columns.intersection(["x", "y", "confidence"]):
        values = pd.to_numeric(frame[name], errors="coerce")
        wrong = np.flatnonzero(~np.isfinite(values.to_numpy(np.float64)))
        if len(wrong):
            found = f"{name} of detection {wrong[0]} is {frame[name].iloc[wrong[0]]}"
            raise InputError(f"{path}: {found}, expected a finite number ({len(wrong)} of {len(frame)} are not)")
        frame[name] = values if values.dtype.kind == "f" else values.astype(np.float64)
    return frame


def read_points(path: str | Path) -> tuple[Tensor, Tensor | None]:
    """Return positions, (N, 2) float32 pixels, and scores, (N,) float32, or None if the file has none.

    Detections that lie exactly on another one stay, with an :class:`InputWarning`: in a graph they are one node.
    """
    frame = read_detections(path)
    pos = torch.from_numpy(frame[["x", "y"]].to_numpy(np.float32, copy=True))
    if duplicates := len(pos) - len(distinct(pos)[0]):
        found = f"{duplicates} of {len(pos)} detections lie exactly on another one and are one node with it"
        warnings.warn(f"{path}: {found}", InputWarning, stacklevel=2)
    score = frame.get("confidence")
    return pos, None if score is None else torch.from_numpy(score.to_numpy(np.float32, copy=True))


def write_detections(path: str | Path, frame: pd.DataFrame) -> None:
    """Write ``frame`` (numbers; at least ``x``, ``y`` in pixels) so that ``pandas.read_hdf(path, "df")`` reads it.

    Fixed format, all columns float64, without PyTables; with no more attributes than pandas 2.1 and 3 need.
    """
    names = np.char.encode(np.array(frame.columns, dtype=str), "utf-8")
    arrays: tuple[tuple[str, Any, dict[str, Any]], ...] = (
        ("axis0", names, {"kind": "string"}),
        ("axis1", np.arange(len(frame)), {"kind": "integer"}),
        ("block0_items", names, {"kind": "string"}),
        ("block0_values", frame.to_numpy(np.float64), {"transposed": 1}),
    )
    with replacing(path) as unfinished, h5py.File(unfinished, "w") as file:
        group = file.create_group("df")
        group.attrs.update({"pandas_type": "frame", "encoding": "UTF-8", "errors": "strict", "ndim": 2, "nblocks": 1})
        group.attrs.update({f"{name}_variety": "regular" for name, *_ in arrays[:3]})
        for name, values, attributes in arrays:
            if not values.size:  # HDF5 of old had no empty arrays: pandas looks for a placeholder with type and shape
                attributes |= {"value_type": str(values.dtype), "shape": np.array(values.shape)}
                values = np.zeros((1,) * values.ndim)
            group.create_dataset(name, data=values).attrs.update(attributes)


def _read_h5(path: Path) -> pd.DataFrame:
    with h5py.File(path, "r") as file:
        group = file.get("df")
        if not isinstance(group, h5py.Group) or not ("table" in group or "nblocks" in group.attrs):
            raise InputError(f"{path}: no frame under key df of DataFrame.to_hdf (keys: {some(file) or 'none'})")
        blocks = _table_blocks(group["table"]) if "table" in group else _fixed_blocks(group)
        return pd.DataFrame({n: column for names, data in blocks for n, column in zip(names, data, strict=True)})


def _fixed_blocks(group: Any) -> Iterator[tuple[Iterable[str], Any]]:
    for block in range(int(group.attrs["nblocks"])):
        items, values = group[f"block{block}_items"], group[f"block{block}_values"]
        if values.dtype.kind == "O":  # pickled, and a pickle can run anything
            continue
        data = values[()].T if values.attrs.get("transposed", 0) else values[()]
        if "shape" in values.attrs:  # an empty frame; the array is a placeholder
            data = np.empty((len(items), 0))
        yield items.asstr("utf-8")[()], data


def _table_blocks(table: Any) -> Iterator[tuple[Iterable[str], Any]]:
    rows = table[()]
    for block in rows.dtype.names:
        if block != "index":
            data = np.atleast_2d(rows[block].T)
            names = _PlainUnpickler(io.BytesIO(table.attrs[f"{block}_kind"])).load()
            yield map(str, names), np.char.decode(data, "utf-8", "replace") if data.dtype.kind == "S" else data


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists of strings and refuses everything that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        remedy = "expected plain strings; save it with to_hdf(format='fixed')"
        raise pickle.UnpicklingError(f"column names pickled with {module}.{name}, {remedy}")


def _read_star(path: Path) -> pd.DataFrame:
    blocks = starfile.read(path, always_dict=True)
    frames = [block for block in blocks.values() if "rlnCoordinateX" in block and "rlnCoordinateY" in block]
    if not frames:
        found = some(name for block in blocks.values() for name in block)
        raise InputError(f"{path}: no block with rlnCoordinateX and rlnCoordinateY (found {found or 'nothing'})")
    frame = frames[0] if isinstance(frames[0], pd.DataFrame) else pd.DataFrame([frames[0]])
    micrographs = frame["rlnMicrographName"].unique() if "rlnMicrographName" in frame else ()
    if len(micrographs) > 1:
        raise InputError(f"{path}: {len(micrographs)} micrographs ({some(micrographs, 2)}), expected one per file")
    names = {"rlnCoordinateX": "x", "rlnCoordinateY": "y", "rlnAutopickFigureOfMerit": "confidence"}
    return frame.rename(columns=names)


def _read_boxes(path: Path) -> pd.DataFrame:
    columns = ["CoordinateX", "CoordinateY", "Width", "Height", "Confidence"]
    text = path.read_text(encoding="utf-8")
    if not text.strip():  # how crYOLO says that it found nothing
        return pd.DataFrame({"x": [], "y": []})
    if re.search("^data_", text, re.MULTILINE):
        blocks = starfile.read(path, always_dict=True)
        if "cryolo" not in blocks:
            raise InputError(f"{path}: no block data_cryolo (found {some(blocks)}), expected a file that crYOLO wrote")
        frame: pd.DataFrame = blocks["cryolo"]
    else:
        frame = pd.read_csv(io.StringIO(text), sep=r"\s+", header=None, comment="#")
        if path.suffix.lower() == ".box":  # EMAN's fifth column is a code
            frame = frame.iloc[:, :4]
        frame = frame.rename(columns=dict(enumerate(columns))).rename(columns=str)
    if missing := [name for name in columns[:4] if name not in frame]:
        raise InputError(f"{path}: {frame.shape[1]} columns without {some(missing)}, expected corner, width and height")
    x, y, width, height = (pd.to_numeric(frame[name], errors="coerce").astype(float) for name in columns[:4])
    frame = frame.assign(CoordinateX=x + width / 2, CoordinateY=y + height / 2)
    names = {"CoordinateX": "x", "CoordinateY": "y", "Confidence": "confidence", "filamentid": "filament"}
    return frame.rename(columns=names)


def _read_csv(path: Path) -> pd.DataFrame:
    frame = pd.read_csv(path, skipinitialspace=True)
    if "axis-2" in frame:
        raise InputError(f"{path}: points in three dimensions (axis-2), expected axis-0 (y) and axis-1 (x)")
    aliases = {"X": "x", "Y": "y", "axis-0": "y", "axis-1": "x"}
    return frame.rename(columns={name: alias for name, alias in aliases.items() if alias not in frame})


_READERS = {".h5": _read_h5, ".star": _read_star, ".cbox": _read_boxes, ".box": _read_boxes, ".csv": _read_csv}
DETECTION_SUFFIXES = tuple(_READERS)
"""What names of detection files end in."""
