"""Find filaments in micrographs: graphs over detections, learned and linked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grace_lightning.graph import Filament
    from grace_lightning.predictor import Findings, Predictor, predict

__all__ = ["Filament", "Findings", "Predictor", "predict"]


def __getattr__(name: str) -> Any:
    """Import public names when they are asked for: the commands need torch only once they run."""
    if name in __all__:
        from grace_lightning import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
