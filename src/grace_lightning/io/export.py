"""Filaments as the files that RELION, EMAN and crYOLO read, and as tables.

A filament's path is a row of detections, and these jitter about the filament by a pixel or more. Lengths, angles and
curvatures are therefore taken from a smoothed path; a straight row of points stays straight, whatever the smoothing.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import starfile
from numpy.typing import NDArray
from scipy import sparse
from scipy.interpolate import CubicSpline
from scipy.sparse.linalg import spsolve

from grace_lightning.errors import InputError, InputWarning

Floats = NDArray[np.float64]

SMOOTHING = 8.0
"""Default wavelength, in mean distances between nodes, of the bends that smoothing halves.

Measured with nodes 20 px apart that jitter by 2 px, on lines and arcs: error of psi 1.4 to 1.8 degrees (without
smoothing 8), mean curvature of arcs within 1 %. Tight rings shrink: one of 20 nodes by 0.4 %, one of 12 nodes by 8 %.
"""

CBOX_COLUMNS = (
    *("CoordinateX", "CoordinateY", "CoordinateZ", "Width", "Height", "Depth"),
    *("EstWidth", "EstHeight", "Confidence", "NumBoxes", "Angle", "filamentid"),
)
"""Columns of crYOLO's files, in their order."""


class Filament(NamedTuple):
    """One filament: (P, 2) path in pixels, columns x and y, in order; (P,) score and (P,) node id of its points.

    Where ``closed``, the last point is followed by the first, which is not repeated.
    """

    path: NDArray[Any]
    score: NDArray[Any]
    node: NDArray[Any]
    closed: bool = False


# ---- along a path ---------------------------------------------------------------------------------------------------


def resample(path: NDArray[Any], spacing_px: float, *, closed: bool = False, smoothing: float = 0.0) -> Floats:
    """Points at equal distances along a path, measured along it: at 0, d, 2d, ... from its first point.

    Parameters
    ----------
    path : (P, 2) pixels, in order
    spacing_px : d, pixels
    closed : whether the last point is followed by the first
    smoothing : see :func:`segments`; 0 follows the polyline

    Returns
    -------
    (M, 2) float64. The rest of an open path beyond the last full step is left out; on a closed one it goes into the
    last gap, which is between d and 2d, so that no two points lie closer than elsewhere.
    """
    spacing_px = _positive(spacing_px, "spacing", "pixels")
    return _sample(_curve(path, closed, smoothing), spacing_px, closed).points


def relion_psi(directions: NDArray[Any]) -> Floats:
    """In-plane angle of a filament as RELION counts it: ``-atan2(dy, dx)``, y down.

    Source: RELION's ``src/helix.cpp``, ``convertHelicalTubeCoordsToMetaDataTable``: ``rlnAnglePsiPrior`` of a tube from
    (x1, y1) to (x2, y2) is minus ``atan2(y2 - y1, x2 - x1)``; its amyloid picker (``src/autopicker.cpp``) agrees.

    Parameters
    ----------
    directions : (M, 2) dx and dy along the filament, of any length

    Returns
    -------
    (M,) degrees from -180 to 180
    """
    vectors = np.asarray(directions, dtype=np.float64)
    return -np.degrees(np.arctan2(vectors[:, 1], vectors[:, 0])) + 0.0  # not -0.0


def mean_curvature(path: NDArray[Any], *, closed: bool = False, smoothing: float = SMOOTHING) -> float:
    """Absolute curvature averaged over the length of a path, 1/px: all its turns by the length they take.

    Parameters
    ----------
    path : (P, 2) pixels, in order
    closed : whether the last point is followed by the first
    smoothing : see :func:`segments`; without it, jitter counts as curvature
    """
    points = _curve(path, closed, smoothing).points
    if closed:
        points = np.concatenate([points, points[1:2]])
    steps = np.diff(points, axis=0)
    lengths = np.hypot(*steps.T)
    before, after = steps[:-1], steps[1:]
    cross = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    turns = np.abs(np.arctan2(cross, (before * after).sum(axis=1)))
    travelled = float((lengths[:-1] + lengths[1:]).sum()) / 2  # a turn belongs to half the step on either side
    return float(turns.sum()) / travelled if travelled else 0.0


