"""A validation graph over the epochs, as a film."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from PIL import Image
from torch_geometric.data import Batch

from grace_lightning import figures
from grace_lightning.data import GraceDataModule
from grace_lightning.errors import InputError
from grace_lightning.graph import Sample
from grace_lightning.module import GraceModule


class Animation(pl.Callback):
    """Draws a validation graph as the network sees it after every few epochs; at the end of the fit, writes a GIF.

    Frames are kept compressed. Where there are too many, every other one goes and half as many are drawn from then on,
    so that the film always spans the whole training.

    Parameters
    ----------
    path : of the file
    every_n_epochs : from one frame to the next; None draws nothing
    image : which of the validation images, from 0
    max_frames : the most that are kept
    seconds : that a frame is shown; the last one is shown longer
    """

    def __init__(
        self,
        path: str,
        every_n_epochs: int | None = None,
        image: int = 0,
        max_frames: int = 100,
        seconds: float = 0.2,
    ) -> None:
        if every_n_epochs is not None and every_n_epochs < 1:
            raise InputError(f"callbacks.animation.every_n_epochs: {every_n_epochs}, expected 1 or more, or null")
        if max_frames < 2 or image < 0 or seconds <= 0:
            raise InputError(
                f"callbacks.animation: image {image}, max_frames {max_frames}, seconds {seconds}, "
                "expected 0 or more, 2 or more, above 0"
            )
        self.path = Path(path)
        self.every_n_epochs = every_n_epochs
        self.image = image
        self.max_frames = max_frames
        self.seconds = seconds
        self._frames: dict[int, bytes] = {}  # PNG files, by epoch
        self._sample: Sample | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See that there is such an image."""
        images = len(_data(trainer).sources["valid"])
        if self.every_n_epochs is not None and self.image >= images:
            raise InputError(f"callbacks.animation.image: {self.image}, expected 0 to {images - 1}, a validation image")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw a frame, where it is time for one; the temperatures of this epoch are known by now."""
        if self.every_n_epochs is None or trainer.sanity_checking or not trainer.is_global_zero:
            return
        epoch = trainer.current_epoch + 1
        if len(self._frames) >= self.max_frames:
            self.every_n_epochs *= 2
            self._frames = {e: frame for e, frame in self._frames.items() if e % self.every_n_epochs == 0}
        if epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs:
            self._frames[epoch] = self._packed(self._draw(trainer, cast(GraceModule, pl_module)))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the film."""
        if self._frames:
            self._write()
        self._frames, self._sample = {}, None

    def _draw(self, trainer: pl.Trainer, module: GraceModule) -> Image.Image:
        dataset = _data(trainer).dataset("valid")
        if self._sample is None:  # read once, not in every epoch
            self._sample = dataset.sample(self.image)
        batch = Batch.from_data_list([dataset.prepared(self.image)]).to(module.device)
        prediction = module.predict_step(batch, 0)[0]
        values = trainer.callback_metrics
        scores = [f"{head} {float(values[f'valid/{head}_average_precision']):.3f}" for head in ("node", "edge")]
        figure = figures.probabilities(
            self._sample.image,
            self._sample.graph,
            prediction.node_probability,
            prediction.edge_probability,
            title=f"{self._sample.name}\nepoch {trainer.current_epoch}, average precision: {', '.join(scores)}",
        )
        return Image.fromarray(figures.pixels(figure))

    def _packed(self, frame: Image.Image) -> bytes:
        # one palette for all, so that what stays the same is stored once and does not flicker
        palette = Image.new("P", (1, 1))
        palette.putpalette(figures.probability_colours().tobytes())
        stored = io.BytesIO()
        frame.quantize(palette=palette, dither=Image.Dither.NONE).save(stored, "PNG")
        return stored.getvalue()

    def _write(self) -> None:
        frames = (Image.open(io.BytesIO(frame)) for frame in self._frames.values())  # one at a time in memory
        duration = round(1000 * self.seconds)
        durations = [duration] * (len(self._frames) - 1) + [max(2000, duration)]
        part = self.path.with_name(self.path.name + ".part")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        next(frames).save(part, "GIF", save_all=True, append_images=frames, duration=durations, loop=0, optimize=True)
        os.replace(part, self.path)


def _data(trainer: Any) -> GraceDataModule:
    return cast(GraceDataModule, trainer.datamodule)
