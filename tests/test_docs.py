"""README and docs/: their Python and TOML are files that tests run, their commands and settings exist."""

import re
import shlex
from pathlib import Path

import pytest

import connectors
from ablate.api.settings import find_experiment
from ablate.cli import COMMANDS, parse
from ablate.core.config import load
from ablate.core.errors import UserError
from ablate.runs.config import RunConfig
from ablate.sweeps.engines import registry as engines
from ablate.sweeps.operations import split_options
from connectors.scan_orders import scan_order_names

PROJECT = Path(__file__).parents[1]
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").rglob("*.md"))]
TESTED = [path.read_text() for path in (PROJECT / "tests" / "walks" / "packages").glob("*/*.*")]
TESTED += [path.read_text() for path in (PROJECT / "tests" / "fixtures").glob("*.py")]
TARGETS = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
PLACEHOLDERS = {"KIND", "KEY", "[KEY]", "..."}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """Every command line of the page: in blocks, indented, or in the text."""
    text = page.read_text().replace("\\\n", " ")
    shell = "".join(blocks(page, "bash")).splitlines()
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    shell += re.findall(r"^    (\S.*)$", outside, re.MULTILINE)
    shell += [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", outside)]
    lines = [_words(line) for line in shell]
    return [words for words in lines if words]


def _words(line: str) -> list[str]:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # no command: a table has quotes of another kind
        return []
    return [words[0].removeprefix(".venv/bin/"), *words[1:]] if words else []


@each_page
def test_code_is_that_of_a_tested_package(page):
    for block in blocks(page, "python") + blocks(page, "toml"):
        assert block in TESTED, f"not the text of a file in tests/walks/packages or tests/fixtures:\n{block}"


@each_page
def test_commands_can_be_given(page):
    for program, *arguments in commands(page):
        if (
            program == "ablate"
            and arguments[1:]
            and arguments[1:] != ["--help"]
            and arguments[0] in COMMANDS
            and not PLACEHOLDERS & set(arguments)
        ):
            check_command(arguments)
        elif program == "make":
            named = [word for word in arguments if "=" not in word]
            assert set(named) <= TARGETS, arguments


def check_command(arguments):
    parsed = parse(arguments)
    added = {path.name for path in (PROJECT / "tests" / "walks" / "packages").iterdir()}
    if arguments[0] == "train" and not any(name in word for word in arguments for name in (*added, "$(")):
        load(RunConfig, [find_experiment(name) for name in parsed.config], parsed.overrides)
    elif arguments[0] != "data":
        overrides = getattr(parsed, "overrides", [])
        if arguments[0] == "sweep":
            overrides, options = split_options(overrides)
            if parsed.engine in engines.names():
                engines.check(parsed.engine, options)
        for setting in overrides:
            key, _, value = re.sub(r"^stage[123]\.", "", setting).partition("=")
            several = arguments[0] == "sweep" and not value.startswith("[")
            for each in value.split(",") if several else [value]:
                check_setting(f"{key}={each}")


def check_setting(setting):
    """There is one of that name, and it takes a value of that kind; what others it needs beside it is not asked."""
    if setting.startswith("data.root=") or re.search(r"=.*(\b[A-Z]+\b|\$\()", setting):
        return
    try:
        load(RunConfig, overrides=[setting])
    except UserError as error:
        if str(error).startswith("override"):
            raise


@each_page
def test_settings_in_the_text_are_ones_that_there_are(page):
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    groups = "data|train|evaluation|features|encoder|language|logger"
    for setting in re.findall(rf"`((?:{groups})\.[\w.]+=[^`\s]+)`", prose):
        check_setting(setting)


def test_the_yaml_of_pages_is_a_config(tmp_path):
    found = [block for page in PAGES for block in blocks(page, "yaml") if "parameters:" not in block]
    assert found
    for block in found:
        (tmp_path / "config.yaml").write_text(block)
        load(RunConfig, [tmp_path / "config.yaml"])


@each_page
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)", prose):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert anchor[1:] in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


def test_the_readme_is_short_and_leads_to_every_page():
    readme, index = (PROJECT / "README.md").read_text(), (PROJECT / "docs" / "README.md").read_text()
    assert len(readme.splitlines()) <= 125
    for page in (PROJECT / "docs").rglob("*.md"):
        name = str(page.relative_to(PROJECT / "docs"))
        assert name == "README.md" or f"({name})" in index, name


def test_every_connector_and_scan_order_is_on_its_page():
    text = (PROJECT / "docs" / "connectors.md").read_text()
    missing = [name for name in connectors.names() if f"`{name}`" not in text]
    assert not missing
    orders = {name.removesuffix("_reversed").removeprefix("snake_").rstrip("0123456789") for name in scan_order_names()}
    assert not [name for name in orders if name not in text]
