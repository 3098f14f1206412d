"""The backend `mamba_ssm`: the package's real Triton kernels, interpreted, and on CUDA if there is one."""

import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from ablate.errors import UserError
from ablate.ssm import Mamba2Mixer, ssd
from ablate.ssm.kernels import INSTALL_COMMAND, MissingKernelsError, load_kernel, why_no_kernels

needs_mamba_ssm = pytest.mark.skipif(
    importlib.util.find_spec("mamba_ssm") is None, reason=f"mamba-ssm is not installed ({INSTALL_COMMAND})"
)
TOLERANCE = 1e-5


def interpret(*cases: str) -> dict[str, dict[str, float]]:
    """A process of its own: Triton reads the variable when it is imported, and this process may have imported it."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("interpreted_kernels.py")), *cases],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == set(cases)
    return found


def assert_close(differences: dict[str, float], *names: str) -> None:
    assert set(names) <= set(differences)
    assert {name: value for name, value in differences.items() if not value <= TOLERANCE} == {}


@needs_mamba_ssm
def test_scan_and_mixer_agree_with_the_real_kernels() -> None:
    found = interpret("state and documents", "isolation", "mixer")
    assert_close(found["isolation"], "y", "final", "dx", "ddt", "dB", "dC")  # NaN in one document reaches no other
    assert_close(found["state and documents"], "y", "final", "dx", "ddt", "dA", "dB", "dC", "dD", "dinitial_state")
    mixer = found["mixer"]
    assert_close(mixer, "out", "dhidden", "dA_log", "ddt_bias", "step", "conv", "ssm")
    parameters = dict(Mamba2Mixer(16, d_state=16, headdim=16).named_parameters())
    assert {name: mixer[name] for name in parameters} == dict.fromkeys(parameters, 0.0)  # same seed, same bits


@pytest.mark.slow
@needs_mamba_ssm
@pytest.mark.parametrize("case", ["plain", "state", "documents", "mixer, other fields"])
def test_more_cases_agree_with_the_real_kernels(case: str) -> None:
    assert_close(interpret(case)[case])


@needs_mamba_ssm
def test_loading_the_kernels_leaves_no_half_a_package_behind() -> None:
    if why_no_kernels():
        pytest.skip("mamba-ssm is installed, but its kernels cannot be imported here")
    before = sys.modules.get("mamba_ssm")
    load_kernel.cache_clear()
    assert callable(load_kernel())
    assert sys.modules.get("mamba_ssm") is before


def scan_inputs(**to) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = {"x": (2, 300, 4, 64), "dt": (2, 300, 4), "A": (4,), "B": (2, 300, 2, 128), "C": (2, 300, 2, 128)}
    inputs = {name: torch.randn(shape, generator=random).to(**to) for name, shape in shapes.items()}
    return inputs | {"dt": inputs["dt"].exp() * 0.1, "A": -inputs["A"].exp()}


def test_a_missing_package_is_told_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mamba_ssm", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    load_kernel.cache_clear()
    with pytest.raises(MissingKernelsError, match=r"pip install .* mamba-ssm") as caught:
        load_kernel()
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value, UserError)
    why_no_kernels.cache_clear()
    assert INSTALL_COMMAND in why_no_kernels()
    monkeypatch.setattr("importlib.util.find_spec", pytest.fail)
    assert why_no_kernels()  # not looked for again at every scan
    why_no_kernels.cache_clear()


def test_a_package_that_does_not_fit_is_told_like_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise AttributeError("module 'triton' has no attribute 'jit'")

    monkeypatch.setitem(sys.modules, "mamba_ssm", types.ModuleType("mamba_ssm"))
    monkeypatch.setattr("importlib.import_module", broken)
    load_kernel.cache_clear()
    with pytest.raises(MissingKernelsError, match=r"AttributeError: .* no attribute 'jit'.*pip install"):
        load_kernel()


def test_tensors_the_kernels_cannot_take() -> None:
    with pytest.raises(UserError, match="CUDA device, got cpu"):
        ssd(**scan_inputs(), backend="mamba_ssm")
    with pytest.raises(UserError, match="float64"):
        ssd(**scan_inputs(dtype=torch.float64), backend="mamba_ssm")
