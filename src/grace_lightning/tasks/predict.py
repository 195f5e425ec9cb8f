"""``grace-predict``."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities import rank_zero_only
from omegaconf import DictConfig
from torch import Tensor, distributed

from grace_lightning import figures, io
from grace_lightning.checkpoint import checkpoint_paths, polarity_of_training, scale_of_training
from grace_lightning.config import build, check_value
from grace_lightning.errors import InputError
from grace_lightning.files import (
    counted,
    expect_folder,
    make_folder,
    remove_unfinished,
    short,
    some,
)
from grace_lightning.predictor import Predictor, Prepared, frame_of_training, load_networks
from grace_lightning.ridges import LEAST_SCALE, RidgeDetector
from grace_lightning.splits import other_pixel_size
from grace_lightning.stopping import end_with_parent
from grace_lightning.sweeps import in_sweep
from grace_lightning.tasks.common import (
    Config,
    each_image,
    exit_if_failed,
    expect_keys,
    look_at,
    on_devices,
    plain,
    quiet_lightning,
    tell,
    warn,
)
from grace_lightning.tasks.joined import Joined
from grace_lightning.tasks.results import (
    SUMMARY,
    Export,
    Micrograph,
    is_done,
    read_node_probability,
    read_record,
    record_of_any,
)
from grace_lightning.tasks.suggest import doubt, suggest
from grace_lightning.tasks.together import MOST_AT_ONCE, MOST_PIXELS, Looked, Result, together, write_found


class Part(NamedTuple):
    """How far a process has come with its share of the images."""

    failures: dict[str, str]  # what is wrong, by name
    done: dict[str, Result]  # by name


def predict(cfg: DictConfig) -> None:
    """Find the filaments of all micrographs of a folder that have detections.

    Images that fail are named at the end, when the others are done; the exit status is then 1.
    """
    config = plain(cfg)
    quiet_lightning()
    _check(config)
    out_dir, overwrite = Path(config["out_dir"]), config["overwrite"]
    if config["join"]:
        expect_folder(out_dir, "out_dir")
        filaments = Joined(out_dir).join()
        joined_ones = f"{counted(len(filaments), 'image')}, {counted(sum(filaments.values()), 'filament')}"
        print(f"{joined_ones} in {short(out_dir)}")
        return
    export: Export = build(config["export"], "export")
    reading: io.Reading = build(config["io"], "io")
    detector: RidgeDetector | None = build(config.get("detections"), "detections")
    sources, ambiguous = _find_sources(config, out_dir)
    joined = Joined(out_dir, sources)
    images = [source.image for source in sources]
    before = None if overwrite else record_of_any(out_dir)
    predictor = load_predictor(config, images, frame=config["frame"], max_gib=reading.max_gib, before=before)
    frame = predictor.frame if config["frame"] is None else config["frame"]
    exported = [Path(f"X{suffix}") for suffix in export.suffixes]
    digests = [_digest(path) for path in checkpoint_paths(config["checkpoint"])]
    settings = {"checkpoint": digests if len(digests) > 1 else digests[0], "link": config.get("link")}
    settings |= {"spacing": export.spacing, "box_size": export.box_size, "pixel_size": config["pixel_size"]}
    settings |= {"scale": predictor.scale, "frame": frame, "tiff_origin": reading.tiff_origin}
    settings |= {"polarity": predictor.polarity} if predictor.polarity else {}
    if not sources[0].detections:
        read_image = partial(io.read_image, frame=frame, max_gib=reading.max_gib)
        detector = _for_filaments(detector or RidgeDetector(), predictor, images, read_image, before)
        settings["detections"] = dict(vars(detector))
    share = set(sorted({*joined.images, *ambiguous})[config["shard"] or 0 :: config["num_shards"]])
    sources = [source for source in sources if source.name in share]
    ambiguous = {name: message for name, message in ambiguous.items() if name in share}
    remove_unfinished(make_folder(out_dir, "out_dir"))
    failures, wanted = _left_to_do(sources, out_dir, export, settings, overwrite)
    skipped = {source.name for source in sources} - {source.name for source in wanted} - failures.keys()
    failures |= ambiguous

    # Each process has listed the images before any of them writes a result: launching waits for all.
    keys = ("accelerator", "strategy", "devices", "num_nodes", "precision")
    chosen = {key: config["trainer"][key] for key in keys if key in config["trainer"]}
    fabric = on_devices(config["trainer"], lambda: Fabric(**chosen))
    if in_sweep() and fabric.world_size > 1:
        several = f"trainer.devices: {fabric.world_size} processes, each of which would run all parts again with -m"
        raise InputError(f"{several}; give trainer.devices=1, or start the parts one by one")
    if getattr(rank_zero_only, "rank", 0) > 0:
        end_with_parent()
    if wanted:
        fabric.launch()
    predictor = predictor.to(fabric.device)
    part = Part(failures, {})
    write = partial(write_found, out_dir, export, predictor.linker, predictor.scale, predictor.polarity)

    def look(source: io.Source) -> Looked:
        micrograph, prepared = _read(source, predictor, detector, frame, config["pixel_size"], reading)
        with fabric.autocast():
            said = predictor.probabilities(prepared.data)
        return Looked(micrograph, prepared._replace(data=[]), said, _record(settings, source))

    def note(name: str, coming: Future[Result]) -> None:
        coming.result()
        if fabric.is_global_zero:
            joined.show_now_and_then()

    mine = wanted[fabric.global_rank :: fabric.world_size]
    if wanted:
        fabric.barrier()  # a process that is not there yet would miss a signal
    cores = max(1, torch.get_num_threads() // fabric.world_size)
    at_once = min(config["num_workers"] or min(cores, MOST_AT_ONCE), len(mine)) or 1
    most_pixels = None if config["num_workers"] else MOST_PIXELS
    with closing(together(mine, look, write, part.done, at_once, most_pixels)) as going:
        failed, stopped = each_image(going, len(mine), note, doing="predicting", first=fabric.is_global_zero)
    part.failures.update(failed)
    if stopped and fabric.is_global_zero:
        for process in getattr(fabric.strategy.launcher, "procs", []):
            process.send_signal(stopped.signal)
    parts = [part] * fabric.world_size
    if fabric.world_size > 1 and wanted:
        distributed.all_gather_object(parts, part)
    if not fabric.is_global_zero:
        return
    whole = Part(
        failures={name: message for part in parts for name, message in part.failures.items()},
        done={name: result for part in parts for name, result in part.done.items()},
    )
    try:
        filaments = joined.join()
    except (InputError, OSError) as error:
        whole.failures[SUMMARY] = str(error)
    else:
        told = _what_became(config, share, skipped, whole, filaments, networks=len(digests))
        files = [(file, source.image) for source in wanted for file in (source.detections, *exported) if file]
        if any(io.counts_from_bottom(*pair, reading.tiff_origin) for pair in files):
            told += f"\n{io.COUNTED_FROM_BOTTOM}"
        print(told)
        if config["suggest"]:
            _suggest(out_dir, sorted(skipped | whole.done.keys()), config["suggest"])
    _warn_of_pixel_sizes(config, predictor, {name: result.pixel_size for name, result in whole.done.items()})
    exit_if_failed("grace-predict", whole.failures, stopped)


def _what_became(
    config: Config, names: set[str], skipped: set[str], whole: Part, filaments: Mapping[str, int], *, networks: int
) -> str:
    """Return what became of the images of these ``names``; ``filaments`` is the number in each image of the folder."""
    done, closed = skipped | whole.done.keys(), sum(result.closed for result in whole.done.values())
    sizes = {result.pixel_size for result in whole.done.values() if result.pixel_size is not None}
    left, others = len(names) - len(done) - len(whole.failures), len(filaments.keys() - names)
    number = sum(filaments.get(name, 0) for name in done)
    told = f"{counted(len(done), 'image')}, {counted(number, 'filament')} in {short(Path(config['out_dir']))}"
    told += f", by {networks} networks together" if networks > 1 else ""
    if sizes:
        told += f", pixel size {min(sizes):.4g}" + (f" to {max(sizes):.4g}" if len(sizes) > 1 else "")
        told += " Angstrom by " + ("the MRC headers" if config["pixel_size"] is None else "the key pixel_size")
    told += f" ({len(skipped)} done before, overwrite=true does them anew)" if skipped else ""
    told += f"; {closed} closed ones have no ends for .box" if closed and config["export"]["box"] else ""
    told += f"; {len(whole.failures)} of {counted(len(names), 'image')} failed" if whole.failures else ""
    told += f"; {left} left to do" if left else ""
    return told + (f"; {SUMMARY} has {counted(others, 'other image')}, too" if others else "")


def _suggest(out_dir: Path, names: Sequence[str], count: int) -> None:
    """Print which of the images that are done should be annotated first."""
    said = [read_node_probability(out_dir, name) for name in names]
    print("their annotation would teach the network most (bits of doubt about their detections):")
    for row in suggest(said, count):
        print(f"  {names[row]}  {doubt(said[row]):.0f}")


def _warn_of_pixel_sizes(config: Config, predictor: Predictor, sizes: Mapping[str, float | None]) -> None:
    """Warn if images, by name, have another pixel size than those of the training, or none, Angstrom."""
    unlike = (
        f"{name}: {other}" for name, size in sizes.items() if (other := other_pixel_size(predictor.configs, size))
    )
    if config["features"]["scale"] is None and (first := next(unlike, None)):
        warn(first)
    lacking = sorted(name for name, size in sizes.items() if size is None)
    if lacking and (config["export"]["star"] or config["export"]["cbox"]):
        warn(
            f"no pixel size is known for {counted(len(lacking), 'image')}: {some(lacking)}; segments are one "
            f"filament width ({predictor.scale:g} pixels) apart and .star has no track length, without which RELION "
            "does not extract helical segments: set pixel_size= (Angstrom) and overwrite=true"
        )


def load_predictor(
    config: Config, images: Sequence[Path], *, frame: int | str | None, max_gib: float, before: Config | None = None
) -> Predictor:
    """Return the predictor that ``checkpoint``, ``trust``, ``link``, ``features.scale`` and ``polarity`` describe.

    It is on the CPU. What filaments look like is taken from the record of an image done ``before``, or estimated from
    ``images``, if so configured or if the networks were trained on images of many kinds. ``frame`` and ``max_gib`` are
    of :func:`grace_lightning.io.read_image`; without a ``frame`` it is that of the training.
    """
    for key in ("checkpoint", "trust"):
        check_value(config[key], str | list[str] | None, key)
    expect_keys(config, {"checkpoint": "a file such as runs/<run>/model/best.ckpt, or general"})
    scale, polarity, link = config["features"]["scale"], config["polarity"], config.get("link")
    check_value(scale, float | Literal["auto"] | None, "features.scale")
    check_value(polarity, Literal["dark", "bright", "auto"] | None, "polarity")
    if isinstance(scale, float | int) and not 1 <= scale <= 1000:
        raise InputError(f"features.scale: {scale}, expected the width of a filament, 1 to 1000 pixels")
    networks = load_networks(config["checkpoint"], config["trust"])
    trained = [network.config for network in networks]
    scale, polarity = scale or scale_of_training(trained), polarity or polarity_of_training(trained)
    if "auto" in (scale, polarity):
        frame = frame_of_training(networks) if frame is None else frame
        read = partial(io.read_image, frame=frame, max_gib=max_gib)
        scale, polarity, told = look_at(images, read, scale, polarity, before)
        tell(told)
    return Predictor.of_networks(networks, scale=scale, polarity=polarity, link=link)


def _for_filaments(
    detector: RidgeDetector,
    predictor: Predictor,
    images: Sequence[Path],
    read: Callable[[Path], Tensor],
    before: Config | None,
) -> RidgeDetector:
    """Return a detector of ridges as wide as the predictor's filaments, and of their polarity, unless it has its own.

    If the networks take images as they are, the polarity is estimated.
    """
    scale = detector.scale or max(predictor.scale, LEAST_SCALE)
    polarity = detector.polarity or predictor.polarity
    if polarity is None:
        earlier = before["detections"] if before and isinstance(before.get("detections"), dict) else None
        _, polarity, told = look_at(images, read, scale, "auto", earlier, group="detections")
        tell(told)
    return replace(detector, scale=scale, polarity=polarity)


def _check(config: Config) -> None:
    kinds: Config = {"image_dir": str | None, "detections_dir": str | None, "out_dir": str, "overwrite": bool}
    kinds |= {"frame": int | Literal["mean"] | None, "pixel_size": float | None}
    kinds |= {"detections_format": io.DetectionsFormat | None, "suggest": int | None}
    kinds |= {"num_workers": int | None, "shard": int | None, "num_shards": int, "join": bool}
    for key, expected in kinds.items():
        check_value(config[key], expected, key)
    if config["join"]:
        return
    expect_keys(config, {"image_dir": "the folder of micrographs"})
    shard, count = config["shard"], config["num_shards"]
    if count < 1 or not 0 <= (count if shard is None and count > 1 else shard or 0) < count:
        found = f"shard: {shard}, num_shards: {count}, expected a part from 0 to num_shards - 1"
        raise InputError(f"{found}; with -m, 'shard=range(0,{max(count, 1)})' does all of them")
    if config["num_workers"] is not None and config["num_workers"] < 1:
        raise InputError(f"num_workers: {config['num_workers']}, expected a number of images, 1 or more")
    if config["suggest"] is not None and config["suggest"] < 1:
        raise InputError(f"suggest: {config['suggest']}, expected a number of images, 1 or more")
    if config["pixel_size"] is not None and not 0.01 <= config["pixel_size"] <= 1e9:
        raise InputError(f"pixel_size: {config['pixel_size']}, expected Angstrom per pixel, 0.01 to 1e+09")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _find_sources(config: Config, out_dir: Path) -> tuple[list[io.Source], dict[str, str]]:
    """Find images with detections, sorted by name; warn of images without, and of detections without an image.

    If there are none at all, or ``detections=ridge``, all images are returned, without detections. Also returns, by
    name, why images fail for which several files hold detections.
    """
    image_dir = Path(config["image_dir"])
    detections_dir = Path(config["detections_dir"] or image_dir)
    for key, folder in {"image_dir": image_dir, "detections_dir": detections_dir}.items():
        expect_folder(folder, key)
        if out_dir.resolve() == folder.resolve():
            same = f"{out_dir} is {key} too, where results would replace images, detections or annotations"
            raise InputError(f"out_dir: {same}; choose another folder")
    images = {io.stem(path): path for path in io.leave_out_masks(io.find_images(image_dir))}
    without = [io.Source(name, path) for name, path in images.items()]
    asked = [key for key in ("detections_dir", "detections_format") if config[key] is not None]
    if config.get("detections"):
        if asked:
            given = f"{asked[0]}: {config[asked[0]]}, but the detections are to be found in the images"
            raise InputError(f"{given}; leave out one of {asked[0]} and detections=ridge")
        return without, {}
    found = io.find_detections(detections_dir, images, config["detections_format"])
    listed = io.list_detections(detections_dir, config["detections_format"])
    alone = sorted(path.name for name, paths in listed.items() if name not in images for path in paths)
    lacking = [name for name in images if name not in found.files and name not in found.failures]
    for note in found.notes:
        warn(note)
    if alone and (found.files or not asked):
        warn(f"{detections_dir}: no image for {counted(len(alone), 'detection file')}, left out: {some(alone)}")
    if not found.files and not found.failures and not asked and "detections" not in config:
        tell(f"no detections beside {'the image' if len(images) == 1 else 'any image'}; found along ridges")
        return without, {}
    if not found.files:
        only = config["detections_format"]
        suffixes = io.DETECTION_SUFFIXES if only is None else (f".{only}",)
        raise InputError(
            f"{detections_dir}: no detections ({', '.join(suffixes)}) for any of {counted(len(images), 'image')} in "
            f"{image_dir}, such as {lacking[0]}{suffixes[0]}" + (f"; found {some(alone)}" if alone else "")
        )
    if lacking:
        share = f"{len(lacking)} of {counted(len(images), 'image')}"
        found_by = "" if asked else "; detections=ridge finds some in the images themselves, in all"
        warn(f"{detections_dir}: no detections for {share}, left out: {some(lacking)}{found_by}")
    files = [io.Source(name, images[name], detections=path) for name, path in found.files.items()]
    return files, found.failures


def _left_to_do(
    sources: Sequence[io.Source], out_dir: Path, export: Export, settings: Config, overwrite: bool
) -> tuple[dict[str, str], list[io.Source]]:
    """Return why images cannot be done whose results would replace something else, and the images to be done."""
    failures, wanted, changed = {}, [], []
    for source in sources:
        try:
            record = read_record(out_dir, source.name)
        except InputError as error:
            failures[source.name] = str(error)
            continue
        if overwrite or record is None or not is_done(out_dir, source.name, export):
            wanted.append(source)
        elif record != _record(settings, source):
            changed.append(source.name)
    if changed:
        warn(
            f"{out_dir}: done with another checkpoint, other settings or other input files, and skipped: "
            f"{counted(len(changed), 'image')}, {some(changed)}; overwrite=true does them anew"
        )
    return failures, wanted


def _record(settings: Config, source: io.Source) -> Config:
    """Return everything that an image's results depend on; files are told by their size and time."""
    files = {"image": source.image, "detections": source.detections}
    stats = {key: path.stat() for key, path in files.items() if path}
    settings = settings if io.is_tiff(source.image) else {k: v for k, v in settings.items() if k != "tiff_origin"}
    return {**settings, **{key: [stat.st_size, stat.st_mtime_ns] for key, stat in stats.items()}}


def _read(
    source: io.Source,
    predictor: Predictor,
    detector: RidgeDetector | None,
    frame: int | str | None,
    pixel_size: float | None,
    reading: io.Reading,
) -> tuple[Micrograph, Prepared]:
    image = io.read_image(source.image, frame=frame, max_gib=reading.max_gib)
    pixel_size = io.pixel_size(source.image) if pixel_size is None else float(pixel_size)
    size = image.shape[1], image.shape[2]
    points: tuple[Tensor, Tensor | None]
    if source.detections is None:
        points = predictor.detect(image, detector)
    else:
        points = reading.points(source.detections, source.image, size, pixel_size)
    try:
        prepared = predictor.prepare(image, *points, source.name)
    except InputError as error:
        raise InputError(f"{source.image}: {error}") from error
    flipped = reading.tiff_origin == "bottom" and io.is_tiff(source.image)
    known = pixel_size, os.path.abspath(source.image), flipped
    return Micrograph(source.name, source.image.name, size, figures.thumbnail(image), *known), prepared
