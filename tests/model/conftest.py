"""Small models and batches for the tests of this folder."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import connectors
from ablate.model import (
    VLM,
    ConnectorConfig,
    EncoderConfig,
    LanguageConfig,
    MambaConfig,
    MambaLMHeadModel,
    ModelConfig,
    SSMConfig,
    build_vlm,
)
from datamodules import IGNORE_INDEX, IMAGE_TOKEN_ID

GRID = (2, 3)
VISUAL = GRID[0] * GRID[1]
FEATURES = 8
VOCABULARY = 50


@pytest.fixture
def config() -> MambaConfig:
    """Padded to 64 rows; the chunk is shorter than the sequences."""
    return MambaConfig(
        d_model=32, n_layer=2, vocab_size=VOCABULARY, ssm_cfg=SSMConfig(d_state=16, headdim=16, chunk_size=8)
    )


@pytest.fixture(scope="session")
def talkative() -> Callable[[MambaLMHeadModel], MambaLMHeadModel]:
    """As initialised, a model says the same token for ever. This makes its text, and what is tested with it, vary."""

    def scale(model: MambaLMHeadModel) -> MambaLMHeadModel:
        generator = torch.Generator().manual_seed(3)
        torch.nn.init.normal_(model.backbone.embedding.weight, std=0.3, generator=generator)
        for layer in model.backbone.layers:
            torch.nn.init.normal_(layer.mixer.out_proj.weight, std=0.5, generator=generator)
        return model

    return scale


@pytest.fixture
def language(config: MambaConfig, talkative) -> MambaLMHeadModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = MambaLMHeadModel(config)
    return talkative(model).eval()


@pytest.fixture
def vlm(language: MambaLMHeadModel) -> VLM:
    """Reads cached features of `GRID` x `FEATURES`."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        connector = connectors.create("mlp", FEATURES, language.config.d_model)
    return VLM(None, connector, language).eval()


@pytest.fixture
def model_config() -> ModelConfig:
    return ModelConfig(
        encoder=EncoderConfig(names=["test_vit"], weights=["random"], image_size=[32], precision="float32"),
        connector=ConnectorConfig(name="msc_csm", fields={"d_state": 8, "headdim": 16}),
        language=LanguageConfig(
            d_model=32, n_layer=2, vocab_size=VOCABULARY, ssm_cfg=SSMConfig(d_state=16, headdim=16)
        ),
    )


@pytest.fixture
def built(model_config: ModelConfig) -> VLM:
    return build_vlm(model_config, seed=0)


@pytest.fixture
def make_batch() -> Callable[..., dict[str, Any]]:
    """Rows of (prompt, answer) -> a right-padded batch. In a prompt, "<image>" stands for the visual tokens."""

    def make(*rows: tuple[list, list[int]], seed: int = 0, visual: int = VISUAL) -> dict[str, Any]:
        expanded = []
        for prompt, answer in rows:
            ids = [t for piece in prompt for t in ([IMAGE_TOKEN_ID] * visual if piece == "<image>" else [piece])]
            expanded.append((ids + answer, [IGNORE_INDEX] * len(ids) + answer))
        length = max(len(ids) for ids, _ in expanded)
        batch = {
            "input_ids": torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in expanded]),
            "labels": torch.tensor([labels + [IGNORE_INDEX] * (length - len(ids)) for ids, labels in expanded]),
            "mask": torch.tensor([[True] * len(ids) + [False] * (length - len(ids)) for ids, _ in expanded]),
            "keys": [f"sample-{row}" for row in range(len(rows))],
        }
        images = sum(prompt.count("<image>") for prompt, _ in rows)
        if images:
            generator = torch.Generator().manual_seed(seed)
            batch["features"] = torch.randn(images, *GRID, FEATURES, generator=generator).half()
        return batch

    return make
