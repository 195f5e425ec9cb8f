"""Every command of the README is one that exists; the fast ones are run as written."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import hydra
import pytest

from grace_lightning.config import config_dir

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.S)).replace("\\\n", " ").splitlines()
INLINE = re.findall(r"`((?:grace|make)[- ][^`]*=[^`]*)`", README)
COMMANDS = [line.split("  #")[0].strip() for line in [*BLOCKS, *INLINE] if line.strip()]
GRACE = [c for c in COMMANDS if c.startswith("grace-")]
FAST = [c for c in GRACE if "--help" in c or "--cfg" in c or c.startswith("grace-simulate")]


def test_the_readme_shows_commands():
    assert len(GRACE) >= 10
    assert len(FAST) >= 4


@pytest.mark.parametrize("command", GRACE)
def test_overrides_fit_the_configuration(command):
    name, *overrides = shlex.split(command)
    overrides = [o for o in overrides if "=" in o]
    if any(o.startswith(("experiment=optuna", "hydra/launcher=")) for o in overrides):
        pytest.importorskip("optuna")
    single = [re.sub(r"^(\w+=\w+),.*", r"\1", o) for o in overrides]  # a sweep's first choice
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        hydra.compose(name.removeprefix("grace-"), single)


@pytest.mark.parametrize("command", FAST)
def test_fast_commands_run_as_written(command, tmp_path):
    name, *arguments = shlex.split(command)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run([name, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("target", [c.split()[1] for c in COMMANDS if c.startswith("make ")])
def test_make_targets_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


def test_pictures_exist():
    assert all((ROOT / path).is_file() for path in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", README))


def test_the_python_example_is_five_lines_and_names_what_exists():
    import ast

    import grace_lightning

    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len([line for line in example.splitlines() if line.strip()]) <= 5
    names = [n.name for node in ast.walk(ast.parse(example)) if isinstance(node, ast.ImportFrom) for n in node.names]
    assert names
    assert all(hasattr(grace_lightning, name) for name in names)
