from ablate.core.errors import UserError, nearest, unknown_name


def test_unknown_name_says_the_nearest_and_all_choices():
    error = unknown_name("connector", "msc_cms", ["mlp", "msc_csm", "msc_bsm"])
    assert isinstance(error, UserError)
    assert isinstance(error, ValueError)
    assert str(error) == 'Unknown connector "msc_cms". Did you mean msc_csm or msc_bsm? Choices: mlp, msc_bsm, msc_csm.'


def test_unknown_name_far_from_all_choices_suggests_nothing():
    assert str(unknown_name("task", "zzz", {"gqa", "pope"})) == 'Unknown task "zzz". Choices: gqa, pope.'


def test_unknown_name_with_an_empty_registry():
    assert "(none is registered)" in str(unknown_name("task", "gqa", []))


def test_nearest_ignores_case():
    assert nearest("GQA", ["gqa", "pope"]) == ["gqa"]


def test_user_errors_exit_with_two():
    assert UserError.exit_code == 2
