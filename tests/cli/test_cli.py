"""The command line as a user meets it: exit codes, messages, and a frozen list of commands and options."""

import argparse
import errno
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablate import cli
from ablate.api import settings
from ablate.core.config import load
from ablate.core.errors import UserError
from ablate.core.scalars import Argument, natural
from ablate.runs.config import RunConfig


def commands() -> dict[str, argparse.ArgumentParser]:
    parser = cli.build_parser()
    return next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices


def options(parser: argparse.ArgumentParser) -> list[str]:
    return sorted(flag for action in parser._actions for flag in action.option_strings if flag.startswith("--"))


def test_the_command_line_is_what_scripts_rely_on() -> None:
    assert {name: options(parser) for name, parser in commands().items()} == {
        "train": ["--checkpoint", "--config", "--help", "--print-config", "--rerun"],
        "eval": ["--benchmarks", "--device", "--help", "--out", "--precision", "--run"],
        "score": ["--annotations", "--help", "--json", "--mode", "--predictions", "--run"],
        "generate": [
            "--help",
            "--image",
            "--max-new-tokens",
            "--prompt",
            "--run",
            "--seed",
            "--temperature",
            "--top-p",
        ],
        "distill": ["--help", "--layers", "--run", "--seeding", "--stages"],
        "sweep": [
            *(
                "--baseline",
                "--connector",
                "--dry-run",
                "--engine",
                "--help",
                "--jobs",
                "--only-failed",
                "--rerun",
                "--retries",
                "--root",
                "--shard",
            ),
            *("--stop", "--threads", "--wait"),
        ],
        "table": ["--baseline", "--force", "--help", "--margin", "--out", "--root", "--vary"],
        "power": ["--difference", "--help", "--out", "--rows", "--task"],
        "failures": ["--help", "--out"],
        "data": ["--help"],
        "connectors": ["--at", "--compare", "--grid", "--help", "--png", "--scan", "--sort"],
        "list": ["--help"],
        "config": ["--help"],
    }


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "--help"])
    assert stopped.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) > 5


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from parsers(each)


@pytest.mark.parametrize("parser", list(parsers(cli.build_parser())), ids=lambda parser: parser.prog)
def test_help_says_what_every_argument_is_and_every_default(parser: argparse.ArgumentParser) -> None:
    printed = parser.format_help()
    formatter = parser._get_formatter()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            continue
        assert action.help, action.dest
        shown = formatter._expand_help(action)
        assert " ".join(shown.split()[:3]) in " ".join(printed.split())  # nothing else formats it
        if action.option_strings and action.nargs != 0 and not action.required:
            assert shown.count("default") == 1, action.option_strings
            if action.default not in (None, "", [], 0):
                assert str(action.default) in shown or f"{action.default}" == str(1 << 30), shown
        if isinstance(action, argparse._StoreTrueAction):
            assert "default" not in shown  # off


def test_settings_may_stand_before_and_after_options() -> None:
    arguments = cli.parse(["sweep", "demo", "seed=0", "--connector", "mlp", "train.epochs=2"])
    assert (arguments.sweep, arguments.connector) == ("demo", "mlp")
    assert arguments.overrides == ["seed=0", "train.epochs=2"]


