"""A run on disk: its name, its folder, where it came from, and how to load it again.

<root>/<group>/<run id>/
    config.yaml         the resolved config
    provenance.json     what made the run: code revision, packages, machine, hashes of config and data
    train.jsonl         one line per optimizer step
    rejects.jsonl       samples that were skipped, each with the reason; other ranks than the first: rejects-rank1.jsonl
    features.json       whether the frozen encoder's features are kept on disk, and why
    checkpoints/        last.ckpt while the run trains: weights, optimizer, position
    training.json       what training cost and where it ended, once it has
    model.safetensors   the whole connector and everything else that learned
    predictions/        one file per benchmark, one line per question (written by the evaluation)
    result.json         scores and costs, written last: the run is finished
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

import connectors
from ablate import config as config_io
from ablate.core.identity import changed_sources, file_entry, sealed, source_digests
from ablate.errors import UserError
from ablate.model import VLM, build_vlm, languages
from ablate.model.checkpoints import read_tensors
from ablate.model.factory import connector_fields
from ablate.settings import NEUTRAL
from ablate.training.config import RunConfig
from ablate.training.files import read_json, write_json
from ablate.training.stages import kept_names
from connectors import scan_orders
from datamodules.files import atomic_file

RESULT_SCHEMA = 1
CHECKPOINT_SUFFIX = ".ckpt"
_PACKAGES = (
    "ablate",
    "lightning",
    "mamba-ssm",
    "numpy",
    "pillow",
    "safetensors",
    "timm",
    "tokenizers",
    "torch",
    "torchvision",
    "triton",
    "wandb",
    "webdataset",
)


@dataclass(frozen=True)
class RunFiles:
    """The paths in a run's folder."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def provenance(self) -> Path:
        return self.folder / "provenance.json"

    @property
    def steps(self) -> Path:
        return self.folder / "train.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def training(self) -> Path:
        return self.folder / "training.json"

    @property
    def rejects(self) -> Path:
        return self.folder / "rejects.jsonl"

    @property
    def features(self) -> Path:
        return self.folder / "features.json"

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def result(self) -> Path:
        return self.folder / "result.json"


def run_digest(config: RunConfig) -> str:
    """SHA-256 (hex) of all that can change what the run computes; where it is written and shown is left out."""
    return config_io.digest(config, ignore=NEUTRAL)


def run_id(config: RunConfig) -> str:
    """`<name>-<first 8 of the digest>`; the name is for people, nothing reads meaning out of it."""
    name = config.name or f"{config.connector.name}-s{config.seed}{'-blind' if config.blind else ''}"
    return f"{name}-{run_digest(config)[:8]}"


def run_folder(config: RunConfig) -> Path:
    return Path(config.root) / config.group / run_id(config)


def is_finished(folder: Path | str) -> bool:
    result = read_json(RunFiles(Path(folder)).result)
    return isinstance(result, dict) and result.get("status") == "finished"


def out_of_date(config: RunConfig) -> list[str]:
    """The modules of the source of this config's run, if it has begun, that are others now; none for older runs."""
    recorded = (read_json(RunFiles(run_folder(config)).provenance) or {}).get("sources")
    if not recorded:
        return []
    now = sources(config)
    return sorted({*changed_sources(recorded), *(name for name in now if now[name] != recorded.get(name))})


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


@dataclass(frozen=True)
class Trained:
    """A trained model on disk: the run that it is of, and the file with its weights."""

    run: RunFiles
    weights: Path


def find_trained(path: Path | str) -> Trained:
    """What a user means by a run: its folder, or a weights file or checkpoint in it or in its `checkpoints` folder.

    Raises:
        UserError: there is no run's config where it would be.
    """
    path = Path(path)
    if not path.is_file():
        files = RunFiles(path)
        if not files.config.exists():
            raise UserError(f"{path} is not a run's folder: there is no config.yaml in it.")
        if not files.weights.exists() and files.checkpoint.exists():
            raise UserError(
                f"{path} has not been trained to its end. Its last checkpoint can be used as it is: {files.checkpoint}"
            )
        return Trained(files, files.weights)
    for folder in (path.parent, path.absolute().parent.parent):
        if (files := RunFiles(folder)).config.exists():
            return Trained(files, path)
    raise UserError(
        f"{path} stands alone: what model it is of is said by the run's config.yaml, which must be beside it or one "
        "folder above."
    )


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


def write_result(files: RunFiles, config: RunConfig, scores: Mapping[str, Any], eval_seconds: float) -> None:
    """Write result.json, which makes the run a finished one, with the digests of the run's other files."""
    training = read_json(files.training)
    result = {
        "schema": RESULT_SCHEMA,
        "status": "finished",
        "run_id": run_id(config),
        "group": config.group,
        "connector": config.connector.name,
        "seed": config.seed,
        "blind": config.blind,
        "digest": run_digest(config),
        "settings": json.loads(json.dumps(config_io.flatten(config))),
        "scores": dict(scores),
        "cost": {**training["cost"], "eval_seconds": round(eval_seconds, 3)},
        "train": training["train"],
    }
    kept = [files.config, files.provenance, files.training, files.weights]
    names = [path.name for path in kept] + [f"predictions/{task}.jsonl" for task in scores]
    write_json(files.result, sealed(result, files.folder, names))


