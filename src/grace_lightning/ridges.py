"""Detections from a micrograph alone: points along its ridges, if there is no particle picker."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import fft, ndimage, sparse
from scipy.sparse import csgraph
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn import functional

from grace_lightning.errors import InputError
from grace_lightning.flatten import blank, flatten_image, mended
from grace_lightning.raster import Bools, Ints

Floats = NDArray[np.float32]

# Standard deviations of the filter across and along a ridge, in filament widths. A bar answers a second derivative best
# at its width over sqrt(12) = 0.29 (Lindeberg 1998, doi:10.1023/A:1008097225773).
ACROSS, ALONG = 0.3, 1.0
ORIENTATIONS = 16  # 11 degrees apart: the filter's answer falls to a half 20 degrees off the ridge


@dataclass(frozen=True)
class RidgeDetector:
    """Finds points at equal distances along bright or dark lines of about one width.

    An elongated second derivative of a Gaussian, turned to 16 directions, answers to lines. There is a ridge wherever
    its answer is greatest across its own direction. Ridges above the threshold are thinned to lines of single pixels,
    and these are cut into pieces, the middle of each of which is a detection.
    """

    scale: float = 20.0  # width of a filament, pixels
    spacing: float | None = None  # between detections along a filament, pixels; null: ``scale``
    threshold: float = 5.0  # least height of a ridge, standard deviations of the noise; lower finds more
    polarity: Literal["dark", "bright"] = "dark"  # whether filaments are darker or brighter than their surroundings

    def __post_init__(self) -> None:
        for name, least in (("scale", 3), ("spacing", 2), ("threshold", 0.1)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise InputError(f"{name}: {value}, expected {least} or more")

    def __call__(self, image: Tensor) -> pd.DataFrame:
        """Find detections on an image, (1, H, W) float32: ``x``, ``y`` (pixels) and ``confidence``.

        The confidence is 0.5 for a ridge as high as the threshold, and goes towards 1 for higher ones.
        """
        from skimage.filters import apply_hysteresis_threshold  # here, as it takes long to import
        from skimage.morphology import skeletonize

        step = max(1, int(self.scale / 6))  # six pixels a width place the centre to a fraction of a pixel
        image = mended(image)[0]
        flat = flatten_image(image, 2 * self.scale)  # slow changes go, filaments stay
        reduced = functional.avg_pool2d(flat, step, ceil_mode=True, count_include_pad=False)[0].numpy()
        empty = blank(image)
        shown = np.ones(reduced.shape, np.bool_)
        if empty is not None:
            shown = (functional.avg_pool2d((~empty)[None].float(), step, ceil_mode=True)[0] > 0).numpy()
        height, direction = ridge_filter(reduced if self.polarity == "bright" else -reduced, self.scale / step, shown)
        height /= self.threshold
        crest, offset = crests(height, direction)
        # Ridges are followed down to 0.6 of the threshold.
        ridge = skeletonize(apply_hysteresis_threshold(np.where(crest, height, 0), 0.6, 1.0))
        row, column = np.nonzero(ridge)
        middle = spaced(row, column, (self.spacing or self.scale) / step, 2 * self.scale / step)  # shorter: blobs
        row, column = row[middle], column[middle]
        normal = np.array([np.cos(direction), np.sin(direction)])[:, row, column]
        reduced_xy = np.stack([column, row]) + offset[row, column] * normal
        rows, columns = image.shape[1:]
        x, y = np.clip(step * (reduced_xy + 0.5) - 0.5, 0, np.array([[columns], [rows]]) - 1)
        score = height[row, column]
        return pd.DataFrame({"x": x, "y": y, "confidence": score / (1 + score)})


def ridge_filter(image: Floats, scale: float, shown: Bools) -> tuple[Floats, Floats]:
    """Measure the height of bright ridges of width ``scale`` (pixels), and the direction that crosses them.

    Returns, for every pixel, the greatest height over all directions, in standard deviations of the filter's answer
    without ridges (from its median), and the angle of the direction across the ridge, radians, from x to y. Where the
    image is not ``shown`` (H, W) the height is 0, and the answer does not count.
    """
    margin = int(3 * ALONG * scale)
    padded = np.pad(image, margin, mode="symmetric")
    shape = [fft.next_fast_len(size, real=True) for size in padded.shape]
    spectrum = fft.rfft2(padded, shape)
    ky = 2 * np.pi * fft.fftfreq(shape[0])[:, None].astype(np.float32)
    kx = 2 * np.pi * fft.rfftfreq(shape[1])[None].astype(np.float32)
    height, direction, spread = np.full(image.shape, -np.inf, np.float32), np.zeros(image.shape, np.float32), 0.0
    for angle in np.pi * np.arange(ORIENTATIONS, dtype=np.float32) / ORIENTATIONS:
        across = ACROSS * scale * (kx * np.cos(angle) + ky * np.sin(angle))
        along = ALONG * scale * (ky * np.cos(angle) - kx * np.sin(angle))
        answer = fft.irfft2(spectrum * (across**2 * np.exp(-0.5 * (across**2 + along**2))), shape)
        answer = answer[margin:, margin:][: image.shape[0], : image.shape[1]]
        spread += float(np.median(np.abs(answer[shown]))) / 0.6745 / ORIENTATIONS if shown.any() else 0.0
        higher = answer > height
        height[higher], direction[higher] = answer[higher], angle
    return np.where(shown, height / max(spread, 1e-12), 0), direction


def crests(height: Floats, direction: Floats) -> tuple[Bools, Floats]:
    """Find pixels whose height is greatest across the ridge; see :func:`ridge_filter`.

    Returns them as a mask, and the distance from every pixel's centre to the crest along ``direction``, at most half.
    """
    grid = np.indices(height.shape, dtype=np.float32)
    normal = np.stack([np.sin(direction), np.cos(direction)])
    before, after = (ndimage.map_coordinates(height, grid + side * normal, order=1, mode="nearest") for side in (-1, 1))
    curvature = before + after - 2 * height
    with np.errstate(divide="ignore", invalid="ignore"):
        offset = np.where(curvature < 0, 0.5 * (before - after) / curvature, 0)
    return (height >= before) & (height >= after) & (height > 0), np.clip(offset, -0.5, 0.5).astype(np.float32)


def spaced(row: Ints, column: Ints, spacing: float, shortest: float) -> Ints:
    """Choose pixels at about equal distances along lines of single pixels (R,): (any,) int64, ascending.

    Every connected line not below ``shortest`` is cut into pieces of length ``spacing`` by the distance from one of its
    ends; the middle of each stays.
    """
    if len(row) == 0:
        return np.zeros(0, np.int64)
    points, shape = np.stack([row, column], axis=1), (len(row), len(row))
    first, second = KDTree(points).query_pairs(1.5, output_type="ndarray").T  # pixels that touch, at corners too
    length = np.hypot(*(points[first] - points[second]).T)
    graph = sparse.coo_array((length, (first, second)), shape=shape).tocsr()
    _, line = csgraph.connected_components(graph, directed=False)
    _, start = np.unique(line, return_index=True)
    away = csgraph.dijkstra(graph, directed=False, indices=start, min_only=True)
    order = np.lexsort((away, line))
    end = order[np.cumsum(np.bincount(line)) - 1]  # farthest from anywhere on a line is one of its ends
    away = csgraph.dijkstra(graph, directed=False, indices=end, min_only=True)
    length_of_line = pd.Series(away).groupby(line).transform("max").to_numpy()
    band = (away / spacing).astype(np.int64)
    same = band[first] == band[second]
    within = sparse.coo_array((length[same], (first[same], second[same])), shape=shape)
    _, piece = csgraph.connected_components(within, directed=False)
    from_middle = np.abs(away - (band + 0.5) * spacing)
    middle = pd.Series(from_middle).groupby(piece).idxmin().to_numpy()
    # The rest of a line and the spurs along it do not reach the middle of their band.
    return np.sort(middle[(length_of_line[middle] >= shortest) & (from_middle[middle] <= 1)])
