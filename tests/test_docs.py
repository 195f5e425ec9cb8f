"""The documentation: commands that compose, keys and links that exist."""

import re
import shlex
from pathlib import Path

import hydra
import pytest
import yaml

from grace_lightning.config import config_dir

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def commands(page):
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)).replace("\\\n", " ").splitlines()
    inline = re.findall(r"`(grace-\w+ [^`]*=[^`]*)`", page.read_text())
    lines = [line.split("  #")[0].strip() for line in [*blocks, *inline]]
    return [line for line in lines if line.startswith("grace-")]


COMMANDS = [(page.name, command) for page in PAGES for command in commands(page)]
KEYS = [
    (page.name, key)
    for page in PAGES
    for key in re.findall(r"`((?:link|features|module|data)\.\w+)`", page.read_text())
]


def test_the_pages_are_those_of_the_navigation():
    configuration = yaml.safe_load((DOCS.parent / "mkdocs.yml").read_text())
    assert sorted(configuration["nav"]) == [page.name for page in PAGES]


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_fit_the_configuration(page, command):
    name, *overrides = shlex.split(command)
    overrides = [o.replace("=...", "=x") for o in overrides if "=" in o and not o.startswith(("-", "config_file="))]
    if any(o.startswith(("experiment=optuna", "hydra/launcher=")) for o in overrides):
        pytest.importorskip("optuna")
    single = [re.sub(r"^([\w/]+=\w+),.*", r"\1", o) for o in overrides]
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        hydra.compose(name.removeprefix("grace-"), single)


@pytest.mark.parametrize(("page", "key"), sorted(set(KEYS)))
def test_keys_exist(page, key):
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        found = [hydra.compose("train", choice) for choice in ([], ["link=components"], ["features=resnet50"])]
    group, name = key.split(".")
    assert any(name in cfg[group] for cfg in found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    assert all((DOCS / target).is_file() for target in targets if not target.startswith("http"))
