"""What TensorBoard, wandb and mlflow show of a training by epoch (the first is 0) besides the module's numbers."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from scipy.ndimage import gaussian_filter
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch_geometric.nn import GATv2Conv
from torch_geometric.utils import scatter

from grace_lightning import figures
from grace_lightning.data import GraceDataset, GraphData
from grace_lightning.errors import InputError
from grace_lightning.features import node_patches
from grace_lightning.files import replacing
from grace_lightning.graph import Label, Truth
from grace_lightning.link import Linker
from grace_lightning.metrics import SCORES, eligible, outcomes_of, together
from grace_lightning.module import GraceModule
from grace_lightning.predictor import link_filaments


def boards(trainer: Trainer) -> list[SummaryWriter]:
    """Return the writers of the TensorBoard loggers; in all processes but the first, none."""
    loggers = trainer.loggers if trainer.is_global_zero else []
    return [logger.experiment for logger in loggers if isinstance(logger, TensorBoardLogger)]


def show(logger: Logger, tag: str, jpeg: bytes, epoch: int) -> None:
    """Give a picture to a logger that can take any."""
    picture = Image.open(BytesIO(jpeg))
    if isinstance(logger, TensorBoardLogger):
        # ``SummaryWriter.add_image`` would store it as a PNG, noise and all.
        image = Summary.Image(height=picture.height, width=picture.width, colorspace=3, encoded_image_string=jpeg)
        logger.experiment.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), epoch)
    elif isinstance(logger, WandbLogger):
        logger.log_image(tag, [picture], step=epoch, file_type=["jpg"])
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_image(logger.run_id, picture, key=tag, step=epoch)


def _validation_set(trainer: Any) -> GraceDataset:
    # Not its data loader, which would draw a seed from the generator that training draws from.
    return cast(GraceDataset, trainer.datamodule.dataset("valid"))


@contextmanager
def evaluating(trainer: Trainer, module: LightningModule) -> Iterator[GraceModule]:
    """Have the module as it validates; afterwards each of its parts trains, or does not, as before."""
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            yield cast(GraceModule, module)
    finally:
        for part, before in training.items():
            part.training = before


TITLES = {
    **{"node": "nodes", "edge": "edges", "end": "ends", "same_filament": "edges of one filament"},
    **{"two_filaments": "nodes of two filaments", "three_filaments": "nodes of three filaments"},
}

# The tags in each chart as a regular expression, by group and title.
CHARTS = {
    "overview": {
        "loss": "(train|valid)/loss",
        "average precision of nodes": "(train|valid)/node_average_precision",
        "average precision of edges": "(train|valid)/edge_average_precision",
        "mean average precision of all heads": "valid/average_precision",
    },
    **{
        title: {name.replace("_", " "): f"(train|valid)/{head}_{name}" for name in ("loss", *SCORES)}
        for head, title in TITLES.items()
    },
    "training": {
        "learning rate": "optimizer/learning_rate",
        "gradient norm, mean over the steps of an epoch": "optimizer/gradient_norm",
        "seconds per epoch": "time/epoch_seconds",
        "images per second in training": "time/images_per_second",
    },
}


class Charts(Callback):
    """Puts training and validation into one chart each, under TensorBoard's *Custom Scalars*."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        layout = {
            group: {title: ["Multiline", [f"^{tags}$"]] for title, tags in charts.items()}
            for group, charts in CHARTS.items()
        }
        for board in boards(trainer):
            board.add_custom_scalars(layout)


CURVES, MICROGRAPH, FILAMENTS = 450, 800, 640  # widths of the pictures, pixels


