"""Every recipe keeps the contract."""

import pytest

from ablate.model.recipe import registry
from ablate.testing import recipes
from ablate.testing.suite import cases

CASES = [case for name in registry.names() for case in cases(recipes, name)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case).replace(" ", "_"))
def test_contract(case):
    case.check(case.subject)
