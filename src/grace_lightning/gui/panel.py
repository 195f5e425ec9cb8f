"""The widget of the plugin: find filaments, correct them, teach a network."""

import colorsys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import napari
import numpy as np
import pandas as pd
import torch
from magicgui.widgets import ComboBox, Container, FileEdit, FloatSpinBox, Label, LineEdit, PushButton
from napari.layers import Shapes
from napari.qt.threading import create_worker
from napari.utils.notifications import show_info, show_warning
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication
from scipy import ndimage
from torch import Tensor

from grace_lightning import io
from grace_lightning.checkpoint import GENERAL
from grace_lightning.errors import InputError
from grace_lightning.files import short
from grace_lightning.graph import Floats
from grace_lightning.gui.files import contrast, rows_first
from grace_lightning.gui.traces import (
    History,
    Kept,
    Opened,
    Search,
    Trace,
    as_filament,
    cut,
    find,
    joined,
    most_teaching,
    nearest,
    reopened,
    save,
    snapped,
)
from grace_lightning.gui.training import Training
from grace_lightning.measure import filaments_summary

RIDGES, FILE, AUTO = "along ridges", "file beside the image", "estimated"
POLL = 1000
"""Milliseconds from one look at a training to the next."""

ACTIONS = {
    "Draw": ("D", "draw a filament by clicking along it, double-click at its end; it is moved onto the ridge"),
    "Cut": ("C", "cut the filament under the cursor there"),
    "Join": ("J", "join two selected filaments"),
    "Accept": ("A", "the selected filaments, or that under the cursor, are right"),
    "Reject": ("X", "they are none"),
    "Ignore": ("G", "draw around a region of which nothing is to be learned"),
    "Mask": ("M", "paint what is on filaments, instead of accepting lines"),
    "Undo": ("Control-Z", "take the last change back"),
}
"""Buttons for correcting, their keys, and what they do."""


@dataclass
class Sheet:
    """A micrograph of the folder while the window is open."""

    path: Path
    image: Tensor  # (1, H, W) float32
    opened: Opened | None = None  # None: not yet looked at
    history: History = field(default_factory=History)
    ignored: list[Floats] = field(default_factory=list)  # polygons (P, 2), pixels, columns x and y
    mask: Any = None  # (H, W), if one was painted
    saved: list[Trace] | None = None  # the traces that were saved last

    @property
    def unsaved(self) -> bool:
        """Whether something was decided since."""
        decided = self.mask is not None or any(trace.status != "found" for trace in self.history.now)
        return decided and self.saved is not self.history.now


