"""Simulated micrographs on disk."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from shutil import rmtree
from typing import Any

import mrcfile
import pandas as pd
from filelock import FileLock
from rich.console import Console
from rich.progress import track

from grace_lightning.errors import InputError
from grace_lightning.io import write_detections, write_grace
from grace_lightning.simulate.draws import image_generator
from grace_lightning.simulate.micrograph import Simulation, Simulator

NAME, NAMING = re.compile(r"\w[\w.-]*"), "letters, digits, '_', '-' and '.', not beginning with '-' or '.'"
MOMENT = 3e7  # pixels to simulate, from which on a progress bar is shown


def write_simulation(simulation: Simulation, out_dir: str | Path) -> None:
    """Write X.h5, X.grace, X.instances.json and last X.mrc, so that where the image is, all is.

    ``out_dir`` must exist; files of the same names are overwritten.
    """
    sample, stem = simulation.sample, Path(out_dir) / simulation.sample.name
    image, part = Path(f"{stem}.mrc"), Path(f"{stem}.mrc.part")
    image.unlink(missing_ok=True)
    x, y = sample.graph.pos.numpy().T
    write_detections(f"{stem}.h5", pd.DataFrame({"x": x, "y": y}))
    write_grace(f"{stem}.grace", sample.graph, annotation=sample.annotation, metadata=sample.metadata)
    Path(f"{stem}.instances.json").write_text(json.dumps(simulation.instances))
    with mrcfile.new(part, overwrite=True) as file:
        file.set_data(sample.image[0].numpy())
        file.voxel_size = sample.metadata["pixel_size"]
    part.replace(image)


def _names(prefix: str, num_images: int) -> list[str]:
    return [f"{prefix}_{k:04d}" for k in range(num_images)]


def simulate_folder(
    simulator: Simulator,
    out_dir: str | Path,
    *,
    num_images: int = 10,
    seed: int = 0,
    prefix: str = "micrograph",
    overwrite: bool = False,
) -> list[str]:
    """Write simulated images with their detections and their truth; returns their names.

    An image depends on the simulator, the seed and its own name, not on how many images there are.

    Parameters
    ----------
    out_dir : made where missing
    num_images : 1 or more
    seed : 0 or more
    prefix : the images are named ``<prefix>_0000``, ``<prefix>_0001`` and so on
    overwrite : write over images of these names

    Raises
    ------
    InputError
        A value out of its range, or an image that is there already.
    """
    for name, value, least in (("num_images", num_images, 1), ("seed", seed, 0)):
        if value < least:
            raise InputError(f"{name}: {value}, expected {least} or more")
    if not NAME.fullmatch(prefix):
        raise InputError(f"prefix: {prefix!r}, expected {NAMING}")
    names = _names(prefix, num_images)
    images = [Path(out_dir) / f"{name}.mrc" for name in names]
    there = [image for image in images if image.exists()]
    if there and not overwrite:
        raise InputError(f"{there[0]}: is there already; choose another out_dir or prefix, or set overwrite=true")
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    quick = num_images * simulator.size[0] * simulator.size[1] < MOMENT
    for name in track(names, f"simulating {out_dir}", console=console, disable=quick or not console.is_terminal):
        write_simulation(simulator(name, image_generator(seed, name)), out_dir)
    return names


class SimulatedFolders:
    """Data folders of simulated images, made once and used again as long as their parameters stay the same.

    Parameters
    ----------
    simulator : draws the images
    root : the folder they lie in
    num_images : by the folder's name, such as ``{"train": 8, "valid": 3, "infer": 3}``
    seed : 0 or more

    Raises
    ------
    InputError
        A folder that is to be made is there already and was not made here.
    """

    def __init__(self, simulator: Simulator, root: str, num_images: Mapping[str, int], seed: int = 0) -> None:
        for folder in num_images:
            if not NAME.fullmatch(folder):
                raise InputError(f"num_images: {folder!r}, expected {NAMING}")
        self.simulator = simulator
        self.root = Path(root)
        self.num_images = dict(num_images)
        self.seed = seed
        self.record = self.root / "simulation.json"

    def __call__(self) -> None:
        """Make the folders unless they are there."""
        parameters = {"simulator": vars(self.simulator), "num_images": self.num_images, "seed": self.seed}
        parameters = json.loads(json.dumps(parameters))
        images = [self.root / f / f"{name}.mrc" for f, count in self.num_images.items() for name in _names(f, count)]
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / ".simulation.lock"):  # the jobs of a sweep share the folders
            record = self._read_record()
            if record["parameters"] != parameters or not all(image.exists() for image in images):
                self._make(parameters, record["folders"])

    def _make(self, parameters: dict[str, Any], made: list[str]) -> None:
        for folder in self.num_images:
            path = self.root / folder
            if folder not in made and path.exists() and any(path.iterdir()):
                raise InputError(
                    f"{path}: is there already, and {self.record} does not say that it was simulated; "
                    "set root to another folder, or move this one away"
                )
        # On record before it is made: what a killed run leaves behind, the next one may remove.
        self._write_record(parameters=None, folders=sorted({*made, *self.num_images}))
        for folder in made:
            rmtree(self.root / folder, ignore_errors=True)
        for folder, count in self.num_images.items():
            simulate_folder(self.simulator, self.root / folder, num_images=count, seed=self.seed, prefix=folder)
        self._write_record(parameters=parameters, folders=sorted(self.num_images))

    def _read_record(self) -> dict[str, Any]:
        if not self.record.exists():
            return {"parameters": None, "folders": []}
        record: dict[str, Any] = json.loads(self.record.read_text())
        record["folders"] = [
            name for name in record["folders"] if NAME.fullmatch(name)
        ]  # nothing above root is removed
        return record

    def _write_record(self, **record: Any) -> None:
        part = self.record.with_suffix(".part")
        part.write_text(json.dumps(record, indent=2))
        part.replace(self.record)
