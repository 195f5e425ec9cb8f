"""What several test files share: small micrographs, one trained network, commands as typed."""

import shutil
import sys
import warnings
from pathlib import Path

import hydra
import pytest
from hypothesis import settings

from grace_lightning import Predictor, cli
from grace_lightning.config import config_dir
from grace_lightning.errors import InputWarning
from grace_lightning.simulate import Simulator, simulate_folder

settings.register_profile("shared cores", deadline=None)  # work of others is no reason to fail
settings.load_profile("shared cores")

SCALE = 10.0
NAMES = ["micrograph_0000", "micrograph_0001", "micrograph_0002"]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real data next to the repository; tests that ask for it are marked ``shared``."""
    folder = Path(__file__).parents[1].parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("needs ../shared/data")
    return folder


@pytest.fixture(scope="session")
def simulated(tmp_path_factory) -> Path:
    """Three annotated micrographs of 192 x 192 pixels, 4 Angstrom each."""
    folder = tmp_path_factory.mktemp("simulated")
    simulator = Simulator(
        size=[192, 192],
        num_filaments=2,
        shapes=["line", "curve"],
        scale=SCALE,
        period=20,
        spacing=8,
        snr=0.5,
        false_detections=12,
        num_blobs=0,
    )
    simulate_folder(simulator, folder, num_images=3, seed=1)
    return folder


@pytest.fixture(scope="session")
def checkpoint(simulated, tmp_path_factory) -> Path:
    """The best checkpoint of a small network, trained long enough to find filaments."""
    from grace_lightning.tasks.train import train

    folder = tmp_path_factory.mktemp("run")
    keys = [
        *("data=folders", *(f"data.{part}_image_dir={simulated}" for part in ("train", "valid"))),
        *(f"features.scale={SCALE}", "features.channels=[8]", "features.hidden=8", "model.hidden=8", "model.rounds=1"),
        *("callbacks.progress=null", "trainer.accelerator=cpu", "logger=none"),
        *("trainer.max_epochs=25", "optimizer.lr=0.01", "augment=none", f"run_dir={folder}"),
    ]
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        train(hydra.compose("train", keys))
    return folder / "model" / "best.ckpt"


@pytest.fixture(scope="session")
def predictor(checkpoint) -> Predictor:
    return Predictor.from_checkpoint(checkpoint)


@pytest.fixture
def data(simulated, tmp_path) -> Path:
    """A copy of the simulated images and detections, without annotation, to spoil."""
    folder = tmp_path / "data"
    folder.mkdir()
    for path in [*simulated.glob("*.mrc"), *simulated.glob("*.h5")]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Return a function that runs a command in an empty folder and returns exit status, stdout and stderr."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    # Put back after the test what a command changes in its process.
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def command(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"grace-{name}", *map(str, arguments)])
        capfd.readouterr()
        status = 0
        with warnings.catch_warnings():
            warnings.simplefilter("always", InputWarning)
            try:
                getattr(cli, name)()
            except SystemExit as stop:
                status = stop.code
        return status, *capfd.readouterr()

    return command
