"""How wide filaments are, and whether they are dark or bright, estimated from micrographs alone.

Ridges of many widths are looked for, dark and bright ones. Filaments are where ridges rise highest above the noise.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, product, repeat
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from grace_lightning.clean import blank, mended
from grace_lightning.errors import InputError
from grace_lightning.raster import Bools
from grace_lightning.ridges import Polarity, crests, directed_answers, noise_of

Floats = NDArray[np.floating]
POLARITIES: dict[int, Polarity] = {1: "bright", -1: "dark"}

MOST_IMAGES = 8
"""So many images are looked at."""

WIDTHS, WIDEST = (4.0, 4 * 2**0.5), 256.0
"""Widths of the ridges that are looked for in an image and in its reductions by 2, 4, ..., and the greatest one."""

TILE, TILES = 256, 2
"""An image and its reductions are looked at in 2 x 2 evenly spread squares of so many pixels, or whole if smaller."""

ORIENTATIONS, ALONG = 8, 1.2
"""Of the filter, see :func:`grace_lightning.ridges.directed_answers`."""

LEAST = 4.0
"""Ridges count by their height above so many standard deviations of the noise."""

AGAINST = 0.7
"""Of the height of ridges so much counts against those of the other polarity: an edge has both, side by side."""

WIDER, PER_WIDTH = 0.25, 1.4
"""Heights are weighted by this power of the width; then the ridges that are highest are so many times wider than
filaments, or a little more: what is taken for a third too wide is found more surely than what is taken for a third too
narrow. See ``benchmarks/estimate.py``."""

ROWS = 15
"""Offsets from row to row, as scanning leaves, are no filaments: the median of each is made that of so many."""

BEYOND, TRUSTED = 1.35, (0.7, 1.4)
"""Annotations of simulated scenes are so many times wider than filaments: they reach beyond, and join at crossings. A
user's may be lines or of a broad brush: they change the width of the ridges within these factors only."""

DOUBTFUL = 0.15
"""Estimates of less clarity are guesses: of noise it is .03 at most, of clear filaments .7 or more."""


@dataclass(frozen=True)
class Estimate:
    """What filaments look like in some images."""

    scale: float  # width of a filament, pixels
    polarity: Polarity
    clarity: float  # height of the ridges over the noise, summed over their length, in squared widths of the area

    @property
    def doubtful(self) -> bool:
        """Whether so little stands out that this is a guess."""
        return self.clarity < DOUBTFUL


UNKNOWN = Estimate(20.0, "dark", 0.0)
"""If nothing in the images stands out."""


class Ridges(NamedTuple):
    """Ridges of one width and polarity in one image."""

    width: float  # pixels
    sign: int  # 1 if they are bright, -1 if dark
    height: float  # above the noise, grey values, summed along all ridges, by area
    over_noise: float  # the same in standard deviations of the noise


