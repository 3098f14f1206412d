"""Training: from a `RunConfig` to a run's folder.

config.py        all settings of a run
loop.py          `train`: features, training, evaluation; each can be stopped and continued
module.py        the step: loss, gradient, clipping
stages.py        what trains in each stage, and what is saved
optimization.py  parameter groups and schedule
recorder.py      what happens after each step
runs.py          the run's folder: names, provenance, weights, result, `load_run`
...              checkpoints, features, divergence, interrupts, progress, tracking (W&B), memory, files
"""

from ablate.training.config import EvaluationConfig, FeaturesConfig, LoggerConfig, RunConfig, TrainConfig
from ablate.training.divergence import Diverged
from ablate.training.features import open_cache
from ablate.training.interrupts import Interrupted
from ablate.training.loop import Evaluate, train
from ablate.training.progress import Reporter
from ablate.training.runs import (
    RunFiles,
    Trained,
    find_trained,
    is_finished,
    load_run,
    run_digest,
    run_folder,
    run_id,
)

__all__ = [
    "Diverged",
    "Evaluate",
    "EvaluationConfig",
    "FeaturesConfig",
    "Interrupted",
    "LoggerConfig",
    "Reporter",
    "RunConfig",
    "RunFiles",
    "TrainConfig",
    "Trained",
    "find_trained",
    "is_finished",
    "load_run",
    "open_cache",
    "run_digest",
    "run_folder",
    "run_id",
    "train",
]
