"""Reading weights from files, without ever running code that a file may hold."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ablate.errors import UserError

_WRAPPERS = ("state_dict", "model")  # keys under which training scripts put the tensors


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The named tensors of a `.safetensors` file or of a PyTorch file (`.pth`, `.pt`, `.bin`, `.ckpt`), on the CPU.

    A PyTorch file is read with `weights_only=True`. Tensors under a "state_dict" or "model" key are unwrapped.

    Raises:
        UserError: no such file, a damaged file, or a file that holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"No weights file at {path}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors, or is damaged. It was not loaded: such a file can run code. "
            "Save the plain state_dict, best as .safetensors, from a place you trust."
        ) from error
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} is not a readable weights file ({error}). Download it again.") from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise UserError(f"{path} is not a mapping from names to tensors. Save the model's state_dict.")
    return dict(content)


def check_tensors(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str | Path) -> None:
    """Raise a UserError which lists every missing, unexpected and mis-shaped tensor, if there is one."""
    missing = [f"  missing: {name} {tuple(expected[name].shape)}" for name in expected if name not in got]
    unexpected = [f"  unexpected: {name} {tuple(got[name].shape)}" for name in got if name not in expected]
    misshaped = [
        f"  wrong shape: {name} is {tuple(got[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in expected
        if name in got and got[name].shape != expected[name].shape
    ]
    if missing or unexpected or misshaped:
        raise UserError(
            f"The weights in {source} do not fit the model ({len(missing)} tensors missing, "
            f"{len(unexpected)} unexpected, {len(misshaped)} of another shape, {len(expected)} expected):\n"
            + "\n".join(missing + unexpected + misshaped)
        )
