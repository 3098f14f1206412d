"""The pages of docs/: their Python and TOML are files that tests run, their commands are ones that there are."""

import re
import shlex
from pathlib import Path

import pytest

from ablate.cli import parse

PROJECT = Path(__file__).parents[1]
PAGES = sorted((PROJECT / "docs").rglob("*.md"))
TESTED = [path.read_text() for path in (PROJECT / "tests" / "walks" / "packages").glob("*/*.*")]
TESTED += [path.read_text() for path in (PROJECT / "tests" / "fixtures").glob("*.py")]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def test_there_are_pages():
    assert PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_is_that_of_a_tested_package(page):
    for block in blocks(page, "python") + blocks(page, "toml"):
        assert block in TESTED, f"not the text of a file in tests/walks/packages:\n{block}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_can_be_given(page):
    for line in "".join(blocks(page, "bash")).splitlines():
        program, *arguments = shlex.split(line, comments=True) or [""]
        if program == "ablate":
            parse(arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", prose):
        assert (page.parent / target).exists(), target
