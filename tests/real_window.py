"""Open, find, correct, save, train two epochs and find again in a real window.

python real_window.py IMAGES PICTURES     # writes screenshots
"""

import sys
import time
from functools import partial
from pathlib import Path

import napari
from qtpy.QtWidgets import QApplication


def main() -> None:
    images, pictures = map(Path, sys.argv[1:3])
    viewer = napari.Viewer(title="grace-lightning")
    viewer.window.resize(1500, 950)
    viewer.open_sample("grace-lightning", "simulated")
    assert viewer.layers[0].data.shape == (1024, 1024)
    viewer.layers.clear()
    # As napari's menu does it: the window is there before anything of this package is imported.
    _, panel = viewer.window.add_plugin_dock_widget("grace-lightning", "grace-lightning")
    from grace_lightning.gui import panel as module

    panel.folder.value = images

    def wait(done, seconds=300):
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, panel.status.value
            QApplication.processEvents()
            time.sleep(0.01)

    def picture(name):
        end = time.monotonic() + 0.5
        wait(lambda: time.monotonic() > end)
        viewer.window.screenshot(str(pictures / f"{name}.png"), canvas_only=False, flash=False)

    wait(lambda: panel.sheet is not None)
    panel.find()
    wait(lambda: not panel.busy)
    panel.table()
    picture("found")
    layer = viewer.layers["filaments"]
    for name in panel.paths:
        if panel.chosen.value != name:
            panel.next()
            wait(lambda: not panel.busy)
        layer.selected_data = set(range(len(layer.data)))
        panel.accept()
        layer.selected_data = {0}
        panel.reject()
        panel.save()
    picture("saved")
    module.Training = partial(module.Training, overrides=["trainer.max_epochs=2"])
    panel.train()
    wait(lambda: panel.checkpoint.value != "general")
    assert panel.status.value.startswith("trained, epoch 2"), panel.status.value
    panel.find()
    wait(lambda: not panel.busy)
    assert "px wide" in panel.status.value, panel.status.value
    picture("trained")
    viewer.close()


if __name__ == "__main__":
    main()
