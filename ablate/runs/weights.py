"""A run's trained weights: written, found and put back into the model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ablate.core import config as config_io
from ablate.core.errors import UserError
from ablate.core.files import atomic_file
from ablate.model import VLM, build_vlm
from ablate.model.weights import kept_names, read_tensors
from ablate.runs.config import RunConfig
from ablate.runs.folder import CHECKPOINT_SUFFIX, RunFiles, find_trained


def save_weights(vlm: nn.Module, path: Path, parts: Collection[str]) -> None:
    """Write all tensors of `parts`, and the connector whole, as safetensors. The same weights give the same bytes."""
    state = vlm.state_dict()
    tensors = {name: state[name].detach().cpu().contiguous() for name in kept_names(vlm, {"connector", *parts})}
    with atomic_file(path) as file:
        file.write(save(tensors))


def load_weights(vlm: nn.Module, path: Path) -> set[str]:
    """Put saved weights (model.safetensors, or a checkpoint of ours) into `vlm`; return the parts that they were of.

    Raises:
        UserError: the file is missing or damaged, or is of another model.
    """
    tensors = _read_checkpoint(path) if path.suffix == CHECKPOINT_SUFFIX else _read_weights(path)
    parts = {name.partition(".")[0] for name in tensors}
    _check_fit(vlm, tensors, kept_names(vlm, parts | {"connector"}), path)
    vlm.load_state_dict(tensors, strict=False)
    return parts


def load_run(path: Path | str) -> tuple[RunConfig, VLM]:
    """The config and the trained model, on the CPU and in evaluation mode; `path` as in `find_trained`.

    Raises:
        UserError: no trained run there.
    """
    trained = find_trained(path)
    config = config_io.load(RunConfig, [trained.run.config])
    vlm = build_vlm(config.model, seed=config.seed)
    if trained.weights.suffix == CHECKPOINT_SUFFIX and config.train.start_from:  # it lacks what did not learn
        load_weights(vlm, RunFiles(Path(config.train.start_from)).weights)
    load_weights(vlm, trained.weights)
    return config, vlm.eval()


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"There are no weights at {path}: the run there has not been trained to its end.") from None
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): delete the run's folder and train it again.") from error


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The model's tensors in a Lightning checkpoint, where the training module calls the model `vlm`."""
    prefix = "vlm."
    tensors = {
        name.removeprefix(prefix): tensor for name, tensor in read_tensors(path).items() if name.startswith(prefix)
    }
    if not tensors:
        raise UserError(
            f"{path} is no checkpoint of a run of ours: no tensor in it has a name that starts with {prefix}"
        )
    return tensors


def _check_fit(vlm: nn.Module, tensors: Mapping[str, Tensor], expected: Collection[str], path: Path) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in vlm.state_dict().items()}
    missing = sorted(set(expected) - set(tensors))
    unknown = sorted(set(tensors) - set(expected))
    other = sorted(name for name in set(tensors) & set(expected) if tuple(tensors[name].shape) != shapes[name])
    problems = [
        f"{label} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for label, names in (("lacks", missing), ("has an unknown", unknown), ("has another shape for", other))
        if names
    ]
    if problems:
        raise UserError(f"{path} is of another model than the config describes: it {'; it '.join(problems)}.")
