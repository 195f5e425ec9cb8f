"""Micrographs from MRC, TIFF and PNG files."""

import bz2
import gzip
import io
import logging
import math
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import imagecodecs
import numpy as np
import tifffile
import torch
from mrcfile.mrcinterpreter import MrcInterpreter
from mrcfile.utils import data_dtype_from_header
from numpy.typing import NDArray
from torch import Tensor

from grace_lightning.clean import cleaned
from grace_lightning.errors import InputError, InputWarning
from grace_lightning.files import MAX_GIB, expect_room, reading

logging.getLogger("imagecodecs").setLevel(logging.ERROR)  # it remarks on what it then refuses

IMAGE_SUFFIXES = (".mrc", ".mrc.gz", ".mrc.bz2", ".tif", ".tiff", ".png")
"""What names of image files end in, in capitals or not."""

LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as Pillow and OpenCV make grey

PIXEL_SIZES = 0.05, 1e5
"""Angstrom per pixel that are believed: from a fifth of an atom's radius to 10 micrometres."""

IMOD = 1146047817
"""Stamp in an MRC header, at byte 152, that gives a meaning to the flags at byte 156: bio3d.colorado.edu/imod."""
SIGNED, PACKED = 1, 16  # the flags: bytes are signed; a byte is two pixels

NOT_READ = {3: "complex numbers", 16: "colours", 101: "two pixels in a byte"}
"""What MRC files hold in modes that are refused."""

Pixels = NDArray[Any]


def _suffix(path: Path) -> str:
    return next((suffix for suffix in IMAGE_SUFFIXES if path.name.lower().endswith(suffix)), "")


def stem(path: str | Path) -> str:
    """Return a file's name without its suffix, even a double one: ``451`` of ``data/451.mrc.gz``."""
    path = Path(path)
    return path.name[: -len(_suffix(path))] if _suffix(path) else path.stem


def read_image(
    path: str | Path, *, frame: int | str | None = None, max_gib: float = MAX_GIB, group: str = ""
) -> Tensor:
    """Read one micrograph, grey: (1, H, W) float32, the file's own values; row 0 is y = 0.

    Of a stack, ``frame`` is the index from 0, or ``"mean"`` for the mean of all; a single image is a stack of one. Of
    an MRC or an uncompressed TIFF file only the wanted frame is read. Colours become luminance, alpha is dropped, and
    colour planes of a TIFF file that are stored apart count as frames. What is no signal becomes the mean or the median
    of what is, with an :class:`InputWarning`, see :func:`grace_lightning.clean.cleaned`.

    It is an error if more than ``max_gib`` GiB would have to be unpacked. ``group`` is where the command has these two
    keys: ``data.`` in training.
    """
    path = Path(path)
    suffix = _suffix(path)
    if not suffix:
        raise InputError(f"{path}: not an image by its name, expected one of {', '.join(IMAGE_SUFFIXES)}")
    read = {".png": _read_png, ".tif": _read_tiff, ".tiff": _read_tiff}.get(suffix, _read_mrc)
    picked = read(path, Wanted(frame, max_gib, group))
    if picked.dtype.kind not in "biuf":
        raise InputError(f"{path}: pixels are {picked.dtype}, expected real numbers")
    if picked.ndim == 3:
        picked = picked[..., :3] @ LUMINANCE if picked.shape[-1] > 2 else picked[..., 0]
    with np.errstate(over="ignore"):
        pixels = np.array(picked, dtype=np.float32, order="C")
    return cleaned(torch.from_numpy(pixels)[None], str(path))


def pixel_size(path: str | Path) -> float | None:
    """Return Angstrom per pixel from an MRC header, or None if it does not say or the format is another.

    What cannot be is told by an :class:`InputWarning`, and None, too.
    """
    path = Path(path)
    if not _suffix(path).startswith(".mrc"):
        return None
    header = mrc_header(path)
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = (float(np.float64(header.cella[axis]) / header[f"m{axis}"]) for axis in "xy")
    if not np.isfinite(x) or x == 0:
        return None
    least, most = PIXEL_SIZES
    if not least <= x <= most:
        found = f"{x:.3g} Angstrom per pixel in the header, expected {least:g} to {most:g}"
    elif np.isfinite(y) and y > 0 and abs(y / x - 1) > 0.01:
        found = f"pixels of {x:.3g} x {y:.3g} Angstrom in the header, expected squares"
    else:
        return x
    warnings.warn(
        f"{path}: {found}; it counts as not known; pixel_size of grace-predict gives it", InputWarning, stacklevel=2
    )
    return None


@dataclass(frozen=True)
class Wanted:
    """What to read of a file, and the group of the command's keys that say so."""

    frame: int | str | None
    max_gib: float
    group: str

    def index(self, path: Path, count: int) -> int | None:
        """Return which of ``count`` frames to take; None stands for their mean."""
        if self.frame == "mean":
            return None
        if self.frame is None and count == 1:
            return 0
        if not isinstance(self.frame, int) or not 0 <= self.frame < count:
            given = self.frame is not None
            found = f"no frame {self.frame!r}" if given else f"a stack of {count} frames, expected one image"
            raise InputError(f"{path}: {found}; set {self.group}frame to 0 ... {count - 1}, or to mean")
        return self.frame

    def expect_room(self, path: Path, size: int) -> None:
        """Raise an :class:`InputError` if so many bytes are too many."""
        expect_room(path, size, self.max_gib, self.group)


def _pick(stack: Pixels, index: int | None) -> Pixels:
    return np.array(stack.mean(axis=0, dtype=np.float64) if index is None else stack[index])


