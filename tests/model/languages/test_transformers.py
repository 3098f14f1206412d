"""Models of transformers: what they give is what transformers gives, and what they cannot do is refused."""

import json
import sys

import pytest
import torch

from ablate.errors import UserError
from ablate.model import LanguageConfig
from ablate.model.factory import create_language
from ablate.model.generation import generate

transformers = pytest.importorskip("transformers")
transformers.utils.logging.set_verbosity_error()

COMMON = {"vocab_size": 96, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
WIDTH = {"hidden_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
MLP = {"intermediate_size": 48}
# Config, and whether padding and packing are supported.
KINDS = {
    "llama": (lambda: transformers.LlamaConfig(**COMMON, **WIDTH, **HEADS, **MLP), True, True),
    "qwen2": (lambda: transformers.Qwen2Config(**COMMON, **WIDTH, **HEADS, **MLP), True, True),
    # A window shorter than the texts, of which padding must take nothing.
    "mistral": (lambda: transformers.MistralConfig(**COMMON, **WIDTH, **HEADS, **MLP, sliding_window=6), True, True),
    "gpt2": (lambda: transformers.GPT2Config(**COMMON, n_embd=32, n_layer=2, n_head=4, n_positions=128), True, True),
    "bloom": (lambda: transformers.BloomConfig(**COMMON, hidden_size=32, n_layer=2, n_head=4), True, False),
    "mamba": (lambda: transformers.MambaConfig(**COMMON, **WIDTH), True, False),
    "mamba2": (
        lambda: transformers.Mamba2Config(
            **COMMON, **WIDTH, head_dim=16, num_heads=4, n_groups=1, state_size=16, chunk_size=8
        ),
        True,
        False,
    ),
    "jamba": (
        lambda: transformers.JambaConfig(
            **COMMON,
            **HEADS,
            **MLP,
            hidden_size=32,
            num_hidden_layers=4,
            num_experts=2,
            num_experts_per_tok=1,
            attn_layer_period=2,
            attn_layer_offset=1,
            use_mamba_kernels=False,
        ),
        True,
        False,
    ),
}


def save(config, folder, **kwargs):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "A_log" not in name:
                parameter.normal_(std=0.15)
    model.save_pretrained(folder, **kwargs)
    return model


def load(folder, **fields):
    return create_language(LanguageConfig(name="transformers", pretrained=str(folder), fields=fields)).eval()


def tokens(*shape):
    return torch.randint(0, 96, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_logits_and_greedy_tokens_are_transformers_own(kind, tmp_path):
    config, pads, packs = KINDS[kind]
    theirs = save(config(), tmp_path)
    ours = load(tmp_path)
    assert (ours.supports_padding, ours.supports_packing) == (pads, packs)
    ids = tokens(2, 17)
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=0)
    text = generate(ours, ours.embed(ids), max_new_tokens=12, eos_id=-1)
    whole = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    assert text == whole[:, 17:].tolist()
    # The same texts, padded on the right, where transformers' own recurrent models go astray.
    short = generate(ours, ours.embed(ids[1:, :9]), max_new_tokens=12, eos_id=-1)
    mask = torch.arange(17) < torch.tensor([[17], [9]])
    assert generate(ours, ours.embed(ids), mask, max_new_tokens=12, eos_id=-1) == [text[0], short[0]]


def test_packing_that_is_not_supported_is_refused_by_name(tmp_path):
    save(KINDS["mamba"][0](), tmp_path)
    ours = load(tmp_path)
    with pytest.raises(UserError, match=r"MambaForCausalLM does not support packing: set data\.packing=0"):
        ours(tokens(1, 6), seq_idx=torch.tensor([[0, 0, 0, 1, 1, 1]]))


def test_padding_that_changes_results_is_found_and_refused_by_name(tmp_path, monkeypatch):
    save(KINDS["llama"][0](), tmp_path)
    ours = load(tmp_path)
    forward = ours.model.base_model.forward
    monkeypatch.setattr(
        ours.model.base_model, "forward", lambda attention_mask=None, **kwargs: forward(**kwargs)
    )  # a model that does not mask
    assert not ours.supports_padding
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    with pytest.raises(UserError, match=r"LlamaForCausalLM does not support padding.*evaluation\.batch_size=1"):
        ours(tokens(2, 6), mask=mask)
    ours(tokens(2, 6), mask=torch.ones(2, 6, dtype=torch.bool))  # nothing is padding here


def test_trials_leave_modes_gradients_and_random_state_alone(tmp_path):
    save(KINDS["llama"][0](), tmp_path)
    ours = load(tmp_path).train()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):
        assert ours.supports_padding
        assert ours.supports_packing
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in ours.modules())
    assert all(parameter.grad is None for parameter in ours.parameters())


@pytest.mark.parametrize(
    "config",
    [
        lambda: transformers.Gemma2Config(**COMMON, **WIDTH, **HEADS, **MLP, head_dim=8, final_logit_softcapping=2.0),
        lambda: transformers.CohereConfig(**COMMON, **WIDTH, **HEADS, **MLP, logit_scale=0.5),
        lambda: transformers.GraniteConfig(**COMMON, **WIDTH, **HEADS, **MLP, embedding_multiplier=3.0),
    ],
)
def test_models_whose_logits_are_more_than_a_product_are_refused(config, tmp_path):
    config = config()
    save(config, tmp_path)
    if config.model_type == "granite":  # scales embeddings that are given as well: nothing is lost
        ids = tokens(1, 5)
        load(tmp_path)(ids)
    else:
        with pytest.raises(UserError, match="more than its embeddings, hidden states and head"):
            load(tmp_path)


def test_models_without_a_cache_are_refused(tmp_path):
    save(transformers.RwkvConfig(**COMMON, **WIDTH), tmp_path)
    with pytest.raises(UserError, match="RwkvForCausalLM keeps no cache"):
        load(tmp_path)


def test_what_cannot_be_loaded_is_told(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"needs language\.pretrained"):
        create_language(LanguageConfig(name="transformers"))
    with pytest.raises(UserError, match="No language model at"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="cannot load"):
        load(tmp_path)
    folder = tmp_path / "pickled"
    model = save(KINDS["llama"][0](), folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"safetensors"):
        load(folder)
    with pytest.raises(UserError, match="attention"):
        load(folder, attention="fast")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r'pip install "ablate\[transformers\]"'):
        load(folder)


@pytest.mark.parametrize("change", [{"num_hidden_layers": 3}, {"intermediate_size": 64}])
def test_weights_that_do_not_fit_are_not_replaced_by_random_ones(change, tmp_path):
    save(KINDS["llama"][0](), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=r"do not fit its config\.json|cannot load"):
        load(tmp_path)


def test_code_of_the_folders_own_is_not_run(tmp_path):
    save(KINDS["llama"][0](), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    victim = tmp_path / "made-by-the-code"
    (tmp_path / "evil.py").write_text(f"open({str(victim)!r}, 'w')\n")
    custom = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "evil", "auto_map": custom}))
    with pytest.raises(UserError, match="cannot load"):
        load(tmp_path)
    assert not victim.exists()
