"""Detections from a micrograph alone: points along its ridges, for those who have no particle picker.

Symbols used in the shapes below

H W rows and columns of the image
h w the same of the reduced image, on which filaments are about REDUCED_WIDTH pixels wide
R   pixels on ridges
"""

from __future__ import annotations

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
from grace_lightning.features.image import flatten_image

Floats = NDArray[np.float32]

FLATTENING = 2.0
"""Standard deviation of the average that is removed from the image, in filament widths."""
REDUCED_WIDTH = 6
"""Width of a filament in the reduced image, pixels: enough to place its centre to a fraction of a pixel."""
ACROSS, ALONG = 0.3, 1.0
"""Standard deviations of the filter across and along a ridge, in filament widths.

A bar answers a second derivative best at its width over sqrt(12) = 0.29 (Lindeberg 1998, doi:10.1023/A:1008097225773).
"""
ORIENTATIONS = 16
"""The filter's answer falls to a half 20 degrees off the ridge, so that steps of 11 lose next to nothing."""
WEAK = 0.6
"""Ridges are followed down to this fraction of the threshold."""
SHORTEST = 2.0
"""Ridges shorter than this, in filament widths, are taken for blobs."""


class RidgeDetector:
    """Points at equal distances along bright or dark lines of about one width.

    An elongated second derivative of a Gaussian, turned to 16 directions, answers to lines and averages the noise along
    them. Where its answer is greatest across its own direction there is a ridge; ridges above the threshold are thinned
    to lines of single pixels, and these cut into pieces, each giving its middle.

    Parameters
    ----------
    scale : width of a filament, pixels
    spacing : between detections along a filament, pixels; null: ``scale``
    threshold : least height of a ridge, in standard deviations of the noise; lower finds more, true and false
    polarity : whether filaments are darker or brighter than what is around them

    Raises
    ------
    InputError
        A value out of its range.
    """

    def __init__(
        self,
        scale: float = 20.0,
        spacing: float | None = None,
        threshold: float = 5.0,
        polarity: Literal["dark", "bright"] = "dark",
    ) -> None:
        for name, value, least in (("scale", scale, 3), ("spacing", spacing, 2), ("threshold", threshold, 0.1)):
            if value is not None and not value >= least:
                raise InputError(f"{name}: {value}, expected {least} or more")
        self.scale = scale
        self.spacing = scale if spacing is None else spacing
        self.threshold = threshold
        self.polarity = polarity

    def __call__(self, image: Tensor) -> pd.DataFrame:
        """Detections on an image.

        Parameters
        ----------
        image : (1, H, W) float32

        Returns
        -------
        columns ``x``, ``y`` (pixels) and ``confidence``: 0.5 for a ridge as high as the threshold, towards 1 for higher
        """
        from skimage.filters import apply_hysteresis_threshold
        from skimage.morphology import skeletonize

        step = max(1, int(self.scale / REDUCED_WIDTH))
        flat = flatten_image(image, FLATTENING * self.scale)
        reduced = functional.avg_pool2d(flat, step, ceil_mode=True, count_include_pad=False)[0].numpy()
        height, direction = ridge_filter(reduced if self.polarity == "bright" else -reduced, self.scale / step)
        height /= self.threshold
        crest, offset = crests(height, direction)
        ridge = skeletonize(apply_hysteresis_threshold(np.where(crest, height, 0), WEAK, 1.0))
        row, column = np.nonzero(ridge)
        middle = spaced(row, column, self.spacing / step, SHORTEST * self.scale / step)
        row, column = row[middle], column[middle]
        normal = np.array([np.cos(direction), np.sin(direction)])[:, row, column]
        x, y = np.stack([column, row]) + offset[row, column] * normal
        rows, columns = image.shape[1:]
        score = height[row, column]
        return pd.DataFrame(
            {
                "x": np.clip(step * (x + 0.5) - 0.5, 0, columns - 1),
                "y": np.clip(step * (y + 0.5) - 0.5, 0, rows - 1),
                "confidence": score / (1 + score),
            }
        )