class Panel(Container):
    """See filaments, put right what is wrong, and let the network learn from it."""

    def __init__(self, napari_viewer: "napari.viewer.Viewer", image_dir: Path | None = None) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.sheets: dict[Path, Sheet] = {}
        self.paths: dict[str, Path] = {}
        self.sheet: Sheet | None = None
        self.training: Training | None = None
        self._worker: Any = None
        self._own = False  # whether a change of the layer is by this widget
        self.folder = FileEdit(mode="d", label="micrographs", value=Path())
        self.chosen = ComboBox(label="micrograph", choices=lambda _: list(self.paths))
        self.checkpoint = LineEdit(label="checkpoint", value=GENERAL)
        self.filament_width = FloatSpinBox(label="width, px", value=0, min=0, max=1000, tooltip="0: estimated")
        self.polarity = ComboBox(label="filaments are", choices=[AUTO, "dark", "bright"])
        self.detections = ComboBox(label="detections", choices=[RIDGES, FILE])
        self.low_pass = FloatSpinBox(label="low-pass, A", value=0, min=0, max=10_000, tooltip="0: none")
        self.annotations = LineEdit(label="annotations", value="annotated", tooltip="a folder, beside the micrographs")
        self.status = Label(value="choose a folder of micrographs")
        self.buttons = {name: PushButton(text=f"{name} ({key})", tooltip=says) for name, (key, says) in ACTIONS.items()}
        further = {"Find": self.find, "Stop": self.stop, "Table": self.table}
        further |= {"Save": self.save, "Next": self.next, "Train": self.train}
        self.buttons |= {name: PushButton(text=name) for name in further}
        self._do = {name: getattr(self, name.lower()) for name in ACTIONS} | further
        for name, button in self.buttons.items():
            button.changed.connect(partial(self._attempt, self._do[name]))

        def row(*names: str) -> Container:
            return Container(widgets=[self.buttons[name] for name in names], layout="horizontal", labels=False)

        self.extend(
            [
                *(self.folder, self.chosen, self.low_pass),
                *(self.filament_width, self.polarity, self.detections, self.checkpoint, row("Find", "Stop", "Table")),
                *(row("Draw", "Cut", "Join"), row("Accept", "Reject", "Undo"), row("Ignore", "Mask")),
                *(self.annotations, row("Save", "Next", "Train"), self.status),
            ]
        )
        self.folder.changed.connect(partial(self._attempt, self.list_folder))
        self.chosen.changed.connect(partial(self._attempt, self.open))
        self.low_pass.changed.connect(partial(self._attempt, self.filter))
        self.viewer.mouse_move_callbacks.append(self._hover)
        QApplication.instance().aboutToQuit.connect(self.leave)
        self._timer = QTimer()
        self._timer.timeout.connect(self._look_at_training)
        if image_dir:
            self.folder.value = image_dir

    # What is open

    def list_folder(self) -> None:
        """List the micrographs of the folder, and open the first one."""
        self.paths = {io.stem(path): path for path in io.leave_out_masks(io.find_images(self.image_dir))}
        self.chosen.reset_choices()
        self.open()

    def open(self) -> None:
        """Show the micrograph that is chosen, with what was found or drawn there before."""
        name = self.chosen.value
        if name is None or (self.sheet is not None and self.sheet.path == self.paths[name]):
            return
        path = self.paths[name]
        self._abandon()
        if path in self.sheets:
            self._show(self.sheets[path])
        else:
            self._work(_read, path, self.annotations_dir, then=self._show, doing=f"opening {name}")

    def _show(self, sheet: Sheet) -> None:
        before = self.sheet.history.now if self.sheet is not None and "filaments" in self.viewer.layers else []
        self._keep_painted()
        self.sheet = self.sheets[sheet.path] = sheet
        picture = sheet.image[0].numpy()
        self._make_layers(picture)
        self._redraw(picture)
        self.viewer.layers["micrograph"].metadata["path"] = str(sheet.path)
        self.viewer.reset_view()
        if self.low_pass.value:
            self.filter()
        self._show_found(sheet, before)
        self.status.value = f"{sheet.path.name}, {picture.shape[1]} x {picture.shape[0]} pixels"

    def _keep_painted(self) -> None:
        """Take over the regions and the mask of the micrograph that is shown."""
        sheet, layers = self.sheet, self.viewer.layers
        if sheet is not None and "ignore" in layers:
            sheet.ignored = [rows_first(polygon) for polygon in layers["ignore"].data]
        if sheet is not None and "mask" in layers:
            sheet.mask = np.asarray(layers["mask"].data, np.int32) if layers["mask"].data.any() else None

    def _make_layers(self, picture: Any) -> None:
        """Add the layers that are not there; others are given other data, since to remove one takes a second."""
        viewer, nothing = self.viewer, np.zeros((0, 2))
        text = {"string": "{px:g} px wide", "color": "yellow", "size": 14, "anchor": "upper_left"}
        has: dict[str, Any] = {"features": {"probability": np.zeros(0)}, "visible": False}
        makers: dict[str, Callable[..., Any]] = {
            "micrograph": partial(viewer.add_image, picture, colormap="gray"),
            "edges": partial(viewer.add_vectors, np.zeros((0, 2, 2)), vector_style="line", **has),
            "detections": partial(viewer.add_points, nothing, border_width=0, **has),
            "ignore": partial(viewer.add_shapes, ndim=2, face_color="#80808060", edge_color="gray"),
            "filaments": partial(viewer.add_shapes, ndim=2, face_color="transparent"),
            "width": partial(viewer.add_shapes, ndim=2, edge_color="yellow", features={"px": np.zeros(0)}, text=text),
        }
        for name, make in makers.items():
            if name not in viewer.layers:
                layer = make(name=name)
                if name == "filaments":
                    layer.events.data.connect(self._edited)
                    for action, (key, _) in ACTIONS.items():
                        layer.bind_key(key, lambda _, do=self._do[action]: self._attempt(do), overwrite=True)

    def filter(self) -> None:
        """Show the micrograph without what is finer than the low-pass."""
        if self.sheet is None:
            return
        angstrom = io.pixel_size(self.sheet.path) or 1.0
        self._work(
            _low_passed, self.sheet.image[0].numpy(), self.low_pass.value / angstrom, then=self._redraw, doing="filter"
        )

    def _redraw(self, picture: Any) -> None:
        layer = self.viewer.layers["micrograph"]
        layer.data, layer.contrast_limits = picture, contrast(picture)

    @property
    def image_dir(self) -> Path:
        """The folder of micrographs."""
        return Path(str(self.folder.value))

    @property
    def annotations_dir(self) -> Path:
        """The folder that annotations are saved in."""
        return self.image_dir / str(self.annotations.value)

    # Find

    def find(self) -> None:
        """Find the filaments of this micrograph; what was decided before can be got back by undo."""
        sheet = self._sheet()
        name, given = io.stem(sheet.path), self.detections.value == FILE
        files = io.find_detections(sheet.path.parent, [name]).files if given else {}
        if given and name not in files:
            raise InputError(f"{sheet.path.parent}: no detections of {name} ({', '.join(io.DETECTION_SUFFIXES)})")
        self._work(find, sheet.path, self._search(files.get(name)), then=self._found, doing="finding")

    def _search(self, detections: Path | None = None) -> Search:
        polarity = None if self.polarity.value == AUTO else self.polarity.value
        return Search(self.checkpoint.value, self.filament_width.value or None, polarity, detections)

    def _found(self, opened: Opened) -> None:
        sheet = self._sheet()
        before, sheet.opened = sheet.history.now, opened
        kept = [trace for trace in sheet.history.now if trace.status != "found"]
        sheet.history.change([*kept, *opened.traces(beside=kept)])
        self._show_found(sheet, before)
        looks = f"{opened.scale:g} px wide" + (f" and {opened.polarity}" if opened.polarity else "")
        self.status.value = f"{len(sheet.history.now)} filaments, {looks}"

    def stop(self) -> None:
        """Stop what is done now, at its next step; or the training."""
        if self.busy:
            self._abandon()
            self.status.value = "stopped"
        elif self.training is not None:
            self.training.stop()

    def table(self) -> None:
        """Show the lengths, probabilities and curvatures of the filaments."""
        self.viewer.window.add_plugin_dock_widget("napari", "Features table widget")

    def _show_found(self, sheet: Sheet, before: Sequence[Trace]) -> None:
        """Show what was found in a micrograph instead of the traces ``before``."""
        layers, opened = self.viewer.layers, sheet.opened
        pos, edges, width = np.zeros((0, 2)), np.zeros((2, 0), np.int64), 10.0
        node, edge = np.zeros(0), np.zeros(0)
        if opened is not None:
            found, width = opened.findings, opened.scale
            pos, edges = rows_first(found.graph.pos.numpy()), found.graph.edges.numpy()
            node, edge = found.node_probability.numpy(), found.edge_probability.numpy()
        start, end = pos[edges]
        for name, data, values in (
            ("edges", np.stack([start, end - start], axis=1), edge),
            ("detections", pos, node),
        ):
            layers[name].data = data
            layers[name].features = {"probability": values}
        if len(pos) and np.isfinite(node).all():
            layers["edges"].edge_color = layers["detections"].face_color = "probability"
        layers["edges"].edge_width, layers["detections"].size = width / 8, width / 2
        layers["ignore"].data = list(map(rows_first, sheet.ignored))
        if sheet.mask is not None:
            self._mask_layer()
        if "mask" in layers:
            layers["mask"].data = np.zeros(sheet.image.shape[1:], np.int32) if sheet.mask is None else sheet.mask
        layer = layers["filaments"]
        layer.metadata.update(size=sheet.image.shape[1:], scale=width)
        sheet.history.now = self._sync(before, sheet.history.now)
        self._show_width(opened)
        layers.selection.active = layer

    def _show_width(self, opened: Opened | None) -> None:
        """Draw a bar as long as a filament is wide across the longest one."""
        layer = self.viewer.layers["width"]
        layer.remove(list(range(len(layer.data))))
        paths = [f.path for f in opened.findings.filaments if len(f.path) > 1] if opened else []
        if opened is None or not paths:
            return
        path = max(paths, key=len)
        k = len(path) // 2
        along = path[k] - path[k - 1]
        across = np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1e-9) * opened.scale / 2
        layer.feature_defaults = {"px": opened.scale}
        layer.add_lines([rows_first(np.stack([path[k] - across, path[k] + across]))], edge_width=opened.scale / 6)

    # Correct

    def draw(self) -> None:
        """Begin to draw filaments."""
        self._opened()
        self._filaments().mode = "add_polyline"

    def cut(self) -> None:
        """Cut the filament under the cursor."""
        traces, (row,) = self._history().now, self._under_cursor()
        self._change([*traces[:row], *traces[row + 1 :], *cut(traces[row], self._cursor())])

    def join(self) -> None:
        """Join the two filaments that are selected."""
        chosen, traces = sorted(self._filaments().selected_data), self._history().now
        if len(chosen) != 2:
            raise InputError(f"select two filaments to join, with shift and a click; {len(chosen)} are selected")
        rest = [trace for row, trace in enumerate(traces) if row not in chosen]
        self._change([*rest, joined(*(traces[row] for row in chosen))])

    def accept(self) -> None:
        """Say that the selected filaments, or that under the cursor, are right."""
        self._decide("accepted")

    def reject(self) -> None:
        """Say that they are none."""
        self._decide("rejected")

    def _decide(self, status: Any) -> None:
        rows = sorted(self._filaments().selected_data) or self._under_cursor()
        traces = self._history().now
        decided = [traces[row]._replace(status=status) for row in rows]
        self._change([*(trace for row, trace in enumerate(traces) if row not in rows), *decided])

    def ignore(self) -> None:
        """Begin to draw around what is to be ignored."""
        layer = self._layer("ignore")
        self.viewer.layers.selection.active = layer
        layer.mode = "add_polygon_lasso"

    def mask(self) -> None:
        """Begin to paint a mask."""
        layer = self._mask_layer()
        self.viewer.layers.selection.active = layer
        layer.mode = "paint"

    def _mask_layer(self) -> Any:
        if "mask" not in self.viewer.layers:
            self.viewer.add_labels(np.zeros(self._sheet().image.shape[1:], np.int32), name="mask")
        return self.viewer.layers["mask"]

    def undo(self) -> None:
        """Take the last change back."""
        history, before = self._history(), self._history().now
        if not history.undo():
            raise InputError("nothing to undo")
        history.now = self._sync(before, history.now)

    def _change(self, traces: list[Trace]) -> None:
        history, before = self._history(), self._history().now
        history.change(traces)
        history.now = self._sync(before, traces)

    def _sync(self, before: Sequence[Trace], after: Sequence[Trace]) -> list[Trace]:
        """Make the layer show the traces of ``after`` instead of ``before``; return them in its order."""
        layer, old, new = self._filaments(), {id(trace) for trace in before}, {id(trace) for trace in after}
        gone = [row for row, trace in enumerate(before) if id(trace) not in new]
        come = [trace for trace in after if id(trace) not in old]
        self._own = True
        try:
            layer.selected_data = set()
            layer.remove(gone)
            if come:
                shown = pd.concat([layer.features, self._features(come)], ignore_index=True)
                wide = layer.metadata["scale"] / 3
                layer.add_paths(
                    [rows_first(trace.line) for trace in come],
                    edge_width=[wide * (1.5 if trace.status == "accepted" else 1) for trace in come],
                    edge_color=[_colour(trace) for trace in come],
                )
                layer.features = shown
        finally:
            self._own = False
        return [*(trace for trace in before if id(trace) in new), *come]

    def _features(self, traces: Sequence[Trace]) -> pd.DataFrame:
        size = io.pixel_size(self._sheet().path)
        table = filaments_summary("", [as_filament(trace) for trace in traces], self._opened().scale, pixel_size=size)
        table = table.rename(columns={"mean_probability": "probability", "mean_curvature": "curvature"})
        table["status"] = [trace.status for trace in traces]
        return table[["status", "length", *(["length_angstrom"] if size else []), "probability", "curvature"]]

    def _edited(self, event: Any) -> None:
        """Take over what was drawn, moved or deleted by napari's own tools, once it is done with it."""
        if not self._own and event.action in ("added", "removed", "changed"):
            rows = [int(row) for row in event.data_indices]
            QTimer.singleShot(0, partial(self._attempt, partial(self._take_over, str(event.action), rows)))

    def _take_over(self, action: str, rows: Sequence[int]) -> None:
        layer, traces, sheet = self._filaments(), self._history().now, self._sheet()
        lines = [rows_first(np.asarray(line, np.float64)) for line in layer.data]
        if action == "removed" and len(lines) < len(traces):
            gone = {row % len(traces) for row in rows}
            self._history().change([trace for row, trace in enumerate(traces) if row not in gone])
        elif action == "added" and len(lines) == len(traces) + 1:
            self._own = True
            layer.remove([len(traces)])
            self._own = False
            if len(lines[-1]) > 1 and np.ptp(lines[-1], axis=0).any() and sheet.opened is not None:
                self._change([*traces, Trace(snapped(sheet.image, lines[-1], sheet.opened.scale))])
        elif action == "changed" and len(lines) == len(traces):
            moved = {row % len(traces) for row in rows}
            self._change([Trace(lines[row]) if row in moved else trace for row, trace in enumerate(traces)])

    # Teach

    def save(self) -> None:
        """Write what was decided, and the filaments for other programs."""
        self._opened()
        self._keep_painted()
        self._save(self._sheet())

    def _save(self, sheet: Sheet) -> None:
        if sheet.opened is not None:
            mask = None if sheet.mask is None else torch.from_numpy(sheet.mask)
            kept = Kept(sheet.history.now, sheet.ignored, mask)
            self.status.value = save(sheet.opened, kept, sheet.path.parent / str(self.annotations.value))
            sheet.saved = sheet.history.now

    def leave(self) -> None:
        """Save what was decided and not yet saved, before the window goes; a training goes on."""
        self._keep_painted()
        for sheet in self.sheets.values():
            if sheet.unsaved:
                self._attempt(partial(self._save, sheet))
        if self.training is not None and self.training.running:
            print(f"the training goes on; {short(self.training.folder)}/log.txt tells how it ends")

    def next(self) -> None:
        """Open the micrograph whose annotation would teach most."""
        left = [path for name, path in self.paths.items() if not (self.annotations_dir / f"{name}.grace").exists()]
        if not left:
            raise InputError("every micrograph of the folder is annotated")
        known = {sheet.path: sheet.opened for sheet in self.sheets.values() if sheet.opened}
        self._work(most_teaching, left, self._search(), known, then=self._go_to, doing="looking for what teaches most")

    def _go_to(self, opened: Opened) -> None:
        name = io.stem(opened.path)
        sheet = self.sheets.get(opened.path) or Sheet(opened.path, opened.image)
        if sheet.opened is None:
            sheet.opened = opened
            sheet.history.now = opened.traces()
        self._show(sheet)
        self.chosen.value = name

    def train(self) -> None:
        """Train a network on what is annotated so far, in a process of its own."""
        if self.training is not None and self.training.running:
            raise InputError("a training is running; stop it first")
        if not any(self.annotations_dir.glob("*.grace")):
            raise InputError(f"{self.annotations_dir}: nothing is annotated yet; save a micrograph first")
        init = "auto" if self.checkpoint.value == GENERAL else self.checkpoint.value
        self.training = Training(self.image_dir, self.annotations_dir, init, self._opened().scale)
        self._timer.start(POLL)
        self.status.value = "training begins"
        show_info(f"{short(self.training.folder)}: the training goes on if you close the window")

    def _look_at_training(self) -> None:
        training = self.training
        if training is None:
            return
        self.status.value = training.told()
        if not training.running:
            self._timer.stop()
            if training.best is not None:
                self.checkpoint.value = str(training.best)
                show_info(f"{short(training.best)} is the checkpoint now; Find uses it")

    # What all of these need

    def _work(self, function: Callable[..., Any], *arguments: Any, then: Callable[[Any], None], doing: str) -> None:
        """Do something in a thread, step by step, so that it can be stopped."""
        self._abandon()
        self.status.value = doing

        def told(step: str) -> None:
            if self._worker is worker:
                self.status.value = step

        def returned(result: Any) -> None:
            if self._worker is worker:
                self._worker = None
                self._attempt(partial(then, result))

        def errored(error: Exception) -> None:
            if self._worker is worker:
                self._worker = None
                self._warn(error)

        self._worker = worker = create_worker(function, *arguments, _start_thread=False, _ignore_errors=True)
        for signal, answer in ((worker.yielded, told), (worker.returned, returned), (worker.errored, errored)):
            signal.connect(answer)
        worker.start()

    @property
    def busy(self) -> bool:
        """Whether something is done in a thread."""
        return self._worker is not None

    def _abandon(self) -> None:
        if self._worker is not None:
            self._worker.quit()
            self._worker = None

    def _warn(self, error: Exception) -> None:
        self.status.value = str(error)
        show_warning(str(error))

    def _attempt(self, do: Callable[[], None], *_: Any) -> None:
        """Do something; what is wrong with the input is said in the window."""
        try:
            do()
        except (InputError, OSError) as error:
            self._warn(error)

    def _sheet(self) -> Sheet:
        if self.sheet is None:
            raise InputError("no micrograph is open; choose a folder of micrographs")
        return self.sheet

    def _opened(self) -> Opened:
        opened = self._sheet().opened
        if opened is None:
            raise InputError("press Find first: the width of filaments and the detections come with it")
        return opened

    def _layer(self, name: str) -> Shapes:
        if name not in self.viewer.layers:
            raise InputError(f"the layer {name} was removed; choose another micrograph, and then this one again")
        return self.viewer.layers[name]

    def _filaments(self) -> Shapes:
        return self._layer("filaments")

    def _history(self) -> History:
        self._filaments()
        return self._sheet().history

    def _cursor(self) -> Floats:
        return rows_first(np.asarray(self.viewer.cursor.position[-2:], np.float64))

    def _under_cursor(self) -> list[int]:
        row, away = nearest(self._history().now, self._cursor())
        if away > 2 * self._filaments().metadata["scale"]:
            raise InputError("no filament is under the cursor, and none is selected")
        return [row]

    def _hover(self, viewer: Any, event: Any) -> None:
        """Tell of the filament under the cursor."""
        if self.sheet is None or "filaments" not in viewer.layers:
            return
        layer = viewer.layers["filaments"]
        row, _ = layer.get_value(event.position, world=True) or (None, None)
        if row is not None and row < len(layer.features):
            values = layer.features.iloc[row].items()
            told = (f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in values)
            viewer.status = f"filament {row + 1}: {', '.join(told)}"


