"""Engines: how the runs of a sweep get machines. `ablate list engines` shows them; other packages may add theirs."""

from ablate.sweeps.engines.base import ELSEWHERE, OK, SOME_FAILED, Engine, Work, register, registry

__all__ = ["ELSEWHERE", "OK", "SOME_FAILED", "Engine", "Work", "register", "registry"]
