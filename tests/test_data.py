"""Annotated images as batches of graphs."""

import re
import shutil
from dataclasses import replace

import imagecodecs
import mrcfile
import pytest
import torch
from helpers import random_sample
from scipy.ndimage import gaussian_filter
from torch_geometric.data import Batch

from grace_lightning.augment import Augmentation, RandomXYTranslation
from grace_lightning.data import (
    EpochSampler,
    GraceDataModule,
    GraceDataset,
    Pick,
    graph_data,
)
from grace_lightning.errors import InputError, InputWarning
from grace_lightning.flatten import magnified
from grace_lightning.graph import Graph
from grace_lightning.io import Source, write_grace
from grace_lightning.memory import Memory
from grace_lightning.splits import Dealt, cut_in_two, dealt_before, split_names


@pytest.fixture
def folder(tmp_path):
    """Five annotated PNG images of 96 x 128 pixels."""
    for k in range(5):
        sample = random_sample(f"m{k}", nodes=20 + k, seed=k)
        pixels = ((sample.image[0] + 5) * 25).clamp(0, 255).to(torch.uint8).numpy()
        (tmp_path / f"m{k}.png").write_bytes(imagecodecs.png_encode(pixels))
        metadata = {"image_filename": f"m{k}"}
        write_grace(tmp_path / f"m{k}.grace", sample.graph, annotation=sample.annotation, metadata=metadata)
    return tmp_path


SHIFT = Augmentation({"shift": RandomXYTranslation(3)})


def dataset(augment=None, **options):
    return GraceDataset([Source("a", "a"), Source("b", "b")], lambda s: random_sample(s.name), augment, **options)


def loaded(**keys):
    module = GraceDataModule(**{key: str(value) if key.endswith("dir") else value for key, value in keys.items()})
    module.setup("fit" if {"train_image_dir", "image_dir"} & keys.keys() else "predict")
    return module


def test_a_batch_is_taken_apart_again():
    samples = [random_sample("a", 30, 0), random_sample("b", 1, 1), random_sample("c", 20, 2, size=(40, 50))]
    batch = Batch.from_data_list([graph_data(sample, seed=k) for k, sample in enumerate(samples)])
    assert (batch.names, batch.seeds, batch.num_counted) == (["a", "b", "c"], [0, 1, 2], 3)
    for head in ("node", "same_filament"):
        assert torch.equal(batch.label(head), torch.cat([sample.graph.label(head) for sample in samples]))
    for sample, (image, pos, edges) in zip(samples, batch.images(), strict=True):
        assert torch.equal(image, sample.image)
        assert torch.equal(pos, sample.graph.pos)
        assert torch.equal(edges, sample.graph.edges)


class TestDataset:
    @pytest.mark.parametrize(("gib", "times"), [(1.0, 1), (1e-7, 2)])
    def test_a_sample_that_fits_the_memory_is_read_once(self, gib, times, folder):
        module = loaded(infer_image_dir=folder, cache_gib=gib)
        read, calls = module.read_files, []
        module.read_files = lambda source: calls.append(source.name) or read(source)
        first, again = (module.dataset("infer").graph(0) for _ in range(2))
        assert calls == times * ["m0"]
        assert module.read_again("infer") == len(module.sources["infer"]) - (times == 1)
        assert torch.equal(first.pixels, again.pixels)

    def test_augmentation_is_drawn_by_the_seed_of_the_access_and_views_are_few_and_the_same_in_every_run(self):
        def drawn(**options):
            data = dataset(SHIFT, **options)
            assert torch.equal(data.graph(0).pos, random_sample().graph.pos)
            graphs = [data[Pick(0, seed)] for seed in (*range(20), *range(20))]
            return [(graph.seeds[0], *graph.pos[0].tolist()) for graph in graphs]

        assert len(set(drawn())) == 20
        views, again, others = (drawn(views=2, seed=run) for run in (0, 0, 1))
        assert views == again != others
        assert len(set(views)) == 2

    @pytest.mark.parametrize(("gib", "times"), [(1, 2), (0, 20)])
    def test_views_are_kept_as_long_as_there_is_room(self, gib, times):
        calls = []

        def read(source):
            calls.append(source)
            return random_sample()

        data = GraceDataset([Source("a", "a")], read, SHIFT, views=2, memory=Memory(gib))
        graphs = [data[Pick(0, seed, counts=seed != 19)] for seed in range(20)]
        assert len(calls) == times
        assert [graph.num_counted for graph in graphs] == [1] * 19 + [0]
        again = data[Pick(0, 19)]
        assert again.seeds == graphs[-1].seeds
        assert 1 in again.label("node")  # what does not count once does another time

    def test_an_image_that_does_not_count_has_no_labels(self):
        data = dataset()
        twice = data[Pick(0, 0, counts=False)]
        assert (twice.num_counted, data.graph(0).num_counted) == (0, 1)
        assert set(twice.node_label.flatten().tolist()) == set(twice.edge_label.flatten().tolist()) == {2}
        assert set(data.graph(0).label("node").tolist()) == {0, 1}


