"""Detections: the points that a particle picker or a ridge filter put on a micrograph."""

import csv
import io
import pickle
import pickletools
import re
import warnings
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

import h5py
import hdf5plugin  # noqa: F401  # registers blosc with h5py
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from grace_lightning.errors import InputError, InputWarning
from grace_lightning.files import MAX_GIB, expect_room, reading, replacing, some
from grace_lightning.graph import distinct

DetectionsFormat = Literal["h5", "star", "cbox", "box", "csv"]


class Found(NamedTuple):
    """The file that each image has of a kind, why images failed, and what to tell the user; by an image's name."""

    files: dict[str, Path]
    failures: dict[str, str]
    notes: list[str]


def list_detections(directory: str | Path, only: DetectionsFormat | None = None) -> dict[str, list[Path]]:
    """Return the files of a folder with one of the :data:`DETECTION_SUFFIXES`, in their order, by the files' stem."""
    suffixes = DETECTION_SUFFIXES if only is None else (f".{only}",)
    files = [path for path in sorted(Path(directory).iterdir()) if path.is_file() and not path.name.startswith(".")]
    listed: dict[str, list[Path]] = {}
    for suffix in suffixes:
        for path in files:
            if path.suffix.lower() == suffix:
                listed.setdefault(path.stem, []).append(path)
    return listed


def find_detections(directory: str | Path, names: Container[str], only: DetectionsFormat | None = None) -> Found:
    """Find the file that holds the detections of each image; images are named by their stem.

    If several files hold detections of an image, nothing tells which are meant, and the image fails; it is an
    :class:`InputError` if no image has just one. A ``.star`` without picks, such as RELION writes beside each
    micrograph when it corrects motion, is passed over.
    """
    listed = {name: paths for name, paths in list_detections(directory, only).items() if name in names}
    return one_file_each(directory, listed, "detections", "detections_format")


def one_file_each(directory: str | Path, listed: Mapping[str, list[Path]], what: str, key: str) -> Found:
    """Take the only file of each image, by its name, that may hold ``what``; ``key`` is that of the format to take."""
    others = {path for paths in listed.values() for path in paths if not _may_hold_picks(path)}
    held = {name: [path for path in paths if path not in others] for name, paths in sorted(listed.items())}
    files = {name: paths[0] for name, paths in held.items() if len(paths) == 1}
    failures = {}
    for name, paths in held.items():
        if len(paths) > 1:
            either = " or ".join(dict.fromkeys(path.suffix.lower()[1:] for path in paths))
            remedy = f"set {key}={either}" if " or " in either else "move the others away"
            failures[name] = f"{some(path.name for path in paths)} all hold {what}, expected one file; {remedy}"
    if failures and not files:
        name, message = next(iter(failures.items()))
        raise InputError(f"{directory}: no image has a single file of {what}; of {name}, {message}")
    notes = []
    if others:
        stars = sum(path.suffix.lower() == ".star" for paths in listed.values() for path in paths)
        found = f"{len(others)} of {stars} .star files hold no picks and were passed over"
        notes.append(f"{directory}: {found}: {some(sorted(path.name for path in others))}")
    formats = Counter(path.suffix.lower() for path in files.values())
    if len(formats) > 1:
        counts = ", ".join(f"{suffix} of {count}" for suffix, count in formats.most_common())
        found = f"{what} are {counts} of {len(files)} images"
        notes.append(f"{directory}: {found}; {key} takes those of one format only")
    return Found(files, {name: f"{directory}: {message}" for name, message in failures.items()}, notes)


def _may_hold_picks(path: Path) -> bool:
    if path.suffix.lower() != ".star":
        return True
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            return _picks(_star_blocks(file.read(2**26))) is not None
    except OSError:
        return True  # whoever reads it will say why it cannot be read


