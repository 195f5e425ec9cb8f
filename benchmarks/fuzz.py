"""What readers make of damaged files: each is refused in one line that names it, or read as something sensible.

    python benchmarks/fuzz.py                                # 10,000 files
    python benchmarks/fuzz.py --count 500 --seed 1 --keep failed
    python benchmarks/fuzz.py --count 1000 --commands        # grace-annotate and grace-predict

Small sound files of every kind that is read are spoilt: bits flip, pieces are lost, doubled or swapped, numbers become
absurd, columns share a name; of compressed files also the content, for which the file then has the right checksum. The
checkpoint is that of an untrained network. With ``--commands``, one of three images of a folder has a damaged file: it
alone may fail, in one line that names it, and the others are done.

Outcomes that count as failures, of which an example of each stands below the table: ``foreign`` is an exception that is
no InputError; ``unnamed`` an InputError of several lines, or without the file's name; ``insane`` a value that is not
finite or has the wrong shape, or an image that is not done; ``large`` takes 1 GiB, ``slow`` 5 CPU seconds. A crash or a
stall leaves the file that it came from behind, and says where.
"""

import argparse
import bz2
import faulthandler
import gzip
import io as streams
import json
import os
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import imagecodecs
import mrcfile
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile
import torch
import yaml
from common import compose, untrained
from hydra.core.override_parser.overrides_parser import OverridesParser
from numpy.random import Generator
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from roifile import ROI_OPTIONS, ROI_TYPE, ImagejRoi, roiwrite

from grace_lightning import Predictor, io
from grace_lightning.errors import InputError, InputWarning
from grace_lightning.graph import Graph, delaunay
from grace_lightning.legacy import read_config_file, translate
from grace_lightning.tasks.annotate import annotate
from grace_lightning.tasks.predict import predict

SECONDS, GIB = 5.0, 1.0
MAX_GIB = 0.2
"""What readers are told that a file may unpack to; they may take a few times that."""
SHAPE = (12, 16)
"""Rows and columns of all images."""
ODD: tuple[Any, ...] = (
    *(0, -1, 2, 0.25, 1e300, -1e300, 1e30, 1e-300, float("nan"), float("-inf"), 2**31, 2**63, 10**30, 10**6),
    *(None, True, "", "x", "${oc.env:HOME}", "a\nb", [], [[]], {}, {"_target_": "os.system"}),
)
NUMBERS = ODD[:10]

Spoil = Callable[[bytes, Generator], bytes]


class Kind(NamedTuple):
    """A kind of file: sound content by name, the first one spoilt; what may happen to it; what is to be read."""

    files: dict[str, bytes]
    spoil: Spoil
    is_sane: Callable[[Path], bool]


class Outcome(NamedTuple):
    """What became of the file of a number."""

    kind: str
    number: int
    what: str
    reason: str


FAILURES = ("foreign", "unnamed", "insane", "large", "slow")


# ---- what may happen to a file ---------------------------------------------------------------------------------------


