"""Whether models can be built, found out without memory for their weights: on PyTorch's meta device."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from ablate.core.config import digest
from ablate.core.errors import UserError
from ablate.model import VLM, LanguageConfig, ModelConfig, build_vlm
from ablate.model.build import create_connector

# Stands for the width of a language model that is not on this machine: any sensible number of heads divides it.
_UNKNOWN_WIDTH = 2**10 * 3**2 * 5 * 7


class VisualTokens(NamedTuple):
    """How many an image has, and which of the connector's sizes are trained (`connectors.Connector.trained_sizes`)."""

    number: int
    trained_sizes: str


class ModelCheck:
    """Builds each distinct model once, and each encoder and language model once for all connectors.

    No weights are read or downloaded: they are replaced by random ones without files. Of a pretrained language model,
    its width alone counts.
    """

    def __init__(self) -> None:
        self._done: dict[str, VisualTokens | None] = {}
        self._parts: dict[str, VLM] = {}

    def __call__(self, config: ModelConfig) -> VisualTokens | None:
        """Build a model, unless it has been built.

        Returns:
            Its visual tokens; None if only a model with its weights can say.

        Raises:
            UserError: it cannot be built.
        """
        config = _without_weights(config)
        if (key := digest(config)) in self._done:
            return self._done[key]
        parts = digest(config, ignore=["connector"])
        if parts in self._parts:
            vlm = _on_meta(lambda: _with_connector(self._parts[parts], config))
        elif (vlm := _on_meta(lambda: build_vlm(config, seed=0))) is not None:
            self._parts[parts] = vlm
        self._done[key] = None if vlm is None else VisualTokens(vlm.num_visual_tokens, vlm.trained_sizes)
        return self._done[key]


def _on_meta(build: Callable[[], VLM]) -> VLM | None:
    try:
        with torch.device("meta"):
            return build()
    except UserError:
        raise
    except Exception as error:
        if "meta" in str(error):
            return None  # a part that looks at its own weights while it is built: only the run can say
        raise UserError(f"the model cannot be built: {type(error).__name__}: {error}") from error


def _with_connector(parts: VLM, config: ModelConfig) -> VLM:
    connector = create_connector(config.connector, parts.encoder, config.language.d_model)
    return VLM(parts.encoder, connector, parts.language, size=config.connector.size)


def _without_weights(config: ModelConfig) -> ModelConfig:
    encoder = replace(config.encoder, weights=["random"] * len(config.encoder.weights or config.encoder.names))
    language = config.language
    if language.pretrained:
        language = LanguageConfig(d_model=_pretrained_width(Path(language.pretrained)), n_layer=1)
    return replace(config, encoder=encoder, language=language, blind=False)


def _pretrained_width(path: Path) -> int:
    try:
        sizes = json.loads(((path if path.is_dir() else path.parent) / "config.json").read_text(encoding="utf-8"))
        width = sizes.get("d_model", sizes.get("hidden_size"))
    except (OSError, ValueError, AttributeError):
        width = None
    return width if isinstance(width, int) and width > 0 else _UNKNOWN_WIDTH