def segments(
    filaments: Sequence[Filament], *, pixel_size: float, spacing: float, smoothing: float = SMOOTHING
) -> pd.DataFrame:
    """Filaments cut into helical segments, which :func:`write_star` and :func:`write_cbox` write.

    Parameters
    ----------
    filaments : of one micrograph
    pixel_size : Angstrom per pixel
    spacing : distance between segments along the filament, Angstrom (RELION's inter-box distance)
    smoothing : wavelength s, in mean distances between nodes, of the bends that are halved; the path minimises squared
        distances to the nodes plus (s / 2 pi)^6 times squared third differences (Whittaker 1922), which keeps
        1 / (1 + (s / wavelength)^6) of a bend, and lines, parabolas and all long bends as they are. 0: the polyline

    Returns
    -------
    One row per segment. ``filament`` from 0; ``x``, ``y`` pixels; ``psi`` degrees, see :func:`relion_psi`;
    ``track_length`` Angstrom along the filament: 0, spacing, 2 spacing, ...; ``confidence``: the score, interpolated
    between the nodes.
    """
    spacing_px = _positive(spacing, "spacing", "Angstrom") / _positive(pixel_size, "pixel size", "Angstrom per pixel")
    parts: list[tuple[NDArray[Any], ...]] = [(np.zeros(0),) * 6]
    for number, filament in enumerate(filaments):
        curve = _curve(filament.path, filament.closed, smoothing)
        points, directions, time = _sample(curve, spacing_px, filament.closed)
        score = np.append(filament.score, filament.score[:1]) if filament.closed else filament.score
        track = np.arange(len(points), dtype=np.float64) * spacing
        confidence = np.interp(time, curve.node_time, score)
        parts.append((np.full(len(points), float(number)), *points.T, relion_psi(directions), track, confidence))
    names = ("filament", "x", "y", "psi", "track_length", "confidence")
    table = pd.DataFrame(dict(zip(names, map(np.concatenate, zip(*parts, strict=True)), strict=True)))
    return table.astype({"filament": np.int64})


# ---- files ----------------------------------------------------------------------------------------------------------


def write_star(path: str | Path, table: pd.DataFrame, micrograph: str) -> None:
    """Helical segments as RELION's own picker writes them, ready for extraction ("start-end coordinates only": no).

    RELION's extraction needs coordinates, tube, both angle priors and the track length in Angstrom
    (``convertHelicalSegmentCoordsToMetaDataTable`` in its ``src/helix.cpp``), leaves out by itself what lies too close
    to the micrograph's border, and counts tubes from 1. The flip ratio says that either end may be the first.

    Parameters
    ----------
    path : ``X.star``
    table : of :func:`segments`; without ``track_length``, where the pixel size is not known, the file has none either:
        RELION then reads the coordinates, but refuses to extract helical segments, rather than to go wrong silently
    micrograph : its name as RELION knows it, relative to the RELION project
    """
    columns: dict[str, Any] = {
        "rlnMicrographName": np.full(len(table), micrograph, dtype=object),
        "rlnCoordinateX": table["x"],
        "rlnCoordinateY": table["y"],
        "rlnHelicalTubeID": table["filament"] + 1,
        "rlnAngleTiltPrior": np.full(len(table), 90.0),
        "rlnAnglePsiPrior": table["psi"].round(6) + 0.0,  # not -0.000000
        **({"rlnHelicalTrackLengthAngst": table["track_length"]} if "track_length" in table else {}),
        "rlnAnglePsiFlipRatio": np.full(len(table), 0.5),
        "rlnAutopickFigureOfMerit": table["confidence"],
    }
    with _replacing(Path(path)) as unfinished:
        starfile.write(pd.DataFrame(columns), unfinished)


def write_box_ends(path: str | Path, filaments: Sequence[Filament], *, width: float = 2.0) -> None:
    """First and last point of every filament as EMAN's helix boxes ("start-end coordinates only": yes, in RELION).

    Two lines per filament: corner, width, width and -1 of the box about its start, then with -2 of the box about its
    end, as EMAN2's ``e2helixboxer.py`` defines them. RELION (``convertEmanHelicalTubeCoordsToMetaDataTable`` in
    ``src/helix.cpp``) cuts half a width off either end of the line between the centres, so the width is small here.
    It takes every filament for straight: for bent ones use :func:`write_star`. A closed filament has no ends and is
    left out with an :class:`InputWarning`.

    Parameters
    ----------
    path : ``X.box``
    filaments : of one micrograph
    width : of the boxes, pixels
    """
    path, side = Path(path), _number(_positive(width, "box width", "pixels"))
    lines = []
    for filament in filaments:
        corners = _points(filament.path)[[0, -1]] - width / 2
        if not filament.closed:
            for (x, y), flag in zip(corners.tolist(), (-1, -2), strict=True):
                lines.append(f"{_number(x)} {_number(y)} {side} {side} {flag}\n")
    with _replacing(path) as unfinished:
        unfinished.write_text("".join(lines), encoding="utf-8")
    rings = sum(filament.closed for filament in filaments)
    if rings:
        message = f"{path}: {rings} of {len(filaments)} filaments are closed, have no ends and were left out"
        warnings.warn(message, InputWarning, stacklevel=2)


