"""Masks: images that say which pixels belong to filaments."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
import torch
from PIL import Image
from torch import Tensor

from grace_lightning.errors import InputError
from grace_lightning.files import MAX_GIB, counted, expect_folder, expect_room, reading, some
from grace_lightning.io.grace import ANNOTATION
from grace_lightning.io.images import Pixels, errors_raised, png_size, stem

Room = Callable[[int], None]  # refuses so many bytes if they are too many

_ENDING = re.compile(r"[-_. ](mask|masks|annotation|annotations|label|labels)$", re.IGNORECASE)
_IGNORE = re.compile(r"[-_. ]ignore$", re.IGNORECASE)


def leave_out_masks(images: Sequence[Path]) -> list[Path]:
    """Leave out images that are masks of another one by their name, such as ``X_mask.tif`` beside ``X.tif``."""
    names = set(map(stem, images))
    return [path for path in images if all(_image_of(stem(path), names, e) == stem(path) for e in (_ENDING, _IGNORE))]


def find_masks(mask_dir: str | Path, images: Sequence[Path], *, ignore: bool = False) -> dict[str, Path]:
    """Find masks by the stem of the image that each belongs to.

    The mask of an image ``X`` is ``X``, ``X_mask``, ``X-annotation``, ``X_labels`` or the like with one of the
    :data:`MASK_SUFFIXES`, or else the annotation in ``X.grace``; what to ``ignore`` of it is ``X`` or ``X_ignore``.
    Two masks of an image, or none at all, are an error.
    """
    expect_folder(mask_dir)
    mask_dir, names, taken = Path(mask_dir), set(map(stem, images)), {path.resolve() for path in images}
    candidates = defaultdict(list)
    for path in sorted(mask_dir.iterdir()):
        if path.suffix.lower() in MASK_SUFFIXES and path.is_file() and path.resolve() not in taken:
            candidates[_image_of(path.stem, names, _IGNORE if ignore else _ENDING)].append(path)
    masks = {}
    for name in sorted(names):
        files, grace = candidates[name], mask_dir / f"{name}.grace" / ANNOTATION
        if len(files) > 1:
            found = f"{some(path.name for path in files)} may each be the mask of {name}"
            raise InputError(f"{mask_dir}: {found}, expected one; move the others away")
        if files or (grace.is_file() and not ignore):
            masks[name] = files[0] if files else grace
    if not masks:
        like = f"{min(names)}_ignore.tif" if ignore else f"{min(names)}_mask.tif"
        folders = "" if ignore else f" or folders {min(names)}.grace"
        expected = f"files such as {like} ({', '.join(MASK_SUFFIXES)}){folders}"
        raise InputError(f"{mask_dir}: no mask for any of {counted(len(images), 'image')}, expected {expected}")
    return masks


def _image_of(name: str, names: set[str], ending: re.Pattern[str]) -> str:
    """Return the image that a file is a mask of: the file's name without ``_mask`` if there is such an image."""
    without = ending.sub("", name)
    return without if without in names else name


def read_mask(
    path: str | Path, shape: tuple[int, int], *, frame: int | str | None = None, max_gib: float = MAX_GIB
) -> Tensor:
    """Read which object each pixel belongs to: (H, W) int32, 0 background.

    Numbers are taken as the file stores them, whatever colours a palette gives them. A mask of zeros and one other
    number is binary and becomes zeros and ones; otherwise each number stands for an object and stays. ``shape`` is the
    image's, (H, W); ``frame`` picks from a stack of masks, a single mask serves for all frames. Of an ``.npz`` file it
    is the array ``annotation``, or the only one. It is an error if more than ``max_gib`` GiB would have to be unpacked.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise InputError(f"{path}: not a mask by its name, expected {', '.join(MASK_SUFFIXES)}")
    with reading(path, f"a mask ({suffix[1:]})"):
        values = np.atleast_2d(_READERS[suffix](path, partial(expect_room, path, max_gib=max_gib)))
    stack = [size for size in values.shape[:-2] if size > 1]
    values = values.reshape(*stack, *values.shape[-2:])
    if values.ndim == 3 and isinstance(frame, int) and 0 <= frame < len(values):
        values = values[frame]
    if values.ndim > 2:
        remedy = f"; of a stack, set frame to an index from 0 to {len(values) - 1}" if values.ndim == 3 else ""
        raise InputError(f"{path}: an array of shape {values.shape}, expected one number per pixel, (H, W){remedy}")
    if values.shape != shape:
        turned = "; are its axes swapped?" if values.shape == shape[::-1] else ""
        size, given = (f"{columns} x {rows}" for rows, columns in (values.shape, shape))
        raise InputError(f"{path}: {size} pixels, expected the image's {given}{turned}")
    expected = "expected 0 for background, and 1 or a number per object"
    if values.dtype.kind not in "biuf":
        raise InputError(f"{path}: values are {values.dtype}, {expected}")
    wrong = values[values != np.floor(values)]  # NaN too
    if wrong.size:
        found = f"{wrong.size} values are no whole numbers, such as {wrong[0]:.4g}"
        raise InputError(f"{path}: {found}; {expected}; threshold it first")
    lowest, highest = values.min(initial=0), values.max(initial=0)
    if lowest < 0 or highest > np.iinfo(np.int32).max:
        raise InputError(f"{path}: holds the value {lowest if lowest < 0 else highest}, {expected} below 2**31")
    if values.all():
        raise InputError(f"{path}: no pixel is 0, {expected}; is it a mask?")
    binary = ((values == 0) | (values == highest)).all()
    return torch.from_numpy((values > 0 if binary else values).astype(np.int32))


def _colours(path: Path, kind: str) -> InputError:
    return InputError(f"{path}: colours ({kind}), expected one number per pixel; save it as grey (ImageJ: 8-bit)")


def _read_tiff(path: Path, expect_room: Room) -> Pixels:
    with errors_raised(), tifffile.TiffFile(path) as file:
        series = file.series[0]
        samples = dict(zip(series.axes, series.shape, strict=True)).get("S", 1)
        if samples > 2:  # the second is alpha
            raise _colours(path, f"{samples} samples per pixel")
        expect_room(series.nbytes)
        values: Pixels = series.asarray()
        return values[..., 0] if series.axes.endswith("S") else values


def _read_png(path: Path, expect_room: Room) -> Pixels:
    with path.open("rb") as file:
        expect_room(png_size(file.read(26)))
    most, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # 180 million; a micrograph may have more
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode in ("RGB", "RGBA"):
                raise _colours(path, image.mode)
            return np.asarray(image.getchannel(0) if image.mode == "LA" else image)
    finally:
        Image.MAX_IMAGE_PIXELS = most


def _read_numpy(path: Path, expect_room: Room) -> Pixels:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        name = next((name for name in loaded if name == "annotation" or len(loaded) == 1), None)
        if name is None:
            raise InputError(f"{path}: arrays {some(loaded) or 'none'}, expected one named annotation, or a single one")
        expect_room(loaded.zip.getinfo(f"{name}.npy" if f"{name}.npy" in loaded.zip.namelist() else name).file_size)
        return np.asarray(loaded[name])


_READERS = {".tif": _read_tiff, ".tiff": _read_tiff, ".png": _read_png, ".npy": _read_numpy, ".npz": _read_numpy}
MASK_SUFFIXES = tuple(_READERS)
"""What names of mask files end in, in capitals or not."""
