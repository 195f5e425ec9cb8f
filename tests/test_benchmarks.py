"""Every benchmark still runs: at its smallest size, which measures nothing."""

import importlib.util
import runpy
import shlex
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"

SHORT = "trainer.max_epochs=1 features.scale=10 evaluate.pictures=false callbacks.projector=null"
FEW = "callbacks.figures=null"
TINY = "features.channels=[8] features.hidden=8 model.hidden=8"
RUNS = {  # arguments, and how a row begins
    "accuracy": (f"--data roots --seeds 0 --folds 2 -- '{SHORT} {FEW}'", FEW),
    "dashboards": (
        f"data=folders data.train_image_dir=roots/train data.valid_image_dir=roots/valid {SHORT} {TINY}",
        "Figures",
    ),
    "epoch": ("--models gcn --images 2 --nodes 20 --size 96 --epochs 1", "gcn"),
    "features": ("--name efficientnet_lite0 --size 96 --detections 5 --micrograph 96 128 --views 96 5", "per_patch"),
    "link": ("--seeds 30 --tables accuracy", "default"),
    "predict": ("--size 192 --detections 20 --images 2", "grace-predict"),
    "prepare": ("--nodes 50 --size 96 --repeats 1", "patches and statistics"),
    "reference": (f"--data roots --models gcn --seeds 0 -- {SHORT} {FEW}", "gradient boosting"),
}


@pytest.fixture
def roots(simulated, tmp_path):
    """Folders of two images to learn from, one to validate, one to score."""
    for part, numbers in {"train": "01", "valid": "2", "infer": "2"}.items():
        (tmp_path / "roots" / part).mkdir(parents=True)
        for file in simulated.glob(f"*[{numbers}].*"):
            (tmp_path / "roots" / part / file.name).symlink_to(file)


def test_all_are_run():
    assert set(RUNS) | {"common"} == {path.stem for path in FOLDER.glob("*.py")}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_prints_its_table(name, roots, tmp_path, monkeypatch, capsys):
    if name == "features" and not importlib.util.find_spec("timm"):
        pytest.skip("needs the extra backbones")
    arguments, row = RUNS[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *shlex.split(arguments)])
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name=name)["main"]()
    assert f"│ {row}" in capsys.readouterr().out
