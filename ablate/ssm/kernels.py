"""The Triton kernels of mamba-ssm (https://github.com/state-spaces/mamba), the scan's backend on CUDA.

Only the kernels are needed: `mamba_ssm/__init__.py` also imports a compiled CUDA extension and more, so the package is
entered below it. Then it needs neither nvcc nor causal-conv1d.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ablate.core.errors import UserError
from ablate.core.locks import exclusive

INSTALL_COMMAND = (
    "MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE "
    "pip install --no-build-isolation --no-deps mamba-ssm==2.3.2.post1 einops"
)


class MissingKernelsError(UserError, ImportError):
    """The kernels were asked for by name and are not there; the message holds the command which installs them."""


def kernel_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    *,
    chunk_size: int,
    document: Tensor | None,
    initial_state: Tensor | None,
    final_state: bool = True,
) -> tuple[Tensor, Tensor]:
    """As `ablate.ssm.ssd`: matrix products in the dtype of x, sums and states in float32.

    dt, A, D and initial_state come in float32 already; `document` (batch, length) counts up from 0.

    Raises:
        MissingKernelsError: mamba-ssm, or something it needs, cannot be imported.
        UserError: tensors the kernels cannot take.
    """
    if x.dtype == torch.float64:
        raise UserError('The scan backend "mamba_ssm" does not compute in float64: use backend="torch".')
    if x.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise UserError(f'The scan backend "mamba_ssm" needs a CUDA device, got {x.device}: use backend="torch".')
    kernel = load_kernel()
    seq_idx = None if document is None else document.to(torch.int32)
    return _on_its_device(kernel).apply(
        x, dt, A, B.to(x.dtype), C.to(x.dtype), chunk_size, D, None, None, initial_state, seq_idx, None,
        False, (0.0, float("inf")), True, False,
    )  # fmt: skip


@functools.cache
def _on_its_device(kernel: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """The same function with its tensors' device made the current one, forward and backward.

    Triton launches on the current device, whatever device the tensors are on, and one of mamba-ssm's launchers
    (`_chunk_scan_fwd`) does not set it: on any other GPU than the current one that is an illegal memory access.
    """

    class OnItsDevice(kernel):  # type: ignore[misc, valid-type]
        @staticmethod
        def forward(ctx, x, *rest):
            with _current_device(x):
                return kernel.forward(ctx, x, *rest)

        @staticmethod
        def backward(ctx, dout, *rest):
            with _current_device(dout):
                return kernel.backward(ctx, dout, *rest)

    return OnItsDevice


def _current_device(x: Tensor) -> AbstractContextManager:
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


@functools.cache  # called at every scan; a failed import would be retried each time
def why_no_kernels() -> str:
    """Why `load_kernel` fails, with the command that fixes it; "" if it does not."""
    try:
        load_kernel()
    except MissingKernelsError as error:
        return str(error)
    return ""


@functools.cache
def load_kernel() -> type[torch.autograd.Function]:
    """mamba-ssm's `MambaChunkScanCombinedFn`; raises MissingKernelsError."""
    return _load("mamba_ssm.ops.triton.ssd_combined", "MambaChunkScanCombinedFn")


@functools.cache
def selective_kernel() -> tuple[Callable[..., tuple[Tensor, Tensor]] | None, str]:
    """mamba-ssm's `selective_scan_fn` of Mamba-1, or None and why it is not there."""
    try:
        return _load("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn"), ""
    except MissingKernelsError as error:
        return None, f"{error} Mamba-1's kernel is a CUDA extension besides, which is built where nvcc is."


def _load(module: str, name: str) -> Any:
    """A kernel of mamba-ssm, imported in the one state that `_fixed_configurations` sets.

    Raises:
        MissingKernelsError: mamba-ssm, or something it needs, cannot be imported.
    """
    # A bare package in place of the real one for the time of the import: its __init__ is not run.
    placed = "mamba_ssm" not in sys.modules
    if placed:
        spec = importlib.util.find_spec("mamba_ssm")
        if spec is None:
            raise MissingKernelsError(
                f"The package mamba-ssm is not installed. Install it (no nvcc needed): {INSTALL_COMMAND}"
            )
        bare = types.ModuleType("mamba_ssm")
        bare.__path__ = list(spec.submodule_search_locations or [])
        sys.modules["mamba_ssm"] = bare
    try:
        with _fixed_configurations():
            function = getattr(importlib.import_module(module), name)
        for tuner in _tuners():
            if "check_disk_cache" not in vars(tuner):  # else that has been done
                _choose_once(tuner)
        return function
    except Exception as error:  # versions of Triton and mamba-ssm that do not fit fail in ways of their own
        raise MissingKernelsError(
            f"The kernels of mamba-ssm cannot be imported: {type(error).__name__}: {error}. "
            f"Install what is missing; for mamba-ssm itself: {INSTALL_COMMAND}"
        ) from error
    finally:
        if placed:  # a later `import mamba_ssm` shall be the real one
            del sys.modules["mamba_ssm"]


@contextlib.contextmanager
def _fixed_configurations() -> Iterator[None]:
    """Import the kernels under deterministic mode with cached tuning; the caller's mode is put back.

    mamba-ssm (from 2.3) chooses each kernel's Triton configurations when it is imported: all of them, to be timed at
    the first call; or under deterministic mode only the cheapest, unless Triton caches what it has timed. Training runs
    under deterministic mode and evaluation does not, so each would run kernels of its own. With the cache all
    configurations are kept in both, and every process that shares the folder takes the one that was found first. Nodes
    without a common home folder need a TRITON_CACHE_DIR that they all see.
    """
    home = os.environ.get("TRITON_HOME") or os.path.expanduser("~")
    os.environ.setdefault("TRITON_CACHE_DIR", os.path.join(home, ".triton", "cache"))
    os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")  # read by mamba-ssm at import and by Triton at decoration
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def _tuners() -> list[Any]:
    """Every autotuned kernel of mamba-ssm that is imported."""
    from triton.runtime.autotuner import Autotuner

    modules = [module for name, module in sys.modules.items() if name.startswith("mamba_ssm.ops.triton.")]
    found = [value for module in modules for value in vars(module).values() if isinstance(value, Autotuner)]
    return list({id(tuner): tuner for tuner in found}.values())  # one may be imported by several modules


def _choose_once(tuner: Any) -> None:
    """Let one process at a time tune a kernel, and keep the choice on disk for kernels with hooks as well.

    Triton leaves those out of its cache, because a hook cannot be written to a file: that is most of the backward pass,
    which each process would time for itself. Their configurations are written without hooks, and found again by their
    text. Without the lock, ranks that start together would all find the cache empty.
    """
    original = getattr(tuner, "check_disk_cache", None)
    if (
        original is None
    ):  # Triton before 3.4 has no such cache: one configuration was kept, and there is nothing to choose
        return

    def check_disk_cache(key: tuple, configs: list[Any], benchmark: Callable[[], None]) -> bool:
        def benchmark_to_keep() -> None:
            benchmark()
            tuner.configs_timings = {_without_hook(config): time for config, time in tuner.configs_timings.items()}

        with exclusive(Path(os.environ["TRITON_CACHE_DIR"]) / "ablate-tuning.lock"):
            found = original(key, [_without_hook(config) for config in configs], benchmark_to_keep)
        tuner.cache[key] = {str(config): config for config in configs}[str(tuner.cache[key])]
        return found

    tuner.check_disk_cache = check_disk_cache


def _without_hook(config: Any) -> Any:
    plain = copy.copy(config)
    plain.pre_hook = None
    return plain
