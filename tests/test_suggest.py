"""Which micrographs are suggested for annotation."""

import re

import numpy as np
import pytest

from grace_lightning.tasks.suggest import doubt, suggest

SURE, FAINT, MANY = np.array([0.01, 0.99, 0.99]), np.array([0.4, 0.5]), np.full(9, 0.3)


def test_doubt_is_the_entropy_in_bits():
    assert doubt(np.array([0.5, 0.0, 1.0, 0.5])) == pytest.approx(2)
    assert doubt(np.zeros(0)) == 0.0


def test_what_would_tell_most_comes_first():
    assert suggest([SURE, FAINT, MANY], 2) == [2, 1]
    assert suggest([SURE, SURE, SURE], 5) == [0, 1, 2]
    assert suggest([], 3) == []


def test_the_command_names_them(run, checkpoint, data):
    typed = [f"checkpoint={checkpoint}", f"image_dir={data}", "out_dir=out", "trainer.accelerator=cpu"]
    status, out, _ = run("predict", *typed, "suggest=2")
    assert status == 0
    lines = out.splitlines()
    start = lines.index("their annotation would teach the network most (bits of doubt about their detections):")
    assert all(re.fullmatch(r"  micrograph_000\d  \d+", line) for line in lines[start + 1 : start + 3])
    assert run("predict", *typed, "suggest=2")[1].splitlines()[-2:] == lines[start + 1 : start + 3]  # from what is done
    status, _, err = run("predict", *typed, "suggest=0")
    assert (status, "suggest: 0, expected a number of images" in err) == (2, True)