class TestFolders:
    def test_batches_of_a_folder_for_each_set(self, folder):
        module = loaded(train_image_dir=folder, valid_image_dir=folder, batch_size=3)
        assert [len(module.sources[n]) for n in ("train", "valid", "infer")] == [5, 5, 0]
        assert [b.names for b in module.val_dataloader()] == [["m0", "m1", "m2"], ["m3", "m4"]]

    def test_one_folder_is_split(self, folder):
        sources = loaded(image_dir=folder, split=[0.6, 0.2, 0.2]).sources
        assert [len(sources[n]) for n in ("train", "valid", "infer")] == [3, 1, 1]
        assert sorted(s.name for part in sources.values() for s in part) == [f"m{k}" for k in range(5)]

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"valid_grace_dir": "nowhere", "train_image_dir": "", "valid_image_dir": ""}, "valid_grace_dir: nowhere"),
            ({"image_dir": "nowhere"}, "image_dir: nowhere: no such folder, expected a folder$"),
            ({"image_dir": "", "grace_dir": "nowhere"}, "grace_dir: nowhere: no such folder"),
            ({"image_dir": "", "split": [0.5, 0.2, 0.2]}, r"split: \[0.5, 0.2, 0.2\], expected three fractions"),
            ({"train_image_dir": ""}, "valid_image_dir is not set"),
            ({"image_dir": "", "infer_image_dir": ""}, "image_dir and data.infer_image_dir are both set"),
        ],
    )
    def test_keys_that_do_not_do_are_named(self, keys, message, folder):
        with pytest.raises(InputError, match=f"^data.{message}"):
            loaded(**{key: value or folder for key, value in keys.items()})

    def test_unknown_labels_become_negative_unless_kept(self, folder):
        write_grace(folder / "m0.grace", Graph(torch.rand(3, 2), torch.tensor([[0], [1]])))
        for keep, label in ((False, 0), (True, 2)):
            keys = {"keep_node_unknown_labels": keep, "keep_edge_unknown_labels": keep}
            data = loaded(infer_image_dir=folder, **keys).dataset("infer").graph(0)
            assert (data.label("node").tolist(), data.label("edge").tolist()) == ([label] * 3, [label])

    def test_equal_data_have_equal_hashes_wherever_they_lie(self, folder, tmp_path_factory):
        def digests(path):
            module = loaded(infer_image_dir=path)
            for k in range(5):
                module.dataset("infer").sample(k)
            return {source.name: digest for source, digest in module.digests.items()}

        other, first = tmp_path_factory.mktemp("other"), digests(folder)
        shutil.copytree(folder, other, dirs_exist_ok=True)
        assert digests(other) == first
        shutil.copy(folder / "m0.png", other / "m1.png")
        assert [name for name, digest in digests(other).items() if digest != first[name]] == ["m1"]


