"""Scores a run. Training and evaluation do not import each other; this module uses both.

One process asks, or several that share the windows of questions: the ranks that trained, or `evaluation.devices`. The
answers go to the same folder and are scored by one, so that the files are the same.
"""

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.core.errors import UserError
from ablate.core.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from ablate.core.console import Reporter
    from ablate.evaluation.asking import Progress
    from ablate.evaluation.benchmarks import Benchmark
    from ablate.model import VLM
    from ablate.runs.config import RunConfig

Answered = Callable[[str, int], None]  # task, answers since the last call


@dataclass(frozen=True)
class Asking:
    """All that a process needs to ask its part of the questions.

    Attributes:
        weights: the file that the model is loaded from.
        folder: where the answers go.
        precision: "float32" or "bfloat16".
        model_id: whose answers they are: the hash of the weights, and the connector's size where it offers several.
    """

    config: "RunConfig"
    weights: Path
    folder: Path
    precision: str = "float32"
    model_id: str = ""


def score_run(
    config: "RunConfig",
    vlm: "VLM",
    folder: Path,
    reporter: "Reporter",
    ranks: Ranks = ALONE,
    *,
    benchmarks: "Sequence[Benchmark] | None" = None,
    weights: Path | None = None,
    precision: str = "float32",
) -> Mapping[str, dict[str, Any]]:
    """Evaluate `vlm`, on its device, on `config.evaluation`'s benchmarks; predictions go to `folder/predictions`.

    Args:
        ranks: the processes that share the questions; each calls this with the same arguments.
        benchmarks: the config's, if they have been made already.
        weights: the file that `vlm` was loaded from, `folder`'s own if None.
        precision: "float32" or "bfloat16".

    Returns:
        result.json's `scores`, by benchmark; nothing on ranks other than the first.

    Raises:
        UserError: on every rank, what went wrong on one of them.
    """

    from ablate.core.files import known_sha256
    from ablate.evaluation.asking import score
    from ablate.evaluation.files import left_out_text
    from ablate.runs.folder import RunFiles
    from connectors import check_size

    benchmarks = benchmarks or create_benchmarks(config)
    weights = weights or RunFiles(folder).weights
    vlm.size = check_size(vlm.connector, config.connector.size)
    model_id = known_sha256(weights) + (f" at size {vlm.size}" if vlm.size is not None else "")
    asking = Asking(config, weights, RunFiles(folder).predictions, precision, model_id)
    device = next(vlm.parameters()).device
    with _together(ranks):
        if ranks.first:
            _fill_cache(config, vlm, benchmarks, device, reporter)
    with _together(ranks), _explain_full_memory(config), _progress(asking, benchmarks, reporter, ranks) as answered:
        if config.evaluation.devices > 1 and ranks.number == 1:
            _ask_together(asking, device.type, answered)
        else:
            _ask(asking, vlm, benchmarks, answered, part=ranks.rank, parts=ranks.number)
    if not ranks.first:
        return {}
    results = score(benchmarks, folder=asking.folder, limit=config.evaluation.limit)
    for name, result in results.items():
        if result.left_out:
            reporter.say(f"{name}: {left_out_text(result.left_out)} The score is partial.")
    return {name: result.to_dict() for name, result in results.items()}


@contextmanager
def _together(ranks: Ranks) -> Iterator[None]:
    """Wait for all ranks at the end; an error of one is everyone's."""
    problem = ""
    try:
        yield
    except UserError as error:
        problem = str(error)
        if ranks.number == 1:
            raise
    for each in ranks.gather(problem):
        if each:
            raise UserError(each)


@contextmanager
def _explain_full_memory(config: "RunConfig") -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"The GPU's memory is full ({reason}). The answers so far are kept: run the same command again with a "
            f"lower evaluation.batch_size (it is {config.evaluation.batch_size})."
        ) from error


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


def _ask(
    asking: Asking, vlm: "VLM", benchmarks: "Sequence[Benchmark]", answered: Answered, *, part: int = 0, parts: int = 1
) -> None:
    from ablate.evaluation.asking import Inputs, ask
    from ablate.features.filling import open_cache
    from datamodules.text.tokenizer import Tokenizer

    config = asking.config
    inputs = Inputs(
        Tokenizer.from_file(config.tokenizer),
        config.data.prompt_template,
        vlm.encoder.transforms,
        vlm.num_visual_tokens,
        open_cache(config.features, vlm.encoder) if config.may_cache_features else None,
    )
    ask(
        vlm,
        benchmarks,
        inputs,
        config.evaluation,
        folder=asking.folder,
        model_id=asking.model_id,
        precision=asking.precision,
        device=next(vlm.parameters()).device,
        part=part,
        parts=parts,
        progress=_steps(answered),
    )


# -- Features ---------------------------------------------------------------------------------------------------------


