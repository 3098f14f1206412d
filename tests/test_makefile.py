"""`make help` is the table of contents: every target that a user may call stands in it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ablate.ssm.kernels import INSTALL_COMMAND

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
        # Where the tests run in the background of a script, SIGINT is ignored, and a shell cannot undo that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
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


# -- What was skipped, and CI ------------------------------------------------------------------------------------------


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("target", ["test", "test-all", "test-gpu"])
def test_every_test_target_ends_with_what_was_skipped_and_why(target: str, tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "@pytest.mark.gpu\n@pytest.mark.parametrize('number', range(3))\n"
        "def test_one(number): pytest.skip('no browser here')\n"
        "@pytest.mark.gpu\ndef test_two(): pass\n"
    )
    # The real pytest, but on these tests alone; `make test` leaves the GPU's out.
    run = f"{sys.executable} -m pytest -p no:cacheprovider --rootdir {tmp_path} {tmp_path} --override-ini addopts=-q"
    options = "${@:3}" if target != "test" else "$3"
    script(tmp_path / "bin" / "python", f"exec {run} {options}")
    for mark in (".python", ".installed", ".installed-dev"):
        (tmp_path / mark).touch()
    done = subprocess.run(["make", target, f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^SKIPPED \[3\] .*: no browser here$", done.stdout, re.MULTILINE)
    assert "1 passed, 3 skipped" in done.stdout


@pytest.mark.parametrize(
    ("user", "apt", "browser", "said"),
    [
        (0, "exit 0", False, ""),
        (0, "exit 100", False, "tests that drive a browser will be skipped"),
        (0, None, False, "tests that drive a browser will be skipped"),
        (1000, "exit 0", False, "tests that drive a browser will be skipped"),
        (0, "exit 0", True, ""),
    ],
)
def test_ci_installs_a_browser_where_it_can_and_tests_all_the_same(
    user: int, apt: str | None, browser: bool, said: str, tmp_path: Path
) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    log = tmp_path / "log"
    script(tmp_path / "bin" / "make", f"echo make $@ >> {log}")
    script(tmp_path / "bin" / "id", f"echo {user}")
    if apt is not None:
        script(tmp_path / "bin" / "apt-get", f"echo apt-get $@ >> {log}; {apt}")
    if browser:
        script(tmp_path / "bin" / "chromium", "")
    for program in ("bash", "dirname", "timeout"):  # and no other program of this machine
        (tmp_path / "bin" / program).symlink_to(shutil.which(program))
    done = subprocess.run(
        [tmp_path / "bin" / "bash", tmp_path / ".ci" / "run"],
        env={"PATH": str(tmp_path / "bin")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert said in done.stderr
    assert bool(done.stderr) == bool(said)
    lines = log.read_text().splitlines()
    assert lines[-2:] == ["make lint", "make test"]
    installed = [line for line in lines if line.startswith("apt-get install")]
    assert len(installed) == (user == 0 and apt == "exit 0" and not browser)
    assert all("--no-install-recommends chromium" in line for line in installed)


def test_ci_fails_where_the_tests_do(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    script(tmp_path / "bin" / "chromium", "")
    script(tmp_path / "bin" / "make", '[ "$1" = lint ]')
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    assert subprocess.run([tmp_path / ".ci" / "run"], env=environment, check=False).returncode != 0


@pytest.mark.parametrize("name", ["Makefile", "docs/cluster.md"])
def test_mamba_ssm_is_installed_by_one_command_everywhere(name: str) -> None:
    text = " ".join((ROOT / name).read_text().replace("\\\n", " ").split())
    flags, _, packages = INSTALL_COMMAND.partition("pip install ")
    version, einops = packages.split()[-2:]
    for each in (flags.strip(), "--no-build-isolation --no-deps", version):
        assert each in text
    assert not re.search(rf"mamba-ssm==(?!{re.escape(version.partition('==')[2])})|--no-deps mamba-ssm(?!==)", text)
    assert INSTALL_COMMAND in text or f'"{einops}>=' in (ROOT / "pyproject.toml").read_text()
