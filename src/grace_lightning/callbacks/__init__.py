"""What happens around the epochs of a training."""

from grace_lightning.callbacks.charts import Charts
from grace_lightning.callbacks.figures import Figures
from grace_lightning.callbacks.gradient_norm import GradientNorm
from grace_lightning.callbacks.learning_rate import LearningRate
from grace_lightning.callbacks.projector import Projector
from grace_lightning.callbacks.speed import Speed

__all__ = [
    "Charts",
    "Figures",
    "GradientNorm",
    "LearningRate",
    "Projector",
    "Speed",
]
