"""The contract of a recipe, and the registry of recipes: what a run trains, how fast, by which losses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from ablate.core.errors import UserError
from ablate.core.fields import NotNegative
from ablate.core.registry import Registry
from ablate.model.vlm import VLM, Batch, Loss

PARTS = ("encoder", "connector", "language")


class Recipe:
    """What a run trains, with which learning rates, by which losses. Base class of all recipes.

    A subclass takes keyword-only fields, which `train.fields` sets. It is made before the model is; `prepare` sees the
    model. Checkpoints and weights hold the parts that train and the connector; nothing of the recipe's own, such as a
    teacher.

    Args:
        rates: part -> factor of `train.learning_rate`; 1 for parts that it does not name.

    Attributes:
        trains: the parts of the model that learn.
        losses: names of the losses that `loss` adds to the model's own.

    Raises:
        UserError: a rate for a part that does not train.
    """

    trains: ClassVar[Sequence[str]] = ()
    losses: Sequence[str] = ()

    def __init__(self, *, rates: Mapping[str, NotNegative] | None = None) -> None:
        self.rates = dict(rates or {})
        if stray := sorted(set(self.rates) - set(self.trains)):
            raise UserError(
                f"train.fields.rates has {', '.join(stray)}, but what trains is {', '.join(self.trains)}: give rates "
                "for these."
            )

    def freeze(self, vlm: VLM) -> None:
        """Let the parts that train, and nothing else, have gradients. A recipe may freeze more within them."""
        vlm.requires_grad_(False)
        for part in self.trains:
            if (module := getattr(vlm, part)) is not None:
                module.requires_grad_(True)

    def prepare(self, vlm: VLM) -> None:
        """Make what the losses need, such as a teacher. Called once, before training, with the model on the CPU.

        Raises:
            UserError: a teacher that does not fit the model.
        """

    def modules(self) -> Iterable[nn.Module]:
        """What `prepare` made and the losses read; it is moved to the model's device, and never trained or saved."""
        return ()

    def weights(self) -> Iterable[Path]:
        """Files whose digests belong into the run's provenance, such as a teacher's weights."""
        return ()

    def loss(self, vlm: VLM, batch: Batch) -> Loss:
        """The loss of a micro-batch: a sum over its labels, so that accumulation and ranks change nothing.

        Every trainable parameter must have a gradient, be it zero, in every batch; and `parts` must have the same names
        in every batch.
        """
        return vlm.loss(batch)

    @classmethod
    def test_fields(cls, run: Path) -> Mapping[str, Any]:
        """Fields for the contract's tests; `run` is the folder of a small finished run, for recipes with a teacher."""
        return {}

    @classmethod
    def test_settings(cls) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Settings of the model in the contract's tests, and of that run's, for recipes that do not take any model."""
        return {}, {}

    def kept_parts(self) -> tuple[str, ...]:
        """What a checkpoint holds: the parts that train, and always the connector. Others follow from the config."""
        return tuple(name for name in PARTS if name == "connector" or name in self.trains)


registry: Registry[type[Recipe]] = Registry(
    "recipe", base=Recipe, package="ablate.training.recipes", entry_points="ablate.recipes"
)
register = registry.register
create = registry.create
check = registry.check
