"""What `ablate eval` writes besides predictions and the failures' page: submissions, and scores with their provenance.

Nothing in these files says when, how long or by how many processes: one model and one set of questions give the same
bytes, also after a kill.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.runs.folder import RunFiles, prediction_name

if TYPE_CHECKING:
    from ablate.evaluation.benchmarks import Answer, Benchmark
    from ablate.runs.config import RunConfig
    from ablate.runs.folder import Trained


def write_evaluation(
    out: Path,
    config: "RunConfig",
    trained: "Trained",
    benchmarks: "Sequence[Benchmark]",
    scores: Mapping[str, Any],
    *,
    device: str,
    precision: str,
    visual_tokens: int,
) -> dict[str, Path]:
    """Write everything into `out`, which already has the predictions; returns the paths by name.

    Args:
        config: the run's, with the evaluation's settings.
        visual_tokens: of an image, as the model was read.
    """
    from ablate.core.files import write_json
    from ablate.core.sources import sealed
    from ablate.evaluation.answers import PredictionFile
    from ablate.evaluation.submissions import write_submission

    files = RunFiles(out)
    submissions = out / "submissions"
    for benchmark in benchmarks:
        answers = PredictionFile(files.predictions, benchmark).answers
        questions = [question for question in benchmark.questions if question.id in answers]
        write_submission(submissions, benchmark, questions, answers)
    header = provenance(config, trained, benchmarks, device=device, precision=precision)
    header["read"] = {"size": config.connector.size, "visual_tokens": visual_tokens}
    kept = [prediction_name(benchmark.name) for benchmark in benchmarks]
    write_json(files.scores, sealed({"provenance": header, "scores": dict(scores)}, out, kept))
    return {"predictions": files.predictions, "submissions": submissions, "scores": files.scores}


def write_read_answers(run: Path, benchmark: "Benchmark", answers: "Mapping[str, Answer]", file: Path) -> Path:
    """Store answers of a run's model that another program collected, next to the run's own scores.

    What it was asked, and in which precision, the file does not say; the table shows these as unknown.

    Args:
        run: the run's folder; only the user states that the answers are its model's.
        answers: by question id, read from `file`.

    Returns:
        the folder within the run's that has the scores and predictions; written once for each file.
    """
    import shutil

    from ablate.core import config as config_io
    from ablate.core.files import file_sha256, known_sha256, write_json
    from ablate.core.sources import file_entry, sealed
    from ablate.evaluation.answers import PredictionFile
    from ablate.evaluation.asking import summarise
    from ablate.evaluation.official import source_of
    from ablate.runs.config import RunConfig
    from ablate.runs.folder import find_trained
    from ablate.runs.identity import run_digest
    from ablate.runs.provenance import code_revision, package_versions

    trained = find_trained(run)
    out = trained.run.folder / f"read-{benchmark.name}-{file_sha256(file)[:8]}"
    shutil.rmtree(out, ignore_errors=True)
    questions = benchmark.reweighted([question for question in benchmark.questions if question.id in answers])
    files = RunFiles(out)
    predictions = PredictionFile(files.predictions, benchmark)
    predictions.append((question, answers[question.id]) for question in questions)
    predictions.finish(questions)
    # The same of all such files: those of two seeds of a row may be named differently.
    unknown = "unknown (answers read from a file)"
    result = summarise(benchmark, questions, answers).to_dict()
    result["details"] |= {"prompt": unknown, "prompt_text": unknown, "answers_from": source_of(benchmark, file)}
    del result["details"]["questions_sha256"]  # as they were asked, which is not known
    config = config_io.load(RunConfig, [trained.run.config])
    header = {
        "run": trained.run.folder.resolve().name,
        "connector": config.connector.name,
        "seed": config.seed,
        "blind": config.blind,
        "weights": {"file": trained.weights.name, "sha256": known_sha256(trained.weights)},
        "config_sha256": run_digest(config),
        "config": dataclasses.asdict(config),
        "evaluation": {"modes": {benchmark.name: benchmark.mode}, "prompt": unknown, "precision": "unknown"},
        "answers_read_from": file_entry(file),
        "code": code_revision(),
        "packages": package_versions(),
    }
    kept = [prediction_name(benchmark.name)]
    write_json(files.scores, sealed({"provenance": header, "scores": {benchmark.name: result}}, out, kept))
    return out


def folder_of_run(run: Path, benchmark: str) -> Path:
    """Where the run's own evaluation looks for a benchmark's files."""
    from ablate.core import config as config_io
    from ablate.evaluation.benchmarks import folder_of
    from ablate.runs.config import RunConfig
    from ablate.runs.folder import find_trained

    config = config_io.load(RunConfig, [find_trained(run).run.config])
    return folder_of(benchmark, config.evaluation.root)


def provenance(
    config: "RunConfig", trained: "Trained", benchmarks: "Sequence[Benchmark]", *, device: str, precision: str
) -> dict[str, Any]:
    """Where the scores come from. Contains no secret, user name, host name or time."""
    from ablate.core import config as config_io
    from ablate.core.files import known_sha256
    from ablate.runs.config import RunConfig
    from ablate.runs.identity import run_digest
    from ablate.runs.provenance import code_revision, machine, package_versions
    from datamodules.text.tokenizer import Tokenizer

    trained_config = config_io.load(RunConfig, [trained.run.config])
    tokenizer = Tokenizer.from_file(config.tokenizer)
    settings = dataclasses.asdict(config.evaluation)
    del settings["devices"]  # changes nothing
    return {
        "run": trained.run.folder.resolve().name,
        "connector": config.connector.name,
        "seed": config.seed,
        "blind": config.blind,
        "weights": {"file": trained.weights.name, "sha256": known_sha256(trained.weights)},
        "config_sha256": run_digest(trained_config),
        "config": dataclasses.asdict(trained_config),
        "evaluation": settings | {"device": device, "precision": precision},
        "template": dataclasses.asdict(config.data.prompt_template),
        "tokenizer_sha256": tokenizer.digest,
        "benchmarks": {benchmark.name: _asked(benchmark, config, tokenizer) for benchmark in benchmarks},
        "code": code_revision(),
        "packages": package_versions(),
        # Not the number of threads, which the processes of one evaluation divide among them.
        "machine": {name: value for name, value in machine().items() if name not in ("cores", "threads")},
    }


def _asked(benchmark: "Benchmark", config: "RunConfig", tokenizer: Any) -> dict[str, Any]:
    """What was asked: hashes of all questions and of their answers, and the first prompt in full."""
    from ablate.evaluation.answers import asked_of
    from datamodules import IMAGE_TOKEN_ID
    from datamodules.text.conversation import IMAGE_MARKER, ConversationEncoder

    # The image as one token, which no text has: what stands before and after it is the prompt as the model reads it.
    encoder = ConversationEncoder(tokenizer, config.data.prompt_template, 1)
    ids = encoder.prompt_ids(benchmark.questions[0].body, has_image=True)
    place = next(place for place, token in enumerate(ids) if token == IMAGE_TOKEN_ID)
    prompt = f"{tokenizer.decode(ids[:place])}{IMAGE_MARKER}{tokenizer.decode(ids[place + 1 :])}"
    return {**asked_of(benchmark), **benchmark.digests, "first_prompt": prompt}
