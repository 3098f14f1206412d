"""Checkpoints that a kill at any moment cannot spoil, read without running code from the file."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from ablate.core.errors import UserError
from ablate.core.files import atomic_file


class SafeCheckpointIO(CheckpointIO):
    """Saves to a temporary file that then replaces the old one; loads tensors and plain data only.

    Lightning's own goes through the system's temporary folder, which may be on another disk: no atomic move from there.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(Path(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | os.PathLike, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        try:
            checkpoint = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except FileNotFoundError:
            raise UserError(f"There is no checkpoint {path}.") from None
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(
                f"The checkpoint {path} cannot be read: {str(error).splitlines()[0]} Delete it to start the run again."
            ) from error
        if "TrainingData" in checkpoint:  # the data module of our own runs, until it was everybody's
            checkpoint["LlavaDataModule"] = checkpoint.pop("TrainingData")
        return checkpoint

    def remove_checkpoint(self, path: str | os.PathLike) -> None:
        Path(path).unlink(missing_ok=True)