def spoil_bytes(data: bytes, rng: Generator) -> bytes:
    """Flip bits, or lose, double, swap or overwrite pieces, up to three times."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        a, b = sorted(rng.integers(len(data) + 1, size=2).tolist())
        c = min(b, a + int(rng.integers(1, 17)))
        number = rng.choice([0, 1, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**62])
        size, order = 2 ** int(rng.integers(4)), rng.choice(["<q", ">q"])
        piece = struct.pack(order, number)
        piece = piece[:size] if order == "<q" else piece[-size:]
        old, new = rng.choice(list(data or b"\0"), size=(2, 1)).astype(np.uint8)
        data = [
            data[:a] + bytes([1 << int(rng.integers(8)) ^ byte for byte in data[a : a + 1]]) + data[a + 1 :],
            data[:a] + piece + data[a + size :],
            data.replace(bytes(old), bytes(new)),
            data[:a],
            data[:a] + data[c:],
            data[:c] + data[a:],
            data[:a] + rng.bytes(c - a) + data[c:],
            data[:a] + bytes(c - a) + data[c:],
            data + data[a:b],
            data[:a] + data[b : b + c - a] + data[c:b] + data[a:c] + data[b + c - a :],
        ][rng.integers(10)]
    return data


def spoil_text(data: bytes, rng: Generator) -> bytes:
    """Replace, swap, double, drop or nest words or lines, up to three times."""
    text = data.decode()
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        found = [match.span() for match in re.finditer(rng.choice([r"[^\s,:{}\[\]\"']+", r".+\n?"]), text)]
        (a, b), (c, d) = sorted(found[k] for k in rng.integers(len(found), size=2)) if found else ((0, 0), (0, 0))
        odd, deep = str(ODD[rng.integers(len(ODD))]), int(rng.choice([1, 30, 3000]))
        swapped = text[:a] + text[c:d] + text[b:c] + text[a:b] + text[d:] if b <= c else text
        text = [
            *(swapped, text[:a] + odd + text[b:], text[:a] + text[c:d] + text[b:]),
            *(text[:a] + text[b:], text[:b] + text[a:], text[:a], text + text[a:b], text + text),
            text[:a] + deep * "[" + text[a:b] + deep * "]" + text[b:],
            text[:a] + deep * '{"a": ' + text[a:b] + deep * "}" + text[b:],
            text[:a] + "&a " + text[a:b] + ", *a" + text[b:],
        ][rng.integers(11)]
    return text.encode()


def spoil_tree(tree: Any, rng: Generator) -> Any:
    """Replace, drop or rename something in nested dictionaries and lists."""
    odd = ODD[rng.integers(len(ODD))]
    if not isinstance(tree, dict | list) or not tree or rng.random() < 0.1:
        return tree * odd if isinstance(tree, torch.Tensor) and isinstance(odd, float) else odd
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    key, accident, tree = keys[rng.integers(len(keys))], rng.random(), tree.copy()
    if accident < 0.1:
        del tree[key]
    elif accident < 0.2 and isinstance(tree, dict):
        tree[str(odd)] = tree.pop(key)
    else:
        tree[key] = spoil_tree(tree[key], rng)
    return tree


def spoil_json(data: bytes, rng: Generator) -> bytes:
    return json.dumps(spoil_tree(json.loads(data), rng)).encode()


def spoil_yaml(data: bytes, rng: Generator) -> bytes:
    return yaml.safe_dump(spoil_tree(yaml.safe_load(data), rng)).encode()


def spoil_checkpoint(data: bytes, rng: Generator) -> bytes:
    content, stream = torch.load(streams.BytesIO(data), weights_only=True), streams.BytesIO()
    torch.save(spoil_tree(content, rng), stream)
    return stream.getvalue()


def spoil_columns(data: bytes, rng: Generator) -> bytes:
    """Rename, double, drop or empty a column of a parquet table, or make a number in it absurd."""
    table = pq.read_table(streams.BytesIO(data))
    names, values = table.column_names, [column.to_pylist() for column in table]
    k, other, row = *rng.integers(len(names), size=2).tolist(), int(rng.integers(len(table)))
    odd = NUMBERS[rng.integers(len(NUMBERS))]
    accident = rng.integers(8)
    if accident == 0:
        names[k] = names[other]
    elif accident == 1:
        names, values = [*names, names[k]], [*values, values[k]]
    elif accident == 2:
        del names[k], values[k]
    elif accident == 3:
        values = [column[:row] for column in values]
    elif accident == 4:
        values[k] = [*values[k][:row], None, *values[k][row + 1 :]]
    else:
        values[k] = [[odd] * len(table), list(map(str, values[k])), [None] * len(table)][accident - 5]
    if accident == 5 and isinstance(values[other][row], int | float):
        values[other] = [*map(float, values[other][:row]), float(odd), *map(float, values[other][row + 1 :])]
    stream = streams.BytesIO()
    pq.write_table(pa.Table.from_arrays([pa.array(column) for column in values], names), stream)
    return stream.getvalue()


def spoil_h5(data: bytes, rng: Generator) -> bytes:
    """Change or drop an attribute or an array of an HDF5 file."""
    stream, nodes = streams.BytesIO(data), []
    with h5py.File(stream, "r+") as file:
        file.visititems(lambda _, node: nodes.append(node))
        node = nodes[rng.integers(len(nodes))]
        attributes, accident = dict(node.attrs), rng.integers(6)
        if accident < 2 and attributes:
            name = list(attributes)[rng.integers(len(attributes))]
            del node.attrs[name]
            if accident:
                node.attrs[name] = [0, -1, 2**40, 1e300, "x", b"(lp1\nVy\nl."][rng.integers(6)]
        elif isinstance(node, h5py.Dataset) and node.size and node.shape:
            array, name = node[()], node.name
            del file[name]
            if accident == 2 and array.dtype.kind == "f":
                array.flat[rng.integers(array.size)] = NUMBERS[rng.integers(len(NUMBERS))]
            changed = [np.full_like(array, array.flat[0]), array[:-1], array.T, np.concatenate([array, array])]
            file[name] = array if accident == 2 else changed[rng.integers(4)]
            file[name].attrs.update(attributes)
    return stream.getvalue()


def spoil_png_header(data: bytes, rng: Generator) -> bytes:
    header = spoil_bytes(data[16:29], rng)[:13].ljust(13, b"\0")
    return data[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + data[33:]


def spoil_zip(data: bytes, rng: Generator) -> bytes:
    with zipfile.ZipFile(streams.BytesIO(data)) as file:
        entries = {entry: file.read(entry) for entry in file.infolist()}
    spoilt, stream = list(entries)[rng.integers(len(entries))], streams.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for entry, content in entries.items():
            file.writestr(entry, spoil_bytes(content, rng) if entry is spoilt else content)
    return stream.getvalue()


def one_of(*spoils: Spoil) -> Spoil:
    return lambda data, rng: spoils[rng.integers(len(spoils))](data, rng)


def inside(package: Any) -> Spoil:
    return lambda data, rng: package.compress(spoil_bytes(package.decompress(data), rng))


# ---- what readers are to return --------------------------------------------------------------------------------------


def finite(values: torch.Tensor, *shape: int) -> bool:
    return values.shape == shape and values.dtype == torch.float32 and bool(values.isfinite().all())


def image_is_sane(path: Path) -> bool:
    image, size = io.read_image(path, frame="mean", max_gib=MAX_GIB), io.pixel_size(path)
    return image.numel() > 0 and finite(image, 1, *image.shape[1:]) and (size is None or 0 < size < np.inf)


def detections_are_sane(path: Path) -> bool:
    pos, score = io.read_points(path, max_gib=MAX_GIB)
    return finite(pos, len(io.read_detections(path, max_gib=MAX_GIB)), 2) and (score is None or finite(score, len(pos)))


def lines_are_sane(path: Path) -> bool:
    lines = io.Reading(max_gib=MAX_GIB).lines(path, Path("a.mrc"), SHAPE, frame=None, pixel_size=None).lines
    return all(line.shape == (len(line), 2) and np.abs(line).max() <= 2 * max(SHAPE) for line in lines)


def grace_is_sane(path: Path) -> bool:
    graph, annotation, metadata = io.read_grace(path.parent, max_gib=MAX_GIB)
    ends = graph.edges
    return (
        finite(graph.pos, graph.num_nodes, 2)
        and finite(graph.confidence, graph.num_nodes)
        and (graph.embedding is None or graph.embedding.shape[:-1] == (graph.num_nodes,))
        and bool(((ends >= 0) & (ends < graph.num_nodes)).all() and (ends[0] < ends[1]).all())
        and all(0 <= label <= 1 for head in ("node", "edge") for label in graph.label(head))
        and (annotation is None or (annotation.ndim == 2 and int(annotation.min()) >= 0))
        and isinstance(metadata["image_filename"], str)
    )


def instances_are_sane(path: Path) -> bool:
    filaments = io.read_instances(path, len(POS))
    return all(((nodes >= 0) & (nodes < len(POS))).all() and nodes.dtype == np.int64 for nodes in filaments.values())


def mask_is_sane(path: Path) -> bool:
    mask = io.read_mask(path, SHAPE, max_gib=MAX_GIB)
    return mask.shape == SHAPE and mask.dtype == torch.int32 and int(mask.min()) == 0


def config_file_is_sane(path: Path) -> bool:
    overrides, _ = translate(read_config_file(path), (), str(path))
    values = [override.value() for override in OverridesParser.create().parse_overrides(overrides)]
    resolved = OmegaConf.to_container(OmegaConf.create({"features": {"scale": 20.0}, "values": values}), resolve=True)
    return os.environ["HOME"] not in str(resolved)


def checkpoint_is_sane(path: Path) -> bool:
    predictor = Predictor.from_checkpoint(path)
    try:
        findings = predictor(np.arange(np.prod(SHAPE)).reshape(SHAPE), POS)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error  # it names the key checkpoint
    return finite(findings.node_probability, len(POS)) and all(map(torch.isfinite, findings.edge_probability))


def folder_is_sane(task: Callable[[DictConfig], None], cfg: DictConfig, path: Path) -> bool:
    """Run a command on the folder of ``path``; return whether the others are done, and ``path`` too or told about."""
    cfg, images, told = cfg.copy(), path.parent, streams.StringIO()
    cfg.image_dir, cfg.out_dir = str(images), str(images / "out")
    try:
        with warnings.catch_warnings(record=True) as said, redirect_stdout(streams.StringIO()), redirect_stderr(told):
            warnings.simplefilter("always", InputWarning)
            task(cfg)
        status = 0
    except SystemExit as stop:
        status = stop.code
    except InputError as error:
        raise RuntimeError(f"no image is done: {error}") from error
    done = {folder.stem for folder in (images / "out").glob("*.grace")}
    if "Traceback" in told.getvalue():
        raise RuntimeError(told.getvalue()[-500:])
    left_out = status == 0 and any(path.name in str(warning.message) for warning in said)  # it holds no detections
    if done == {"b", "c"} and (left_out or re.fullmatch(rf".*{images}/a[._].*\n", told.getvalue())):
        raise InputError(f"{path}: {told.getvalue().strip()}")
    return status == 0 and done == {"a", "b", "c"} and grace_is_sane(images / "out/a.grace/nodes.parquet")


# ---- sound files -----------------------------------------------------------------------------------------------------

POS = np.random.default_rng(0).uniform(1, 11, (8, 2)).astype(np.float32)
CONFIG = {
    **{"train_image_dir": "my data/train", "valid_image_dir": "2024", "log_dir": "runs", "filetype": "mrc"},
    **{"extractor_fn": None, "patch_size": [64, 64], "img_graph_augs": ["random_edge_addition_and_removal"]},
    **{"img_graph_aug_params": [{"p_add": 0.1, "p_remove": 0.3}], "patch_augs": ["random_edge_crop"]},
    **{"batch_size": 3, "classifier_type": "GAT", "hidden_graph_channels": [32, 16], "dropout": 0.25},
    **{"learning_rate": 0.001, "scheduler_type": "step", "metrics_objects": ["exact"]},
}
SMALL = ("features.scale=4", "features.channels=[8]", "features.hidden=8", "model.hidden=8", "model.rounds=1")


def sound_files(folder: Path) -> dict[str, Kind]:
    """Make a file of every kind, with the help of a folder."""
    rng = np.random.default_rng(0)
    grey = rng.integers(200, size=SHAPE, dtype=np.uint8)
    mask = (grey > 150).astype(np.uint8)

    def written(name: str, write: Callable[[Path], Any]) -> dict[str, bytes]:
        path = folder / name
        write(path)
        return {name: path.read_bytes()}

    def mrc(pixels: Any, name: str = "a.mrc") -> dict[str, bytes]:
        def write(path: Path) -> None:
            compression = {".gz": "gzip", ".bz2": "bzip2"}.get(path.suffix)
            with mrcfile.new(path, overwrite=True, compression=compression) as file:
                file.set_data(pixels)
                file.voxel_size = 4.0

        return written(name, write)

    def tiff(pixels: Any, **options: Any) -> dict[str, bytes]:
        return written("a.tif", lambda path: tifffile.imwrite(path, pixels, photometric="minisblack", **options))

    kinds = {}
    images = {
        "mrc float": mrc(grey.astype(np.float32)),
        "mrc byte stack": mrc(np.stack([grey, grey]).astype(np.int8)),
        "mrc.gz": mrc(grey.astype(np.int16), "a.mrc.gz"),
        "mrc.bz2": mrc(grey.astype(np.uint16), "a.mrc.bz2"),
        "tif": tiff(grey),
        "tif float stack": tiff(np.stack([grey, grey]).astype(np.float32)),
        "tif tiled": tiff(grey.astype(np.uint16), tile=(16, 16)),
        **{f"tif {name}": tiff(grey, compression=name) for name in ("lzw", "deflate", "packbits", "zstd")},
        "png 8 bit": {"a.png": imagecodecs.png_encode(grey)},
        "png 16 bit": {"a.png": imagecodecs.png_encode(grey.astype(np.uint16) * 200)},
        "png colour": {"a.png": imagecodecs.png_encode(np.stack([grey] * 3, axis=-1))},
    }
    deeper = {"mrc.gz": inside(gzip), "mrc.bz2": inside(bz2)}
    deeper |= {f"png {pixels}": spoil_png_header for pixels in ("8 bit", "16 bit", "colour")}
    for name, files in images.items():
        spoil = one_of(spoil_bytes, deeper[name]) if name in deeper else spoil_bytes
        kinds[name] = Kind(files, spoil, image_is_sane)

    frame = pd.DataFrame({"x": POS[:, 0], "y": POS[:, 1], "confidence": rng.random(len(POS)), "n": range(len(POS))})
    rows = [" ".join(f"{value:.3f}" for value in row) for row in frame.to_numpy()]
    boxes = [" ".join(f"{value:.2f}" for value in (x - 2, y - 2, 4, 4, c)) for x, y, c, _ in frame.to_numpy()]

    def star(block: str, names: Sequence[str], lines: Sequence[str]) -> bytes:
        labels = [f"_{name} #{k}" for k, name in enumerate(names, 1)]
        return "\n".join(["", f"data_{block}", "", "loop_", *labels, *lines, ""]).encode()

    corner = ("CoordinateX", "CoordinateY", "Width", "Height", "Confidence")
    relion = ("rlnCoordinateX", "rlnCoordinateY", "rlnAutopickFigureOfMerit", "rlnHelicalTubeID")
    texts = {
        "star": {"a.star": star("", relion, rows)},
        "cbox": {"a.cbox": star("global", ["version"], ["1.0"]) + star("cryolo", corner, boxes)},
        "cbox bare": {"a.cbox": "\n".join([*boxes, ""]).encode()},
        "box": {"a.box": "\n".join(["\t".join(row.split()[:4]) for row in boxes] + [""]).encode()},
        "csv": written("a.csv", lambda path: frame.to_csv(path, index=False)),
    }
    for name, files in texts.items():
        kinds[name] = Kind(files, one_of(spoil_bytes, spoil_text, spoil_text), detections_are_sane)
    tables = {
        "h5 fixed": written("a.h5", lambda path: io.write_detections(path, frame)),
        "h5 table": written("b.h5", lambda path: frame.to_hdf(path, key="df", format="table")),
    }
    for name, files in tables.items():
        kinds[name] = Kind(files, one_of(spoil_bytes, spoil_h5, spoil_h5), detections_are_sane)

    edges = delaunay(torch.from_numpy(POS))
    label = torch.arange(len(POS)) % 2
    graph = Graph(torch.from_numpy(POS), edges, confidence=torch.rand(len(POS)), embedding=torch.rand(len(POS), 3))
    graph = graph.with_labels(node=label, edge=label[edges].amin(dim=0))
    io.write_grace(folder / "a.grace", graph, annotation=torch.from_numpy(mask), edge_properties=True)
    parts = {f"a.grace/{path.name}": path.read_bytes() for path in sorted((folder / "a.grace").iterdir())}
    spoils: dict[str, Spoil] = {".parquet": one_of(spoil_bytes, spoil_columns, spoil_columns)}
    spoils |= {".npz": one_of(spoil_bytes, spoil_zip), ".json": one_of(spoil_bytes, spoil_text, spoil_json)}
    for name, content in parts.items():
        kinds[name.removeprefix("a.")] = Kind({name: content} | parts, spoils[Path(name).suffix], grace_is_sane)
    instances = {"a.instances.json": json.dumps({"1": [0, 1, 2], "2": [3, 4]}).encode()}
    kinds["instances.json"] = Kind(instances, spoils[".json"], instances_are_sane)

    rois = [ImagejRoi.frompoints(POS[:4]), ImagejRoi.frompoints(POS[4:])]
    for roi, options in zip(rois, (0, ROI_OPTIONS.SPLINE_FIT), strict=True):
        roi.roitype, roi.options = ROI_TYPE.POLYLINE, roi.options | options
    corners = "".join(f"{k // 4},path,{k},{y},{x}\n" for k, (x, y) in enumerate(POS.tolist()))
    drawn = {
        "roi": ({"a.roi": rois[1].tobytes()}, spoil_bytes),
        "zip": (written("a.zip", lambda path: roiwrite(path, rois)), one_of(spoil_bytes, spoil_zip)),
        "csv": ({"a.csv": f"index,shape-type,vertex-index,axis-0,axis-1\n{corners}".encode()}, spoil_text),
        "json": ({"a.polylines.json": json.dumps([POS[:4].tolist(), POS[4:].tolist()]).encode()}, spoils[".json"]),
        "star": (texts["star"], one_of(spoil_bytes, spoil_text)),
    }
    for name, (files, spoil) in drawn.items():
        kinds[f"lines {name}"] = Kind(files, spoil, lines_are_sane)

    masks = {
        "npy": written("m.npy", lambda path: np.save(path, mask)),
        "npz": written("m.npz", lambda path: np.savez(path, annotation=mask)),
        "png": {"m.png": imagecodecs.png_encode(mask)},
        "tif": written("m.tif", lambda path: tifffile.imwrite(path, mask, photometric="minisblack", compression="lzw")),
    }
    deeper = {"npz": spoil_zip, "png": spoil_png_header}
    for name, files in masks.items():
        kinds[f"mask {name}"] = Kind(files, one_of(spoil_bytes, deeper.get(name, spoil_bytes)), mask_is_sane)

    configs = {
        "config.json": (json.dumps({key: str(value) for key, value in CONFIG.items()}), spoil_json),
        "config.yaml": (yaml.safe_dump(CONFIG), spoil_yaml),
    }
    for name, (text, spoil) in configs.items():
        kinds[name] = Kind({name: text.encode()}, one_of(spoil_bytes, spoil_text, spoil), config_file_is_sane)
    checkpoint = written("best.ckpt", lambda path: untrained(path, *SMALL))
    kinds["checkpoint"] = Kind(checkpoint, one_of(spoil_zip, *[spoil_checkpoint] * 3), checkpoint_is_sane)
    return kinds


def sound_folders(folder: Path) -> dict[str, Kind]:
    """Make folders of three images for commands, of the files that :func:`sound_files` makes."""
    kinds = sound_files(folder)
    checkpoint = untrained(folder / "best.ckpt", *SMALL)
    ridge = ("detections=ridge", "detections.scale=3", "detections.threshold=2")
    tasks: dict[str, tuple[Callable[[DictConfig], None], DictConfig, list[Any]]] = {
        "annotate": (annotate, compose("annotate"), [image_is_sane, detections_are_sane, mask_is_sane]),
        "annotate ridge": (annotate, compose("annotate", *ridge), [image_is_sane]),
        "predict": (predict, compose("predict", f"checkpoint={checkpoint}"), [image_is_sane, detections_are_sane]),
    }
    sound = {kinds[name].is_sane: next(iter(kinds[name].files.items())) for name in ("mrc float", "csv", "mask npz")}
    folders = {}
    for command, (task, cfg, reads) in tasks.items():
        cfg.frame = "mean"
        for name, (files, spoil, is_sane) in kinds.items():
            if is_sane in reads:
                ((first, content),) = files.items()
                others = [pair for pair in product("abc", sound) if pair != ("a", is_sane)]
                beside = {called(x, read, sound[read][0]): sound[read][1] for x, read in others}
                files = {called("a", is_sane, first): content} | beside
                folders[f"{command}, {name}"] = Kind(files, spoil, partial(folder_is_sane, task, cfg))
    return folders


def called(image: str, read: Any, file: str) -> str:
    """Return the name of an image's file that ends as another one does."""
    return f"{image}{'_mask' if read is mask_is_sane else ''}{file[file.index('.') :]}"


