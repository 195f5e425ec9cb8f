"""What a training keeps, and how it ends: a network of one weight, trained in milliseconds."""

import ctypes
import os
import random
import resource
import signal
import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml

from grace_lightning.callbacks import (
    Checkpoint,
    EarlyStopping,
    FreeMemory,
    SeedEpochs,
    StopOnSignal,
    WeightAveraging,
    WholeFiles,
)
from grace_lightning.errors import InputError, InputWarning
from grace_lightning.stopping import SIGNALS, Stopped, stopping_on_signals

NAN = float("nan")


class Toy(pl.LightningModule):
    """Its weight grows; validation logs the scores it is given, and fits a temperature to the weight that it sees."""

    def __init__(self, scores=(0.1,) * 9):
        super().__init__()
        self.scores = scores
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.register_buffer("temperature", torch.zeros(()))
        self.register_buffer("learned", torch.tensor(True))

    def training_step(self, batch, batch_idx):
        return -(self.weight**2)

    def validation_step(self, batch, batch_idx):
        pass

    def on_validation_epoch_end(self):
        self.temperature.copy_(self.weight.detach())
        self.log("score", self.scores[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(module, *own, folder=None, epochs=4, resumed=None, **options):
    """Train for some epochs of two steps; with a folder, checkpoints are kept there."""
    kept = [Checkpoint(str(folder), monitor="score")] if folder else []
    off = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    options |= {"enable_checkpointing": bool(folder), "plugins": [WholeFiles()], "max_epochs": epochs}
    loader = torch.utils.data.DataLoader(torch.zeros(2, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning would have more workers
        warnings.simplefilter("always", InputWarning)
        trainer = pl.Trainer(accelerator="cpu", callbacks=[*kept, *own], **off, **options)
        trainer.fit(module, loader, loader, ckpt_path=resumed, weights_only=True)
    return module


def read(path):
    return torch.load(path, weights_only=True)


class Kept(pl.callbacks.Checkpoint):
    """The epochs of ``best.ckpt`` and ``last.ckpt`` after each epoch; the latter is there before the first."""

    def __init__(self, folder):
        self.folder, self.best, self.last = folder, [], []

    def on_train_epoch_start(self, trainer, pl_module):
        assert (self.folder / "last.ckpt").is_file()

    def on_train_epoch_end(self, trainer, pl_module):
        for name, found in (("best", self.best), ("last", self.last)):
            path = self.folder / f"{name}.ckpt"
            found.append(read(path)["epoch"] if path.is_file() else None)


class TestCheckpoint:
    @pytest.mark.parametrize(
        ("scores", "options", "best"),
        [
            ((0.1, 0.5, 0.3, 0.2), {}, [0, 1, 1, 1]),
            ((NAN, 0.5, NAN, 0.6), {}, [0, 1, 1, 3]),
            ((0.1, 0.5, 0.3, 0.6), {"check_val_every_n_epoch": 2}, [None, 1, 1, 3]),
            ((), {"limit_val_batches": 0}, [None] * 4),
        ],
    )
    def test_best_is_the_best_and_last_the_last_whole_epoch(self, tmp_path, scores, options, best):
        kept = Kept(tmp_path)
        fit(Toy(scores), kept, folder=tmp_path, **options)
        assert (kept.best, kept.last) == (best, [0, 1, 2, 3])

    def test_a_file_that_cannot_be_written_leaves_the_old_one(self, tmp_path):
        WholeFiles().save_checkpoint({"a": 1}, tmp_path / "x.ckpt")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            with pytest.raises(InputError, match=r"x.ckpt: cannot be written \(File too large\)"):
                WholeFiles().save_checkpoint({"a": torch.zeros(1000)}, tmp_path / "x.ckpt")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]
        assert read(tmp_path / "x.ckpt") == {"a": 1}


GROWN = [1.2**steps for steps in (2, 4, 6, 8)]  # the weight after each epoch of two steps


class TestWeightAveraging:
    @pytest.mark.parametrize(("start", "first"), [(1, 1), (0.5, 2), (0, 0), (None, 3)])
    def test_validates_and_keeps_the_mean_from_an_epoch_on(self, tmp_path, start, first):
        module = fit(Toy(), WeightAveraging(start), folder=tmp_path)
        kept, mean = read(tmp_path / "last.ckpt"), sum(GROWN[first:]) / (4 - first)
        assert kept["state_dict"] == pytest.approx({"weight": mean, "temperature": mean, "learned": True})
        trained = kept.get("trained_weights", {}).get("weight")  # beside the mean, if there is one
        assert trained == (None if start is None else pytest.approx(GROWN[-1]))
        assert module.weight.item() == pytest.approx(mean)

    def test_a_run_that_goes_on_without_validation_ends_alike(self, tmp_path):
        fit(Toy(), WeightAveraging(1), folder=tmp_path, epochs=3)
        last = {"folder": tmp_path, "resumed": tmp_path / "last.ckpt"}
        module = fit(Toy(), WeightAveraging(1), limit_val_batches=0, **last)
        assert module.weight.item() == pytest.approx(sum(GROWN[1:]) / 3)

    @pytest.mark.parametrize(
        ("start", "mean", "warned"),
        [(2, sum(GROWN[2:]) / 2, None), (None, GROWN[3], None), (3, GROWN[3], None), (1, sum(GROWN[2:]) / 2, "not 2")],
    )
    def test_a_run_that_goes_on_averages_from_where_it_is_told(self, tmp_path, start, mean, warned):
        fit(Toy(), WeightAveraging(2), folder=tmp_path, epochs=3)
        told = pytest.warns(InputWarning, match=warned) if warned else nullcontext()
        with told:
            module = fit(Toy(), WeightAveraging(start), folder=tmp_path, resumed=tmp_path / "last.ckpt")
        assert module.weight.item() == pytest.approx(mean)

    def test_a_start_that_is_no_epoch_is_refused(self):
        for start in (1.5, -1):
            with pytest.raises(InputError, match=rf"weight_averaging.start: {start}, expected an epoch, or a fraction"):
                WeightAveraging(start)
        with pytest.raises(InputError, match=r"weight_averaging.start: 0.5 of endless epochs, expected an epoch"):
            fit(Toy(), WeightAveraging(0.5), epochs=-1)


def stopping(**changes):
    conf = yaml.safe_load((Path(__file__).parents[1] / "conf/callbacks/default.yaml").read_text())["early_stopping"]
    del conf["_target_"]
    return EarlyStopping(**{**conf, "monitor": "score", "mode": "max", **changes})


class TestEarlyStopping:
    @pytest.mark.parametrize(
        ("scores", "changes", "options", "epochs"),
        [
            ((0.5, 0.1, NAN, 0.1), {}, {}, 4),  # as it is shipped, never
            ((0.5, 0.1, NAN, 0.1), {"patience": 2}, {}, 3),
            ((0.5, 0.6, 0.9, 0.9), {"patience": 1, "min_delta": 0.2}, {}, 2),
            ((), {"patience": 1}, {"limit_val_batches": 0}, 4),
        ],
    )
    def test_stops_after_some_epochs_without_a_better_score(self, scores, changes, options, epochs):
        assert fit(Toy(scores), stopping(**changes), **options).trainer.current_epoch == epochs

    def test_a_run_that_was_stopped_for_good_does_not_go_on(self, tmp_path):
        for resumed in (None, tmp_path / "last.ckpt"):
            fit(Toy(), stopping(patience=1), folder=tmp_path, resumed=resumed)
            assert read(tmp_path / "last.ckpt")["epoch"] == 1

    def test_epochs_without_a_limit_do_not_count(self, tmp_path):
        fit(Toy(), stopping(), folder=tmp_path)
        fit(Toy(), stopping(patience=2), folder=tmp_path, resumed=tmp_path / "last.ckpt", epochs=9)
        assert read(tmp_path / "last.ckpt")["epoch"] == 5


class TestSignals:
    @pytest.mark.parametrize("number", SIGNALS)
    def test_stop_the_first_process_also_in_training(self, number, monkeypatch):
        before = signal.getsignal(number)
        with stopping_on_signals(first=False):
            os.kill(os.getpid(), number)
        monkeypatch.setattr(Toy, "validation_step", lambda *_: os.kill(os.getpid(), number))
        for inside in (Toy().validation_step, lambda: fit(Toy(), StopOnSignal())):
            with pytest.raises(Stopped, match=number.name) as stop, stopping_on_signals():
                inside()
            assert stop.value.signal is number
            assert signal.getsignal(number) is before


def test_random_numbers_depend_on_seed_and_epoch_alone(monkeypatch):
    drawn = []
    monkeypatch.setattr(Toy, "validation_step", lambda *_: drawn.append((float(torch.rand(())), random.random())))
    for seed in (0, 0, 1):
        torch.rand(len(drawn) + 1)
        fit(Toy(), SeedEpochs(seed), epochs=2, num_sanity_val_steps=0)
    assert drawn[:4] == drawn[4:8]
    assert len(set(drawn)) == 8  # no two epochs, batches or seeds alike


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_memory_that_nothing_is_in_is_given_back():
    held = [torch.ones(10_000) for _ in range(5_000)]  # 200 MB in pieces too small to be given back one by one
    kept, pages = held[::500], lambda: int(Path("/proc/self/statm").read_text().split()[1])
    full = pages()
    del held
    FreeMemory().on_train_epoch_end(None, None)
    assert (full - pages()) * resource.getpagesize() > 1e8
    assert all(part.sum() == 10_000 for part in kept)
