"""What happens around an epoch."""

from grace_lightning.callbacks.animation import Animation
from grace_lightning.callbacks.manifold import Manifold

__all__ = ["Animation", "Manifold"]
