"""Adapters that let other people's packages use a model of ours. None of those packages is needed here.

lmms_eval.py    a model of the lmms-eval package, which finds it by the entry point that pyproject.toml declares
"""

from typing import Any


def lmms_eval_manifest() -> Any:
    """For lmms-eval's entry-point group `lmms_eval.models`: the model's name there, and where its class is."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="ablate", simple_class_path="ablate.integrations.lmms_eval.Ablate")
