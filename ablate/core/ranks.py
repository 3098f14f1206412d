"""The processes that train one run, and afterwards share its evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from ablate.core.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that work on one run.

    Attributes:
        rank: from 0.
        number: how many there are.
        group: of torch.distributed, on the CPU; None for a process alone.
    """

    rank: int = 0
    number: int = 1
    group: Any = None

    @classmethod
    def that_trained(cls) -> Ranks:
        """Those of torch's process group; this process alone if there is none. Every rank has to call it."""
        from torch import distributed

        if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
            return cls()
        # Shares of the questions end minutes or hours apart, where NCCL gives up after ten minutes.
        group = distributed.new_group(backend="gloo", timeout=timedelta(days=30))
        return cls(distributed.get_rank(), distributed.get_world_size(), group)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Everyone's value, in order of rank, on every rank. Waits for all of them.

        Raises:
            UserError: one of them has died.
        """
        if self.number == 1:
            return [value]
        from torch import distributed

        found: list[Any] = [None] * self.number
        try:
            distributed.all_gather_object(found, value, group=self.group)
        except RuntimeError as error:
            raise UserError(
                f"A process of this run has died ({str(error).splitlines()[0]}). What is done is kept: run the same "
                "command again."
            ) from error
        return found

    def wait(self) -> None:
        """Until all are here."""
        self.gather(None)


ALONE = Ranks()
