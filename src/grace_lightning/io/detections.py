"""Detections: the points that a particle picker or a ridge filter put on a micrograph."""

from __future__ import annotations

import io
import os
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  # registers blosc with h5py
import numpy as np
import pandas as pd
import starfile
from numpy.typing import NDArray

from grace_lightning.errors import InputError
from grace_lightning.io._reading import reading, some

BOX_COLUMNS = ("x", "y", "Width", "Height", "Confidence")


def find_detections(directory: str | Path, stem: str) -> Path | None:
    """The first that exists of ``stem`` with the :data:`DETECTION_SUFFIXES`, in their order."""
    paths = (Path(directory) / f"{stem}{suffix}" for suffix in DETECTION_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def read_detections(path: str | Path) -> pd.DataFrame:
    """Positions of detections on one micrograph.

    ==========  =======================================================================================
    ``.h5``     pandas frame under key ``df``, fixed or table format; columns of Python objects are left out
    ``.star``   RELION: ``rlnCoordinateX``, ``rlnCoordinateY``, ``rlnAutopickFigureOfMerit``
    ``.cbox``   crYOLO, as STAR or as the older bare table: box corner, width, height, confidence
    ``.box``    EMAN: box corner, width, height
    ``.csv``    columns ``x``, ``y`` or ``X``, ``Y`` or napari's ``axis-0`` (y), ``axis-1`` (x)
    ==========  =======================================================================================

    Parameters
    ----------
    path : ends in one of :data:`DETECTION_SUFFIXES`

    Returns
    -------
    One row per detection, in the file's order. Columns: ``x``, ``y`` in pixels (boxes by their centre); ``confidence``
    where the file has it; ``filament`` where crYOLO numbered them; the file's further columns under their own names.

    Raises
    ------
    InputError
        The file is missing or damaged, has no x or y, or a value of them is not a finite number.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: not a detection file by its name, expected {', '.join(DETECTION_SUFFIXES)}")
    with reading(path, f"{path.suffix.lower()[1:]} detections"):
        frame = reader(path)
    return _checked(path, frame.reset_index(drop=True))


def write_detections(path: str | Path, frame: pd.DataFrame) -> None:
    """Write ``frame`` (numbers; at least ``x``, ``y`` in pixels) so that ``pandas.read_hdf(path, "df")`` reads it.

    Fixed format, all columns float64, without PyTables.
    """
    path = Path(path)
    frame = _checked(path, frame)
    names = np.char.encode(np.array(frame.columns, dtype=str), "utf-8")
    array: dict[str, Any] = {"CLASS": "ARRAY", "FLAVOR": "numpy", "TITLE": "", "VERSION": "2.4"}
    index = array | {"kind": "integer", "name": _PICKLED_NONE}
    labels = array | {"kind": "string", "name": _PICKLED_NONE, "nan_rep": "", "transposed": np.uint8(1)}
    arrays: dict[str, tuple[NDArray[Any], dict[str, Any]]] = {"axis0": (names, labels), "block0_items": (names, labels)}
    if len(frame):
        arrays["axis1"] = np.arange(len(frame)), index
        arrays["block0_values"] = frame.to_numpy(np.float64), array | {"transposed": np.uint8(1)}
    else:  # pandas puts a placeholder for an empty array, and its type and pickled shape beside it
        arrays["axis1"] = np.zeros(1), index | {"value_type": "int64", "shape": b"(I0\ntp0\n."}
        shape = b"(I%d\nI0\ntp0\n." % len(names)
        arrays["block0_values"] = np.zeros((1, 1)), array | {"value_type": "float64", "shape": shape}
    group = {"CLASS": "GROUP", "TITLE": "", "VERSION": "1.0"}
    varieties = dict.fromkeys(("axis0_variety", "axis1_variety", "block0_items_variety"), "regular")
    kind = {"pandas_type": "frame", "encoding": "UTF-8", "errors": "strict", "ndim": 2, "nblocks": 1}
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with h5py.File(unfinished, "w") as file:
            _set_attributes(file, group | {"PYTABLES_FORMAT_VERSION": "2.1"})
            _set_attributes(file.create_group("df"), group | kind | varieties)
            for name, (values, attributes) in arrays.items():
                _set_attributes(file["df"].create_dataset(name, data=values), attributes)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


_PICKLED_NONE = b"N."


def _set_attributes(node: Any, attributes: dict[str, Any]) -> None:
    """Attributes as PyTables writes them: text is UTF-8 of fixed length, pickles are bytes."""
    for name, value in attributes.items():
        if isinstance(value, str):
            dtype = h5py.string_dtype("utf-8", max(len(value), 1))
            value = np.array(value.encode(), dtype) if value else h5py.Empty(dtype)
        node.attrs[name] = np.bytes_(value) if isinstance(value, bytes) else value


def _checked(path: Path, frame: pd.DataFrame) -> pd.DataFrame:
    missing = [name for name in ("x", "y") if name not in frame]
    if missing:
        raise InputError(f"{path}: no column {' and '.join(missing)}, expected x and y (found {some(frame.columns)})")
    frame = frame.copy()
    if "confidence" in frame and len(frame) and frame["confidence"].isna().all():
        del frame["confidence"]
    for name in {"x", "y", "confidence"}.intersection(frame):
        values = pd.to_numeric(frame[name], errors="coerce")
        wrong = ~np.isfinite(values.to_numpy(np.float64))
        if wrong.any():
            row = int(wrong.argmax())
            raise InputError(
                f"{path}: {name} of detection {row} is {frame[name].iloc[row]}, expected a finite number "
                f"({int(wrong.sum())} of {len(frame)} are not)"
            )
        frame[name] = values if values.dtype.kind == "f" else values.astype(np.float64)
    return frame


def _read_h5(path: Path) -> pd.DataFrame:
    with h5py.File(path, "r") as file:
        if "df" not in file:
            raise InputError(f"{path}: no key df (found {some(file) or 'none'}), expected a frame of DataFrame.to_hdf")
        group = file["df"]
        if isinstance(group, h5py.Group) and "table" in group:
            return pd.DataFrame(_table_columns(path, group["table"]))
        if isinstance(group, h5py.Group) and "nblocks" in group.attrs:
            return pd.DataFrame(_fixed_columns(group))
        raise InputError(f"{path}: key df is not a pandas frame, expected one written by DataFrame.to_hdf")


def _fixed_columns(group: Any) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for block in range(int(group.attrs["nblocks"])):
        items, values = group[f"block{block}_items"], group[f"block{block}_values"]
        if values.dtype.kind == "O":  # pickled, and a pickle can run anything
            continue
        names = [item.decode() if isinstance(item, bytes) else str(item) for item in items[()]]
        data = values[()] if values.attrs.get("transposed", 0) else values[()].T
        if "shape" in values.attrs:  # an empty frame; the array is a placeholder
            data = np.empty((0, len(names)))
        columns.update(zip(names, data.T, strict=True))
    return columns


def _table_columns(path: Path, table: Any) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    rows = table[()]
    for name in rows.dtype.names:
        if name == "index":
            continue
        values = rows[name].reshape(len(rows), rows.dtype[name].shape[0] if rows.dtype[name].shape else 1)
        if values.dtype.kind == "S":
            values = np.char.decode(values, "utf-8", "replace")
        columns.update(zip(_pickled_names(path, table.attrs[f"{name}_kind"]), values.T, strict=True))
    return columns


_PICKLED_NAMES = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "STRING", "SHORT_BINSTRING", "INT", "BININT", "BININT1"}
_PICKLED_LIST = {
    "PROTO",
    "FRAME",
    "MARK",
    "LIST",
    "EMPTY_LIST",
    "APPEND",
    "APPENDS",
    "PUT",
    "BINPUT",
    "MEMOIZE",
    "STOP",
}


def _pickled_names(path: Path, pickled: bytes) -> list[str]:
    """Column names from a pickled list of strings, which is read but not run."""
    steps = [(opcode.name, argument) for opcode, argument, _ in pickletools.genops(bytes(pickled))]
    refused = {name for name, _ in steps} - _PICKLED_NAMES - _PICKLED_LIST
    if refused:
        raise InputError(
            f"{path}: the column names are pickled with {some(sorted(refused))}, expected a plain list of strings; "
            "save the frame again with to_hdf(format='fixed')"
        )
    return [str(argument) for name, argument in steps if name in _PICKLED_NAMES]


def _read_star(path: Path) -> pd.DataFrame:
    blocks = starfile.read(path, always_dict=True)
    frames = [block for block in blocks.values() if "rlnCoordinateX" in block and "rlnCoordinateY" in block]
    if not frames:
        found = some(name for block in blocks.values() for name in block)
        raise InputError(f"{path}: no block with rlnCoordinateX and rlnCoordinateY (found {found or 'nothing'})")
    frame = frames[0] if isinstance(frames[0], pd.DataFrame) else pd.DataFrame([frames[0]])
    names = frame["rlnMicrographName"].unique() if "rlnMicrographName" in frame else ()
    if len(names) > 1:
        raise InputError(f"{path}: holds {len(names)} micrographs ({some(names, 2)}), expected one file for each")
    return frame.rename(
        columns={"rlnCoordinateX": "x", "rlnCoordinateY": "y", "rlnAutopickFigureOfMerit": "confidence"}
    )


def _read_cbox(path: Path) -> pd.DataFrame:
    if not any(line.startswith("data_") for line in path.read_text(encoding="utf-8").splitlines()):
        return _read_box(path)
    blocks = starfile.read(path, always_dict=True)
    if "cryolo" not in blocks:
        raise InputError(f"{path}: no block data_cryolo (found {some(blocks)}), expected a file that crYOLO wrote")
    names = {"CoordinateX": "x", "CoordinateY": "y", "filamentid": "filament"}
    return _centred(path, blocks["cryolo"].rename(columns=names))


def _read_box(path: Path) -> pd.DataFrame:
    text = path.read_text(encoding="utf-8")
    if not text.strip():  # how crYOLO says that it found nothing
        return pd.DataFrame({"x": [], "y": []})
    frame = pd.read_csv(io.StringIO(text), sep=r"\s+", header=None, comment="#")
    if path.suffix.lower() == ".box":  # EMAN's fifth column is a code
        frame = frame.iloc[:, :4]
    frame.columns = pd.Index([*BOX_COLUMNS, *map(str, range(len(BOX_COLUMNS), frame.shape[1]))][: frame.shape[1]])
    return _centred(path, frame)


def _centred(path: Path, frame: pd.DataFrame) -> pd.DataFrame:
    missing = [name for name in BOX_COLUMNS[:4] if name not in frame]
    if missing:
        raise InputError(f"{path}: {frame.shape[1]} columns without {some(missing)}, expected corner, width and height")
    corner_and_size = frame[list(BOX_COLUMNS[:4])].apply(pd.to_numeric, errors="coerce").astype(np.float64)
    frame["x"] = corner_and_size["x"] + corner_and_size["Width"] / 2
    frame["y"] = corner_and_size["y"] + corner_and_size["Height"] / 2
    return frame.rename(columns={"Confidence": "confidence"})


def _read_csv(path: Path) -> pd.DataFrame:
    frame = pd.read_csv(path, skipinitialspace=True)
    if "axis-2" in frame:
        raise InputError(f"{path}: points in three dimensions (axis-2), expected axis-0 (y) and axis-1 (x)")
    aliases = {"X": "x", "Y": "y", "axis-0": "y", "axis-1": "x"}
    return frame.rename(columns={name: alias for name, alias in aliases.items() if alias not in frame})


_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".h5": _read_h5,
    ".star": _read_star,
    ".cbox": _read_cbox,
    ".box": _read_box,
    ".csv": _read_csv,
}
DETECTION_SUFFIXES = tuple(_READERS)
"""Names of detection files end in one of these."""
