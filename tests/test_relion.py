"""RELION at the other end: what it extracts from what ``grace-predict`` wrote, and what we read of its picks."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import hydra
import mrcfile
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from helpers import line_scene

from grace_lightning import io
from grace_lightning.config import config_dir
from grace_lightning.tasks.annotate import annotate_folder
from grace_lightning.tasks.predict import predict

pytestmark = [
    pytest.mark.relion,
    pytest.mark.skipif(not shutil.which("relion_preprocess"), reason="needs RELION (Debian: apt-get install relion)"),
]

PAGE = (Path(__file__).parents[1] / "docs" / "formats.md").read_text()
STAR, BOX = (shlex.split(line) for line in re.findall(r"^relion_preprocess .*$", PAGE.replace("\\\n", " "), re.M))
MIDDLE = 32  # of the boxes of 64 pixels that the page extracts


def call(command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def write_mrc(path, image, pixel_size=2.0):
    with mrcfile.new(path) as file:
        file.set_data(image)
        file.voxel_size = pixel_size


def keys(*given):
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        return hydra.compose("predict", ["trainer.accelerator=cpu", "export.png=false", *given])


@pytest.fixture(scope="module")
def project(checkpoint, tmp_path_factory):
    """A RELION project with one scene as MRC and as TIFF, and what ``grace-predict`` and RELION made of them."""
    folder = tmp_path_factory.mktemp("project")
    image, pos = line_scene()
    (folder / "micrographs").mkdir()
    write_mrc(folder / "micrographs/m.mrc", image)
    tifffile.imwrite(folder / "micrographs/t.tif", image)
    for name, points in {"m": torch.from_numpy(pos), "t": io.mirrored(torch.from_numpy(pos), 384)}.items():
        boxes = pd.DataFrame(points.numpy(), columns=["x", "y"])  # in TIFF images other programs count from the bottom
        io.write_cbox(folder / f"micrographs/{name}.cbox", boxes, box_size=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        given = [f"checkpoint={checkpoint}", "image_dir=micrographs", "pixel_size=2", "export.spacing=20"]
        given.append("features.scale=10")  # at another pixel size than in training
        predict(keys(*given))
        for command in (STAR, BOX):
            call(command)
    return folder


def flat(folder, micrograph):
    """Return how many segments of a micrograph RELION extracted, and their mean, each turned by its psi prior."""
    lines = (folder / "particles.star").read_text().splitlines()
    own = [line for line in lines if ".mrcs" not in line or micrograph in line]
    (folder / "own.star").write_text("\n".join(own).replace("_rlnAnglePsiPrior ", "_rlnAnglePsi ") + "\n")
    turned = folder / "turned.mrcs"
    call(["relion_stack_create", "--i", folder / "own.star", "--o", turned.with_suffix(""), "--apply_transformation"])
    segments = mrcfile.read(turned)
    return len(segments), segments.mean(axis=0)[8:-8, 8:-8]


@pytest.mark.parametrize("micrograph", ["m.mrc", "t.tif"])
@pytest.mark.parametrize("job", ["Extract", "Tubes"])
def test_the_mean_segment_is_a_horizontal_bar(job, micrograph, project, monkeypatch):
    monkeypatch.chdir(project)
    count, mean = flat(Path(job), micrograph)
    rows, columns = mean.mean(axis=1), mean.mean(axis=0)
    assert count > 80  # 10 pixels apart on 861, without what is too close to the border
    assert rows.var() > 200 * columns.var()
    bar = np.flatnonzero(rows < (rows.min() + rows.max()) / 2) + 8
    assert bar.tolist() == list(range(bar[0], bar[-1] + 1))
    assert 8 <= len(bar) <= 12  # lines are 10 pixels wide
    assert bar.mean() == pytest.approx(MIDDLE, abs=1.5 if job == "Tubes" else 1)  # boxes are in whole pixels


def test_a_tiff_file_gives_the_filaments_of_the_mrc_file(project):
    found = pd.read_csv(project / "predictions/filaments.csv").groupby("image")
    m, t = (found.get_group(name).drop(columns="image").to_numpy(float) for name in "mt")
    assert len(m) == 3
    assert t == pytest.approx(m, rel=1e-3, abs=1e-3, nan_ok=True)


def test_a_mirrored_pixel_is_the_same_pixel_to_relion(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = np.random.default_rng(0).normal(size=(201, 300)).astype(np.float32)
    write_mrc("m.mrc", image)
    tifffile.imwrite("t.tif", image)
    pos = torch.tensor([[40.0, 60], [200, 90], [150, 150]])
    for name, points in {"m.mrc": pos, "t.tif": io.mirrored(pos, 201)}.items():
        table = pd.DataFrame(points.numpy(), columns=["x", "y"])
        table = table.assign(filament=0, psi=0.0, track_length=0.0, confidence=1.0)
        io.write_star(f"{name[0]}.star", table, name)
    io.write_project(Path("predictions/relion"), [(Path(name[0]), Path(name), 2.0) for name in ("m.mrc", "t.tif")])
    call(STAR)
    m, t = (mrcfile.read(f"Extract/{name}.mrcs") for name in "mt")
    assert m.shape == (3, 64, 64)
    assert (t[:, 1:] == m[:, :0:-1]).all()  # about the middle, which is pixel 32 of 64


def test_picks_of_relion_on_a_tiff_file_are_where_the_particles_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows, columns = np.indices((256, 320))
    true, image = np.array([[60, 40], [250, 90], [120, 200]]), np.random.default_rng(0).normal(size=(256, 320))
    far = np.hypot(columns - true[:, :1, None], rows - true[:, 1:, None]).min(axis=0)
    tifffile.imwrite("t.tif", (image - 6 * np.exp(-((far / 6) ** 2) / 2)).astype(np.float32))
    np.save("t.npy", far < 6)
    io.write_star("t.star", pd.DataFrame({"x": [9.0], "y": 9.0, "psi": 0, "filament": 0, "confidence": 1}), "t.tif")
    io.write_project(Path("relion"), [(Path("t"), Path("t.tif"), 4.0)])
    options = "--LoG --LoG_diam_min 60 --LoG_diam_max 100 --shrink 0 --lowpass 20 --LoG_adjust_threshold 2"
    call(f"relion_autopick --i relion/micrographs.star --odir Pick/ --pickname autopick {options}".split())
    shutil.move("Pick/t_autopick.star", "t.star")
    assert annotate_folder(".", "annotated") == {}
    graph = io.read_grace("annotated/t.grace").graph
    assert np.sort(graph.pos.numpy(), axis=0) == pytest.approx(np.sort(true, axis=0), abs=2)
    assert graph.label("node").tolist() == [1, 1, 1]


def test_relion_finds_the_coordinates_of_names_that_it_can_read(checkpoint, tmp_path, monkeypatch):
    """Also of an image without filaments, and in a folder of a RELION job, whose number is no part of the name."""
    monkeypatch.chdir(tmp_path)
    image, pos = line_scene()
    names = ["a.b.c.mrc", "data_x.mrc", "my (1) pic.mrc", "ü.mrc", "none.mrc", "t.TIF"]
    folder = Path("MotionCorr/job002/sums")
    folder.mkdir(parents=True)
    for name in names:
        tifffile.imwrite(folder / name, image) if name.endswith("TIF") else write_mrc(folder / name, image)
        table = pd.DataFrame(pos if name != "none.mrc" else pos[:0], columns=["x", "y"])
        table.to_csv(folder / f"{io.stem(name)}.csv", index=False)
    predict(
        keys(
            f"checkpoint={checkpoint}", f"image_dir={folder}", "pixel_size=2", "export.spacing=40", "features.scale=10"
        )
    )
    said = call(STAR)
    assert f"no particles on micrograph: {folder}/none.mrc" in said
    particles = Path("Extract/particles.star").read_text()
    counts = [particles.count(f"{folder}/{name}") for name in names if name != "none.mrc"]
    assert counts == counts[:1] * 5
    assert counts[0] > 40
    call(BOX)
