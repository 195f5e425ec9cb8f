"""What ``grace-predict`` costs per micrograph after start-up, by part.

    python benchmarks/predict.py --checkpoint runs/RUN/model/best.ckpt
    python benchmarks/predict.py --checkpoint runs/RUN/model/best.ckpt --size 4096 --detections 1000 --images 4

Simulated micrographs, of whose detections as many are kept. First part by part, one after the other; then the command
itself, which does several images at once: the difference between two runs, of all images and of one, by the images
between. ``--copies`` makes many images of few: the first and the last ones have fewer beside them. The network is on a
GPU if there is one. Without a checkpoint, an untrained network of the default size is taken: all costs but the linker's
are those of a trained one. With ``--alone`` the network is the general one and detections are found along ridges. Width
and polarity are estimated from eight images of a folder at most, which is no part of the sums. The goal is 2 CPU s and
1.2 s of wall time per image of 4096 x 4096 pixels on two cores, and six images a second with a GPU.
"""

import argparse
import contextlib
import io as streams
import os
import resource
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import compose, untrained
from rich.console import Console
from rich.table import Table

from grace_lightning import Predictor, figures, io
from grace_lightning.estimate import estimate
from grace_lightning.ridges import RidgeDetector
from grace_lightning.simulate import Simulator, simulate_folder
from grace_lightning.tasks.predict import predict
from grace_lightning.tasks.results import Export, Micrograph, write_results

ESTIMATE = "estimate, for 8 images"

Times = dict[str, np.ndarray]
"""Wall and CPU seconds by part."""


def simulate(folder: Path, size: int, detections: int, images: int) -> list[Path]:
    """Make micrographs with as many detections, at most, in each."""
    simulator = Simulator(size=[size, size], num_filaments=max(1, size // 400), false_detections=detections // 3)
    names = simulate_folder(simulator, folder, num_images=images)
    for name in names:
        path = folder / f"{name}.h5"
        frame = io.read_detections(path)
        io.write_detections(path, frame.sample(min(detections, len(frame)), random_state=0))
    return [folder / f"{name}.mrc" for name in names]


def clocked(step: Callable[[], Any]) -> tuple[Any, np.ndarray]:
    """Return what a step returns, and its wall and CPU seconds."""

    def now() -> np.ndarray:
        return np.array([time.perf_counter(), sum(os.times()[:4])])  # of the processes that it starts, too

    start = now()
    value = step()
    return value, now() - start


def parts(predictor: Predictor, image: Path, out_dir: Path, alone: bool = False) -> Times:
    """Do one micrograph part by part."""
    times: Times = {}

    def timed(name: str, step: Callable[[], Any]) -> Any:
        value, seconds = clocked(step)
        times[name] = times.get(name, 0) + seconds
        return value

    pixels = timed("read", lambda: io.read_image(image))
    if alone:
        found = timed(ESTIMATE, lambda: estimate([pixels]))
        detector = RidgeDetector(scale=found.scale, polarity=found.polarity)
        pos, confidence = timed("ridges", lambda: predictor.detect(pixels, detector))
    else:
        pos, confidence = timed("read", lambda: io.read_points(image.with_suffix(".h5")))
    prepared = timed("graph, flattened image", lambda: predictor.prepare(pixels, pos, confidence))
    said = timed("features, network", lambda: predictor.probabilities(prepared.data))
    timed("link", lambda: predictor.link(prepared.graph, said))
    findings = predictor.find(prepared)
    picture = timed("read", lambda: figures.thumbnail(pixels))
    micrograph = Micrograph(image.stem, image.name, tuple(pixels.shape[1:]), picture, 4.0)
    given = {"scale": predictor.scale, "record": {}}
    timed("write, with a thumbnail", lambda: write_results(out_dir, micrograph, findings, Export(png=False), **given))
    timed("draw and write the picture", lambda: write_results(out_dir, micrograph, findings, Export(), **given))
    times["draw and write the picture"] -= times["write, with a thumbnail"]
    return times


def command(checkpoint: str | Path, image_dir: Path, out_dir: Path, keys: list[str]) -> np.ndarray:
    """Return wall and CPU seconds of the whole task."""
    cfg = compose("predict", f"checkpoint={checkpoint}", f"image_dir={image_dir}", f"out_dir={out_dir}", *keys)
    with contextlib.redirect_stdout(streams.StringIO()):
        return clocked(lambda: predict(cfg))[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="with learned features")
    parser.add_argument("--size", type=int, default=4096, help="side of the micrographs, pixels")
    parser.add_argument("--detections", type=int, default=1000)
    parser.add_argument("--images", type=int, default=4, help="2 or more")
    parser.add_argument("--copies", type=int, default=1, help="of each, for the command")
    parser.add_argument("--alone", action="store_true", help="without detections, width and polarity")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = args.checkpoint or ("general" if args.alone else untrained(folder / "untrained.ckpt"))
        images = simulate(folder / "all", args.size, args.detections, args.images)
        (folder / "one").mkdir()
        for suffix in (".mrc", ".h5"):
            (folder / "one" / f"{images[0].stem}{suffix}").hardlink_to(images[0].with_suffix(suffix))
            for image, copy in product(images, range(1, args.copies)):
                image.with_name(f"{image.stem}_{copy}{suffix}").hardlink_to(image.with_suffix(suffix))
        out_dir = folder / "parts"
        out_dir.mkdir()
        known = estimate([io.read_image(images[0])]) if args.alone else None
        looks = {"scale": known.scale, "polarity": known.polarity} if known else {}
        device = "cuda" if torch.cuda.is_available() else "cpu"
        predictor = Predictor.from_checkpoint(checkpoint, **looks).to(device)
        parts(predictor, images[0], out_dir, args.alone)  # what happens only once
        times = [parts(predictor, image, out_dir, args.alone) for image in images]
        keys = ["detections=ridge", f"features.scale={known.scale}", f"polarity={known.polarity}"] if known else []
        one = command(checkpoint, folder / "one", folder / "out_one", keys)
        every = command(checkpoint, folder / "all", folder / "out_all", keys)
    rows = {part: sum(each[part] for each in times) / args.images for part in times[0]}
    in_sum = [seconds for part, seconds in rows.items() if part != ESTIMATE]
    per_image = (every - one) / (args.images * args.copies - 1)
    rows |= {"one after the other": sum(in_sum), "grace-predict": per_image}
    points = "alone" if args.alone else f"with {args.detections} detections"
    title = f"seconds per image of {args.size} x {args.size} pixels {points}"
    table = Table("", "wall", "CPU", title=f"{title}; {torch.get_num_threads()} threads")
    for part, seconds in rows.items():
        table.add_row(part, *(f"{value:.2f}" for value in seconds))
    Console().print(table)
    print(f"{1 / per_image[0]:.2f} images a second")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"memory at most {peak:.2f} GiB")


if __name__ == "__main__":
    main()
