"""Changes of the patches around nodes."""

from __future__ import annotations

import torch
from torch import Tensor

from grace_lightning.augment.common import PatchAugmentation, fraction


class RandomEdgeCrop(PatchAugmentation):
    """Blanks a band at one of the four sides of each patch; the band takes the patch's mean.

    Parameters
    ----------
    max_fraction : of the patch's side; the width of the band is drawn evenly from 0 to this
    """

    def __init__(self, max_fraction: float = 0.1) -> None:
        self.max_fraction = fraction("max_fraction", max_fraction)

    def __call__(self, patches: Tensor) -> Tensor:
        """Return a changed copy of ``patches``."""
        count, size = len(patches), patches.shape[-1]
        band = torch.round(torch.rand(count, device=patches.device) * self.max_fraction * size).long()
        side = torch.randint(4, (count,), device=patches.device)
        return blank_band(patches, side, band)


def blank_band(patches: Tensor, side: Tensor, band: Tensor) -> Tensor:
    """Patches with a band set to the patch's mean.

    Parameters
    ----------
    patches : (N, C, p, p) float32
    side : (N,) int64; 0 top, 1 bottom, 2 left, 3 right
    band : (N,) int64, pixels
    """
    size = patches.shape[-1]
    ramp = torch.arange(size, device=patches.device)
    distance = torch.where((side % 2 == 0)[:, None], ramp, size - 1 - ramp)  # (N, p) from the blanked side
    blank = distance < band[:, None]
    rows = (side < 2)[:, None, None]
    mask = torch.where(rows, blank[:, :, None], blank[:, None, :])
    return torch.where(mask[:, None], patches.mean(dim=(2, 3), keepdim=True), patches)
