"""The scan on CUDA: mamba-ssm's kernels and the chunked form against the definition, and how the kernels are launched.

For one GPU and an empty cache of Triton; most of the time goes to compiling the kernels. One test needs two GPUs.
"""

import copy
import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from ablate.ssm import Mamba2Mixer, causal_conv1d, ssd, why_no_kernels
from ablate.ssm.kernels import INSTALL_COMMAND

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(
        importlib.util.find_spec("mamba_ssm") is None, reason=f"mamba-ssm is not installed ({INSTALL_COMMAND})"
    ),
]

LENGTHS = [70, 1, 129, 100]
LENGTH = sum(LENGTHS)
PER_TOKEN = ("x", "dt", "B", "C")
# tf32 products and bfloat16 inputs: agreement with float64 to their precision
TOLERANCES = {torch.float32: 5e-3, torch.bfloat16: 2e-2}
each_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: str(dtype).removeprefix("torch."))
each_backend = pytest.mark.parametrize("backend", ["mamba_ssm", "torch"])


def make_inputs(batch: int = 2, *, initial: bool = False, device: str = "cuda") -> dict[str, Tensor]:
    """One set of sizes for all tests, so that each kernel is compiled once for each dtype."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (batch, LENGTH, 4, 64), "dt": (batch, LENGTH, 4), "A": (4,)}
    shapes |= {"B": (batch, LENGTH, 2, 128), "C": (batch, LENGTH, 2, 128), "D": (4,)}
    shapes |= {"initial_state": (batch, 4, 64, 128)} if initial else {}
    inputs = {name: torch.randn(shape, generator=generator).to(device) for name, shape in shapes.items()}
    return inputs | {"dt": inputs["dt"].exp() * 0.1, "A": -inputs["A"].exp()}


def in_dtype(inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return inputs | {name: inputs[name].to(dtype) for name in ("x", "B", "C")}


def seq_idx(batch: int = 2) -> Tensor:
    return torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS)).expand(batch, -1).cuda()


def run(inputs: dict[str, Tensor], backend: str, where: Tensor | None = None, **options) -> dict[str, Tensor]:
    """Outputs and gradients, of the sum of squares at `where` (b, l)."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
    y, final = ssd(**leaves, backend=backend, return_final_state=True, **options)
    loss = (y if where is None else y[where]).double().square().sum()
    if where is None:
        loss = loss + final.double().sum()
    loss.backward()
    return {"y": y.detach(), "final": final.detach()} | {f"d{name}": leaf.grad for name, leaf in leaves.items()}


def assert_near(ours: dict[str, Tensor], exact: dict[str, Tensor], tolerance: float) -> None:
    errors = {name: float((ours[name] - exact[name]).abs().max() / exact[name].abs().max()) for name in exact}
    assert {name: error for name, error in errors.items() if not error <= tolerance} == {}


def test_the_kernels_are_there() -> None:
    assert why_no_kernels() == ""


@each_dtype
@each_backend
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("initial", [False, True])
def test_scan_against_the_definition(dtype, backend, packed, initial) -> None:
    inputs = in_dtype(make_inputs(initial=initial), dtype)
    options = {"seq_idx": seq_idx() if packed else None}
    exact = run({name: tensor.double() for name, tensor in inputs.items()}, "recurrent", **options)
    assert_near(run(inputs, backend, **options), exact, TOLERANCES[dtype])


@each_dtype
@each_backend
def test_each_document_as_if_alone(dtype, backend) -> None:
    inputs = in_dtype(make_inputs(batch=1), dtype)
    packed = run(inputs, backend, seq_idx=seq_idx(1))
    start = 0
    for length in LENGTHS:
        span = slice(start, start + length)
        alone = {name: t[:, span] if name in PER_TOKEN else t for name, t in inputs.items()}
        whole = torch.ones(1, length, dtype=torch.bool, device="cuda")
        exact = run({name: tensor.double() for name, tensor in alone.items()}, "recurrent", whole)
        assert_near({"y": packed["y"][:, span]}, {"y": exact["y"]}, TOLERANCES[dtype])
        start += length