@pytest.mark.parametrize("stray", ["--conector", "word", "--x=1"])
def test_what_is_no_setting_is_refused(stray: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.parse(["sweep", "demo", "--connector", "mlp", stray])
    assert stopped.value.code == 2
    assert stray in capsys.readouterr().err


@given(
    values=st.dictionaries(
        st.sampled_from(["group", "seed", "train.betas", "encoder", "blind"]),
        st.booleans()
        | st.integers()
        | st.none()
        | st.text("ab01. ", min_size=1, max_size=5)
        | st.lists(st.text("ab '\"" + chr(92)), max_size=2)
        | st.dictionaries(st.text("ab"), st.none() | st.booleans() | st.text("a'"), max_size=2),
    )
)
@pytest.mark.parametrize(
    "macro", ["args", "args_no_hyphens", "args_no_equals", "args_json", "args_append_hydra", "args_override_hydra"]
)
def test_train_reads_settings_as_wandbs_agents_write_them(macro, values) -> None:
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    written = utils.create_sweep_command_args({"args": {key: {"value": value} for key, value in values.items()}})[macro]
    arguments = cli.parse(["train", "--config", "demo", *written, "--print-config"])
    assert (arguments.config, arguments.print_config) == (["demo"], True)
    read = {key: value for key, _, value in (each.lstrip("+").partition("=") for each in arguments.overrides)}
    assert {key: natural(Argument(text)) for key, text in read.items()} == {
        key: natural(Argument(value)) if isinstance(value, str) and macro != "args_json" else value
        for key, value in values.items()
    }


def test_train_reads_flags_and_wandbs_default_command() -> None:
    assert cli.parse(["train", "--blind", "--seed=1", "--config", "demo"]).overrides == ["blind=true", "seed=1"]
    assert cli.parse(["train", "--blind", "seed=1"]).overrides == ["blind=true", "seed=1"]
    assert cli.parse(["train", "--train.learning_rate", "-1", "--seed", "2"]).overrides == [
        "train.learning_rate=-1",
        "seed=2",
    ]
    arguments = cli.parse(["--seed=1", "--connector.name=mlp"])
    assert (arguments.command, arguments.overrides) == ("train", ["seed=1", "connector.name=mlp"])


@given(text=st.from_regex(r"[-+]?[0-9]{1,3}(\.[0-9]{1,3})?(e[0-9]{1,5})?|true|false|NaN", fullmatch=True))
def test_a_json_object_gives_a_text_setting_what_stands_there(text: str) -> None:
    with suppress(ValueError):
        json.loads(text)  # or it is no JSON, such as 007
        (setting,) = cli.parse(["train", f'{{"logger.project": {text}}}']).overrides
        assert load(RunConfig, overrides=[setting]).logger.project == text


@given(text=st.from_regex(r"[a-z+]{1,5}=[a-z0-9=, ]{0,5}", fullmatch=True))
def test_a_value_with_an_equals_sign_behind_its_name(text: str) -> None:
    """As `${args_no_equals}` of a W&B agent writes it; but `--blind seed=1` are two settings."""
    assert cli.parse(["train", "--name", text, "--seed", "2"]).overrides == [f"name={text}", "seed=2"]
    assert cli.parse(["train", "--blind", text]).overrides == ["blind=true", text]


def test_a_malformed_json_object_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "{'seed': 1"])
    assert stopped.value.code == 2
    assert "JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("--temperature", value) for value in ("nan", "-1", "inf")],
        *[("--top-p", value) for value in ("0", "1.1", "nan")],
        *[("--seed", value) for value in ("-1", "1" * 30, "1.5")],
        ("--max-new-tokens", "0"),
    ],
)
def test_numbers_of_generate_have_ranges(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parse(["generate", "--run", "r", "--prompt", "p", f"{option}={value}"])
    assert f"{option}: got" in capsys.readouterr().err


def test_a_misspelt_key_is_answered_with_the_full_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--config", "demo", "train.lerning_rate=1", "--print-config"]) == 2
    assert "train.learning_rate" in capsys.readouterr().err


def test_a_value_of_the_wrong_type_names_the_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--config", "demo", "train.epochs=many", "--print-config"]) == 2
    error = capsys.readouterr().err
    assert "train.epochs" in error
    assert "many" in error


def test_an_unknown_connector_lists_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["connectors", "msc_cms"]) == 2
    error = capsys.readouterr().err
    assert "msc_csm" in error
    assert "linear" in error


@pytest.mark.parametrize("setting", ["connector.name=msc_cms", "connector.fields.depht=1", "connector.fields.depth=x"])
@pytest.mark.parametrize("command", [["train", "--config", "demo"], ["sweep", "demo", "--connector", "msc_csm"]])
def test_a_wrong_connector_is_told_before_anything_is_downloaded(
    setting: str,
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("ablate.pipeline.demo.build", pytest.fail)
    monkeypatch.chdir(tmp_path)
    settings = [setting, *([] if setting.startswith("connector.name") else ["connector.name=msc_csm"])]
    assert cli.main([*command, *settings, "logger.wandb=disabled"]) == 2
    error = capsys.readouterr().err
    assert "msc_csm" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_no_scan_order_to_draw(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["connectors", "--scan", ","]) == 2
    assert "names no scan order" in capsys.readouterr().err


def test_print_config_is_a_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["train", "--config", "demo", "seed=7", "--print-config"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(printed)
    assert cli.main(["train", "--config", str(tmp_path / "again.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("experiment", sorted(path.stem for path in settings.EXPERIMENTS.glob("*.yaml")))
def test_every_experiment_is_a_valid_config(experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--config", experiment, "--print-config"]) == 0


def test_an_unknown_config_lists_those_there_are() -> None:
    with pytest.raises(UserError, match=r'Unknown config "dmo".*demo'):
        settings.find_experiment("dmo")


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (UserError("do this"), 2, "error: do this"),
        (KeyboardInterrupt(), 130, "continues"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 1, "disk is full while writing runs/x"),
    ],
)
def test_errors_become_one_message_and_a_status(
    raised: BaseException, status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: argparse.Namespace) -> int:
        raise raised

    monkeypatch.setattr("ablate.cli.table.run", fail)
    assert cli.main(["table"]) == status
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes. Error")],
)
def test_too_little_memory_is_told(error, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("ablate.cli.config.run", fail)
    assert cli.main(["config"]) == cli.FAILED
    assert capsys.readouterr().err.startswith("error: not enough memory (")


def test_other_failures_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    for raised in (IndexError("of the program"), OSError("without a number")):

        def fail(_: argparse.Namespace, raised: Exception = raised) -> int:
            raise raised

        monkeypatch.setattr("ablate.cli.table.run", fail)
        with pytest.raises(type(raised)):
            cli.main(["table"])


def test_scan_orders_are_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["connectors", "--scan", "rows,snake_columns", "--grid", "3x4", "--png", f"{tmp_path}/s.png"]) == 0
    assert "snake_columns" in capsys.readouterr().out
    assert (tmp_path / "s.png").stat().st_size > 1000


@pytest.mark.parametrize("grid", ["3", "0x4", "3x", "axb", "9999x1"])
def test_a_grid_is_height_by_width(grid: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["connectors", "--scan", "rows", "--grid", grid]) == 2
    assert "height x width" in capsys.readouterr().err