def _fill_cache(
    config: "RunConfig", vlm: "VLM", benchmarks: "Sequence[Benchmark]", device, reporter: "Reporter"
) -> None:
    """Put the test images into the shared cache, where the encoder is frozen and its features are kept."""
    from ablate.evaluation.files import LEAVE_OUT
    from ablate.features.filling import fill_cache, open_cache
    from datamodules.errors import BadSample
    from datamodules.images.feature_cache import image_items

    if not config.may_cache_features:
        return
    cache = open_cache(config.features, vlm.encoder)
    asked: dict[Path, str] = {}
    for each in benchmarks:
        for question in each.questions[: config.evaluation.limit]:
            asked.setdefault(question.image, f"{each.name}, question {question.id}")
    partial = config.evaluation.partial
    items: list[Any] = []
    for path in asked:
        try:
            items += image_items([path])
        except UserError as error:
            if not partial:
                raise UserError(f"{asked[path]}: {error} {LEAVE_OUT}") from None
    try:
        fill_cache(
            cache,
            items,
            vlm.encoder,
            config=config.features,
            device=device,
            reporter=reporter,
            on_bad_sample="skip" if partial else "error",
        )
    except BadSample as error:
        raise UserError(f"{asked[Path(error.key)]}: {error} {LEAVE_OUT}") from None


# -- Progress ---------------------------------------------------------------------------------------------------------


@contextmanager
def _progress(asking: Asking, benchmarks: "Sequence[Benchmark]", reporter: "Reporter", ranks: Ranks):
    """Show all benchmarks' questions as one phase of the run, with one ETA; yields an `Answered`.

    Of several ranks the first reports, as if the others were as far.
    """
    from ablate.evaluation.answers import PredictionFile

    asked = [benchmark.questions[: asking.config.evaluation.limit] for benchmark in benchmarks]
    known = [PredictionFile(asking.folder, benchmark).answers for benchmark in benchmarks]
    done = sum(
        question.id in answers for questions, answers in zip(asked, known, strict=True) for question in questions
    )
    total = sum(map(len, asked))
    with reporter.phase("evaluate", total, start=done) as phase:

        def answered(task: str, number: int) -> None:
            nonlocal done
            done = min(total, done + number * ranks.number)
            phase.update(done, text=task)

        yield answered


def _steps(answered: Answered) -> "Progress":
    """The runner's progress (all answers so far) as answers since the last call."""
    last: dict[str, int] = {}

    def progress(task: str, done: int, total: int) -> None:
        answered(task, done - last.get(task, done))
        last[task] = done

    return progress


# -- Several processes ------------------------------------------------------------------------------------------------


def _ask_together(asking: Asking, device: str, answered: Answered) -> None:
    """Ask in `evaluation.devices` processes, each with a model of its own.

    Raises:
        UserError: fewer GPUs than that; what a process has raised; or one has died. The answers so far are kept.
    """
    import torch

    parts = asking.config.evaluation.devices
    if device == "cuda" and parts > torch.cuda.device_count():
        raise UserError(
            f"evaluation.devices is {parts}, but there are {torch.cuda.device_count()} GPUs. Each process takes one."
        )
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    events = context.Queue()
    threads = max(1, torch.get_num_threads() // parts)
    processes = [
        context.Process(target=_ask_part, args=(asking, device, part, parts, threads, events), daemon=True)
        for part in range(parts)
    ]
    try:
        for process in processes:
            process.start()
        working = parts
        while working:
            try:
                kind, *content = events.get(timeout=1)
            except queue.Empty:
                _check_alive(processes)
                continue
            if kind == "failed":
                raise UserError(*content)
            if kind == "answered":
                answered(*content)
            working -= kind == "finished"
    finally:
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()


def _ask_part(asking: Asking, device: str, part: int, parts: int, threads: int, events) -> None:
    """One process: load the model, ask every `parts`-th window, report to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends us
    threading.Thread(target=_die_with_parent, daemon=True).start()
    import torch

    from ablate.runs.weights import load_run
    from connectors import check_size

    torch.set_num_threads(threads)
    try:
        _, vlm = load_run(asking.weights)
        vlm.size = check_size(vlm.connector, asking.config.connector.size)
        if device == "cuda":
            torch.cuda.set_device(part)  # kernels are launched on the current device, whatever their tensors' is
        vlm.to(device)
        benchmarks = create_benchmarks(asking.config)
        _ask(asking, vlm, benchmarks, lambda *step: events.put(("answered", *step)), part=part, parts=parts)
    except UserError as error:
        events.put(("failed", str(error)))
    except torch.OutOfMemoryError as error:
        events.put(
            ("failed", f"The memory of GPU {part} is full ({str(error).splitlines()[0]}): lower evaluation.batch_size.")
        )
    else:
        events.put(("finished",))


def _die_with_parent() -> None:
    """A parent that is killed cannot stop its children; they would keep writing answers."""
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


def _check_alive(processes: Sequence[BaseProcess]) -> None:
    for part, process in enumerate(processes):
        if process.exitcode:
            raise UserError(
                f"The evaluation's process {part} has died (exit code {process.exitcode}; -9: killed, perhaps for "
                "memory). The answers so far are kept: run the same command again."
            )
