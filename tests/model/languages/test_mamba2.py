"""The language model against its definition, transformers' implementation, and the released checkpoints' layout."""

import json
import os
import pickle

import pytest
import torch
from torch import Tensor

from ablate.errors import UserError
from ablate.model.generation import generate
from ablate.model.languages.mamba2 import MambaConfig, MambaLMHeadModel, SSMConfig, load_pretrained


def tokens(*shape: int, seed: int = 0, high: int = 50) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def transformers_mamba2():
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.set_verbosity_error()

    def build(ours: MambaLMHeadModel):
        config, ssm = ours.config, ours.config.ssm_cfg
        theirs = transformers.Mamba2ForCausalLM(
            transformers.Mamba2Config(
                hidden_size=config.d_model,
                num_hidden_layers=config.n_layer,
                vocab_size=config.padded_vocab_size,
                state_size=ssm.d_state,
                head_dim=ssm.headdim,
                num_heads=ssm.expand * config.d_model // ssm.headdim,
                n_groups=ssm.ngroups,
                conv_kernel=ssm.d_conv,
                expand=ssm.expand,
                chunk_size=16,
                tie_word_embeddings=config.tie_embeddings,
                pad_token_id=0,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
        renamed = {
            name.replace("backbone.embedding.", "backbone.embeddings."): tensor
            for name, tensor in ours.state_dict().items()
        }
        theirs.load_state_dict(renamed)
        return theirs.eval()

    return build


@pytest.mark.parametrize(("ngroups", "tied"), [(1, True), (2, False)])
def test_logits_and_greedy_tokens_are_those_of_transformers(ngroups, tied, talkative, transformers_mamba2):
    torch.manual_seed(0)
    config = MambaConfig(
        d_model=64,
        n_layer=3,
        vocab_size=96,
        ssm_cfg=SSMConfig(d_state=16, headdim=32, ngroups=ngroups, chunk_size=8),
        tie_embeddings=tied,
    )
    ours = MambaLMHeadModel(config).eval()
    talkative(ours)
    theirs = transformers_mamba2(ours)
    ids = tokens(2, 37, high=96)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=0)
        text = generate(ours, ours.backbone.embedding(ids), max_new_tokens=24, eos_id=-1)
    expected = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)[:, 37:]
    assert text == expected.tolist()
    assert len({token for row in text for token in row}) > 5  # not one token for ever


def test_parameter_names_and_shapes_are_those_of_the_release(language):
    """mamba2-130m's names, and shapes as mamba-ssm computes them from the sizes."""
    shapes = {name: tuple(tensor.shape) for name, tensor in language.state_dict().items()}
    conv = 64 + 2 * 16
    layer = {
        "norm.weight": (32,),
        "mixer.dt_bias": (4,),
        "mixer.A_log": (4,),
        "mixer.D": (4,),
        "mixer.in_proj.weight": (64 + conv + 4, 32),
        "mixer.conv1d.weight": (conv, 1, 4),
        "mixer.conv1d.bias": (conv,),
        "mixer.norm.weight": (64,),
        "mixer.out_proj.weight": (32, 64),
    }
    expected = {"backbone.embedding.weight": (64, 32), "backbone.norm_f.weight": (32,), "lm_head.weight": (64, 32)}
    for index in range(2):
        expected |= {f"backbone.layers.{index}.{name}": shape for name, shape in layer.items()}
    assert shapes == expected
    assert language.lm_head.weight is language.backbone.embedding.weight


def test_initialisation_is_mamba_ssms():
    torch.manual_seed(0)
    config = MambaConfig(d_model=128, n_layer=4, vocab_size=1000, ssm_cfg=SSMConfig(bias=True))
    model = MambaLMHeadModel(config)
    assert model.backbone.embedding.weight.std().item() == pytest.approx(0.02, rel=0.02)
    for layer in model.backbone.layers:
        # kaiming uniform with a = sqrt(5) is uniform in +-1/sqrt(fan in); the fourth layer's share of the variance
        bound = 1 / (256**0.5 * 2)
        assert layer.mixer.out_proj.weight.abs().max().item() == pytest.approx(bound, rel=0.02)
        assert not layer.mixer.in_proj.bias.any()
        assert not layer.mixer.out_proj.bias.any()


