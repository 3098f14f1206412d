"""Ablate: which connector between a vision encoder and a Mamba-2 language model is better.

run = ablate.train("demo", "connector.name=msc_csm")
ablate.load(run).answer("photo.jpg", "What is this?")
ablate.evaluate(run, ["pope"], root="/data/benchmarks")
ablate.table("runs/demo")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ablate.api.answering import load
    from ablate.api.distilling import distill
    from ablate.api.evaluation import evaluate
    from ablate.api.training import train
    from ablate.tables import table

__version__ = "0.1.0"

__all__ = ["distill", "evaluate", "load", "table", "train"]

# PyTorch and Lightning take seconds: a function's module is imported when it is first used.
_MODULES = {
    "distill": "ablate.api.distilling",
    "evaluate": "ablate.api.evaluation",
    "load": "ablate.api.answering",
    "table": "ablate.tables",
    "train": "ablate.api.training",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
