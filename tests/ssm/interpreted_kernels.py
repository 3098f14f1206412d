"""Compares ablate.ssm with mamba-ssm's real Triton kernels on the CPU; run by test_kernels.py in a process of its own.

Needs TRITON_INTERPRET=1 in the environment before Triton is imported. Prints one JSON object: for every case, the
largest relative difference of every output and gradient.
"""

import contextlib
import inspect
import json
import sys
import types
from pathlib import Path

import torch
import triton.runtime.autotuner
from torch import Tensor


def stand_in_for_cuda() -> None:
    """The kernels' launchers ask CUDA for its device; the interpreter needs none."""
    torch.cuda.device = lambda *_: contextlib.nullcontext()
    torch.cuda.get_device_properties = lambda *_: types.SimpleNamespace(multi_processor_count=1)
    original = triton.runtime.autotuner.Autotuner.__init__

    def one_config(self, fn, arg_names, configs, *args, **kwargs):
        original(self, fn, arg_names, configs[:1], *args, **kwargs)  # nothing to choose: nothing to time

    triton.runtime.autotuner.Autotuner.__init__ = one_config


def differences(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    assert ours.keys() == theirs.keys()
    return {
        name: float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max().clamp(min=1e-6)) for name in ours
    }


def scan_case(*, length: int, groups: int, D_has_hdim: bool, state: bool, documents: bool) -> dict[str, float]:
    from ablate.ssm import ssd

    batch, heads, headdim, n = 2, 2, 16, 16
    random = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    inputs = {
        "x": normal(batch, length, heads, headdim),
        "dt": normal(batch, length, heads).exp() * 0.3,
        "A": -normal(heads).exp(),
        "B": normal(batch, length, groups, n),
        "C": normal(batch, length, groups, n),
        "D": normal(heads, headdim) if D_has_hdim else normal(heads),
    }
    if state:
        inputs["initial_state"] = normal(batch, heads, headdim, n)
    seq_idx = None
    if documents:
        seq_idx = (torch.arange(length) >= torch.tensor([[length // 3], [length // 2]])).int() + 5
        seq_idx[1, -3:] = 0
    weights = normal(batch, length, heads, headdim), normal(batch, heads, headdim, n)

    def run(backend: str) -> dict[str, Tensor]:
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
        y, final = ssd(**leaves, seq_idx=seq_idx, chunk_size=16, return_final_state=True, backend=backend)
        ((y * weights[0]).sum() + (final * weights[1]).sum()).backward()
        return {"y": y.detach(), "final": final.detach()} | {f"d{name}": leaf.grad for name, leaf in leaves.items()}

    return differences(run("torch"), run("mamba_ssm"))


def isolation_case() -> dict[str, float]:
    """A document of NaN between two others: those against the same scan without it."""
    from ablate.ssm import ssd

    random = torch.Generator().manual_seed(0)
    shapes = {"x": (1, 41, 2, 16), "dt": (1, 41, 2), "A": (2,), "B": (1, 41, 1, 16), "C": (1, 41, 1, 16), "D": (2,)}
    inputs = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    inputs |= {"dt": inputs["dt"].exp() * 0.3, "A": -inputs["A"].exp()}
    seq_idx = (torch.arange(41) >= 11).int() + (torch.arange(41) >= 20).int()
    bad = {name: tensor.clone() for name, tensor in inputs.items()}
    for name in ("x", "dt", "B", "C"):
        bad[name][:, 11:20] = torch.nan
    clean = seq_idx != 1

    def run(inputs: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
        y, final = ssd(**leaves, seq_idx=seq_idx[None], chunk_size=16, return_final_state=True, backend=backend)
        (y[:, clean].square().sum() + final.sum()).backward()
        gradients = {f"d{name}": leaves[name].grad[:, clean] for name in ("x", "dt", "B", "C")}
        return {"y": y.detach()[:, clean], "final": final.detach()} | gradients

    return differences(run(bad, "mamba_ssm"), run(inputs, "torch"))


def mixer_case(**fields) -> dict[str, float]:
    """mamba-ssm's own module, made from the same seed: weights, outputs, gradients and single steps."""
    from ablate.ssm import Mamba2Mixer, MixerState
    from ablate.ssm.kernels import load_kernel

    package = types.ModuleType("mamba_ssm")  # a bare one: its __init__ needs a compiled extension
    package.__path__ = [str(Path(inspect.getfile(load_kernel())).parents[2])]
    sys.modules["mamba_ssm"] = package
    from mamba_ssm.modules.mamba2 import Mamba2

    fields = {"d_model": 16, "d_state": 16, "headdim": 16, "chunk_size": 16} | fields
    torch.manual_seed(0)
    reference = Mamba2(use_mem_eff_path=False, **fields)
    torch.manual_seed(0)
    mixer = Mamba2Mixer(backend="torch", **fields)
    assert {k: v.shape for k, v in mixer.state_dict().items()} == {
        k: v.shape for k, v in reference.state_dict().items()
    }
    found = differences(mixer.state_dict(), reference.state_dict())

    random = torch.Generator().manual_seed(1)
    hidden, weights = (torch.randn(2, 20, fields["d_model"], generator=random) for _ in range(2))

    def run(module: torch.nn.Module) -> dict[str, Tensor]:
        leaf = hidden.clone().requires_grad_()
        out = module(leaf)
        (out * weights).sum().backward()
        gradients = {f"d{name}": parameter.grad for name, parameter in module.named_parameters()}
        return {"out": out.detach(), "dhidden": leaf.grad} | gradients

    found |= differences(run(mixer), run(reference))
    if mixer.D.shape[0] != mixer.nheads:
        return found  # mamba-ssm's own step does not take a D of every channel

    state = mixer.init_state(2)
    conv_state, ssm_state = reference.allocate_inference_cache(2, 1)
    with torch.no_grad():
        for t in range(6):
            ours, state = mixer.step(hidden[:, t], state)
            theirs, conv_state, ssm_state = reference.step(hidden[:, t : t + 1], conv_state, ssm_state)
    theirs = {"step": theirs[:, 0], "conv": conv_state[..., 1:], "ssm": ssm_state}
    assert isinstance(state, MixerState)
    return found | differences({"step": ours, "conv": state.conv, "ssm": state.ssm}, theirs)


CASES = {
    "plain": lambda: scan_case(length=32, groups=1, D_has_hdim=False, state=False, documents=False),
    "state": lambda: scan_case(length=41, groups=2, D_has_hdim=True, state=True, documents=False),
    "documents": lambda: scan_case(length=41, groups=1, D_has_hdim=False, state=False, documents=True),
    "state and documents": lambda: scan_case(length=41, groups=2, D_has_hdim=False, state=True, documents=True),
    "isolation": isolation_case,
    "mixer": mixer_case,
    "mixer, other fields": lambda: mixer_case(
        ngroups=2, D_has_hdim=True, norm_before_gate=True, bias=True, conv_bias=False
    ),
}


if __name__ == "__main__":
    stand_in_for_cuda()
    print(json.dumps({name: CASES[name]() for name in sys.argv[1:]}))
