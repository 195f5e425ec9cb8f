"""A network from outside the package, as docs/architecture.md adds one, goes the whole way."""

import json
import re
import sys
from pathlib import Path

import pytest
from conftest import NAMES, SCALE
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from grace_lightning.graph import HEADS
from grace_lightning.predictor import Predictor

PAGE = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text()


@pytest.fixture
def trained(run, simulated, monkeypatch):
    """Return the run's folder; the working folder has the network and its configuration as the page shows them."""
    here = Path.cwd()
    for language, file in {"python": "my_package.py", "yaml": "my_conf/model/mine.yaml"}.items():
        content = re.search(rf"```{language}\n# {file}\n(.*?)```", PAGE, re.S)[1]
        (here / file).parent.mkdir(parents=True, exist_ok=True)
        (here / file).write_text(content)
    monkeypatch.syspath_prepend(here)
    status, _, err = run(
        *("train", "--config-dir", "my_conf", "model=mine", "model.hidden=16", "features=statistics"),
        *("data=folders", *(f"data.{part}_image_dir={simulated}" for part in ("train", "valid", "infer"))),
        *(f"features.scale={SCALE}", "augment=none", "trainer.max_epochs=15", "optimizer.lr=0.05"),
        *("trainer.accelerator=cpu", "callbacks.progress=null", "evaluate.pictures=false", "hydra.run.dir=run"),
    )
    assert (status, err) == (0, "")  # no warning about the heads that it lacks
    yield here / "run"
    del sys.modules["my_package"]


@pytest.mark.slow
def test_a_network_from_outside_finds_filaments(trained, run, simulated, data):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["edges"]["average_precision"] > 0.9
    events = EventAccumulator(str(trained)).Reload()
    scored = {tag.split("/")[1].removesuffix("_loss") for tag in events.Tags()["scalars"] if tag.endswith("_loss")}
    assert scored & set(HEADS) == {"node", "edge"}

    # A checkpoint names classes; those of other packages are loaded only if the user trusts the package.
    checkpoint = f"checkpoint={trained}/model/best.ckpt"
    commands = {
        "predict": (checkpoint, f"image_dir={data}", "out_dir=found", "trainer.accelerator=cpu"),
        "evaluate": (checkpoint, "hydra.run.dir=scored", "evaluate.pictures=false", "trainer.accelerator=cpu"),
    }
    for name, arguments in commands.items():
        status, out, err = run(name, *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert re.match(rf"grace-{name}: .*'my_package\.MyNetwork'.* trust=", err)
        status, _, err = run(name, *arguments, "trust=my_package")
        assert (status, err) == (0, "")
    assert all((Path("found") / f"{name}.star").is_file() for name in NAMES)
    assert len(Path("found/filaments.csv").read_text().splitlines()) > 3
    assert json.loads(Path("scored/metrics.json").read_text())["objects"] == metrics["objects"]
    assert Predictor.from_checkpoint(trained, trust="my_package").scale == SCALE
