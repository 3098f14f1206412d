"""`make help` is the table of contents: every target that a user may call stands in it."""

import os
import re
import signal
import subprocess
import time
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


# -- Set-up that fails: a stand-in for pip ----------------------------------------------------------------------------


def start_setup(folder: Path, pip: str, target: str = "setup") -> subprocess.Popen:
    """`make setup` with an environment that is made, and this shell script as its pip."""
    (folder / "bin").mkdir()
    (folder / ".python").touch()
    script = folder / "bin" / "pip"
    script.write_text(f"#!/bin/bash\n{pip}\n")
    script.chmod(0o755)
    return subprocess.Popen(
        ["make", target, f"VENV={folder}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("target", ["setup", "test"])
def test_without_a_package_registry_the_setup_says_what_to_do(target: str, tmp_path: Path) -> None:
    failing = "echo 'ERROR: No matching distribution found for setuptools>=77' >&2; exit 1"
    process = start_setup(tmp_path, failing, target)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "No matching distribution" in said
    assert said.count("error: pip could not install Ablate's packages") == 1
    assert "package registry" in said
    assert not (tmp_path / ".installed").exists()


def test_an_interrupted_setup_is_not_taken_for_a_missing_registry(tmp_path: Path) -> None:
    waiting = f"trap 'exit 1' INT; touch {tmp_path}/started; for i in {{1..600}}; do sleep 0.1; done"
    process = start_setup(tmp_path, waiting)
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Interrupted. The same command continues." in said
    assert "registry" not in said
    assert not (tmp_path / ".installed").exists()
