"""The contract of a connector, by what it declares (`connectors.Connector`). Small connectors, on the CPU."""

from __future__ import annotations

import itertools
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

import connectors
from ablate.core.errors import UserError
from connectors.contract import Connector, Text, Tokens, registry

__all__ = ["CHECKS", "Subject", "registry", "subjects"]

TOWERS, IN_DIM, OUT_DIM = (16, 8), 24, 16
SMALL_GRIDS = ((3, 4), (4, 4), (3, 3), (2, 5), (4, 1), (1, 1))
LARGE_GRIDS = ((6, 6), (7, 7), (8, 8), (12, 12), (14, 14), (16, 16), (24, 24), (27, 27))


@dataclass(frozen=True)
class Subject:
    """One form of a connector: its name and fields."""

    name: str
    fields: Mapping[str, Any]

    def make(self, seed: int = 0) -> Connector:
        torch.manual_seed(seed)
        in_dim = TOWERS if registry.get(self.name).reads_towers else IN_DIM
        return connectors.create(self.name, in_dim, OUT_DIM, **self.fields)

    def trained(self, seed: int = 0) -> Connector:
        """As after some training: no parameter is zero any more. In evaluation mode."""
        connector = self.make(seed).eval()
        size = 0.1 if connector.starts_at_zero else 0.02
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in connector.parameters():
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
        return connector

    def grids(self, connector: Connector) -> list[tuple[int, int]]:
        """The small grids that it takes; a large one if it takes none of them."""
        small = [grid for grid in SMALL_GRIDS if _takes(connector, grid)]
        large = [grid for grid in LARGE_GRIDS if _takes(connector, grid)]
        assert small or large, f"takes none of the grids {SMALL_GRIDS + LARGE_GRIDS}"
        return small or large[:1]


def subjects(name: str) -> dict[str, Subject]:
    """Every combination of the fields that are choices; others as the class's `test_fields`, or their defaults."""
    member = registry.get(name)
    hints = connectors.signature(name).hints
    choices = {
        key: typing.get_args(hint)
        for key, (hint, _) in hints.items()
        if typing.get_origin(hint) is Literal and key not in member.test_fields
    }
    found = {}
    for values in itertools.product(*choices.values()):
        label = "-".join(map(str, values))
        found[label] = Subject(name, {**member.test_fields, **dict(zip(choices, values, strict=True))})
    return found


def every_grid_that_it_takes_becomes_tokens(subject: Subject) -> None:
    connector = subject.make()
    for grid in subject.grids(connector):
        tokens = _run(connector, _features(grid=grid)).tokens
        assert tokens.dtype == torch.float32
        assert tokens.isfinite().all(), f"tokens that are not finite, for a grid {grid}"


def no_image_gives_no_token_and_gradients_of_zero(subject: Subject) -> None:
    connector = subject.make()
    features = torch.zeros(0, *subject.grids(connector)[0], IN_DIM, requires_grad=True)
    returned = _run(connector, features)
    (returned.tokens.sum() + sum(loss.sum() for loss in returned.losses.values())).backward()
    without = [name for name, p in connector.named_parameters() if p.grad is None]
    assert not without, f"no gradient: {', '.join(without)}"
    assert not any(p.grad is not None and p.grad.any() for p in connector.parameters())


def gradients_reach_every_parameter_and_the_features(subject: Subject) -> None:
    connector = subject.trained()
    features, text = _features(grid=subject.grids(connector)[0]).requires_grad_(), _text()
    text.embeddings.requires_grad_()
    returned = _run(connector, features, text)
    (returned.tokens.square().sum() + sum(loss.sum() for loss in returned.losses.values())).backward()
    dead = [name for name, p in connector.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead, f"no gradient: {', '.join(dead)}"
    assert features.grad is not None
    assert features.grad.any(dim=(0, 3)).all() if connector.reads_every_patch else features.grad.any()
    seen = text.embeddings.grad is not None and bool(text.embeddings.grad.any())
    assert not connector.reads_text or seen, "the question has no gradient"


def the_seed_decides_the_weights(subject: Subject) -> None:
    weights, draws = [], []
    for seed in (0, 0, 1):
        weights.append(subject.make(seed).state_dict())
        draws.append(float(torch.rand(())))
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items()), "same seed, other weights"
    assert draws[0] != draws[2], "the connector seeds PyTorch's generator: every run would have the same weights"
    # Drawn at random, not a constant or a table of a few values: most of its values differ.
    drawn = [name for name, value in weights[0].items() if value.is_floating_point() and _most_differ(value)]
    stuck = [name for name in drawn if torch.equal(weights[0][name], weights[2][name])]
    assert not stuck, f"the same for every seed: {', '.join(stuck)}"


def same_input_same_bits(subject: Subject) -> None:
    connector = subject.trained()
    features = _features(grid=subject.grids(connector)[0])
    assert torch.equal(_run(connector, features).tokens, _run(connector, features).tokens)


def images_do_not_see_each_other(subject: Subject) -> None:
    connector = subject.trained().double()
    grid = subject.grids(connector)[0]
    features, text = _features(grid=grid).double(), _text(dtype=torch.float64)
    others = torch.cat([features[:1], 100 * _features(2, grid, seed=2).double()])
    _assert_near(_run(connector, features, text).tokens[:1], _run(connector, others, text).tokens[:1], "other images")
    alone = _run(connector, features[:1], Text(text.embeddings[:1], text.mask[:1])).tokens
    _assert_near(_run(connector, features, text).tokens[:1], alone, "the image alone")