def read_detections(
    path: str | Path, *, pixel_size: float | None = None, max_gib: float = MAX_GIB, group: str = ""
) -> pd.DataFrame:
    """Read the detections on one micrograph, one row each, in the file's order.

    ==========  =======================================================================================
    ``.h5``     pandas frame under key ``df``, fixed or table format; columns of Python objects are left out
    ``.star``   RELION: ``rlnCoordinateX``, ``rlnCoordinateY`` less the origin, ``rlnAutopickFigureOfMerit``
    ``.cbox``   crYOLO, as STAR or as the older bare table: box corner, width, height, confidence
    ``.box``    EMAN: box corner, width, height; or centres below lines ``#helix:``, as crYOLO writes segments
    ``.csv``    columns ``x``, ``y`` or ``X``, ``Y`` or napari's ``axis-0`` (y), ``axis-1`` (x)
    ==========  =======================================================================================

    Columns: ``x``, ``y`` in pixels (boxes by their centre); ``confidence``, ``filament`` (crYOLO's number) and others
    if the file has them. ``x``, ``y`` and ``confidence`` must be finite; a confidence that is missing is 1 unless all
    are. ``pixel_size`` is that of the micrograph, Angstrom, for origins in a ``.star`` that does not say it.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise InputError(f"{path}: not a detection file by its name, expected {', '.join(DETECTION_SUFFIXES)}")
    options: dict[str, Any] = {".h5": {"max_gib": max_gib, "group": group}, ".star": {"pixel_size": pixel_size}}
    with reading(path, f"{suffix[1:]} detections"):
        expect_room(path, path.stat().st_size, max_gib, group)
        frame = _READERS[suffix](path, **options.get(suffix, {})).reset_index(drop=True)
        _expect_distinct(path, map(str, frame.columns))
        if missing := [name for name in ("x", "y") if name not in frame]:
            found = f"no column {' and '.join(missing)}, expected x and y (found {_named(frame.columns)})"
            raise InputError(f"{path}: {found}")
        for name in frame.columns.intersection(["z", "Z", "CoordinateZ", "rlnCoordinateZ"]):
            if len(frame[name].dropna().unique()) > 1:
                raise InputError(f"{path}: points in three dimensions ({name}), expected those of one image")
        if "confidence" in frame and len(frame) and frame["confidence"].isna().all():
            del frame["confidence"]
        for name in frame.columns.intersection(["x", "y", "confidence"]):
            given = frame[name].fillna(1) if name == "confidence" else frame[name]
            values = pd.to_numeric(given, errors="coerce")
            # Finite in 32 bits, as the network and the triangulation take them.
            wrong = np.flatnonzero(~(np.abs(values.to_numpy(np.float64)) <= np.finfo(np.float32).max))
            if len(wrong):
                found = f"{name} of detection {wrong[0]} is {given.iloc[wrong[0]]}"
                raise InputError(
                    f"{path}: {found}, expected a finite number below 3e38 ({len(wrong)} of {len(frame)} are not)"
                )
            frame[name] = values if values.dtype.kind == "f" else values.astype(np.float64)
    return frame


def read_points(
    path: str | Path, *, pixel_size: float | None = None, max_gib: float = MAX_GIB, group: str = ""
) -> tuple[Tensor, Tensor | None]:
    """Return positions, (N, 2) float32 pixels, and scores, (N,) float32, or None if the file has none.

    See :func:`read_detections`. Detections that lie exactly on another one stay, with an :class:`InputWarning`: in a
    graph they are one node.
    """
    frame = read_detections(path, pixel_size=pixel_size, max_gib=max_gib, group=group)
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
    content = io.BytesIO()  # on a full disk, HDF5 itself loses data without an error, or ends the whole process
    with h5py.File(content, "w") as file:
        group = file.create_group("df")
        group.attrs.update({"pandas_type": "frame", "encoding": "UTF-8", "errors": "strict", "ndim": 2, "nblocks": 1})
        group.attrs.update({f"{name}_variety": "regular" for name, *_ in arrays[:3]})
        for name, values, attributes in arrays:
            if not values.size:  # HDF5 of old had no empty arrays: pandas looks for a placeholder with type and shape
                attributes |= {"value_type": str(values.dtype), "shape": np.array(values.shape)}
                values = np.zeros((1,) * values.ndim)
            group.create_dataset(name, data=values).attrs.update(attributes)
    with replacing(path) as unfinished:
        unfinished.write_bytes(content.getvalue())


def _named(names: Iterable[object]) -> str:
    return some(map(str, names))


def _expect_distinct(path: Path, names: Iterable[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{path}: two columns are called {_named(twice)}, expected one; remove or rename the other")


def _read_h5(path: Path, max_gib: float, group: str) -> pd.DataFrame:
    with h5py.File(path, "r") as file:
        frame = _member(file, "df")
        if not isinstance(frame, h5py.Group) or not ("table" in frame or "nblocks" in frame.attrs):
            raise InputError(f"{path}: no frame under key df of DataFrame.to_hdf (keys: {some(file) or 'none'})")
        members = [_member(frame, name) for name in frame]
        stored = [item for item in members if isinstance(item, h5py.Dataset) and not item.dtype.hasobject]
        sizes = (item.dtype.itemsize * max(item.size, prod(item.chunks or ())) for item in stored)
        expect_room(path, sum(sizes), max_gib, group)
        blocks = _table_blocks(frame["table"]) if "table" in frame else _fixed_blocks(frame)
        columns = [(name, column) for names, data in blocks for name, column in zip(names, data, strict=True)]
        _expect_distinct(path, (name for name, _ in columns))
        return pd.DataFrame(dict(columns))


def _member(group: Any, name: str) -> Any:
    """Return a member of an HDF5 group, None if there is none; what lies in another file is refused unopened."""
    away = isinstance(group.get(name, getlink=True), h5py.ExternalLink)
    item = None if away else group.get(name)
    if away or (isinstance(item, h5py.Dataset) and (item.is_virtual or item.external)):
        raise ValueError(f"{name} lies in another file, expected it in this one")
    return item


def _fixed_blocks(group: Any) -> Iterator[tuple[Iterable[str], Any]]:
    for block in range(int(group.attrs["nblocks"])):
        items, values = group[f"block{block}_items"], group[f"block{block}_values"]
        if values.dtype.kind == "O":  # pickled, and a pickle can run anything
            continue
        if items.dtype.kind != "S":
            raise TypeError(f"names of columns of type {items.dtype}, expected strings")
        data = values[()].T if values.attrs.get("transposed", 0) else values[()]
        if "shape" in values.attrs:  # an empty frame; the array is a placeholder
            data = np.empty((len(items), 0))
        yield np.char.decode(items[()], "utf-8").tolist(), data


def _table_blocks(table: Any) -> Iterator[tuple[Iterable[str], Any]]:
    if table.dtype.hasobject:
        raise TypeError("a table of Python objects, expected numbers and strings")
    rows = table[()]
    for block in rows.dtype.names:
        if block != "index":
            data = np.atleast_2d(rows[block].T)
            names = _plain_strings(table.attrs[f"{block}_kind"])
            yield names, np.char.decode(data, "utf-8", "replace") if data.dtype.kind == "S" else data


def _plain_strings(pickled: bytes) -> list[str]:
    """Return the strings and integers of a pickled list; nothing is unpickled, as a pickle can run anything."""
    found = []
    for operation, argument, _ in pickletools.genops(pickled):
        if re.fullmatch("(SHORT_)?(BIN)?(STRING|UNICODE8?|INT[12]?)", operation.name):
            found.append(str(argument))
        elif not re.fullmatch("PROTO|FRAME|MARK|(EMPTY_)?LIST|APPENDS?|(LONG_)?(BIN)?PUT|MEMOIZE|STOP", operation.name):
            remedy = "expected plain strings; save it with to_hdf(format='fixed')"
            raise pickle.UnpicklingError(f"column names pickled with {operation.name} {argument}, {remedy}")
    return found


# A quoted string ends at a quote before a blank; # begins a comment only where a string could begin (CIF 1.1; the same
# in RELION, nextTokenInSTAR in its src/strings.cpp).
_STAR_QUOTED = re.compile(r"""(?<!\S)(?:'(?P<single>.{0,999}?)'(?!\S)|"(?P<double>.{0,999}?)"(?!\S)|\#.*)""")


def _star_blocks(text: str) -> dict[str, str]:
    """Split a STAR file at its lines ``data_name``. Micrographs may be called ``data_x``, in rows of more columns."""
    _, *parts = re.split(r"^data_(\S*)[ \t\r]*$", text, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _picks(blocks: Mapping[str, str]) -> str | None:
    """Return the block with picks. RELION's motion correction has two that are coordinates of something else."""
    found = (block for name, block in blocks.items() if name not in ("hot_pixels", "local_shift"))
    return next((block for block in found if "_rlnCoordinateX" in block and "_rlnCoordinateY" in block), None)


def _star_table(path: Path, block: str) -> pd.DataFrame:
    """Read a block of a STAR file, a loop or single values."""

    def as_csv(quoted: re.Match[str]) -> str:
        content = quoted["single"] if quoted["single"] is not None else quoted["double"]
        return "" if content is None else '"' + content.replace('"', '""') + '"'

    block = _STAR_QUOTED.sub(as_csv, block).strip()
    if block.startswith("loop_"):
        # A name stands alone on its line; the first column of a row may begin with _ as well.
        header = re.match(r"loop_\s*((?:^_\S+[ \t]*(?:\n|\Z)\s*)*)", block, re.MULTILINE)
        assert header is not None
        names, rows = re.findall(r"_(\S+)", header[1]), block[header.end() :]
    else:
        pairs = [line[1:].split(None, 1) for line in block.splitlines() if line.startswith("_")]
        names, rows = [pair[0] for pair in pairs], " ".join(pair[-1] for pair in pairs)
    _expect_distinct(path, names)
    if not rows:
        return pd.DataFrame(columns=names, dtype=np.float64)
    frame = pd.read_csv(
        io.StringIO(rows),
        sep=r"\s+",
        header=None,
        keep_default_na=False,
        na_values=["nan", "NaN", "<NA>"],
        low_memory=False,
    )
    if frame.shape[1] != len(names) or ('"' not in rows and frame.size != len(rows.split())):
        raise InputError(f"{path}: rows of another length than the {len(names)} columns; is the file cut short?")
    return frame.set_axis(names, axis=1)


def _read_star(path: Path, pixel_size: float | None) -> pd.DataFrame:
    text = path.read_text(encoding="utf-8-sig", errors="replace")  # some name of a file may be in another encoding
    blocks = _star_blocks(text)
    block = _picks(blocks)
    if block is None:
        found = some(re.findall(r"^_(\S+)", text, re.MULTILINE)) or "nothing"
        raise InputError(f"{path}: no block with rlnCoordinateX and rlnCoordinateY of picks (found {found})")
    frame = _star_table(path, block)
    micrographs = frame["rlnMicrographName"].unique() if "rlnMicrographName" in frame else ()
    if len(micrographs) > 1:
        raise InputError(f"{path}: {len(micrographs)} micrographs ({_named(micrographs[:2])}), expected one per file")
    frame = _without_origins(path, frame, _star_table(path, blocks.get("optics", "")), pixel_size)
    names = {"rlnCoordinateX": "x", "rlnCoordinateY": "y", "rlnAutopickFigureOfMerit": "confidence"}
    return frame.rename(columns=names)


def _without_origins(path: Path, frame: pd.DataFrame, optics: pd.DataFrame, pixel_size: float | None) -> pd.DataFrame:
    """Subtract from RELION's coordinates the shifts that a refinement found; the difference is the particle's centre.

    Re-extraction does so with ``--recenter`` (RELION's ``src/preprocessing.cpp``). ``rlnOriginXAngst`` is in Angstrom,
    ``rlnOriginX`` before RELION 3.1 in pixels of the particle's image, which may be smaller than the micrograph's.
    """
    if "rlnOpticsGroup" in frame and "rlnOpticsGroup" in optics:
        optics = optics[optics["rlnOpticsGroup"].isin(frame["rlnOpticsGroup"])]

    def sizes(*names: str) -> NDArray[np.float64]:
        found = [pd.to_numeric(table[name]) for name in names for table in (optics, frame) if name in table]
        return np.unique(np.concatenate([np.zeros(0), *found]).round(4))

    file, given = sizes("rlnMicrographPixelSize"), np.array([] if pixel_size is None else [pixel_size])
    other = sizes("rlnImagePixelSize", "rlnMicrographOriginalPixelSize")  # two if particles or movies were reduced
    micrograph = next((size[0] for size in (file, given, other) if len(size) == 1), None)
    image = sizes("rlnImagePixelSize")
    if not len(image) and {"rlnDetectorPixelSize", "rlnMagnification"} <= {*frame}:
        image = np.unique((1e4 * frame["rlnDetectorPixelSize"] / frame["rlnMagnification"]).round(4))  # micrometres
    reduced = image[0] / micrograph if len(image) == 1 and micrograph else 1.0
    for axis in "XY":
        angstrom, pixels = f"rlnOrigin{axis}Angst", f"rlnOrigin{axis}"
        if angstrom in frame and frame[angstrom].any():
            if micrograph is None:
                found = " and ".join(f"{size:g}" for size in other) or "none"
                expected = "expected rlnMicrographPixelSize in data_optics, or pixel_size of grace-predict"
                raise InputError(f"{path}: {angstrom} needs the micrograph's pixel size (found {found}), {expected}")
            frame[f"rlnCoordinate{axis}"] -= frame[angstrom] / micrograph
        elif angstrom not in frame and pixels in frame:
            frame[f"rlnCoordinate{axis}"] -= frame[pixels] * reduced
    return frame.drop(columns=[f"rlnOrigin{axis}{unit}" for axis in "XY" for unit in ("", "Angst")], errors="ignore")


def _read_boxes(path: Path) -> pd.DataFrame:
    columns = ["CoordinateX", "CoordinateY", "Width", "Height", "Confidence"]
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    if re.search("^data_", text, re.MULTILINE):
        blocks = _star_blocks(text)
        if "cryolo" not in blocks:
            raise InputError(f"{path}: no block data_cryolo (found {some(blocks)}), expected a file that crYOLO wrote")
        frame = _star_table(path, blocks["cryolo"])
    elif re.search(r"^[ \t]*[^#\s]", text, re.MULTILINE):
        frame = pd.read_csv(io.StringIO(text), sep=r"\s+", header=None, comment="#")
        if frame.shape[1] == 2 and "#helix" in text:
            return _helix_segments(text, frame)
        if path.suffix.lower() == ".box":
            frame = _without_codes(frame)
        frame = frame.rename(columns=dict(enumerate(columns))).rename(columns=str)
    else:
        frame = pd.DataFrame()
    if frame.empty and not len(frame.columns):  # how crYOLO says that it found nothing
        return pd.DataFrame({"x": [], "y": []})
    if missing := [name for name in columns[:4] if name not in frame]:
        raise InputError(f"{path}: {frame.shape[1]} columns without {some(missing)}, expected corner, width and height")
    x, y, width, height = (pd.to_numeric(frame[name], errors="coerce").astype(float) for name in columns[:4])
    if {"CoordinateZ", "Depth"} <= {*frame} and (frame["Depth"][frame["CoordinateZ"].notna()] > 1).any():
        raise InputError(f"{path}: boxes in three dimensions (Depth above 1), expected those of one image")
    frame = frame.assign(CoordinateX=x + width / 2, CoordinateY=y + height / 2)
    names = {"CoordinateX": "x", "CoordinateY": "y", "Confidence": "confidence", "filamentid": "filament"}
    return frame.rename(columns=names)


def _without_codes(frame: pd.DataFrame) -> pd.DataFrame:
    """Leave out EMAN's fifth column, a code; -1 at the start and -2 at the end of each helix number the filaments."""
    code, helices = frame.get(4), np.resize([-1, -2], len(frame))
    frame = frame.iloc[:, :4]
    ends = code is not None and len(frame) % 2 == 0 and np.array_equal(code, helices)
    return frame.assign(filament=np.arange(len(frame)) // 2) if ends else frame


def _helix_segments(text: str, centres: pd.DataFrame) -> pd.DataFrame:
    """Number the helices of segments that stand below lines ``#helix: (x1, y1),(x2, y2),width`` (e2helixboxer.py)."""
    lines = pd.Series(text.splitlines()).str.strip()
    number = lines.str.startswith("#helix").cumsum() - 1
    return centres.set_axis(["x", "y"], axis=1).assign(filament=number[lines.str.contains("^[^#]")].to_numpy())


def _read_csv(path: Path) -> pd.DataFrame:
    frame = read_table(path)
    if "shape-type" in frame:
        raise InputError(f"{path}: corners of shapes (shape-type), expected points; in napari, save a Points layer")
    aliases = {"X": "x", "Y": "y", "axis-0": "y", "axis-1": "x"}
    return frame.rename(columns={name: alias for name, alias in aliases.items() if alias not in frame})


def read_table(path: Path) -> pd.DataFrame:
    """Read a table of text, separated by commas, semicolons or tabs, as spreadsheets and napari write it."""
    text = path.read_text(encoding="utf-8-sig").lstrip("\n")
    header = text.partition("\n")[0]
    separator = next((character for character in ",;\t" if character in header), ",")
    names = next(csv.reader([header], delimiter=separator, skipinitialspace=True), [])
    _expect_distinct(path, filter(None, (name.strip(" #") for name in names)))  # pandas would rename them
    decimal = "," if separator == ";" else "."
    frame = pd.read_csv(io.StringIO(text), sep=separator, decimal=decimal, skipinitialspace=True, low_memory=False)
    frame.columns = frame.columns.str.strip(" #")
    if "axis-2" in frame:
        raise InputError(f"{path}: points in three dimensions (axis-2), expected axis-0 (y) and axis-1 (x)")
    return frame


_READERS: dict[str, Callable[..., pd.DataFrame]] = {
    ".h5": _read_h5,
    ".star": _read_star,
    ".cbox": _read_boxes,
    ".box": _read_boxes,
    ".csv": _read_csv,
}
DETECTION_SUFFIXES = tuple(_READERS)
"""What names of detection files end in, in any case."""
