"""``grace-annotate``."""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from omegaconf import DictConfig
from torch import Tensor

from grace_lightning import io
from grace_lightning.config import build, call
from grace_lightning.errors import InputError, InputWarning
from grace_lightning.files import counted, expect_folder, make_folder, remove_unfinished, some
from grace_lightning.graph import Floats, Graph, Ints, Label, distinct, from_detections
from grace_lightning.ridges import LEAST_SCALE, RidgeDetector, better_fit, snap_to_ridges
from grace_lightning.stopping import Stopped
from grace_lightning.tasks.common import each_image, exit_if_failed, expect_keys, look_at, plain
from grace_lightning.truth import draw_lines, label_by_mask, nodes_of_lines, type_of_nodes, with_unknown

CLOSE, MANY = 2.0, 0.1
"""If more than this part of an image's detections lie within so many pixels of another one, a warning says so."""

Detector = Callable[[Tensor], pd.DataFrame]


class Drawing(NamedTuple):
    """What somebody drew on an image: the file, the (H, W) annotation, and the lines; None if it is a mask."""

    file: Path
    annotation: Tensor
    lines: list[Floats] | None = None
    types: list[int] | None = None  # of the lines, if their file tells any


@dataclass(frozen=True)
class _Reader:
    """How the files of all images are read; masks and lines are mirrored in ``flip``."""

    frame: int | str | None
    flip: Literal["x", "y"] | None
    reading: io.Reading

    def image(self, path: Path) -> Tensor:
        return io.read_image(path, frame=self.frame, max_gib=self.reading.max_gib)

    def mask(self, path: Path, size: tuple[int, int]) -> Tensor:
        mask = io.read_mask(path, size, frame=self.frame, max_gib=self.reading.max_gib)
        return mask.flip({"y": 0, "x": 1}[self.flip]) if self.flip else mask

    def lines(self, path: Path, image: Path, size: tuple[int, int], pixel_size: float | None) -> io.Lines:
        found = self.reading.lines(path, image, size, frame=self.frame, pixel_size=pixel_size)
        for note in found.notes:
            warnings.warn(note, InputWarning, stacklevel=2)
        axis = "xy".index(self.flip) if self.flip else None
        lines = [np.where(np.arange(2) == axis, np.array(size[::-1]) - 1 - line, line) for line in found.lines]
        return found._replace(lines=lines)


@dataclass(frozen=True)
class _Tracer:
    """Takes lines for filaments ``scale`` pixels wide; how far each was moved, pixels, is kept in ``moved``."""

    scale: float
    snap: bool
    moved: list[float] = field(default_factory=list)

    def __call__(self, file: Path, image: Tensor, drawn: io.Lines) -> Drawing:
        lines = drawn.lines
        length = [float(np.hypot(*np.diff(line, axis=0).T).sum()) for line in lines]
        if short := [line for line, pixels in zip(lines, length, strict=True) if pixels < self.scale]:
            found = f"{len(short)} of {counted(len(lines), 'line')} are shorter than the width of {self.scale:g} pixels"
            warnings.warn(f"{file}: {found} and were left out; {_first(short)}", InputWarning, stacklevel=2)
        lines = [line for line, pixels in zip(lines, length, strict=True) if pixels >= self.scale]
        types = drawn.types and [kind for kind, pixels in zip(drawn.types, length, strict=True) if pixels >= self.scale]
        if self.snap:
            lines, by = snap_to_ridges(image, lines, self.scale)
            self.moved.extend(by.tolist())
        return Drawing(file, draw_lines(lines, self.scale, (image.shape[1], image.shape[2])), lines, types)

    def told(self) -> str:
        """Return how many lines were moved and by how much."""
        moved = [pixels for pixels in self.moved if pixels >= 1]
        if not moved:
            return ""
        told = f"{len(moved)} of {counted(len(self.moved), 'line')} moved onto the ridge beside them by 1 pixel or more"
        return f"\n{told}: {np.mean(moved):.1f} on average, {max(moved):.1f} at most (snap=false leaves them)"


