"""Every benchmark keeps the contract."""

import runpy
from pathlib import Path

import pytest

from ablate.evaluation.benchmarks import registry
from ablate.testing import benchmarks

WRITERS = runpy.run_path(str(Path(__file__).parent / "conftest.py"))["WRITERS"]


@pytest.fixture(scope="module", params=registry.names())
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> benchmarks.Subject:
    """Those of the demo and those with OCR words are subclasses, in the layout of their parents."""
    kinds = registry.get(request.param).__mro__
    return benchmarks.Subject(request.param, next(WRITERS[kind.name] for kind in kinds if kind.name in WRITERS))


@pytest.mark.parametrize("check", benchmarks.CHECKS, ids=lambda check: check.__name__)
def test_contract(check, subject):
    check(subject)
