"""Encoders: layers, preprocessing, weights from files, and what frozen means. Random weights of small timm models."""

import json
import pickle
import types

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from ablate.core.errors import UserError
from ablate.model.encoders import EncoderConfig, Preprocessing, create_encoder

VIT = "test_vit"  # 160 px, patches of 16 px, 6 blocks of width 64, a class token
CNN = "test_efficientnet"  # 160 px


def encoder(*names, layer=None, size=None, **fields):
    return create_encoder(
        EncoderConfig(
            names=list(names),
            weights=fields.pop("weights", ["random"] * len(names)),
            layer=layer or [],
            image_size=size or [],
            precision=fields.pop("precision", "float32"),
            **fields,
        )
    )


def images(encoder, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = [tower.image_size for tower in encoder.towers]
    return [torch.randn(batch, 3, size, size, generator=generator) for size in sizes]


def blocks_by_hand(model, x, number):
    """A ViT's patches behind its first `number` blocks, from its own parts."""
    x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
    for block in model.blocks[:number]:
        x = block(x)
    return x[:, model.num_prefix_tokens :]


@pytest.mark.parametrize(("layer", "blocks"), [(-1, 6), (-2, 5), (0, 1)])
def test_a_vit_layer_is_the_output_of_that_block_without_class_token_or_norm(layer, blocks):
    torch.manual_seed(0)
    whole = timm.create_model(VIT).eval()
    torch.manual_seed(0)
    ours = encoder(VIT, layer=[layer])
    x = images(ours)
    with torch.no_grad():
        expected = blocks_by_hand(whole, x[0], blocks)
    features = ours(x)
    assert (ours.grid, ours.dim) == ((10, 10), 64)
    torch.testing.assert_close(features, expected.unflatten(1, (10, 10)))
    assert len(ours.towers[0].model.blocks) == blocks  # what lies behind is not kept


def test_cnn_stages_the_final_map_and_named_modules():
    torch.manual_seed(0)
    whole = timm.create_model(CNN).eval()
    for layer, module in ((-1, "blocks"), (-2, "blocks.3"), ("final", "bn2"), ("blocks.2", "blocks.2")):
        torch.manual_seed(0)
        ours = encoder(CNN, layer=[layer])
        seen = []
        handle = whole.get_submodule(module).register_forward_hook(
            lambda module, args, out, seen=seen: seen.append(out)
        )
        x = images(ours)
        with torch.no_grad():
            whole.forward_features(x[0])
        handle.remove()
        features = ours(x)
        torch.testing.assert_close(features, seen[0].permute(0, 2, 3, 1))
        assert features.shape == (2, *ours.grid, ours.dim)


def test_the_demos_encoder():
    name = "tf_efficientnet_lite0"
    with torch.device("meta"):
        last, final = encoder(name), encoder(name, layer=["final"])
    assert (last.grid, last.dim) == ((7, 7), 320)
    assert (final.grid, final.dim) == ((7, 7), 1280)


def test_named_modules_of_token_and_channels_last_models():
    ours = encoder(VIT, layer=["blocks.1"])
    other = encoder("test_convnext", layer=["stages.1"])
    assert ours(images(ours)).shape == (2, 10, 10, 64)
    assert other(images(other)).shape == (2, *other.grid, other.dim)


def test_the_papers_encoders():
    """DINOv2 with registers at 378 px and SigLIP at 384 px, the last block but one. Without data: they are large."""
    with torch.device("meta"):
        ours = encoder(
            "vit_large_patch14_reg4_dinov2.lvd142m",
            "vit_so400m_patch14_siglip_384.webli",
            layer=[-2, -2],
            size=[378, 384],
        )
    assert (ours.grid, ours.dim) == ((27, 27), 1024 + 1152)
    assert [tower.prefix_tokens for tower in ours.towers] == [5, 0]  # a class token and four registers
    assert [len(tower.model.blocks) for tower in ours.towers] == [23, 26]
    means = [tower.transform.settings["mean"] for tower in ours.towers]
    assert means == [(0.485, 0.456, 0.406), (0.5, 0.5, 0.5)]  # each is preprocessed as it was trained


def test_fused_features_are_the_towers_side_by_side_on_the_first_ones_grid():
    fused = encoder(VIT, CNN)
    x = images(fused)
    first, second = (tower(batch).detach() for tower, batch in zip(fused.towers, x, strict=True))
    assert fused.grid == (10, 10) != tuple(second.shape[1:3])
    features = fused(x)
    assert features.shape == (2, 10, 10, fused.dim)
    assert torch.equal(features[..., :64], first)
    resized = nn.functional.interpolate(second.permute(0, 3, 1, 2), size=(10, 10), mode="bilinear")
    torch.testing.assert_close(features[..., 64:], resized.permute(0, 2, 3, 1))
    other = encoder(CNN, VIT)
    assert other.grid == tuple(second.shape[1:3])
    assert other(images(other)).shape == (2, *other.grid, other.dim)


def test_frozen_means_eval_mode_and_no_gradient_whatever_happens_around():
    ours = encoder(CNN)
    holder = nn.ModuleList([ours]).train()
    assert holder.training
    assert not any(module.training for module in ours.modules())
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    features = ours(images(ours))
    assert not features.requires_grad
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())
    torch.testing.assert_close(ours(images(ours))[:1], ours([images(ours)[0][:1]]))


