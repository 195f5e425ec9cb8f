"""Every benchmark still runs, with all its tables and options: at its smallest size, which measures nothing."""

import importlib.util
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"

SHORT = "trainer.max_epochs=1 features.scale=10 evaluate.pictures=false callbacks.projector=null"
FEW = "callbacks.figures=null"
TINY = "features.channels=[8] features.hidden=8 model.hidden=8"
FOLDERS = "data=folders data.train_image_dir=roots/train data.valid_image_dir=roots/valid"
RUNS = {  # by benchmark: arguments, and patterns that rows begin with
    "accuracy": [
        (f"--data roots --seeds 0 --folds 2 -- '{SHORT} {FEW}'", [FEW]),
        (f"--data roots --seeds 0 --split valid -- '{SHORT} {FEW} {TINY}'", [FEW]),
    ],
    "dashboards": [
        (
            f"--without {FOLDERS} {SHORT} {TINY}",
            [r"Figures +│ (?!0\.00)", "run with dashboards", "run without dashboards", "start"],
        )
    ],
    "epoch": [("--models gcn gat --augment none default --images 2 --nodes 20 --size 96 --epochs 1", ["gcn", "gat"])],
    "estimate": [("--folders 1 --images 1 --size 128 --contrast clear --seed 1", ["any", "default", "all"])],
    "features": [
        (
            "--name efficientnet_lite0 --size 96 --detections 5 --micrograph 96 128 --views 96 5",
            ["bare network", "per_patch", "dense", "dense, 128 x 96", "resnet18", "efficientnet_lite0"],
        )
    ],
    "fuzz": [
        ("--count 6 --seed 1 --kinds csv 'h5 table' --keep kept", ["csv", "h5 table", "all"]),
        ("--count 2 --commands --kinds 'annotate, csv' 'predict, csv'", ["annotate, csv", "predict, csv", "all"]),
    ],
    "general": [
        ("--scenes 1 --size 256 --kinds cryo sem --contrasts clear", ["cryo", "sem", "all"]),
        (
            "--scenes 1 --size 256 --kinds force --contrasts clear visible --estimated --curve",
            [r"min_filament_probability=0.98"],
        ),
        ("--scenes 1 --size 256 --kinds any --contrasts clear --rival", ["any", "all"]),
        ("--scenes 1 --size 256 --kinds cryo --contrasts clear --told", ["cryo", "all"]),
        ("--traced roots --checkpoint {checkpoint} --keys min_length=4", [r"micrograph_0002 +│ +\d"]),
    ],
    "link": [
        (
            "--seeds 30 --tables accuracy costs time --scenes crossing --nodes 60",
            ["crossing", r"crossing\+", "defaults", "min_relative_probability=0.95", "goal"],
        )
    ],
    "persistence": [("--lengths 300 --samples 5 --images 1 --size 256", ["300 "])],
    "polymorphs": [
        (f"--types 2 --images 1 1 {SHORT} {TINY} data.simulation.simulator.size=[192,192]", ["1 ", "2 ", "all"])
    ],
    "predict": [
        ("--size 192 --detections 20 --images 2", ["one after the other", "grace-predict"]),
        ("--size 192 --detections 20 --images 2 --checkpoint {checkpoint}", ["one after the other", "grace-predict"]),
        ("--size 192 --detections 20 --images 2 --copies 2 --alone", ["estimate", "ridges", "grace-predict"]),
    ],
    "prepare": [("--nodes 50 60 --size 96 --repeats 1", ["patches and statistics", "total", "goal"])],
    "reference": [
        (f"--data roots --models gcn --seeds 0 -- {SHORT} {FEW}", ["logistic regression", "gradient boosting", "gcn"]),
        (f"--data roots --models gat --seeds 0 --split valid -- {SHORT} {FEW}", ["gradient boosting", "gat"]),
    ],
    "soak": [
        ("--images 4 --size 128 --kills 2 --seed 1", ["undisturbed", "killed", "full disk", "went on to the end"])
    ],
    "start": [(f"--data roots --images 1 --seeds 0 -- '{SHORT} {FEW} {TINY}'", ["1 +│ 0"])],
    "suggest": [
        (
            "--kind sem --pool 3 --chosen 2 --scored 1 --size 192 --seeds 0 --ways random doubt --overrides"
            f" 'trainer.max_epochs=1 evaluate.pictures=false callbacks.projector=null {FEW} augment=none'",
            ["random", "doubt"],
        )
    ],
}
CASES = [pytest.param(name, *run, id=f"{name}{k}") for name, runs in RUNS.items() for k, run in enumerate(runs)]


@pytest.fixture
def roots(simulated, tmp_path):
    """Folders of two images to learn from, one to validate, one to score."""
    for part, numbers in {"train": "01", "valid": "2", "infer": "2"}.items():
        (tmp_path / "roots" / part).mkdir(parents=True)
        for file in simulated.glob(f"*[{numbers}].*"):
            (tmp_path / "roots" / part / file.name).symlink_to(file)
    (tmp_path / "roots" / "infer" / "micrograph_0002.polylines.json").write_text("[[[0, 0], [90, 90]]]")


def test_all_are_run_with_all_their_options():
    options = {path.stem: set(re.findall(r'"(--\w+)"', path.read_text())) for path in FOLDER.glob("*.py")}
    del options["common"]
    assert {name: set(re.findall(r"--\w+", str(runs))) for name, runs in RUNS.items()} == options


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arguments", "rows"), CASES)
def test_prints_its_tables(name, arguments, rows, roots, checkpoint, tmp_path, monkeypatch, capsys):
    for package, asked in (("timm", name == "features"), ("ridge_detector", "--rival" in arguments)):
        if asked and not importlib.util.find_spec(package):
            pytest.skip(f"needs {package}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *shlex.split(arguments.format(checkpoint=checkpoint))])
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name=name)["main"]()
    printed = capsys.readouterr().out
    assert [row for row in rows if not re.search(f"│ {row}", printed)] == []
