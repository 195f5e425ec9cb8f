"""What an augmentation is."""

from __future__ import annotations

from torch import Tensor

from grace_lightning.errors import InputError
from grace_lightning.graph import Graph, Sample


class SampleAugmentation:
    """Acts on a whole sample, before patches are cut."""

    uses_annotation = False
    """Whether it looks at the annotation; others change it with the rest where there is one."""

    def __call__(self, sample: Sample) -> Sample:
        """Return a changed copy of ``sample``."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return describe(self)


class PatchAugmentation:
    """Acts on the patches of a sample, (N, C, p, p) float32."""

    def __call__(self, patches: Tensor) -> Tensor:
        """Return a changed copy of ``patches``."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return describe(self)


def describe(augmentation: object) -> str:
    """The class and its parameters."""
    arguments = ", ".join(f"{name}={value}" for name, value in vars(augmentation).items())
    return f"{type(augmentation).__name__}({arguments})"


def fraction(name: str, value: float) -> float:
    """``value``, refused where it is not a fraction."""
    if not 0 <= value <= 1:
        raise InputError(f"{name}: {value}, expected a fraction from 0 to 1")
    return value


def not_negative(name: str, value: float) -> float:
    """``value``, refused where it is below zero."""
    if value < 0:
        raise InputError(f"{name}: {value}, expected 0 or more")
    return value


def changed(graph: Graph, **changes: Tensor) -> Graph:
    """A copy of a graph with some fields changed."""
    return Graph(**{**vars(graph), **changes})