def provenance(
    config: RunConfig,
    data: Mapping[str, Any],
    precision: Mapping[str, str] | None = None,
    earlier: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What made this run. Holds no secret, no user, no host name.

    Args:
        data: describes the training data (its hashes).
        precision: what the parts computed in, where the config leaves it to the machine.
        earlier: the provenance of the attempt that this one continues. Where its code, source or packages were others,
            they are kept under `continues`.
    """
    found = {
        "config_sha256": run_digest(config),
        "data": dict(data),
        "weights": {"encoder": _encoder_weights(config), "language": _language_weights(config)},
        "start_from": _start(config),
        "sources": sources(config),
        "code": code_revision(),
        "packages": package_versions(),
        "precision": dict(precision or {}),
        "machine": machine(),
    }
    if earlier:
        parts = ("code", "sources", "packages", "precision", "machine")
        before = {part: earlier[part] for part in parts if part in earlier and earlier[part] != found[part]}
        found["continues"] = [*earlier.get("continues", []), *([before] if before else [])]
    return found


def sources(config: RunConfig) -> dict[str, str]:
    """Module -> SHA-256 of the source of the connector and of the scan orders that its fields name, and of a language
    model of another package; ours are known by the code revision."""
    fields = connector_fields(config.connector).values()
    named = [value for field in fields for value in (field if isinstance(field, list | tuple) else [field])]
    orders = [scan_orders.registry.get(name) for name in scan_orders.registry.names() if name in named]
    language = languages.registry.get(config.language.name)
    foreign = [] if language.__module__.startswith("ablate.") else [language]
    return source_digests([connectors.registry.registry.get(config.connector.name), *orders, *foreign])


def _encoder_weights(config: RunConfig) -> list[dict[str, Any]]:
    """For each encoder its weights file; where there is none, which weights of the hub, or that they are random."""
    names = config.encoder.names
    found = []
    for name, weights in zip(names, config.encoder.weights or [""] * len(names), strict=False):
        entry: dict[str, Any] = {"encoder": name}
        if weights == "random":
            entry["random"] = True
        elif weights not in ("", "pretrained"):
            entry |= _entry(Path(weights))
        else:
            known = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
            hub = known.hf_hub_id if known else None
            entry |= {"hub": hub, "tag": known.tag if known else None}
            files = ("model.safetensors", "pytorch_model.bin")
            cached = [huggingface_hub.try_to_load_from_cache(hub, file) for file in files if hub]
            entry |= next((_entry(Path(path)) for path in cached if isinstance(path, str)), {})
        found.append(entry)
    return found


def _language_weights(config: RunConfig) -> list[dict[str, Any]]:
    """The files of the pretrained language model; empty where its weights are new."""
    if not config.language.pretrained:
        return []
    path = Path(config.language.pretrained)
    if not path.is_dir():
        return [_entry(path)]
    endings = (".safetensors", ".bin", ".pt", ".gguf", "config.json", ".index.json")
    return [_entry(file) for file in sorted(path.iterdir()) if file.name.endswith(endings)]


def _start(config: RunConfig) -> dict[str, Any] | None:
    """The run whose weights this one starts from, and its recipe: a digest of all its settings but the seed and, where
    it has this run's connector, the connector. Runs of several connectors and seeds may share a recipe."""
    if not config.train.start_from:
        return None
    files = RunFiles(Path(config.train.start_from))
    recipe = None
    if files.config.is_file():
        start = config_io.load(RunConfig, [files.config])
        own = ("connector",) if start.connector == config.connector else ()
        parents = (read_json(files.provenance) or {}).get("start_from") or {}
        if not start.train.start_from or parents.get("recipe"):
            ignored = (*NEUTRAL, "seed", "blind", "train.start_from", *own)
            recipe = config_io.digest(start, ignore=ignored) + str(parents.get("recipe") or "")
            recipe = hashlib.sha256(recipe.encode()).hexdigest()
    return {"run": files.folder.name, **_entry(files.weights), "recipe": recipe}


def _entry(path: Path) -> dict[str, Any]:
    return file_entry(path) if path.is_file() else {"name": path.name}


def code_revision() -> dict[str, Any]:
    """The git commit of the code that runs, and whether files differ from it; outside a checkout the version alone."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # An installed package may lie inside somebody else's repository: only a checkout that tracks this file counts.
    tracked = git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    changes = git("status", "--porcelain", "--untracked-files=no") if tracked else None
    return {
        "version": _version("ablate"),
        "commit": git("rev-parse", "HEAD") if tracked else None,
        "dirty": None if changes is None else bool(changes),
    }


def machine() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "cuda": torch.version.cuda if gpus else None,
    }


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


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def package_versions() -> dict[str, str]:
    return {package: version for package in _PACKAGES if (version := _version(package))}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
