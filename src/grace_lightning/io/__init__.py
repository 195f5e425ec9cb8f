"""Micrographs, detections, masks and annotated graphs on disk: reading, writing, and which file belongs to which."""

from grace_lightning.io.detections import (
    DETECTION_SUFFIXES,
    DetectionsFormat,
    Found,
    find_detections,
    list_detections,
    read_detections,
    read_points,
    write_detections,
)
from grace_lightning.io.export import (
    filaments_table,
    paths_table,
    read_paths,
    segments,
    write_box_ends,
    write_cbox,
    write_star,
)
from grace_lightning.io.grace import KEEP_UNKNOWN, read_grace, write_grace
from grace_lightning.io.images import pixel_size, read_image, stem
from grace_lightning.io.lines import LINES_SUFFIXES, Lines, LinesFormat, find_lines, read_lines
from grace_lightning.io.masks import find_masks, leave_out_masks, read_mask
from grace_lightning.io.relion import COUNTED_FROM_BOTTOM, counts_from_bottom, is_tiff, mirrored, write_project
from grace_lightning.io.sources import Reading, Source, find_images, find_sources, read_instances, read_sample
