"""Scenes of many kinds: filaments as different microscopes show them, among much that only looks like filaments.

Every parameter is drawn anew for every scene, so that a network that has seen enough of them finds filaments in images
that nobody has annotated. Lengths are in filament widths where nothing else is said.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.random import Generator

from grace_lightning.graph import Label, Sample, from_detections
from grace_lightning.ridges import LEAST_SCALE, RidgeDetector
from grace_lightning.scenes.bodies import SHORTEST, Body, distance, lay_bodies, members
from grace_lightning.scenes.canvas import Canvas
from grace_lightning.scenes.kinds import CONTRASTS, KINDS, Kind, log_uniform, uniform
from grace_lightning.simulate import STEP, Image, Simulation, expect_fields, in_image
from grace_lightning.truth import label_by_mask, with_truth

__all__ = ["CONTRASTS", "KINDS", "SHORTEST", "AnyScene"]


@dataclass(frozen=True, kw_only=True)
class AnyScene:
    """Draws scenes of many kinds, with detections and the truth; lengths are in pixels of the image."""

    size: Sequence[int] = (512, 512)  # rows and columns
    kinds: Sequence[str] = tuple(KINDS)  # one named twice is drawn twice as often
    scale: Sequence[float] = (5.0, 16.0)  # least and largest width of a filament; those of a scene differ by 30 %
    contrast: Sequence[float] = (3.5, 80.0)  # least and largest, as CONTRASTS
    polarity: Literal["dark", "bright"] | None = None  # None: as the kind has it
    p_picker: float = 0.3  # probability of detections as of a picker, with gaps, jitter and false ones; else of ridges
    threshold: Sequence[float] = (2.5, 5.0)  # of the ridges, least and largest
    spacing: Sequence[float] = (0.7, 1.5)  # between detections, filament widths, least and largest

    def __post_init__(self) -> None:
        expect = partial(expect_fields, self)
        expect("size", "rows and columns, each 64 pixels or more", lambda v: len(v) == 2 and min(v) >= 64)
        expect("kinds", f"one or more of {', '.join(KINDS)}", lambda v: len(v) > 0 and set(v) <= set(KINDS))
        expect("scale contrast threshold spacing", "two numbers above 0, the smaller first", _is_range)
        expect(
            "scale", "2 pixels to a sixteenth of the shorter side", lambda v: 2 <= v[0] <= v[1] <= min(self.size) / 16
        )
        expect("p_picker", "a probability from 0 to 1", lambda v: 0 <= v <= 1)

    def __call__(self, name: str, generator: torch.Generator) -> Simulation:
        """Draw one scene, the same to the bit for the same state of ``generator``."""
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        kind_name = str(rng.choice(self.kinds))
        kind = KINDS[kind_name]
        scale = log_uniform(self.scale, rng)
        polarity = self.polarity or str(rng.choice(kind.polarity))
        size = self.size[0], self.size[1]
        bodies = list(lay_bodies(size, scale, kind, rng))
        scene = Canvas(size, scale, kind, rng)
        annotation = scene.draw_filaments(bodies)
        contrast = self._contrast(kind, rng)
        image = scene.image(contrast)
        image = image if polarity == "bright" else -image
        image = np.float32(10.0 ** rng.uniform(-1, 3)) * (image + np.float32(rng.uniform(-3, 3)))
        pos = self._detections(image, bodies, scale, polarity, rng)
        graph = label_by_mask(from_detections(pos)[0], torch.from_numpy(annotation))
        instances = members(bodies, graph.pos.numpy(), (graph.label("node") == Label.TRUE_POSITIVE).numpy())
        metadata = {"image_filename": name, "scale": scale, "polarity": polarity}
        metadata |= {"kind": kind_name, "contrast": contrast}
        sample = Sample(name, torch.from_numpy(image)[None], graph, torch.from_numpy(annotation), metadata=metadata)
        return Simulation(with_truth(sample, instances), instances, [body.line for body in bodies])

    def _contrast(self, kind: Kind, rng: Generator) -> float:
        least, most = self.contrast
        return log_uniform((least, max(least, min(most, kind.clearest))), rng)

    def _detections(
        self, image: Image, bodies: Sequence[Body], scale: float, polarity: str, rng: Generator
    ) -> torch.Tensor:
        """Return detections (N, 2) float32 in random order: of ridges, or as a picker gives them."""
        width = scale * rng.uniform(0.72, 1.2)
        spacing = max(2.0, scale * uniform(self.spacing, rng))
        detector = RidgeDetector(max(LEAST_SCALE, width), spacing, uniform(self.threshold, rng), polarity)  # type: ignore[arg-type]
        found = detector(torch.from_numpy(image)[None])[["x", "y"]].to_numpy()
        if rng.random() < self.p_picker:
            every = max(1, round(spacing / STEP))
            picked = [body.line[rng.integers(every) :: every] for body in bodies]
            true = np.concatenate([np.zeros((0, 2)), *picked])
            true = true[rng.random(len(true)) >= rng.uniform(0, 0.3)]
            on = distance(bodies, found) < 0.7 * scale
            false = found[~on][: rng.integers(1 + (~on).sum())]
            anywhere = rng.random((int(rng.uniform(0, 0.1) * image.size / scale**2), 2)) * image.shape[::-1]
            found = np.concatenate([true + rng.uniform(0, 0.15) * scale * rng.normal(size=true.shape), false, anywhere])
        found = found[in_image(found.astype(np.float32), image.shape)]
        return torch.from_numpy(rng.permutation(found).astype(np.float32))


def _is_range(value: Any) -> bool:
    return len(value) == 2 and 0 < value[0] <= value[1]