def _first(lines: Sequence[Floats]) -> str:
    return "the first begins at x={:.0f}, y={:.0f}".format(*lines[0][0])


def annotate(cfg: DictConfig) -> None:
    """Make ``.grace`` folders of images, detections, and masks or lines.

    Images that fail are named at the end, when the others are done; the exit status is then 1.
    """
    config = plain(cfg)
    if config.pop("gui"):
        _open_window(config["image_dir"])
        return
    detector = build(config.pop("detections", None), "detections")
    reading = build(config.pop("io"), "io")
    expect_keys(config, {"image_dir": "the folder of micrographs", "out_dir": "a folder for the .grace folders"})
    try:
        exit_if_failed("grace-annotate", call(annotate_folder, config, detector=detector, reading=reading))
    except Stopped as stopped:
        exit_if_failed("grace-annotate", stopped.failures, stopped)


def _open_window(image_dir: str | None) -> None:
    if image_dir is not None:
        expect_folder(image_dir, "image_dir")
    try:
        from grace_lightning.gui.panel import open_folder
    except ImportError as error:
        advice = "pip install 'grace-lightning[napari]'"
        raise InputError(f"gui: the window needs napari, which cannot be imported ({error}); {advice}") from error
    open_folder(Path(image_dir) if image_dir else None)


