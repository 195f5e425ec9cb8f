"""What is drawn, what is said about it, and the folders it goes into."""

import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy.spatial import KDTree

from grace_lightning.config import config_dir
from grace_lightning.errors import InputError
from grace_lightning.graph import Sample
from grace_lightning.io import find_sources, pixel_size, read_sample
from grace_lightning.simulate import (
    SimulatedFolders,
    Simulation,
    Simulator,
    image_generator,
    lay_lines,
    simulate_folder,
)
from grace_lightning.stopping import Stopped

SMALL = {"size": (300, 400), "scale": 16.0, "false_detections": 40}
TINY = Simulator(size=(64, 80), scale=8.0, num_filaments=1, num_blobs=0, false_detections=10)
CLEAN = {"num_blobs": 0, "p_carbon": 0.0, "background": 0.0}
PERFECT = {"jitter": 0.0, "p_missing": 0.0, "false_detections": 0}


def simulate(seed: int = 0, **parameters) -> Simulation:
    return Simulator(**{**SMALL, **parameters})("x", image_generator(seed, "x"))


def pixels(sample: Sample) -> np.ndarray:
    return sample.image[0].numpy()


@pytest.mark.parametrize("size", [(257, 131), (64, 640)])
def test_sizes_and_numbers(size):
    simulation = simulate(size=size, scale=8.0, num_filaments=4, p_touching=0.5)
    image, annotation = simulation.sample.image, simulation.sample.annotation
    assert (image.shape, image.dtype, annotation.shape) == ((1, *size), torch.float32, size)
    assert torch.isfinite(image).all()
    assert annotation.unique().tolist() == [0, *map(int, simulation.instances)] == [0, 1, 2, 3, 4]


def test_annotation_is_half_a_width_to_either_side_and_later_filaments_lie_over_earlier_ones():
    simulation = simulate(num_filaments=6, shapes=["line", "curve"], p_touching=0.0)
    annotation = simulation.sample.annotation.numpy().ravel()
    places = np.argwhere(np.ones((300, 400)))[:, ::-1]
    away = np.stack([KDTree(line).query(places)[0] for line in simulation.centre_lines])
    ends = np.concatenate([line[[0, -1]] for line in simulation.centre_lines])
    inner, near = KDTree(ends).query(places)[0] > 10, away < 7.5
    assert annotation[inner & near.any(axis=0)].all()
    assert not annotation[(away > 8.5).all(axis=0)].any()
    crossing = inner & (near.sum(axis=0) > 1) & (near | (away > 8.5)).all(axis=0)  # and no pixel of a rim
    assert crossing.sum() > 100
    assert (annotation[crossing] == 6 - near[::-1].argmax(axis=0)[crossing]).all()


def test_nodes_of_an_instance_lie_on_their_filament_and_at_crossings_on_both():
    simulation = simulate(num_filaments=6, shapes=["line"])
    graph, instances = simulation.sample.graph, list(simulation.instances.values())
    for nodes, line in zip(instances, simulation.centre_lines, strict=True):
        assert KDTree(line).query(graph.pos.numpy()[nodes])[0].max() <= 8.0
    count = np.bincount(np.concatenate(instances), minlength=graph.num_nodes)
    positive = graph.label("node").numpy() == 1
    assert positive[count > 0].all()
    assert (count > 0).sum() >= 0.9 * positive.sum()  # a pixel of the mask may stick out by its own half
    assert count.max() > 1
    assert np.array_equal(graph.label("two_filaments").numpy() == 1, count > 1)


def test_perfect_detections_lie_on_the_centre_lines_at_equal_distances():
    pos = simulate(num_filaments=1, shapes=["line"], spacing=14.0, **PERFECT).sample.graph.pos.numpy()
    assert KDTree(pos).query(pos, k=2)[0][:, 1] == pytest.approx(14.0, abs=0.51)
    simulation = simulate(num_filaments=3, **PERFECT)
    graph = simulation.sample.graph
    assert graph.label("node").tolist() == [1] * graph.num_nodes
    away = KDTree(np.concatenate(simulation.centre_lines)).query(graph.pos.numpy())[0]
    assert away.max() < 1e-4
    # Each filament in turn, spaced by 20 px: without the shuffle, neighbours in the file are neighbours on the image.
    step = np.hypot(*np.diff(graph.pos.numpy(), axis=0).T)
    assert np.median(step) > 40


def test_missing_false_and_jittered_detections():
    counts = [simulate(**{**PERFECT, "p_missing": p}).sample.graph.num_nodes for p in (0.0, 0.5, 1.0)]
    assert 0.25 * counts[0] < counts[1] < 0.75 * counts[0]
    assert counts[2] == 0
    jittered = simulate(**{**PERFECT, "jitter": 3.0}, num_filaments=1, shapes=["line"])
    away = KDTree(jittered.centre_lines[0]).query(jittered.sample.graph.pos.numpy())[0]
    assert 1.0 < away.mean() < 4.0


