"""Every connector keeps the contract, whatever its name: driven by the registry."""

import pytest
import torch

import connectors
from ablate.testing import connectors as suite
from ablate.testing.suite import cases

CASES = [case for name in connectors.names() for case in cases(suite, name)]
# More than the contract asks for.
OURS = ("linear", "mlp", "msc_basic_bsm", "msc_basic_csm", "msc_bsm", "msc_csm")
SUBJECTS = [subject for name in OURS for subject in suite.subjects(name).values()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case).removeprefix("connector ").replace(" ", "_"))
def test_contract(case):
    case.check(case.subject)


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
@pytest.mark.parametrize("shape", [(2, 0, 4), (2, 3, 0), (0, 0, 0)], ids=str)
def test_no_patch_gives_no_token(subject, shape):
    features = torch.zeros(*shape, suite.IN_DIM, requires_grad=True)
    tokens = connectors.apply(subject.make(), features, suite.OUT_DIM).tokens
    assert tokens.numel() == 0
    tokens.sum().backward()
    assert features.grad.shape == features.shape
