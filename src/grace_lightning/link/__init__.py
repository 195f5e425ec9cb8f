"""From probabilities to filaments.

Symbols used in the shapes below

N   number of nodes (detections)
E   number of undirected edges
P   number of pieces that paths are cut into; a piece has two ends, numbered k and P + k
J   number of joints: pairs of ends of pieces that may be joined

A path goes from node to node along edges; a filament is a path with the positive nodes beside it.
"""

from grace_lightning.link.components import Components
from grace_lightning.link.detections import Linker
from grace_lightning.link.programme import Programme

__all__ = ["Components", "Linker", "Programme"]
