import dataclasses

import pytest
import torch
from helpers import random_sample

from grace_lightning.augment import Augmentation, RandomXYTranslation
from grace_lightning.data import GraceDataModule, GraceDataset, MemoryCache, prepare, split_sources
from grace_lightning.errors import InputError
from grace_lightning.features import Statistics
from grace_lightning.io import Source, find_sources, write_grace


@pytest.fixture
def folder(tmp_path):
    """Five annotated PNG images of 96 x 128 pixels."""
    import imagecodecs

    for k in range(5):
        sample = random_sample(f"m{k}", nodes=20 + k, seed=k)
        pixels = ((sample.image[0] + 5) * 25).clamp(0, 255).to(torch.uint8).numpy()
        (tmp_path / f"m{k}.png").write_bytes(imagecodecs.png_encode(pixels))
        write_grace(
            tmp_path / f"m{k}.grace",
            sample.graph,
            annotation=sample.annotation,
            metadata={"image_filename": f"m{k}"},
        )
    return tmp_path


def counting_reader():
    calls = []

    def read(source):
        calls.append(source.name)
        return random_sample(source.name)

    return read, calls


def dataset(read, cache=0, augment=None):
    return GraceDataset(
        [Source("a", "a"), Source("b", "b")], read, Statistics(scale=9, patch=1), augment, cache=MemoryCache(cache)
    )


class TestDataset:
    def test_prepared_graph_has_every_edge_once_and_the_labels(self):
        sample = random_sample()
        data = prepare(sample, Statistics(scale=9, patch=1))
        assert torch.equal(data.edge_index, sample.graph.edges)
        assert torch.equal(data.node_label, sample.graph.node_label)
        assert data.x.shape == (40, 4)
        assert len(data.edge_attr) == sample.graph.num_edges

    def test_what_fits_the_cache_is_read_once(self):
        read, calls = counting_reader()
        data = dataset(read, cache=2**30)
        assert [data[k].name for k in (0, 1, 0, 1)] == ["a", "b", "a", "b"]
        assert calls == ["a", "b"]

    def test_what_does_not_fit_is_read_again(self):
        read, calls = counting_reader()
        data = dataset(read, cache=100)
        first, again = data[0], data[0]
        assert calls == ["a", "a"]
        assert torch.equal(first.x, again.x)

    def test_augmented_samples_are_made_anew_from_the_cached_image(self):
        read, calls = counting_reader()
        data = dataset(read, cache=2**30, augment=Augmentation({"shift": RandomXYTranslation(3)}))
        assert not torch.equal(data[0].pos, data[0].pos)
        assert calls == ["a"]
        assert torch.equal(data.prepared(0).pos, random_sample().graph.pos)