def test_an_encoder_that_is_not_frozen_trains():
    ours = encoder(CNN, frozen=False, precision="auto").train()
    assert ours.training
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    ours(images(ours)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())


@pytest.mark.parametrize("name", [VIT, CNN])
def test_half_precision_is_close_and_autocast_does_not_change_it(name):
    torch.manual_seed(0)
    exact = encoder(name)
    torch.manual_seed(0)
    half = encoder(name, precision="bfloat16")
    x = images(exact)
    features = half(x)
    assert features.dtype == torch.bfloat16
    expected = exact(x)
    assert (features.float() - expected).norm() < 0.05 * expected.norm()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(exact(x), expected)


def test_auto_precision_is_half_only_where_it_is_faster(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for capabilities, dtype in (({"avx512_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        assert next(encoder(VIT, precision="auto").parameters()).dtype == dtype


@pytest.mark.parametrize(("generation", "dtype"), [(7, torch.float16), (8, torch.bfloat16)])
def test_a_gpu_that_only_emulates_bfloat16_gets_float16(monkeypatch, generation, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(major=generation))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True)
    assert next(encoder(VIT, precision="auto").parameters()).dtype == dtype


# -------------------------------------------------------------------------------------------------- preprocessing


def test_preprocessing_can_be_given():
    """(x - 127) / 128 for x from 0 to 255, the whole picture squashed to a square."""
    fields = Preprocessing(
        mean=[127 / 255] * 3, std=[128 / 255] * 3, interpolation="bilinear", crop_pct=1.0, crop_mode="squash"
    )
    ours = encoder(CNN, size=[96], preprocessing=[fields])
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    (transform,) = ours.transforms
    expected = torch.from_numpy((pixels.astype(np.float32) - 127) / 128).permute(2, 0, 1)
    torch.testing.assert_close(transform(Image.fromarray(pixels)), expected, atol=1e-5, rtol=0)
    assert transform(Image.new("RGB", (300, 100))).shape == (3, 96, 96)


def test_preprocessing_is_timms_by_default_and_takes_any_picture():
    ours = encoder(VIT)
    (transform,) = ours.transforms
    reference = timm.data.create_transform(**timm.data.resolve_model_data_config(timm.create_model(VIT)))
    photo = Image.effect_noise((200, 170), 60)
    assert torch.equal(transform(photo), reference(photo.convert("RGB")))
    for mode in ("L", "P", "RGBA", "CMYK", "1", "LA"):
        assert transform(Image.new(mode, (50, 200))).shape == (3, 160, 160)
    assert torch.equal(pickle.loads(pickle.dumps(transform))(photo), transform(photo))


# -------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors"])
def test_weights_load_by_name(tmp_path, suffix):
    source = timm.create_model(VIT)
    path = tmp_path / f"weights{suffix}"
    tensors = source.state_dict()
    save_file(tensors, path) if suffix == ".safetensors" else torch.save({"state_dict": tensors}, path)
    ours = encoder(VIT, weights=[str(path)], layer=["final"])
    for name, tensor in ours.towers[0].model.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name


def test_weights_of_another_project_load_in_order(tmp_path):
    tensors = timm.create_model(CNN).state_dict()
    other = {f"their_name_{index}": tensor for index, tensor in enumerate(tensors.values())}
    torch.save(other, tmp_path / "theirs.pth")
    ours = encoder(CNN, weights=[str(tmp_path / "theirs.pth")], layer=["final"])
    for name, tensor in ours.towers[0].model.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name
    # .safetensors keeps no order, so that the same tensors prove nothing there
    save_file(other, tmp_path / "theirs.safetensors")
    with pytest.raises(UserError, match="do not fit"):
        encoder(CNN, weights=[str(tmp_path / "theirs.safetensors")])


def test_position_embeddings_follow_the_image_size(tmp_path):
    source = timm.create_model(VIT)
    torch.save(source.state_dict(), tmp_path / "vit.pth")
    ours = encoder(VIT, weights=[str(tmp_path / "vit.pth")], size=[96])
    assert ours.grid == (6, 6)
    block = ours.towers[0].model.blocks[0].attn.qkv.weight
    assert torch.equal(block, source.blocks[0].attn.qkv.weight)


def test_weights_that_do_not_fit_are_counted_and_listed(tmp_path):
    tensors = timm.create_model(CNN).state_dict()
    del tensors["conv_stem.weight"]
    tensors["more"] = torch.zeros(1)
    torch.save(tensors, tmp_path / "weights.pth")
    with pytest.raises(UserError) as caught:
        encoder(CNN, weights=[str(tmp_path / "weights.pth")])
    assert "1 tensors missing, 1 unexpected, 0 of another shape" in str(caught.value)
    assert "missing: conv_stem.weight" in str(caught.value)


class Unsafe:
    def __reduce__(self):
        return print, ("run by the pickle",)


@pytest.mark.parametrize("content", [{"a": Unsafe()}, {"a": 1}, [1, 2]])
def test_files_that_hold_more_than_tensors_are_refused(tmp_path, content, capsys):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"weights\.pth"):
        encoder(VIT, weights=[str(tmp_path / "weights.pth")])
    assert "run by the pickle" not in capsys.readouterr().out


def test_a_hub_out_of_reach_is_one_clear_error(monkeypatch, tmp_path):
    class Session:
        def head(self, *args, **kwargs):
            raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.utils, "get_session", Session)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: None)
    with pytest.raises(UserError, match=r'hub cannot be reached.*"random"'):
        encoder("resnet18", weights=["pretrained"])
    with pytest.raises(UserError, match="no pretrained weights"):
        encoder("vit_so150m_patch16_reg4_map_256", weights=[""])
    with pytest.raises(UserError, match="No weights file"):
        encoder("resnet18", weights=[str(tmp_path / "nowhere.pth")])


