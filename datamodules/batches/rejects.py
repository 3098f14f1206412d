"""Samples that could not be used: each is named in a file, and too many of them end the run."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from ablate.core.errors import UserError


class Rejects:
    """The samples that a run skipped, in files of JSON lines {"epoch", "key", "reason", "data"}, one for each rank.

    Every rank writes its own file and reads those of all, so that the share is that of the whole epoch. The files
    outlive the processes: a continued run goes on counting where it was stopped, on any number of ranks, and a sample
    that comes again because the run went back to a checkpoint is neither counted nor named twice. What was skipped of
    other data, since repaired, does not count.

    Args:
        path: the first rank's file, others add their number to its name; None keeps the count for this process only.
        rank: of this process.
        data: what tells the data from any other.
        max_share: the share of `samples` that may be skipped in an epoch.
        samples: different ones that an epoch takes: on all ranks, or, without a path, on this one.
    """

    def __init__(self, path: Path | None, *, max_share: float, samples: int, rank: int = 0, data: str = ""):
        self.path, self.max_share, self.samples, self.data = path, max_share, samples, data
        self._mine = path.with_stem(f"{path.stem}-rank{rank}") if path is not None and rank else path
        self._read: dict[Path, int] = {}  # bytes of each file
        self._by_epoch: dict[int, dict[str, str]] = {}
        if self._mine is not None:
            _drop_cut_line(self._mine)

    @property
    def skipped(self) -> dict[str, str]:
        """Reasons by key, of all epochs and of all ranks so far."""
        self._refresh()
        return {key: reason for found in self._by_epoch.values() for key, reason in found.items()}

    def add(self, epoch: int, skipped: Mapping[str, str]) -> None:
        """Take in what this rank skipped in a step: reasons by key.

        Raises:
            UserError: more than the allowed share of an epoch is skipped, on all ranks together.
        """
        if not skipped:
            return
        self._refresh()
        known = self._by_epoch.get(epoch, {})
        lines = [
            {"epoch": epoch, "key": key, "reason": reason, "data": self.data}
            for key, reason in skipped.items()
            if key not in known
        ]
        if self._mine is None:
            self._count(lines)
        elif lines:
            self._mine.parent.mkdir(parents=True, exist_ok=True)
            with self._mine.open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
            self._refresh()  # after writing: of two ranks that write at once, one sees both
        found = self._by_epoch[epoch]
        if len(found) > self.max_share * self.samples:
            key, reason = next(iter(found.items()))
            names = " and ".join(map(str, _files(self.path)))
            where = f"All are named in {names}. " if names else ""
            raise UserError(
                f"{len(found):,} of {self.samples:,} samples cannot be used, more than the share that "
                f"data.max_bad_share allows ({self.max_share:g}). {where}The first: {key}: {reason}. Fix or remove "
                "them (`ablate data check` lists every one), or allow more."
            )

    def _refresh(self) -> None:
        """Read what all ranks have written since the last time; a line that is not whole yet waits."""
        for path in _files(self.path):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                data = file.read()
            whole = data.rfind(b"\n") + 1
            self._read[path] = self._read.get(path, 0) + whole
            self._count(json.loads(line) for line in data[:whole].splitlines())

    def _count(self, lines: Iterable[Mapping]) -> None:
        for line in lines:
            if line.get("data") == self.data:
                self._by_epoch.setdefault(line["epoch"], {}).setdefault(line["key"], line["reason"])


def _files(path: Path | None) -> list[Path]:
    if path is None:
        return []
    return [*([path] if path.is_file() else []), *sorted(path.parent.glob(f"{path.stem}-rank*{path.suffix}"))]


def _drop_cut_line(path: Path) -> None:
    """A line that a kill cut short goes from the file."""
    if path.is_file():
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(path, whole)
