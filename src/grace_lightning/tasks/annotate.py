"""``grace-annotate``."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor

from grace_lightning.config import build, call
from grace_lightning.errors import InputError, InputWarning
from grace_lightning.graph import Graph, Label, Sample, from_detections, label_by_mask
from grace_lightning.io import (
    DETECTION_SUFFIXES,
    Source,
    expect_folder,
    find_detections,
    find_images,
    find_masks,
    leave_out_masks,
    read_image,
    read_mask,
    read_sample,
    stem,
    write_detections,
    write_grace,
)
from grace_lightning.tasks.common import each_image, exit_if_failed, plain

Detector = Callable[[Tensor], pd.DataFrame]


def annotate(cfg: DictConfig) -> None:
    """Make ``.grace`` folders of images, detections and masks.

    Images that fail are named at the end, when the others are done; the exit status is 1 then.
    """
    config = plain(cfg)
    detector = build(config.pop("detections", None), "detections")
    for key, purpose in (("image_dir", "the folder of micrographs"), ("out_dir", "the folder for the .grace folders")):
        if config[key] is None:
            raise InputError(f"{key} is not set, expected {purpose}; give {key}=FOLDER")
    failures = call(annotate_folder, config, detector=detector)
    exit_if_failed("grace-annotate", failures)


def annotate_folder(
    image_dir: str,
    out_dir: str,
    *,
    detections_dir: str | None = None,
    mask_dir: str | None = None,
    frame: int | str | None = None,
    overwrite: bool = False,
    detector: Detector | None = None,
) -> list[str]:
    """Write ``X.grace`` for every image ``X`` of a folder, and ``X.h5`` where a detector finds the detections.

    Parameters
    ----------
    image_dir : folder of images
    out_dir : made where missing
    detections_dir, mask_dir : folders; ``image_dir`` where not given
    frame : of stacks, see :func:`read_image`
    overwrite : also those images that have an ``X.grace`` in ``out_dir`` already
    detector : finds detections on an image; None reads them from files

    Returns
    -------
    What is wrong with the images that failed, one line each

    Raises
    ------
    InputError
        A folder is missing or holds nothing to annotate.
    """
    if detector is not None and detections_dir is not None:
        raise InputError(
            f"detections_dir: {detections_dir}, but the detections are to be found in the images; leave out one of "
            "detections_dir and detections=ridge"
        )
    for key, folder in {"image_dir": image_dir, "detections_dir": detections_dir, "mask_dir": mask_dir}.items():
        if folder is not None:
            expect_folder(folder, key)
    out, found_in, masks_in = (Path(path or image_dir) for path in (out_dir, detections_dir, mask_dir))
    paths = find_images(image_dir)
    if masks_in.resolve() == Path(image_dir).resolve():
        paths = leave_out_masks(paths)
    images, masks = {stem(path): path for path in paths}, find_masks(masks_in, paths)
    todo = [name for name in images if overwrite or not (out / f"{name}.grace").exists()]
    out.mkdir(parents=True, exist_ok=True)
    count: Counter[str] = Counter()

    def annotate_image(name: str) -> None:
        if name not in masks:
            raise InputError(
                f"{images[name]}: no mask in {masks_in}, expected a file such as {name}_mask.tif; "
                "for an image without filaments, one of zeros"
            )
        found = out / f"{name}.h5"
        if detector is None:
            sample, detections = _with_files(images[name], found_in, frame), None
        elif found.exists() and not overwrite:
            raise InputError(f"{found}: is there already; set out_dir to another folder, or overwrite=true")
        else:
            sample, detections = _with_detector(images[name], detector, frame)
        height, width = sample.image.shape[1:]
        mask = read_mask(masks[name], (height, width), frame=frame)
        graph = label_by_mask(sample.graph, mask)
        if mask.any() and not (graph.node_label == Label.TRUE_POSITIVE).any():
            message = f"{masks[name]}: none of the {graph.num_nodes} detections is inside; is it this image's mask?"
            warnings.warn(message, InputWarning, stacklevel=2)
        if detections is not None:
            write_detections(found, detections)
        write_grace(out / f"{name}.grace", graph, annotation=mask, edge_properties=True)
        count.update(_summary(graph))

    failures = each_image(todo, annotate_image, doing=f"annotating {image_dir}")
    done = len(todo) - len(failures)
    there = f", {len(images) - len(todo)} there already (overwrite=true: anew)" if len(todo) < len(images) else ""
    failed = f", {len(failures)} failed" if failures else ""
    text = f"annotated {done} of {len(images)} images in {out_dir}{there}{failed}"
    console = Console(soft_wrap=True)
    console.print(text, highlight=False)
    if done:
        console.print(
            f"nodes {count['nodes']}, of which {count['positive nodes']} positive; "
            f"edges {count['edges']}, of which {count['positive edges']} positive",
            highlight=False,
        )
    return failures


def _with_files(image: Path, detections_dir: Path, frame: int | str | None) -> Sample:
    name = stem(image)
    detections = find_detections(detections_dir, name)
    if detections is None:
        raise InputError(
            f"{image}: no detections in {detections_dir}, expected {name} with one of {', '.join(DETECTION_SUFFIXES)}; "
            "set detections_dir, or detections=ridge to find some in the image"
        )
    return read_sample(Source(name, image, detections=detections), frame=frame)


def _with_detector(image: Path, detector: Detector, frame: int | str | None) -> tuple[Sample, pd.DataFrame]:
    pixels = read_image(image, frame=frame)
    detections = detector(pixels)
    pos, confidence = (
        torch.from_numpy(detections[columns].to_numpy(np.float32, copy=True)) for columns in (["x", "y"], "confidence")
    )
    return Sample(stem(image), pixels, from_detections(pos, confidence)[0]), detections


def _summary(graph: Graph) -> dict[str, int]:
    return {
        "nodes": graph.num_nodes,
        "positive nodes": int((graph.node_label == Label.TRUE_POSITIVE).sum()),
        "edges": graph.num_edges,
        "positive edges": int((graph.edge_label == Label.TRUE_POSITIVE).sum()),
    }
