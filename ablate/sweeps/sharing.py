"""Runs that compute the same: one of them is enough.

Two runs of a grid may differ in a field that their connector does not have, such as the depth of `mlp`.

A blind run zeroes the visual tokens and never runs its connector (`ablate.model.vlm.VLM`). Of the connector, only the
number of visual tokens is left: equal numbers give the same training and the same answers, bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ablate.runs.folder import is_finished, read_result
from ablate.runs.identity import NEUTRAL, blind_key, within
from ablate.sweeps.plan import PlannedRun


@dataclass(frozen=True)
class Shared:
    """Runs of a sweep, each once.

    Attributes:
        runs: in the order of the plan. In a blind run's place may stand a finished one of another connector.
        stands_for: the label of a run that is left out -> the label of the one that computes the same.
    """

    runs: tuple[PlannedRun, ...]
    stands_for: Mapping[str, str]


def share_runs(planned: Sequence[PlannedRun], *, earlier: bool = True) -> Shared:
    """Leave out the runs that compute what another one does: a finished one, or else the first of the plan.

    Args:
        earlier: finished blind runs of their group folder count that the plan does not have.
    """
    keys = [_key(run) for run in planned]
    finished = _finished(planned) if earlier and any(keys) else {}
    chosen: dict[str, PlannedRun] = {}
    for run, key in zip(planned, keys, strict=True):
        if key is not None and (key not in chosen or is_finished(run.folder) > is_finished(chosen[key].folder)):
            chosen[key] = run
    for key, run in chosen.items():
        if not is_finished(run.folder) and key in finished:
            folder, settings = finished[key]
            chosen[key] = replace(run, label=folder.name, folder=folder, settings=settings, config=None)
    runs: list[PlannedRun] = []
    stands_for: dict[str, str] = {}
    placed: set[str] = set()
    for run, key in zip(planned, keys, strict=True):
        if key is None:
            runs.append(run)
            continue
        if run is not chosen[key]:
            stands_for[run.label] = chosen[key].label
        if key not in placed:
            placed.add(key)
            runs.append(chosen[key])
    return Shared(tuple(runs), stands_for)


def say_shared(shared: Shared, console: Console) -> None:
    if not shared.stands_for:
        return
    left_out = len(shared.stands_for)
    console.print(
        f"{left_out} {'runs are' if left_out > 1 else 'run is'} left out, as another computes the same to the bit: "
        "blind runs with as many visual tokens, or runs that differ in a field that their connector does not have."
    )
    of: dict[str, list[str]] = {}
    for label, run in shared.stands_for.items():
        of.setdefault(run, []).append(label)
    for run, labels in of.items():
        console.print(Text(f"  {run} stands for {', '.join(labels)}", style="dim"))


def _key(run: PlannedRun) -> str | None:
    if run.settings.get("blind") and run.visual_tokens is not None and run.trained_sizes == "largest":
        return blind_key(run.settings, run.visual_tokens)
    if run.config is None:
        return None
    from ablate.model.build import connector_fields  # here, as it brings torch

    unused = (*NEUTRAL, "connector.shared", "connector.fields")
    kept = {key: value for key, value in run.settings.items() if not within(key, unused)}
    return json.dumps([connector_fields(run.config.connector), kept], sort_keys=True, default=str)


def _finished(planned: Sequence[PlannedRun]) -> dict[str, tuple[Path, Mapping[str, Any]]]:
    """The finished blind runs in the plan's group folders, by what they compute."""
    found: dict[str, tuple[Path, Mapping[str, Any]]] = {}
    for group in sorted({run.folder.parent for run in planned}):
        for folder in sorted(group.glob("*/")):
            result = read_result(folder)
            if result is None or not result.get("blind"):
                continue
            tokens = result["cost"].get("visual_tokens")
            if tokens is not None and result["train"].get("trained_sizes", "largest") == "largest":
                found.setdefault(blind_key(result["settings"], tokens), (folder, result["settings"]))
    return found
