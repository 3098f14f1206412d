"""Ablate: which connector between a vision encoder and a Mamba-2 language model is better."""

__version__ = "0.1.0"
