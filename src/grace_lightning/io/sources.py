"""Which files belong to one micrograph, and reading them as one sample."""

import json
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from grace_lightning.errors import InputError, InputWarning
from grace_lightning.files import MAX_GIB, counted, expect_folder, reading, some
from grace_lightning.graph import Ints, Sample, expect_inside, from_detections, inside_image
from grace_lightning.io.detections import list_detections, read_detections, read_points
from grace_lightning.io.grace import ANNOTATION, INSTANCES, METADATA, NODES, read_grace
from grace_lightning.io.images import IMAGE_SUFFIXES, pixel_size, read_image, stem
from grace_lightning.io.lines import Lines, read_lines
from grace_lightning.io.relion import TiffOrigin, counts_from_bottom, mirrored, y_from_top
from grace_lightning.raster import dense
from grace_lightning.truth import with_truth

TOLERANCE_PX = 1e-2
"""Detections and nodes this close are the same: far above float32's rounding, far below any detector's precision."""


@dataclass(frozen=True)
class Source:
    """The files of one micrograph; ``name`` is their stem."""

    name: str
    image: Path
    grace: Path | None = None
    detections: Path | None = None
    instances: Path | None = None


@dataclass(frozen=True)
class Reading:
    """How files are read that people made with other programs."""

    tiff_origin: TiffOrigin = "bottom"  # see :func:`grace_lightning.io.counts_from_bottom`
    max_gib: float = MAX_GIB  # GiB that a file may unpack to

    def points(
        self, detections: Path, image: Path, shape: tuple[int, int], pixel_size: float | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return positions, (N, 2) with y from the top, and scores as :func:`read_points` does.

        ``shape`` is that of the image, (H, W); it is an error if a position lies outside.
        """
        pos, confidence = read_points(detections, pixel_size=pixel_size, max_gib=self.max_gib)
        try:
            pos = y_from_top(pos, detections, image=image, shape=shape, tiff_origin=self.tiff_origin)
        except InputError as error:
            raise InputError(f"{detections}: {error}") from error
        return pos, confidence

    def lines(
        self, path: Path, image: Path, shape: tuple[int, int], *, frame: int | str | None, pixel_size: float | None
    ) -> Lines:
        """Return the lines of a file with y from the top, see :func:`grace_lightning.io.read_lines`.

        ``shape`` is that of the image, (H, W); it is an error if a line lies outside.
        """
        lines, notes, types = read_lines(path, frame=frame, pixel_size=pixel_size, max_gib=self.max_gib)
        if counts_from_bottom(path, image, self.tiff_origin):
            lines = [mirrored(torch.from_numpy(line), shape[0]).numpy() for line in lines]
        size = np.array(shape[::-1])
        for number, line in enumerate(lines, 1):
            far = (line < -size).any() or (line > 2 * size).any()
            if far or not inside_image(torch.from_numpy(dense(line)), shape).any():
                lies = f"line {number} lies outside the image of {shape[1]} x {shape[0]} pixels, or reaches far beyond"
                raise InputError(f"{path}: {lies}; are x and y swapped, or is it another image's file?")
        return Lines(lines, notes, types)


def find_images(image_dir: str | Path) -> list[Path]:
    """Return the images of a folder, sorted by stem; it is an error if there are none, or two of one stem."""
    expect_folder(image_dir)
    files = sorted(path for path in Path(image_dir).iterdir() if not path.is_dir() and not path.name.startswith("."))
    named = [path for path in files if path.name.lower().endswith(IMAGE_SUFFIXES)]
    images = [path for path in named if path.is_file()]
    if broken := [path.name for path in named if not path.exists()]:
        lost = f"{image_dir}: {counted(len(broken), 'link')} to images that are not there: {some(broken)}"
        if not images:
            raise InputError(f"{lost}; expected images")
        warnings.warn(f"{lost}; left out", InputWarning, stacklevel=2)
    if not images:
        found = f"{len(files)} other files {some(path.name for path in files)}".rstrip()
        raise InputError(f"{image_dir}: no images ({', '.join(IMAGE_SUFFIXES)}), found {found}")
    name, count = Counter(map(stem, images)).most_common(1)[0]
    if count > 1:
        twins = some(path.name for path in images if stem(path) == name)
        raise InputError(f"{image_dir}: {twins} share the stem {name}, expected one; move the others away")
    return sorted(images, key=stem)


def find_sources(image_dir: str | Path, grace_dir: str | Path | None = None) -> list[Source]:
    """Find annotated images, which have a folder ``X.grace`` in ``grace_dir`` (or else ``image_dir``), sorted by name.

    One without the other is skipped with an :class:`InputWarning`; it is an error if nothing is left.
    """
    image_dir, grace_dir = Path(image_dir), Path(image_dir if grace_dir is None else grace_dir)
    images = {stem(path): path for path in find_images(image_dir)}
    expect_folder(grace_dir)
    graces = {path.stem: path for path in sorted(grace_dir.glob("*.grace")) if path.is_dir()}
    common = images.keys() & graces.keys()
    if not common:
        names = f"images: {some(images)}; .grace folders: {some(graces) or 'none'}; make them with grace-annotate"
        raise InputError(
            f"{grace_dir}: no .grace folder for any of {counted(len(images), 'image')} in {image_dir}; {names}"
        )
    lacks = (image_dir, images, "images have no .grace folder"), (grace_dir, graces, ".grace folders have no image")
    for folder, found, lack in lacks:
        if alone := sorted(found.keys() - common):
            message = f"{folder}: {len(alone)} of {len(found)} {lack} and were skipped: {some(alone)}"
            warnings.warn(message, InputWarning, stacklevel=2)
    sources, listed = [], list_detections(grace_dir) | list_detections(image_dir)
    for name in sorted(common):
        beside = (folder / f"{name}.instances.json" for folder in (grace_dir, image_dir))
        traced = (graces[name] / INSTANCES, *beside)
        instances = next(filter(Path.is_file, traced), None)
        sources.append(Source(name, images[name], graces[name], listed.get(name, [None])[0], instances))
    return sources


def read_instances(path: str | Path, num_nodes: int) -> dict[str, Ints]:
    """Read the nodes, (any,) int64, ascending, of each traced filament, by its name in ``X.instances.json``.

    A node at a crossing is in several. It is an error if one is beyond ``num_nodes`` of the graph in ``X.grace``.
    """
    path, form = Path(path), 'the nodes of each filament, {"1": [node, ...], ...}'
    with reading(path, form):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise InputError(f"{path}: a JSON {type(content).__name__}, expected {form}")
    for name, nodes in content.items():
        if not isinstance(nodes, list) or not all(type(node) is int for node in nodes):
            raise InputError(f"{path}: filament {name} is not a list of whole numbers, expected {form}")
        for node in nodes:
            if not 0 <= node < num_nodes:
                expected = f"expected numbers from 0 to {num_nodes - 1}; does it belong to this .grace folder?"
                raise InputError(f"{path}: filament {name} has node {node}, {expected}")
    return {name: np.unique(np.array(nodes, dtype=np.int64)) for name, nodes in content.items()}


def read_sample(
    source: Source,
    *,
    frame: int | str | None = None,
    tiff_origin: TiffOrigin = "bottom",
    max_gib: float = MAX_GIB,
    **keep: bool | None,
) -> Sample:
    """Read image (see :func:`read_image`), graph (``keep``: see :func:`read_grace`) and truth of one micrograph.

    Messages name the keys ``data.frame`` and ``data.max_gib``, as training has them.
    If ``X.h5`` disagrees with the ``.grace`` folder, an :class:`InputWarning` says by how much. Without such a folder,
    the graph is the unlabelled one of the detections (``tiff_origin``: see
    :func:`grace_lightning.io.counts_from_bottom`), and there is no truth. It is an error if a file belongs to
    another image, or places a detection outside the image.
    """
    image = read_image(source.image, frame=frame, max_gib=max_gib, group="data.")
    shape = height, width = image.shape[1], image.shape[2]
    if source.grace is not None:
        graph, annotation, metadata = read_grace(source.grace, max_gib=max_gib, **keep)
        nodes, named = source.grace / NODES, metadata["image_filename"]
        if source.name not in (named, stem(named)):
            raise InputError(f"{source.grace / METADATA}: image_filename is {named}, expected {source.name}")
        if annotation is not None and annotation.shape != shape:
            found = f"{annotation.shape[1]} x {annotation.shape[0]} pixels"
            expected = f"but {source.image} has {width} x {height}; expected the same size"
            raise InputError(f"{source.grace / ANNOTATION}: {found}, {expected}")
    elif source.detections is not None:
        nodes, annotation, metadata = source.detections, None, {}
        pos, confidence = read_points(nodes, pixel_size=pixel_size(source.image), max_gib=max_gib, group="data.")
        if counts_from_bottom(nodes, source.image, tiff_origin):
            pos = mirrored(pos, height)
        graph = from_detections(pos, confidence)[0]
    else:
        raise InputError(f"{source.image}: neither a .grace folder nor detections, expected one of them")
    try:
        expect_inside(graph.pos, shape)
    except InputError as error:
        raise InputError(f"{nodes}: {error}") from error
    sample = Sample(source.name, image, graph, annotation, metadata=metadata)
    if source.grace is None:
        return sample
    if source.detections is not None and source.detections.suffix.lower() == ".h5":
        _compare(source.detections, nodes, graph.pos, max_gib)
    return with_truth(sample, read_instances(source.instances, graph.num_nodes) if source.instances else None)


def _compare(detections: Path, nodes: Path, pos: Tensor, max_gib: float) -> None:
    """Warn if the detections are not the nodes; the order of the rows does not matter."""
    found = read_detections(detections, max_gib=max_gib, group="data.")[["x", "y"]].to_numpy(np.float64)
    used = pos.numpy().astype(np.float64)
    apart = max(np.max(KDTree(a).query(b)[0], initial=0.0) for a, b in ((found, used), (used, found)))
    if len(found) != len(used) or apart > TOLERANCE_PX:
        text = f"{len(found)} detections, but {nodes} has {len(used)}; they differ by up to {apart:.2f} px"
        warnings.warn(f"{detections}: {text}; the .grace folder was used", InputWarning, stacklevel=3)
