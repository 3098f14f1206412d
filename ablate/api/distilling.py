"""mmMamba's three stages in one call."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ablate.api.training import train
from ablate.core import config as config_io
from ablate.core.errors import UserError
from ablate.runs.config import RunConfig
from ablate.runs.folder import find_trained

# arXiv 2502.13145, section 4.1; batch size and length are the run's own.
_OPTIMISER = {"warmup_ratio": 0.1, "weight_decay": 0.05, "clip_norm": 5.0, "betas": [0.9, 0.999]}
_STAGES: dict[int, dict[str, Any]] = {
    1: {"stage": "mmmamba_layers", "learning_rate": 1e-3, "fields": {"taken": False}},
    2: {"stage": "mmmamba_layers", "learning_rate": 5e-4, "fields": {}},
    3: {"stage": "mmmamba_logits", "learning_rate": 5e-5, "fields": {}},
}


def distill(
    teacher: Path | str,
    layers: str | Sequence[str] = "mmmamba",
    *overrides: str,
    stages: Collection[int] = (1, 2, 3),
    seeding: str = "mimic",
    console: Console | None = None,
) -> Path:
    """Turn a run whose language model is a decoder of attention layers into a linear or hybrid one (arXiv 2502.13145).

    Each stage is a run of its own, with the settings of the teacher's; finished ones are skipped, and an interrupted
    one continues. Stages 1 and 2 train the converted layers one by one, stage 3 the model as a whole. The last one is
    evaluated on the teacher's benchmarks.

    Args:
        teacher: folder of the teacher's run.
        layers: as `language.fields.layers`; "mmmamba" converts all, "attention+3*mmmamba" keeps every fourth. Hybrids
            with the same other settings share stages 1 and 2, which convert all layers.
        overrides: `key=value` for all stages, or `stageN.key=value` for one, such as stage3.train.epochs=2.
        stages: which of 1, 2 and 3.
        seeding: "mimic", "inherit" or "scratch", see `ablate.training.recipes.mmmamba`.
        console: where to report; standard error if None.

    Returns:
        the folder of the last stage's run.

    Raises:
        Interrupted: the same call continues.
        UserError: a teacher that cannot be converted, or settings that do not fit.
    """
    chosen = sorted(set(stages))
    if not chosen or not set(chosen) <= set(_STAGES):
        raise UserError(f"stages are {list(stages)}: expected some of {', '.join(map(str, _STAGES))}.")
    run = find_trained(teacher).run
    config = config_io.to_data(config_io.load(RunConfig, [run.config]))
    if config["language"]["name"] != "decoder":
        name = config["language"]["name"]
        raise UserError(f"The language model of {run.folder} is {name}: expected decoder, with attention layers.")
    folder: Path | None = None
    for stage in chosen:
        last = stage == chosen[-1]
        settings = _stage_settings(config, run.folder, stage, layers if stage == 3 else "mmmamba", seeding, folder)
        if not last:
            settings["evaluation"] = {"benchmarks": []}
        folder = train([config, settings], *_overrides(overrides, stage), console=console)
    assert folder is not None
    return folder


def _stage_settings(
    config: dict[str, Any], teacher: Path, stage: int, layers: Any, seeding: str, before: Path | None
) -> dict[str, Any]:
    fields = {"teacher": str(teacher), "seeding": seeding, **_STAGES[stage]["fields"]}
    if before is not None:
        fields["layers_from"] = str(before)
    train = {**_OPTIMISER, **_STAGES[stage], "fields": fields, "start_from": ""}
    return {
        "group": f"{config['group']}-distill",
        "name": f"{teacher.name}-stage{stage}",
        "language": {"fields": {**config["language"]["fields"], "layers": layers}},
        "train": train,
    }


def _overrides(overrides: Sequence[str], stage: int) -> list[str]:
    """Those of all stages, then those of this one."""
    general, own = [], []
    for override in overrides:
        match = re.match(r"stage(\d+)\.", override)
        if match is None:
            general.append(override)
        elif int(match[1]) not in _STAGES:
            raise UserError(f"{override}: there are stages {', '.join(map(str, _STAGES))}.")
        elif int(match[1]) == stage:
            own.append(override[match.end() :])
    return general + own
