"""What the napari plugin does without a window: corrections, what is kept of them, readers and the writer."""

import json

import mrcfile
import numpy as np
import pytest
import torch
from helpers import LINES, line_scene
from scipy.spatial import KDTree

from grace_lightning import io
from grace_lightning.errors import InputError
from grace_lightning.graph import Label, from_detections
from grace_lightning.gui import files, training
from grace_lightning.gui.traces import (
    History,
    Kept,
    Opened,
    Search,
    Trace,
    cut,
    find,
    joined,
    most_teaching,
    nearest,
    reopened,
    save,
    snapped,
)
from grace_lightning.predictor import Findings
from grace_lightning.raster import dense

BENT = np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 10.0]])


def finished(generator):
    """Run a generator to its end; return the steps that it told and what it returned."""
    told = []
    while True:
        try:
            told.append(next(generator))
        except StopIteration as end:
            return told, end.value


@pytest.fixture
def opened(tmp_path):
    """A micrograph of three lines with its detections, in which nothing was found."""
    image, pos = line_scene()
    path = tmp_path / "a.mrc"
    with mrcfile.new(path) as file:
        file.set_data(image)
        file.voxel_size = 2.0
    graph = from_detections(torch.from_numpy(pos))[0]
    none = torch.zeros(graph.num_nodes), torch.zeros(graph.num_edges)
    return Opened(path, torch.from_numpy(image)[None], 10.0, "dark", Findings(graph, *none, []))


class TestCorrections:
    def test_a_cut_is_where_the_trace_is_nearest(self):
        first, second = cut(Trace(BENT, "found", 0.8), np.array([4.0, 3.0]))
        assert first.line.tolist() == [[0, 0], [4, 0]]
        assert second.line.tolist() == [[4, 0], [10, 0], [10, 10]]
        assert (first.status, second.probability) == ("found", 0.8)

    @pytest.mark.parametrize("end", [[-5.0, 0.0], [10.0, 30.0]])
    def test_a_cut_beyond_an_end_leaves_it_whole(self, end):
        (whole,) = cut(Trace(BENT), np.array(end))
        assert whole.line is BENT

    @pytest.mark.parametrize("turn", [1, -1])
    @pytest.mark.parametrize("other_turn", [1, -1])
    def test_traces_are_joined_at_their_nearest_ends(self, turn, other_turn):
        one, other = Trace(BENT[::turn], "found", 0.9), Trace((BENT + np.array([0, 14]))[::other_turn], "found", 0.7)
        line = joined(one, other).line
        assert np.abs(np.diff(line, axis=0)).sum() == pytest.approx(20 + 20 + 14)  # from (10, 10) to (0, 14)
        assert joined(one, other)[1:] == ("accepted", 0.7)

    def test_the_nearest_is_told_by_its_course_not_by_its_points(self):
        traces = [Trace(np.array([[0.0, 0], [100, 0]])), Trace(np.array([[50.0, 9], [50, 99]]))]
        assert nearest(traces, np.array([50.0, 4.0])) == (0, 4.0)
        assert nearest([], np.zeros(2)) == (-1, np.inf)

    def test_changes_can_be_undone_one_by_one(self):
        history, first, second = History(), [Trace(BENT)], []
        history.change(first)
        history.change(second)
        assert history.undo()
        assert history.now is first
        assert history.undo()
        assert history.now == []
        assert not history.undo()

    def test_what_was_drawn_is_moved_onto_the_ridge(self, opened):
        start, end = LINES[0]
        normal = np.array([start[1] - end[1], end[0] - start[0]]) / np.hypot(*(end - start))
        moved = snapped(opened.image, np.stack([start, end]) + 4 * normal, 10.0)
        assert np.abs((moved - start) @ normal).mean() < 2.5


