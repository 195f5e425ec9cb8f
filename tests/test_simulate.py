"""What is drawn, what is said about it, and the folders it goes into."""

from __future__ import annotations

import json
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from scipy.spatial import KDTree

from grace_lightning.config import build, config_dir
from grace_lightning.errors import InputError
from grace_lightning.graph import Sample, delaunay
from grace_lightning.simulate import (
    SHAPES,
    SimulatedFolders,
    Simulation,
    Simulator,
    image_generator,
    simulate_folder,
)

SMALL = {"size": (300, 400), "width": 16.0, "false_detections": 40}
CLEAN = {"num_blobs": 0, "p_carbon": 0.0, "background": 0.0}


def simulate(seed: int = 0, **parameters) -> Simulation:
    return Simulator(**{**SMALL, **parameters})("x", image_generator(seed, "x"))


def pixels(sample: Sample) -> np.ndarray:
    return sample.image[0].numpy()


def contrast(simulation: Simulation) -> float:
    """How much darker the filaments are than the rest."""
    image, mask = pixels(simulation.sample), simulation.sample.annotation.numpy() > 0
    return image[~mask].mean() - image[mask].mean()


def test_same_seed_gives_the_same_bits_and_another_seed_another_image():
    first, again, other = simulate(seed=1), simulate(seed=1), simulate(seed=2)
    for field in ("image", "annotation"):
        assert torch.equal(getattr(first.sample, field), getattr(again.sample, field))
    assert torch.equal(first.sample.graph.pos, again.sample.graph.pos)
    assert first.instances == again.instances
    assert not torch.equal(first.sample.image, other.sample.image)


def test_generator_alone_is_the_randomness():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = simulate()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(first.sample.image, simulate().sample.image)


@pytest.mark.parametrize("size", [(300, 400), (257, 131), (64, 640)])
def test_sizes(size):
    sample = simulate(size=size, width=8.0).sample
    assert sample.image.shape == (1, *size)
    assert sample.image.dtype == torch.float32
    assert torch.isfinite(sample.image).all()
    assert sample.annotation.shape == size


@pytest.mark.parametrize("seed", range(5))
def test_annotation_has_one_number_per_filament(seed):
    simulation = simulate(seed, num_filaments=4, p_touching=0.5)
    assert simulation.sample.annotation.unique().tolist() == [0, 1, 2, 3, 4]
    assert list(simulation.instances) == ["1", "2", "3", "4"]
    assert len(simulation.centre_lines) == 4


def test_annotation_is_half_a_width_to_either_side():
    simulation = simulate(num_filaments=1, shapes=["curve"])
    mask = simulation.sample.annotation.numpy() > 0
    line, places = simulation.centre_lines[0], np.argwhere(np.ones_like(mask))[:, ::-1]
    away = KDTree(line).query(places, distance_upper_bound=9)[0].reshape(mask.shape)  # beyond: infinite
    assert away[mask].max() <= 8.5
    near_an_end = KDTree(line[[0, -1]]).query(places)[0].reshape(mask.shape) < 10
    assert mask[(away < 7.5) & ~near_an_end].all()


def test_later_filaments_lie_over_earlier_ones():
    simulation = simulate(num_filaments=6, shapes=["line"], p_touching=0.0)
    annotation = simulation.sample.annotation.numpy()
    places = np.argwhere(np.ones_like(annotation))[:, ::-1]
    lines = (KDTree(line[20:-20]) for line in simulation.centre_lines)
    near = np.stack([np.isfinite(line.query(places, distance_upper_bound=7)[0]) for line in lines])
    crossing = near.sum(axis=0) > 1
    top = 6 - near[::-1].argmax(axis=0)
    assert crossing.sum() > 100
    assert (annotation.ravel()[crossing] == top[crossing]).all()


