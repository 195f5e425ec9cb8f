"""What ``grace-predict`` costs per micrograph after start-up, by part.

    python benchmarks/predict.py --checkpoint runs/RUN/model/best.ckpt
    python benchmarks/predict.py --checkpoint runs/RUN/model/best.ckpt --size 4096 --detections 1000 --images 4

Simulated micrographs, of whose detections as many are kept. First part by part, one after the other; then the command
itself, which reads ahead while it works: the difference between two runs, of all images and of one, by the images
between. The goal is 5 s per image of 4096 x 4096 pixels with 1,000 detections on two cores.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from grace_lightning import Predictor, figures, io
from grace_lightning.config import config_dir
from grace_lightning.module import Prediction
from grace_lightning.simulate import Simulator, simulate_folder
from grace_lightning.tasks.predict import predict
from grace_lightning.tasks.results import Export, Micrograph, write_results

Times = dict[str, list[tuple[float, float]]]


def simulate(folder: Path, size: int, detections: int, images: int) -> list[Path]:
    """Micrographs with as many detections, at most, in each."""
    simulator = Simulator(size=[size, size], num_filaments=max(1, size // 400), false_detections=detections // 3)
    names = simulate_folder(simulator, folder, num_images=images)
    for name in names:
        path = folder / f"{name}.h5"
        frame = io.read_detections(path)
        io.write_detections(path, frame.sample(min(detections, len(frame)), random_state=0))
    return [folder / f"{name}.mrc" for name in names]


def parts(predictor: Predictor, image: Path, out_dir: Path, times: Times) -> None:
    """One micrograph, part by part."""

    def timed(name: str, step: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        value = step()
        times.setdefault(name, []).append((time.perf_counter() - wall, time.process_time() - cpu))
        return value

    pixels = timed("read", lambda: io.read_image(image))
    pos = torch.tensor(io.read_detections(image.with_suffix(".h5"))[["x", "y"]].to_numpy(np.float32))
    prepared = timed("graph, flattened image", lambda: predictor.prepare(pixels, pos))
    prediction = timed("features, network", lambda: network(predictor, prepared))
    timed("link", lambda: prediction.filaments(predictor.linker, prepared.graph))
    findings = predictor.find(prepared)
    picture = timed("draw", lambda: figures.thumbnail(pixels))
    micrograph = Micrograph(image.stem, image.name, tuple(pixels.shape[1:]), picture, 4.0)
    given = {"scale": predictor.scale, "record": {}}
    timed("write", lambda: write_results(out_dir, micrograph, findings, Export(png=False), **given))
    lines, closed = [f.path for f in findings.paths], [f.closed for f in findings.paths]

    def draw() -> None:
        figure = figures.overview(picture, micrograph.size, lines, closed)
        figure.savefig(out_dir / "picture.png", pil_kwargs={"compress_level": 1})

    timed("draw", draw)


@torch.no_grad()
def network(predictor: Predictor, prepared: Any) -> Prediction:
    """Its probabilities."""
    return predictor.probabilities(prepared)


def command(checkpoint: Path, image_dir: Path, out_dir: Path) -> tuple[float, float]:
    """Wall and CPU seconds of the whole task."""
    keys = [f"checkpoint={checkpoint}", f"image_dir={image_dir}", f"out_dir={out_dir}", "trainer.accelerator=cpu"]
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = hydra.compose("predict", keys)
    wall, cpu = time.perf_counter(), time.process_time()
    predict(cfg)
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="with learned features")
    parser.add_argument("--size", type=int, default=4096, help="side of the micrographs, pixels")
    parser.add_argument("--detections", type=int, default=1000)
    parser.add_argument("--images", type=int, default=4, help="2 or more")
    args = parser.parse_args()
    console = Console()
    times: Times = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = simulate(folder / "all", args.size, args.detections, args.images)
        (folder / "one").mkdir()
        for suffix in (".mrc", ".h5"):
            (folder / "one" / f"{images[0].stem}{suffix}").hardlink_to(images[0].with_suffix(suffix))
        out_dir = folder / "parts"
        out_dir.mkdir()
        predictor = Predictor.from_checkpoint(args.checkpoint)
        parts(predictor, images[0], out_dir, {})  # what happens only once
        for image in images:
            parts(predictor, image, out_dir, times)
        one = command(args.checkpoint, folder / "one", folder / "out_one")
        every = command(args.checkpoint, folder / "all", folder / "out_all")
    means = {part: np.array(values).sum(axis=0) / args.images for part, values in times.items()}
    title = f"seconds per image of {args.size} x {args.size} pixels with {args.detections} detections"
    table = Table("", "wall", "CPU", title=f"{title}; {torch.get_num_threads()} threads")
    for part, (wall, cpu) in means.items():
        table.add_row(part, f"{wall:.2f}", f"{cpu:.2f}")
    wall, cpu = sum(means.values())
    table.add_row("one after the other", f"{wall:.2f}", f"{cpu:.2f}")
    wall, cpu = ((b - a) / (args.images - 1) for a, b in zip(one, every, strict=True))
    table.add_row("grace-predict", f"{wall:.2f}", f"{cpu:.2f}")
    console.print(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    console.print(f"memory at most {peak:.2f} GiB (goal: 5 s per image on two cores)")


if __name__ == "__main__":
    main()
