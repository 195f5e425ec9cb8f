"""Graphs over detections.

Symbols used in the shapes below

N   number of nodes (detections)
E   number of undirected edges
H W rows and columns of the image
C   channels of the image (1 for a micrograph)
F   length of a node embedding

Positions are pixels, x to the right and y down; (0, 0) is the centre of the top left pixel.
"""

from grace_lightning.graph.candidates import second_neighbours, with_candidates
from grace_lightning.graph.ends import end_labels, spanning_tree
from grace_lightning.graph.geometry import EDGE_PROPERTIES, edge_geometry
from grace_lightning.graph.mask import label_by_mask
from grace_lightning.graph.neighbours import Connection, Subgraphs, adjacency, subgraphs
from grace_lightning.graph.sample import Filament, Graph, Label, Sample, inside_image, sort_edges
from grace_lightning.graph.triangulation import delaunay, from_detections, merge_duplicates

__all__ = [
    "EDGE_PROPERTIES",
    "Connection",
    "Filament",
    "Graph",
    "Label",
    "Sample",
    "Subgraphs",
    "adjacency",
    "delaunay",
    "edge_geometry",
    "end_labels",
    "from_detections",
    "inside_image",
    "label_by_mask",
    "merge_duplicates",
    "second_neighbours",
    "sort_edges",
    "spanning_tree",
    "subgraphs",
    "with_candidates",
]
