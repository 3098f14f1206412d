"""Every language model of the registry, in several of its forms, keeps the contract."""

import pytest
import torch

from ablate.model import LanguageConfig, SSMConfig
from ablate.model.build import create_language
from ablate.model.languages import LanguageModel, names, registry
from ablate.testing.languages import CHECKS

SMALL = {"d_model": 32, "n_layer": 2, "vocab_size": 50}
SSM = SSMConfig(d_state=16, headdim=16, chunk_size=4)

FORMS = {
    "mamba2": {"name": "mamba2", "ssm_cfg": SSM},
    "mamba2-untied": {"name": "mamba2", "ssm_cfg": SSM, "tie_embeddings": False, "residual_in_fp32": False},
    "mamba1": {"name": "mamba1", "fields": {"d_state": 8, "chunk_size": 4}},
    "mamba1-biases": {"name": "mamba1", "fields": {"bias": True, "conv_bias": False, "dt_rank": 1, "chunk_size": 3}},
    "decoder": {"name": "decoder", "fields": {"heads": 4, "kv_heads": 2}},
    "decoder-heads": {
        "name": "decoder",
        "tie_embeddings": False,
        "fields": {"heads": 3, "kv_heads": 1, "head_dim": 6, "attention_bias": True, "mlp": False},
    },
    "decoder-hybrid": {
        "name": "decoder",
        "n_layer": 4,
        "ssm_cfg": SSM,
        "fields": {"layers": "2*mamba2+attention+mamba1", "mlp": [True, False, True, False], "heads": 2},
    },
    "decoder-mmmamba": {
        "name": "decoder",
        "ssm_cfg": SSM,
        "fields": {"layers": "mmmamba+attention", "heads": 4, "kv_heads": 2, "attention_bias": True},
    },
    "decoder-mmmamba-paper": {
        "name": "decoder",
        "ssm_cfg": SSM,
        "fields": {"layers": "mmmamba", "heads": 2, "mmmamba": "paper", "mlp": False},
    },
    "transformers-llama": {"name": "transformers"},
    "transformers-mamba": {"name": "transformers"},
    "transformers-opt": {"name": "transformers"},  # which supports no packing
}


@pytest.fixture(scope="module", params=FORMS)
def make(request, tmp_path_factory):
    form = dict(FORMS[request.param])
    if form["name"] == "transformers":
        folder = tmp_path_factory.mktemp(request.param)
        _transformers_folder(request.param.partition("-")[2], folder)
        form["pretrained"] = str(folder)
    config = LanguageConfig(**SMALL | form)
    return lambda: create_language(config)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(make, check):
    check(make)


def test_every_member_is_tested():
    ours = {name for name in names() if registry.get(name).__module__.startswith("ablate.")}
    assert ours == {form["name"] for form in FORMS.values()}


def _transformers_folder(kind, folder):
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.set_verbosity_error()
    common = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": None, "bos_token_id": None}
    common |= {"eos_token_id": None}
    attention = {"num_attention_heads": 4}
    configs = {
        "llama": lambda: transformers.LlamaConfig(intermediate_size=48, num_key_value_heads=2, **common, **attention),
        "mamba": lambda: transformers.MambaConfig(state_size=8, **common),
        "opt": lambda: transformers.OPTConfig(ffn_dim=48, word_embed_proj_dim=32, dropout=0.0, **common, **attention),
    }
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(configs[kind]()).save_pretrained(folder)


def test_rows_are_chosen_from_states_of_any_nesting():
    plain = torch.arange(12.0).reshape(3, 4)
    state = (plain, [plain + 1, (plain + 2, 5)], {"kept": 1})
    first, (second, (third, number)), kept = LanguageModel().select_rows(state, [1])
    assert torch.equal(first, plain[[1]])
    assert torch.equal(second, plain[[1]] + 1)
    assert torch.equal(third, plain[[1]] + 2)
    assert (number, kept) == (5, {"kept": 1})
    assert LanguageModel().state_bytes(state) == 3 * plain.nbytes