def weights_can_be_saved_and_loaded(subject: Subject) -> None:
    connector, other = subject.trained(0), subject.trained(1)
    features = _features(grid=subject.grids(connector)[0])
    other.load_state_dict(connector.state_dict())
    assert torch.equal(_run(connector, features).tokens, _run(other, features).tokens), "state_dict is not all of it"


def bfloat16_stays_near_float32(subject: Subject) -> None:
    connector = subject.trained()
    features = _features(grid=subject.grids(connector)[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = _run(connector, features).tokens
        tokens.float().square().sum().backward()
    assert all(p.dtype == torch.float32 and (p.grad is None or p.grad.isfinite().all()) for p in connector.parameters())
    expected = _run(connector, features).tokens
    error = float((tokens.float() - expected).detach().norm() / expected.norm().clamp(min=1e-6))
    assert error < 0.05, f"tokens differ by {error:.1%}"


def evaluation_may_come_before_training(subject: Subject) -> None:
    """What is kept for a grid that was first seen in inference mode must serve training too."""
    connector = subject.make()
    features = _features(grid=subject.grids(connector)[-1])
    with torch.inference_mode():
        _run(connector, features)
    _run(connector, features).tokens.sum().backward()


def it_starts_at_zero_if_it_says_so(subject: Subject) -> None:
    connector = subject.make()
    tokens = _run(connector, _features(grid=subject.grids(connector)[0])).tokens
    if connector.starts_at_zero:
        assert not tokens.any(), "starts_at_zero, but the tokens of a new connector are not zeros"
    else:
        assert tokens.any(), "the tokens of a new connector are zeros: declare starts_at_zero"


def the_question_is_read_and_its_padding_is_not(subject: Subject) -> None:
    connector = subject.trained()
    if not connector.reads_text:
        return
    features, text = _features(grid=subject.grids(connector)[0]), _text()
    tokens = _run(connector, features, text).tokens
    assert not torch.equal(tokens, _run(connector, features, _text(seed=5)).tokens), "another question, same tokens"
    noisy = torch.where(text.mask[..., None], text.embeddings, 100.0)
    _assert_near(_run(connector, features, Text(noisy, text.mask)).tokens, tokens, "other padding", 1e-5)
    longer = Text(torch.cat([noisy, noisy[:, :2]], 1), torch.cat([text.mask, torch.zeros_like(text.mask[:, :2])], 1))
    _assert_near(_run(connector, features, longer).tokens, tokens, "more padding", 1e-5)
    nothing = Text(text.embeddings, torch.zeros_like(text.mask))
    assert _run(connector, features, nothing).tokens.isfinite().all(), "an image without a question"
    no_width = Text(text.embeddings[:, :0], text.mask[:, :0])
    assert _run(connector, features, no_width).tokens.isfinite().all(), "no image has a question"


def every_size_gives_its_tokens(subject: Subject) -> None:
    connector = subject.trained()
    grid = subject.grids(connector)[0]
    for size in connector.sizes:
        tokens = _run(connector, _features(grid=grid), size=size).tokens  # their number is checked
        assert tokens.isfinite().all(), f"size {size}"
    _assert_refused(lambda: _run(connector, _features(grid=grid), size=12345), "a size that it does not offer")


def losses_can_be_learned_from(subject: Subject) -> None:
    connector = subject.trained()
    for name in connector.losses:
        connector.zero_grad()
        loss = _run(connector, _features(grid=subject.grids(connector)[0])).losses[name]
        assert loss.isfinite().all(), f'loss "{name}" is not finite'
        loss.sum().backward()
        assert any(p.grad is not None and p.grad.any() for p in connector.parameters()), f'loss "{name}": no gradient'


CHECKS: list[Callable[[Subject], None]] = [
    every_grid_that_it_takes_becomes_tokens,
    no_image_gives_no_token_and_gradients_of_zero,
    gradients_reach_every_parameter_and_the_features,
    the_seed_decides_the_weights,
    same_input_same_bits,
    images_do_not_see_each_other,
    weights_can_be_saved_and_loaded,
    bfloat16_stays_near_float32,
    evaluation_may_come_before_training,
    it_starts_at_zero_if_it_says_so,
    the_question_is_read_and_its_padding_is_not,
    every_size_gives_its_tokens,
    losses_can_be_learned_from,
]


def _run(connector: Connector, features: Tensor, text: Text | None = None, size: int | None = None) -> Tokens:
    text = _text(len(features), features.dtype) if text is None else text
    return connectors.apply(connector, features, OUT_DIM, text=text, size=size)


def _features(batch: int = 3, grid: tuple[int, int] = (3, 4), seed: int = 1) -> Tensor:
    return torch.randn(batch, *grid, IN_DIM, generator=torch.Generator().manual_seed(seed))


def _text(batch: int = 3, dtype: torch.dtype = torch.float32, seed: int = 3) -> Text:
    """Questions of 5, 3 and 4 tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([5, 3, 4] * batch)[:batch, None]
    return Text(torch.randn(batch, 5, OUT_DIM, generator=generator).to(dtype), torch.arange(5) < lengths)


def _most_differ(tensor: Tensor) -> bool:
    return tensor.numel() > 1 and tensor.unique().numel() > tensor.numel() / 2


def _takes(connector: Connector, grid: tuple[int, int]) -> bool:
    try:
        connector.check_grid(*grid)
    except UserError:
        return False
    return True


def _assert_near(got: Tensor, expected: Tensor, what: str, tolerance: float = 1e-10) -> None:
    error = float((got - expected).detach().abs().max()) if got.numel() else 0.0
    assert error <= tolerance, f"{what}: tokens differ by {error:.2g}"


def _assert_refused(call: Callable[[], Any], what: str) -> None:
    try:
        call()
    except UserError:
        return
    raise AssertionError(f"{what} is not refused with a UserError")