class Figures(Callback):
    """Draws what the network makes of the validation images, for TensorBoard, wandb and mlflow.

    Every few epochs, and after the last: of all images together confusion matrices, precision-recall curves and
    reliability; of the first ``max_images`` the probabilities, the filaments beside the true ones, and attention.
    """

    def __init__(self, link: Linker, every_n_epochs: int = 100, max_images: int = 4) -> None:
        if every_n_epochs < 1 or max_images < 0:
            found = f"callbacks.figures.every_n_epochs: {every_n_epochs}, callbacks.figures.max_images: {max_images}"
            raise InputError(f"{found}, expected 1 or more, and 0 or more; callbacks.figures=null for no pictures")
        self.link, self.every_n_epochs, self.max_images = link, every_n_epochs, max_images
        self._drawn = -1  # the last epoch that was drawn

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._drawn = trainer.current_epoch - 1  # of a run that this one goes on with

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        due = (trainer.current_epoch + 1) // self.every_n_epochs > (self._drawn + 1) // self.every_n_epochs
        if due and not trainer.sanity_checking:
            self._draw(trainer, pl_module, trainer.current_epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._drawn < trainer.current_epoch - 1:  # also if training stopped early
            self._draw(trainer, pl_module, trainer.current_epoch - 1)

    def _draw(self, trainer: Trainer, module: LightningModule, epoch: int) -> None:
        self._drawn = epoch
        kinds = TensorBoardLogger, WandbLogger, MLFlowLogger
        loggers = [logger for logger in trainer.loggers if isinstance(logger, kinds) and trainer.is_global_zero]
        for tag, picture in self._pictures(trainer, module) if loggers else ():
            for logger in loggers:
                show(logger, tag, picture, epoch)

    def _pictures(self, trainer: Trainer, module: LightningModule) -> Iterator[tuple[str, bytes]]:
        dataset, found, attended = _validation_set(trainer), [], []
        with evaluating(trainer, module) as network:
            for k in range(len(dataset)):
                data = dataset.graph(k).to(network.device)
                found.append(network.probabilities(data))
                if k < self.max_images:
                    attended.append(attention(network, data))
        outcomes = together([outcomes_of(dataset.sample(k).graph, said) for k, said in enumerate(found)])
        jpeg, samples = figures.jpeg, [dataset.sample(k) for k in range(len(attended))]
        with ThreadPoolExecutor(1) as pool:  # the solver works while the other pictures are drawn
            linked = pool.map(lambda sample, said: link_filaments(self.link, sample.graph, said), samples, found)
            for head, outcome in outcomes.items():  # one picture for each, as TensorBoard shows them small
                yield f"valid_confusion/{head}", jpeg(figures.confusion_matrices({head: outcome}), CURVES)
                yield f"valid_reliability/{head}", jpeg(figures.reliability_diagram({head: outcome}), CURVES)
            yield "valid_precision_recall/both", jpeg(figures.precision_recall_curves(outcomes), CURVES)
            for sample, said, weights, lines in zip(samples, found, attended, linked, strict=False):
                name, image, graph, truth = sample.name, sample.image, sample.graph, cast(Truth, sample.truth)
                drawn = figures.probabilities(image, graph, said["node"], said["edge"], name, plain=False)
                yield f"valid_graphs/{name}", jpeg(drawn, MICROGRAPH)
                if weights is not None:
                    yield f"valid_attention/{name}", jpeg(figures.attention(image, graph, weights, name), MICROGRAPH)
                drawn = figures.filaments(image, graph, eligible(lines, graph), truth, name, stacked=True)
                yield f"valid_filaments/{name}", jpeg(drawn, FILAMENTS)


def attention(module: GraceModule, data: GraphData) -> Tensor | None:
    """Return the share of each edge, in its greater direction, in what a node is told by each head of the last layer.

    (E, heads) float32 on the CPU, None without attention. The shares of a node, its own state included, add up to one.
    The module must not train.
    """
    layers = [part for part in module.network.modules() if isinstance(part, GATv2Conv)]
    if not layers:
        return None
    seen: list[Tensor] = []
    with layers[-1].register_edge_update_forward_hook(lambda *call: seen.append(call[-1])):
        module(data)
    (weights,), count = seen, data.edge_index.shape[1]
    edge = data.member_edge if data.has_subgraphs else torch.arange(count, device=weights.device)
    edge = torch.cat([edge, edge])  # both ways; the remaining weights are those of the nodes' own states
    largest: Tensor = scatter(weights[: len(edge)], edge, dim_size=count, reduce="max")
    return largest.float().cpu()


LABELS = {Label.TRUE_NEGATIVE: "negative", Label.TRUE_POSITIVE: "positive", Label.UNKNOWN: "unknown"}

PATCH, BLUR = 3.0, 0.1  # side of a node's picture; deviation of its Gaussian against noise: in widths of a filament
SAMPLES = 32  # side of a node's picture in pixels


class Projector(Callback):
    """At the end, gives the states of validation nodes to TensorBoard's projector, with labels and patches.

    The states are those that the node head, if there is one, is given after the last epoch. Of more than ``max_nodes``,
    some at random are shown. ``scale`` is the width of a filament in pixels.
    """

    def __init__(self, scale: float, max_nodes: int = 2000) -> None:
        if max_nodes < 1:
            raise InputError(f"callbacks.projector.max_nodes: {max_nodes}, expected 1 or more")
        self.scale, self.max_nodes = scale, max_nodes

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        has_states = "node" in getattr(pl_module.network, "heads", {})
        if not boards(trainer) or trainer.current_epoch == 0 or not has_states:
            return
        dataset = _validation_set(trainer)
        counts = [dataset.sample(k).graph.num_nodes for k in range(len(dataset))]
        order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(0))  # training draws from another
        chosen = order.argsort() < self.max_nodes
        found, rows, patches, blur = [], [], [], BLUR * self.scale
        with evaluating(trainer, pl_module) as module:
            for k, part in enumerate(torch.split(chosen, counts)):
                node, sample, data = part.nonzero()[:, 0], dataset.sample(k), dataset.graph(k).to(module.device)
                found.append(module.node_states(data).float().cpu()[node])
                image = torch.from_numpy(gaussian_filter(sample.image.numpy(), (0, blur, blur), truncate=3))
                low, high = figures.contrast(image)
                cut = node_patches(image, sample.graph.pos[node], size=PATCH * self.scale, samples=SAMPLES)
                patches.append(((cut - low) / (high - low)).clamp(0, 1))
                probability, label = module.probabilities(data)["node"].tolist(), data.label("node").tolist()
                rows += [[LABELS[label[n]], f"{probability[n]:.3f}", sample.name, str(n)] for n in node.tolist()]
        header, epoch = ["label", "probability", "image", "node"], trainer.current_epoch - 1
        for board in boards(trainer) if rows else ():
            board.add_embedding(torch.cat(found).numpy(), rows, torch.cat(patches), epoch, "nodes", header)


