"""A run that continues from a checkpoint of the user's own Trainer."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablate.core import config as config_io
from ablate.core.errors import UserError
from ablate.core.files import atomic_file, known_sha256
from ablate.runs.config import RunConfig
from ablate.runs.folder import RunFiles
from ablate.runs.identity import run_digest
from ablate.training.lightning_state import SafeCheckpointIO


def adopt_checkpoint(path: Path, config: RunConfig, files: RunFiles) -> dict[str, Any]:
    """Make a checkpoint that `VLMModule` and `LlavaDataModule` wrote in another Trainer the last one of this run.

    Returns:
        for the run's provenance: the checkpoint's SHA-256 and step.

    Raises:
        UserError: it cannot be read, is of other settings or of another data module, or this run has one already.
    """
    if files.checkpoint.exists() or files.training.exists():
        raise UserError(f"{files.folder} already exists: leave --checkpoint out to continue it, or delete the folder.")
    content: Mapping[str, Any] = SafeCheckpointIO().load_checkpoint(path)
    given = content.get("hyper_parameters", {}).get("config")
    if given is None or "LlavaDataModule" not in content:
        missing = "no settings" if given is None else "no place in the data"
        raise UserError(f"{path} holds {missing}: it was not written while VLMModule trained on a LlavaDataModule.")
    _check_settings(config_io.load(RunConfig, [given]), config, path)
    if config.train.max_steps is not None and content["global_step"] >= config.train.max_steps:
        raise UserError(f"{path} is of step {content['global_step']}; the run ends at {config.train.max_steps}.")
    files.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with path.open("rb") as source, atomic_file(files.checkpoint) as target:
        shutil.copyfileobj(source, target)
    return {"sha256": known_sha256(path), "step": content["global_step"]}


def _check_settings(theirs: RunConfig, ours: RunConfig, path: Path) -> None:
    if run_digest(theirs) == run_digest(ours):
        return
    before, now = config_io.flatten(theirs), config_io.flatten(ours)
    differ = [f"{key}: {before.get(key)} there, {now.get(key)} here" for key in now if before.get(key) != now.get(key)]
    raise UserError(f"{path} is of other settings ({'; '.join(differ)}): give the run those of the checkpoint.")
