"""`make help` is the table of contents: every target that a user may call stands in it."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text()


@pytest.fixture(scope="module")
def help_text() -> str:
    return subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def phony_targets() -> list[str]:
    return re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE).group(1).split()


@pytest.mark.parametrize("target", phony_targets())
def test_every_target_is_listed_with_a_sentence(target: str, help_text: str) -> None:
    assert re.search(rf"^  make {target} +\S.+$", help_text, re.MULTILINE)


def test_every_rule_is_phony_or_a_file_of_the_environment() -> None:
    rules = re.findall(r"^([a-z-]+):(?!=)", MAKEFILE, re.MULTILINE)
    assert sorted(rules) == sorted(phony_targets())


@pytest.mark.parametrize("command", ["make sweep CONNECTOR=msc_csm", "make test"])
def test_the_readme_names_commands_that_exist(command: str) -> None:
    assert command in (ROOT / "README.md").read_text()
    assert command.split()[1] in phony_targets()