def estimate(
    images: Iterable[Tensor],
    scale: float | None = None,
    polarity: Polarity | None = None,
    annotations: Iterable[Tensor | None] = repeat(None),
) -> Estimate:
    """Estimate the width and the polarity of filaments from the first :data:`MOST_IMAGES` images, (1, H, W) float32.

    A ``scale``, pixels, or ``polarity`` that is given is kept, and the other one estimated for it. Of an image that has
    an annotation, (H, W), only ridges inside of it count; its own width counts as much as theirs, within limits. It is
    an :class:`InputError` if there is no image.
    """
    heights: dict[tuple[int, float], float] = defaultdict(float)  # by sign and width
    clarity: dict[tuple[int, float], float] = defaultdict(float)
    annotated: list[float] = []  # widths, pixels
    looked_at = 0
    for image, annotation in islice(zip(images, annotations, strict=False), MOST_IMAGES):
        looked_at += 1
        if annotation is not None and annotation.any():
            annotated.append(_width_of(annotation))
        of_image: dict[tuple[int, float], float] = defaultdict(float)
        for ridges in ridges_of(image, annotation):
            height = ridges.height * ridges.width**WIDER
            of_image[ridges.sign, ridges.width] += height
            of_image[-ridges.sign, ridges.width] -= AGAINST * height
            clarity[ridges.sign, ridges.width] += ridges.width * ridges.over_noise
        most = max(of_image.values(), default=0.0)
        for key, height in of_image.items():
            heights[key] += max(height, 0) / most if most > 0 else 0  # each image has one vote
    if not looked_at:
        raise InputError("no image to tell the width and the polarity of filaments from")
    widths = sorted({width for _, width in heights})
    signs = [sign for sign, word in POLARITIES.items() if polarity in (None, word)]
    near = [width for width in widths if scale is None or 0.7 < width / (PER_WIDTH * scale) < 1.5] or widths
    best = max(product(signs, near), key=lambda key: heights[key], default=None)
    if best is None or heights[best] == 0:
        return Estimate(scale or UNKNOWN.scale, polarity or UNKNOWN.polarity, UNKNOWN.clarity)
    sign, width = best
    k = widths.index(width)
    if 0 < k < len(widths) - 1:  # the top of a parabola through three heights; widths are a factor of 2**.5 apart
        before, top, after = (heights[sign, widths[n]] for n in (k - 1, k, k + 1))
        width *= 2 ** float(np.clip(0.25 * (after - before) / max(2 * top - before - after, 1e-12), -0.25, 0.25))
    width /= PER_WIDTH
    if annotated:
        width *= float(np.clip(np.sqrt(np.median(annotated) / width), *TRUSTED))
    return Estimate(scale or float(f"{width:.2g}"), POLARITIES[sign], clarity[best] / looked_at)


def _width_of(annotation: Tensor) -> float:
    """Return how wide the filaments of an annotation (H, W) are, pixels."""
    inside = annotation.numpy() > 0
    return float(4 * ndimage.distance_transform_edt(inside)[inside].mean() / BEYOND)  # of a bar, 4 times the mean


def ridges_of(image: Tensor, annotation: Tensor | None = None) -> Iterator[Ridges]:
    """Find ridges of all widths in an image, (1, H, W) float32, or inside its annotation, (H, W), if that has any."""
    image, step = mended(image)[0], 1
    inside = torch.ones_like(image) if annotation is None or not annotation.any() else (annotation > 0)[None].float()
    empty = blank(image)
    if empty is not None:
        image = torch.where(empty, image[:, ~empty].mean().nan_to_num(), image)
    level = image[0].median(dim=1).values.numpy()
    image = image - torch.from_numpy(level - ndimage.median_filter(level, ROWS))[:, None]
    while min(image.shape[1:]) >= 4 * WIDTHS[0] and step * WIDTHS[0] <= WIDEST:
        pixels = image[0].numpy()
        starts = list(product(*map(_starts, pixels.shape)))
        for width in WIDTHS:
            for rows, columns in starts if step * width <= WIDEST else ():
                square, within = (a[rows : rows + TILE, columns : columns + TILE] for a in (pixels, inside[0].numpy()))
                for ridges in _ridges_of_square(square - square.mean(), within > 0, width):
                    # A point stands for ``step`` pixels of a ridge, and for step**2 of the area.
                    share = 1 / (step * len(starts))
                    yield Ridges(step * width, ridges.sign, share * ridges.height, share * ridges.over_noise)
        image, inside, step = functional.avg_pool2d(image, 2), functional.max_pool2d(inside, 2), 2 * step


def _starts(length: int) -> list[int]:
    count = min(TILES, -(-length // TILE))
    return [int(start) for start in np.linspace(0, max(length - TILE, 0), count)]


def _ridges_of_square(square: Floats, inside: Bools, width: float) -> Iterator[Ridges]:
    angles, found = zip(*directed_answers(torch.from_numpy(square), width, ORIENTATIONS, ALONG), strict=True)
    noise = float(torch.stack([noise_of(answer.flatten()) for answer in found]).mean())
    answers = torch.stack(found).numpy()
    for sign in POLARITIES:
        height = (sign * answers).max(axis=0)
        direction, high = np.zeros_like(height), height > LEAST * noise
        direction[high] = np.array(angles)[(sign * answers[:, high]).argmax(axis=0)]
        row, column, _ = crests(height, direction, LEAST * noise)
        above = float((inside * (height - LEAST * noise))[row, column].sum()) / square.size
        yield Ridges(width, sign, above, above / max(noise, 1e-12))