def test_nodes_of_an_instance_lie_on_their_filament():
    simulation = simulate(num_filaments=4)
    pos = simulation.sample.graph.pos.numpy()
    for number, line in zip(simulation.instances.values(), simulation.centre_lines, strict=True):
        assert len(number) >= 2
        assert KDTree(line).query(pos[number])[0].max() <= 8.0
    members = set().union(*simulation.instances.values())
    positive = np.flatnonzero(simulation.sample.graph.node_label.numpy() == 1)
    assert members <= set(positive.tolist())
    # A pixel of the mask may stick out of the half width by its own half.
    assert len(members) >= 0.9 * len(positive)


def test_node_at_a_crossing_is_in_both_filaments():
    seeds = (simulate(seed, num_filaments=6, shapes=["line"], false_detections=0) for seed in range(3))
    shared = [set(a) & set(b) for s in seeds for n, a in s.instances.items() for m, b in s.instances.items() if n < m]
    assert any(shared)


def test_labels_agree_with_the_mask():
    sample = simulate().sample
    mask, graph = sample.annotation.numpy() > 0, sample.graph
    column, row = np.rint(graph.pos.numpy()).astype(int).T
    assert (mask[row, column] == graph.node_label.bool().numpy()).all()
    assert 0 < graph.node_label.sum() < graph.num_nodes
    assert (graph.node_label[graph.edges].amin(dim=0) >= graph.edge_label).all()
    assert graph.edge_label.sum() > 0


def test_edges_are_the_delaunay_graph_of_all_detections():
    graph = simulate().sample.graph
    assert torch.equal(graph.edges, delaunay(graph.pos))


def test_perfect_detections_lie_on_the_centre_lines():
    simulation = simulate(jitter=0.0, p_missing=0.0, false_detections=0, num_filaments=3)
    graph = simulation.sample.graph
    assert graph.node_label.tolist() == [1] * graph.num_nodes
    away = KDTree(np.concatenate(simulation.centre_lines)).query(graph.pos.numpy())[0]
    assert away.max() < 1e-4
    # Each filament in turn, spaced by 20 px: without the shuffle, neighbours in the file are neighbours on the image.
    step = np.hypot(*np.diff(graph.pos.numpy(), axis=0).T)
    assert np.median(step) > 40


def test_detections_are_spaced_along_the_filament():
    simulation = simulate(jitter=0.0, p_missing=0.0, false_detections=0, num_filaments=1, shapes=["line"], spacing=14.0)
    nearest = KDTree(simulation.sample.graph.pos.numpy()).query(simulation.sample.graph.pos.numpy(), k=2)[0][:, 1]
    assert nearest == pytest.approx(14.0, abs=0.51)


def test_missing_false_and_jittered_detections():
    full = simulate(jitter=0.0, p_missing=0.0, false_detections=0).sample.graph.num_nodes
    half = simulate(jitter=0.0, p_missing=0.5, false_detections=0).sample.graph.num_nodes
    none = simulate(p_missing=1.0, false_detections=0)
    assert 0.25 * full < half < 0.75 * full
    assert none.sample.graph.num_nodes == 0
    assert none.instances == {str(k): [] for k in range(1, 6)}
    false = simulate(p_missing=1.0, false_detections=60, **CLEAN).sample.graph
    assert false.num_nodes == 60
    jittered = simulate(jitter=3.0, p_missing=0.0, false_detections=0, num_filaments=1, shapes=["line"])
    away = KDTree(jittered.centre_lines[0]).query(jittered.sample.graph.pos.numpy())[0]
    assert 1.0 < away.mean() < 4.0


def test_false_detections_gather_on_contamination():
    """Contamination is dark, so pixels at false detections are darker than elsewhere."""
    blobs = {"num_blobs": 20, "p_carbon": 0.0, "background": 0.0}
    simulation = simulate(num_filaments=0, size=(700, 700), jitter=0.0, false_detections=300, **blobs)
    image, graph = pixels(simulation.sample), simulation.sample.graph
    assert graph.num_nodes == 300
    column, row = np.rint(graph.pos.numpy()).astype(int).T
    assert image[row, column].mean() < image.mean() - 0.2