def write_cbox(path: str | Path, table: pd.DataFrame, *, box_size: float | None = None) -> None:
    """Boxes in crYOLO's format 1.0, such that :func:`read_detections` gives ``table`` back.

    Parameters
    ----------
    path : ``X.cbox``
    table : ``x``, ``y`` of the boxes' centres, pixels; optionally ``confidence`` (1 where not given), ``filament`` and
        further :data:`CBOX_COLUMNS`; as from :func:`segments` or :func:`read_detections`
    box_size : width and height, pixels, where the table has no ``Width`` and ``Height``
    """
    path = Path(path)
    table = table.rename(columns={"confidence": "Confidence", "filament": "filamentid"})
    if not {"Width", "Height"} <= set(table):
        if box_size is None:
            raise InputError(f"{path}: boxes without Width and Height, expected a box size in pixels")
        table = table.assign(Width=_positive(box_size, "box size", "pixels"), Height=float(box_size))
    table = table.assign(CoordinateX=table["x"] - table["Width"] / 2, CoordinateY=table["y"] - table["Height"] / 2)
    defaults = {"Confidence": 1.0, "Depth": 1.0} if "filamentid" in table else {"Confidence": 1.0}
    table = table.assign(**{name: value for name, value in defaults.items() if name not in table})
    names = [name for name in CBOX_COLUMNS if name in table or name != "filamentid"]
    rows = table.reindex(columns=names).astype(np.float64).to_csv(sep=" ", header=False, index=False, na_rep="<NA>")
    header = "".join(f"_{name} #{number}\n" for number, name in enumerate(names, 1))
    text = f"\ndata_global\n\n_cbox_format_version 1.0\n\ndata_cryolo\n\nloop_\n{header}{rows}\n"
    with _replacing(path) as unfinished:
        unfinished.write_text(f"{text}data_cryolo_include\n\nloop_\n_slice_index #1\n", encoding="utf-8")


# ---- tables ---------------------------------------------------------------------------------------------------------


def filaments_table(filaments: Sequence[Filament]) -> pd.DataFrame:
    """Rows of ``filaments.parquet``: ``filament``, ``order`` along it, ``node`` (int64), ``x``, ``y`` (float32, px)."""
    lengths = [len(filament.path) for filament in filaments]
    none = np.zeros(0, dtype=np.int64)
    path = np.concatenate([np.zeros((0, 2)), *(_points(filament.path) for filament in filaments)])
    columns = {
        "filament": np.repeat(np.arange(len(filaments)), np.array(lengths, dtype=np.int64)),
        "order": np.concatenate([none, *map(np.arange, lengths)]),
        "node": np.concatenate([none, *(filament.node for filament in filaments)]),
    }
    return pd.DataFrame(columns).astype(np.int64).assign(x=path[:, 0].astype("f4"), y=path[:, 1].astype("f4"))


def filaments_summary(
    image: str, filaments: Sequence[Filament], *, pixel_size: float | None = None, smoothing: float = SMOOTHING
) -> pd.DataFrame:
    """Rows of ``filaments.csv``, one per filament.

    Parameters
    ----------
    image : its stem
    filaments : of this image
    pixel_size : Angstrom per pixel; where unknown, the columns in Angstrom are empty
    smoothing : see :func:`segments`

    Returns
    -------
    ``image``; ``filament`` from 0; ``nodes``: how many; ``length``, px; ``mean_probability``: mean score;
    ``mean_curvature``, 1/px; ``start_x``, ``start_y``, ``end_x``, ``end_y``: first and last node, px; ``closed``;
    ``length_angstrom``; ``mean_curvature_per_angstrom``
    """
    scale = np.nan if pixel_size is None else _positive(pixel_size, "pixel size", "Angstrom per pixel")
    names = ("image", "filament", "nodes", "length", "mean_probability", "mean_curvature", "start_x", "start_y")
    rows = []
    for number, (path, score, node, closed) in enumerate(filaments):
        length = float(_curve(path, closed, smoothing).arc[-1])
        curvature = mean_curvature(path, closed=closed, smoothing=smoothing)
        ends = _points(path)[[0, -1]].ravel().tolist()
        of_ours = (image, number, len(node), length, float(np.mean(score)), curvature, *ends, bool(closed))
        rows.append((*of_ours, length * scale, curvature / scale))
    further = ("end_x", "end_y", "closed", "length_angstrom", "mean_curvature_per_angstrom")
    return pd.DataFrame(rows, columns=[*names, *further])


