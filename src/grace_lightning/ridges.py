"""Detections from a micrograph alone: points along its ridges, if there is no particle picker."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import fft, ndimage, sparse
from scipy.sparse import csgraph
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn import functional

from grace_lightning.clean import blank, mended
from grace_lightning.errors import InputError
from grace_lightning.flatten import flatten_image
from grace_lightning.raster import Bools, Ints, dense, values_at

Floats = NDArray[np.float32]
Polarity = Literal["dark", "bright"]
"""Whether filaments are darker or brighter than their surroundings."""

# Standard deviations of the filter across and along a ridge, in filament widths. A bar answers a second derivative best
# at its width over sqrt(12) = 0.29 (Lindeberg 1998, doi:10.1023/A:1008097225773).
ACROSS, ALONG = 0.3, 1.0
WIDER = 1.25  # than a filament is what detections are looked for with: fewer are false, and faint filaments are found
LEAST_SCALE = 3  # pixels; thinner lines are no ridges
LEAST_EXPONENT = -80  # below, numbers become so small that a processor takes ten times as long for them
ORIENTATIONS = 16  # 11 degrees apart: the filter's answer falls to a half 20 degrees off the ridge


@dataclass(frozen=True)
class RidgeDetector:
    """Finds points at equal distances along bright or dark lines of about one width.

    An elongated second derivative of a Gaussian, turned to 16 directions, answers to lines. There is a ridge wherever
    its answer is greatest across its own direction. Ridges above the threshold are thinned to lines of single pixels,
    and these are cut into pieces, the middle of each of which is a detection.
    """

    scale: float | None = None  # width of a filament, pixels; null: estimated from the image
    spacing: float | None = None  # between detections along a filament, pixels; null: ``scale``
    threshold: float = 3.5  # least height of a ridge, standard deviations of the noise; lower finds more
    polarity: Polarity | None = None  # of filaments; null: estimated from the image

    def __post_init__(self) -> None:
        for name, least in (("scale", LEAST_SCALE), ("spacing", 2), ("threshold", 0.1)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise InputError(f"{name}: {value}, expected {least} or more")

    def __call__(self, image: Tensor, device: torch.device | str = "cpu") -> pd.DataFrame:
        """Find detections on an image, (1, H, W) float32, on the CPU: ``x``, ``y`` (pixels) and ``confidence``.

        The confidence is 0.5 for a ridge as high as the threshold, and goes towards 1 for higher ones. Most of the work
        is the filter, which runs on ``device``.
        """
        from skimage.filters import apply_hysteresis_threshold  # here, as it takes long to import
        from skimage.morphology import skeletonize

        image = mended(image)[0]
        if self.scale is None or self.polarity is None:
            from grace_lightning.estimate import estimate  # which needs the filter below

            found = estimate([image], self.scale, self.polarity)
            return replace(self, scale=max(found.scale, LEAST_SCALE), polarity=found.polarity)(image, device)
        width = WIDER * self.scale
        step = max(1, int(width / 6))  # six pixels a width place the centre to a fraction of a pixel
        few = functional.avg_pool2d(image, step, ceil_mode=True, count_include_pad=False)
        reduced = flatten_image(few, 2 * width / step)[0].to(device)  # slow changes go, filaments stay
        empty = blank(image)
        shown = np.ones(reduced.shape, np.bool_)
        if empty is not None:
            shown = (functional.avg_pool2d((~empty)[None].float(), step, ceil_mode=True)[0] > 0).numpy()
        height, direction = ridge_filter(reduced if self.polarity == "bright" else -reduced, width / step, shown)
        height /= self.threshold
        # Ridges are followed down to 0.6 of the threshold.
        row, column, away = crests(height, direction, 0.6)
        crest, offset = np.zeros_like(height), np.zeros_like(height)
        crest[row, column], offset[row, column] = height[row, column], away
        row, column = np.nonzero(skeletonize(apply_hysteresis_threshold(crest, 0.6, 1.0)))
        middle = spaced(row, column, (self.spacing or self.scale) / step, 2 * width / step)  # shorter: blobs
        row, column = row[middle], column[middle]
        normal = np.array([np.cos(direction), np.sin(direction)])[:, row, column]
        reduced_xy = np.stack([column, row]) + offset[row, column] * normal
        rows, columns = image.shape[1:]
        x, y = np.clip(step * (reduced_xy + 0.5) - 0.5, 0, np.array([[columns], [rows]]) - 1)
        score = height[row, column]
        return pd.DataFrame({"x": x, "y": y, "confidence": score / (1 + score)})


def ridge_filter(image: Tensor, scale: float, shown: Bools) -> tuple[Floats, Floats]:
    """Measure the height of bright ridges of width ``scale`` (pixels), and the direction that crosses them.

    Returns, for every pixel, the greatest height over all directions, in standard deviations of the filter's answer
    without ridges (from its median), and the angle of the direction across the ridge, radians, from x to y. Where the
    image (H, W) is not ``shown`` (H, W) the height is 0, and the answer does not count.
    """
    height, direction = torch.full_like(image, -torch.inf), torch.zeros_like(image)
    seen, noise = None if shown.all() else torch.from_numpy(shown).to(image.device), []
    for angle, answer in directed_answers(image, scale):
        noise.append(noise_of(answer.flatten() if seen is None else answer[seen]))
        direction.lerp_(direction.new_tensor(angle), (answer > height).to(answer.dtype))  # faster than by a mask
        torch.maximum(height, answer, out=height)
    height /= torch.stack(noise).mean().clamp(min=1e-12)
    return np.where(shown, height.cpu().numpy(), 0), direction.cpu().numpy()


def directed_answers(
    image: Tensor, scale: float, orientations: int = ORIENTATIONS, along: float = ALONG
) -> Iterator[tuple[float, Tensor]]:
    """Yield the filter's answer to bright ridges of width ``scale`` (pixels), (H, W), by direction across, radians.

    Its standard deviation along the ridge is ``along`` widths.
    """
    margin, device = int(3 * along * scale), image.device
    # Mirrored beyond the border pixel; if it were mirrored at it, noise would have more ridges along the border.
    rows, columns = (torch.from_numpy(np.pad(np.arange(n), margin, "symmetric")).to(device) for n in image.shape)
    shape = [fft.next_fast_len(len(index), real=True) for index in (rows, columns)]
    # At a frequency k, of which q is across: (sigma q)^2 exp(-((sigma q)^2 + tau^2 (k^2 - q^2)) / 2).
    sigma, tau = ACROSS * scale, along * scale
    spectrum = torch.fft.rfft2(image[rows][:, columns], shape) * sigma**2
    ky = 2 * torch.pi * torch.fft.fftfreq(shape[0], device=device)[:, None]
    kx = 2 * torch.pi * torch.fft.rfftfreq(shape[1], device=device)
    in_all = -0.5 * tau**2 * (kx**2 + ky**2)
    for angle in (np.pi * np.arange(orientations) / orientations).tolist():
        square = (kx * np.cos(angle) + ky * np.sin(angle)).square_()
        exponent = torch.add(in_all, square, alpha=0.5 * (tau**2 - sigma**2)).clamp_(min=LEAST_EXPONENT)
        answer = torch.fft.irfft2(spectrum * exponent.exp_().mul_(square), shape)
        yield angle, answer[margin:, margin:][: image.shape[0], : image.shape[1]]


def noise_of(answer: Tensor) -> Tensor:
    """Return the standard deviation of the noise in an answer (any,), by the median of about 20,000 of its values."""
    some = answer[:: max(1, len(answer) // 20_000)]
    return some.abs().median() / 0.6745 if len(some) else answer.new_zeros(())


TURNS: dict[str, Callable[[Bools], Bools]] = {
    "": lambda mask: mask,
    "mirrored in y": lambda mask: mask[::-1],
    "mirrored in x": lambda mask: mask[:, ::-1],
    "turned by 180 degrees": lambda mask: mask[::-1, ::-1],
    "with x and y swapped": lambda mask: mask.T,
}
"""Ways in which a mask may lie on the wrong places of its image."""

AT_HOME = 1.5
"""If the log odds of a detection to lie inside the mask are above those of any pixel by this, the mask fits: of right
masks it was 1.4 to 2.5, of wrong ones 1.0 at most."""

STAND_OUT, APART = 0.9, 0.6
"""A mask fits if the ridges in it stand out by so many standard deviations, and better than another by so many: those
of right masks stood out by 1.3 to 2.4, of wrong ones by .6 at most."""


def better_fit(image: Tensor, pos: Tensor, mask: Tensor) -> str:
    """Return what has to be done to a mask (H, W) for it to fit its image (1, H, W) clearly better; empty if nothing.

    Of a mask that fits, the image's ridges, bright or dark, lie inside, and the detections (N, 2) do. The ridges, which
    take longer, decide if the detections are not clearly inside.
    """
    given = mask.numpy() > 0
    if given.all() or not given.any():
        return ""
    turned = {name: turn(given) for name, turn in TURNS.items() if turn(given).shape == given.shape}
    if given.mean() > 0.5:
        turned |= {f"inverted, {name}".strip(", "): ~way for name, way in turned.items()}
    odds = np.array([_log_odds(values_at(way, pos.numpy()), way.mean()) for way in turned.values()])
    if odds[0] > AT_HOME:
        return ""
    stand_out = _contrasts(image, list(turned.values()))
    best = int(stand_out.argmax())
    if stand_out[best] < max(STAND_OUT, stand_out[0] + APART):
        best = int(odds.argmax())
        if odds[best] - odds[0] < 2 * AT_HOME or stand_out[best] < stand_out[0] + APART / 2:
            return ""
    return list(turned)[best]


def _log_odds(inside: Bools, share: float) -> float:
    """Return how far the log odds to lie inside are above those of any pixel, of which a ``share`` does."""
    count = inside.sum()
    return float(np.log((count + share) / (len(inside) - count + 1 - share)) - np.log(share / (1 - share)))


def _contrasts(image: Tensor, masks: Sequence[Bools]) -> Floats:
    """Return how high ridges are inside each mask above those outside, in standard deviations: (any,)."""
    thin = min(masks[0], ~masks[0], key=np.sum)
    width = max(3.0, 4 * ndimage.distance_transform_edt(thin)[thin].mean())  # of a bar, distances are a quarter of it
    step = max(1, int(width / 6), max(thin.shape) // 1024)
    flat = flatten_image(image, 2 * max(width, 3 * step))
    reduced, *inside = (
        functional.avg_pool2d(pixels.float(), step, ceil_mode=True, count_include_pad=False)[0]
        for pixels in (flat, *(torch.from_numpy(mask.copy())[None] for mask in masks))
    )
    contrast = np.zeros((2, len(masks)), np.float32)
    for k, sign in enumerate((1, -1)):
        height, _ = ridge_filter(sign * reduced, max(3.0, width / step), np.ones(reduced.shape, np.bool_))
        height = np.clip(height, 0, 8)  # so that one thing of another kind does not decide
        of_pixel = (height - height.mean()) / max(height.std(), 1e-12)
        contrast[k] = [np.average(of_pixel, weights=mask) - np.average(of_pixel, weights=1 - mask) for mask in inside]
    highest: Floats = contrast.max(axis=0)
    return highest


def crests(height: Floats, direction: Floats, least: float) -> tuple[Ints, Ints, Floats]:
    """Find pixels above ``least`` whose height is greatest across the ridge; see :func:`ridge_filter`.

    Returns their rows and columns, (any,), and how far the crest is from a pixel's centre along its direction, at most
    half a pixel.
    """
    row, column = np.nonzero(height > least)
    here, normal = height[row, column], np.stack([np.sin(direction[row, column]), np.cos(direction[row, column])])
    before, after = (
        ndimage.map_coordinates(height, [row, column] + side * normal, order=1, mode="nearest") for side in (-1, 1)
    )
    curvature = before + after - 2 * here
    offset = np.clip(0.5 * (before - after) / np.where(curvature < 0, curvature, -np.inf), -0.5, 0.5)
    top = (here >= before) & (here >= after)
    return row[top], column[top], offset[top].astype(np.float32)


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


STEPS = 10
"""Points of a straightened line for each width of the filament, along it and across."""


def snap_to_ridges(
    image: Tensor, lines: Sequence[NDArray[np.float64]], scale: float
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
    """Move lines (P, 2), pixels, onto the crest of the ridge that runs along each, by half a width at most.

    The image (1, H, W) is straightened along each line; the crest is the path of least cost along the strip, where
    a second derivative answers best. Whether filaments are bright or dark is told by all lines of the image together.
    Also returned is by how many pixels each was moved, on average over its length, (lines,).
    """
    from skimage.graph import MCP_Geometric  # here, as it takes long to import

    if not lines:
        return [], np.zeros(0)
    flat = flatten_image(mended(image)[0], 2 * scale)[0].numpy()
    half, margin = STEPS // 2, 2 * STEPS  # how far the crest may lie off, and how far the filter sees
    offset = np.arange(-margin, margin + 1) * scale / STEPS
    drawn = [dense(line, scale / STEPS) for line in lines]
    normals, answers = [], []
    for points in drawn:
        along = np.gradient(ndimage.gaussian_filter1d(points, STEPS / 2, axis=0, mode="nearest"), axis=0)
        along /= np.maximum(np.hypot(*along.T), 1e-9)[:, None]
        normals.append(np.stack([-along[:, 1], along[:, 0]], axis=1))
        at = points[:, None] + offset[:, None] * normals[-1][:, None]
        strip = ndimage.map_coordinates(flat, np.moveaxis(at[..., ::-1], -1, 0), order=1, mode="nearest")
        answers.append(-ndimage.gaussian_filter(strip, (ALONG * STEPS, ACROSS * STEPS), order=(0, 2), mode="nearest"))
    reach = slice(margin - half, margin + half + 1)
    noise = np.median(np.abs(np.concatenate(answers)[:, abs(offset) > scale])) / 0.6745
    near = np.concatenate(answers)[:, reach]
    sign = 1 if np.maximum(near, 0).max(axis=1).sum() > np.maximum(-near, 0).max(axis=1).sum() else -1
    snapped, moved = [], np.zeros(len(lines))
    for k, (points, normal, answer) in enumerate(zip(drawn, normals, answers, strict=True)):
        height = np.maximum(sign * answer[:, reach], 0)
        # The crest costs a tenth of what the background does, less if it does not rise above the noise.
        height *= 3 / max(np.quantile(height.max(axis=1), 0.5), 3 * noise, 1e-12)
        costs = 1 / (1 + height**2) + 0.1 * (np.arange(-half, half + 1) / half) ** 2
        paths = MCP_Geometric(costs)
        ends = [(len(costs) - 1, j) for j in range(2 * half + 1)]
        total, _ = paths.find_costs([(0, j) for j in range(2 * half + 1)], ends)
        row, column = np.array(paths.traceback(ends[int(total[-1].argmin())])).T
        crest = np.bincount(row, column - half) / np.bincount(row) * scale / STEPS
        crest = ndimage.gaussian_filter1d(crest, STEPS / 2, mode="nearest")
        snapped.append(points + crest[:, None] * normal)
        moved[k] = np.abs(crest).mean()
    return snapped, moved
