"""The scorers against scripts written a second time from their descriptions, plainly and without our code.

The descriptions are those of the official releases: VQA API (2016, 2021), MMF's EvalAI processor, VizWiz API, POPE's
`evaluate.py`, and lmms-eval and vlm-evaluation where they differ. What these scripts do and ours do must be equal for
any text, marks and white space and unusual digits included.
"""

import re
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ablate.evaluation import benchmarks
from ablate.evaluation.benchmarks import Answer, Benchmark, Question

# The first example of a test pays for imports.
many, some = settings(deadline=None, max_examples=100), settings(deadline=None, max_examples=50)

# -- The scripts ------------------------------------------------------------------------------------------------------

MARKS = [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"]
NUMBER_WORDS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
# Key, value, key, value, ...
WITH_ONE_APOSTROPHE = """
    aint ain't arent aren't cant can't couldve could've couldnt couldn't didnt didn't doesnt doesn't dont don't
    hadnt hadn't hasnt hasn't havent haven't hed he'd hes he's howd how'd howll how'll hows how's isnt isn't itd
    it'd itll it'll maam ma'am mightnt mightn't mightve might've mustnt mustn't mustve must've neednt needn't notve
    not've oclock o'clock oughtnt oughtn't shant shan't shouldve should've shouldnt shouldn't somebodyll somebody'll
    somebodys somebody's someoned someone'd someonell someone'll someones someone's somethingd something'd
    somethingll something'll thats that's thered there'd therere there're theres there's theyd they'd theyll they'll
    theyre they're theyve they've twas 'twas wasnt wasn't weve we've werent weren't whatll what'll whatre what're
    whats what's whatve what've whens when's whered where'd wheres where's whereve where've whod who'd wholl who'll
    whos who's whove who've whyll why'll whyre why're whys why's wont won't wouldve would've wouldnt wouldn't yall
    y'all youd you'd youll you'll youre you're youve you've Im I'm Ive I've
"""
BASES = """
    couldn't hadn't mightn't shouldn't wouldn't he'd I'd it'd she'd somebody'd someone'd something'd there'd they'd we'd
    who'd you'd
"""
_words = WITH_ONE_APOSTROPHE.split()
CONTRACTIONS = dict(zip(_words[::2], _words[1::2], strict=True))
for _base in BASES.split():
    CONTRACTIONS[_base.replace("'", "") + "'ve"] = _base + "'ve"
    CONTRACTIONS[_base + "ve"] = _base + "'ve"
CONTRACTIONS |= {"yall'll": "y'all'll", "y'allll": "y'all'll"}
CONTRACTIONS |= dict.fromkeys(["yall'd've", "y'alld've", "y'all'dve"], "y'all'd've")
CONTRACTIONS |= dict.fromkeys(["ow's'at", "'ows'at", "'ow'sat"], "'ow's'at")
CONTRACTIONS |= {"let's": "let's", "she's": "she's", "somebody'd": "somebodyd"}


def punctuation(text: str, comma: str = r"\d,\d") -> str:
    out = text
    for mark in MARKS:
        if mark + " " in text or " " + mark in text or re.search(comma, text) is not None:
            out = out.replace(mark, "")
        else:
            out = out.replace(mark, " ")
    return re.sub(r"(?!<=\d)(\.)(?!\d)", "", out, count=32)


def digit_article(text: str, contractions: dict[str, str] = CONTRACTIONS) -> str:
    words = []
    for word in text.lower().split():
        word = NUMBER_WORDS.get(word, word)
        if word not in ["a", "an", "the"]:
            words.append(word)
    return " ".join(contractions.get(word, word) for word in words)


def clean(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def evalai(text: str) -> str:
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return digit_article(punctuation(clean(text)))


def soft_accuracy(prediction: str, truths: list[str]) -> float:
    accuracies = []
    for left_out in range(10):
        others = [truth for place, truth in enumerate(truths) if place != left_out]
        accuracies.append(min(1.0, len([truth for truth in others if truth == prediction]) / 3))
    return sum(accuracies) / 10


def vqav2_2021(prediction: str, truths: list[str]) -> float:
    truths, prediction = [clean(truth) for truth in truths], clean(prediction)
    if len(set(truths)) > 1:
        truths = [digit_article(punctuation(truth)) for truth in truths]
        prediction = digit_article(punctuation(prediction))
    return soft_accuracy(prediction, truths)


def vqav2_2016(prediction: str, truths: list[str]) -> float:
    if len(set(truths)) > 1:
        truths = [punctuation(truth) for truth in truths]
    return soft_accuracy(digit_article(punctuation(clean(prediction))), truths)


def vqav2_vlm_evaluation(prediction: str, truths: list[str]) -> float:
    return soft_accuracy(digit_article(punctuation(clean(prediction))), [punctuation(truth) for truth in truths])


def vqav2_lmms_eval(prediction: str, truths: list[str]) -> float:
    commas = r"(?<=\d)(\,)+(?=\d)"  # lmms-eval's own
    return soft_accuracy(
        digit_article(punctuation(clean(prediction), commas)),
        [digit_article(punctuation(clean(truth), commas)) for truth in truths],
    )


def vqav2_lmms_eval_2025_07(prediction: str, truths: list[str]) -> float:
    commas = r"(?<=\d)(\,)+(?=\d)"
    truths, prediction = [clean(truth) for truth in truths], clean(prediction)
    if len(set(truths)) > 1:
        truths = [digit_article(punctuation(truth, commas)) for truth in truths]
        prediction = digit_article(punctuation(prediction, commas))
    return soft_accuracy(prediction, truths)


def vqav2_lmms_eval_2024(prediction: str, truths: list[str]) -> float:
    commas = r"(?<=\d)(\,)+(?=\d)"
    truths, prediction = [clean(truth) for truth in truths], evalai(prediction)
    if len(set(truths)) > 1:
        truths = [digit_article(punctuation(truth, commas)) for truth in truths]
        prediction = digit_article(punctuation(prediction, commas))
    return soft_accuracy(prediction, truths)


def textvqa(prediction: str, truths: list[str]) -> float:
    return soft_accuracy(evalai(prediction), [evalai(truth) for truth in truths])


# VizWiz's own copies of the table: key by key, from how they are described.
def vizwiz_contractions(mark: str) -> dict[str, str]:
    table = {}
    for key, value in CONTRACTIONS.items():
        if key in ("aint", "arent", "cant", "couldve", "couldnt", "weve", "wheres", "whove"):
            table[key] = value
        elif key in ("couldn'tve", "hadn'tve"):
            table[key] = mark.join(value.split("'"))
        else:
            table[mark.join(key.split("'"))] = mark.join(value.split("'"))
    return table


VIZWIZ = {"official": vizwiz_contractions("\u2019"), "vlm_evaluation": vizwiz_contractions("\u0060")}


def vizwiz_rewritten(mode: str, text: str) -> str:
    return evalai(text) if mode == "lmms_eval" else digit_article(punctuation(clean(text)), VIZWIZ[mode])


def vizwiz(prediction: str, truths: list[str]) -> float:
    return soft_accuracy(vizwiz_rewritten("official", prediction), truths)


def vizwiz_vlm_evaluation(prediction: str, truths: list[str]) -> float:
    return soft_accuracy(vizwiz_rewritten("vlm_evaluation", prediction), truths)


def without_punctuation(text: str) -> str:
    return "".join(character for character in text if character not in string.punctuation)


GQA = {
    "official": lambda said, truth: said == truth,
    "llava": lambda said, truth: said.rstrip(".").lower() == truth,
    "vlm_evaluation": lambda said, truth: without_punctuation(said).lower() == truth,
    "lmms_eval": lambda said, truth: without_punctuation(said).lower() == without_punctuation(truth).lower(),
}


def pope_reading(text: str) -> str:
    if text.find(".") != -1:
        text = text.split(".")[0]
    words = text.replace(",", "").split(" ")
    return "no" if "No" in words or "not" in words or "no" in words else "yes"


SOFT = {
    ("vqav2", "official_2021"): vqav2_2021,
    ("vqav2", "official_2016"): vqav2_2016,
    ("vqav2", "vlm_evaluation"): vqav2_vlm_evaluation,
    ("vqav2", "lmms_eval"): vqav2_lmms_eval,
    ("vqav2", "lmms_eval_2025_07"): vqav2_lmms_eval_2025_07,
    ("vqav2", "lmms_eval_2024"): vqav2_lmms_eval_2024,
    ("textvqa", "official"): textvqa,
    ("textvqa", "lmms_eval"): textvqa,
    ("vizwiz", "official"): vizwiz,
    ("vizwiz", "vlm_evaluation"): vizwiz_vlm_evaluation,
    ("vizwiz", "lmms_eval"): textvqa,
}

# -- Texts ------------------------------------------------------------------------------------------------------------

ODD_WORDS = """
    a an the A The I'm dog Dog dogs' men's T-shirt a/c 1,000 1,,000 3.5 .5 5. p.m. U.S.A. yes Yes no, not No ? - $5 #1 %
    unanswerable Unanswerable. un-answerable ٤,٤ ½ İ ß it`s ''
"""
WORDS = st.sampled_from([*CONTRACTIONS, *NUMBER_WORDS, *ODD_WORDS.split(), "\u00a0", "\u2028", "." * 33])
LOOSE = st.text(alphabet=st.sampled_from(".,-/'\"`;:!?@_+=<>(){}[]\\ \n\t\r\x0b\u00a0aAtheInos0123٤²ß"), max_size=12)
SEPARATORS = st.sampled_from([" ", " ", " ", "", "  ", "\n", "\t", "-", ", ", ",", ".", "/"])


@st.composite
def texts(draw: st.DrawFn) -> str:
    parts = draw(st.lists(WORDS | LOOSE, min_size=0, max_size=4))
    text = ""
    for part in parts:
        text += (draw(SEPARATORS) if text else "") + part
    return text


CHANGES = st.sampled_from(
    [
        str,
        str.upper,
        str.capitalize,
        str.strip,
        lambda text: f"{text}.",
        lambda text: f" {text}\n",
        lambda text: f"the {text}",
        lambda text: text.replace("'", ""),
        lambda text: text.replace(",", ""),
        lambda text: text.replace("-", " "),
    ]
)


@st.composite
def questions(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A prediction and ten answers that have something to do with each other."""
    pool = draw(st.lists(texts(), min_size=1, max_size=3))
    variants = [draw(CHANGES)(text) for text in pool for _ in range(2)] + pool
    truths = draw(st.lists(st.sampled_from(variants), min_size=10, max_size=10))
    if draw(st.booleans()):
        truths = [truths[0]] * 10
    return draw(st.sampled_from([*variants, draw(texts())])), truths


def judged(name: str, mode: str, prediction: str, truths: list[str], **options: str) -> float:
    benchmark = benchmarks.create(name, "unused", mode=mode, **options)
    return benchmark.judge(Question("1", Path("x"), "x", "?", "?", tuple(truths)), Answer(prediction)).score


@pytest.mark.parametrize(("name", "mode"), SOFT)
@many
@given(asked=questions())
@example(asked=("." * 40 + "x", ["x"] * 9 + ["y"]))
@example(asked=("." * 32 + "x", ["x"] * 9 + ["y"]))
@example(asked=("." * 33 + "x", ["." * 33 + "x"] * 9 + ["y"]))
@example(asked=("Yes", ["yes"] * 10))
@example(asked=("yes", ["yes "] * 10))
@example(asked=("yes", ["yes "] * 9 + ["yes"]))
@example(asked=("yes", ["yes\n"] * 5 + ["\tyes"] * 5))
@example(asked=("T-shirt.", ["t-shirt"] * 10))
@example(asked=("t-shirt", ["T-Shirt"] * 5 + ["t-shirt"] * 5))
@example(asked=("None", ["0"] * 2 + ["none"] * 2 + ["1"] * 6))
@example(asked=("A", ["a"] * 5 + [""] * 5))
@example(asked=("", [""] * 3 + ["the"] * 3 + ["dog"] * 4))
@example(asked=("1,,000 a-b", ["1000 ab"] * 5 + ["1 000 a b"] * 5))
@example(asked=("men's", ["men 's"] * 5 + ["mens"] * 5))
@example(asked=("Unanswerable", ["unanswerable"] * 3 + ["Unanswerable"] * 7))
def test_soft_accuracy(name: str, mode: str, asked: tuple[str, list[str]]) -> None:
    prediction, truths = asked
    assert judged(name, mode, prediction, truths) == pytest.approx(SOFT[name, mode](prediction, truths), abs=1e-9)


@pytest.mark.parametrize("mode", GQA)
@many
@given(asked=questions())
@example(asked=("T-shirt", ["t-shirt"]))
@example(asked=("Yes!", ["yes"]))
@example(asked=("yes...", ["yes"]))
@example(asked=("yes. ", ["yes"]))
@example(asked=("YES", ["Yes"]))
def test_gqa(mode: str, asked: tuple[str, list[str]]) -> None:
    prediction, (truth, *_) = asked
    assert judged("gqa", mode, prediction, [truth]) == float(GQA[mode](prediction, truth))


@many
@given(texts(), st.sampled_from(["yes", "no"]))
@example("NO", "no")
@example("No!", "no")
@example("isn't", "no")
@example("cannot", "no")
@example("None", "no")
@example("", "yes")
@example("Yes, not sure", "no")
@example("no\tway", "yes")
@example("It is. No.", "yes")
@example("n,o", "no")
@example(" no", "no")
@example("No.", "no")
def test_pope(text: str, label: str) -> None:
    assert judged("pope", "official", text, [label], answering="generate") == float(pope_reading(text) == label)


# -- Figures ----------------------------------------------------------------------------------------------------------


def pairs(scores: list[float], truths: list[bool]) -> float:
    """ROC-AUC: how often a positive outranks a negative, ties by half."""
    wins = [
        (a > b) + 0.5 * (a == b)
        for a, is_a in zip(scores, truths, strict=True)
        if is_a
        for b, is_b in zip(scores, truths, strict=True)
        if not is_b
    ]
    return sum(wins) / len(wins)


def average_precision(scores: list[float], truths: list[bool]) -> float:
    """The precision at every threshold, weighted by the recall that it adds."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = [truth for score, truth in zip(scores, truths, strict=True) if score >= threshold]
        recall = sum(chosen) / sum(truths)
        total += (recall - before) * sum(chosen) / len(chosen)
        before = recall
    return total


def figures(benchmark: Benchmark, asked: list[Question], answers: list[Answer]) -> dict:
    return benchmark.figures(benchmark.judge_all(benchmark.reweighted(asked), answers))


PROBABILITIES = st.sampled_from([0.0, 0.1, 0.49, 0.5, 0.51, 0.9, 1.0]) | st.floats(0, 1)


@some
@given(st.lists(st.tuples(PROBABILITIES, st.booleans(), st.sampled_from(["on", "under"])), min_size=1, max_size=12))
def test_vsr_figures(rows: list[tuple[float, bool, str]]) -> None:
    asked = [
        Question(str(row), Path("x"), str(row), "?", "?", ("True" if truth else "False",), {"relation": relation})
        for row, (_, truth, relation) in enumerate(rows)
    ]
    found = figures(benchmarks.create("vsr", "unused"), asked, [Answer(probability=p) for p, *_ in rows])
    right = [(p >= 0.5) == truth for p, truth, _ in rows]  # a tie says True
    assert found["accuracy"] == pytest.approx(100 * np.mean(right))
    for relation in {row[2] for row in rows}:
        here = [hit for hit, row in zip(right, rows, strict=True) if row[2] == relation]
        assert found["relation"][relation] == pytest.approx(100 * np.mean(here))
    scores, truths = [p for p, *_ in rows], [truth for _, truth, _ in rows]
    if 0 < sum(truths) < len(truths):
        assert found["roc_auc"] == pytest.approx(100 * pairs(scores, truths))
        assert found["ap"] == pytest.approx(100 * average_precision(scores, truths))


@given(
    st.lists(
        st.tuples(st.sampled_from(["random", "popular", "adversarial"]), st.booleans(), texts()),
        min_size=1,
        max_size=12,
    )
)
def test_pope_figures(rows: list[tuple[str, bool, str]]) -> None:
    asked = [
        Question(str(row), Path("x"), str(row), "?", "?", ("yes" if truth else "no",), {"split": split})
        for row, (split, truth, _) in enumerate(rows)
    ]
    benchmark = benchmarks.create("pope", "unused", answering="generate")
    found = figures(benchmark, asked, [Answer(text) for *_, text in rows])
    expected: dict[str, list[float]] = {}
    for split in dict.fromkeys(row[0] for row in rows):
        here = [(truth, pope_reading(text) == "yes") for each, truth, text in rows if each == split]
        tp, fp = here.count((True, True)), here.count((False, True))
        fn, tn = here.count((True, False)), here.count((False, False))
        precision = tp / (tp + fp) if tp + fp else 0
        recall = tp / (tp + fn) if tp + fn else 0
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0
        expected[split] = [100 * x for x in ((tp + tn) / len(here), precision, recall, f1, (tp + fp) / len(here))]
    names = ["accuracy", "precision", "recall", "f1", "yes_ratio"]
    for split, values in expected.items():
        assert [found[split][name] for name in names] == pytest.approx(values)
    assert [found["mean"][name] for name in names] == pytest.approx(np.mean(list(expected.values()), axis=0).tolist())
    assert found["overall"] == pytest.approx(found["mean"]["accuracy"])


@pytest.mark.parametrize("key", sorted(CONTRACTIONS))
@pytest.mark.parametrize("apostrophe", ["'", "\u2019", "`"])
@pytest.mark.parametrize("mode", ["official", "vlm_evaluation"])
def test_vizwiz_has_contractions_of_its_own(mode: str, apostrophe: str, key: str) -> None:
    said = key.replace("'", apostrophe)
    for truth in (CONTRACTIONS[key].lower(), said.lower(), vizwiz_rewritten(mode, said)):
        expected = float(vizwiz_rewritten(mode, said) == truth)
        assert judged("vizwiz", mode, said, [truth] * 10) == expected


@pytest.mark.parametrize(
    ("said", "truth", "official", "vlm_evaluation"),
    [
        ("dont", "don't", 0, 0),
        ("dont", "dont", 0, 0),
        ("dont", "don\u2019t", 1, 0),
        ("dont", "don`t", 0, 1),
        ("don't know", "don't know", 1, 1),
        ("cant", "can't", 1, 1),
        ("somebody'd", "somebody'd", 1, 1),
        ("somebody\u2019d", "somebodyd", 1, 0),
        ("couldn'tve", "couldn\u2019t\u2019ve", 1, 0),
        ("couldn'tve", "couldn`t`ve", 0, 1),
    ],
)
def test_vizwiz_contractions_to_the_letter(said: str, truth: str, official: int, vlm_evaluation: int) -> None:
    assert judged("vizwiz", "official", said, [truth] * 10) == official
    assert judged("vizwiz", "vlm_evaluation", said, [truth] * 10) == vlm_evaluation


@pytest.mark.parametrize("mode", ["official", "vlm_evaluation", "lmms_eval"])
@some
@given(rows=st.lists(st.tuples(st.booleans(), questions()), min_size=1, max_size=8))
def test_vizwiz_figures(mode: str, rows: list[tuple[bool, tuple[str, list[str]]]]) -> None:
    kinds = ["answerable" if yes else "unanswerable" for yes, _ in rows]
    asked = [
        Question(str(row), Path("x"), str(row), "?", "?", tuple(truths), {"answerable": kind})
        for row, (kind, (_, (_, truths))) in enumerate(zip(kinds, rows, strict=True))
    ]
    benchmark = benchmarks.create("vizwiz", "unused", mode=mode)
    found = figures(benchmark, asked, [Answer(said) for _, (said, _) in rows])
    scores = [SOFT["vizwiz", mode](*question) for _, question in rows]
    positive = [not yes for yes, _ in rows]
    said = [vizwiz_rewritten(mode, text) == "unanswerable" for _, (text, _) in rows]
    assert found["overall"] == pytest.approx(100 * np.mean(scores))
    for name, wanted in (("answerable", False), ("unanswerable", True)):
        here = [score for score, each in zip(scores, positive, strict=True) if each == wanted]
        assert found.get(name, 0) == pytest.approx(100 * np.mean(here) if here else 0)
    hits = sum(a and b for a, b in zip(positive, said, strict=True))
    assert found["f1"] == pytest.approx(200 * hits / (sum(positive) + sum(said)) if hits else 0)
    assert found["ap"] == pytest.approx(
        100 * average_precision([float(each) for each in said], positive) if any(positive) else 0
    )
