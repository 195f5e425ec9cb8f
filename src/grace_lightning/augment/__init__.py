"""Random changes of a training sample, drawn anew every epoch.

Those that act on the graph or on image and graph together take and return a :class:`Sample`; those that act on
patches take and return a tensor of patches. Inputs are never changed. Randomness comes from torch's generator.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from grace_lightning.augment.common import PatchAugmentation, SampleAugmentation
from grace_lightning.augment.graph import RandomEdgeAdditionAndRemoval, RandomXYTranslation, absent_pairs, translate
from grace_lightning.augment.image import (
    RandomBlur,
    RandomFlip,
    RandomImageGraphRotate,
    RandomIntensity,
    RandomNoise,
    flip,
    rotate,
)
from grace_lightning.augment.paste import RandomCopyPaste
from grace_lightning.augment.patch import RandomEdgeCrop, blank_band
from grace_lightning.graph import Sample

__all__ = [
    "Augmentation",
    "PatchAugmentation",
    "RandomBlur",
    "RandomCopyPaste",
    "RandomEdgeAdditionAndRemoval",
    "RandomEdgeCrop",
    "RandomFlip",
    "RandomImageGraphRotate",
    "RandomIntensity",
    "RandomNoise",
    "RandomXYTranslation",
    "SampleAugmentation",
    "absent_pairs",
    "blank_band",
    "flip",
    "rotate",
    "translate",
]


class Augmentation:
    """The configured augmentations, in the order of the configuration.

    Parameters
    ----------
    steps : name -> augmentation; None switches one off
    """

    def __init__(self, steps: Mapping[str, SampleAugmentation | PatchAugmentation | None]) -> None:
        self.on_sample = [step for step in steps.values() if isinstance(step, SampleAugmentation)]
        self.on_patches = [step for step in steps.values() if isinstance(step, PatchAugmentation)]

    def __bool__(self) -> bool:
        return bool(self.on_sample or self.on_patches)

    @property
    def uses_annotation(self) -> bool:
        """Whether anything looks at more of an annotation than the labels that the graph has."""
        return any(step.uses_annotation for step in self.on_sample)

    def sample(self, sample: Sample) -> Sample:
        """Apply what acts on samples.

        Where steps look at the annotation, it goes after the last of them: to turn it with the image takes time.
        """
        last = max((k for k, step in enumerate(self.on_sample) if step.uses_annotation), default=None)
        for k, step in enumerate(self.on_sample):
            sample = step(sample)
            if k == last:
                sample = sample.replace(annotation=None)
        return sample

    def patches(self, patches: Tensor) -> Tensor:
        """Apply what acts on patches, (N, C, p, p)."""
        for step in self.on_patches:
            patches = step(patches)
        return patches