def annotate_folder(
    image_dir: str,
    out_dir: str,
    *,
    detections_dir: str | None = None,
    detections_format: io.DetectionsFormat | None = None,
    mask_dir: str | None = None,
    lines_dir: str | None = None,
    lines_format: io.LinesFormat | None = None,
    ignore_dir: str | None = None,
    unannotated: Literal["negative", "unknown"] | None = None,
    scale: float | Literal["auto"] = "auto",
    snap: bool = True,
    frame: int | str | None = None,
    mask_flip: Literal["x", "y"] | None = None,
    overwrite: bool = False,
    detector: Detector | None = None,
    reading: io.Reading = io.Reading(),  # noqa: B008  # which is frozen
) -> dict[str, str]:
    """Write ``X.grace`` for every image ``X`` of a folder, and ``X.h5`` if a detector finds the detections.

    Return what is wrong with the images that failed, by name; a folder that is missing or holds nothing to annotate is
    an :class:`InputError`.

    Detections, unless a ``detector`` finds them in the image (1, H, W), and masks are in ``image_dir`` if no folder is
    given. ``detections_format`` says which file to take if several hold the detections of an image. ``frame`` is of
    stacks, see :func:`grace_lightning.io.read_image`; masks and lines are mirrored in ``mask_flip``. Without
    ``overwrite``, images that have an ``X.grace`` in ``out_dir`` are left out.

    If there is a ``lines_dir``, lines take the place of masks, those of ``lines_format`` if it is given. Each is a
    filament ``scale`` pixels wide; ``snap`` moves it onto the ridge beside it. ``X.grace`` has the nodes of each. What
    lies further than a width from all lines, or than half a width from a mask, is ``unannotated``: if not given,
    unknown with lines and negative with masks. Masks in ``ignore_dir`` say where nothing is known.
    """
    for key, value in {"detections_dir": detections_dir, "detections_format": detections_format}.items():
        if detector is not None and value is not None:
            found = f"{key}: {value}, but the detections are to be found in the images"
            raise InputError(f"{found}; leave out one of {key} and detections=ridge")
    if lines_dir is not None and mask_dir is not None:
        raise InputError(f"mask_dir: {mask_dir}, but lines_dir says where filaments are; leave out one of the two")
    if scale != "auto" and not 1 <= scale < np.inf:
        raise InputError(f"scale: {scale}, expected auto, or the width of a filament, 1 pixel or more")
    folders = {"image_dir": image_dir, "detections_dir": detections_dir, "mask_dir": mask_dir}
    for key, folder in (folders | {"lines_dir": lines_dir, "ignore_dir": ignore_dir}).items():
        if folder is not None:
            expect_folder(folder, key)
    out, found_in, masks_in = (Path(path or image_dir) for path in (out_dir, detections_dir, mask_dir))
    remove_unfinished(out)  # first: it may put back a folder with the only annotation of an image
    paths = io.find_images(image_dir)
    if lines_dir or ignore_dir or masks_in.resolve() == Path(image_dir).resolve():
        paths = io.leave_out_masks(paths)
    images, masks = {io.stem(path): path for path in paths}, {} if lines_dir else io.find_masks(masks_in, paths)
    ignored = io.find_masks(ignore_dir, paths, ignore=True) if ignore_dir else {}
    todo = {name: path for name, path in images.items() if overwrite or not (out / f"{name}.grace").exists()}
    asked = images if lines_dir else todo
    detected = io.find_detections(found_in, asked if detector is None else (), detections_format)
    traced = io.Found({}, {}, [])
    if lines_dir:
        traced = io.find_lines(lines_dir, images, lines_format, detected.files.values())
        bare = [name for name in images if name not in traced.files | traced.failures]
        if bare:
            message = f"{lines_dir}: no lines for {len(bare)} of {counted(len(images), 'image')}, which were left out"
            warnings.warn(f"{message}: {some(bare)}", InputWarning, stacklevel=2)
        images, todo = ({name: of[name] for name in of if name not in bare} for of in (images, todo))
    for note in (*detected.notes, *traced.notes):
        warnings.warn(note, InputWarning, stacklevel=2)
    read = _Reader(frame, mask_flip, reading)
    unknown = (unannotated or ("unknown" if lines_dir else "negative")) == "unknown"
    width = 0.0
    if todo and (lines_dir or unknown or detector):
        width, detector = _look_at_filaments(list(images.values()), read.image, scale, detector)
    trace, count = _Tracer(width, snap), Counter[str]()

    def annotate_image(name: str, path: Path) -> None:
        if not lines_dir and name not in masks:
            expected = f"expected a file such as {name}_mask.tif; for an image without filaments, one of zeros"
            raise InputError(f"{path}: no mask in {masks_in}, {expected}")
        image, pixel_size = read.image(path), io.pixel_size(path)
        size = image.shape[1], image.shape[2]
        if name in traced.failures:
            raise InputError(traced.failures[name])
        if lines_dir:
            file = traced.files[name]
            drawing = trace(file, image, read.lines(file, path, size, pixel_size))
        else:
            drawing = Drawing(masks[name], read.mask(masks[name], size))
        ignore = read.mask(ignored[name], size) if name in ignored else None
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
        pos, confidence = reading.points(detections, path, size, pixel_size)
        if (near := len(distinct(pos)[0]) - len(distinct(pos, CLOSE)[0])) > MANY * len(pos):
            found = f"{near} of {len(pos)} detections lie within {CLOSE:g} pixels of another one"
            remedy = "if filaments were picked twice, leave one of the two picks out: a network learns what it is shown"
            warnings.warn(f"{detections}: {found}; {remedy}", InputWarning, stacklevel=2)
        graph = label_by_mask(from_detections(pos, confidence)[0], drawing.annotation)
        instances = nodes_of_lines(graph, drawing.lines or [], width)
        _tell_doubts(drawing, image, graph, instances, mask_flip, "unknown" if unknown else "negative")
        if drawing.types:
            graph = replace(graph, node_type=type_of_nodes(graph.num_nodes, instances.values(), drawing.types))
        graph = with_unknown(graph, drawing.annotation, reach=width / 2 if unknown else None, ignored=ignore)
        metadata: dict[str, Any] = {"lines": drawing.file.name, "scale": width} if lines_dir else {}
        if unknown or ignore is not None:
            metadata |= {io.KEEP_UNKNOWN: True}
        io.write_grace(
            out / f"{name}.grace",
            graph,
            annotation=drawing.annotation,
            metadata=metadata,
            edge_properties=True,
            instances=instances if lines_dir else None,
        )
        files = (detections, drawing.file)
        count["from_bottom"] += any(io.counts_from_bottom(file, path, reading.tiff_origin) for file in files)
        count.update(images=1, nodes=graph.num_nodes, edges=graph.num_edges)
        for head, label in product(("node", "edge"), (Label.TRUE_POSITIVE, Label.UNKNOWN)):
            count[f"{head} {label.name}"] += int((graph.label(head) == label).sum())

    make_folder(out, "out_dir")
    failures, stopped = each_image(todo.items(), len(todo), annotate_image, doing="annotating")
    text = f"annotated {count['images']} of {counted(len(images), 'image')} in {out_dir}"
    text += f", {len(images) - len(todo)} there already (overwrite=true: anew)" if len(todo) < len(images) else ""
    text += f", {len(failures)} failed" if failures else ""
    text += f", {len(todo) - count['images'] - len(failures)} left to do" if stopped else ""
    text += f"\n{io.COUNTED_FROM_BOTTOM}" if count["from_bottom"] else ""
    text += trace.told()
    if count["images"]:
        shares = (
            f"{head}s {count[f'{head}s']}, of which {count[f'{head} TRUE_POSITIVE']} positive"
            + (f" and {count[f'{head} UNKNOWN']} unknown" if count[f"{head} UNKNOWN"] else "")
            for head in ("node", "edge")
        )
        text += f"\n{'; '.join(shares)}"
    print(text)
    if stopped:
        stopped.failures = failures
        raise stopped
    return failures


