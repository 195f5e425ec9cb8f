"""What the network is told about each node and each edge.

A feature kind is a module with three duties: ``preprocess`` an image once, ``extract`` raw tensors from a sample on
the CPU, and, as the first layer of the network, turn them into standardised node and edge features (``forward``).
"""

from grace_lightning.features.backbones import Backbone
from grace_lightning.features.common import (
    EDGE_WIDTH,
    Extracted,
    FeatureKind,
    PatchAugmentation,
    Standardise,
    encode_geometry,
)
from grace_lightning.features.crops import crop_patches, edge_strips, node_patches
from grace_lightning.features.image import flatten_image, standardise_image
from grace_lightning.features.learned import Learned
from grace_lightning.features.pretrained import save_backbone
from grace_lightning.features.statistics import Statistics, laplacian, patch_statistics

__all__ = [
    "EDGE_WIDTH",
    "Backbone",
    "Extracted",
    "FeatureKind",
    "Learned",
    "PatchAugmentation",
    "Standardise",
    "Statistics",
    "crop_patches",
    "edge_strips",
    "encode_geometry",
    "flatten_image",
    "laplacian",
    "node_patches",
    "patch_statistics",
    "save_backbone",
    "standardise_image",
]