def test_pretrained_weights_come_from_the_hub(monkeypatch, tmp_path):
    """timm's own loading, with the download replaced by a file."""
    source = timm.create_model(CNN)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    asked = []

    def download(repo_id, filename, **kwargs):
        asked.append(repo_id)
        return str(tmp_path / "model.safetensors")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: str(tmp_path / "model.safetensors"))
    ours = encoder(CNN, weights=["pretrained"])
    assert asked
    assert all(repository.startswith("timm/test_efficientnet") for repository in asked)
    assert torch.equal(ours.towers[0].model.conv_stem.weight, source.conv_stem.weight)


# ------------------------------------------------------------------------------------------------------ cache key


def test_the_cache_key_names_all_that_decides_the_features():
    def key(seed=0, **fields):
        torch.manual_seed(seed)
        return json.dumps(encoder(fields.pop("name", VIT), **fields).key_fields(), sort_keys=True)

    keys = [
        key(),
        key(seed=1),
        key(name=CNN),
        key(layer=[-2]),
        key(size=[96]),
        key(preprocessing=[Preprocessing(mean=[0.1, 0.2, 0.3])]),
        key(precision="bfloat16"),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]


# -------------------------------------------------------------------------------------------------- user's errors


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (EncoderConfig(names=[]), "names is empty"),
        (EncoderConfig(names=["resnet1"]), "Did you mean resnet"),
        (EncoderConfig(names=["resnet18.nonsense"]), "nonsense"),
        (EncoderConfig(names=[VIT], weights=["random"], layer=[6]), "no layer 6"),
        (EncoderConfig(names=[VIT], weights=["random"], layer=["block.1"]), "Did you mean blocks.1"),
        (EncoderConfig(names=[VIT], weights=["random"], layer=["head_drop"]), "choose another layer"),
        (EncoderConfig(names=[VIT], weights=["random"], image_size=[100]), "100 px"),
        (EncoderConfig(names=[VIT], weights=["random"], precision="fp8"), "bfloat16"),
        (EncoderConfig(names=[VIT, CNN], weights=["random"]), "1 entries for 2 encoders"),
        (EncoderConfig(names=[VIT], weights=["random"], preprocessing=[Preprocessing(mean=[0.5])]), "three numbers"),
    ],
)
def test_mistakes_are_told(config, said):
    with pytest.raises(UserError, match=said):
        create_encoder(config)


def test_images_for_another_number_of_towers_are_refused():
    ours = encoder(VIT)
    with pytest.raises(UserError, match="1 towers but got images for 2"):
        ours([*images(ours), *images(ours)])