# ---- curves ---------------------------------------------------------------------------------------------------------


class _Curve(NamedTuple):
    """(Q, 2) points, no two successive ones equal; (Q,) arc length, px; (Q,) time; (P,) time of the nodes."""

    points: Floats
    arc: Floats
    time: Floats
    node_time: Floats


class _Samples(NamedTuple):
    points: Floats
    directions: Floats
    time: Floats


def _points(path: NDArray[Any]) -> Floats:
    points = np.asarray(path, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points) or not np.isfinite(points).all():
        raise InputError(f"a filament's path of shape {points.shape}, expected finite x and y of at least one point")
    return points


def _curve(path: NDArray[Any], closed: bool, smoothing: float) -> _Curve:
    """The path as a fine polyline; a closed one comes back to its first point."""
    points = _points(path)
    ring = np.concatenate([points, points[:1]]) if closed else points
    steps = np.hypot(*np.diff(ring, axis=0).T)
    unit = float(steps.mean()) if steps.any() else 1.0
    # Two detections of one spot would lie at nearly one time, and a curve cannot be at two places at once.
    node_time = np.concatenate([[0.0], np.cumsum(np.maximum(steps, 0.1 * unit)) / unit])
    time, fine = node_time, ring
    if smoothing > 0 and len(points) > 2 and steps.any():
        smooth = _smoothed(points, node_time, closed, smoothing)
        smooth = np.concatenate([smooth, smooth[:1]]) if closed else smooth
        time = np.linspace(0, node_time[-1], 16 * (len(ring) - 1) + 1)
        fine = CubicSpline(node_time, smooth, bc_type="periodic" if closed else "not-a-knot")(time)
    arc = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(fine, axis=0).T))])
    moves = np.concatenate([[True], np.diff(arc) > 0])
    return _Curve(fine[moves], arc[moves], time[moves], node_time)


def _smoothed(points: Floats, time: Floats, closed: bool, smoothing: float) -> Floats:
    """The points that minimise squared distances to ``points`` plus weighted squared divided differences."""
    count = len(points)
    order = min(3, count - 1)
    differences = sparse.eye_array(count, format="csr")
    if closed:
        wrap = np.arange(count + order)
        differences, time = differences[wrap % count], time[wrap % count] + wrap // count * time[-1]
    for step in range(1, order + 1):
        gaps = (time[step:] - time[:-step]) / step
        differences = sparse.csr_array(sparse.diags_array(1 / gaps) @ (differences[1:] - differences[:-1]))
    penalty = differences.T @ sparse.diags_array(gaps) @ differences * (smoothing / (2 * np.pi)) ** (2 * order)
    return np.asarray(spsolve((sparse.eye_array(count) + penalty).tocsc(), points), dtype=np.float64)


def _sample(curve: _Curve, spacing: float, closed: bool) -> _Samples:
    points, arc, time, _ = curve
    if len(points) < 2:  # no direction; RELION's own psi of such a tube is 0
        return _Samples(points, np.array([[1.0, 0.0]]), time)
    if closed:  # so that the first point's direction knows what comes before it
        around = np.concatenate([points[-2:-1], points, points[1:2]])
        around_arc = np.concatenate([[arc[-2] - arc[-1]], arc, [arc[-1] + arc[1]]])
        directions = np.gradient(around, around_arc, axis=0)[1:-1]
    else:
        directions = np.gradient(points, arc, axis=0)
    steps = int(arc[-1] / spacing + 1e-9)
    at = np.arange(max(steps, 1) if closed else steps + 1) * spacing
    x, y, dx, dy, when = (np.interp(at, arc, column) for column in (*points.T, *directions.T, time))
    return _Samples(np.column_stack([x, y]), np.column_stack([dx, dy]), when)


def _positive(value: float, what: str, unit: str) -> float:
    if not (np.isfinite(value) and value > 0):
        raise InputError(f"{what} of {value} {unit}, expected a number above 0")
    return float(value)


def _number(value: float) -> str:
    """Decimals only where there are any: EMAN's own reader takes nothing but integers."""
    return f"{round(value, 6) + 0.0:.6f}".rstrip("0").rstrip(".")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside ``path`` that takes its name once it is complete; on a full disk, ``path`` stays as it was."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
