"""Micrographs, detections, masks and annotated graphs on disk: reading, writing, and which file belongs to which."""

from grace_lightning.io._reading import expect_folder
from grace_lightning.io.detections import DETECTION_SUFFIXES, find_detections, read_detections, write_detections
from grace_lightning.io.export import (
    CBOX_COLUMNS,
    SMOOTHING,
    Filament,
    filaments_summary,
    filaments_table,
    mean_curvature,
    relion_psi,
    resample,
    segments,
    write_box_ends,
    write_cbox,
    write_star,
)
from grace_lightning.io.grace import Grace, read_grace, write_grace
from grace_lightning.io.images import IMAGE_SUFFIXES, pixel_size, read_image, stem
from grace_lightning.io.instances import find_instances, read_instances
from grace_lightning.io.masks import MASK_SUFFIXES, find_masks, leave_out_masks, read_mask
from grace_lightning.io.sources import Source, find_images, find_sources, read_sample

__all__ = [
    "CBOX_COLUMNS",
    "DETECTION_SUFFIXES",
    "IMAGE_SUFFIXES",
    "MASK_SUFFIXES",
    "SMOOTHING",
    "Filament",
    "Grace",
    "Source",
    "expect_folder",
    "filaments_summary",
    "filaments_table",
    "find_detections",
    "find_images",
    "find_instances",
    "find_masks",
    "find_sources",
    "leave_out_masks",
    "mean_curvature",
    "pixel_size",
    "read_detections",
    "read_grace",
    "read_image",
    "read_instances",
    "read_mask",
    "read_sample",
    "relion_psi",
    "resample",
    "segments",
    "stem",
    "write_box_ends",
    "write_cbox",
    "write_detections",
    "write_grace",
    "write_star",
]