def test_false_detections_gather_on_contamination():
    options = {**CLEAN, "num_blobs": 20, "jitter": 0.0, "false_detections": 300}
    simulation = simulate(num_filaments=0, size=(700, 700), **options)
    image, graph = pixels(simulation.sample), simulation.sample.graph
    assert graph.num_nodes == 300
    column, row = np.rint(graph.pos.numpy()).astype(int).T
    assert image[row, column].mean() < image.mean() - 0.2  # contamination is dark


@pytest.mark.parametrize("parameters", [{}, {"scale": 30.0, "pixel_size": 2.0}, {"defocus": 0.0}])
def test_snr_is_the_mean_square_contrast_over_the_noise_variance(parameters):
    parameters = {**CLEAN, "num_filaments": 1, "shapes": ["line"], **parameters}
    noise = simulate(snr=1e-12, **parameters).sample
    noisy = simulate(snr=0.2, **parameters).sample
    difference = (pixels(noisy) - pixels(noise))[noisy.annotation.numpy() > 0]
    assert pixels(noise).var() == pytest.approx(1.0, rel=0.02)
    assert (difference**2).mean() == pytest.approx(0.2, rel=0.15)
    assert difference.mean() < 0  # filaments are dark


def test_texture_repeats_along_the_filament():
    """The spectrum of the brightness along the axis of a straight filament peaks at the period."""
    simulation = simulate(snr=1e6, num_filaments=1, shapes=["line"], period=25.0, size=(512, 512), **CLEAN)
    line = simulation.centre_lines[0]
    line = line[((line > 0) & (line < 511)).all(axis=1)]
    column, row = np.rint(line).astype(int).T
    profile = pixels(simulation.sample)[row, column]
    spectrum = np.abs(np.fft.rfft((profile - profile.mean()) * np.hanning(len(profile)), 4096))
    assert 0.5 * 4096 / np.argmax(spectrum) == pytest.approx(25.0, rel=0.05)


def test_noise_is_correlated_carbon_is_dark_and_the_background_uneven():
    noise = pixels(simulate(num_filaments=0, **CLEAN).sample)
    uneven = pixels(simulate(num_filaments=0, **{**CLEAN, "background": 2.0}).sample)
    assert (uneven - noise).std() == pytest.approx(2.0, rel=0.01)
    assert (noise[:, 1:] * noise[:, :-1]).mean() > 0.02
    film = pixels(simulate(num_filaments=0, **{**CLEAN, "p_carbon": 1.0}).sample)
    blocks = film[:300, :400].reshape(15, 20, 20, 20).mean(axis=(1, 3))
    assert blocks.max() - blocks.min() > 1.0  # noise alone: standard deviation 0.05


@pytest.mark.parametrize("shape", ["line", "curve", "circle", "spiral"])
def test_shapes(shape):
    (line,) = lay_lines((1000, 1000), 16.0, 1, [shape], 0.0, image_generator(1, "x"))
    step = np.diff(line, axis=0)
    assert np.hypot(*step.T) == pytest.approx(0.5, rel=0.01)
    bend = np.diff(np.unwrap(np.arctan2(step[:, 1], step[:, 0]))) / 0.5
    assert np.abs(bend).max() < 1 / 16  # never sharper than a filament is wide
    assert {
        "line": np.abs(bend).max() < 1e-6,
        "curve": bend.min() < 0 < bend.max(),
        "circle": bend.std() < 0.01 * bend.mean(),
        "spiral": bend[:100].mean() > 1.5 * bend[-100:].mean() > 0,
    }[shape]


def test_touching_filaments_lie_side_by_side():
    first, second = lay_lines((300, 400), 16.0, 2, ["line"], 1.0, image_generator(2, "x"))
    away = KDTree(first).query(second)[0]
    assert away.min() >= 16.0
    assert np.median(away) <= 1.15 * 16.0 + 0.01


write = partial(simulate_folder, TINY, "nowhere")
make_folders = partial(SimulatedFolders, TINY, "nowhere")


