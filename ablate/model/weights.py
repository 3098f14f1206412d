"""Reading weights from files and folders, without ever running code that a file may hold.

What a file is follows from its content, not from its name: a `.bin` may hold safetensors, and what was downloaded as
`model.safetensors` may be a git-lfs pointer or a page that asks for a login.
"""

from __future__ import annotations

import codecs
import json
import pickle
import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ablate.core.errors import UserError
from ablate.core.filetypes import HEAD_BYTES, identify

# By preference: where a folder holds several of them, they are the same weights.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

_WRAPPERS = ("state_dict", "model", "model_state_dict")  # keys under which training scripts put the tensors
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
_OF_TRAINING = (
    "optimizer",
    "scheduler",
    "training_args",
    "rng_state",
    "scaler",
)  # next to the weights, in a run's folder
_PART = re.compile(r"(.+)-(\d+)-of-(\d+)\.(safetensors|bin)$")

_FOREIGN_SUFFIXES = {
    ".msgpack": "Flax weights",
    ".h5": "Keras or TensorFlow weights",
    ".keras": "a Keras model",
    ".pb": "a TensorFlow graph",
    ".tflite": "a TensorFlow Lite model",
    ".onnx": "an ONNX graph",
    ".gguf": "a GGUF file, made for llama.cpp",
    ".npz": "a NumPy archive",
    ".mlmodel": "a Core ML model",
}


def find_weights(path: str | Path) -> Path:
    """The weights file that a path names: the file itself, or the one in the folder (perhaps an index of its parts).

    Raises:
        UserError: nothing there, a folder without weights that can be read, or with several that may be meant.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"No weights file at {path}.")
        return path
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return path / name
    snapshots = sorted((path / "snapshots").glob("*"))
    if snapshots:
        raise UserError(f"{path} is a folder of the hub's cache: give the snapshot in it, {snapshots[-1]}.")
    files = [file for file in sorted(path.iterdir()) if file.is_file()]
    weights = [file for file in files if file.suffix in _SUFFIXES and not file.name.startswith(_OF_TRAINING)]
    if any(file.name.startswith("adapter_model") for file in weights):
        raise UserError(
            f"{path} holds an adapter (LoRA), not a model: merge it into its model first (`merge_and_unload` of peft) "
            "and save that."
        )
    parts = [file for file in weights if _PART.match(file.name)]
    if parts:
        raise UserError(
            f"{path} holds {len(parts)} parts of a checkpoint without their index: download {_index_of(parts[0])} as "
            "well."
        )
    if len(weights) == 1:
        return weights[0]
    if weights:
        raise UserError(
            f"{path} holds several weights files ({_listed(weights)}): give the path of the one that you mean."
        )
    foreign = [file for file in files if file.suffix in _FOREIGN_SUFFIXES]
    found = f" It holds {_FOREIGN_SUFFIXES[foreign[0].suffix]} ({_listed(foreign)})." if foreign else ""
    raise UserError(f"No {WEIGHT_FILES[0]} or {WEIGHT_FILES[2]} in {path}.{found}")


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The named tensors of a weights file, on the CPU.

    Takes safetensors, a PyTorch file (read with `weights_only=True`), the index of a sharded one of either kind
    (`model.safetensors.index.json`), or a folder that holds one of them. Tensors under a "state_dict" or "model" key
    are unwrapped.

    Raises:
        UserError: no such file, a damaged file, a file that holds anything but tensors, or one that is known for
            something else, with what to do.
    """
    path = find_weights(path)
    if _PART.match(path.name):
        raise UserError(
            f"{path} is one part of a checkpoint: give its folder, or the path of {_index_of(path)}, which names all."
        )
    head = _head(path)
    is_json = not _is_safetensors(head) and head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"{"
    tensors = _read_parts(path) if is_json else _read_whole(path, head)
    _refuse_quantised(path, tensors)
    return tensors


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


