"""Ground floor: the state-space scan and the Mamba-2 mixer. Imports nothing else of the project but its errors."""

from ablate.ssm.conv import causal_conv1d
from ablate.ssm.kernels import why_no_kernels
from ablate.ssm.mixer import Mamba2Mixer, MixerState
from ablate.ssm.norms import GatedRMSNorm, RMSNorm
from ablate.ssm.scan import ssd, ssd_step

__all__ = [
    "GatedRMSNorm",
    "Mamba2Mixer",
    "MixerState",
    "RMSNorm",
    "causal_conv1d",
    "ssd",
    "ssd_step",
    "why_no_kernels",
]
