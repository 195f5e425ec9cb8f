"""The network that comes with the package, and the recipe that it was trained by."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import LINES, line_scene
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tifffile import imwrite

from grace_lightning.checkpoint import GENERAL_FILE
from grace_lightning.config import config_dir, selected
from grace_lightning.module import CHECKPOINT_KEY


@pytest.mark.parametrize("polarity", ["dark", "bright"])
def test_filaments_are_found_with_nothing_but_an_image(run, tmp_path, polarity):
    (tmp_path / "images").mkdir()
    image = line_scene()[0]
    imwrite(tmp_path / "images" / "a.tif", image if polarity == "dark" else -image)
    status, said, _ = run("predict", f"image_dir={tmp_path}/images", f"out_dir={tmp_path}/found")
    assert status == 0
    assert f"and {polarity} (estimated from 1 of 1 image" in said
    assert "1 image, 3 filaments" in said
    found = pd.read_parquet(tmp_path / "found" / "a.grace" / "filaments.parquet").groupby("filament")
    ends = [rows.sort_values("order")[["x", "y"]].to_numpy()[[0, -1]] for _, rows in found]
    for line in LINES:
        away = [min(np.abs(pair - line).max(), np.abs(pair[::-1] - line).max()) for pair in ends]
        assert min(away) < 20


def test_its_recipe_is_that_of_the_experiment():
    trained = torch.load(GENERAL_FILE, weights_only=True)[CHECKPOINT_KEY]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", ["experiment=general", "run_dir=."]), resolve=True)
    keys = ["features", "model", "module", "augment", "optimizer", "scheduler", "trainer", "seed"]
    keys += ["data.simulation", "data.scale", "data.polarity", "data.batch_size", "data.num_hops", "link.min_length"]
    assert {key: selected(trained, key) for key in keys} == {key: selected(config, key) for key in keys}


def test_it_is_small_and_says_nothing_of_the_machine_that_trained_it():
    content = torch.load(GENERAL_FILE, weights_only=True)
    assert content.keys() == {CHECKPOINT_KEY, "state_dict"}
    assert GENERAL_FILE.stat().st_size < 5e6
    assert content[CHECKPOINT_KEY]["data"]["simulation"]["root"] == "simulated/general"
    assert "trained_on" not in content[CHECKPOINT_KEY]