def _refuse_quantised(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Weights that are kept as integers mean nothing without their scales; copied into a model, they would be noise."""
    for name, tensor in tensors.items():
        if name.rpartition(".")[2] in ("weight", "bias") and not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(
                f"{path} holds weights that are no floating-point numbers ({name} is {kind}), as quantised models do: "
                "get the weights from before quantisation."
            )


def _read_whole(path: Path, head: bytes) -> dict[str, Tensor]:
    try:
        if _is_safetensors(head):
            return load_file(path)
        if other := _what_else(path, head):
            raise UserError(f"{path} is {other}.")
        with open(path, "rb") as file:  # by its path, torch would go by its suffix
            content = torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors, or is damaged{_unsafe_classes(path)}. It was not loaded: such a file can "
            "run code. Save the plain state_dict, best as .safetensors, from a place you trust."
        ) from error
    except Exception as error:  # damaged bytes make the readers fail in any way
        # What follows may be PyTorch's advice to read the file without its safeguard.
        reason = str(error).splitlines()[0].partition(". ")[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a readable weights file ({reason}). Download it again.") from error
    return _named_tensors(path, content)


def _named_tensors(path: Path, content: Any) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        keys = f" but one with {', '.join(map(str, list(content)[:8]))}" if isinstance(content, Mapping) else ""
        raise UserError(f"{path} is not a mapping from names to tensors{keys}. Save the model's state_dict.")
    return dict(content)


def _read_parts(path: Path) -> dict[str, Tensor]:
    """The tensors of a sharded checkpoint: its index maps tensors to the files next to it."""
    try:
        index = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is JSON, but damaged ({error}). Download it again.") from error
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f'{path} is a JSON file, not weights or an index of them (it has no "weight_map").')
    names = sorted({str(name) for name in places.values()})
    if outside := [name for name in names if Path(name).name != name]:
        raise UserError(f"{path} names files outside its folder: {', '.join(outside[:3])}. It was not loaded.")
    if missing := [name for name in names if not (path.parent / name).is_file()]:
        raise UserError(
            f"{len(missing)} of the {len(names)} parts that {path} names are not next to it: {', '.join(missing)}. "
            "Download them as well."
        )
    tensors: dict[str, Tensor] = {}
    for name in names:
        part = _read_whole(path.parent / name, _head(path.parent / name))
        absent = [tensor for tensor, place in places.items() if place == name and tensor not in part]
        if absent:
            raise UserError(f"{path} places {', '.join(absent[:5])} in {name}, which lacks {len(absent)} such tensors.")
        tensors |= {tensor: part[tensor] for tensor, place in places.items() if place == name}
    return tensors


def _index_of(part: Path) -> str:
    """model-00001-of-00002.safetensors -> model.safetensors.index.json"""
    return _PART.sub(r"\1.\4.index.json", part.name)


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error


def _is_safetensors(head: bytes) -> bool:
    """Eight bytes with the length of a JSON header, then the header."""
    return len(head) > 9 and head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") < 2**32


def _what_else(path: Path, head: bytes) -> str:
    """What a file is that holds no weights that can be read, and what to do; "" if it may hold some."""
    if not head:
        return "an empty file: download it again"
    if not head.strip(b"\0"):
        return "a file that begins with zeros, not weights: download it again"
    # PyTorch's own files are pickles, alone or in a zip file.
    if (found := identify(head)) and found.kind not in ("pickle", "zip"):
        return found.describe(path, "get the PyTorch or .safetensors weights instead")
    if path.suffix in _FOREIGN_SUFFIXES:
        return f"{_FOREIGN_SUFFIXES[path.suffix]}: get the PyTorch or .safetensors weights instead"
    if head.startswith(b"PK") and zipfile.is_zipfile(path):
        return _what_zip(path)
    return _what_text(head)


def _what_zip(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    inner = {name.partition("/")[2] or name for name in names}
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return "a TorchScript program, not a state_dict: load it in its own project and save model.state_dict()"
    if "data.pkl" in inner:
        return ""
    kind = "a NumPy archive (.npz)" if all(name.endswith(".npy") for name in names) and names else "a zip archive"
    return f"{kind} without a PyTorch checkpoint (it holds {', '.join(names[:3]) or 'nothing'}): give the weights file"


def _what_text(head: bytes) -> str:
    if head.isascii() and re.fullmatch(rb"[\x20-\x7e\s]+", head):
        first = head.strip().splitlines()[0].decode()[:60] if head.strip() else ""
        return f'a text file, not weights (it begins "{first}"): download it again'
    return ""


def _unsafe_classes(path: Path) -> str:
    """The classes that a checkpoint wants to make, for messages: their names alone are read."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # no zip, or damaged
        return ""
    return f" (it names {', '.join(names[:5])})" if names else ""


def _listed(files: list[Path]) -> str:
    return ", ".join(file.name for file in files[:5]) + (f" and {len(files) - 5} more" if len(files) > 5 else "")


def kept_names(vlm: nn.Module, parts: Collection[str]) -> list[str]:
    """Names in `vlm.state_dict()` of all parameters and buffers of `parts`; of tied weights, the first name."""
    seen: set[int] = set()
    names = []
    for name, tensor in vlm.state_dict(keep_vars=True).items():
        if name.partition(".")[0] in parts and id(tensor) not in seen:
            seen.add(id(tensor))
            names.append(name)
    return names
