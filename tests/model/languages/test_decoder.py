"""The decoder against transformers' Llama and our Mamba-2, the patterns of its layers, and its cache."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ablate.core.errors import UserError
from ablate.model import LanguageConfig, MambaLMHeadModel, SSMConfig
from ablate.model.build import create_language
from ablate.model.generation import generate
from ablate.model.languages.attention import Attention, KVCache
from ablate.model.languages.decoder import expand_layers

SIZES = {"d_model": 64, "n_layer": 3, "vocab_size": 96, "ssm_cfg": SSMConfig(d_state=16, headdim=16, chunk_size=8)}


LLAMA_NAMES = (
    ("model.embed_tokens.", "backbone.embedding."),
    ("model.norm.", "backbone.norm_f."),
    ("model.layers.", "backbone.layers."),
    (".input_layernorm.", ".norm."),
    (".post_attention_layernorm.", ".norm2."),
    (".self_attn.o_proj.", ".mixer.out_proj."),
    (".self_attn.", ".mixer."),
    (".mlp.down_proj.", ".mlp.fc2."),
)


def decoder(seed=0, **changes):
    fields = changes.pop("fields", {})
    torch.manual_seed(seed)
    return create_language(LanguageConfig(name="decoder", fields=fields, **SIZES | changes)).eval()


def tokens(*shape, seed=0):
    return torch.randint(0, 96, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=[{}, {"tie_word_embeddings": True, "rope_theta": 500.0, "head_dim": 12}])
def llama(request):
    """transformers' model with random weights and grouped queries, and ours with the same."""
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.set_verbosity_error()
    config = transformers.LlamaConfig(
        **{
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 96,
            "tie_word_embeddings": False,
            "pad_token_id": 0,
            "bos_token_id": None,
            "eos_token_id": None,
        }
        | request.param
    )
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.2)
    heads = {"heads": 4, "kv_heads": 2, "head_dim": request.param.get("head_dim")}
    fields = heads | {"d_intermediate": 96, "norm_eps": 1e-6, "rope_theta": request.param.get("rope_theta", 10000.0)}
    ours = decoder(tie_embeddings=request.param.get("tie_word_embeddings", False), fields=fields)
    ours.load_state_dict(our_names(theirs.state_dict()))
    return theirs, ours


def our_names(tensors):
    """The tensors of a LlamaForCausalLM by our names; up and gate projection are one tensor here."""
    renamed = {}
    for name, tensor in tensors.items():
        for theirs, ours in LLAMA_NAMES:
            name = name.replace(theirs, ours)
        if "gate_proj" not in name:
            gate = name.replace("backbone", "model").replace("up_proj", "gate_proj")
            both = [tensor, tensors[gate]] if "up_proj" in name else [tensor]
            renamed[name.replace("up_proj", "fc1")] = torch.cat(both)
    return renamed


@torch.no_grad()
def test_logits_are_those_of_transformers_llama(llama):
    theirs, ours = llama
    ids = tokens(2, 37)
    expected = theirs(ids).logits
    assert expected.abs().max() > 2
    torch.testing.assert_close(ours(ids), expected, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_are_those_of_transformers_llama(llama, side):
    theirs, ours = llama
    lengths = torch.tensor([17, 5, 11])
    ids = tokens(3, 17)
    mask = torch.arange(17) < lengths[:, None]
    mask = mask.flip(1) if side == "left" else mask
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected = theirs(ids, attention_mask=mask.long(), position_ids=positions).logits
    torch.testing.assert_close(ours(ids, mask=mask)[mask], expected[mask], atol=1e-4, rtol=0)


@torch.no_grad()
def test_packed_rows_are_those_of_transformers_llama_apart(llama):
    theirs, ours = llama
    parts = [tokens(1, length, seed=length) for length in (9, 1, 14)]
    seq_idx = torch.tensor([[4] * 9 + [2] + [4] * 14])
    expected = torch.cat([theirs(part).logits for part in parts], dim=1)
    torch.testing.assert_close(ours(torch.cat(parts, dim=1), seq_idx=seq_idx), expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_cached_logits_and_greedy_tokens_are_those_of_transformers_llama(llama):
    theirs, ours = llama
    ids = tokens(2, 20)
    expected = theirs(ids).logits
    hidden, state = ours.hidden(ours.embed(ids[:, :12]), return_state=True, max_length=20)
    outs = [hidden]
    for place in range(12, 20):
        out, state = ours.step(ours.embed(ids[:, place]), state, inplace=True)
        outs.append(out[:, None])
    torch.testing.assert_close(ours.logits(torch.cat(outs, dim=1)), expected, atol=1e-4, rtol=0)
    text = generate(ours, ours.embed(ids), max_new_tokens=24, eos_id=-1)
    whole = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
    assert text == whole[:, 20:].tolist()
    assert len({token for row in text for token in row}) > 5  # not one token for ever


@torch.no_grad()
def test_mamba2_layers_alone_are_the_mamba2_model():
    ours = decoder(fields={"layers": "mamba2", "mlp": False})
    torch.manual_seed(0)
    theirs = create_language(LanguageConfig(**SIZES)).eval()
    assert isinstance(theirs, MambaLMHeadModel)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())
    assert torch.equal(ours(tokens(2, 21)), theirs(tokens(2, 21)))


# ------------------------------------------------------------------------------------------------------------ layers


@pytest.mark.parametrize(
    ("layers", "mlp", "expected"),
    [
        ("attention", True, "A.A.A.A.A."),
        ("2*mamba2+attention", False, "MMAMM"),
        (" mamba2 + 2 * attention ", [False, True, True], "MA.A.MA."),
        (["attention", "mamba1"], [True, False], "A.1A.1A."),
        (["mamba2"] * 4 + ["attention"], False, "MMMMA"),
    ],
)
def test_layers_are_repeated(layers, mlp, expected):
    letters = {"attention": "A", "mamba2": "M", "mamba1": "1"}
    names, has_mlp = expand_layers(layers, mlp, 5)
    got = "".join(letters[name] + "." * has for name, has in zip(names, has_mlp, strict=True))
    assert got == expected


@given(
    st.lists(st.tuples(st.integers(1, 3), st.sampled_from(["attention", "mamba1", "mamba2"])), min_size=1, max_size=5)
)
def test_a_pattern_is_its_list(terms):
    text = "+".join(name if count == 1 else f"{count}*{name}" for count, name in terms)
    written_out = [name for count, name in terms for _ in range(count)]
    assert expand_layers(text, True, 20) == expand_layers(written_out, True, 20)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"layers": "2*mamba2+atention"}, "Did you mean attention"),
        ({"layers": "mamba2++attention"}, "has no meaning"),
        ({"layers": "mamba2*3"}, "has no meaning"),
        ({"layers": ""}, "has no meaning"),
        ({"layers": "0*mamba2"}, "has 0 layers"),
        ({"layers": []}, "has 0 layers"),
        ({"layers": "4*attention"}, "has 4 layers: expected 1 to language.n_layer=3"),
        ({"layers": ["attention", "mamba2"], "mlp": [True]}, "mlp has 1 entries"),
        ({"heads": 4, "kv_heads": 3}, "cannot be shared"),
        ({"heads": 0}, "heads.*expected"),
        ({"heads": 5}, "set head_dim"),
        ({"heads": 4, "head_dim": 5}, "even number"),
        ({"d_intermediate": 0}, "d_intermediate.*expected"),
        ({"rope_theta": -1.0}, "rope_theta.*expected"),
        ({"layer": "attention"}, "Did you mean layers"),
        ({"heads": "4"}, "expected int or null"),
    ],
)
def test_fields_that_do_not_fit_are_the_users_error(fields, said):
    with pytest.raises(UserError, match=said):
        decoder(fields=fields)


