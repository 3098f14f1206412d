"""What is imported is listed in pyproject.toml, and what is listed there is imported."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("ablate", "connectors", "datamodules")
WITH_TORCH = {"triton"}  # comes with torch where there are kernels to run


def listed(group: str) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = project["dependencies"] if group == "" else project["optional-dependencies"][group]
    return {normalized(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported() -> dict[str, set[str]]:
    """Distribution -> the files that import it."""
    distributions, found = packages_distributions(), {}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for module in modules_of(ast.parse(path.read_text())):
            if module not in {*sys.stdlib_module_names, *PACKAGES, *WITH_TORCH}:
                for name in distributions.get(module, [module]):
                    found.setdefault(normalized(name), set()).add(str(path.relative_to(ROOT)))
    return found


def modules_of(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def test_imports_are_listed():
    known = listed("") | listed("transformers") | listed("lmms-eval") | listed("notebook")
    missing = {name: files for name, files in imported().items() if name not in known}
    assert not missing


@pytest.mark.parametrize("name", sorted(listed("")))
def test_a_listed_package_is_imported(name):
    assert name in imported()
