"""README and documentation: commands, keys, links and examples work, and the picture of the modules is true."""

import pkgutil
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
import torch
import yaml

from grace_lightning import cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]}


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.S)


def commands(page):
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`([^`\n]*grace-\w+ [^`\n]*=[^`\n]*)`", PAGES[page])
    return {line.removeprefix("PYTHONPATH=. ").strip() for line in lines if "grace-" in line}


COMMANDS = sorted({command for page in PAGES for command in commands(page) if command.startswith("grace-")})


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_fit_the_configuration(command):
    name, *arguments = shlex.split(command, comments=True)
    overrides = [a.replace("=...", "=x") for a in arguments if a[0] == "~" or (a[0] != "-" and "=" in a)]
    overrides = [cli._readable(o, in_sweep=True) for o in overrides]
    overrides = [re.sub(r"^([\w/.]+=)(?:range\()?(\w+),.*", r"\1\2", o) for o in overrides if not o.endswith("=mine")]
    if any(o.startswith(("experiment=optuna", "hydra/launcher=")) for o in overrides):
        pytest.importorskip("optuna")
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        hydra.compose(name.removeprefix("grace-"), overrides)


def keys(node, prefix):
    for key, value in node.items() if isinstance(node, dict) else ():
        yield from (f"{prefix}{key}", *keys(value, f"{prefix}{key}."))


def test_keys_exist():
    known = set()
    for path in (ROOT / "conf").glob("**/*.yaml"):
        groups = path.parent.relative_to(ROOT / "conf").parts
        prefix = "" if groups in ((), ("experiment",)) else f"{groups[0]}."
        known |= set(keys(yaml.safe_load(path.read_text()), prefix))
    groups = {key.partition(".")[0] for key in known if "." in key} - {"hydra", "defaults"}
    text = "\n".join(PAGES[page] for page in PAGES if page != "architecture.md").replace("data.simulation.sim", "sim")
    named = set(re.findall(rf"[`'~]((?:{'|'.join(groups)})\.[a-z_.]+)[`=]", text))
    assert len(named) > 40
    assert named - known == set()


@pytest.mark.slow
def test_fast_commands_run_as_written(tmp_path):
    for name, *arguments in map(shlex.split, ("grace-train --help", "grace-simulate out_dir=sim num_images=2 seed=0")):
        assert any(command.startswith(f"{name} {arguments[0]}") for command in COMMANDS)
        done = subprocess.run([Path(sys.executable).parent / name, *arguments], cwd=tmp_path, capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")


def test_links_pictures_pages_and_make_targets_exist():
    for page, text in PAGES.items():
        folder = ROOT if page == "README.md" else DOCS
        targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
        assert not [(page, to) for to in targets if not to.startswith("http") and not (folder / to).is_file()]
    navigation = re.findall(r"^  - (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted([*navigation, "README.md"]) == sorted(PAGES)
    for target in re.findall(r"^make (\w+)", PAGES["README.md"], re.M):
        assert f"\n{target}: " in (ROOT / "Makefile").read_text()


def test_python_examples():
    (example,) = blocks("README.md", "python")
    assert len(example.replace("\n\n", "\n").splitlines()) <= 5
    exec(example.split("\n\n")[0])  # its imports
    exec("".join(blocks("architecture.md", "python")), names := {})
    network = names["MyNetwork"](5, 7)
    x, edges, edge_x = torch.rand(3, 5), torch.tensor([[0, 1], [1, 2]]), torch.rand(2, 7)
    there, back = network(x, edges, edge_x), network(x, edges.flip(0), edge_x)
    assert (len(there["node"]), len(there["edge"])) == (3, 2)
    assert all(torch.allclose(there[head], back[head], atol=1e-5) for head in there)  # added up in another order


def test_architecture_shows_the_modules_and_their_imports():
    drawn = runpy.run_path(str(DOCS / "modules.py"))
    page, modules = PAGES["architecture.md"], drawn["imports"]().keys()
    assert blocks("architecture.md", "mermaid") == [drawn["picture"]()], "draw it anew: python docs/modules.py"
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.M)) == set(modules)
    for name in re.findall(rf"`((?:{'|'.join(modules)})\.[a-z]*\w+(?:\.\w+)*)`", page):
        pkgutil.resolve_name(f"grace_lightning.{name}")
