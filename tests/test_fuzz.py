"""Damaged files are refused by name or read as something sensible; and the fuzzer sees it if they are not."""

from importlib import import_module
from pathlib import Path

import pytest

from grace_lightning.errors import InputError

COUNT = 500


@pytest.fixture(scope="module")
def fuzz():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        yield import_module("fuzz")


@pytest.fixture(scope="module")
def kinds(fuzz, tmp_path_factory):
    return fuzz.sound_files(tmp_path_factory.mktemp("sound"))


def sound(data, rng):
    return data


def test_sound_files_are_read(fuzz, kinds):
    unspoilt = {name: kind._replace(spoil=sound) for name, kind in kinds.items()}
    assert {outcome.what for outcome in fuzz.fuzz(unspoilt, len(kinds), seed=0)} == {"read"}


@pytest.mark.slow
def test_damaged_files_are_refused_by_name_or_read(fuzz, kinds):
    outcomes = fuzz.fuzz(kinds, COUNT, seed=0)
    assert fuzz.examples(outcomes) == []
    assert all(sum(o.what == what for o in outcomes) > COUNT / 10 for what in ("refused", "read"))


@pytest.mark.slow
def test_commands_name_the_damaged_image_and_do_the_others(fuzz, tmp_path):
    folders = fuzz.sound_folders(tmp_path)
    unspoilt = {name: kind._replace(spoil=sound) for name, kind in folders.items() if name.endswith(("float", "box"))}
    assert {outcome.what for outcome in fuzz.fuzz(unspoilt, len(unspoilt), seed=0)} == {"read"}
    outcomes = fuzz.fuzz(folders, len(folders), seed=0)
    assert fuzz.examples(outcomes) == []
    assert {outcome.what for outcome in outcomes} == {"refused", "read"}


def raises(error):
    def read(path):
        raise error

    return read


def test_failures_are_seen(fuzz, monkeypatch, tmp_path):
    monkeypatch.setattr(fuzz, "SECONDS", 0.5)
    monkeypatch.setattr(fuzz, "GIB", 2**-5)

    def stalls(path):
        while True:
            pass

    reads = {
        "foreign": raises(KeyError("x")),
        "unnamed": raises(InputError("x: no such column")),
        "insane": lambda path: False,
        "slow": stalls,
        "large": lambda path: bytearray(b"1" * 2**26) and True,
        "refused": raises(InputError("a.csv: no column x")),
        "read": lambda path: True,
    }
    kinds = {name: fuzz.Kind({"a.csv": b"x,y\n1,2\n"}, fuzz.spoil_text, read) for name, read in reads.items()}
    outcomes = fuzz.fuzz(kinds, len(kinds), seed=0, keep=tmp_path)
    assert [outcome.what for outcome in outcomes] == [*kinds]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{k}-{name}" for k, name in enumerate([*kinds][:5])]
    assert len(fuzz.examples(outcomes)) == 5
