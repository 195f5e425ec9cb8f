"""Four numbers per patch."""

import torch
from torch import Tensor

from grace_lightning.features.common import Features, OnPatches
from grace_lightning.features.crops import crop_patches

CHUNK_BYTES = 2**26
"""Patches are cut in chunks of about this size, so that memory does not grow with the number of detections."""


class Statistics(Features):
    """Mean, deviation, minimum and maximum of the patch around each node; geometry of each edge.

    ``patch`` is the side of the patch in filament widths; see :class:`.Features` for the other keys.
    """

    frozen = True

    def __init__(
        self, scale: float = 20.0, patch: float = 0.8, flatten: float | None = 2.0, laplacian: bool = False
    ) -> None:
        super().__init__(scale, flatten, 4, laplacian, patch=patch)
        self.patch_size = max(1, round(patch * scale))

    def of_image(self, image: Tensor, pos: Tensor, augment: OnPatches | None, seed: int) -> Tensor:
        if not len(pos):
            return image.new_zeros(0, 4)
        parts = []
        for part in torch.split(pos, max(1, CHUNK_BYTES // (4 * self.patch_size**2))):
            patches = crop_patches(image, part, self.patch_size)
            pixels = (augment(patches) if augment else patches).flatten(2)
            deviation, mean = torch.std_mean(pixels, dim=2, correction=0)
            parts.append(torch.cat([mean, deviation, *torch.aminmax(pixels, dim=2)], dim=1))
        return torch.cat(parts)
