"""The run folder's layout is known to one module."""

import ast
from collections.abc import Iterator
from pathlib import Path

import ablate
import connectors
import datamodules
from ablate.runs import folder
from ablate.runs.folder import RunFiles

# Weights and locks elsewhere have the same names.
ELSEWHERE = {folder.WEIGHTS_FILE, RunFiles(Path()).lock.name}


def strings(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_bytes())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_no_other_module_spells_the_run_folders_file_names():
    properties = [name for name, value in vars(RunFiles).items() if isinstance(value, property)]
    paths = [getattr(RunFiles(Path("group/run")), name) for name in properties]
    names = {path.name for path in paths if path.suffix}
    assert len(names) >= 10
    modules = [path for each in (ablate, connectors, datamodules) for path in Path(each.__file__).parent.rglob("*.py")]
    spelled = {
        f"{module}: {text}"
        for module in modules
        if module != Path(folder.__file__)
        for text in strings(module)
        if " " not in text and text.rpartition("/")[2] in names - ELSEWHERE
    }
    assert not spelled