def test_filaments_are_dark_and_more_so_at_higher_snr():
    found = [contrast(simulate(snr=snr, **CLEAN)) for snr in (0.01, 0.1, 1.0)]
    assert 0 < found[0] < found[1] < found[2]


@pytest.mark.parametrize("parameters", [{}, {"width": 30.0, "pixel_size": 2.0}, {"defocus": 0.0}])
def test_snr_is_the_mean_square_contrast_over_the_noise_variance(parameters):
    parameters = {**CLEAN, "num_filaments": 1, "shapes": ["line"], **parameters}
    noise = simulate(snr=1e-12, **parameters).sample
    noisy = simulate(snr=0.2, **parameters).sample
    difference = (pixels(noisy) - pixels(noise))[noisy.annotation.numpy() > 0]
    assert pixels(noise).var() == pytest.approx(1.0, rel=0.02)
    assert (difference**2).mean() == pytest.approx(0.2, rel=0.15)


def test_texture_repeats_along_the_filament():
    """The spectrum of the brightness along the axis of a straight filament peaks at the period."""
    simulation = simulate(snr=1e6, num_filaments=1, shapes=["line"], period=25.0, size=(512, 512), **CLEAN)
    line = simulation.centre_lines[0]
    line = line[((line > 0) & (line < 511)).all(axis=1)]
    column, row = np.rint(line).astype(int).T
    profile = pixels(simulation.sample)[row, column]
    spectrum = np.abs(np.fft.rfft((profile - profile.mean()) * np.hanning(len(profile)), 4096))
    assert 0.5 * 4096 / np.argmax(spectrum) == pytest.approx(25.0, rel=0.05)


def test_noise_is_correlated_and_carbon_is_dark():
    noise = pixels(simulate(num_filaments=0, **CLEAN).sample)
    assert (noise[:, 1:] * noise[:, :-1]).mean() > 0.02
    film = pixels(simulate(num_filaments=0, background=0.0, num_blobs=0, p_carbon=1.0).sample)
    blocks = film[:300, :400].reshape(15, 20, 20, 20).mean(axis=(1, 3))
    assert blocks.max() - blocks.min() > 1.0  # noise alone: standard deviation 0.05


def test_background_is_uneven_by_as_much_as_asked():
    flat, uneven = simulate(**CLEAN), simulate(**{**CLEAN, "background": 2.0})
    assert (pixels(uneven.sample) - pixels(flat.sample)).std() == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape):
    line = simulate(num_filaments=1, shapes=[shape], size=(1000, 1000), seed=1).centre_lines[0]
    step = np.diff(line, axis=0)
    assert np.hypot(*step.T) == pytest.approx(0.5, rel=0.01)
    bend = np.diff(np.unwrap(np.arctan2(step[:, 1], step[:, 0]))) / 0.5
    assert np.abs(bend).max() < 1 / 16  # never sharper than a filament is wide
    if shape == "line":
        assert np.abs(bend).max() < 1e-6
    elif shape == "curve":
        assert bend.min() < 0 < bend.max()
    elif shape == "circle":
        assert bend.std() < 0.01 * bend.mean()
    else:
        assert bend[:100].mean() > 1.5 * bend[-100:].mean() > 0


def test_touching_filaments_lie_side_by_side():
    simulation = simulate(num_filaments=2, p_touching=1.0, shapes=["line"], seed=2)
    away = KDTree(simulation.centre_lines[0]).query(simulation.centre_lines[1])[0]
    assert away.min() >= 16.0
    assert np.median(away) <= 1.15 * 16.0 + 0.01


