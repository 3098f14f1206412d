"""May two rows be compared? What each was asked, trained on and made of, and where two rows differ in it.

A row's *facts* are read from its runs' results, provenance and evaluations. Some decide whether a difference of scores
means anything (`REFUSING`): rows that differ in one of these are not compared, unless the sweep varies the settings
behind it or the user names them. Others (`MARKED`) are shown. If a fact was not recorded, as in old runs, the settings
are compared instead, and the row is marked.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ablate.core.sources import changed_sources
from ablate.runs.identity import within
from ablate.tables.results import Run

EVERY_TASK = ""
MOST_NAMED = 4  # tasks, packages or seeds in a note


class Fact(NamedTuple):
    """`settings`: the keys behind it; a sweep that varies one of them means rows to differ in this."""

    name: str
    settings: tuple[str, ...]
    recorded: Callable[..., Any]  # of (run) or (run, task); None where it was not recorded
    fallback: Callable[..., Any] | None = None  # from the settings
    shown: bool = True  # else a digest: that it differs is all there is to say


def _setting(*keys: str) -> Callable[[Run], Any]:
    def read(run: Run) -> Any:
        found = {key: value for key, value in run.settings.items() if within(key, keys)}
        return _plain(found.popitem()[1] if len(found) == 1 else found or None)

    return read


def _asked(name: str) -> Callable[[Run, str], Any]:
    def read(run: Run, task: str) -> Any:
        asked = run.asked(task)
        return _plain("null" if name in asked and asked[name] is None else asked.get(name))

    return read


def _detail(*names: str) -> Callable[[Run, str], Any]:
    def read(run: Run, task: str) -> Any:
        details = run.scores[task].get("details") or {}
        return next((details[name] for name in names if details.get(name) is not None), None)

    return read


def _provenance(*path: str) -> Callable[[Run], Any]:
    def read(run: Run) -> Any:
        found: Any = run.provenance
        for name in path:
            found = (found or {}).get(name)
        return None if found is None else _plain(found)

    return read


def _plain(value: Any) -> Any:
    """Something that can be hashed and shown."""
    return value if isinstance(value, str | int | float | bool | None) else json.dumps(value, sort_keys=True)


def _training_data(run: Run) -> Any:
    data = run.provenance.get("data")
    if not data:
        return None
    sources = [{key: source.get(key) for key in ("samples", "weight")} for source in data.get("sources", [])]
    return _plain({**{key: data.get(key) for key in ("sha256", "samples", "tokenizer")}, "sources": sources})


def _digests(entries: Any) -> Any:
    """Of files: their digests; of a file that was not there, all that is known."""
    return _plain([entry.get("sha256") or {k: v for k, v in entry.items() if v is not None} for entry in entries])


def _weights(part: str) -> Callable[[Run], Any]:
    def read(run: Run) -> Any:
        entries = (run.provenance.get("weights") or {}).get(part)
        return None if entries is None else _digests(entries)

    return read


def _start(run: Run) -> Any:
    if "start_from" not in run.provenance:
        return None
    start = run.provenance["start_from"]
    return "none" if not start else start.get("recipe") or start.get("sha256") or start.get("run")


def _questions(run: Run, task: str) -> Any:
    """Which questions were answered. In any order."""
    predictions = run.read.get(task)
    return None if predictions is None else (len(predictions.ids), _ids_digest(predictions.ids))


_known_ids: dict[int, tuple[Any, str]] = {}


def _ids_digest(ids: Any) -> str:
    """Runs that answered the same questions share one array: it is hashed once."""
    held, digest = _known_ids.get(id(ids), (None, ""))
    if held is not ids:
        digest = hashlib.sha256("\n".join(sorted(ids.tolist())).encode()).hexdigest()
        if len(_known_ids) > 1_000:
            _known_ids.clear()
        _known_ids[id(ids)] = ids, digest
    return digest


def answers_log(run: Run, task: str) -> str:
    """Whose file a task's answers are read from; "" where the model was asked here."""
    return (run.scores.get(task, {}).get("details") or {}).get("answers_from", "")


def _answers_from(run: Run, task: str) -> str:
    return f"from {answers_log(run, task) or 'Ablate'}"


def _mode(run: Run, task: str) -> Any:
    return run.asked(task).get(f"modes.{task}") or (run.asked(task).get("modes") or {}).get(task)


_DATA = ("data.shards", "data.sources", "demo")
_ENCODER = ("encoder.names", "encoder.weights")
_LANGUAGE = ("language.pretrained", "language.name")
_TEMPLATE = ("data.template", "data.custom_template")

