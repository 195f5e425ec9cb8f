"""Which files belong to one micrograph, and reading them as one sample."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from grace_lightning.errors import InputError, InputWarning
from grace_lightning.graph import Graph, Sample, from_detections
from grace_lightning.io._reading import expect_folder, some
from grace_lightning.io.detections import find_detections, read_detections
from grace_lightning.io.grace import ANNOTATION, METADATA, NODES, read_grace
from grace_lightning.io.images import IMAGE_SUFFIXES, read_image, stem
from grace_lightning.io.instances import find_instances

TOLERANCE_PX = 1e-2
"""Detections and nodes this close are the same: far above float32's rounding, far below any detector's precision."""


@dataclass(frozen=True)
class Source:
    """The files of one micrograph; ``name`` is their stem, ``instances`` names the nodes of each true filament."""

    name: str
    image: Path
    grace: Path | None = None
    detections: Path | None = None
    instances: Path | None = None


def find_images(image_dir: str | Path) -> list[Path]:
    """Images of a folder, sorted by stem.

    Raises
    ------
    InputError
        No such folder, no images in it, or two of one stem.
    """
    image_dir = Path(image_dir)
    expect_folder(image_dir)
    files = sorted(path for path in image_dir.iterdir() if path.is_file() and not path.name.startswith("."))
    images = [path for path in files if path.name.lower().endswith(IMAGE_SUFFIXES)]
    if not images:
        found = f"{len(files)} other files: {some(path.name for path in files)}" if files else "no files"
        raise InputError(f"{image_dir}: no images ({', '.join(IMAGE_SUFFIXES)}), found {found}")
    name, count = Counter(map(stem, images)).most_common(1)[0]
    if count > 1:
        twins = some(path.name for path in images if stem(path) == name)
        raise InputError(f"{image_dir}: {twins} share the stem {name}, expected one image for each; move the others")
    return sorted(images, key=stem)


def find_sources(image_dir: str | Path, grace_dir: str | Path | None = None) -> list[Source]:
    """Annotated images, sorted by name: those that have a folder ``X.grace``.

    An image without one, or the reverse, is skipped with an :class:`InputWarning`.

    Parameters
    ----------
    image_dir : folder of images
    grace_dir : folder of ``.grace`` folders; ``image_dir`` where not given

    Raises
    ------
    InputError
        As for :func:`find_images`, or no image has a ``.grace`` folder.
    """
    image_dir = Path(image_dir)
    grace_dir = image_dir if grace_dir is None else Path(grace_dir)
    images = {stem(path): path for path in find_images(image_dir)}
    expect_folder(grace_dir)
    graces = {path.stem: path for path in sorted(grace_dir.glob("*.grace")) if path.is_dir()}
    common = images.keys() & graces.keys()
    if not common:
        raise InputError(
            f"{grace_dir}: no .grace folder for any of the {len(images)} images in {image_dir}; "
            f"images: {some(images)}; .grace folders: {some(graces) or 'none'}; make them with grace-annotate"
        )
    for names, text in (
        (sorted(images.keys() - common), f"{image_dir}: {{}} of {len(images)} images have no .grace folder"),
        (sorted(graces.keys() - common), f"{grace_dir}: {{}} of {len(graces)} .grace folders have no image"),
    ):
        if names:
            message = f"{text.format(len(names))} and were skipped: {some(names)}"
            warnings.warn(message, InputWarning, stacklevel=2)
    return [
        Source(
            name,
            images[name],
            graces[name],
            find_detections(image_dir, name) or find_detections(grace_dir, name),
            find_instances(name, grace_dir, image_dir),
        )
        for name in sorted(common)
    ]


def read_sample(
    source: Source,
    *,
    frame: int | str | None = None,
    keep_node_unknown_labels: bool = False,
    keep_edge_unknown_labels: bool = False,
) -> Sample:
    """Image and graph of one micrograph.

    The graph is the ``.grace`` folder's. Where ``X.h5`` disagrees with it (in any order of its rows), an
    :class:`InputWarning` says by how much. Without a ``.grace`` folder it is the unlabelled graph of the detections.

    Parameters
    ----------
    source : which files
    frame : see :func:`read_image`
    keep_node_unknown_labels, keep_edge_unknown_labels : see :func:`read_grace`

    Raises
    ------
    InputError
        A file is damaged, belongs to another image, or places a detection outside the image.
    """
    image = read_image(source.image, frame=frame)
    if source.grace is not None:
        where = source.grace / NODES
        graph, annotation, metadata = read_grace(
            source.grace,
            keep_node_unknown_labels=keep_node_unknown_labels,
            keep_edge_unknown_labels=keep_edge_unknown_labels,
        )
        _expect_same_image(source.grace, source, annotation, image, metadata["image_filename"])
    elif source.detections is not None:
        where = source.detections
        graph, annotation, metadata = _unlabelled(source.detections), None, {}
    else:
        raise InputError(f"{source.image}: neither a .grace folder nor detections, expected one of them")
    try:
        sample = Sample(source.name, image, graph, annotation, metadata)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if source.grace is not None and source.detections is not None and source.detections.suffix == ".h5":
        _compare(source.detections, where, graph.pos)
    return sample


def _expect_same_image(grace: Path, source: Source, annotation: Tensor | None, image: Tensor, named: str) -> None:
    if source.name not in (named, stem(named)):
        raise InputError(f"{grace / METADATA}: image_filename is {named}, expected {source.name}")
    height, width = image.shape[1:]
    if annotation is not None and annotation.shape != (height, width):
        raise InputError(
            f"{grace / ANNOTATION}: {annotation.shape[1]} x {annotation.shape[0]} pixels, "
            f"but {source.image} has {width} x {height}; expected the same size"
        )


def _unlabelled(path: Path) -> Graph:
    frame = read_detections(path)
    pos = torch.from_numpy(frame[["x", "y"]].to_numpy(np.float32, copy=True))
    confidence = None
    if "confidence" in frame:
        confidence = torch.from_numpy(frame["confidence"].to_numpy(np.float32, copy=True))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        graph, _ = from_detections(pos, confidence)
    for warning in caught:
        warnings.warn(f"{path}: {warning.message}", warning.category, stacklevel=3)
    return graph


def _compare(detections: Path, nodes: Path, pos: Tensor) -> None:
    """Warn where the detections are not the nodes; the rows' order does not matter."""
    found, used = read_detections(detections)[["x", "y"]].to_numpy(np.float64), pos.numpy().astype(np.float64)
    apart = 0.0
    if len(found) and len(used):
        apart = max(float(np.max(cKDTree(a).query(b)[0])) for a, b in ((found, used), (used, found)))
    if len(found) != len(used):
        text = f"{len(found)} detections, but {nodes} has {len(used)}"
        text += f"; one lies {apart:.2f} px from the nearest of the other file" if apart > TOLERANCE_PX else ""
    elif apart > TOLERANCE_PX:
        text = f"differs from {nodes} by up to {np.hypot(*(found - used).T).max():.2f} px"
    else:
        return
    warnings.warn(f"{detections}: {text}; the .grace folder was used", InputWarning, stacklevel=3)