def test_all_detections_are_inside_finite_and_different():
    for seed in range(5):
        graph = simulate(seed, jitter=5.0, num_filaments=8, false_detections=300).sample.graph
        assert len(graph.pos.unique(dim=0)) == graph.num_nodes  # the rest is checked by Sample and Graph


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"size": [32, 64]}, r"size: \[32, 64\], expected rows and columns, each 64 pixels or more"),
        ({"size": [512]}, r"size: \[512\]"),
        ({"shapes": ["helix"]}, r"shapes: \['helix'\], expected one or more of line, curve, circle, spiral"),
        ({"shapes": []}, r"shapes: \[\]"),
        ({"width": 200.0}, "width: 200.0, expected 2 pixels to an eighth of the shorter side"),
        ({"snr": 0.0}, "snr: 0.0, expected more than 0"),
        ({"snr": float("nan")}, "snr: nan"),
        ({"p_missing": 1.5}, "p_missing: 1.5, expected a probability from 0 to 1"),
        ({"num_filaments": -1}, "num_filaments: -1, expected 0 or more"),
        ({"spacing": 0.0}, "spacing: 0.0, expected 1 pixel or more"),
    ],
)
def test_wrong_parameters_are_named(parameters, message):
    with pytest.raises(InputError, match=message):
        Simulator(**parameters)


def test_files(tmp_path):
    simulator = Simulator(**SMALL, pixel_size=3.5)
    names = simulate_folder(simulator, tmp_path / "sim", num_images=2, seed=4, prefix="actin")
    assert names == ["actin_0000", "actin_0001"]
    suffixes = (".grace", ".h5", ".instances.json", ".mrc")
    assert sorted(p.name for p in (tmp_path / "sim").iterdir()) == sorted(n + s for n in names for s in suffixes)

    sample, instances = (lambda s: (s.sample, s.instances))(simulator(names[1], image_generator(4, names[1])))
    stem = str(tmp_path / "sim" / names[1])
    with mrcfile.open(f"{stem}.mrc") as file:
        assert file.data.dtype == np.float32
        assert (file.data == pixels(sample)).all()
        assert float(file.voxel_size.x) == pytest.approx(3.5)
    frame = pd.read_hdf(f"{stem}.h5", "df")
    assert (frame[["x", "y"]].to_numpy() == sample.graph.pos.numpy()).all()
    nodes, edges = (pd.read_parquet(f"{stem}.grace/{table}.parquet") for table in ("nodes", "edges"))
    assert (nodes[["x", "y"]].to_numpy() == sample.graph.pos.numpy()).all()
    assert nodes["node_ground_truth"].tolist() == sample.graph.node_label.tolist()
    assert edges[["source", "target"]].to_numpy().T.tolist() == sample.graph.edges.tolist()
    assert edges["edge_ground_truth"].tolist() == sample.graph.edge_label.tolist()
    with np.load(f"{stem}.grace/annotation.npz") as archive:
        assert (archive["annotation"] == sample.annotation.numpy()).all()
    assert json.loads(Path(f"{stem}.grace/metadata.json").read_text())["image_filename"] == names[1]
    assert json.loads(Path(f"{stem}.instances.json").read_text()) == instances


def test_image_does_not_depend_on_how_many_there_are(tmp_path):
    simulator = Simulator(**SMALL)
    for folder, count in (("one", 1), ("two", 2)):
        simulate_folder(simulator, tmp_path / folder, num_images=count)
    names = "micrograph_0000.mrc", "micrograph_0001.mrc"
    with mrcfile.open(tmp_path / "one" / names[0]) as one, mrcfile.open(tmp_path / "two" / names[0]) as first:
        assert (one.data == first.data).all()
        with mrcfile.open(tmp_path / "two" / names[1]) as second:
            assert (first.data != second.data).any()


