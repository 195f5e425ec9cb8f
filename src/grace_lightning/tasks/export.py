"""``grace-export``."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig

from grace_lightning import io
from grace_lightning.config import build, check_value
from grace_lightning.errors import InputError
from grace_lightning.files import counted, expect_folder, put, reading, short, some, sync, unfinished_in, writing
from grace_lightning.tasks.common import Config, each_image, exit_if_failed, plain
from grace_lightning.tasks.joined import Joined, write_relion
from grace_lightning.tasks.overview import table_of
from grace_lightning.tasks.results import PATHS, RECORD, Export, Micrograph, write_exports

YES, NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")
"""What the column ``keep`` may say."""


def export(cfg: DictConfig) -> None:
    """Write the files for other programs again, of the filaments that are chosen, without predicting."""
    config = plain(cfg)
    for key in ("min_length", "min_probability", "pixel_size"):
        check_value(config[key], float | None, key)
    for key, kind in {"out_dir": str, "keep": str | None}.items():
        check_value(config[key], kind, key)
    out_dir, wanted = Path(config["out_dir"]), replace(build(config["export"], "export"), png=False)
    expect_folder(out_dir, "out_dir")
    done = {
        name: image._replace(metadata=image.metadata | ({"pixel_size": size} if (size := config["pixel_size"]) else {}))
        for name, image in Joined(out_dir).done().items()
        if isinstance(image.metadata.get(RECORD), dict)
    }
    if not done:
        raise InputError(f"out_dir: in {out_dir} there is nothing that grace-predict found")
    table = table_of(done)
    least = {"length": config["min_length"], "mean_probability": config["min_probability"]}
    chosen = pd.concat([table[name] >= (value or 0) for name, value in least.items()], axis=1).all(axis=1)
    if config["keep"]:
        chosen &= _kept(Path(config["keep"]), table)
    by_image = {str(name): rows.to_numpy() for name, rows in chosen.groupby(table["image"])}
    images = ((name, by_image.get(name, np.zeros(0, np.bool_))) for name in done)
    failures, stopped = each_image(
        images,
        len(done),
        lambda name, rows: _write(out_dir, name, done[name].metadata, rows, wanted),
        doing="exporting",
    )
    if not stopped:
        write_relion(out_dir, done, {})
    kept = f"{int(chosen.sum()):,} of {counted(len(table), 'filament')} in {counted(len(done), 'image')}"
    print(f"{kept}: {', '.join(wanted.suffixes)} and relion/ in {short(out_dir)}")
    exit_if_failed("grace-export", failures, stopped)


def _kept(path: Path, table: pd.DataFrame) -> NDArray[np.bool_]:
    """Return which filaments of a ``table`` an edited one keeps: rows that are left, unless their ``keep`` says no."""
    with reading(path, "a filaments.csv as grace-predict wrote it and you edited it"):
        edited = pd.read_csv(path, sep=None, engine="python", dtype=str, keep_default_na=False)
        numbers = [name for name in ("filament", "nodes") if name in edited]
        edited[numbers] = edited[numbers].apply(pd.to_numeric)
    if lacking := {"image", "filament"} - {*edited}:
        raise InputError(f"{path}: no column {some(sorted(lacking))}, expected those of filaments.csv")
    said = edited["keep"].str.strip().str.lower() if "keep" in edited else pd.Series("yes", edited.index)
    if (unclear := ~said.isin([*YES, *NO])).any():
        row = int(np.flatnonzero(unclear)[0])
        raise InputError(f"{path}: keep is {edited['keep'][row]!r} in row {row + 1}, expected 1 or 0, yes or no")
    key = ["image", "filament"]
    both = edited.merge(table, on=key, how="left", suffixes=("", "_found"), indicator=True)
    # A table of an earlier prediction has other filaments of these numbers.
    strange = both["_merge"].ne("both")
    if "nodes" in edited:
        strange |= both["nodes"].ne(both["nodes_found"])
    if strange.any():
        row = int(np.flatnonzero(strange)[0])
        found = (
            f"{path}: row {row + 1}, filament {both['filament'][row]} of {both['image'][row]}, is not among the results"
        )
        raise InputError(f"{found}; were the images done anew after the table was copied?")
    kept = pd.MultiIndex.from_frame(edited.loc[said.isin(YES), key])
    return pd.MultiIndex.from_frame(table[key]).isin(kept)


def _write(out_dir: Path, name: str, metadata: Config, chosen: NDArray[np.bool_], wanted: Export) -> None:
    record, path = metadata[RECORD], Path(metadata["image_path"])
    nothing = torch.zeros(1, 1, 1)  # no picture is drawn
    filaments = io.read_paths(out_dir / f"{name}.grace" / PATHS)
    kept = [filament for filament, there in zip(filaments, chosen, strict=True) if there]
    given = {key: value for key in ("spacing", "box_size") if (value := getattr(wanted, key) or record[key])}
    flipped = record.get("tiff_origin") == "bottom" and io.is_tiff(path)
    micrograph = Micrograph(
        name, path.name, tuple(metadata["size"]), nothing, metadata["pixel_size"], from_bottom=flipped
    )
    with writing(out_dir / name), unfinished_in(out_dir) as unfinished:
        write_exports(unfinished, micrograph, kept, replace(wanted, **given), record["scale"])
        sync(unfinished)
        for suffix in wanted.suffixes:
            put(unfinished / f"{name}{suffix}", out_dir / f"{name}{suffix}")
