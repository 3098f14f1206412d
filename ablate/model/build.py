"""A model from its config: `build_vlm(ModelConfig, seed=...)`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import connectors
from ablate.core.config import LATER, flatten
from ablate.core.errors import UserError, unknown_name
from ablate.core.fields import Count
from ablate.core.seeds import bits64
from ablate.model import languages
from ablate.model.encoders import EncoderConfig, VisionEncoder, create_encoder
from ablate.model.languages import LanguageModel
from ablate.model.languages.mamba2 import MambaConfig
from ablate.model.vlm import VLM
from connectors import Connector, tokens_per_image


@dataclass
class ConnectorConfig:
    """name: a registered connector. fields: its own fields, see `ablate connectors`.

    shared: fields for those connectors that have them, where `fields` does not say otherwise: what an experiment over
    several connectors sets once for all.
    size: one of the sizes that the connector offers, such as its number of tokens; null for its largest.
    """

    name: str = "mlp"
    fields: dict[str, Any] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)
    size: Count | None = field(default=None, metadata=LATER)


@dataclass
class LanguageConfig(MambaConfig):
    """A language model of these sizes with new weights; or, where `pretrained` names a folder, that checkpoint, whose
    sizes then count.

    pretrained: the folder or file of a checkpoint; empty for new weights.
    gradient_checkpointing: recompute each layer in the backward pass: less memory, about a third more time.
    name: a registered language model. fields: its own fields. Keys of this group that it does not read keep their
        defaults.
    """

    pretrained: str = ""
    gradient_checkpointing: bool = False
    # Runs from before there was a choice have neither key, and keep their identity.
    name: str = field(default="mamba2", metadata=LATER)
    fields: dict[str, Any] = field(default_factory=dict, metadata=LATER)


@dataclass
class ModelConfig:
    """The whole model. blind: see `vlm.VLM`."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    connector: ConnectorConfig = field(default_factory=ConnectorConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    blind: bool = False


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters; shared ones count once."""

    encoder: int
    connector: int
    language: int
    trainable: int

    @property
    def total(self) -> int:
        return self.encoder + self.connector + self.language


def build_vlm(config: ModelConfig, *, seed: int) -> VLM:
    """Build encoder, connector and language model on the CPU; all that is random in it follows from `seed`.

    Each part has a stream of its own: two connectors with the same seed get the same language model, to the bit. The
    caller's random state is left as it was.

    Raises:
        UserError: see `create_encoder`, `create_language` and `connectors.create`.
    """
    with _seeded(seed, "encoder"):
        encoder = create_encoder(config.encoder)
    with _seeded(seed, "language"):
        language = create_language(config.language)
    with _seeded(seed, "connector"):
        connector = create_connector(config.connector, encoder, language.d_model)
    return VLM(encoder, connector, language, blind=config.blind, size=config.connector.size)


def create_connector(config: ConnectorConfig, encoder: VisionEncoder, d_model: int) -> Connector:
    """The connector that the config describes, for an encoder and a language model of width `d_model`.

    Raises:
        UserError: as `connector_fields` and `connectors.create`; or a grid that the connector does not take.
    """
    connector = connectors.create(config.name, encoder.dims, d_model, **connector_fields(config))
    tokens_per_image(connector, *encoder.grid, config.size)
    return connector


def connector_fields(config: ConnectorConfig) -> dict[str, Any]:
    """The fields that the connector is built with: its own over the shared ones that it has.

    Raises:
        UserError: an unknown connector, or a shared field that no registered connector has.
    """
    own = {known.name for known in connectors.describe(config.name).fields}
    known = {known.name for name in connectors.names() for known in connectors.describe(name).fields}
    for name in config.shared:
        if name not in known:
            raise unknown_name("shared connector field", name, known)
    return {name: value for name, value in config.shared.items() if name in own} | config.fields


def count_parameters(vlm: VLM) -> ParameterCounts:
    return ParameterCounts(
        encoder=_count(vlm.encoder),
        connector=_count(vlm.connector),
        language=_count(vlm.language),
        trainable=sum(parameter.numel() for parameter in vlm.parameters() if parameter.requires_grad),
    )


def create_language(config: LanguageConfig) -> LanguageModel:
    """The language model that the config describes, on the CPU, in float32.

    Raises:
        UserError: as `check_language`, and what the language model raises for its sizes or its folder.
    """
    fields = check_language(config)
    member = languages.registry.get(config.name)
    language = member.from_pretrained(config.pretrained, **fields) if config.pretrained else member(config, **fields)
    language.gradient_checkpointing = config.gradient_checkpointing
    return language


def check_language(config: LanguageConfig) -> dict[str, Any]:
    """The language model's own fields, typed; nothing is built.

    Raises:
        UserError: an unknown language model or field, or a key of the config that this language model does not read.
    """
    fields = languages.check(config.name, config.fields)
    member = languages.registry.get(config.name)
    if config.pretrained:  # whose folder has its own sizes
        return fields
    if not member.sizes:
        raise UserError(
            f'The language model "{config.name}" needs language.pretrained, the folder of a model, as '
            "`hf download NAME --local-dir FOLDER` makes it."
        )
    read = (*member.sizes, "name", "fields", "gradient_checkpointing")
    default = flatten(LanguageConfig())
    changed = {key for key, value in flatten(config).items() if value != default.get(key)}
    if unread := sorted(f"language.{key}" for key in changed if key.partition(".")[0] not in read):
        own = ", ".join(known.name for known in languages.describe(config.name).fields) or "none"
        raise UserError(
            f'The language model "{config.name}" does not read {", ".join(unread)}: leave the defaults. It reads '
            f"{', '.join(f'language.{name}' for name in member.sizes)}, and in language.fields: {own}."
        )
    return fields


def _count(module: nn.Module | None) -> int:
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())


@contextmanager
def _seeded(seed: int, part: str) -> Iterator[None]:
    """Torch's global CPU generator, from which modules draw their weights, seeded for one part and then put back."""
    stream = bits64(part, seed) >> 1
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream)  # not torch.manual_seed, which reseeds the GPUs as well
        yield