def test_step_is_the_full_pass_token_by_token(language):
    ids = tokens(3, 21)
    with torch.no_grad():
        embeddings = language.backbone.embedding(ids)
        full = language.backbone(embeddings)
        state, steps = language.backbone.init_state(3), []
        for position in range(21):
            hidden, state = language.backbone.step(embeddings[:, position], state)
            steps.append(hidden)
    torch.testing.assert_close(torch.stack(steps, dim=1), full, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_step_in_place_gives_the_same_and_a_step_that_is_not_leaves_the_old_state(language):
    embeddings = language.backbone.embedding(tokens(3, 10))
    _, state = language.backbone(embeddings[:, :9], return_state=True)
    before = [tensor.clone() for layer in state for tensor in layer]
    hidden, after = language.backbone.step(embeddings[:, 9], state)
    assert all(torch.equal(a, b) for a, b in zip(before, (t for layer in state for t in layer), strict=True))
    again, after_again = language.backbone.step(embeddings[:, 9], state, inplace=True)
    assert torch.equal(again, hidden)
    torch.testing.assert_close(after_again, after, atol=0, rtol=0)


@pytest.mark.parametrize("split", [1, 8, 13])
def test_a_sequence_can_be_read_in_two_parts(language, split):
    embeddings = language.backbone.embedding(tokens(2, 21)).detach()
    with torch.no_grad():
        full, full_state = language.backbone(embeddings, return_state=True)
        first, state = language.backbone(embeddings[:, :split], return_state=True)
        second, state = language.backbone(embeddings[:, split:], state=state, return_state=True)
    torch.testing.assert_close(torch.cat([first, second], dim=1), full, atol=1e-5, rtol=0)
    torch.testing.assert_close(state, full_state, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(language, side):
    ids = tokens(1, 11)
    padding = tokens(1, 6, seed=1)
    padded = torch.cat([padding, ids] if side == "left" else [ids, padding], dim=1)
    real = slice(6, 17) if side == "left" else slice(0, 11)
    mask = torch.zeros(1, 17, dtype=torch.bool)
    mask[:, real] = True
    with torch.no_grad():
        alone, state = language.backbone(language.backbone.embedding(ids), return_state=True)
        hidden, padded_state = language.backbone(language.backbone.embedding(padded), mask=mask, return_state=True)
    torch.testing.assert_close(hidden[:, real], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(padded_state, state, atol=1e-5, rtol=0)


def test_packed_documents_do_not_see_each_other(language):
    first, second = tokens(1, 9), tokens(1, 12, seed=1)
    seq_idx = torch.tensor([[0] * 9 + [1] * 12])
    with torch.no_grad():
        packed = language(torch.cat([first, second], dim=1), seq_idx=seq_idx)
        apart = torch.cat([language(first), language(second)], dim=1)
    torch.testing.assert_close(packed, apart, atol=1e-5, rtol=0)


def test_residual_stays_in_float32_under_bfloat16_weights(config):
    torch.manual_seed(0)
    model = MambaLMHeadModel(config).bfloat16()
    seen = []
    model.backbone.norm_f.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    assert model(tokens(1, 5)).dtype == torch.bfloat16
    model.backbone.residual_in_fp32 = False
    assert model(tokens(1, 5)).dtype == torch.bfloat16
    assert seen == [torch.float32, torch.bfloat16]


def test_gradient_checkpointing_changes_no_gradient(language):
    ids = tokens(2, 10)
    language(ids).square().mean().backward()
    plain = {name: parameter.grad.clone() for name, parameter in language.named_parameters()}
    language.zero_grad()
    language.backbone.gradient_checkpointing = True
    language(ids).square().mean().backward()
    for name, parameter in language.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name])


# ---------------------------------------------------------------------------------------------------- checkpoints


def released(language: MambaLMHeadModel, folder, *, suffix: str) -> None:
    """A checkpoint as `state-spaces` publishes them: float16, the tied head written out, sizes in config.json."""
    language.save_pretrained(folder)
    if suffix == ".bin":
        (folder / "model.safetensors").unlink()
        half = {name: tensor.half() for name, tensor in language.state_dict().items()}
        torch.save(half, folder / "pytorch_model.bin")
    config = {
        "d_model": 32,
        "d_intermediate": 0,
        "n_layer": 2,
        "vocab_size": 50,
        "ssm_cfg": {"layer": "Mamba2", "d_state": 16, "headdim": 16},
        "attn_layer_idx": [],
        "attn_cfg": {},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 16,
        "tie_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_released_checkpoints_load(language, tmp_path, suffix):
    language.half().float()  # to what float16 files can hold
    released(language, tmp_path, suffix=suffix)
    loaded = load_pretrained(tmp_path).eval()
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert loaded.lm_head.weight is loaded.backbone.embedding.weight
    assert loaded.backbone.layers[0].mixer.A_log._no_weight_decay
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens(1, 9)), language(tokens(1, 9)))


