"""From probabilities to filaments.

Symbols used in the shapes below

N   number of nodes (detections)
E   number of undirected edges
P   pairs of edges that meet at a node
M   rows of the answer: nodes of filaments, a node at a crossing once for each of its filaments
K   number of filaments

A path goes from node to node along edges; a filament is a path with the positive nodes beside it.
"""

from grace_lightning.link.components import Components
from grace_lightning.link.filaments import Filaments, Linker
from grace_lightning.link.programme import Programme

__all__ = ["Components", "Filaments", "Linker", "Programme"]
