"""What a run came out of: code, packages, machine and data."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import connectors
from ablate.core import config as config_io
from ablate.core.files import read_json
from ablate.core.processes import cores
from ablate.core.sources import changed_sources, file_entry, source_digests
from ablate.model import encoders, languages, recipe
from ablate.model.build import connector_fields
from ablate.runs.config import RunConfig
from ablate.runs.folder import RunFiles
from ablate.runs.identity import NEUTRAL, run_digest, run_folder
from connectors import scan_orders

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


def out_of_date(config: RunConfig) -> list[str]:
    """The modules of the source of this config's run, if it has begun, that are others now; none for older runs."""
    recorded = (read_json(RunFiles(run_folder(config)).provenance) or {}).get("sources")
    if not recorded:
        return []
    now = sources(config)
    return sorted({*changed_sources(recorded), *(name for name in now if now[name] != recorded.get(name))})


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
    found: dict[str, Any] = {
        "config_sha256": run_digest(config),
        "data": dict(data),
        "weights": {"encoder": _encoder_weights(config), "language": _language_weights(config)}
        | _recipe_weights(config),
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
    """Module -> SHA-256 of the source of the connector and of the scan orders that its fields name, and of encoders, a
    language model and a recipe of another package; ours are known by the code revision."""
    fields = connector_fields(config.connector).values()
    named = [value for field in fields for value in (field if isinstance(field, list | tuple) else [field])]
    orders = [scan_orders.registry.get(name) for name in scan_orders.registry.names() if name in named]
    others = [
        languages.registry.get(config.language.name),
        recipe.registry.get(config.train.stage),
        *(encoders.registry.get(family) for family in config.encoder.family),
    ]
    foreign = [member for member in others if not member.__module__.startswith("ablate.")]
    members = [connectors.contract.registry.get(config.connector.name), *orders, *foreign]
    return source_digests(members)


def _encoder_weights(config: RunConfig) -> list[dict[str, Any]]:
    """For each encoder its weights file; where there is none, which weights of the hub, or that they are random."""
    names = config.encoder.names
    families = config.encoder.family or ["timm"] * len(names)
    found = []
    for family, name, weights in zip(families, names, config.encoder.weights or [""] * len(names), strict=False):
        entry: dict[str, Any] = {"encoder": name}
        if weights == "random":
            entry["random"] = True
        elif weights not in ("", "pretrained"):
            entry |= _entry(Path(weights))
        else:
            published, file = encoders.registry.get(family).published(name)
            entry |= dict(published) | (_entry(file) if file else {})
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


def _recipe_weights(config: RunConfig) -> dict[str, Any]:
    """Files that the recipe reads, such as a teacher's."""
    files = list(recipe.create(config.train.stage, **config.train.fields).weights())
    return {"recipe": [_entry(file) for file in files]} if files else {}


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

    # An installed package may be inside an unrelated repository: only a checkout that tracks this file counts.
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
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "cuda": torch.version.cuda if gpus else None,
    }


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
