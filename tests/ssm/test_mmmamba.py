"""mmMamba's mixer (arXiv 2502.13145): linear attention where it should be, and the published counts of parameters."""

import math

import pytest
import torch
from torch import nn

from ablate.core.errors import UserError
from ablate.model.languages.attention import Attention
from ablate.ssm import MMMambaMixer
from ablate.ssm.mmmamba import NEW, TAKEN


def make(**fields) -> MMMambaMixer:
    torch.manual_seed(0)
    mixer = MMMambaMixer(24, **{"heads": 4, "kv_heads": 2, "head_dim": 6} | fields).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return mixer


def heads_of(mixer, hidden):
    """What the mixer projects out."""
    kept = []
    handle = mixer.out_proj.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    mixer(hidden)
    handle.remove()
    return kept[0]


def test_without_decay_norm_gate_and_activation_it_is_causal_linear_attention():
    mixer = make(variant="paper", gate=False)
    with torch.no_grad():
        mixer.A_log.fill_(-1e4)  # a rate of 0: nothing decays
        mixer.conv1d.weight.zero_()
        mixer.conv1d.weight[..., -1] = 1
        mixer.conv1d.bias.zero_()
    hidden = torch.randn(2, 11, 24, dtype=torch.float64)
    q, k, v = (
        projection(hidden).unflatten(-1, (-1, 6)).transpose(1, 2)
        for projection in (mixer.q_proj, mixer.k_proj, mixer.v_proj)
    )
    k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
    expected = ((q @ k.mT).tril() @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(heads_of(mixer, hidden), expected, atol=1e-10, rtol=1e-10)


def test_as_released_it_is_its_definition():
    """Token by token, in float64."""
    mixer = make()
    hidden = torch.randn(1, 9, 24, dtype=torch.float64)
    vkq = torch.cat([mixer.v_proj(hidden), mixer.k_proj(hidden), mixer.q_proj(hidden)], dim=-1)
    before = torch.cat([torch.zeros_like(vkq[:, :1]), vkq[:, :-1]], dim=1)
    weight = mixer.conv1d.weight[:, 0]
    vkq = nn.functional.silu(before * weight[:, 0] + vkq * weight[:, 1] + mixer.conv1d.bias)
    dt = nn.functional.softplus(mixer.dt_proj(hidden) + mixer.dt_bias)
    gate = nn.functional.silu(mixer.gate_proj(hidden))
    expected = []
    for head in range(4):
        shared = head // 2
        v, k = vkq[..., 6 * shared : 6 * shared + 6], vkq[..., 12 + 6 * shared : 18 + 6 * shared]
        q = vkq[..., 24 + 6 * head : 30 + 6 * head]
        state, out = torch.zeros(6, 6, dtype=torch.float64), []
        for token in range(9):
            step = dt[0, token, head]
            state = state * torch.exp(-step * torch.exp(mixer.A_log[head])) + step * torch.outer(
                v[0, token], k[0, token]
            )
            y = state @ q[0, token]
            out.append(y / torch.sqrt(y.square().mean() + 1e-5) * mixer.norm.weight)
        expected.append(torch.stack(out))
    expected = torch.cat(expected, dim=-1) * gate[0]
    torch.testing.assert_close(heads_of(mixer, hidden)[0], expected, atol=1e-9, rtol=1e-9)


def test_the_counts_of_parameters_are_the_papers():
    """HoVLE's size: 14.74% of a linear model trains, 11.19% of a hybrid with 8 of 32 attention layers."""
    with torch.device("meta"):
        mixer = MMMambaMixer(2048, heads=16, kv_heads=8, head_dim=128)
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in mixer.named_children()}
    counts |= {name: parameter.numel() for name, parameter in mixer.named_parameters(recurse=False)}
    new, taken = (sum(counts[name] for name in names) for names in (NEW, TAKEN))
    assert set(counts) == {*NEW, *TAKEN, "out_proj"}
    assert (new, taken) == (4_239_520, 8_388_608)
    hovle = 2_606_327_808
    assert round(100 * 32 * (new + taken) / (hovle + 32 * new), 2) == 14.74
    assert round(100 * 24 * (new + taken) / (hovle + 24 * new), 2) == 11.19


def test_mimicry_passes_tokens_on_and_decays_slowly():
    torch.manual_seed(0)
    mixer = MMMambaMixer(64, heads=8)
    x = torch.randn(1, 5, 3 * 64)
    assert torch.equal(mixer.conv1d(nn.functional.pad(x.mT, (1, 0))).mT, x)
    assert not mixer.dt_proj.weight.any()
    decay = torch.exp(-math.e * nn.functional.softplus(mixer.dt_bias))
    assert 0.76 < float(decay.min()) < float(decay.max()) < 0.9974
    assert torch.equal(mixer.A_log, torch.ones(8))
    mixer.plain()
    assert mixer.dt_proj.weight.any()
    assert not mixer.dt_bias.any()
    assert 0 <= float(mixer.A_log.min()) <= float(mixer.A_log.max()) <= math.log(16)
    assert float(mixer.gate_proj.weight.abs().max()) < math.sqrt(6 / 128) * 2**-2.5 + 1e-6


@pytest.mark.parametrize("fields", [{}, {"kv_heads": 2, "head_dim": 10, "bias": True}])
def test_an_attention_layers_tensors_fit(fields):
    attention, mixer = Attention(32, heads=4, **fields), MMMambaMixer(32, heads=4, **fields)
    missing, unexpected = mixer.load_state_dict(attention.state_dict(), strict=False)
    assert not unexpected
    assert {name.partition(".")[0] for name in missing} == set(NEW)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"heads": 3, "kv_heads": 2}, "cannot be shared"),
        ({"heads": 5, "kv_heads": None, "head_dim": None}, "not a multiple of 5 heads"),
        ({"d_conv": 1}, "at least 2"),
        ({"backend": "none"}, "backend"),
    ],
)
def test_what_does_not_fit_is_named(fields, words):
    with pytest.raises(UserError, match=words):
        make(**fields)
