"""Vision encoders, the Mamba-2 language model, and the vision-language model made of both and a connector."""

from ablate.model.encoders import EncoderConfig, Preprocessing, VisionEncoder, create_encoder
from ablate.model.factory import (
    ConnectorConfig,
    LanguageConfig,
    ModelConfig,
    ParameterCounts,
    build_vlm,
    count_parameters,
)
from ablate.model.language import MambaConfig, MambaLMHeadModel, SSMConfig, load_pretrained
from ablate.model.vlm import VLM

__all__ = [
    "VLM",
    "ConnectorConfig",
    "EncoderConfig",
    "LanguageConfig",
    "MambaConfig",
    "MambaLMHeadModel",
    "ModelConfig",
    "ParameterCounts",
    "Preprocessing",
    "SSMConfig",
    "VisionEncoder",
    "build_vlm",
    "count_parameters",
    "create_encoder",
    "load_pretrained",
]
