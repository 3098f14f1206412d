"""Models from configs: seeds, shared weights, counts."""

import dataclasses

import pytest
import torch

import connectors
from ablate.core import config as configs
from ablate.core.errors import UserError
from ablate.model import ConnectorConfig, LanguageConfig, ModelConfig, SSMConfig, build_vlm, count_parameters


def same(a, b) -> dict[str, bool]:
    """Per part of the model, whether all its tensors are equal, bit for bit."""
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    result = {}
    for name, tensor in left.items():
        part = name.split(".")[0]
        result[part] = result.get(part, True) and torch.equal(tensor, right[name])
    return result


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(model_config):
    first, again, other = (build_vlm(model_config, seed=seed) for seed in (0, 0, 1))
    assert same(first, again) == {"encoder": True, "connector": True, "language": True}
    assert same(first, other) == {"encoder": False, "connector": False, "language": False}


@pytest.mark.parametrize("name", connectors.names())
def test_every_connector_varies_with_the_seed_and_shares_the_language_model(model_config, name):
    member = connectors.contract.registry.get(name)
    model_config.connector = ConnectorConfig(name=name, fields=dict(member.test_fields))
    first, other = (build_vlm(model_config, seed=seed) for seed in (0, 1))
    matrices = [
        (a, b) for a, b in zip(first.connector.parameters(), other.connector.parameters(), strict=True) if a.ndim > 1
    ]
    # Not what starts as ones or as a table of a few values.
    matrices = [(a, b) for a, b in matrices if a.unique().numel() > a.numel() / 2]
    assert matrices or first.connector.starts_at_zero
    assert not any(torch.equal(a, b) for a, b in matrices)
    linear = dataclasses.replace(model_config, connector=ConnectorConfig(name="linear"))
    reference = build_vlm(linear, seed=0)
    for name_, tensor in first.language.state_dict().items():
        assert torch.equal(tensor, reference.language.state_dict()[name_])


def test_building_leaves_the_callers_random_state_alone(model_config):
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    build_vlm(model_config, seed=5)
    assert torch.equal(torch.rand(3), expected)


def test_a_pretrained_language_model_brings_its_own_sizes(model_config, language, tmp_path):
    language.save_pretrained(tmp_path)
    model_config.language = LanguageConfig(pretrained=str(tmp_path), d_model=999, gradient_checkpointing=True)
    vlm = build_vlm(model_config, seed=0)
    own = dataclasses.replace(language.config.ssm_cfg, chunk_size=None)  # of the machine, not of the model
    assert vlm.language.config == dataclasses.replace(language.config, ssm_cfg=own)
    assert vlm.language.backbone.gradient_checkpointing
    for name, tensor in language.state_dict().items():
        assert torch.equal(vlm.language.state_dict()[name], tensor)


def test_parameters_are_counted_once(built):
    counts = count_parameters(built)
    language = built.language
    assert counts.language == sum(tensor.numel() for tensor in language.backbone.state_dict().values())  # a tied head
    assert counts.connector == sum(parameter.numel() for parameter in built.connector.parameters())
    assert counts.encoder == sum(parameter.numel() for parameter in built.encoder.parameters())
    assert counts.total == counts.encoder + counts.connector + counts.language
    assert counts.trainable == counts.connector + counts.language  # the encoder is frozen
    language.requires_grad_(False)
    assert count_parameters(built).trainable == counts.connector


def test_configs_can_be_written_as_text():
    config = configs.load(
        ModelConfig,
        overrides=[
            "encoder.names=[a,b]",
            "encoder.layer=[-2,final]",
            "encoder.preprocessing=[{mean: [0.5, 0.5, 0.5]}, {}]",
            "connector={name: msc_csm, fields: {depth: 2, path: snake}}",
            "language.ssm_cfg.headdim=32",
            "blind=true",
        ],
    )
    assert config.encoder.layer == [-2, "final"]
    assert config.encoder.preprocessing[0].mean == [0.5, 0.5, 0.5]
    assert config.connector.fields == {"depth": 2, "path": "snake"}
    assert config.language.ssm_cfg == SSMConfig(headdim=32)
    with pytest.raises(UserError, match=r"language\.ssm_cfg\.headdim"):
        configs.load(ModelConfig, overrides=["language.ssm_cfg.hedim=32"])


def test_the_demo_sizes_build():
    language = LanguageConfig(d_model=192, n_layer=4, vocab_size=50277, ssm_cfg=SSMConfig(headdim=32, d_state=64))
    config = ModelConfig(language=language)
    config.encoder.names, config.encoder.weights = ["tf_efficientnet_lite0"], ["random"]
    vlm = build_vlm(config, seed=0)
    assert vlm.language.lm_head.weight.shape == (50288, 192)
    assert (vlm.encoder.grid, vlm.num_visual_tokens) == ((7, 7), 49)


def test_an_unknown_connector_is_answered_with_the_nearest(model_config):
    model_config.connector.name = "msc_cs"
    with pytest.raises(ValueError, match="msc_csm"):
        build_vlm(model_config, seed=0)