class TestSaving:
    def test_only_what_is_decided_is_known(self, opened, tmp_path):
        accepted, rejected, found = (Trace(line, status) for line, status in zip(LINES, STATUS, strict=True))
        told = save(opened, Kept([accepted, rejected, found]), tmp_path / "out")
        assert told.endswith("a.grace: 1 accepted, 1 rejected, 1 found")
        graph = io.read_grace(tmp_path / "out" / "a.grace").graph
        pos, label = graph.pos.numpy(), graph.label("node").numpy()
        along = [KDTree(dense(line)).query(pos)[0] < 5 for line in LINES]
        assert set(label[along[0]]) == {Label.TRUE_POSITIVE}
        assert Label.TRUE_NEGATIVE in set(label[along[1]])
        assert Label.UNKNOWN in set(label[along[2]])
        assert (label == Label.TRUE_POSITIVE).sum() < len(label) / 2

    def test_other_programs_get_what_is_not_rejected(self, opened, tmp_path):
        save(opened, Kept([Trace(line, status) for line, status in zip(LINES, STATUS, strict=True)]), tmp_path)
        assert len(io.read_lines(tmp_path / "a.star").lines) == 2
        assert len(io.read_lines(tmp_path / "a.cbox").lines) == 2

    def test_traces_come_back_with_the_micrograph(self, opened, tmp_path):
        traces = [Trace(line, status, 0.5) for line, status in zip(LINES, STATUS, strict=True)]
        corner = np.array([[0.0, 0.0], [50, 0], [0, 50]])
        save(opened, Kept(traces, [corner]), tmp_path)
        again, back = reopened(opened.path, opened.image, tmp_path)
        assert (np.array_equal(back.ignored, [corner]), back.mask) == (True, None)
        assert [(t.line.tolist(), *t[1:]) for t in back.traces] == [(t.line.tolist(), *t[1:]) for t in traces]
        assert (again.scale, again.polarity) == (10.0, "dark")
        assert torch.equal(again.findings.graph.pos, opened.findings.graph.pos)
        assert reopened(opened.path, opened.image, tmp_path / "other") is None

    def test_a_folder_of_somebody_else_is_not_taken_for_ones_own(self, opened, tmp_path):
        save(opened, Kept([Trace(LINES[0])]), tmp_path)
        file = tmp_path / "a.grace" / "metadata.json"
        for traces in ("x", [["accepted", 1]], [["accepted", 1, [1, 2, 3]]], None):
            kept = {"traces": traces, "ignored": [], "painted": False}
            file.write_text(json.dumps(json.loads(file.read_text()) | {"grace_annotate": kept}))
            with pytest.raises(InputError, match=r"a\.grace: was not saved from this window"):
                reopened(opened.path, opened.image, tmp_path)

    def test_a_region_may_be_ignored(self, opened, tmp_path):
        everywhere = np.array([[-1.0, -1.0], [600, -1], [600, 600], [-1, 600]])
        save(opened, Kept([Trace(line) for line in LINES], [everywhere]), tmp_path)
        assert set(io.read_grace(tmp_path / "a.grace").graph.label("node").tolist()) == {Label.UNKNOWN}

    def test_a_mask_says_everything(self, opened, tmp_path):
        mask = torch.zeros(opened.image.shape[1:], dtype=torch.int32)
        mask[:, :256] = 1
        save(opened, Kept([], mask=mask), tmp_path)
        graph = io.read_grace(tmp_path / "a.grace").graph
        assert torch.equal(reopened(opened.path, opened.image, tmp_path)[1].mask, mask)
        assert torch.equal(graph.label("node") == Label.TRUE_POSITIVE, graph.pos[:, 0] < 255.5)

    def test_nothing_decided_is_nothing_to_save(self, opened, tmp_path):
        with pytest.raises(InputError, match="nothing is decided"):
            save(opened, Kept([Trace(LINES[0], "found")]), tmp_path)
        assert not list(tmp_path.glob("*.grace"))


STATUS = ("accepted", "rejected", "found")


