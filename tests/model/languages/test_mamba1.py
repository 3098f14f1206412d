"""Mamba-1 against transformers' implementation, the released layout, and its own steps."""

import json

import pytest
import torch
from safetensors.torch import save_file

from ablate.core.errors import UserError
from ablate.model import LanguageConfig
from ablate.model.build import create_language
from ablate.model.generation import generate
from ablate.ssm import Mamba1Mixer

SIZES = {"d_model": 48, "n_layer": 3, "vocab_size": 96}


def language(seed=0, **changes):
    torch.manual_seed(seed)
    model = create_language(LanguageConfig(name="mamba1", **SIZES | changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "A_log" not in name:
                parameter.normal_(std=0.25)
    return model


def tokens(*shape, seed=0):
    return torch.randint(0, 96, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("fields", "tied"),
    [({}, True), ({"d_state": 5, "dt_rank": 2, "d_conv": 3, "bias": True, "conv_bias": False, "chunk_size": 7}, False)],
)
@torch.no_grad()
def test_logits_and_greedy_tokens_are_those_of_transformers(fields, tied):
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.set_verbosity_error()
    ours = language(fields=fields, tie_embeddings=tied)
    mixer = ours.backbone.layers[0].mixer
    theirs = transformers.MambaForCausalLM(
        transformers.MambaConfig(
            hidden_size=48,
            num_hidden_layers=3,
            vocab_size=96,
            state_size=mixer.d_state,
            conv_kernel=mixer.d_conv,
            time_step_rank=mixer.dt_rank,
            use_bias=mixer.in_proj.bias is not None,
            use_conv_bias=mixer.conv1d.bias is not None,
            tie_word_embeddings=tied,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()
    names = ours.state_dict().items()
    theirs.load_state_dict({name.replace(".embedding.", ".embeddings."): tensor for name, tensor in names})
    ids = tokens(2, 37)
    expected = theirs(ids).logits
    assert expected.abs().max() > 2
    torch.testing.assert_close(ours(ids), expected, atol=1e-4, rtol=0)
    text = generate(ours, ours.embed(ids), max_new_tokens=24, eos_id=-1)
    whole = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
    assert text == whole[:, 37:].tolist()
    assert len({token for row in text for token in row}) > 5


def test_parameters_are_named_as_in_the_released_checkpoints():
    """mamba-130m, layer 0."""
    shapes = {name: tuple(p.shape) for name, p in Mamba1Mixer(768).state_dict().items()}
    assert shapes == {
        "A_log": (1536, 16),
        "D": (1536,),
        "in_proj.weight": (3072, 768),
        "conv1d.weight": (1536, 1, 4),
        "conv1d.bias": (1536,),
        "x_proj.weight": (80, 1536),
        "dt_proj.weight": (1536, 48),
        "dt_proj.bias": (1536,),
        "out_proj.weight": (768, 1536),
    }


def test_initialisation_is_mamba_ssms():
    torch.manual_seed(0)
    model = create_language(
        LanguageConfig(name="mamba1", d_model=128, n_layer=4, vocab_size=1000, fields={"bias": True})
    )
    assert model.backbone.embedding.weight.std().item() == pytest.approx(0.02, rel=0.02)
    for layer in model.backbone.layers:
        mixer = layer.mixer
        steps = torch.nn.functional.softplus(mixer.dt_proj.bias)  # not zeroed with the other biases
        assert 0.001 <= steps.min() < 0.0015
        assert 0.08 < steps.max() <= 0.1001
        assert torch.equal(mixer.A_log.exp().round(), torch.arange(1.0, 17).repeat(256, 1))
        assert mixer.dt_proj.weight.abs().max() <= 8**-0.5
        bound = 1 / (256**0.5 * 2)  # kaiming uniform, the fourth layer's share of the variance
        assert mixer.out_proj.weight.abs().max().item() == pytest.approx(bound, rel=0.02)
        assert not mixer.in_proj.bias.any()
        assert mixer.A_log._no_weight_decay


@torch.no_grad()
def test_released_checkpoints_load(tmp_path):
    ours = language(fields={"d_state": 8})
    tensors = {name: tensor.contiguous() for name, tensor in ours.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, tmp_path / "model.safetensors")
    config = {**SIZES, "ssm_cfg": {"d_state": 8, "dt_rank": "auto"}, "rms_norm": True, "pad_vocab_size_multiple": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = create_language(LanguageConfig(name="mamba1", pretrained=str(tmp_path))).eval()
    assert torch.equal(loaded(tokens(2, 9)), ours(tokens(2, 9)))
    assert loaded.backbone.layers[0].mixer.A_log._no_weight_decay
    with pytest.raises(UserError, match=r"Set language\.name=mamba1"):
        create_language(LanguageConfig(pretrained=str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps(config | {"ssm_cfg": {"layer": "Mamba2"}}))
    with pytest.raises(UserError, match=r"Set language\.name=mamba2"):
        create_language(LanguageConfig(name="mamba1", pretrained=str(tmp_path)))


@pytest.mark.parametrize("fields", [{"d_state": 0}, {"d_conv": 1}, {"expand": 0}, {"dt_rank": 0}])
def test_sizes_that_do_not_fit_are_the_users_error(fields):
    with pytest.raises(UserError, match=r"mamba1.*expected int"):
        language(fields=fields)


@pytest.mark.parametrize("key", ["ssm_cfg", "d_modle"])
def test_keys_of_another_model_are_refused(key):
    if key == "ssm_cfg":
        config = LanguageConfig(name="mamba1", **SIZES)
        config.ssm_cfg.d_state = 64
        with pytest.raises(UserError, match=r"not read language\.ssm_cfg\.d_state: .*language\.fields: d_state"):
            create_language(config)
    else:
        with pytest.raises(UserError, match="d_state"):
            language(fields={"d_stat": 4})
