"""Every recipe keeps the contract; losses of connectors do not depend on micro-batches."""

import pytest
from torch import nn

import connectors
from ablate.core.files import read_lines
from ablate.model.recipe import registry
from ablate.pipeline.train import train
from ablate.runs.folder import RunFiles
from ablate.testing import recipes
from ablate.testing.suite import cases

CASES = [case for name in registry.names() for case in cases(recipes, name)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case).replace(" ", "_"))
def test_contract(case):
    case.check(case.subject)


class Large(connectors.Connector):
    """Has a loss for each image: the mean square of its tokens.

    Args:
        weight: of the loss.
    """

    losses = ("size",)

    def __init__(self, in_dim: int, out_dim: int, *, weight: float = 1.0) -> None:
        super().__init__(in_dim, out_dim)
        self.projection, self.weight = nn.Linear(in_dim, out_dim), weight

    def forward(self, features):
        tokens = self.projection(features.flatten(1, 2))
        return connectors.Tokens(tokens, {"size": self.weight * tokens.square().mean(dim=(1, 2))})


def test_a_connectors_loss_does_not_depend_on_micro_batches(configure):
    connectors.register("large")(Large)
    try:
        runs = [
            train(configure("connector.name=large", f"data.micro_batch={size}", f"group=g{size}")) for size in (0, 1, 3)
        ]
        plain = train(configure("connector.name=large", "connector.fields.weight=0"))
    finally:
        del connectors.contract.registry._members["large"]
    lines = [read_lines(RunFiles(run).steps) for run in runs]
    for name in ("loss", "loss/size", "grad_norm"):
        first = [line[name] for line in lines[0]]
        assert all([line[name] for line in others] == pytest.approx(first, rel=1e-4) for others in lines[1:])
    assert all(0 <= line["loss/size"] < line["loss"] for line in lines[0])  # 0 where no sample has an image
    assert read_lines(RunFiles(plain).steps)[0]["loss/size"] == 0
    sizes = [each[-1]["loss/size"] for each in lines]
    assert sizes[0] < lines[0][0]["loss/size"]  # it is learned