def test_saved_checkpoints_come_back_whole(tmp_path):
    torch.manual_seed(0)
    config = MambaConfig(
        d_model=32, n_layer=1, vocab_size=50, tie_embeddings=False, ssm_cfg=SSMConfig(d_state=8, headdim=8, ngroups=2)
    )
    model = MambaLMHeadModel(config)
    model.save_pretrained(tmp_path / "new")
    loaded = load_pretrained(tmp_path / "new" / "model.safetensors")
    assert loaded.config == config
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_every_tensor_that_does_not_fit_is_listed(language, tmp_path):
    released(language, tmp_path, suffix=".bin")
    tensors = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    del tensors["backbone.norm_f.weight"]
    del tensors["backbone.layers.1.mixer.D"]
    tensors["backbone.layers.7.mixer.D"] = torch.zeros(4)
    tensors["backbone.layers.0.norm.weight"] = torch.zeros(31)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError) as caught:
        load_pretrained(tmp_path)
    message = str(caught.value)
    assert "2 tensors missing, 1 unexpected, 1 of another shape" in message
    assert "missing: backbone.norm_f.weight (32,)" in message
    assert "missing: backbone.layers.1.mixer.D (4,)" in message
    assert "unexpected: backbone.layers.7.mixer.D (4,)" in message
    assert "backbone.layers.0.norm.weight is (31,), expected (32,)" in message


class Malicious:
    def __init__(self, victim: str) -> None:
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (self.victim,)


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_a_pickle_that_would_run_code_is_refused(language, tmp_path, protocol):
    released(language, tmp_path, suffix=".bin")
    victim = tmp_path / "made-by-the-pickle"
    content = {"backbone.embedding.weight": Malicious(str(victim))}
    with open(tmp_path / "pytorch_model.bin", "wb") as file:
        torch.save(content, file) if protocol == "torch" else pickle.dump(content, file, protocol=2)
    with pytest.raises(UserError, match="not loaded"):
        load_pretrained(tmp_path)
    assert not victim.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_truncated_file_is_told(language, tmp_path, name):
    released(language, tmp_path, suffix=".bin" if name.endswith(".bin") else ".safetensors")
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=name):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ssm_cfg": {}}, 'ssm_cfg.layer is "Mamba1"'),
        ({"attn_layer_idx": [3]}, "attn_layer_idx"),
        ({"d_intermediate": 64}, "d_intermediate"),
        ({"rms_norm": False}, "rms_norm"),
        ({"ssm_cfg": {"layer": "Mamba2", "d_stat": 16}}, "Did you mean d_state"),
        ({"n_layer": "two"}, "no whole number 'n_layer'"),
    ],
)
def test_a_config_of_another_model_is_refused(language, tmp_path, change, said):
    released(language, tmp_path, suffix=".bin")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=said):
        load_pretrained(tmp_path)


def test_missing_files_are_told(tmp_path):
    with pytest.raises(UserError, match="No language model at"):
        load_pretrained(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"No model\.safetensors or pytorch_model\.bin in"):
        load_pretrained(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"No config\.json"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("change", [{"n_layer": 0}, {"vocab_size": -1}, {"ssm_cfg": SSMConfig(headdim=48)}])
def test_sizes_that_do_not_fit_are_the_users_error(change):
    with pytest.raises(UserError, match="language"):
        MambaLMHeadModel(MambaConfig(**{"d_model": 32, "n_layer": 1, "vocab_size": 50} | change))
