"""What the network is told about each node and each edge: a kind of features is the network's first layer."""

from grace_lightning.features.backbone import Backbone, save_backbone
from grace_lightning.features.common import Features
from grace_lightning.features.crops import node_patches
from grace_lightning.features.learned import Learned
from grace_lightning.features.statistics import Statistics

__all__ = ["Backbone", "Features", "Learned", "Statistics", "node_patches", "save_backbone"]
