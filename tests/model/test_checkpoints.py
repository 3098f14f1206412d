"""Weights files: what is taken, and what each other kind of file is called."""

import gzip
import io
import json
import pickle
import tarfile
import types
import zipfile

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from ablate.core.errors import UserError
from ablate.model.build import LanguageConfig, create_language
from ablate.model.encoders import EncoderConfig, create_encoder
from ablate.model.languages.mamba2 import MambaConfig, MambaLMHeadModel, SSMConfig, load_pretrained
from ablate.model.weights import find_weights, read_tensors

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.float16), "c": torch.zeros(())}


def assert_read(path):
    found = read_tensors(path)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def torch_file(content, **options) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


# ------------------------------------------------------------------------------------------------------------ taken


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin", "w.pth", "w.pt", "w.ckpt", "w", "epoch=1-step=2.ckpt"])
@pytest.mark.parametrize(
    "content",
    [
        save(TENSORS),
        torch_file(TENSORS),
        torch_file(TENSORS, _use_new_zipfile_serialization=False),
        torch_file({"state_dict": TENSORS, "epoch": 3, "pytorch-lightning_version": "2.5.0", "optimizer_states": []}),
        torch_file({"model": TENSORS, "iteration": 7}),
        torch_file({"model_state_dict": TENSORS}),
    ],
    ids=["safetensors", "torch", "old torch", "lightning", "model", "model_state_dict"],
)
def test_the_content_decides_not_the_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert_read(tmp_path / name)


def sharded(folder, kind):
    suffix = {"safetensors": "safetensors", "bin": "bin"}[kind]
    stem = "model" if kind == "safetensors" else "pytorch_model"
    places = {}
    for number, (name, tensor) in enumerate(TENSORS.items(), 1):
        part = f"{stem}-{number:05}-of-00003.{suffix}"
        places[name] = part
        content = {name: tensor}
        save_file(content, folder / part) if kind == "safetensors" else torch.save(content, folder / part)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}, indent=2))
    return index


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_checkpoints_in_parts_are_read_by_their_index_or_folder(tmp_path, kind):
    index = sharded(tmp_path, kind)
    assert_read(index)
    assert_read(tmp_path)
    assert find_weights(tmp_path) == index
    part = next(tmp_path.glob("*-00002-of-*"))
    with pytest.raises(UserError, match=rf"one part of a checkpoint.*{index.name}"):
        read_tensors(part)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_parts_that_are_missing_or_wrong_are_named(tmp_path, kind):
    index = sharded(tmp_path, kind)
    first, second, third = sorted(tmp_path.glob("*-of-*"))
    content = second.read_bytes()
    second.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    with pytest.raises(UserError, match=rf"{second.name} is a git-lfs pointer"):
        read_tensors(index)
    second.write_bytes(first.read_bytes())
    with pytest.raises(UserError, match=rf"places b in {second.name}"):
        read_tensors(index)
    second.write_bytes(index.read_bytes())
    with pytest.raises(UserError, match=rf"{second.name} is a text file"):
        read_tensors(index)
    second.unlink()
    third.unlink()
    with pytest.raises(UserError, match=rf"2 of the 3 parts .* {second.name}, {third.name}"):
        read_tensors(tmp_path)
    second.write_bytes(content)
    index.unlink()
    with pytest.raises(UserError, match=rf"2 parts of a checkpoint without their index: download {index.name}"):
        read_tensors(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.bin"}}))
    with pytest.raises(UserError, match="outside its folder"):
        read_tensors(index)


# ------------------------------------------------------------------------------------------------------ called by name


def zipped(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return stream.getvalue()


def tarred() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"), io.BytesIO())
    return stream.getvalue()


def numpy_archive() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=np.zeros(2))
    return stream.getvalue()


def torchscript() -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), stream)
    return stream.getvalue()