@pytest.mark.parametrize(
    ("call", "parameters", "message"),
    [
        (Simulator, {"size": [32, 64]}, r"size: \[32, 64\], expected rows and columns, each 64 pixels or more"),
        (Simulator, {"shapes": ["helix"]}, r"shapes: \['helix'\], expected one or more of line, curve, circle, spiral"),
        (Simulator, {"scale": 200.0}, "scale: 200.0, expected 2 pixels to an eighth of the shorter side"),
        (Simulator, {"snr": 0.0}, "snr: 0.0, expected more than 0"),
        (Simulator, {"p_missing": 1.5}, "p_missing: 1.5, expected a probability from 0 to 1"),
        (Simulator, {"num_filaments": -1}, "num_filaments: -1, expected 0 or more"),
        (Simulator, {"spacing": 0.0}, "spacing: 0.0, expected 1 pixel or more"),
        (write, {"num_images": 0}, "num_images: 0, expected 1 or more"),
        (write, {"prefix": "a/b"}, "prefix: 'a/b', expected letters"),
        (make_folders, {"num_images": {"..": 1}}, "num_images: .* expected letters"),
    ],
)
def test_wrong_parameters_are_named_before_anything_is_made(tmp_path, monkeypatch, call, parameters, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        call(**parameters)
    assert list(tmp_path.iterdir()) == []


def test_files(tmp_path):
    simulator = replace(TINY, pixel_size=3.5)
    names = simulate_folder(simulator, tmp_path / "sim", num_images=2, seed=4, prefix="actin")
    assert names == ["actin_0000", "actin_0001"]
    suffixes = (".grace", ".h5", ".instances.json", ".mrc")
    assert sorted(p.name for p in (tmp_path / "sim").iterdir()) == sorted(n + s for n in names for s in suffixes)

    drawn = simulator(names[1], image_generator(4, names[1])).sample
    found = read_sample(find_sources(tmp_path / "sim")[1])  # its warning about other detections would be an error
    assert pixel_size(tmp_path / "sim/actin_0001.mrc") == pytest.approx(3.5)
    assert torch.equal(found.image, drawn.image)
    for name in ("pos", "edges", "node_label", "edge_label"):
        assert torch.equal(getattr(found.graph, name), getattr(drawn.graph, name)), name
    assert torch.equal(found.annotation, drawn.annotation)
    assert [nodes.tolist() for nodes in found.truth.filaments] == [nodes.tolist() for nodes in drawn.truth.filaments]
    assert found.metadata == {"image_filename": "actin_0001", "pixel_size": 3.5}


def test_image_is_written_over_only_if_asked(tmp_path):
    simulate_folder(TINY, tmp_path, num_images=1)
    first = mrcfile.read(tmp_path / "micrograph_0000.mrc")
    with pytest.raises(InputError, match=r"micrograph_0000\.mrc: is there already.*overwrite=true"):
        simulate_folder(TINY, tmp_path, num_images=1, seed=1)
    simulate_folder(TINY, tmp_path, num_images=1, seed=1, overwrite=True)
    assert (mrcfile.read(tmp_path / "micrograph_0000.mrc") != first).any()


def test_a_signal_ends_it_after_the_image_in_hand(tmp_path):
    class Asked(Simulator):
        def __call__(self, name, generator):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(name, generator)

    with pytest.raises(Stopped, match="SIGTERM"):
        simulate_folder(Asked(**vars(TINY)), tmp_path, num_images=3)
    assert [path.name for path in tmp_path.glob("*.mrc")] == ["micrograph_0000.mrc"]


def folders(root: Path, seed: int = 0, count: int = 1, **parameters) -> SimulatedFolders:
    return SimulatedFolders(replace(TINY, **parameters), str(root), {"train": count, "valid": 1}, seed=seed)


def times(root: Path) -> dict[str, int]:
    return {str(p.relative_to(root)): p.stat().st_mtime_ns for p in root.rglob("*.mrc")}


def test_folders_are_made_once_and_made_again_for_other_parameters(tmp_path):
    folders(tmp_path)()
    before = times(tmp_path)
    assert sorted(before) == ["train/train_0000.mrc", "valid/valid_0000.mrc"]
    for change in ({}, {"seed": 1}, {"snr": 0.5}, {"count": 2}):
        folders(tmp_path, **change)()
        after = times(tmp_path)
        assert len(after) == 1 + change.get("count", 1)
        assert all((after[name] == before[name]) == (not change) for name in before)
        folders(tmp_path, **change)()
        assert times(tmp_path) == after
        before = {name: time for name, time in after.items() if "0000" in name}


def test_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid/precious.mrc").touch()
    with pytest.raises(InputError, match=r"valid: is there already, and .*simulation\.json does not say.*set root"):
        folders(tmp_path)()
    assert list(times(tmp_path)) == ["valid/precious.mrc"]


class Killed(Simulator):
    """Gets as far as the first image for validation."""

    def __call__(self, name, generator):
        if name.startswith("valid"):
            raise KeyboardInterrupt
        return super().__call__(name, generator)


def test_killed_run_is_made_good_missing_images_are_made_and_folders_that_are_not_wanted_go(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        SimulatedFolders(Killed(**vars(TINY)), str(tmp_path), {"train": 1, "valid": 1})()
    assert list(times(tmp_path)) == ["train/train_0000.mrc"]
    for _ in range(2):
        folders(tmp_path)()
        assert sorted(times(tmp_path)) == ["train/train_0000.mrc", "valid/valid_0000.mrc"]
        (tmp_path / "train/train_0000.mrc").unlink()
    SimulatedFolders(TINY, str(tmp_path), {"train": 1})()
    assert list(times(tmp_path)) == ["train/train_0000.mrc"]
    assert not (tmp_path / "valid").exists()


def test_command_has_the_defaults_of_the_function():
    config = OmegaConf.load(config_dir() / "simulate.yaml")
    assert {key: config[key] for key in simulate_folder.__kwdefaults__} == simulate_folder.__kwdefaults__