# ---- the trial -------------------------------------------------------------------------------------------------------


class Slow(BaseException):
    """Time is up; readers that turn exceptions into others let it pass."""


def give_up(*_: Any) -> None:
    raise Slow


def attempt(is_sane: Callable[[Path], bool], path: Path, name: str) -> tuple[str, str]:
    """Read a file, whose errors are to have ``name``; return what becomes of it, and why."""
    outcome, reason = "slow", ""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the most memory so far is that of now
    peak, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with warnings.catch_warnings(action="ignore"):
            outcome = "read" if is_sane(path) else "insane"
    except InputError as error:
        outcome, reason = "refused" if name in str(error) and "\n" not in str(error) else "unnamed", str(error)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        outcome = "foreign"
        reason = f"{type(error).__name__} in {Path(place.filename).name}:{place.name}: {' '.join(str(error).split())}"
    except Slow:
        pass
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 2**20
    if time.process_time() - start > SECONDS:  # in compiled code, which no signal stops
        outcome = "slow"
    return ("large", f"{grown:.1f} GiB, {reason}") if grown > GIB else (outcome, reason)


def fuzz(kinds: dict[str, Kind], count: int, seed: int, keep: Path | None = None) -> list[Outcome]:
    """Spoil as many files, each kind in turn, and have them read; ``keep`` takes the ones that are failures."""
    before = signal.signal(signal.SIGPROF, give_up)
    folder, outcomes = Path(tempfile.mkdtemp(prefix="fuzz-")), []
    try:
        for number in range(count):
            kind = list(kinds)[number % len(kinds)]
            files, spoil, is_sane = kinds[kind]
            first = next(iter(files))
            rng = np.random.default_rng([seed, number])
            for name, content in files.items():
                path = folder / str(number) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(spoil(content, rng) if name == first else content)
            faulthandler.dump_traceback_later(20 * SECONDS, exit=True, file=sys.__stderr__)
            what, reason = attempt(is_sane, folder / str(number) / first, first.partition("/")[0])
            outcomes.append(Outcome(kind, number, what, reason))
            if keep is not None and what in FAILURES:
                shutil.copytree(folder / str(number), keep / f"{number}-{what}", dirs_exist_ok=True)
            shutil.rmtree(folder / str(number))
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGPROF, before)
    folder.rmdir()
    return outcomes