def mrc_header(path: Path) -> Any:
    """Return the header of an MRC file, a record in the file's byte order."""
    with reading(path, "an MRC image"), _unpacked(path) as file:
        return _header(file)


def _unpacked(path: Path) -> IO[bytes]:
    opened: Any = {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix.lower(), open)
    file: IO[bytes] = opened(path, "rb")
    return file


def _header(file: IO[bytes]) -> Any:
    start = bytearray(file.read(1024))
    length, start[92:96] = start[92:96], bytes(4)  # mrcfile would make room for the further header at once
    quiet = warnings.catch_warnings(action="ignore", category=RuntimeWarning)  # remarks on old headers
    with quiet, io.BytesIO(start) as stream:
        header = MrcInterpreter(stream, permissive=True, header_only=True).header
    header.nsymbt = np.frombuffer(length, header.nsymbt.dtype)[0]
    return header


def _read_mrc(path: Path, wanted: Wanted) -> Pixels:
    plain = path.suffix.lower() == ".mrc"
    with reading(path, "an MRC image"), _unpacked(path) as file:
        header = _header(file)
        mode, *shape = (int(header[name]) for name in ("mode", "nz", "ny", "nx"))
        stamp, flags = np.frombuffer(header.extra2.tobytes()[40:48], header.mode.dtype)
        said = f"the header says {shape[2]} x {shape[1]} x {shape[0]} pixels of mode {mode}"
        if held := NOT_READ.get(101 if stamp == IMOD and mode == 0 and flags & PACKED else mode):
            remedy = "write it as 16-bit numbers, such as by IMOD: newstack -mode 1 OLD NEW"
            raise InputError(f"{path}: {held} (mode {mode}), expected one number per pixel; {remedy}")
        dtype, begin = data_dtype_from_header(header), 1024 + int(header.nsymbt)
        size = dtype.itemsize * math.prod(shape)
        if min(shape) < 1 or begin < 1024:
            raise InputError(f"{path}: {said}; is it an MRC file?")
        if plain:
            there = path.stat().st_size - begin
        else:
            wanted.expect_room(path, begin + size)
            file.seek(begin)
            data = file.read(size)
            there = len(data)
        if there < size:
            raise InputError(f"{path}: {said}, but {max(there, 0)} bytes follow, expected {size}; is it cut short?")
        if not plain and file.read(1):
            raise InputError(f"{path}: {said}, but more follows than these; is the header right?")
        index = wanted.index(path, shape[0])
        if plain:
            wanted.expect_room(path, 8 * shape[1] * shape[2])
            stack: Pixels = np.memmap(path, dtype, "r", begin, tuple(shape))
        else:
            stack = np.frombuffer(data, dtype).reshape(shape)
        if dtype == np.int8 and _unsigned(header, stamp, flags):
            stack = stack.view(np.uint8)
        return _pick(stack, index)


def _unsigned(header: Any, stamp: int, flags: int) -> bool:
    """Return whether bytes are unsigned, as before MRC2014 and by IMOD: the statistics tell, or else IMOD's flag."""
    negative = header.dmin < 0 and header.dmin <= header.dmax
    return bool(header.dmax > np.iinfo(np.int8).max or (stamp == IMOD and not flags & SIGNED and not negative))


def _read_png(path: Path, wanted: Wanted) -> Pixels:
    wanted.index(path, 1)
    with reading(path, "a PNG image"):
        content = path.read_bytes()
        wanted.expect_room(path, png_size(content))
        return np.asarray(imagecodecs.png_decode(content))


def png_size(content: bytes) -> int:
    """Return how many bytes the pixels of a PNG file take, from its first bytes; palettes count as colours."""
    width, height, depth, colours = struct.unpack(">IIBB", content[16:26])
    return int(width * height * {2: 3, 3: 3, 4: 2, 6: 4}.get(colours, 1) * (2 if depth == 16 else 1))


def _read_tiff(path: Path, wanted: Wanted) -> Pixels:
    with reading(path, "a TIFF image"), errors_raised(), tifffile.TiffFile(path) as file:
        series = file.series[0]  # further series are thumbnails and labels
        kind = tifffile.PHOTOMETRIC(series.keyframe.photometric).name
        if kind not in ("MINISWHITE", "MINISBLACK", "RGB", "YCBCR"):
            raise InputError(f"{path}: colours are {kind}, expected grey or RGB")
        image_ndim = 3 if series.axes.endswith("S") else 2
        shape, count = (-1, *series.shape[-image_ndim:]), math.prod(series.shape[:-image_ndim])
        index = wanted.index(path, count)
        plain = series.dataoffset is not None
        one = index is not None and not plain and len(series.pages) == count
        pixels = math.prod(series.shape[-image_ndim:])
        wanted.expect_room(path, pixels * (8 if plain else series.dtype.itemsize) if plain or one else series.nbytes)
        if one:
            picked: Pixels = file.asarray(key=index, series=0)
        else:
            stack = tifffile.memmap(path, series=0, mode="r") if plain else series.asarray()
            picked = _pick(stack.reshape(shape), index)
        return np.iinfo(series.dtype).max - picked if kind == "MINISWHITE" and series.dtype.kind == "u" else picked


@contextmanager
def errors_raised() -> Iterator[None]:
    """Raise what tifffile only logs as an error: a page beyond the end of a truncated file."""

    def refuse(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            raise ValueError(record.getMessage())
        return False

    log = tifffile.logger()
    log.addFilter(refuse)
    try:
        yield
    finally:
        log.removeFilter(refuse)
