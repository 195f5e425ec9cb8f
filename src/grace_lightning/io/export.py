"""Filaments as the files that RELION, EMAN and crYOLO read, and as a table."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import starfile
from numpy.typing import NDArray

from grace_lightning.files import reading, replacing
from grace_lightning.graph import Filament
from grace_lightning.measure import smooth_curve

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
    ``track_length``, Angstrom: 0, spacing, 2 spacing, ...; ``confidence``: the score, interpolated between the nodes;
    ``type`` of the filament, 0 if none is known.
    """
    names = ("filament", "x", "y", "psi", "track_length", "confidence", "type")
    tables = [pd.DataFrame(columns=names, dtype=np.float64).astype({"filament": np.int64, "type": np.int64})]
    for number, filament in enumerate(filaments):
        curve = smooth_curve(filament)
        steps = int(curve.arc[-1] / (spacing / pixel_size) + 1e-9)
        track = np.arange(max(steps, 1) if filament.closed else steps + 1)
        time = curve.at(track * (spacing / pixel_size))
        score = np.append(filament.score, filament.score[:1])  # of the first node again if it is closed
        confidence = np.interp(time, curve.node_time, score[: len(curve.node_time)])
        # RELION's src/helix.cpp, convertHelicalTubeCoordsToMetaDataTable: rlnAnglePsiPrior is -atan2(dy, dx), y down;
        # its amyloid picker (src/autopicker.cpp) agrees.
        dx, dy = curve.spline(time, 1).T
        psi = -np.degrees(np.arctan2(dy, dx)) + 0.0  # not -0.0
        columns = (number, *curve.spline(time).T, psi, track * float(spacing), confidence, filament.type)
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
        **({"rlnParticleSelectionType": table["type"]} if "type" in table and table["type"].any() else {}),
    }
    plain = re.fullmatch(r"(?!_|(data|loop|save|stop|global)_)[^\s#;]+", micrograph)
    write_blocks(path, pd.DataFrame(columns), quote_all_strings=not plain)


def write_blocks(path: str | Path, blocks: pd.DataFrame | dict[str, pd.DataFrame], **options: Any) -> None:
    """Write a STAR file as starfile does, but without the time: the same results are the same bytes."""
    with replacing(path) as unfinished:
        starfile.write(blocks, unfinished, **options)
        _, *lines = unfinished.read_text().splitlines(keepends=True)
        unfinished.write_text("".join(["# written by grace-lightning\n", *lines]))


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


def paths_table(filaments: Sequence[Filament]) -> pd.DataFrame:
    """Return the rows of ``paths.parquet``, one for each point of a path, of which other programs' files are made.

    Columns: ``filament`` from 0 and ``node``, int64; ``x``, ``y``, pixels, and ``score``, float32; of the filament
    ``closed``, bool, ``type``, int64, and ``type_share``, float64.
    """
    number = np.repeat(np.arange(len(filaments)), [len(filament.path) for filament in filaments])
    columns = {"node": np.int64, "score": np.float32}
    joined = {
        name: np.concatenate([np.zeros(0, dtype), *(getattr(filament, name) for filament in filaments)])
        for name, dtype in columns.items()
    }
    x, y = np.concatenate([np.zeros((0, 2), np.float32), *(filament.path for filament in filaments)]).T
    kinds = {"closed": bool, "type": np.int64, "type_share": np.float64}
    whole = {name: np.array([getattr(f, name) for f in filaments], dtype)[number] for name, dtype in kinds.items()}
    return pd.DataFrame({"filament": number, **joined, "x": x, "y": y, **whole})


def read_paths(path: Path) -> list[Filament]:
    """Return the filaments of a ``paths.parquet``, in their order; of members, those on the path."""
    with reading(path, "paths that grace-predict wrote"):
        table = pd.read_parquet(path, columns=["filament", "node", "score", "x", "y", "closed", "type", "type_share"])
        return [
            Filament(
                rows[["x", "y"]].to_numpy(np.float32),
                rows["score"].to_numpy(np.float32),
                rows["node"].to_numpy(np.int64),
                rows["node"].to_numpy(np.int64),
                bool(rows["closed"].iloc[0]),
                int(rows["type"].iloc[0]),
                float(rows["type_share"].iloc[0]),
            )
            for _, rows in table.groupby("filament", sort=True)
        ]