def test_each_layer_is_what_was_asked_for():
    model = decoder(n_layer=4, fields={"layers": "mamba2+attention+mamba1", "mlp": [False, True, False]})
    mixers = [type(layer.mixer).__name__ for layer in model.backbone.layers]
    assert mixers == ["Mamba2Mixer", "Attention", "Mamba1Mixer", "Mamba2Mixer"]
    assert [layer.mlp is not None for layer in model.backbone.layers] == [False, True, False, False]
    assert model.backbone.layers[0].mixer.d_state == 16


# ------------------------------------------------------------------------------------------------------------- cache


@torch.no_grad()
def test_a_cache_with_room_is_written_in_place_and_one_without_grows():
    model = decoder(fields={"heads": 4, "kv_heads": 2})
    embedded = model.embed(tokens(2, 30))
    whole = model.hidden(embedded)
    for max_length in (30, None):
        _, state = model.hidden(embedded[:, :10], return_state=True, max_length=max_length)
        places = {layer.keys.data_ptr() for layer in state}
        for place in range(10, 30):
            hidden, state = model.step(embedded[:, place], state, inplace=True)
        torch.testing.assert_close(hidden, whole[:, -1], atol=1e-5, rtol=0)
        assert (places == {layer.keys.data_ptr() for layer in state}) == (max_length == 30)
        assert {layer.keys.shape[2] for layer in state} == {30 if max_length else 52}


def test_the_bytes_of_the_cache_are_its_formula():
    model = decoder(fields={"heads": 4, "kv_heads": 2, "head_dim": 8})
    _, state = model.hidden(model.embed(tokens(3, 5)), return_state=True, max_length=40)
    layers, batch, kv_heads, head_dim, length = 3, 3, 2, 8, 40
    counts = 8 * batch * layers  # how many tokens each row has
    assert model.state_bytes(state) == 2 * layers * batch * kv_heads * head_dim * length * 4 + counts
    assert model.state_bytes(model.init_state(3, 40)) == model.state_bytes(state)
    hybrid = decoder(fields={"layers": "2*mamba2+attention"})
    sizes = [hybrid.state_bytes(hybrid.init_state(1, length)) for length in (0, 100, 200)]
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] == 2 * 100 * 64 * 4  # one attention layer, one head of 64


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_what_was_dropped_never_enter_the_cache(side):
    torch.manual_seed(0)
    attention = Attention(32, heads=4, kv_heads=2)
    hidden = torch.randn(2, 9, 32)
    mask = torch.arange(9) < torch.tensor([[9], [4]])
    if side == "left":
        mask, hidden = mask.flip(1), hidden.flip(1)
    hidden = hidden.masked_fill(~mask[..., None], torch.nan)
    seq_idx = torch.zeros(2, 9, dtype=torch.int64)
    seq_idx[0, 5:] = 1
    out, state = attention(hidden, mask=mask, seq_idx=seq_idx, return_state=True)
    assert out[mask].isfinite().all()
    assert state.lengths.tolist() == [4, 4]
    assert state.keys.isfinite().all()
    _, last = attention(hidden[:1, 5:], return_state=True)
    torch.testing.assert_close(state.keys[:1, :, :4], last.keys)
    torch.testing.assert_close(state.values[:1, :, :4], last.values)
    assert isinstance(state, KVCache)
