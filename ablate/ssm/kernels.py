"""The Triton kernels of mamba-ssm (https://github.com/state-spaces/mamba), the scan's backend on CUDA.

Only the kernels are needed: `mamba_ssm/__init__.py` also imports a compiled CUDA extension and more, so the package is
entered below it. Then it needs neither nvcc nor causal-conv1d.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Callable

import torch
from torch import Tensor

from ablate.errors import UserError

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
    return load_kernel()(
        x,
        dt,
        A,
        B.to(x.dtype),
        C.to(x.dtype),
        chunk_size,
        D=D,
        initial_states=initial_state,
        seq_idx=None if document is None else document.to(torch.int32),
        return_final_states=True,
    )


@functools.cache  # asked at every scan, and a failed import is looked for anew each time
def why_no_kernels() -> str:
    """Why `load_kernel` fails, with the command that mends it; "" if it does not."""
    try:
        load_kernel()
    except MissingKernelsError as error:
        return str(error)
    return ""


@functools.cache
def load_kernel() -> Callable[..., tuple[Tensor, Tensor]]:
    """mamba-ssm's `mamba_chunk_scan_combined`; raises MissingKernelsError."""
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
        return importlib.import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
    except Exception as error:  # versions of Triton and mamba-ssm that do not fit fail in ways of their own
        raise MissingKernelsError(
            f"The Triton kernels of mamba-ssm cannot be imported: {type(error).__name__}: {error}. "
            f"Install what is missing; for mamba-ssm itself: {INSTALL_COMMAND}"
        ) from error
    finally:
        if placed:  # a later `import mamba_ssm` shall be the real one
            del sys.modules["mamba_ssm"]
