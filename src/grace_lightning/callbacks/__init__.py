"""What happens around the epochs of a training."""

from grace_lightning.callbacks.animation import Animation
from grace_lightning.callbacks.averaging import WeightAveraging
from grace_lightning.callbacks.checkpoint import Checkpoint, WholeFiles
from grace_lightning.callbacks.early_stopping import EarlyStopping
from grace_lightning.callbacks.manifold import Manifold
from grace_lightning.callbacks.seeds import SeedEpochs
from grace_lightning.callbacks.stop import StopOnSignal, Stopped, stopping_on_signals

__all__ = [
    "Animation",
    "Checkpoint",
    "EarlyStopping",
    "Manifold",
    "SeedEpochs",
    "StopOnSignal",
    "Stopped",
    "WeightAveraging",
    "WholeFiles",
    "stopping_on_signals",
]