def test_filaments_are_found_step_by_step(opened):
    told, found = finished(find(opened.path, Search(scale=10.0, polarity="dark")))
    assert told[0] == "reading the micrograph"
    assert len(found.traces()) == 3
    assert {trace.status for trace in found.traces()} == {"found"}
    mine = [Trace(found.traces()[0].line)]
    assert len(found.traces(beside=mine)) == 2  # those that were decided are not shown twice


def test_the_micrograph_of_most_doubt_is_suggested(opened):
    graph, edge = opened.findings.graph, opened.findings.edge_probability
    doubtful = Findings(graph, torch.full((graph.num_nodes,), 0.5), edge, [])
    other = opened._replace(path=opened.path.with_name("b.mrc"), findings=doubtful)
    known = {one.path: one for one in (opened, other)}
    _, best = finished(most_teaching(list(known), Search(), known))
    assert best is other


class TestFiles:
    def test_micrographs_stay_on_disk(self, tmp_path):
        with mrcfile.new(tmp_path / "a.mrcs") as file:
            file.set_data(np.arange(2 * 30 * 40, dtype=np.float32).reshape(2, 30, 40))
        ((data, shown, kind),) = files.micrograph_reader(str(tmp_path / "a.mrcs"))(str(tmp_path / "a.mrcs"))
        assert isinstance(data, np.memmap)
        assert (data.shape, shown["name"], kind) == ((2, 30, 40), "a", "image")

    def test_what_is_no_micrograph_is_named(self, tmp_path):
        path = tmp_path / "a.mrc"
        path.write_text("no image at all")
        with pytest.raises(InputError, match=r"a\.mrc"):
            files.micrograph_reader(str(path))(str(path))

    def test_graphs_and_picks(self, opened, tmp_path):
        save(opened, Kept([Trace(line) for line in LINES]), tmp_path)
        layers = files.grace_reader("a")(str(tmp_path / "a.grace"))
        assert [kind for *_, kind in layers] == ["labels", "vectors", "points"]
        assert np.allclose(layers[-1][0][:, ::-1], opened.findings.graph.pos)
        for suffix in (".star", ".cbox", ".box"):
            ((data, _, kind),) = files.picks_reader("a")(str(tmp_path / f"a{suffix}"))
            assert (kind, len(data)) == ("shapes", 3)
            assert np.abs(data[0][0][::-1] - LINES[0][0]).max() < 10

    def test_points_and_paths_are_written(self, opened, tmp_path):
        pos = opened.findings.graph.pos.numpy()[:, ::-1]
        lines = [line[:, ::-1] for line in LINES]
        layers = [(pos, {}, "points"), (lines, {"metadata": {"size": (384, 512), "scale": 10.0}}, "shapes")]
        path = str(tmp_path / "b.grace")
        assert files.write_layers(path, layers) == [path]
        found = io.read_grace(path)
        assert found.annotation.shape == (384, 512)
        assert (found.graph.label("node") == Label.TRUE_POSITIVE).sum() > 40
        with pytest.raises(InputError, match="no points layer"):
            files.write_layers(path, layers[1:])

    def test_the_sample_is_a_micrograph(self):
        ((image, _, kind),) = files.sample()
        assert (image.shape, kind) == ((1024, 1024), "image")


@pytest.mark.slow
def test_a_training_tells_how_far_it_is_and_what_went_wrong(simulated, tmp_path):
    keys = [
        "trainer.accelerator=cpu",
        "data.grace_dir=null",
        f"data.image_dir='{simulated}'",
        "features=statistics",
        "model.hidden=4",
    ]
    run = training.Training(simulated, tmp_path, "auto", 10.0, [*keys, "trainer.max_epochs=1"])
    assert run.told() == "training begins"
    run.process.wait()
    assert run.told().startswith("trained, epoch 1: loss ")
    assert run.best.is_file()
    run = training.Training(simulated, tmp_path / "other", "auto", 10.0, ["data.image_dir=nowhere"])
    run.process.wait()
    assert run.best is None
    assert "nowhere" in run.told()
