"""Every number among a run's settings has a range, and what a run cannot use is refused when it is read."""

import dataclasses
import json
import re
import typing
from collections.abc import Iterator
from typing import Annotated, Any

import pytest

import connectors
from ablate.core.config import flatten, load
from ablate.core.errors import UserError
from ablate.core.fields import Range
from ablate.pipeline.train import train
from ablate.runs.config import RunConfig


def numbers(hint: Any, key: str, ranges: tuple[Range, ...] = ()) -> Iterator[tuple[str, type, tuple[Range, ...]]]:
    """Every int and float within a type: its key, and the ranges that are declared for it."""
    if typing.get_origin(hint) is Annotated:
        kind, *marks = typing.get_args(hint)
        yield from numbers(kind, key, tuple(mark for mark in marks if isinstance(mark, Range)))
    elif hint in (int, float):
        yield key, hint, ranges
    elif dataclasses.is_dataclass(hint):
        for name, inner in typing.get_type_hints(hint, include_extras=True).items():
            yield from numbers(inner, f"{key}.{name}" if key else name)
    elif typing.get_origin(hint) is not typing.Literal:
        for inner in typing.get_args(hint):
            yield from numbers(inner, key)


NUMBERS = sorted(set(numbers(RunConfig, "")), key=str)
SIMPLE = sorted({key for key, _, _ in NUMBERS if key.count(".") < 2 and key.partition(".")[0] not in ("encoder",)})


def test_there_are_numbers():
    assert {"seed", "train.betas", "language.ssm_cfg.chunk_size", "data.sources.weight"} <= {key for key, *_ in NUMBERS}
    assert {"encoder.preprocessing.std", "evaluation.limit", "demo.seed"} <= {key for key, *_ in NUMBERS}


@pytest.mark.parametrize(("key", "kind", "ranges"), NUMBERS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_number_declares_its_range(key, kind, ranges):
    assert ranges, f"{key}: say which numbers it takes, as Annotated[{kind.__name__}, Range(...)]"


@pytest.mark.parametrize("key", SIMPLE)
@pytest.mark.parametrize("value", ["inf", "-inf", "nan", ".nan", "1e999", "9" * 400, "-" + "9" * 400])
def test_no_setting_is_infinite_or_beyond_64_bits(key, value):
    given = f"[{value}, {value}]" if key == "train.betas" else value
    with pytest.raises(UserError, match=re.escape(key)):
        load(RunConfig, overrides=[f"{key}={given}"])


@pytest.mark.parametrize(
    "override",
    [
        "train.clip_norm=-1",
        "train.divergence_factor=nan",
        "train.warmup_ratio=1.5",
        "train.betas=[0.9, 1]",
        "train.betas=[-0.1, 0.9]",
        "train.epsilon=0",
        "seed=-1",
        "seed=100000000000000000000",
        "seed=1.5",
        "encoder.preprocessing=[{std: [0, 0, 0]}]",
        "encoder.preprocessing=[{mean: [nan, 0, 0]}]",
        "encoder.preprocessing=[{crop_pct: -1}]",
        "encoder.image_size=[-1]",
        "encoder.preprocessing=[{crop_pct: 1e-9}]",
        "encoder.preprocessing=[{std: [1e-320, 1, 1]}]",
        "encoder.preprocessing=[{mean: [1e308, 0, 0]}]",
        "train.epsilon=1e-320",
        "language.ssm_cfg.A_init_range=[1e308, 1e308]",
        "language.ssm_cfg.chunk_size=0",
        "language.ssm_cfg.A_init_range=[0, 1]",
        "language.ssm_cfg.dt_min=0",
        "language.n_layer=0",
        "language.vocab_size=0",
        "data.num_workers=-1",
        "data.batch_size=0",
        "data.max_bad_share=1.01",
        "data.sources=[{shards: [a], weight: inf}]",
        "evaluation.batch_size=0",
        "features.runs=0",
        "demo.jpeg_quality=101",
        "demo.unseen_share=nan",
    ],
)
def test_out_of_range_names_the_key(override):
    with pytest.raises(UserError) as error:
        load(RunConfig, overrides=[override])
    assert override.partition("=")[0] in str(error.value)
    assert "expected" in str(error.value)


SIZES = [
    f"{group}.{name}"
    for group, names in {
        "language": ["d_model", "n_layer", "vocab_size", "pad_vocab_size_multiple"],
        "language.ssm_cfg": ["d_state", "d_conv", "expand", "headdim", "ngroups"],
        "connector.name=msc_csm connector.fields": ["depth", "d_state", "d_conv", "expand", "headdim"],
        "language.name=mamba1 language.fields": ["d_state", "d_conv", "expand", "dt_rank"],
        "language.name=decoder language.fields": ["heads", "kv_heads", "head_dim", "d_intermediate"],
    }.items()
    for name in names
]


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("value", [2**63 - 1, 10**10])
def test_a_size_that_no_memory_holds_is_refused_when_it_is_read(key, value):
    with pytest.raises(UserError, match=rf"{key.rpartition('.')[2]}.*expected"):
        load(RunConfig, overrides=f"{key}={value}".split())


@pytest.mark.parametrize(
    ("given", "near"),
    [("interpolation: bicubik", "Did you mean bicubic"), ("crop_mode: centre", "Did you mean center")],
)
def test_words_of_the_preprocessing_are_known_ones(given, near):
    with pytest.raises(UserError, match=near):
        load(RunConfig, overrides=[f"encoder.preprocessing=[{{{given}}}]"])


@pytest.mark.parametrize("name", connectors.names())
def test_numbers_of_connectors_are_finite(name):
    for key, (hint, _) in connectors.signature(name).hints.items():
        for _, kind, _ in set(numbers(hint, key)):
            for value in ["inf", "nan", "1e999"] if kind is float else ["1e3", "1.5", "010"]:
                with pytest.raises(UserError, match=key):
                    load(RunConfig, overrides=[f"connector.name={name}", f"connector.fields.{key}={value}"])


def test_fields_of_connectors_are_read_as_their_types():
    config = load(
        RunConfig,
        overrides=[
            "connector.name=msc_csm",
            "connector.fields={drop_path: 1e-1, depth: 3, path: snake, scans: [rows, columns]}",
            "connector.shared.backend=auto",
            "connector.shared.chunk_size=None",
        ],
    )
    assert config.connector.fields == {"drop_path": 0.1, "depth": 3, "path": "snake", "scans": ["rows", "columns"]}
    assert config.connector.shared == {"backend": "auto", "chunk_size": None}
    assert [type(value) for value in config.connector.fields.values()] == [float, int, str, list]
    json.dumps(flatten(config), allow_nan=False)


@pytest.mark.parametrize("forgotten", ["encoder.names", "tokenizer", "data.shards", "evaluation.root"])
def test_nothing_defaults_to_the_demo(forgotten, tmp_path):
    """A forgotten setting is named before anything is built or written."""
    given = {
        "encoder.names": "[test_vit]",
        "tokenizer": "x.json",
        "data.shards": "[x]",
        "evaluation.root": "x",
        "evaluation.benchmarks": "[pope]",
        "root": str(tmp_path / "runs"),
    }
    overrides = [f"{key}={value}" for key, value in given.items() if key != forgotten]
    with pytest.raises(UserError, match=rf"^{re.escape(forgotten)} is (not set|empty)"):
        train(load(RunConfig, overrides=overrides))
    assert not (tmp_path / "runs").exists()
