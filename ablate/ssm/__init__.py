"""State-space scans and the mixers around them. Imports nothing else of the project but its errors."""

from ablate.ssm.conv import causal_conv1d
from ablate.ssm.kernels import why_no_kernels
from ablate.ssm.mamba1 import Mamba1Mixer
from ablate.ssm.mixer import Mamba2Mixer, MixerState, without_weight_decay
from ablate.ssm.mmmamba import MMMambaMixer
from ablate.ssm.norms import GatedRMSNorm, RMSNorm
from ablate.ssm.scan import ssd, ssd_step
from ablate.ssm.selective_scan import selective_scan

__all__ = [
    "GatedRMSNorm",
    "MMMambaMixer",
    "Mamba1Mixer",
    "Mamba2Mixer",
    "MixerState",
    "RMSNorm",
    "causal_conv1d",
    "selective_scan",
    "ssd",
    "ssd_step",
    "why_no_kernels",
    "without_weight_decay",
]
