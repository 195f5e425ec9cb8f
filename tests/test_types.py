"""Types of filaments: from the annotation through the network to the files."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import starfile
import torch
from helpers import batched, random_sample

from grace_lightning import io
from grace_lightning.augment import RandomCopyPaste, RandomImageGraphRotate
from grace_lightning.data import GraphData
from grace_lightning.errors import InputError
from grace_lightning.graph import TYPE, Filament
from grace_lightning.models import GAT, GCN, MPNN
from grace_lightning.predictor import _typed
from grace_lightning.simulate import Simulator, image_generator
from grace_lightning.truth import type_of_nodes

TWO = Simulator(size=[192, 192], num_filaments=3, scale=10.0, period=20.0, spacing=8.0, types=2, num_blobs=0)


def test_a_node_on_filaments_of_two_types_has_none():
    filaments = [np.array([0, 1, 2]), np.array([2, 3]), np.array([4]), np.array([4, 5]), np.array([6])]
    assert type_of_nodes(8, filaments, [1, 2, 3, 3, 0]).tolist() == [1, 1, 0, 2, 3, 3, 0, 0]


def test_types_are_written_and_read_and_go_along_with_their_nodes(tmp_path):
    sample = TWO("a", image_generator(1, "a")).sample
    graph = sample.graph
    assert set(graph.node_type.tolist()) == {0, 1, 2}
    io.write_grace(tmp_path / "a.grace", graph)
    assert torch.equal(io.read_grace(tmp_path / "a.grace").graph.node_type, graph.node_type)
    io.write_grace(tmp_path / "b.grace", replace(graph, node_type=torch.zeros_like(graph.node_type)))
    assert "node_type" not in pd.read_parquet(tmp_path / "b.grace" / "nodes.parquet")
    keep = graph.pos[:, 0] > 60
    assert torch.equal(graph.subset(keep).node_type, graph.node_type[keep])
    torch.manual_seed(0)
    pasted = RandomCopyPaste(p=1.0, scale=10.0)(sample).graph
    assert pasted.num_nodes > graph.num_nodes
    on_filament = pasted.label("node") == 1
    assert (pasted.node_type[on_filament] > 0).float().mean() > 0.7  # but for crossings
    assert not (pasted.node_type[~on_filament] > 0).any()
    turned = RandomImageGraphRotate(rot_angle_range=[90.0, 90.0])(sample).graph
    assert torch.equal(turned.node_type, graph.node_type)


def test_a_negative_type_is_refused(tmp_path):
    sample = random_sample()
    io.write_grace(tmp_path / "a.grace", replace(sample.graph, node_type=torch.full((40,), -1)))
    with pytest.raises(InputError, match="node_type -1, expected a type from 1, or 0"):
        io.read_grace(tmp_path / "a.grace")


@pytest.mark.parametrize("network", [MPNN(4, 5, hidden=8, types=3), GCN(4, 5, [8], types=3), GAT(4, 5, [8], types=3)])
def test_networks_have_a_head_for_types_if_there_are_some(network):
    data: GraphData = batched(random_sample("a"), random_sample("b", seed=1))
    said = network(torch.rand(80, 4), data.edge_index, torch.rand(data.edge_index.shape[1], 5))
    assert said[TYPE].shape == (80, 3)
    assert TYPE not in type(network)(4, 5)(torch.rand(1, 4), torch.zeros(2, 0, dtype=torch.int64), torch.rand(0, 5))


def test_a_filament_has_the_type_of_most_of_its_nodes():
    node = np.array([4, 2, 0])
    found = _typed(
        Filament(np.zeros((3, 2), np.float32), np.ones(3, np.float32), node, node), np.array([2, 1, 1, 1, 2])
    )
    assert (found.type, found.type_share) == (2, pytest.approx(2 / 3))


def test_the_whole_way(run):
    assert run("simulate", "out_dir=sim", "num_images=2", *map("simulator.{}".format, SMALL))[0] == 0
    given = ["data=folders", "data.train_image_dir=sim", "data.valid_image_dir=sim", "trainer.max_epochs=2"]
    given += ["features.scale=10", "features.channels=[4]", "model.hidden=4", "trainer.accelerator=cpu", "logger=csv"]
    given += ["callbacks.progress=null", "link.min_filament_probability=0", "link.min_length=1", "optimizer.lr=0.02"]
    status, out, err = run("train", *given, "data.num_classes=2", "hydra.run.dir=run")
    assert (status, err) == (0, ""), out
    logged = pd.read_csv("run/csv/metrics.csv")
    assert logged["valid/type_accuracy"].dropna().between(0, 1).all()
    assert logged["train/filament_type_loss"].notna().any()
    assert run("predict", "checkpoint=run/model/best.ckpt", "image_dir=sim", "out_dir=found", *DARK)[0] == 0
    table = pd.read_csv("found/filaments.csv")
    if len(table):  # after two epochs
        assert table["type"].isin([1, 2]).all()
        assert table["type_share"].between(0.5, 1).all()
        name = table["image"][0]
        segments = starfile.read(f"found/{name}.star")
        of_tube = segments.groupby("rlnHelicalTubeID")["rlnParticleSelectionType"].first()
        assert of_tube.tolist() == table[table["image"] == name]["type"].tolist()
        assert run("export", "out_dir=found")[0] == 0
        assert starfile.read(f"found/{name}.star").equals(segments)
    status, _, err = run("train", *given, "data.num_classes=1", "hydra.run.dir=other")
    assert (status, "data.num_classes: 1, expected 2 to 100" in err) == (2, True)
    assert run("simulate", "out_dir=plain", "num_images=1", *map("simulator.{}".format, SMALL[:-1]))[0] == 0
    status, _, err = run("train", *given, "data.num_classes=2", "data.train_image_dir=plain", "hydra.run.dir=other")
    assert (status, "no annotated filament has one" in err) == (2, True)


SMALL = ["size=[192,192]", "num_filaments=3", "scale=10", "period=20", "spacing=8", "snr=0.5", "types=2"]
DARK = ["trainer.accelerator=cpu"]
