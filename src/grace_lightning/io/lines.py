"""Lines along filaments, as people draw them and particle pickers trace them."""

import json
import logging
import re
import zipfile
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE, ImagejRoi
from scipy.interpolate import CubicSpline

from grace_lightning.errors import InputError
from grace_lightning.files import MAX_GIB, counted, expect_folder, expect_room, reading
from grace_lightning.graph import Floats
from grace_lightning.io.detections import Found, one_file_each, read_detections, read_table
from grace_lightning.io.grace import JSON_GROWTH

logging.getLogger("roifile").setLevel(logging.ERROR)  # it remarks on ROIs that are then left out

LinesFormat = Literal["roi", "zip", "csv", "star", "box", "cbox", "json"]

LINES_SUFFIXES = (".roi", ".zip", ".csv", ".star", ".box", ".cbox", ".json")
"""What names of files of lines end in, in any case; of ``.json`` files, those that end in ``polylines.json``."""

_ENDING = re.compile(r"[-_. ](lines?|polylines|filaments|shapes|rois?|roiset|manualpick|autopick)$", re.IGNORECASE)

MOST_POINTS = 100_000
"""Of a spline; a damaged file may say that it is as long as it likes."""

DRAWN = (ROI_TYPE.LINE, ROI_TYPE.POLYLINE, ROI_TYPE.FREELINE)  # straight, segmented and freehand lines of ImageJ


class Lines(NamedTuple):
    """Lines (P, 2), P 1 or more, pixels, columns x and y, and what to tell the user about their file."""

    lines: list[Floats]
    notes: list[str]
    types: list[int] | None = None  # of each line, from 1, 0 if it is not known; None: the file tells none


def find_lines(
    lines_dir: str | Path,
    names: Collection[str],
    only: LinesFormat | None = None,
    detections: Collection[Path] = (),
) -> Found:
    """Find the file that holds the lines of each image; images are named by their stem.

    The lines of an image ``X`` are ``X``, ``X_lines``, ``X.polylines``, ``X_RoiSet`` or the like with one of the
    :data:`LINES_SUFFIXES`, but not its ``detections`` if there is another file. If several files are left the image
    fails, see :func:`grace_lightning.io.find_detections`. It is an error if no image has lines.
    """
    expect_folder(lines_dir, "lines_dir")
    suffixes = LINES_SUFFIXES if only is None else (f".{only}",)
    picked = {path.resolve() for path in detections}
    listed: dict[str, list[Path]] = {}
    for path in sorted(Path(lines_dir).iterdir()):
        suffix, name = path.suffix.lower(), path.stem if path.stem in names else _ENDING.sub("", path.stem)
        other = suffix == ".json" and not path.stem.lower().endswith("polylines")
        if suffix in suffixes and name in names and path.is_file() and not other:
            listed.setdefault(name, []).append(path)
    if names and not listed:
        expected = f"files such as {min(names)}.roi or {min(names)}_lines.csv ({', '.join(suffixes)})"
        raise InputError(f"{lines_dir}: no lines for any of {counted(len(names), 'image')}, expected {expected}")
    for name, paths in listed.items():
        listed[name] = [path for path in paths if path.resolve() not in picked] or paths
    return one_file_each(lines_dir, listed, "lines", "lines_format")