def _look_at_filaments(
    images: Sequence[Path],
    read: Callable[[Path], Tensor],
    scale: float | Literal["auto"],
    detector: Detector | None,
) -> tuple[float, Detector | None]:
    """Return the width of filaments, pixels, and the detector made for them; the images tell what is not given."""
    if not isinstance(detector, RidgeDetector):
        if scale == "auto":
            scale, _, told = look_at(images, read, scale, None)
            print(told.replace("features.scale", "scale"))
        return scale, detector
    asked: float | Literal["auto"] = (detector.scale or "auto") if scale == "auto" else scale
    width, polarity = asked, detector.polarity
    if asked == "auto" or polarity is None:
        width, polarity, told = look_at(images, read, asked, polarity or "auto", group="detections")
        print(told)
    width = float(width)
    return width, replace(detector, scale=detector.scale or max(width, LEAST_SCALE), polarity=polarity)


def _tell_doubts(
    drawing: Drawing, image: Tensor, graph: Graph, instances: Mapping[str, Ints], flipped: str | None, rest: str
) -> None:
    """Warn of what makes a drawing look wrong; what it does not cover is said to be ``rest``."""

    def tell(message: str) -> None:
        warnings.warn(f"{drawing.file}: {message}", InputWarning, stacklevel=3)

    annotation, by_lines = drawing.annotation, drawing.lines is not None
    if not annotation.any():
        tell(f"{'no line' if by_lines else 'no pixel is annotated'}; every node becomes {rest}")
    elif better := better_fit(image, graph.pos, annotation):
        flip = {"mirrored in y": "y", "mirrored in x": "x"}.get(better)
        known = flip and flipped in (None, flip)
        change = "change the file" if by_lines else "change the file (0 is background)"
        remedy = f"set mask_flip={'null' if flipped else flip}" if known else change
        tell(f"{better}, it would fit the image far better; {remedy}, with overwrite=true")
    elif graph.num_nodes and not (graph.label("node") == Label.TRUE_POSITIVE).any():
        of = "on a line" if by_lines else "inside"
        tell(f"none of the {graph.num_nodes} detections is {of}; is it this image's {'file' if by_lines else 'mask'}?")
    elif bare := [line for line, nodes in zip(drawing.lines or [], instances.values(), strict=True) if not len(nodes)]:
        tell(f"{len(bare)} of {counted(len(instances), 'line')} have no detection within half a width; {_first(bare)}")
