"""Micrographs that look like cryo-EM, with detections and a truth that is known.

A micrograph is made as a microscope makes it: the matter in the beam (filaments, contamination, carbon film, amorphous
ice) is projected, the contrast transfer function turns it into contrast, and electrons are counted (white noise). The
structure of the ice runs through the transfer function too, so that part of the noise is correlated.

Symbols used in the shapes below

H W rows and columns of the image
N   detections
P   points of a centre line, STEP pixels apart
canvas  the image with a margin, so that nothing wraps around at its borders

Points are pixels of the image, columns x and y; on the canvas they lie MARGIN further.
"""

from grace_lightning.simulate.draws import image_generator
from grace_lightning.simulate.folders import SimulatedFolders, simulate_folder, write_simulation
from grace_lightning.simulate.micrograph import Simulation, Simulator
from grace_lightning.simulate.shapes import SHAPES

__all__ = [
    "SHAPES",
    "SimulatedFolders",
    "Simulation",
    "Simulator",
    "image_generator",
    "simulate_folder",
    "write_simulation",
]
