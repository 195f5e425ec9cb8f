"""What single filaments are like: lengths, bends, neighbours, apparent width; and how stiff many of them are.

Detections jitter about a filament by a pixel or more: lengths, angles and curvatures are taken from a smoothed path.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.interpolate import CubicSpline
from scipy.sparse.linalg import spsolve

from grace_lightning.graph import Filament, Floats, Ints

SMOOTHING = 8.0
"""Wavelength s, in mean distances between nodes, of the bends that smoothing halves.

A smoothed path minimises squared distances to the nodes plus (s / 2 pi)^6 times squared third differences (Whittaker
1922), which keeps 1 / (1 + (s / wavelength)^6) of a bend, and lines and parabolas as they are. Measured with nodes
20 px apart that jitter by 2 px: error of psi 1.4 to 1.8 degrees (without smoothing 8), mean curvature of arcs within
1 %. Tight rings shrink: one of 20 nodes by 0.4 %, one of 12 nodes by 8 %.
"""

LAGS, LEAST_LAG, LEAST_COSINE = 64, 4, 0.2
"""Distances along filaments between which directions are compared, in widths: up to so many, of which those from the
second number on are fitted, as long as the mean cosine is above the third. Over shorter ones smoothing has its say."""

STRAIGHT = 1e5
"""Of persistence lengths above so many widths, nothing is told: rounding bends a line as much."""

SAMPLES, INTERVAL = 400, (2.5, 97.5)
"""Bootstrap samples of the images for an interval, and its percentiles."""

FEWEST_IMAGES = 5
"""From fewer images no interval is drawn."""


class Curve(NamedTuple):
    """A smoothed path; a closed one comes back to its first point."""

    spline: CubicSpline[Any]  # (x, y) by time
    time: Floats  # (Q,) fine
    arc: Floats  # (Q,) pixels, the length up to these times
    node_time: Floats  # (P,)

    def at(self, arc: NDArray[np.floating]) -> Floats:
        """Return the times at which so many pixels lie behind, (any,)."""
        times: Floats = np.interp(arc, self.arc, self.time)
        return times


def smooth_curve(filament: Filament) -> Curve:
    """Return the smoothed path of a filament."""
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
    return Curve(spline, time, arc, node_time)


def _smoothed(points: Floats, time: Floats, closed: bool) -> Floats:
    """Return the points that minimise squared distances to ``points`` plus weighted squared divided differences."""
    count = len(points)
    order = min(3, count - 1)
    place = np.arange(count + (order if closed else 0))  # a closed path goes on where it began
    time = time[place % count] + place // count * time[-1]
    weights = np.ones((len(place), 1))  # of the points from each on, in the differences that begin with it
    for step in range(1, order + 1):
        gaps = (time[step:] - time[:-step]) / step
        weights = (np.pad(weights[1:], ((0, 0), (1, 0))) - np.pad(weights[:-1], ((0, 0), (0, 1)))) / gaps[:, None]
    column = (place[: len(weights), None] + np.arange(order + 1)) % count
    start = np.arange(len(weights) + 1) * (order + 1)
    values = (weights * np.sqrt(gaps)[:, None] * (SMOOTHING / (2 * np.pi)) ** order).ravel()
    differences = sparse.csr_array((values, column.ravel(), start), shape=(len(weights), count))
    equations = sparse.csc_array(sparse.eye_array(count, format="csr") + differences.T @ differences)
    return np.asarray(spsolve(equations, points), dtype=np.float64)


def filaments_summary(
    image: str,
    filaments: Sequence[Filament],
    scale: float = 1.0,
    *,
    pixel_size: float | None = None,
    curves: Sequence[Curve] | None = None,
) -> pd.DataFrame:
    """Return the rows of ``filaments.csv``, one per filament of an image, which is named by its stem.

    Lengths are in pixels and curvatures in 1 / pixel, except in the last columns, which are empty without
    ``pixel_size``, Angstrom per pixel. ``scale`` is the width of a filament, pixels, and ``curves`` are those of
    :func:`smooth_curve`, if they are known. Start and end are the first and last node, ``mean_probability`` the mean
    score. ``docs/formats.md`` has the formula of each column.
    """
    unit = np.nan if pixel_size is None else pixel_size
    curves = [smooth_curve(filament) for filament in filaments] if curves is None else curves
    ends = np.array([curve.spline(curve.time[[0, -1]]) for curve in curves]).reshape(-1, 2, 2)
    lengths = {
        "length": np.array([curve.arc[-1] for curve in curves]),
        "end_to_end": np.hypot(*(ends[:, 1] - ends[:, 0]).T),
        "persistence_length": persistence_length(*cosines(filaments, scale, curves), scale),
    }
    curvature = np.array([_mean_curvature(curve, f.closed) for curve, f in zip(curves, filaments, strict=True)])
    crossings, lengths["nearest"] = _neighbours(filaments)
    start_x, start_y, end_x, end_y = np.array([f.path[[0, -1]] for f in filaments], dtype=np.float64).reshape(-1, 4).T
    return pd.DataFrame(
        {
            "image": image,
            "filament": np.arange(len(filaments)),
            "nodes": [len(filament.node) for filament in filaments],
            **lengths,
            "mean_probability": [float(np.mean(filament.score)) for filament in filaments],
            "mean_curvature": curvature,
            "crossings": crossings,
            **{"start_x": start_x, "start_y": start_y, "end_x": end_x, "end_y": end_y},
            "closed": [filament.closed for filament in filaments],
            "type": pd.array([filament.type or None for filament in filaments], dtype="Int64"),
            "type_share": [filament.type_share if filament.type else np.nan for filament in filaments],
            **{f"{name}_angstrom": values * unit for name, values in lengths.items()},
            "mean_curvature_per_angstrom": curvature / unit,
        }
    )


def _mean_curvature(curve: Curve, closed: bool) -> float:
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


def _neighbours(filaments: Sequence[Filament]) -> tuple[Ints, Floats]:
    """Return how often each filament crosses others, and how far the nearest other one is, pixels; NaN without one.

    To touch another with an end is not to cross it. Crossings less than two pixels apart count once.
    """
    paths = [f.path[[*range(len(f.path)), *([0] if f.closed or len(f.path) == 1 else [])]] for f in filaments]
    lines, nearest = np.array([shapely.linestrings(path) for path in paths]), np.full(len(paths), np.nan)
    if len(lines) < 2:
        return np.zeros(len(lines), np.int64), nearest
    tree = shapely.STRtree(lines)
    first, second = tree.query(lines, predicate="intersects")
    other = first != second
    nearest[first[other]] = 0.0
    apart = np.flatnonzero(np.isnan(nearest))
    (row, _), distance = tree.query_nearest(lines[apart], exclusive=True, all_matches=False, return_distance=True)
    nearest[apart[row]] = distance
    cross = other & ~shapely.touches(lines[first], lines[second])
    places = shapely.buffer(shapely.intersection(lines[first[cross]], lines[second[cross]]), 1.0, quad_segs=2)
    times = np.bincount(first[cross], shapely.get_num_geometries(places), minlength=len(lines))
    return times.astype(np.int64), nearest


def cosines(
    filaments: Sequence[Filament], scale: float, curves: Sequence[Curve] | None = None
) -> tuple[Floats, Floats]:
    """Return summed cosines of the angle between the directions of a filament at two places, and how many pairs.

    Both are (F, :data:`LAGS`), by the distance of the places along the filament: 1, 2, ... times ``scale`` pixels.
    Closed filaments have none.
    """
    sums, pairs = np.zeros((2, len(filaments), LAGS))
    for row, (filament, curve) in enumerate(zip(filaments, curves or map(smooth_curve, filaments), strict=True)):
        arc = np.arange(0, curve.arc[-1], scale)
        if filament.closed or len(arc) <= 1:
            continue
        tangent = curve.spline(curve.at(arc), 1)
        tangent /= np.maximum(np.hypot(*tangent.T), 1e-12)[:, None]
        by_lag = sum(np.correlate(part, part, "full")[len(arc) :][:LAGS] for part in tangent.T)
        sums[row, : len(arc) - 1] = by_lag
        pairs[row, : len(arc) - 1] = np.arange(len(arc) - 1, 0, -1)[:LAGS]
    return sums, pairs


def persistence_length(sums: Floats, pairs: Floats, scale: float) -> Floats:
    """Return the persistence length P, (R,) pixels, from rows of :func:`cosines` (R, :data:`LAGS`).

    In a plane, the mean cosine over a distance s is exp(-s / 2P) (Rivetti, Guthold and Bustamante 1996,
    doi:10.1006/jmbi.1996.0687). A line is fitted to its logarithm, each distance weighted by its pairs and the squared
    cosine; its intercept takes what the jitter of detections and smoothing do. NaN if it would be above
    :data:`STRAIGHT` widths, or if there are fewer than three distances.
    """
    lag = scale * np.arange(1, LAGS + 1)
    mean = sums / np.maximum(pairs, 1)
    # Up to the first distance over which filaments forget their direction.
    fitted = np.logical_and.accumulate((mean > LEAST_COSINE) & (pairs > 0), axis=1)
    fitted[:, : LEAST_LAG - 1] = False
    weight = np.where(fitted, pairs * mean**2, 0.0)
    total = np.maximum(weight.sum(axis=1), 1e-12)
    log = np.log(np.where(fitted, mean, 1.0))
    mean_lag, mean_log = ((weight * values).sum(axis=1) / total for values in (lag, log))
    away = lag - mean_lag[:, None]
    slope = (weight * away * (log - mean_log[:, None])).sum(axis=1) / np.maximum((weight * away**2).sum(axis=1), 1e-12)
    bends = (slope < -0.5 / (STRAIGHT * scale)) & (fitted.sum(axis=1) >= 3)
    length: Floats = np.where(bends, -0.5 / np.where(bends, slope, -1.0), np.nan)
    return length


def stiffness(sums: Floats, pairs: Floats, scale: float) -> tuple[float, float, float]:
    """Return the persistence length of all filaments of some images, and its 95 % interval, pixels.

    From each image's sums over filaments, (images, :data:`LAGS`). The interval is a bootstrap over images; NaN if these
    are fewer than :data:`FEWEST_IMAGES`, or what is NaN in a sample.
    """
    whole = float(persistence_length(sums.sum(axis=0)[None], pairs.sum(axis=0)[None], scale)[0])
    if len(sums) < FEWEST_IMAGES:
        return whole, np.nan, np.nan
    drawn = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), SAMPLES).astype(float)
    samples = persistence_length(drawn @ sums, drawn @ pairs, scale)
    # A sample that does not bend is beyond any length.
    low, high = np.percentile(np.where(np.isnan(samples), np.inf, samples), INTERVAL, method="nearest")
    return whole, float(low), float(high)


def apparent_width(image: NDArray[np.floating], paths: Sequence[NDArray[np.floating]], scale: float) -> float:
    """Return the width of the mean profile across filaments, pixels; NaN without filaments.

    Of second derivatives in the scale space of ridges (gamma 3/4, Lindeberg 1998, doi:10.1023/A:1008097225773), the one
    answers a bar best whose Gaussian is 1 / sqrt(6) of its width. ``image`` is (H, W), the paths are (P, 2), pixels;
    ``scale`` is about their width.
    """
    long = [path for path in paths if len(path) > 1]
    if not long:
        return float("nan")
    step = np.concatenate([np.gradient(path, axis=0) for path in long])
    normal = np.stack([-step[:, 1], step[:, 0]], axis=1) / np.maximum(np.hypot(*step.T), 1e-9)[:, None]
    across = np.linspace(-2.5, 2.5, 101)  # widths
    at = np.concatenate(long)[:, None] + scale * across[:, None] * normal[:, None]
    profile = ndimage.map_coordinates(image, np.moveaxis(at[..., ::-1], -1, 0), order=1, mode="nearest").mean(axis=0)
    sigmas = np.geomspace(0.1, 1.0, 33)  # widths
    u = across / sigmas[:, None]
    filters = sigmas[:, None] ** -1.5 * (u**2 - 1) * np.exp(-0.5 * u**2)
    answer = np.abs(filters @ (profile - profile.mean()))
    return float(np.sqrt(6) * sigmas[answer.argmax()] * scale)
