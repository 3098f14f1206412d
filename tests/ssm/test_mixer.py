"""The mixer: its three forms, padding, documents, precision, and transformers' mixer with the same weights."""

import copy

import pytest
import torch
from torch import Tensor

from ablate.ssm import Mamba2Mixer, MixerState

FIELDS = [
    {},
    {"ngroups": 2, "D_has_hdim": True, "bias": True, "conv_bias": False},
    {"norm_before_gate": True, "d_conv": 2, "dt_limit": (0.01, 0.05)},
    {"rmsnorm": False},
]


def make_mixer(seed: int = 0, dtype: torch.dtype = torch.float64, **fields) -> Mamba2Mixer:
    torch.manual_seed(seed)
    mixer = Mamba2Mixer(**{"d_model": 16, "d_state": 8, "headdim": 8, "chunk_size": 6} | fields)
    with torch.no_grad():
        mixer.D.uniform_(-1, 1)
        mixer.A_log.uniform_(-1, 2)
    return mixer.to(dtype)


def make_hidden(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def assert_same_state(ours: MixerState, expected: MixerState) -> None:
    torch.testing.assert_close(ours.conv, expected.conv)
    torch.testing.assert_close(ours.ssm, expected.ssm)


def test_parameters_are_named_as_in_the_released_checkpoints() -> None:
    """mamba2-130m, layer 0."""
    shapes = {name: tuple(p.shape) for name, p in Mamba2Mixer(768).state_dict().items()}
    assert shapes == {
        "in_proj.weight": (3352, 768),
        "conv1d.weight": (1792, 1, 4),
        "conv1d.bias": (1792,),
        "dt_bias": (24,),
        "A_log": (24,),
        "D": (24,),
        "norm.weight": (1536,),
        "out_proj.weight": (768, 1536),
    }


def test_initialisation() -> None:
    torch.manual_seed(0)
    mixer = Mamba2Mixer(64, headdim=1, dt_min=0.01, dt_max=0.2)
    steps = torch.nn.functional.softplus(mixer.dt_bias)
    assert 0.0099 < steps.min() < 0.012
    assert 0.17 < steps.max() < 0.2001
    assert 1 <= mixer.A_log.exp().min() < 1.5
    assert 15 < mixer.A_log.exp().max() <= 16
    slow = Mamba2Mixer(64, headdim=1, A_init_range=(0.01, 0.1)).A_log.exp()
    assert 0.01 <= slow.min() < 0.02
    assert 0.09 < slow.max() <= 0.1
    assert torch.equal(mixer.D, torch.ones(128))
    assert all(p._no_weight_decay for p in (mixer.A_log, mixer.dt_bias, mixer.D))


@pytest.mark.parametrize("fields", FIELDS)
def test_prefill_then_steps_are_one_pass(fields: dict) -> None:
    mixer, hidden = make_mixer(**fields), make_hidden(2, 19, 16)
    whole, final = mixer(hidden, return_state=True)
    out, state = mixer(hidden[:, :8], return_state=True)
    outs = [out]
    for t in range(8, 13):
        out, state = mixer.step(hidden[:, t], state)
        outs.append(out[:, None])
    out, state = mixer(hidden[:, 13:], state=state, return_state=True)
    torch.testing.assert_close(torch.cat([*outs, out], 1), whole)
    assert_same_state(state, final)


def test_the_first_step_starts_from_zeros() -> None:
    mixer, hidden = make_mixer(), make_hidden(2, 2, 16)
    out, state = mixer.step(hidden[:, 0], mixer.init_state(2))
    expected, expected_state = mixer(hidden[:, :1], return_state=True)
    torch.testing.assert_close(out, expected[:, 0])
    assert_same_state(state, expected_state)


@pytest.mark.parametrize("fields", FIELDS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("go_on", [False, True])
def test_padding_changes_nothing(fields: dict, side: str, go_on: bool) -> None:
    mixer, hidden = make_mixer(**fields), make_hidden(3, 9, 16)
    hidden.requires_grad_()
    before = mixer(make_hidden(3, 5, 16, seed=1), return_state=True)[1] if go_on else None
    lengths = [9, 2, 5]
    rows = [hidden[i : i + 1, :n] for i, n in enumerate(lengths)]
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    padded = torch.full((3, 9, 16), torch.nan, dtype=torch.float64)  # even this
    if side == "left":
        mask = mask.flip(1)
    padded = padded.masked_scatter(mask[..., None], torch.cat(rows, 1))
    out, state = mixer(padded, mask=mask, state=before, return_state=True)
    alone, states = [], []
    for i, row in enumerate(rows):
        own = None if before is None else MixerState(before.conv[i : i + 1], before.ssm[i : i + 1])
        out_row, state_row = mixer(row, state=own, return_state=True)
        alone.append(out_row[0])
        states.append(state_row)
    torch.testing.assert_close(out[mask], torch.cat(alone))
    assert_same_state(state, MixerState(*(torch.cat(parts) for parts in zip(*states, strict=True))))

    weights = make_hidden(sum(lengths), 16, seed=2)
    inputs = [hidden, *mixer.parameters()]
    ours = torch.autograd.grad((out[mask] * weights).sum() + state.ssm.sum(), inputs, retain_graph=True)
    expected = torch.autograd.grad((torch.cat(alone) * weights).sum() + sum(s.ssm.sum() for s in states), inputs)
    for ours_i, expected_i in zip(ours, expected, strict=True):
        torch.testing.assert_close(ours_i, expected_i)


def test_a_row_of_padding_alone_keeps_its_state() -> None:
    mixer = make_mixer()
    before = mixer(make_hidden(1, 5, 16), return_state=True)[1]
    _, state = mixer(make_hidden(1, 4, 16), mask=torch.zeros(1, 4, dtype=torch.bool), state=before, return_state=True)
    assert_same_state(state, before)


@pytest.mark.parametrize("padding", [0, 3])
def test_packed_documents_are_as_if_alone(padding: int) -> None:
    mixer, hidden = make_mixer(), make_hidden(2, 14, 16)
    lengths = [5, 1, 8]
    seq_idx = torch.repeat_interleave(torch.tensor([4, 9, 4]), torch.tensor(lengths)).expand(2, -1)
    padded, mask = hidden, None
    if padding:  # with an index of its own, which must not end the last document
        padded = torch.cat([make_hidden(2, padding, 16, seed=5), hidden, make_hidden(2, padding, 16, seed=6)], 1)
        seq_idx = torch.nn.functional.pad(seq_idx, (padding, padding), value=-1)
        mask = torch.nn.functional.pad(torch.ones(2, 14, dtype=torch.bool), (padding, padding))
    out, state = mixer(padded, seq_idx=seq_idx, mask=mask, return_state=True)
    alone = [mixer(document, return_state=True) for document in hidden.split(lengths, dim=1)]
    torch.testing.assert_close(out[:, padding : padding + 14], torch.cat([y for y, _ in alone], 1))
    assert_same_state(state, alone[-1][1])


def test_a_short_last_document_has_a_conv_state_of_its_own() -> None:
    mixer, hidden = make_mixer(), make_hidden(1, 9, 16)
    seq_idx = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 2, 1]])
    _, state = mixer(hidden, seq_idx=seq_idx, return_state=True)
    assert_same_state(state, mixer(hidden[:, 8:], return_state=True)[1])


