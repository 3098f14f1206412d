"""Every setting is explained, and found by its name."""

import pytest

from ablate.cli import main
from ablate.core.config import flatten
from ablate.core.errors import UserError
from ablate.core.settings import settings
from ablate.runs.config import RunConfig

EVERY = settings(RunConfig)


def test_every_setting_is_there_and_explained():
    assert {each.key for each in EVERY} >= {key for key in flatten(RunConfig()) if key != "demo"}
    assert not [each.key for each in EVERY if not each.doc or not each.type]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("train.warmup_ratio", "linear warm-up"),  # a comment stands for the fields below it
        ("language.d_model", "width"),  # of a base class
        ("connector.size", "null for its largest"),
        ("demo.jpeg_quality", "int, 1 or more and at most 100"),
        ("data.custom_template.system", "before everything"),
    ],
)
def test_a_setting_is_explained(key, said, capsys):
    assert main(["config", key]) == 0
    assert said in " ".join(capsys.readouterr().out.split())


def test_a_group_has_its_settings_and_an_unknown_key_the_nearest():
    assert {each.key.split(".")[0] for each in settings(RunConfig, "features")} == {"features"}
    with pytest.raises(UserError, match=r"train\.learning_rat.*Did you mean train\.learning_rate"):
        settings(RunConfig, "train.learning_rat")
