"""How the kernels are imported and launched: one state for everybody, one tuned configuration, the tensors' device.

With a package of the test's own in place of mamba-ssm, and Triton's own autotuner without a GPU.
"""

import contextlib
import importlib
import os
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ablate.ssm import kernels, ssd
from ablate.ssm.kernels import load_kernel

FAKE = """
import os
import torch

seen = {
    "deterministic": torch.are_deterministic_algorithms_enabled(),
    "tuning": os.environ.get("TRITON_CACHE_AUTOTUNING"),
    "folder": os.environ.get("TRITON_CACHE_DIR"),
}
events = []


class MambaChunkScanCombinedFn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C, chunk_size, D, z, dt_bias, initial_states, seq_idx, *rest):
        events.append("forward")
        ctx.save_for_backward(x)
        return 2 * x, x.new_zeros(x.shape[0], *x.shape[2:], B.shape[-1])

    @staticmethod
    def backward(ctx, dout, dstate):
        events.append("backward")
        return 2 * dout, *[None] * 15
"""


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Iterator[types.SimpleNamespace]:
    folder = tmp_path / "mamba_ssm" / "ops" / "triton"
    folder.mkdir(parents=True)
    (tmp_path / "mamba_ssm" / "__init__.py").write_text('raise ImportError("not to be run")')
    (folder / "ssd_combined.py").write_text(FAKE)
    for name in [name for name in sys.modules if name.partition(".")[0] == "mamba_ssm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("TRITON_CACHE_AUTOTUNING", "TRITON_CACHE_DIR", "TRITON_HOME"):
        monkeypatch.setenv(name, "")  # so that what the import sets is taken back, too
        monkeypatch.delenv(name)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    load_kernel.cache_clear()
    yield types.SimpleNamespace(module=lambda: sys.modules["mamba_ssm.ops.triton.ssd_combined"])
    load_kernel.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "mamba_ssm"]:
        del sys.modules[name]


def determinism() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


@pytest.mark.parametrize(("deterministic", "warn_only"), [(False, False), (True, False), (True, True)])
def test_imported_in_one_state_whatever_the_callers(fake, deterministic, warn_only):
    """Training imports the kernels under deterministic mode, evaluation and generation without it."""
    before = determinism()
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    try:
        callers = determinism()
        load_kernel()
        assert determinism() == callers
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    folder = os.path.join(os.path.expanduser("~"), ".triton", "cache")
    assert fake.module().seen == {"deterministic": True, "tuning": "1", "folder": folder}


def test_the_users_own_settings_stay(fake, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_AUTOTUNING", "0")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/shared/triton")
    load_kernel()
    assert fake.module().seen == {"deterministic": True, "tuning": "0", "folder": "/shared/triton"}


def test_an_import_that_fails_puts_the_callers_state_back(fake, tmp_path):
    (tmp_path / "mamba_ssm" / "ops" / "triton" / "ssd_combined.py").write_text("raise RuntimeError('no')")
    with pytest.raises(kernels.MissingKernelsError, match="RuntimeError: no"):
        load_kernel()
    assert not torch.are_deterministic_algorithms_enabled()


def test_every_way_in_imports_through_that_function():
    """Nothing else of the project imports the package: not training, evaluation, generation or the integrations."""
    root = Path(kernels.__file__).parents[2]
    texts = {path: path.read_text() for name in ("ablate", "connectors") for path in (root / name).rglob("*.py")}
    importing = [
        path.name
        for path, text in texts.items()
        if any(form in text for form in ("import mamba_ssm", "from mamba_ssm", '"mamba_ssm.'))
    ]
    assert importing == ["kernels.py"]


# ------------------------------------------------------------------------------------------------------------ device


def inputs() -> dict[str, torch.Tensor]:
    shapes = {"x": (1, 3, 2, 4), "dt": (1, 3, 2), "A": (2,), "B": (1, 3, 1, 5), "C": (1, 3, 1, 5)}
    return {name: torch.rand(shape) for name, shape in shapes.items()}