class TestMagnification:
    @pytest.fixture
    def scenes(self, tmp_path):
        """A smooth scene of filaments 10 pixels wide, and in ``other`` the same twice as large and inverted."""
        sample = random_sample()
        image = torch.from_numpy(gaussian_filter(sample.image.numpy(), (0, 3, 3)))
        pos, (rows, columns) = sample.graph.pos, (torch.arange(length) // 2 for length in (192, 256))
        for name, factor, sign, metadata in (("one", 1, 1, {}), ("other", 2, -1, {"scale": 20, "polarity": "bright"})):
            (tmp_path / name).mkdir()
            mrcfile.write(tmp_path / name / "a.mrc", sign * magnified(image, factor)[0].numpy())
            graph = replace(sample.graph, pos=factor * (pos + 0.5) - 0.5)
            mask = sample.annotation if factor == 1 else sample.annotation[rows][:, columns]
            metadata |= {"image_filename": "a"}
            write_grace(tmp_path / name / "a.grace", graph, annotation=mask, metadata=metadata)
        return tmp_path

    @pytest.mark.parametrize(("scale", "polarity"), [(20.0, "bright"), ("each", "each")])
    def test_filaments_become_as_wide_as_the_network_sees_them_and_dark(self, scenes, scale, polarity):
        seen = {"sigma": 20.0, "features_scale": 10.0}
        one = loaded(infer_image_dir=scenes / "one", **seen).dataset("infer")
        other = loaded(infer_image_dir=scenes / "other", scale=scale, polarity=polarity, **seen).dataset("infer")
        for key in ("node_label", "edge_label", "edge_index"):
            assert torch.equal(other.graph(0)[key], one.graph(0)[key])
        for key in ("pos", "edge_attr"):
            torch.testing.assert_close(other.graph(0)[key], one.graph(0)[key], atol=1e-3, rtol=0)
        inner = (slice(4, -4), slice(4, -4))
        torch.testing.assert_close(other.sample(0).image[0][inner], one.sample(0).image[0][inner], atol=0.1, rtol=0)
        assert torch.equal(other.sample(0).annotation, one.sample(0).annotation)
        assert [f.tolist() for f in other.sample(0).truth.filaments] == [
            f.tolist() for f in one.sample(0).truth.filaments
        ]

    @pytest.mark.parametrize(("name", "polarity"), [("one", "dark"), ("other", "bright")])
    def test_the_annotation_tells_the_polarity(self, scenes, name, polarity):
        module = loaded(train_image_dir=scenes / name, valid_image_dir=scenes / name, scale=20.0, polarity="auto")
        assert (module.scale, module.polarity) == (20.0, polarity)

    def test_what_metadata_lack_is_named(self, scenes):
        with pytest.raises(InputError, match=r"a\.grace/metadata\.json: scale, as data.scale=each asks for: None, exp"):
            loaded(infer_image_dir=scenes / "one", scale="each").dataset("infer").sample(0)
        with pytest.raises(InputError, match=r"data.scale: -3.0, expected more than 0 pixels"):
            GraceDataModule(scale=-3.0)


class TestOneImage:
    @pytest.fixture
    def alone(self, folder):
        for k in range(1, 5):
            (folder / f"m{k}.png").unlink()
            shutil.rmtree(folder / f"m{k}.grace")
        return folder

    @pytest.mark.parametrize("key", ["image_dir", "train_image_dir"])
    def test_a_third_of_it_validates_and_the_rest_trains(self, key, alone):
        module = loaded(**{key: alone})
        assert module.sources["train"] == module.sources["valid"]
        train, valid = (module.dataset(part).sample(0) for part in ("train", "valid"))
        assert (train.image.shape, valid.image.shape) == ((1, 96, 86), (1, 96, 42))
        assert (train.annotation.shape, valid.annotation.shape) == ((96, 86), (96, 42))

    @pytest.mark.parametrize("turned", [False, True])
    def test_no_node_is_in_both_and_edges_across_the_cut_in_neither(self, turned):
        sample = random_sample()
        if turned:  # the longer side is the height
            graph = replace(sample.graph, pos=sample.graph.pos.flip(1))
            sample = sample.replace(graph=graph, image=sample.image.mT, annotation=sample.annotation.T)
        parts = cut_in_two(sample)
        axis, graph = int(not turned), sample.graph
        begin = {"train": 0, "valid": 86} if parts["train"].image.shape[1 + axis] == 86 else {"train": 42, "valid": 0}
        nodes = 0
        for name, part in parts.items():
            offset = torch.tensor([begin[name], 0] if axis else [0, begin[name]])
            found = [int((graph.pos == pos).all(dim=1).nonzero()) for pos in part.graph.pos + offset]
            kept = torch.tensor([a in found and b in found for a, b in graph.edges.T.tolist()])
            assert torch.tensor(found)[part.graph.edges].tolist() == graph.edges[:, kept].tolist()
            assert torch.equal(part.graph.node_label, graph.node_label[found])
            assert torch.equal(part.graph.edge_label, graph.edge_label[kept])
            for nodes_of in part.truth.filaments:
                whole = {*torch.tensor(found)[nodes_of].tolist()}
                assert any(whole <= {*filament.tolist()} for filament in sample.truth.filaments)
            nodes += part.graph.num_nodes
        assert nodes == graph.num_nodes

    @pytest.mark.parametrize(("low", "high"), [(0, 64), (64, 128)])
    def test_both_have_positive_nodes(self, low, high):
        sample = random_sample(nodes=60)
        x = sample.graph.pos[:, 0]
        graph = sample.graph.with_labels(node=((x >= low) & (x < high)).long())
        parts = cut_in_two(sample.replace(graph=graph)).values()
        assert all((part.graph.label("node") == 1).any() for part in parts)


class TestKeptSplit:
    @pytest.fixture
    def kept(self, folder):
        """How five images were dealt; m4 to validation, say."""
        names = {"train": ["m0", "m1"], "valid": ["m4"], "infer": ["m2", "m3"]}
        return Dealt(str(folder), [0.7, 0.15, 0.15], 0, names)

    def sets(self, folder, kept, stage="fit", **keys):
        module = GraceDataModule(image_dir=str(folder), dealt=kept, **keys)
        module.setup(stage)
        return module, {part: [source.name for source in given] for part, given in module.sources.items()}

    def test_nothing_changes_as_long_as_the_images_are_the_same_wherever_they_lie(self, folder, kept, tmp_path_factory):
        other = shutil.copytree(folder, tmp_path_factory.mktemp("other"), dirs_exist_ok=True)
        for path in (folder, other):
            assert self.sets(path, kept)[1] == kept.names

    @pytest.mark.parametrize(
        ("stage", "train", "said"), [("fit", ["m0", "m9"], "trained on"), ("predict", ["m0"], "not")]
    )
    def test_what_is_gone_and_new_is_told_and_new_images_are_never_scored(self, folder, kept, stage, train, said):
        for name in ("m1", "m3"):
            (folder / f"{name}.png").unlink()
            shutil.rmtree(folder / f"{name}.grace")
        shutil.copy(folder / "m0.png", folder / "m9.png")
        shutil.copytree(folder / "m0.grace", folder / "m9.grace")
        with pytest.warns(InputWarning) as told:
            module, sets = self.sets(folder, kept, stage)
        assert sets == {"train": train, "valid": ["m4"], "infer": ["m2"]}
        assert re.search(r"lost 2 of 5 images: m1, m3", str(told[0].message))
        assert re.search(rf"1 new image, {said}.*: m9", str(told[1].message))
        assert set(kept.names["train"]) <= set(module.dealt_names["train"])  # if they come back

    def test_other_data_are_dealt_anew_and_that_is_told(self, folder, kept):
        names = {part: [f"{name}b" for name in given] for part, given in kept.names.items()}
        with pytest.warns(InputWarning, match="lacks 5 of the 5 images of elsewhere.* are split anew"):
            _, sets = self.sets(folder, kept._replace(image_dir="elsewhere", names=names))
        assert sets == self.sets(folder, None)[1]

    def test_another_split_of_the_same_images_is_refused(self, folder, kept):
        for key, value in {"split": [0.5, 0.25, 0.25], "split_seed": 1}.items():
            with pytest.raises(InputError, match=f"^data.{key}: .* is split by .* already"):
                self.sets(folder, kept, **{key: value})

    def test_a_folder_without_a_validation_image_is_refused(self, folder, kept):
        shutil.rmtree(folder / "m4.grace")
        (folder / "m4.png").unlink()
        with pytest.warns(InputWarning), pytest.raises(InputError, match="has no valid image any more"):
            self.sets(folder, kept)

    def test_a_split_is_of_its_own_seed_and_a_checkpoint_keeps_it(self, folder):
        (_, one), (module, other) = (self.sets(folder, None, seed=seed) for seed in (0, 1))
        assert one == other != self.sets(folder, None, split_seed=3)[1]
        config = {"data": {"image_dir": str(folder), "split": [0.7, 0.15, 0.15], "split_seed": 0}}
        again = dealt_before(config | {"trained_on": module.described()})
        assert self.sets(folder, again)[1] == one
        assert self.sets(folder, dealt_before(config))[1] == one  # of a version that did not keep the names
        assert dealt_before({"data": {"image_dir": None}}) is None
        with pytest.raises(InputError, match=r"trained_on.split"):
            dealt_before(config | {"trained_on": {"split": {"train": 3}}})


NAMES = [f"m{k}" for k in range(10)]


@pytest.mark.parametrize(
    ("count", "split", "sizes"),
    [(10, [0.7, 0.15, 0.15], [6, 2, 2]), (2, [0.7, 0.15, 0.15], [1, 1, 0]), (10, [0.5, 0.5, 0], [5, 5, 0])],
)
def test_a_split_depends_on_the_seed_and_leaves_training_and_validation_something(count, split, sizes):
    first, again, *others = (split_names(NAMES[:count], split, seed) for seed in (1, 1, *range(2, 7)))
    assert first == again
    assert any(other != first for other in others)
    assert [len(first[n]) for n in ("train", "valid", "infer")] == sizes
    assert split_names(NAMES[:1], split, 0) == {"train": ["m0"], "valid": ["m0"], "infer": []}


class TestSampler:
    def test_processes_share_the_images_of_one_process(self):
        alone = list(EpochSampler(range(5), seed=1, epoch=lambda: 2, shuffle=True))
        shares = [list(EpochSampler(range(5), 1, lambda: 2, True, processes=2, rank=r)) for r in (0, 1)]
        together = [pick for step in zip(*shares, strict=True) for pick in step]
        assert together[:5] == alone
        assert together[5] == alone[0]._replace(counts=False)

    def test_epochs_differ(self):
        orders = {tuple(p.image for p in EpochSampler(range(20), 0, lambda e=e: e, True)) for e in range(3)}
        assert len(orders) == 3
        assert all(sorted(order) == list(range(20)) for order in orders)
        seeds = [[p.seed for p in EpochSampler(range(3), 0, lambda e=e: e)] for e in range(2)]
        assert not set(seeds[0]) & set(seeds[1])