def test_images_are_written_over_only_when_asked(tmp_path):
    simulator = Simulator(**SMALL)
    simulate_folder(simulator, tmp_path, num_images=1)
    with pytest.raises(InputError, match=r"micrograph_0000\.mrc: is there already.*overwrite=true"):
        simulate_folder(simulator, tmp_path, num_images=1, seed=1)
    simulate_folder(simulator, tmp_path, num_images=1, seed=1, overwrite=True)
    with mrcfile.open(tmp_path / "micrograph_0000.mrc") as file:
        assert (file.data == pixels(simulator("x", image_generator(1, "micrograph_0000")).sample)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": 0}, "num_images: 0, expected 1 or more"),
        ({"seed": -1}, "seed: -1, expected 0 or more"),
        ({"prefix": "a/b"}, "prefix: 'a/b', expected letters"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_made(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        simulate_folder(Simulator(**SMALL), tmp_path / "sim", **arguments)
    assert not (tmp_path / "sim").exists()


def folders(root: Path, seed: int = 0, count: int = 1, **parameters) -> SimulatedFolders:
    return SimulatedFolders(Simulator(**{**SMALL, **parameters}), str(root), {"train": count, "valid": 1}, seed=seed)


def times(root: Path) -> dict[str, int]:
    return {str(p.relative_to(root)): p.stat().st_mtime_ns for p in root.rglob("*.mrc")}


def test_folders_are_made_once(tmp_path):
    folders(tmp_path)()
    before = times(tmp_path)
    assert sorted(before) == ["train/train_0000.mrc", "valid/valid_0000.mrc"]
    folders(tmp_path)()
    assert times(tmp_path) == before


@pytest.mark.parametrize("change", [{"seed": 1}, {"snr": 0.5}, {"count": 2}])
def test_folders_are_remade_for_other_parameters(tmp_path, change):
    folders(tmp_path)()
    before = times(tmp_path)
    folders(tmp_path, **change)()
    after = times(tmp_path)
    assert len(after) == 1 + change.get("count", 1)
    assert all(after[name] != before[name] for name in before)
    folders(tmp_path, **change)()
    assert times(tmp_path) == after


def test_folders_that_are_no_longer_wanted_go(tmp_path):
    folders(tmp_path)()
    SimulatedFolders(Simulator(**SMALL), str(tmp_path), {"train": 1})()
    assert list(times(tmp_path)) == ["train/train_0000.mrc"]
    assert not (tmp_path / "valid").exists()


def test_missing_image_is_made_again(tmp_path):
    folders(tmp_path)()
    (tmp_path / "train" / "train_0000.mrc").unlink()
    folders(tmp_path)()
    assert (tmp_path / "train" / "train_0000.mrc").exists()


def test_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid" / "precious.mrc").write_text("x")
    with pytest.raises(InputError, match=r"valid: is there already, and .*simulation\.json does not say.*set root"):
        folders(tmp_path)()
    assert [p.name for p in tmp_path.rglob("*") if p.is_file() and p.suffix == ".mrc"] == ["precious.mrc"]


class Killed(Simulator):
    """Gets as far as the first image for validation."""

    def __call__(self, name, generator):
        if name.startswith("valid"):
            raise KeyboardInterrupt
        return super().__call__(name, generator)


def test_killed_run_is_made_good(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        SimulatedFolders(Killed(**SMALL), str(tmp_path), {"train": 1, "valid": 1})()
    assert list(times(tmp_path)) == ["train/train_0000.mrc"]
    folders(tmp_path)()
    assert sorted(times(tmp_path)) == ["train/train_0000.mrc", "valid/valid_0000.mrc"]


@pytest.mark.parametrize("name", ["..", "a/b", ""])
def test_folders_have_plain_names(tmp_path, name):
    with pytest.raises(InputError, match=r"num_images: .* expected letters"):
        SimulatedFolders(Simulator(), str(tmp_path), {name: 1})


def test_configuration_holds_the_defaults_of_the_signatures():
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = OmegaConf.to_container(compose("simulate"))
    simulator = build(config["simulator"], "simulator")
    assert vars(simulator) == {**vars(Simulator()), "size": [1024, 1024], "shapes": list(Simulator().shapes)}
    keywords = {key: value for key, value in config.items() if key not in ("simulator", "out_dir")}
    assert simulate_folder.__kwdefaults__ == keywords


def test_default_task_is_balanced():
    found = [Simulator()("x", image_generator(seed, "x")).sample.graph for seed in range(4)]
    nodes = np.mean([graph.num_nodes for graph in found])
    positive = np.mean([graph.node_label.float().mean() for graph in found])
    assert 200 < nodes < 400
    assert 0.4 < positive < 0.65