def test_forward_and_backward_run_on_their_tensors_device(fake, monkeypatch):
    load_kernel()
    events = fake.module().events

    @contextlib.contextmanager
    def record(x: torch.Tensor) -> Iterator[None]:
        events.append(f"enter {x.device}")
        yield
        events.append("leave")

    monkeypatch.setattr(kernels, "_current_device", record)
    x = inputs()["x"].requires_grad_()
    y = ssd(**inputs() | {"x": x}, backend="mamba_ssm")
    assert torch.equal(y, 2 * x)
    y.sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 2))
    assert events == ["enter cpu", "forward", "leave", "enter cpu", "backward", "leave"]


def test_the_device_is_that_of_the_tensor(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext(f"on {device}"))
    with kernels._current_device(types.SimpleNamespace(is_cuda=True, device=torch.device("cuda:3"))) as where:
        assert where == "on cuda:3"
    with kernels._current_device(torch.zeros(1)) as where:
        assert where is None


# ------------------------------------------------------------------------------------------------------------ tuning


def make_tuner(monkeypatch, folder: Path):
    """Triton's autotuner with three configurations that have hooks, as most of mamba-ssm's backward kernels do."""
    triton = pytest.importorskip("triton")
    autotuner = importlib.import_module("triton.runtime.autotuner")
    if not hasattr(autotuner.Autotuner, "check_disk_cache"):
        pytest.skip("this Triton has no cache of tuning")
    compiler = importlib.import_module("triton.compiler.compiler")
    target = types.SimpleNamespace(active=types.SimpleNamespace(get_current_target=lambda: None))
    monkeypatch.setattr(autotuner, "driver", target)
    monkeypatch.setattr(compiler, "make_backend", lambda target: types.SimpleNamespace(hash=lambda: "a GPU"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    hooks = [lambda arguments: None for _ in range(3)]
    configs = [triton.Config({"BLOCK": 16 << n}, num_warps=n + 1, pre_hook=hook) for n, hook in enumerate(hooks)]
    kernel = triton.JITFunction(_kernel) if hasattr(triton, "JITFunction") else triton.jit(_kernel)
    tuner = autotuner.Autotuner(kernel, ["x"], configs, ["x"], None, None)
    kernels._choose_once(tuner)
    return tuner


def _kernel(x, BLOCK):
    pass


def tune(tuner, times: list[float], key: tuple = ("64",), wait: float = 0.0) -> tuple[object, bool]:
    """What Triton's `run` does at the first call with a key: the configuration chosen, and whether it was timed."""
    timed = []

    def benchmark() -> None:
        timed.append(True)
        time.sleep(wait)
        tuner.configs_timings = dict(zip(tuner.configs, times, strict=True))
        tuner.cache[key] = min(tuner.configs_timings, key=tuner.configs_timings.get)

    tuner.check_disk_cache(key, tuner.configs, benchmark)
    return tuner.cache[key], bool(timed)


def test_the_configuration_that_was_found_first_is_everybodys(monkeypatch, tmp_path):
    first, timed = tune(make_tuner(monkeypatch, tmp_path), [3.0, 1.0, 2.0])
    assert timed
    assert first.kwargs == {"BLOCK": 32}
    other = make_tuner(monkeypatch, tmp_path)
    again, timed = tune(other, [1.0, 2.0, 3.0])  # another process, where another one would be faster
    assert not timed
    assert str(again) == str(first)
    assert again is other.configs[1]  # with its own hook, without which its sums would start from rubbish
    assert again.pre_hook is not None
    assert tune(other, [1.0, 2.0, 3.0], key=("128",))[1]  # other sizes are timed for themselves


def test_ranks_that_start_together_time_once(monkeypatch, tmp_path):
    tuners = [make_tuner(monkeypatch, tmp_path) for _ in range(4)]
    found: list[tuple[object, bool]] = [None] * 4

    def rank(number: int) -> None:
        times = [3.0, 3.0, 3.0]
        times[number % 3] = 1.0
        found[number] = tune(tuners[number], times, wait=0.05)

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(timed for _, timed in found) == 1
    assert len({str(config) for config, _ in found}) == 1
