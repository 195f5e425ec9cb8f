"""Draws the picture of the modules in architecture.md from the imports: ``python docs/modules.py``."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PICTURE = re.compile(r"(?<=```mermaid\n).*?(?=```)", re.S)


def imports() -> dict[str, set[str]]:
    """Return which modules each module of the package imports; a package counts as one module."""
    package = ROOT / "src" / "grace_lightning"
    found: dict[str, set[str]] = {}
    for path in set(package.rglob("*.py")) - {package / "__init__.py"}:
        own = found.setdefault(path.relative_to(package).parts[0].removesuffix(".py"), set())
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("grace_lightning"):
                own.update(node.module.split(".")[1:2] or [alias.name for alias in node.names])
    found["cli"].add("tasks")  # by its name, once a command runs
    return {name: others & found.keys() - {name} for name, others in found.items()}


def picture() -> str:
    """Return the imports as Mermaid has it, without arrows to what is reached through another module."""
    direct = imports()

    @cache
    def below(name: str) -> set[str]:
        return direct[name].union(*map(below, direct[name]))

    # With an underscore, since Mermaid has words of its own, such as graph.
    lines = ["flowchart TD", *(f'    _{name}["{name}"]' for name in sorted(direct))]
    arrows = [(a, b) for a in direct for b in direct[a] if not any(b in below(other) for other in direct[a])]
    return "\n".join([*lines, *(f"    _{a} --> _{b}" for a, b in sorted(arrows)), ""])


if __name__ == "__main__":
    PAGE.write_text(PICTURE.sub(picture(), PAGE.read_text()))