def examples(outcomes: list[Outcome]) -> list[str]:
    """Return a line for each different failure, and how often it came."""
    found: dict[tuple[str, str, str], list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.what in FAILURES:
            key = outcome.kind, outcome.what, re.sub(r"\d+|'.*?'", "", outcome.reason)[:60]
            found.setdefault(key, []).append(outcome)
    text = "{} {}, {} such as {}: {}"
    return [text.format(k, what, len(same), same[0].number, same[0].reason) for (k, what, _), same in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="files in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", action="store_true", help="folders for commands, not files for readers")
    parser.add_argument("--kinds", nargs="+", help="only these, as the table names them")
    parser.add_argument("--keep", type=Path, help="folder for files that fail")
    args = parser.parse_args()
    faulthandler.enable(sys.__stderr__)
    with tempfile.TemporaryDirectory() as folder:
        kinds = (sound_folders if args.commands else sound_files)(Path(folder))
        kinds = {name: kinds[name] for name in args.kinds or kinds}
        outcomes = fuzz(kinds, args.count, args.seed, args.keep)
    counts = Counter((outcome.kind, outcome.what) for outcome in outcomes)
    columns = ("refused", "read", *FAILURES)
    table = Table("", *columns, title=f"{len(outcomes):,} files, seed {args.seed}", title_justify="left")
    for name in kinds:
        table.add_row(name, *(str(counts[name, what] or "-") for what in columns))
    table.add_section()
    table.add_row("all", *(str(sum(o.what == what for o in outcomes)) for what in columns))
    Console().print(table)
    for line in examples(outcomes):
        print(line)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
