"""``grace-annotate``."""

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pandas as pd
from omegaconf import DictConfig
from torch import Tensor

from grace_lightning import io
from grace_lightning.config import build, call
from grace_lightning.errors import InputError, InputWarning
from grace_lightning.files import counted, expect_folder, make_folder, remove_unfinished
from grace_lightning.graph import Label, distinct, from_detections
from grace_lightning.ridges import better_fit
from grace_lightning.stopping import Stopped
from grace_lightning.tasks.common import each_image, exit_if_failed, expect_keys, plain
from grace_lightning.truth import label_by_mask

CLOSE, MANY = 2.0, 0.1
"""If more than this part of an image's detections lie within so many pixels of another one, a warning says so."""


def annotate(cfg: DictConfig) -> None:
    """Make ``.grace`` folders of images, detections and masks.

    Images that fail are named at the end, when the others are done; the exit status is then 1.
    """
    config = plain(cfg)
    detector = build(config.pop("detections", None), "detections")
    reading = build(config.pop("io"), "io")
    expect_keys(config, {"image_dir": "the folder of micrographs", "out_dir": "a folder for the .grace folders"})
    try:
        exit_if_failed("grace-annotate", call(annotate_folder, config, detector=detector, reading=reading))
    except Stopped as stopped:
        exit_if_failed("grace-annotate", stopped.failures, stopped)


def annotate_folder(
    image_dir: str,
    out_dir: str,
    *,
    detections_dir: str | None = None,
    detections_format: io.DetectionsFormat | None = None,
    mask_dir: str | None = None,
    frame: int | str | None = None,
    mask_flip: Literal["x", "y"] | None = None,
    overwrite: bool = False,
    detector: Callable[[Tensor], pd.DataFrame] | None = None,
    reading: io.Reading = io.Reading(),  # noqa: B008  # which is frozen
) -> dict[str, str]:
    """Write ``X.grace`` for every image ``X`` of a folder, and ``X.h5`` if a detector finds the detections.

    Return what is wrong with the images that failed, by name; a folder that is missing or holds nothing to annotate is
    an :class:`InputError`.

    Detections, unless a ``detector`` finds them in the image (1, H, W), and masks are in ``image_dir`` if no folder is
    given. ``detections_format`` says which file to take if several hold the detections of an image. ``frame`` is of
    stacks, see :func:`grace_lightning.io.read_image`; masks are mirrored in ``mask_flip``. Without ``overwrite``,
    images that have an ``X.grace`` in ``out_dir`` are left out.
    """
    for key, value in {"detections_dir": detections_dir, "detections_format": detections_format}.items():
        if detector is not None and value is not None:
            found = f"{key}: {value}, but the detections are to be found in the images"
            raise InputError(f"{found}; leave out one of {key} and detections=ridge")
    for key, folder in {"image_dir": image_dir, "detections_dir": detections_dir, "mask_dir": mask_dir}.items():
        if folder is not None:
            expect_folder(folder, key)
    out, found_in, masks_in = (Path(path or image_dir) for path in (out_dir, detections_dir, mask_dir))
    remove_unfinished(out)  # first: it may put back a folder with the only annotation of an image
    paths = io.find_images(image_dir)
    if masks_in.resolve() == Path(image_dir).resolve():
        paths = io.leave_out_masks(paths)
    images, masks = {io.stem(path): path for path in paths}, io.find_masks(masks_in, paths)
    todo = {name: path for name, path in images.items() if overwrite or not (out / f"{name}.grace").exists()}
    detected = io.find_detections(found_in, todo if detector is None else (), detections_format)
    for note in detected.notes:
        warnings.warn(note, InputWarning, stacklevel=2)
    count: Counter[str] = Counter()

    def annotate_image(name: str, path: Path) -> None:
        if name not in masks:
            expected = f"expected a file such as {name}_mask.tif; for an image without filaments, one of zeros"
            raise InputError(f"{path}: no mask in {masks_in}, {expected}")
        image = io.read_image(path, frame=frame, max_gib=reading.max_gib)
        size = image.shape[1], image.shape[2]
        mask = io.read_mask(masks[name], size, frame=frame, max_gib=reading.max_gib)
        mask = mask.flip({"y": 0, "x": 1}[mask_flip]) if mask_flip else mask
        if name in detected.failures:
            raise InputError(detected.failures[name])
        detections = out / f"{name}.h5" if detector else detected.files.get(name)
        if detections is None:
            suffixes = ", ".join(io.DETECTION_SUFFIXES) if detections_format is None else f".{detections_format}"
            expected = f"expected {name} with one of {suffixes}"
            remedy = "set detections_dir, or detections=ridge to find some in the image"
            raise InputError(f"{path}: no detections in {found_in}, {expected}; {remedy}")
        if detector is not None:
            ridges = detector(image)
            # A run that was killed has left the same ones; others may be somebody's own.
            if overwrite or not detections.exists():
                io.write_detections(detections, ridges)
            elif not io.read_detections(detections).equals(ridges.astype(float)):
                raise InputError(f"{detections}: is there already; set out_dir to another folder, or overwrite=true")
        pos, confidence = reading.points(detections, path, size, io.pixel_size(path))
        if (near := len(distinct(pos)[0]) - len(distinct(pos, CLOSE)[0])) > MANY * len(pos):
            found = f"{near} of {len(pos)} detections lie within {CLOSE:g} pixels of another one"
            remedy = "if filaments were picked twice, leave one of the two picks out: a network learns what it is shown"
            warnings.warn(f"{detections}: {found}; {remedy}", InputWarning, stacklevel=2)
        graph = label_by_mask(from_detections(pos, confidence)[0], mask)
        positive = {head: int((graph.label(head) == Label.TRUE_POSITIVE).sum()) for head in ("node", "edge")}
        if better := better_fit(image, pos, mask):
            flip = {"mirrored in y": "y", "mirrored in x": "x"}.get(better)
            known = flip and mask_flip in (None, flip)
            remedy = f"set mask_flip={'null' if mask_flip else flip}" if known else "change the file (0 is background)"
            message = f"{masks[name]}: {better}, it would fit the image far better; {remedy}, with overwrite=true"
            warnings.warn(message, InputWarning, stacklevel=2)
        elif mask.any() and graph.num_nodes and not positive["node"]:
            message = f"{masks[name]}: none of the {graph.num_nodes} detections is inside; is it this image's mask?"
            warnings.warn(message, InputWarning, stacklevel=2)
        io.write_grace(out / f"{name}.grace", graph, annotation=mask, edge_properties=True)
        count["from_bottom"] += io.counts_from_bottom(detections, path, reading.tiff_origin)
        count.update(positive, images=1, nodes=graph.num_nodes, edges=graph.num_edges)

    make_folder(out, "out_dir")
    failures, stopped = each_image(todo.items(), len(todo), annotate_image, doing="annotating")
    text = f"annotated {count['images']} of {counted(len(images), 'image')} in {out_dir}"
    text += f", {len(images) - len(todo)} there already (overwrite=true: anew)" if len(todo) < len(images) else ""
    text += f", {len(failures)} failed" if failures else ""
    text += f", {len(todo) - count['images'] - len(failures)} left to do" if stopped else ""
    text += f"\n{io.COUNTED_FROM_BOTTOM}" if count["from_bottom"] else ""
    if count["images"]:
        text += f"\nnodes {count['nodes']}, of which {count['node']} positive; "
        text += f"edges {count['edges']}, of which {count['edge']} positive"
    print(text)
    if stopped:
        stopped.failures = failures
        raise stopped
    return failures