def test_other_rows_change_nothing() -> None:
    mixer, hidden = make_mixer(dtype=torch.float32), make_hidden(3, 12, 16, dtype=torch.float32)
    out = mixer(hidden)
    hidden[1:] = hidden[1:].flip(0) * 3
    torch.testing.assert_close(mixer(hidden)[0], out[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", ["recurrent", "torch"])
def test_autocast_keeps_the_state_float32(backend: str) -> None:
    mixer, hidden = make_mixer(dtype=torch.float32, backend=backend), make_hidden(2, 12, 16, dtype=torch.float32)
    exact = mixer(hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, state = mixer(hidden, return_state=True)
        step, state = mixer.step(hidden[:, 0], state)
    assert out.dtype == step.dtype == torch.bfloat16
    assert state.ssm.dtype == torch.float32
    torch.testing.assert_close(out.float(), exact, rtol=0.1, atol=0.05)
    out.float().sum().backward()
    assert mixer.A_log.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(dtype: torch.dtype) -> None:
    mixer, hidden = make_mixer(dtype=torch.float32), make_hidden(2, 12, 16, dtype=torch.float32)
    exact = mixer(hidden)
    out, state = copy.deepcopy(mixer).to(dtype)(hidden.to(dtype), return_state=True)
    assert out.dtype == dtype
    assert state.ssm.dtype == torch.float32
    torch.testing.assert_close(out.float(), exact, rtol=0.1, atol=0.05)


def test_gradcheck() -> None:
    mixer = make_mixer(d_model=4, d_state=2, headdim=4, chunk_size=2)
    names = [name for name, _ in mixer.named_parameters()]

    def call(hidden: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(mixer, dict(zip(names, parameters, strict=True)), (hidden,))

    inputs = [make_hidden(1, 4, 4), *(p.detach() for p in mixer.parameters())]
    assert torch.autograd.gradcheck(call, [t.requires_grad_() for t in inputs])


@pytest.mark.parametrize("groups", [1, 2])
def test_transformers_mixer_with_the_same_weights(groups: int) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer as Reference

    config = transformers.Mamba2Config(
        hidden_size=32, num_heads=8, head_dim=8, state_size=16, n_groups=groups, chunk_size=8, num_hidden_layers=1
    )
    mixer = make_mixer(
        dtype=torch.float32, d_model=32, d_state=16, ngroups=groups, bias=config.use_bias, chunk_size=None
    )
    reference = Reference(config, layer_idx=0)
    reference.load_state_dict(mixer.state_dict())
    hidden = make_hidden(2, 37, 32, dtype=torch.float32)

    def run(module: torch.nn.Module) -> dict[str, Tensor]:
        leaf = hidden.clone().requires_grad_()
        out = module(leaf)
        (out * make_hidden(2, 37, 32, seed=1, dtype=torch.float32)).sum().backward()
        return {"out": out, "hidden": leaf.grad} | {name: p.grad for name, p in module.named_parameters()}

    expected = run(reference)
    for name, ours in run(mixer).items():
        assert (ours - expected[name]).abs().max() <= 1e-4 * expected[name].abs().max(), name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"headdim": 7}, "inner width 32 .* is not a multiple of headdim 7"),
        ({"ngroups": 3}, "4 heads .* cannot be shared among 3 groups"),
        ({"d_conv": 1}, "d_conv is 1"),
        ({"A_init_range": (0.0, 1.0)}, r"A_init_range is \(0.0, 1.0\), expected two rates in order"),
    ],
)
def test_widths_that_do_not_divide(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_mixer(**fields)


def test_a_mask_of_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask is torch.int64 .* expected torch.bool"):
        make_mixer()(make_hidden(2, 3, 16), mask=torch.ones(2, 3, dtype=torch.long))
