"""Charts of several curves."""

from __future__ import annotations

import pytorch_lightning as pl

from grace_lightning.callbacks.board import boards
from grace_lightning.metrics import SCORES
from grace_lightning.module import HEADS

Chart = tuple[str, list[str]]

STAGES = ("train", "valid")


TITLES = {"second": "nodes of two filaments", "third": "nodes of three filaments"}


class Charts(pl.Callback):
    """Puts training and validation into one chart each, under TensorBoard's *Custom Scalars*."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say which curves belong together."""
        for board in boards(trainer):
            board.add_custom_scalars(layout())


def layout() -> dict[str, dict[str, list[str | list[str]]]]:
    """The curves of each chart, by group and title."""
    groups = {
        "overview": {
            "loss": both("loss"),
            "average precision of nodes": both("node_average_precision"),
            "average precision of edges": both("edge_average_precision"),
            "mean average precision of all heads": ["valid/average_precision"],
        },
        **{
            TITLES.get(head, f"{head}s"): {name: both(f"{head}_{name}") for name in ("loss", *SCORES)} for head in HEADS
        },
        "training": {
            "learning rate": ["optimizer/learning_rate"],
            "gradient norm, mean over the steps of an epoch": ["optimizer/gradient_norm"],
            "seconds per epoch": ["time/epoch_seconds"],
            "images per second in training": ["time/images_per_second"],
        },
    }
    # TensorBoard takes tags for regular expressions
    return {
        group: {title.replace("_", " "): ["Multiline", [f"^{tag}$" for tag in tags]] for title, tags in charts.items()}
        for group, charts in groups.items()
    }


def both(name: str) -> list[str]:
    """The tags of a value in training and in validation."""
    return [f"{stage}/{name}" for stage in STAGES]
