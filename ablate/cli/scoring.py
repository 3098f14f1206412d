"""Scores a run: where training and evaluation, which do not know each other, meet."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ablate.evaluation.benchmarks import Benchmark
    from ablate.model import VLM
    from ablate.training import Reporter, RunConfig


def score_run(
    config: "RunConfig", vlm: "VLM", folder: Path, reporter: "Reporter", *, weights: Path | None = None
) -> Mapping[str, dict[str, Any]]:
    """Evaluate `vlm` on `config.evaluation`'s benchmarks; predictions go to `folder/predictions`.

    Args:
        weights: the file that `vlm` was loaded from, `folder`'s own if None: its hash says whose answers they are.

    Returns:
        result.json's `scores`, by benchmark.
    """
    from ablate.evaluation.runner import evaluate
    from ablate.training import RunFiles
    from datamodules.images import file_sha256
    from datamodules.tokenizer import Tokenizer

    benchmarks = create_benchmarks(config)
    device = next(vlm.parameters()).device
    features = _features(config, vlm, benchmarks, device, reporter)
    phases = _Phases(reporter)
    results = evaluate(
        vlm,
        benchmarks,
        tokenizer=Tokenizer.from_file(config.tokenizer),
        template=config.data.prompt_template,
        transforms=vlm.encoder.transforms,
        num_visual_tokens=vlm.num_visual_tokens,
        folder=folder / "predictions",
        features=features,
        batch_size=config.evaluation.batch_size,
        max_new_tokens=config.evaluation.max_new_tokens,
        limit=config.evaluation.limit,
        model_id=file_sha256(weights or RunFiles(folder).weights),
        device=device,
        progress=phases.update,
    )
    phases.close()
    return {name: result.to_dict() for name, result in results.items()}


def create_benchmarks(config: "RunConfig") -> "list[Benchmark]":
    """The config's benchmarks, each with its files in a folder of its name."""
    from ablate.evaluation import benchmarks

    evaluation = config.evaluation
    return benchmarks.create_all(
        evaluation.benchmarks,
        Path(evaluation.root),
        prompt=evaluation.prompt,
        answering=evaluation.answering,
        modes=evaluation.modes,
        partial=evaluation.partial,
    )


def _features(config: "RunConfig", vlm: "VLM", benchmarks: "list[Benchmark]", device, reporter: "Reporter"):
    """The shared cache with the test images in it, where the encoder is frozen and its features are kept."""
    from ablate.training import open_cache
    from ablate.training.features import fill_cache
    from datamodules.features import image_items

    if not (config.features.cache and config.encoder.frozen):
        return None
    cache = open_cache(config.features, vlm.encoder)
    paths = dict.fromkeys(
        question.image for each in benchmarks for question in each.questions[: config.evaluation.limit]
    )
    fill_cache(cache, image_items(paths), vlm.encoder, config=config.features, device=device, reporter=reporter)
    return cache


class _Phases:
    """Shows each benchmark as a phase of the run's progress."""

    def __init__(self, reporter: "Reporter") -> None:
        self._reporter, self._name, self._phase = reporter, "", None

    def update(self, task: str, done: int, total: int) -> None:
        if task != self._name:
            self.close()
            self._name, self._phase = task, self._reporter.phase(f"evaluate {task}", total, start=done)
            self._phase.__enter__()
        self._phase.update(done)

    def close(self) -> None:
        if self._phase is not None:
            self._phase.__exit__(None, None, None)
            self._phase = None
