"""No property test depends on the speed of the machine."""

import ast
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

TESTS = sorted(Path(__file__).parent.rglob("test_*.py"))


def test_the_default_profile_has_no_deadline():
    assert settings().deadline is None
    assert HealthCheck.too_slow in settings().suppress_health_check


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_no_test_brings_a_deadline_or_the_check_for_slowness_back(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "settings":
            for keyword in node.keywords:
                written = ast.unparse(keyword.value)
                assert keyword.arg != "deadline" or written == "None"
                assert keyword.arg != "suppress_health_check" or "too_slow" in written