def ridge_filter(image: Floats, width: float) -> tuple[Floats, Floats]:
    """Height of bright ridges, over all directions, and the direction that crosses them.

    Parameters
    ----------
    image : (h, w) float32
    width : of a ridge, pixels

    Returns
    -------
    (h, w) heights in standard deviations of the filter's answer where there are no ridges (from its median); (h, w)
    angles of the direction across the ridge, radians, from x to y
    """
    rows, columns = image.shape
    margin = int(3 * ALONG * width)
    padded = np.pad(image, margin, mode="symmetric")
    shape = [fft.next_fast_len(size, real=True) for size in padded.shape]
    spectrum = fft.rfft2(padded, shape)
    ky = 2 * np.pi * fft.fftfreq(shape[0])[:, None].astype(np.float32)
    kx = 2 * np.pi * fft.rfftfreq(shape[1])[None].astype(np.float32)
    height = np.full(image.shape, -np.inf, np.float32)
    direction = np.zeros(image.shape, np.float32)
    spread = 0.0
    for angle in np.pi * np.arange(ORIENTATIONS, dtype=np.float32) / ORIENTATIONS:
        across = ACROSS * width * (kx * np.cos(angle) + ky * np.sin(angle))
        along = ALONG * width * (ky * np.cos(angle) - kx * np.sin(angle))
        answer = fft.irfft2(spectrum * (across**2 * np.exp(-0.5 * (across**2 + along**2))), shape)
        answer = answer[margin : margin + rows, margin : margin + columns]
        spread += float(np.median(np.abs(answer))) / 0.6745 / ORIENTATIONS
        higher = answer > height
        height[higher], direction[higher] = answer[higher], angle
    return height / max(spread, 1e-12), direction


def crests(height: Floats, direction: Floats) -> tuple[NDArray[np.bool_], Floats]:
    """Where the height is greatest across the ridge.

    Parameters
    ----------
    height, direction : (h, w), see :func:`ridge_filter`

    Returns
    -------
    (h, w) bool, and (h, w) the distance from the pixel's centre to the crest along ``direction``, pixels, at most half
    """
    grid = np.indices(height.shape, dtype=np.float32)
    normal = np.stack([np.sin(direction), np.cos(direction)])
    before, after = (ndimage.map_coordinates(height, grid + side * normal, order=1, mode="nearest") for side in (-1, 1))
    curvature = before + after - 2 * height
    with np.errstate(divide="ignore", invalid="ignore"):
        offset = np.where(curvature < 0, 0.5 * (before - after) / curvature, 0)
    return (height >= before) & (height >= after) & (height > 0), np.clip(offset, -0.5, 0.5).astype(np.float32)


def spaced(row: NDArray[np.int64], column: NDArray[np.int64], spacing: float, shortest: float) -> NDArray[np.int64]:
    """Pixels at about equal distances along lines of single pixels.

    Every connected line is cut into pieces of length ``spacing`` by the distance from one of its ends; the middle of
    each stays.

    Parameters
    ----------
    row, column : (R,) pixels of the lines
    spacing, shortest : pixels; lines shorter than the second are left out

    Returns
    -------
    (any,) int64, which of the pixels stay, ascending
    """
    count = len(row)
    if count == 0:
        return np.zeros(0, np.int64)
    points = np.stack([row, column], axis=1)
    first, second = KDTree(points).query_pairs(1.5, output_type="ndarray").T  # pixels that touch, at corners too
    length = np.hypot(*(points[first] - points[second]).T)
    graph = sparse.coo_array((length, (first, second)), shape=(count, count)).tocsr()
    _, line = csgraph.connected_components(graph, directed=False)
    _, start = np.unique(line, return_index=True)
    away = csgraph.dijkstra(graph, directed=False, indices=start, min_only=True)
    order = np.lexsort((away, line))
    end = order[np.cumsum(np.bincount(line)) - 1]  # farthest from anywhere on a line is one of its ends
    away = csgraph.dijkstra(graph, directed=False, indices=end, min_only=True)
    longest = np.zeros(line.max() + 1)
    np.maximum.at(longest, line, away)
    band = (away / spacing).astype(np.int64)
    same = band[first] == band[second]
    within = sparse.coo_array((length[same], (first[same], second[same])), shape=(count, count))
    pieces, piece = csgraph.connected_components(within, directed=False)
    from_middle = np.abs(away - (band + 0.5) * spacing)
    order = np.lexsort((from_middle, piece))
    middle = order[np.searchsorted(piece[order], np.arange(pieces))]
    # the rest of a line and the spurs along it do not reach the middle of their band
    middle = middle[(longest[line[middle]] >= shortest) & (from_middle[middle] <= 1)]
    return np.sort(middle)
