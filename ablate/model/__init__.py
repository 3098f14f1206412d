"""Vision encoders, language models, and the vision-language model made of one of each and a connector."""

from ablate.model.encoders import EncoderConfig, Preprocessing, VisionEncoder, create_encoder
from ablate.model.factory import (
    ConnectorConfig,
    LanguageConfig,
    ModelConfig,
    ParameterCounts,
    build_vlm,
    count_parameters,
)
from ablate.model.languages import LanguageModel
from ablate.model.languages.mamba2 import MambaConfig, MambaLMHeadModel, SSMConfig, load_pretrained
from ablate.model.vlm import VLM

__all__ = [
    "VLM",
    "ConnectorConfig",
    "EncoderConfig",
    "LanguageConfig",
    "LanguageModel",
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
