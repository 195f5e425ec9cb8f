"""Filaments as the files that RELION, EMAN and crYOLO read, and as tables.

Detections jitter about a filament by a pixel or more: lengths, angles and curvatures are taken from a smoothed path.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import starfile
from numpy.typing import NDArray
from scipy import sparse
from scipy.interpolate import CubicSpline
from scipy.sparse.linalg import spsolve

from grace_lightning.files import replacing
from grace_lightning.graph import Filament, Floats

SMOOTHING = 8.0
"""Wavelength s, in mean distances between nodes, of the bends that smoothing halves.

A smoothed path minimises squared distances to the nodes plus (s / 2 pi)^6 times squared third differences (Whittaker
1922), which keeps 1 / (1 + (s / wavelength)^6) of a bend, and lines and parabolas as they are. Measured with nodes
20 px apart that jitter by 2 px: error of psi 1.4 to 1.8 degrees (without smoothing 8), mean curvature of arcs within
1 %. Tight rings shrink: one of 20 nodes by 0.4 %, one of 12 nodes by 8 %.
"""

CBOX_COLUMNS = (
    *("CoordinateX", "CoordinateY", "CoordinateZ", "Width", "Height", "Depth"),
    *("EstWidth", "EstHeight", "Confidence", "NumBoxes", "Angle", "filamentid"),
)


def segments(filaments: Sequence[Filament], *, pixel_size: float, spacing: float) -> pd.DataFrame:
    """Cut the filaments of a micrograph into helical segments, for :func:`write_star` and :func:`write_cbox`.

    The rest of an open filament beyond the last full step is left out. On a closed one it goes into the last gap, which
    is between one and two steps, so that no two segments lie closer than elsewhere.

    From ``pixel_size``, Angstrom per pixel, and ``spacing``, Angstrom along the filament (RELION's inter-box distance).
    Columns: ``filament`` from 0; ``x``, ``y`` pixels; ``psi``, degrees, the angle in the plane as RELION counts it;
    ``track_length``, Angstrom: 0, spacing, 2 spacing, ...; ``confidence``: the score, interpolated between the nodes.
    """
    names = ("filament", "x", "y", "psi", "track_length", "confidence")
    tables = [pd.DataFrame(columns=names, dtype=np.float64).astype({"filament": np.int64})]
    for number, filament in enumerate(filaments):
        curve = _curve(filament)
        steps = int(curve.arc[-1] / (spacing / pixel_size) + 1e-9)
        track = np.arange(max(steps, 1) if filament.closed else steps + 1)
        time = np.interp(track * (spacing / pixel_size), curve.arc, curve.time)
        score = np.append(filament.score, filament.score[:1])  # of the first node again if it is closed
        confidence = np.interp(time, curve.node_time, score[: len(curve.node_time)])
        # RELION's src/helix.cpp, convertHelicalTubeCoordsToMetaDataTable: rlnAnglePsiPrior is -atan2(dy, dx), y down;
        # its amyloid picker (src/autopicker.cpp) agrees.
        dx, dy = curve.spline(time, 1).T
        psi = -np.degrees(np.arctan2(dy, dx)) + 0.0  # not -0.0
        columns = (number, *curve.spline(time).T, psi, track * float(spacing), confidence)
        tables.append(pd.DataFrame(dict(zip(names, columns, strict=True))))
    return pd.concat(tables, ignore_index=True)


def write_star(path: str | Path, table: pd.DataFrame, micrograph: str) -> None:
    """Write helical segments as RELION's own picker does, ready for extraction ("start-end coordinates only": no).

    RELION's extraction needs coordinates, tube, both angle priors and the track length in Angstrom
    (``convertHelicalSegmentCoordsToMetaDataTable`` in its ``src/helix.cpp``), leaves out by itself what lies too close
    to the micrograph's border, and counts tubes from 1. The flip ratio says that either end may be the first.

    From a table of :func:`segments` and the micrograph's name relative to the RELION project. It is left out if it has
    quotation marks or line breaks, which starfile cannot read; RELION goes by the name of the file. Without
    ``track_length`` (the pixel size is not known) the file has none either: RELION then refuses to extract helical
    segments.
    """
    columns = {
        **({} if re.search(r"[\"'\t\r\n]", micrograph) else {"rlnMicrographName": micrograph}),
        "rlnCoordinateX": table["x"],
        "rlnCoordinateY": table["y"],
        "rlnHelicalTubeID": table["filament"] + 1,
        "rlnAngleTiltPrior": 90.0,
        "rlnAnglePsiPrior": table["psi"].round(6) + 0.0,  # not -0.000000
        **({"rlnHelicalTrackLengthAngst": table["track_length"]} if "track_length" in table else {}),
        "rlnAnglePsiFlipRatio": 0.5,
        "rlnAutopickFigureOfMerit": table["confidence"],
    }
    with replacing(path) as unfinished:
        plain = re.fullmatch(r"(?!_|(data|loop|save|stop|global)_)[^\s#;]+", micrograph)
        starfile.write(pd.DataFrame(columns), unfinished, quote_all_strings=not plain)


def write_box_ends(path: str | Path, filaments: Sequence[Filament]) -> None:
    """Write start and end of every filament as EMAN's helix boxes ("start-end coordinates only": yes, in RELION).

    Two lines per filament: corner, width, width and -1 of the box about its start, then with -2 of the box about its
    end. All are whole numbers, since EMAN reads nothing else (``load_helix_coords`` in its ``e2helixboxer.py``). RELION
    (``convertEmanHelicalTubeCoordsToMetaDataTable``, ``src/helix.cpp``) cuts half a width off either end, and takes
    every filament for straight. A closed one has no ends and is left out.
    """
    ends = [filament.path[[0, -1]] for filament in filaments if not filament.closed]
    corners = np.concatenate([np.zeros((0, 2)), *ends]).round() - 1  # of boxes of 2 x 2 pixels
    flags = np.tile([[2, 2, -1], [2, 2, -2]], (len(ends), 1))
    with replacing(path) as unfinished:
        np.savetxt(unfinished, np.column_stack([corners, flags]), fmt="%d")


def write_cbox(path: str | Path, table: pd.DataFrame, *, box_size: float) -> None:
    """Write boxes of ``box_size`` pixels in crYOLO's format 1.0, byte by byte as crYOLO does.

    From columns ``x``, ``y`` (their centres, pixels), ``confidence`` (else 1) and ``filament`` (else empty).
    """
    columns = {
        **{"CoordinateX": table["x"] - box_size / 2, "CoordinateY": table["y"] - box_size / 2},
        **{"Width": box_size, "Height": box_size, "Depth": 1.0},
        "Confidence": table.get("confidence", 1.0),
        "filamentid": table.get("filament"),
    }
    boxes = pd.DataFrame(columns, index=table.index).reindex(columns=CBOX_COLUMNS).astype(np.float64)
    rows = boxes.to_csv(sep=" ", header=False, index=False, na_rep="<NA>")
    header = "".join(f"_{name} #{number}\n" for number, name in enumerate(CBOX_COLUMNS, 1))
    text = f"\ndata_global\n\n_cbox_format_version 1.0\n\ndata_cryolo\n\nloop_\n{header}{rows}\n"
    with replacing(path) as unfinished:
        unfinished.write_text(f"{text}data_cryolo_include\n\nloop_\n_slice_index #1\n", encoding="utf-8")


def filaments_table(filaments: Sequence[Filament], pos: NDArray[np.floating]) -> pd.DataFrame:
    """Return the rows of ``filaments.parquet``, one for each member of a filament of a micrograph.

    Columns: ``filament`` from 0, ``order`` along it and ``node``, a row of the detections ``pos`` (N, 2), all int64;
    ``x``, ``y``, float32 pixels.
    """
    lengths = [len(filament.members) for filament in filaments]
    node = np.concatenate([np.zeros(0, np.int64), *(filament.members for filament in filaments)])
    number = np.repeat(np.arange(len(lengths)), np.array(lengths, dtype=np.int64))
    order = np.concatenate([np.zeros(0, np.int64), *map(np.arange, lengths)])
    x, y = pos[node].astype(np.float32).T
    return pd.DataFrame({"filament": number, "order": order, "node": node, "x": x, "y": y})


def filaments_summary(image: str, filaments: Sequence[Filament], *, pixel_size: float | None = None) -> pd.DataFrame:
    """Return the rows of ``filaments.csv``, one per filament of an image, which is named by its stem.

    Lengths are in pixels and curvatures in 1 / pixel, except in the last two columns, which are empty without
    ``pixel_size``, Angstrom per pixel; start and end are the first and last node, ``mean_probability`` the mean score.
    """
    scale, closed = np.nan if pixel_size is None else pixel_size, [filament.closed for filament in filaments]
    curves = [_curve(filament) for filament in filaments]
    length = np.array([curve.arc[-1] for curve in curves])
    curvature = np.array([_mean_curvature(*pair) for pair in zip(curves, closed, strict=True)])
    start_x, start_y, end_x, end_y = np.array([f.path[[0, -1]] for f in filaments], dtype=np.float64).reshape(-1, 4).T
    return pd.DataFrame(
        {
            "image": image,
            "filament": np.arange(len(filaments)),
            "nodes": [len(filament.node) for filament in filaments],
            "length": length,
            "mean_probability": [float(np.mean(filament.score)) for filament in filaments],
            "mean_curvature": curvature,
            **{"start_x": start_x, "start_y": start_y, "end_x": end_x, "end_y": end_y},
            "closed": closed,
            "length_angstrom": length * scale,
            "mean_curvature_per_angstrom": curvature / scale,
        }
    )


def _mean_curvature(curve: "_Curve", closed: bool) -> float:
    """Return the absolute curvature averaged over the length, 1/px: all turns by their length."""
    points = curve.spline(curve.time)
    if closed:
        points = np.concatenate([points, points[1:2]])
    steps = np.diff(points, axis=0)
    lengths = np.hypot(*steps.T)
    before, after = steps[:-1], steps[1:]
    cross = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    turns = np.abs(np.arctan2(cross, (before * after).sum(axis=1)))
    travelled = float((lengths[:-1] + lengths[1:]).sum()) / 2  # a turn belongs to half the step on either side
    return float(turns.sum()) / travelled if travelled else 0.0


class _Curve(NamedTuple):
    spline: CubicSpline[Any]  # (x, y) by time
    time: Floats  # (Q,) fine
    arc: Floats  # (Q,) pixels, the length up to these times
    node_time: Floats  # (P,)


def _curve(filament: Filament) -> _Curve:
    """Return the smoothed path; a closed one comes back to its first point."""
    points, closed = filament.path.astype(np.float64), filament.closed
    if closed or len(points) == 1:
        points = np.concatenate([points, points[:1]])
    steps = np.hypot(*np.diff(points, axis=0).T)
    unit = float(steps.mean()) or 1.0
    # Two detections of one spot would lie at nearly one time, and a curve cannot be at two places at once.
    node_time = np.concatenate([[0.0], np.cumsum(np.maximum(steps, 0.1 * unit)) / unit])
    if len(filament.path) > 2:
        points = _smoothed(points[:-1] if closed else points, node_time, closed)
        points = np.concatenate([points, points[:1]]) if closed else points
    spline = CubicSpline(node_time, points, bc_type="periodic" if closed else "not-a-knot")
    time = np.linspace(0, node_time[-1], 16 * len(steps) + 1)
    arc = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(spline(time), axis=0).T))])
    return _Curve(spline, time, arc, node_time)


def _smoothed(points: Floats, time: Floats, closed: bool) -> Floats:
    """Return the points that minimise squared distances to ``points`` plus weighted squared divided differences."""
    count = len(points)
    order = min(3, count - 1)
    differences = sparse.eye_array(count, format="csr")
    if closed:
        wrap = np.arange(count + order)
        differences, time = differences[wrap % count], time[wrap % count] + wrap // count * time[-1]
    for step in range(1, order + 1):
        gaps = (time[step:] - time[:-step]) / step
        differences = sparse.csr_array(sparse.diags_array(1 / gaps) @ (differences[1:] - differences[:-1]))
    penalty = differences.T @ sparse.diags_array(gaps) @ differences * (SMOOTHING / (2 * np.pi)) ** (2 * order)
    return np.asarray(spsolve((sparse.eye_array(count) + penalty).tocsc(), points), dtype=np.float64)