# Of a whole row.
REFUSING = (
    Fact("training data", _DATA, _training_data, _setting(*_DATA), shown=False),
    Fact("encoder weights", _ENCODER, _weights("encoder"), _setting(*_ENCODER), shown=False),
    Fact("language model", _LANGUAGE, _weights("language"), _setting(*_LANGUAGE), shown=False),
    Fact("starting weights", ("train.start_from",), _start, _setting("train.start_from"), shown=False),
    Fact("chat template", _TEMPLATE, _setting(*_TEMPLATE)),
)
# Of a row's score on one task.
REFUSING_A_TASK = (
    Fact("answers", (), _answers_from),
    Fact("questions", ("evaluation.limit", "evaluation.root", "evaluation.partial"), _questions),
    Fact("annotations", ("evaluation.root",), _detail("answers_sha256"), shown=False),
    Fact("split", ("evaluation.root",), _detail("split")),
    Fact("scorer mode", ("evaluation.modes",), _detail("mode"), _mode),
    Fact("metric", ("evaluation.modes",), lambda run, task: run.scores[task].get("metric")),
    Fact("prompt", ("evaluation.prompt",), _detail("prompt_text", "prompt"), _asked("prompt")),
    Fact("answering", ("evaluation.answering",), _detail("answering"), _asked("answering")),
    Fact("limit", ("evaluation.limit",), _asked("limit")),
    Fact("longest answer", ("evaluation.max_new_tokens",), _asked("max_new_tokens")),
)
# What only a digest decides for certain: a row without it is marked, also where the other has none either.
_NEED_RECORD = {"training data", "encoder weights", "language model", "starting weights", "annotations"}


def _packages(run: Run) -> Any:
    return tuple(sorted((run.provenance.get("packages") or {}).items())) or None


def _hardware(run: Run) -> Any:
    machine = run.provenance.get("machine")
    return _plain([machine.get("processor"), machine.get("gpus")]) if machine else None


def _evaluation_precision(run: Run) -> Any:
    return ", ".join(sorted({str(run.asked(task).get("precision", "float32")) for task in run.scores})) or None


MARKED = (
    Fact("code revision", (), _provenance("code", "commit")),
    Fact("packages", (), _packages),
    Fact("precision", ("train.precision", "encoder.precision"), _provenance("precision"), None),
    Fact("evaluation precision", (), _evaluation_precision),
    Fact("hardware", (), _hardware),
    Fact("steps done", ("train.epochs", "train.max_steps"), lambda run: run.train.get("steps")),
)


_BY_NAME = {fact.name: fact for fact in (*REFUSING, *REFUSING_A_TASK, *MARKED)}


@dataclass(frozen=True)
class Facts:
    """What is known of a row: (fact, task or EVERY_TASK) -> the values of its runs, each once, and the stand-ins from
    the settings; None among them for a run that has none recorded."""

    recorded: Mapping[tuple[str, str], tuple[Any, ...]]
    fallback: Mapping[tuple[str, str], tuple[Any, ...]]
    varies: frozenset[str]
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Held:
    """A row compared with another.

    Attributes:
        refused: task (EVERY_TASK: all) -> what differs that makes a comparison meaningless, in words.
        marked: what else differs, in words.
        unknown: facts that were not recorded for one of the two.
        apart: tasks that are not part of the mean.
    """

    refused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    marked: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    apart: frozenset[str] = frozenset()

    def of(self, task: str) -> tuple[str, ...]:
        """Why this task is not to be compared; of the mean ("mean"): why any is not."""
        if task == "mean":
            meant = [reasons for each, reasons in self.refused.items() if each not in self.apart]
            return tuple(dict.fromkeys(reason for reasons in meant for reason in reasons))
        return (*self.refused.get(EVERY_TASK, ()), *self.refused.get(task, ()))

    def reasons(self) -> list[str]:
        """Each reason once, with the tasks that it is about."""
        tasks: dict[str, list[str]] = {}
        for task, reasons in self.refused.items():
            for reason in reasons:
                tasks.setdefault(reason, []).append(task)
        return [reason if EVERY_TASK in which else f"{reason} ({_some(which)})" for reason, which in tasks.items()]


def facts(runs: Sequence[Run], tasks: Iterable[str]) -> Facts:
    """What is known of the runs of one row, whose predictions have been read."""
    recorded, fallback = {}, {}

    def note(fact: Fact, task: str, *places: tuple[Any, ...]) -> None:
        key = fact.name, task
        recorded[key] = tuple(dict.fromkeys(fact.recorded(*place) for place in places))
        if fact.fallback:
            fallback[key] = tuple(dict.fromkeys(fact.fallback(*place) for place in places))

    for fact in (*REFUSING, *MARKED):
        note(fact, EVERY_TASK, *((run,) for run in runs))
    for task in tasks:
        if scored := [(run, task) for run in runs if task in run.scores]:
            for fact in REFUSING_A_TASK:
                note(fact, task, *scored)
    return Facts(recorded, fallback, frozenset(key for run in runs for key in run.varies), tuple(r.seed for r in runs))


