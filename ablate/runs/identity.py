"""What a run is: its digest and its name, from the settings that can change what it computes."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.core import config as config_io

if TYPE_CHECKING:
    from ablate.runs.config import RunConfig


def run_digest(config: RunConfig) -> str:
    """SHA-256 (hex) of all that can change what the run computes; where it is written and shown is left out."""
    return config_io.digest(config, ignore=NEUTRAL)


def run_id(config: RunConfig) -> str:
    """`<name>-<first 8 of the digest>`; the name is for people, nothing reads meaning out of it."""
    name = config.name or f"{config.connector.name}-s{config.seed}{'-blind' if config.blind else ''}"
    return f"{name}-{run_digest(config)[:8]}"


def run_folder(config: RunConfig) -> Path:
    return Path(config.root) / config.group / run_id(config)


def blind_key(settings: Mapping[str, Any], visual_tokens: int) -> str:
    """What a blind run of these settings computes, as a text: equal ones give the same training and answers.

    Of the connector only the number of visual tokens counts. It must be the same in every step: not for connectors
    that train several sizes.

    Args:
        settings: flat dotted keys.
        visual_tokens: of an image.
    """
    unused = (*NEUTRAL, "connector", "blind")
    kept = {key: value for key, value in settings.items() if not within(key, unused)}
    return json.dumps([visual_tokens, kept], sort_keys=True, default=str)


@functools.lru_cache(maxsize=100_000)
def within(key: str, names: tuple[str, ...]) -> bool:
    """Whether a setting is one of these or belongs to a group among them."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


NEUTRAL = (
    "root",
    "group",
    "name",
    "margin",
    "logger",
    "demo_root",
    "demo.num_workers",
    "features.root",
    "features.batch_size",
    "features.runs",
    "data.num_workers",
    "data.max_bad_share",
    "data.ignore_suffixes",
    "data.verify_checksums",
    "data.cache_dir",
    "data.cache_bytes",
    # Rounding and the draws of drop path aside: any number of ranks sees the same global batches.
    "data.micro_batch",
    "train.devices",
    "train.num_nodes",
    "train.strategy",
    "train.checkpoint_every",
    "train.keep_checkpoint",
    "evaluation.batch_size",
    "evaluation.devices",
)
