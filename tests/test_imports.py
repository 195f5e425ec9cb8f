"""Imports go one way, heavy ones stay out of the command line, and the extras stay out of the core."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "grace_lightning"
ORDER = [
    *(
        "errors",
        "files",
        "stopping",
        "config",
        "legacy",
        "raster",
        "graph",
        "truth",
        "clean",
        "flatten",
        "measure",
        "io",
    ),
    *("simulate", "ridges", "estimate", "scenes", "splits"),
    *(
        "augment",
        "memory",
        "data",
        "features",
        "models",
        "link",
        "metrics",
        "figures",
        "module",
        "checkpoint",
        "predictor",
    ),
    *("sweeps", "callbacks", "dashboards", "tasks", "gui", "cli"),
]


def module_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """Modules of this package that a file imports, anywhere in it but inside functions."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("grace_lightning"):
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    own = ORDER.index(module_of(path))
    assert not [name for name in imported(path) if ORDER.index(name) > own]


def loaded(statement):
    code = f"import sys; {statement}; print(*sorted(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_command_line_starts_without_torch():
    heavy = {"torch", "pytorch_lightning", "torch_geometric", "pandas", "matplotlib", "skimage"}
    assert not heavy & loaded("import grace_lightning.cli")


def test_annotating_by_files_starts_without_lightning_and_scikit_image():
    assert not {"pytorch_lightning", "torch_geometric", "skimage"} & loaded("import grace_lightning.tasks.annotate")


def test_core_does_not_need_the_extras():
    # torchvision is not among them: torchmetrics imports it, where it is installed
    extras = ["timm", "optuna", "submitit", "tables", "sklearn", "napari", "qtpy", "magicgui"]
    hide = f"sys.modules.update(dict.fromkeys({extras}))"
    assert "grace_lightning.module" in loaded(f"{hide}; import grace_lightning.tasks.train")


def test_only_figures_imports_matplotlib():
    users = {module_of(p) for p in FILES if "from matplotlib" in p.read_text()}
    assert users == {"figures"}


def test_torchvision_is_left_to_timm():
    assert not [path for path in FILES if "import torchvision" in path.read_text()]
