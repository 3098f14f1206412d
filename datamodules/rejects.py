"""Samples that could not be used: each is named in a file, and too many of them end the run."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablate.errors import UserError


class Rejects:
    """The samples that one rank skipped, in a file of JSON lines {"epoch", "key", "reason"}.

    The file outlives the process: a continued run goes on counting where it was stopped, and a sample that comes again
    because the run went back to a checkpoint is not counted twice.

    Args:
        path: the file; None keeps the count for this process only.
        max_share: the share of `samples` that may be skipped in an epoch.
        samples: what this rank takes in an epoch.

    Attributes:
        skipped: reasons by key, of all epochs.
    """

    def __init__(self, path: Path | None, *, max_share: float, samples: int):
        self.path, self.max_share, self.samples = path, max_share, samples
        self.skipped: dict[str, str] = {}
        self._by_epoch: dict[int, dict[str, str]] = {}
        for line in _read(path) if path is not None else []:
            self._count(line["epoch"], line["key"], line["reason"])

    def add(self, epoch: int, skipped: Mapping[str, str]) -> None:
        """Take in what was skipped in a step: reasons by key.

        Raises:
            UserError: more than the allowed share of an epoch is skipped.
        """
        new = {key: reason for key, reason in skipped.items() if key not in self._by_epoch.get(epoch, {})}
        for key, reason in new.items():
            self._count(epoch, key, reason)
        if self.path is not None and new:
            lines = [json.dumps({"epoch": epoch, "key": key, "reason": reason}) + "\n" for key, reason in new.items()]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.writelines(lines)
        found = self._by_epoch.get(epoch, {})
        if new and len(found) > self.max_share * self.samples:
            key, reason = next(iter(found.items()))
            where = f"All are named in {self.path}. " if self.path is not None else ""
            raise UserError(
                f"{len(found):,} of {self.samples:,} samples cannot be used, more than the share that "
                f"data.max_bad_share allows ({self.max_share:g}). {where}The first: {key}: {reason}. Mend or remove "
                "them (`ablate data check` lists every one), or allow more."
            )

    def _count(self, epoch: int, key: str, reason: str) -> None:
        self.skipped.setdefault(key, reason)
        self._by_epoch.setdefault(epoch, {})[key] = reason


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines so far; one that a kill cut short goes from the file too."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    return [json.loads(line) for line in data[:whole].splitlines()]