class Animation(Callback):
    """Draws a validation graph as the network sees it after every few epochs; at the end of the fit, writes a GIF.

    If there are too many frames, every other one goes and half as many are drawn from then on, so that the film always
    spans the whole training. A frame is shown for some ``seconds``, the last one longer.
    """

    def __init__(
        self, path: str, every_n_epochs: int | None = None, image: int = 0, max_frames: int = 100, seconds: float = 0.2
    ) -> None:
        every = 1 if every_n_epochs is None else every_n_epochs
        if every < 1 or image < 0 or max_frames < 2 or seconds <= 0:
            found = f"every_n_epochs {every_n_epochs}, image {image}, max_frames {max_frames}, seconds {seconds}"
            raise InputError(f"callbacks.animation: {found}, expected 1 or more or null, 0 or more, 2 or more, above 0")
        self.path, self.image, self.seconds = Path(path), image, seconds
        self.every_n_epochs, self.max_frames = every_n_epochs, max_frames
        self._frames: dict[int, bytes] = {}  # PNG files, as pixels would fill the memory, by epoch

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        last = len(_validation_set(trainer)) - 1
        if self.every_n_epochs is not None and self.image > last:
            raise InputError(f"callbacks.animation.image: {self.image}, expected 0 to {last}, a validation image")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.every_n_epochs is None or trainer.sanity_checking or not trainer.is_global_zero:
            return
        epoch = trainer.current_epoch + 1
        if len(self._frames) >= self.max_frames:
            self.every_n_epochs *= 2
            self._frames = {e: frame for e, frame in self._frames.items() if e % self.every_n_epochs == 0}
        if epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs:
            self._frames[epoch] = self._frame(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        frames = [Image.open(BytesIO(frame)) for frame in self._frames.values()]
        if frames:
            short = round(1000 * self.seconds)
            durations = [short] * (len(frames) - 1) + [max(2000, short)]
            film = {"append_images": frames[1:], "duration": durations, "loop": 0, "optimize": True}
            with replacing(self.path) as part:
                frames[0].save(part, "GIF", save_all=True, **film)
        self._frames = {}

    def _frame(self, trainer: Trainer, module: LightningModule) -> bytes:
        dataset, values = _validation_set(trainer), trainer.callback_metrics
        sample = dataset.sample(self.image)
        with evaluating(trainer, module) as network:
            said = network.probabilities(dataset.as_data(sample).to(network.device))
        node, edge = (f"{head} {values[f'valid/{head}_average_precision']:.3f}" for head in ("node", "edge"))
        title = f"{sample.name}\nepoch {trainer.current_epoch}, average precision: {node}, {edge}"
        figure = figures.probabilities(sample.image, sample.graph, said["node"], said["edge"], title)
        # With one palette for all frames, pixels that stay the same are stored once and do not flicker.
        palette, frame = Image.new("P", (1, 1)), BytesIO()
        palette.putpalette(figures.probability_colours().tobytes())
        picture = Image.fromarray(figures.pixels(figure)).quantize(palette=palette, dither=Image.Dither.NONE)
        picture.save(frame, "PNG")
        return frame.getvalue()
