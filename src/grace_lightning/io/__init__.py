"""Micrographs, detections and annotated graphs on disk: reading, writing, and which file belongs to which."""

from grace_lightning.io.detections import DETECTION_SUFFIXES, find_detections, read_detections, write_detections
from grace_lightning.io.grace import Grace, read_grace, write_grace
from grace_lightning.io.images import IMAGE_SUFFIXES, pixel_size, read_image, stem
from grace_lightning.io.sources import Source, find_images, find_sources, read_sample

__all__ = [
    "DETECTION_SUFFIXES",
    "IMAGE_SUFFIXES",
    "Grace",
    "Source",
    "find_detections",
    "find_images",
    "find_sources",
    "pixel_size",
    "read_detections",
    "read_grace",
    "read_image",
    "read_sample",
    "stem",
    "write_detections",
    "write_grace",
]