class TestFolders:
    def test_three_folders(self, folder):
        module = GraceDataModule(Statistics(scale=9, patch=1), train_image_dir=str(folder), valid_image_dir=str(folder))
        module.setup("fit")
        assert [len(module.sources[n]) for n in ("train", "valid", "infer")] == [5, 5, 0]
        batch = next(iter(module.val_dataloader()))
        assert batch.name == ["m0"]
        assert batch.num_nodes == 20

    def test_grace_folders_may_lie_elsewhere(self, folder, tmp_path):
        other = tmp_path / "elsewhere"
        other.mkdir()
        for path in folder.glob("*.grace"):
            path.rename(other / path.name)
        module = GraceDataModule(Statistics(scale=9, patch=1), infer_image_dir=str(folder), infer_grace_dir=str(other))
        module.setup("predict")
        assert len(module.sources["infer"]) == 5

    def test_batches_hold_several_images(self, folder):
        module = GraceDataModule(Statistics(scale=9, patch=1), infer_image_dir=str(folder), batch_size=3)
        module.setup("predict")
        batches = list(module.predict_dataloader())
        assert [b.name for b in batches] == [["m0", "m1", "m2"], ["m3", "m4"]]
        assert batches[0].nodes_per_image == [20, 21, 22]
        assert sum(batches[0].edges_per_image) == batches[0].edge_index.shape[1]

    def test_one_folder_is_split(self, folder):
        module = GraceDataModule(Statistics(scale=9, patch=1), image_dir=str(folder), split=[0.6, 0.2, 0.2])
        module.setup("fit")
        names = {part: {s.name for s in sources} for part, sources in module.sources.items()}
        assert [len(names[n]) for n in ("train", "valid", "infer")] == [3, 1, 1]
        assert names["train"] | names["valid"] | names["infer"] == {f"m{k}" for k in range(5)}

    def test_missing_keys_are_named(self, folder):
        with pytest.raises(InputError, match=r"data.valid_image_dir is not set"):
            GraceDataModule(Statistics(scale=9, patch=1), train_image_dir=str(folder)).setup("fit")

    @pytest.mark.parametrize(
        ("key", "others"),
        [
            ("train_image_dir", ["valid_image_dir"]),
            ("valid_grace_dir", ["train_image_dir", "valid_image_dir"]),
            ("infer_image_dir", ["train_image_dir", "valid_image_dir"]),
            ("image_dir", []),
            ("grace_dir", ["image_dir"]),
        ],
    )
    def test_missing_folders_are_named_with_their_key(self, key, others, folder):
        folders = {key: "nowhere"} | dict.fromkeys(others, str(folder))
        with pytest.raises(InputError, match=f"^data.{key}: nowhere: no such folder, expected a folder$"):
            GraceDataModule(Statistics(scale=9, patch=1), **folders).setup("fit")

    def test_both_ways_at_once_are_refused(self, folder):
        module = GraceDataModule(Statistics(scale=9, patch=1), image_dir=str(folder), infer_image_dir=str(folder))
        with pytest.raises(InputError, match=r"data.image_dir and data.infer_image_dir are both set"):
            module.setup("fit")


class TestSplit:
    SOURCES = tuple(Source(f"m{k}", f"m{k}.png") for k in range(10))

    def test_same_seed_same_split(self):
        first, again, other = (split_sources(self.SOURCES, [0.6, 0.2, 0.2], seed) for seed in (1, 1, 2))
        assert first == again != other

    @pytest.mark.parametrize(
        ("count", "split", "sizes"),
        [(10, [0.7, 0.15, 0.15], (6, 2, 2)), (2, [0.7, 0.15, 0.15], (1, 1, 0)), (10, [0.5, 0.5, 0], (5, 5, 0))],
    )
    def test_training_and_validation_are_never_empty(self, count, split, sizes):
        parts = split_sources(self.SOURCES[:count], split, 0)
        assert tuple(len(parts[n]) for n in ("train", "valid", "infer")) == sizes

    def test_fractions_must_add_up(self):
        with pytest.raises(InputError, match=r"data.split: \[0.5, 0.2, 0.2\], expected three fractions"):
            split_sources(self.SOURCES, [0.5, 0.2, 0.2], 0)

    def test_one_image_cannot_be_split(self):
        with pytest.raises(InputError, match="1 annotated image, expected 2 or more"):
            split_sources(self.SOURCES[:1], [0.7, 0.15, 0.15], 0)


def test_unknown_labels_become_negative_unless_kept(folder):
    sample = random_sample("m0", nodes=20)
    unknown = dataclasses.replace(
        sample.graph,
        node_label=torch.full((20,), 2),
        edge_label=torch.full((sample.graph.num_edges,), 2),
    )
    write_grace(folder / "m0.grace", unknown, metadata={"image_filename": "m0"})
    source = find_sources(folder)[0]
    for keep, label in ((False, 0), (True, 2)):
        module = GraceDataModule(
            Statistics(scale=9, patch=1), keep_node_unknown_labels=keep, keep_edge_unknown_labels=keep
        )
        graph = module._read(source).graph
        assert graph.node_label.unique().tolist() == [label]
        assert graph.edge_label.unique().tolist() == [label]
