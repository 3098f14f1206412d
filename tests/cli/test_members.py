"""`ablate list`: every kind of member, and each member with all of its fields."""

import importlib

import pytest

from ablate.cli import main
from ablate.cli.members import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_every_member_is_listed_and_described(kind, capsys):
    registry = importlib.import_module(KINDS[kind][0]).registry
    assert registry.group == f"ablate.{kind}"
    assert main(["list", kind]) == 0
    out = capsys.readouterr().out
    for name in registry.names():
        assert name in out
        assert registry.describe(name).summary, f"{name} has no docstring"
    assert main(["list", kind, *registry.names()]) == 0
    out = capsys.readouterr().out
    for name in registry.names():
        for field in registry.describe(name).fields:
            assert field.name in out


def test_an_unknown_name_or_kind_is_answered_with_the_choices(capsys):
    assert main(["list", "recipes", "finetun"]) == 2
    assert "finetune" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["list", "recipe"])
    assert "recipes" in capsys.readouterr().err