def _colour(trace: Trace) -> tuple[float, ...]:
    """Return the colour of a trace: one of its own, which it keeps, or grey if it is rejected."""
    if trace.status == "rejected":
        return (0.5, 0.5, 0.5, 0.5)
    return (*colorsys.hsv_to_rgb(float(trace.line[0] @ [0.618, 0.382]) % 1, 0.9, 1.0), 1.0)


def _read(path: Path, annotations_dir: Path) -> Generator[str, None, Sheet]:
    """Read a micrograph, and what was saved of it."""
    yield f"opening {path.name}"
    sheet = Sheet(path, io.read_image(path))
    again = reopened(path, sheet.image, annotations_dir)
    if again is not None:
        sheet.opened, kept = again
        sheet.history.now = sheet.saved = list(kept.traces)
        sheet.ignored, sheet.mask = list(kept.ignored), None if kept.mask is None else kept.mask.numpy()
    return sheet


def _low_passed(picture: Any, finest: float) -> Generator[str, None, Any]:
    """Smooth a picture so that a wave of ``finest`` pixels is halved."""
    yield "filtering"
    sigma = finest * (np.log(2) / 2) ** 0.5 / np.pi
    return ndimage.gaussian_filter(picture, sigma) if sigma > 0 else picture


def open_folder(image_dir: Path | None) -> None:
    """Open a window on a folder of micrographs, and return when it is closed."""
    viewer = napari.Viewer(title="grace-lightning")
    viewer.window.add_dock_widget(Panel(viewer, image_dir), name="grace-lightning")
    napari.run()