OTHERS = {
    "empty": (b"", "an empty file"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
    "html": (b"<!DOCTYPE html>\n<html><head><title>Sign in</title>", "a web page"),
    "html with mark": (b"\xef\xbb\xbf\n  <html>", "a web page"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML, perhaps"),
    "answer": (b"Entry not found", 'it begins "Entry not found"'),
    "json": (b'{"model_type": "llama"}', "weight_map"),
    "json with mark": (b"\xef\xbb\xbf{}", "weight_map"),
    "quantised": (torch_file({"layer.weight": torch.ones(2, 2, dtype=torch.int8)}), r"layer\.weight is int8"),
    "complex": (save({"layer.bias": torch.ones(2, dtype=torch.complex64)}), r"layer\.bias is complex64"),
    "damaged json": (b'{"weight_map": {"a": "b', "damaged"),
    "json list": (b"[1, 2]", "a text file"),
    "gguf": (b"GGUF\x03\x00\x00\x00" + bytes(50), "llama.cpp"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
    "gzip": (gzip.compress(torch_file(TENSORS)), "gzip archive"),
    "tar": (tarred(), "tar archive"),
    "zip": (zipped(**{"readme.txt": b"hello"}), r"zip archive .*readme\.txt"),
    "npz": (numpy_archive(), "NumPy archive"),
    "npy": (b"\x93NUMPY\x01\x00" + bytes(50), "NumPy array"),
    "torchscript": (torchscript(), "TorchScript"),
    "whole module": (torch_file(torch.nn.Linear(2, 2)), r"names torch\.nn\.modules\.linear\.Linear"),
    "hyperparameters": (
        torch_file({"state_dict": TENSORS, "hyper_parameters": types.SimpleNamespace(a=1)}),
        r"names types\.SimpleNamespace",
    ),
    "a list": (torch_file([1, 2]), "not a mapping"),
    "no tensors": (torch_file({"epoch": 1, "optimizer": {}}), "one with epoch, optimizer"),
    "truncated safetensors": (save(TENSORS)[:-5], "not a readable weights file"),
    "truncated torch": (torch_file(TENSORS)[:-200], "not a readable weights file"),
    "old pickle": (pickle.dumps({"a": 1}, protocol=0), "text file|not a mapping|more than tensors"),
    "noise": (bytes(range(255, 0, -1)), "more than tensors|not a readable"),
    "zeros": (bytes(5000), "begins with zeros"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pth"])
@pytest.mark.parametrize("kind", OTHERS)
def test_other_files_are_called_what_they_are(tmp_path, kind, suffix):
    content, said = OTHERS[kind]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)
    assert "weights_only" not in str(caught.value)
    if kind not in ("whole module", "hyperparameters", "old pickle", "noise"):
        assert "can run code" not in str(caught.value).replace("\n", " ")
    # The same for an encoder's weights, before the encoder is asked whether they fit.
    with pytest.raises(UserError, match=said):
        create_encoder(EncoderConfig(names=["test_vit"], weights=[str(path)], precision="float32"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("flax_model.msgpack", "Flax"),
        ("model.onnx", "ONNX"),
        ("saved_model.pb", "TensorFlow"),
        ("tf_model.h5", "Keras"),
    ],
)
def test_other_frameworks_files_are_known_by_their_suffix(tmp_path, name, said):
    (tmp_path / name).write_bytes(b"\x81\xa6params\x80")
    with pytest.raises(UserError, match=said):
        read_tensors(tmp_path / name)
    with pytest.raises(UserError, match=rf"No model\.safetensors or pytorch_model\.bin in .*{said}"):
        read_tensors(tmp_path)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_file_is_a_traceback(tmp_path_factory, data):
    """Any bytes, and any damage to a sound file, are a UserError or the tensors."""
    sound = data.draw(st.sampled_from([save(TENSORS), torch_file(TENSORS), torch_file(TENSORS)[:900], b"", b"{}"]))
    content = bytearray(sound if data.draw(st.booleans()) else data.draw(st.binary(max_size=300)))
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("any") / data.draw(st.sampled_from(["w.safetensors", "w.bin"]))
    path.write_bytes(bytes(content))
    try:
        found = read_tensors(path)
    except UserError:
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())


def test_folders(tmp_path):
    def folder(name, *files):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_bytes(torch_file(TENSORS))
        return tmp_path / name

    assert_read(folder("both", "model.safetensors", "pytorch_model.bin"))
    assert find_weights(tmp_path / "both").name == "model.safetensors"
    assert_read(folder("one", "checkpoint.pth", "optimizer.pt", "training_args.bin", "rng_state_0.pth"))
    for name, files, said in (
        ("none", (), r"No model\.safetensors or pytorch_model\.bin in"),
        ("several", ("last.ckpt", "epoch=3.ckpt"), r"several weights files \(epoch=3\.ckpt, last\.ckpt\)"),
        ("adapter", ("adapter_model.safetensors",), "merge it"),
        ("hub", ("snapshots/0123abc/model.safetensors",), "give the snapshot in it.*0123abc"),
    ):
        with pytest.raises(UserError, match=said):
            read_tensors(folder(name, *files))
    with pytest.raises(UserError, match="No weights file at"):
        read_tensors(tmp_path / "nowhere.bin")


# ------------------------------------------------------------------------------------------------- encoders and timm


def test_an_encoders_weights_in_a_folder_or_in_parts(tmp_path):
    source = timm.create_model("test_vit")
    tensors = source.state_dict()
    half = list(tensors)[: len(tensors) // 2]
    parts = {"a.safetensors": half, "b.safetensors": [name for name in tensors if name not in half]}
    for part, names in parts.items():
        save_file({name: tensors[name] for name in names}, tmp_path / part)
    index = {"weight_map": {name: part for part, names in parts.items() for name in names}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for size in ([], [96]):  # at another size timm resizes the position embeddings
        config = EncoderConfig(names=["test_vit"], weights=[str(tmp_path)], image_size=size, precision="float32")
        model = create_encoder(config).towers[0].model
        assert torch.equal(model.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)
        assert "state_dict" not in model.pretrained_cfg


def test_names_of_data_parallel_training_are_known(tmp_path):
    tensors = timm.create_model("test_vit").state_dict()
    shuffled = {f"module.{name}": tensors[name] for name in sorted(tensors)}
    torch.save({"state_dict": shuffled}, tmp_path / "weights.pth")
    config = EncoderConfig(names=["test_vit"], weights=[str(tmp_path / "weights.pth")], precision="float32")
    model = create_encoder(config).towers[0].model
    assert torch.equal(model.blocks[0].attn.qkv.weight, tensors["blocks.0.attn.qkv.weight"])


def test_every_deprecated_name_of_timm_is_the_name_it_maps_to(monkeypatch):
    """By its settings: what timm is asked for, and what is known of it. None of the models is built."""
    from ablate.model.encoders import timm as family

    asked = []

    class Stop(Exception):
        pass

    def record(name, weights, image_size):
        asked.append(name)
        raise Stop

    monkeypatch.setattr(family, "_create_model", record)
    names = timm.models.get_deprecated_models()
    assert names["vit_base_patch16_224_dino"] == "vit_base_patch16_224.dino"
    for name in names:
        with pytest.raises(Stop):
            create_encoder(EncoderConfig(names=[name]))
    assert asked == list(names.values())
    assert all(map(timm.is_model, asked))


@pytest.mark.parametrize("name", ["vit_base_patch16_224_dino", "convnext_tiny_in22ft1k", "resnet18"])
def test_a_deprecated_name_takes_an_image_size_and_has_pretrained_weights(name, monkeypatch):
    current = timm.models.get_deprecated_models().get(name, name)
    with torch.device("meta"):
        encoders = [
            create_encoder(EncoderConfig(names=[n], weights=["random"], image_size=[384], precision="float32"))
            for n in (name, current)
        ]
    old, new = encoders
    assert (old.grid, old.dim, old.towers[0].name) == (new.grid, new.dim, current)
    assert old.towers[0].transform.settings == new.towers[0].transform.settings
    monkeypatch.setattr("ablate.model.encoders.timm._is_cached", lambda repository: False)
    monkeypatch.setattr("ablate.model.encoders.timm._hub_answers", lambda: False)
    with pytest.raises(UserError, match=f"The weights of encoder {current} are not in the local cache"):
        create_encoder(EncoderConfig(names=[name]))


# ---------------------------------------------------------------------------------------------- folders of transformers


@pytest.fixture
def transformers():
    package = pytest.importorskip("transformers")
    package.utils.logging.set_verbosity_error()
    package.utils.logging.disable_progress_bar()
    return package


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 49, "state_size": 8, "head_dim": 16, "num_heads": 4}


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"n_groups": 1, "tie_word_embeddings": True}, {}),
        ({"n_groups": 2, "use_bias": True, "conv_kernel": 3}, {"max_shard_size": "10KB"}),
        ({"n_groups": 1, "use_conv_bias": False, "expand": 4, "num_heads": 8}, {}),
    ],
)
def test_a_mamba2_folder_of_transformers_gives_the_same_logits(transformers, tmp_path, fields, options):
    torch.manual_seed(0)
    theirs = transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**SMALL | fields)).eval()
    for parameter in theirs.parameters():  # zero biases would hide a mix-up
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path, **options)
    assert bool(options) == (tmp_path / "model.safetensors.index.json").exists()
    ours = load_pretrained(tmp_path).eval()
    ids = torch.randint(0, 49, (2, 37), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(ours(ids), expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.1
    assert ours.config.tie_embeddings == fields.get("tie_word_embeddings", False)


@pytest.mark.parametrize("infinity", [float("inf"), {"__float__": "Infinity"}])
def test_both_spellings_of_no_limit(infinity):
    from pathlib import Path

    from ablate.model.transformers_config import released_names

    data = {"model_type": "mamba2", "num_heads": 4, **SMALL, "time_step_limit": [0.0, infinity]}
    assert released_names(data, Path("config.json"))["ssm_cfg"]["headdim"] == 16


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
        ({"time_step_limit": [0.0, 0.1]}, "time_step_limit"),
        ({"num_heads": 5}, "num_heads"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"model_type": "mamba", "architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, r"LlamaForCausalLM \(model_type \"llama\"\)"),
        ({"model_type": "qwen2"}, "qwen2"),
        ({"architectures": ["Mamba2Model"]}, "Mamba2Model"),
    ],
)
def test_other_folders_of_transformers_are_called_what_they_are(tmp_path, fields, said):
    config = {"model_type": "mamba2", "architectures": ["Mamba2ForCausalLM"], **SMALL} | fields
    if "model_type" in fields and "architectures" not in fields:
        del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(TENSORS, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=said) as caught:
        load_pretrained(tmp_path)
    assert "state-spaces/mamba2-*" in str(caught.value)
    assert "Mamba1" not in str(caught.value)


@pytest.mark.parametrize("name", ["mamba1", "mamba2"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (OTHERS["git-lfs"][0], "git lfs pull"),
        (OTHERS["html"][0], "a web page"),
        (b"{}", "no whole number 'd_model': expected the config.json of state-spaces/mamba"),
        (b"[]", "no mapping"),
        (b'{"model_type": "llama"}', "language.name=transformers"),
    ],
)
def test_a_config_that_is_none_is_called_what_it_is(tmp_path, name, content, said):
    (tmp_path / "config.json").write_bytes(content)
    save_file(TENSORS, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=said) as caught:
        create_language(LanguageConfig(name=name, pretrained=str(tmp_path)))
    assert ("mamba2" in str(caught.value)) <= (name == "mamba2")


def test_a_release_in_parts(tmp_path):
    torch.manual_seed(0)
    model = MambaLMHeadModel(MambaConfig(d_model=32, n_layer=1, vocab_size=50, ssm_cfg=SSMConfig(d_state=8, headdim=8)))
    model.save_pretrained(tmp_path)
    tensors = read_tensors(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    places = {name: f"pytorch_model-0000{1 + number % 2}-of-00002.bin" for number, name in enumerate(tensors)}
    for part in set(places.values()):
        torch.save({name: tensors[name] for name in tensors if places[name] == part}, tmp_path / part)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    loaded = load_pretrained(tmp_path)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="no mapping"):
        load_pretrained(tmp_path)
