"""What happens around the epochs of a training."""

from grace_lightning.callbacks.animation import Animation
from grace_lightning.callbacks.averaging import WeightAveraging
from grace_lightning.callbacks.charts import Charts
from grace_lightning.callbacks.checkpoint import Checkpoint, WholeFiles
from grace_lightning.callbacks.early_stopping import EarlyStopping
from grace_lightning.callbacks.figures import Figures
from grace_lightning.callbacks.gradient_norm import GradientNorm
from grace_lightning.callbacks.learning_rate import LearningRate
from grace_lightning.callbacks.manifold import Manifold
from grace_lightning.callbacks.projector import Projector
from grace_lightning.callbacks.seeds import SeedEpochs
from grace_lightning.callbacks.speed import Speed
from grace_lightning.callbacks.stop import StopOnSignal, Stopped, stopping_on_signals

__all__ = [
    "Animation",
    "Charts",
    "Checkpoint",
    "EarlyStopping",
    "Figures",
    "GradientNorm",
    "LearningRate",
    "Manifold",
    "Projector",
    "SeedEpochs",
    "Speed",
    "StopOnSignal",
    "Stopped",
    "WeightAveraging",
    "WholeFiles",
    "stopping_on_signals",
]