@each_backend
def test_a_row_alone_is_the_row_in_a_batch(backend) -> None:
    inputs = make_inputs(batch=3)
    together = run(inputs, backend)
    for row in range(3):
        own = {name: t[row : row + 1] if name in PER_TOKEN else t for name, t in inputs.items()}
        alone = run(own, backend)
        for name in ("y", "final", *(f"d{name}" for name in PER_TOKEN)):
            torch.testing.assert_close(together[name][row : row + 1], alone[name], rtol=1e-4, atol=1e-4)


@each_dtype
@each_backend
def test_the_same_bits_twice_under_deterministic_mode(dtype, backend) -> None:
    inputs = in_dtype(make_inputs(), dtype)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        first, second = (run(inputs, backend, seq_idx=seq_idx()) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert {name for name in first if not torch.equal(first[name], second[name])} == set()


@each_dtype
@each_backend
def test_nan_in_one_document_reaches_no_other(dtype, backend) -> None:
    clean = in_dtype(make_inputs(), dtype)
    bad = {name: tensor.clone() for name, tensor in clean.items()}
    for name in PER_TOKEN:
        bad[name][0, 71:200] = torch.nan
    bad["x"][1, 0] = torch.inf
    others = torch.ones(2, LENGTH, dtype=torch.bool, device="cuda")
    others[0, 71:200] = others[1, :70] = False
    ours, expected = (run(inputs, backend, others, seq_idx=seq_idx()) for inputs in (bad, clean))
    assert not ours["y"][0, 71:200].isfinite().any()
    assert_near(
        {name: ours[name][others] for name in ("y", *(f"d{name}" for name in PER_TOKEN))},
        {name: expected[name][others] for name in ("y", *(f"d{name}" for name in PER_TOKEN))},
        1e-4 if dtype == torch.float32 else 1e-2,
    )
    torch.testing.assert_close(ours["final"], expected["final"])


@pytest.mark.parametrize("backend", ["auto", "mamba_ssm", "torch", "recurrent"])
@pytest.mark.parametrize("shape", [(0, 5), (2, 0)], ids=str)
def test_nothing_to_scan(backend, shape) -> None:
    inputs = {name: t[: shape[0], : shape[1]] if name in PER_TOKEN else t for name, t in make_inputs().items()}
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    y, final = ssd(**leaves, backend=backend, return_final_state=True)
    assert (y.shape, final.shape) == ((*shape, 4, 64), (shape[0], 4, 64, 128))
    y.sum().backward()
    assert not any(leaf.grad.any() for leaf in leaves.values())
    x = torch.zeros(*shape, 8, device="cuda", requires_grad=True)
    causal_conv1d(x, torch.ones(8, 4, device="cuda"), activation="silu").sum().backward()
    assert x.grad.shape == x.shape


@each_backend
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_in_the_mixer(backend, side) -> None:
    torch.manual_seed(0)
    mixer = Mamba2Mixer(128, backend=backend).cuda()
    hidden = torch.randn(2, 90, 128, device="cuda")
    mask = torch.arange(90, device="cuda") < torch.tensor([[90], [33]], device="cuda")
    mask = mask.flip(1) if side == "left" else mask
    rows = [hidden[:1], hidden[1:][:, mask[1]]]
    out, state = mixer(hidden.masked_fill(~mask[..., None], torch.nan), mask=mask, return_state=True)
    for row, alone in enumerate(rows):
        expected, after = mixer(alone, return_state=True)
        torch.testing.assert_close(out[row][mask[row]], expected[0], rtol=5e-3, atol=5e-3)
        torch.testing.assert_close(state.ssm[row], after.ssm[0], rtol=5e-3, atol=5e-3)
    step, _ = mixer.step(hidden[:, 0], state)
    assert step.isfinite().all()


@each_dtype
def test_the_mixer_on_the_gpu_is_the_mixer_on_the_cpu(dtype) -> None:
    torch.manual_seed(0)
    mixer = Mamba2Mixer(128, headdim=64, ngroups=2)
    hidden = torch.randn(2, 200, 128)
    packed = (torch.arange(200) >= 77).int().expand(2, -1)
    expected = copy.deepcopy(mixer).double()(hidden.double(), seq_idx=packed)
    ours = mixer.cuda().to(dtype)(hidden.cuda().to(dtype), seq_idx=packed.cuda())
    error = (ours.double().cpu() - expected).norm() / expected.norm()
    assert error < (5e-3 if dtype == torch.float32 else 3e-2)


IN_A_PROCESS = """
import json, sys, torch
torch.use_deterministic_algorithms(sys.argv[1] == "deterministic", warn_only=True)
from ablate.ssm import ssd
from ablate.ssm.kernels import _tuners, load_kernel
load_kernel()
cost = sys.modules["mamba_ssm.utils.determinism"]._estimate_config_cost
assert sum(len(tuner.configs) > 1 for tuner in _tuners()) >= 10
for tuner in _tuners():  # to choose among all takes minutes, and the larger ones need more shared memory than there is
    tuner.configs = sorted(tuner.configs, key=cost)[:2]
torch.manual_seed(0)
shapes = [(2, 300, 4, 64), (2, 300, 4), (4,), (2, 300, 2, 128), (2, 300, 2, 128)]
x, dt, A, B, C = (torch.randn(shape, device="cuda") for shape in shapes)
leaves = [x, dt.exp() * 0.1, -A.exp(), B, C]
leaves = [leaf.detach().requires_grad_() for leaf in leaves]
ssd(*leaves, backend="mamba_ssm").square().sum().backward()
print(json.dumps({tuner.base_fn.__name__: list(map(str, tuner.cache.values())) for tuner in _tuners() if tuner.cache}))
"""


def test_training_and_evaluation_run_the_same_configurations(tmp_path) -> None:
    """In processes of their own: one that imports the kernels under deterministic mode, one that does not."""
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_CACHE_AUTOTUNING"}
    chosen = []
    for mode in ("deterministic", "not"):
        done = subprocess.run(
            [sys.executable, "-c", IN_A_PROCESS, mode],
            env=environment | {"PYTHONPATH": os.pathsep.join(sys.path), "TRITON_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "cached autotuning" not in done.stderr  # mamba-ssm's warning that it has kept one configuration
        chosen.append(json.loads(done.stdout.splitlines()[-1]))
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) >= 8  # forward and backward
    assert any("bwd" in name for name in chosen[0])
    # Those with hooks are kept as well.
    assert len(list(tmp_path.rglob("*.autotune.json"))) == sum(map(len, chosen[0].values()))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@each_backend
def test_tensors_on_another_gpu_than_the_current_one(backend) -> None:
    inputs = make_inputs()
    expected = run(inputs, backend)
    assert torch.cuda.current_device() == 0
    there = run({name: tensor.to("cuda:1") for name, tensor in inputs.items()}, backend)
    assert torch.cuda.current_device() == 0
    for name, tensor in expected.items():
        torch.testing.assert_close(there[name].cpu(), tensor.cpu(), rtol=1e-4, atol=1e-4)


def test_report_what_isolating_documents_costs(capsys) -> None:
    """Prints, and asserts only that both run: no test depends on speed."""
    generator = torch.Generator("cuda").manual_seed(0)
    x, B, C = (torch.randn(s, device="cuda", dtype=torch.bfloat16, generator=generator, requires_grad=True)
               for s in ((4, 2048, 80, 64), (4, 2048, 1, 128), (4, 2048, 1, 128)))  # fmt: skip
    dt = torch.rand(4, 2048, 80, device="cuda", requires_grad=True)
    A = -torch.rand(80, device="cuda")
    documents = (torch.arange(2048, device="cuda") // 300).expand(4, -1)

    def milliseconds(seq_idx: Tensor | None) -> float:
        times = []
        for _ in range(12):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            ssd(x, dt, A, B, C, seq_idx=seq_idx, backend="mamba_ssm").sum().backward()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
        return sorted(times)[3]

    whole, packed = milliseconds(None), milliseconds(documents)
    with capsys.disabled():
        print(f"\nscan forward and backward, (4, 2048, 80, 64) bfloat16: {whole:.2f} ms, packed {packed:.2f} ms")
    assert whole > 0
    assert packed > 0