def read_lines(
    path: str | Path,
    *,
    frame: int | str | None = None,
    pixel_size: float | None = None,
    max_gib: float = MAX_GIB,
) -> Lines:
    """Read the lines that were drawn on one micrograph, in the file's order; what else it holds is left out.

    ===================  ==============================================================================
    ``.roi``, ``.zip``   ImageJ: straight, segmented and freehand lines, also with a fitted spline
    ``.csv``             napari's shapes of type ``line`` and ``path``; or ``x``, ``y``, ``filament``
    ``.star``            RELION: ``rlnHelicalTubeID``, or else each two rows are a start and an end
    ``.box``             EMAN: boxes at start and end of helices, or segments below ``#helix:``
    ``.cbox``            crYOLO: boxes with ``_filamentid``
    ``polylines.json``   ``[[[x, y], ...], ...]``, or these as ``{"filaments": ...}``
    ===================  ==============================================================================

    Types of filaments are the groups of ROIs, a column ``type`` in ``.csv``, ``rlnParticleSelectionType``, or
    ``{"types": [...]}`` in ``polylines.json``.

    Of ROIs of a stack, those of ``frame`` are taken if it is an index. ``pixel_size`` is of
    :func:`grace_lightning.io.read_detections`.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in LINES_SUFFIXES:
        raise InputError(f"{path}: not a file of lines by its name, expected {', '.join(LINES_SUFFIXES)}")
    with reading(path, f"lines ({suffix[1:]})"):
        if suffix in (".roi", ".zip"):
            found = _read_rois(path, frame, max_gib)
        elif suffix == ".json":
            found = _read_json(path, max_gib)
        else:
            expect_room(path, path.stat().st_size, max_gib)
            table = read_table(path) if suffix == ".csv" else pd.DataFrame()
            shapes = "shape-type" in table
            found = _shapes(path, table) if shapes else _traced(path, pixel_size, max_gib)
        types = found.types and [int(number) for number in np.nan_to_num(np.asarray(found.types, np.float64))]
    for number, line in enumerate(found.lines, 1):
        if line.ndim != 2 or line.shape[1] != 2 or not len(line) or not np.isfinite(line).all():
            raise InputError(f"{path}: line {number} is not a list of finite x and y, expected [[x, y], ...]")
    if types and min(types) < 0:
        raise InputError(f"{path}: type {min(types)}, expected whole numbers from 1, or 0 if it is not known")
    return found._replace(types=types if types and any(types) else None)


def _left_out(path: Path, what: str, kept: int, others: Counter[str], expected: str) -> list[str]:
    """Return the remark on what is no line; it is an error if nothing else is there."""
    if not others:
        return []
    listed = ", ".join(f"{count} {kind}" for kind, count in others.most_common())
    if not kept:
        raise InputError(f"{path}: no {what} is a line ({listed}), expected {expected}")
    return [f"{path}: {others.total()} of {kept + others.total()} {what}s are no lines and were left out: {listed}"]


def _read_rois(path: Path, frame: int | str | None, max_gib: float) -> Lines:
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as file:
            entries = [entry for entry in file.infolist() if entry.filename.lower().endswith(".roi")]
            expect_room(path, sum(entry.file_size for entry in entries), max_gib)
            rois = [ImagejRoi.frombytes(file.read(entry)) for entry in entries]
    else:
        expect_room(path, path.stat().st_size, max_gib)
        rois = [ImagejRoi.frombytes(path.read_bytes())]
    if isinstance(frame, int):  # ImageJ counts from 1; 0 is every frame
        rois = [roi for roi in rois if roi.position in (0, frame + 1)]
    lines, types, others = [], [], Counter[str]()
    for roi in rois:
        if roi.roitype in DRAWN and roi.subtype != ROI_SUBTYPE.ARROW:
            # Of lines, whole numbers are the centres of pixels, as they are here.
            points = np.asarray(roi.coordinates(), dtype=np.float64)
            lines.append(_fitted(points) if roi.options & ROI_OPTIONS.SPLINE_FIT else points)
            types.append(int(roi.group))
        else:
            others["arrow" if roi.subtype == ROI_SUBTYPE.ARROW else roi.roitype.name.lower()] += 1
    return Lines(lines, _left_out(path, "ROI", len(lines), others, "straight, segmented or freehand lines"), types)


def _fitted(points: Floats) -> Floats:
    """Return the spline through points (P, 2) that ImageJ shows, a point for about every pixel along it."""
    steps = np.hypot(*np.diff(points, axis=0).T)
    points = points[np.append(True, steps > 0)]
    if len(points) < 3:
        return points
    arc = np.append(0.0, np.cumsum(steps[steps > 0]))
    curve = CubicSpline(arc, points, bc_type="natural")
    return np.asarray(curve(np.linspace(0, arc[-1], min(int(arc[-1]), MOST_POINTS) + 2)), dtype=np.float64)


def _read_json(path: Path, max_gib: float) -> Lines:
    expect_room(path, JSON_GROWTH * path.stat().st_size, max_gib)
    content: Any = json.loads(path.read_text(encoding="utf-8"))
    lines = content.get("filaments") if isinstance(content, dict) else content
    if not isinstance(lines, list):
        raise InputError(f'{path}: no list of lines, expected [[[x, y], ...], ...] or {{"filaments": [...]}}')
    types = content.get("types") if isinstance(content, dict) else None
    if types is not None and (not isinstance(types, list) or len(types) != len(lines)):
        raise InputError(f"{path}: types are not a list of {len(lines)} numbers, one of each line")
    return Lines([np.asarray(line, dtype=np.float64) for line in lines], [], types)


def _shapes(path: Path, table: pd.DataFrame) -> Lines:
    """Return the paths and lines among the shapes that napari saved."""
    if missing := {"index", "axis-0", "axis-1"} - {*table}:
        raise InputError(f"{path}: no column {' and '.join(sorted(missing))}, expected napari's shapes")
    if "vertex-index" in table:
        table = table.sort_values(["index", "vertex-index"], kind="stable")
    drawn = table["shape-type"].isin(["line", "path"])
    others = Counter[str](table[~drawn].groupby("index")["shape-type"].first())
    by_shape = table[drawn].groupby("index")
    lines = [shape[["axis-1", "axis-0"]].to_numpy(np.float64) for _, shape in by_shape]
    types = by_shape["type"].first().tolist() if "type" in table else None
    return Lines(lines, _left_out(path, "shape", len(lines), others, "shapes of type path or line"), types)


def _traced(path: Path, pixel_size: float | None, max_gib: float) -> Lines:
    """Return the points of each filament in a table of points that says which filament each belongs to."""
    points, notes = read_detections(path, pixel_size=pixel_size, max_gib=max_gib), []
    number = next((name for name in ("filament", "rlnHelicalTubeID") if name in points), None)
    if number is None and len(points) and path.suffix.lower() == ".star" and len(points) % 2 == 0:
        # RELION's own reading: convertHelicalTubeCoordsToMetaDataTable in its src/helix.cpp.
        number, points = "filament", points.assign(filament=np.arange(len(points)) // 2)
        lines = f"the starts and ends of {counted(len(points) // 2, 'straight filament')}"
        notes = [f"{path}: no rlnHelicalTubeID; its {len(points)} points are taken for {lines}"]
    if number is None:
        if not len(points):
            return Lines([], [])
        expected = {".star": "rlnHelicalTubeID, or a start and an end of each", ".cbox": "_filamentid"}
        expected[".box"] = "boxes with code -1 at the start and -2 at the end of each, or #helix: lines"
        said = expected.get(path.suffix.lower(), "a column filament, or shapes of napari")
        raise InputError(f"{path}: nothing says which filament each of {len(points)} points is on, expected {said}")
    if "rlnHelicalTrackLengthAngst" in points:
        points = points.sort_values("rlnHelicalTrackLengthAngst", kind="stable")
    by_line = points.groupby(number)
    kind = next((name for name in ("type", "rlnParticleSelectionType") if name in points), None)
    types = by_line[kind].first().tolist() if kind else None
    return Lines([line[["x", "y"]].to_numpy(np.float64) for _, line in by_line], notes, types)