def hold(mine: Facts, theirs: Facts, name: str, named: Iterable[str] = ()) -> Held:
    """Where two rows differ.

    Args:
        name: what the other row is called.
        named: settings in which the user wants rows to differ, besides those that a sweep varies.
    """
    varied = {*mine.varies, *theirs.varies, *named}
    refused: dict[str, list[str]] = {}
    marked: list[str] = []
    unknown: dict[str, None] = {}
    declared = {fact.name for fact in _BY_NAME.values() if any(_about(key, fact.settings) for key in varied)}
    for key in mine.recorded:
        fact = _BY_NAME[key[0]]
        if fact.name in declared or key not in theirs.recorded:
            continue
        text, known = _differ(fact, mine, theirs, key, name)
        one_sided = bool(_known(mine.recorded[key])) != bool(_known(theirs.recorded[key]))
        if one_sided or (not known and fact.name in _NEED_RECORD):
            unknown[fact.name] = None
        if text and fact in MARKED:
            marked.append(text)
        elif text:
            refused.setdefault(key[1], []).append(text)
    return Held({task: tuple(reasons) for task, reasons in refused.items()}, tuple(marked), tuple(unknown))


def own_differences(row: Facts) -> list[str]:
    """In what the seeds of one row differ among themselves, of what is only marked."""
    return [
        f"its seeds differ in {fact.name}: {_values(fact, known)}"
        for fact in MARKED
        if len(known := _known(row.recorded.get((fact.name, EVERY_TASK), ()))) > 1
    ]


def record_notes(run: Run) -> list[str]:
    """Notes about a single run: no digests, edited files, source that is another now, code by several
    revisions."""
    found = []
    if (run.digests is None and set(run.scores) - set(run.evaluations)) or any(
        each.digests is None for each in run.evaluations.values()
    ):
        found.append("no digest: from before results had them, so edited files would not be noticed")
    found += [f"{name} has been edited since it was written" for name in run.edited]
    if changed := changed_sources(run.provenance.get("sources")):
        found.append(f"the source of {', '.join(changed)} has changed since: `ablate sweep --rerun` trains it again")
    if run.provenance.get("continues"):
        found.append("trained in several attempts, with other code, packages or hardware (see its provenance.json)")
    if (run.provenance.get("code") or {}).get("dirty"):
        found.append("from code with uncommitted changes")
    return found


def _differ(fact: Fact, mine: Facts, theirs: Facts, key: tuple[str, str], name: str) -> tuple[str, bool]:
    """(what differs, in words; whether both are recorded)."""
    here, there = mine.recorded[key], theirs.recorded[key]
    known = None not in here and None not in there
    if not known and fact.fallback:
        here, there = mine.fallback[key], theirs.fallback[key]
    elif not known:
        here, there = _known(here), _known(there)
        if not here or not there:
            return "", False
    if set(here) == set(there) and len(set(here)) == 1:
        return "", known
    if fact in MARKED and set(here) == set(there):
        return "", known  # each has a note of its own
    for values, whose in ((here, "its own seeds"), (there, f"the seeds of {name}")):
        if len(set(values)) > 1 and fact not in MARKED:
            return f"{whose} differ in {fact.name}{_quoted(fact, values)}", known
    if fact.name == "packages":
        return f"packages: {_packages_differ(here, there)}", known
    if not fact.shown:
        return f"other {fact.name}{'' if known else f' by the settings ({_some(fact.settings)})'}", known
    return f"{fact.name} {_values(fact, here)} instead of {_values(fact, there)}", known


def _packages_differ(here: Sequence[Any], there: Sequence[Any]) -> str:
    mine, other = dict(here[0]), dict(there[0])
    names = [name for name in sorted({*mine, *other}) if mine.get(name) != other.get(name)]
    return _some([f"{name} {mine.get(name)} instead of {other.get(name)}" for name in names])


def _known(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(value for value in values if value is not None)


def _quoted(fact: Fact, values: Sequence[Any]) -> str:
    return f": {_values(fact, values)}" if fact.shown else ""


def _values(fact: Fact, values: Sequence[Any]) -> str:
    return " and ".join(dict.fromkeys(_shown(fact, value) for value in values))


def _shown(fact: Fact, value: Any) -> str:
    if fact.name == "questions":
        return f"{value[0]:,} ({value[1][:6]})"
    if fact.name == "packages":
        return ", ".join(f"{name} {version}" for name, version in value)
    if fact.name == "code revision":
        return str(value)[:8]
    text = "null" if value is None else " ".join(str(value).split())
    return f'"{text[:60]}…"' if len(text) > 60 else text


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _about(key: str, settings: Iterable[str]) -> bool:
    """Whether a varied key is one of these settings, part of one, or a group that contains one."""
    return any(key == each or key.startswith(f"{each}.") or each.startswith(f"{key}.") for each in settings)
