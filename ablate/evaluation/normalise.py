"""How the benchmarks' official scorers rewrite answers before they compare them, to the letter.

`vqa` is VQAv2's, `vizwiz` VizWiz's, `evalai` TextVQA's (the "EvalAI" processor of MMF, used by LLaVA and lmms-eval
too). All are process_punctuation followed by process_digit_article. Their quirks are kept, since published numbers
depend on them: each is named where it is. Sources: GT-Vision-Lab/VQA `vqaEval.py`, the VizWiz API's copy of it, MMF
`m4c_evaluators.py`.

Answers repeat a great deal ("yes", "no", "2"), so the whole treatments remember what they have seen.
"""

import re
from collections.abc import Mapping
from functools import lru_cache

PUNCTUATION = frozenset(';/[]"{}()=+\\_-><@`,?!')  # not : ' $ % & # * and not ".", which has a rule of its own
ARTICLES = frozenset({"a", "an", "the"})
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())} | {"none": "0"}

_CONTRACTED = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't
    it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't
    somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's
    they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's
    where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
    I'm I've
    couldn't've hadn't've mightn't've shouldn't've wouldn't've he'd've I'd've it'd've she'd've somebody'd've
    someone'd've something'd've there'd've they'd've we'd've who'd've you'd've y'all'll y'all'd've 'ow's'at
"""
# Every spelling with one apostrophe left out, at each place where it can be: couldn't've <- couldnt've, couldn'tve.
CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTED.split()
    for place, character in enumerate(word)
    if character == "'"
}
CONTRACTIONS |= {"let's": "let's", "she's": "she's"}  # no-ops of the official table
CONTRACTIONS |= {"somebody'd": "somebodyd"}  # inverted in the official table

# The VizWiz API's copy of the table has typographic apostrophes almost everywhere, and vlm-evaluation's backticks: what
# they restore hardly ever is what people typed. The places where it is straight in both:
_STRAIGHT_VALUES = frozenset(["aint", "arent", "cant", "couldve", "couldnt", "weve", "wheres", "whove"])
_STRAIGHT_KEYS = frozenset({"couldn'tve", "hadn'tve"})


def _with_apostrophe(mark: str) -> dict[str, str]:
    """The contractions with `mark` where VizWiz's table has no straight apostrophe."""
    return {
        key if key in _STRAIGHT_KEYS else key.replace("'", mark): value
        if key in _STRAIGHT_VALUES
        else value.replace("'", mark)
        for key, value in CONTRACTIONS.items()
    }


VIZWIZ_CONTRACTIONS = _with_apostrophe("\N{RIGHT SINGLE QUOTATION MARK}")
VLM_EVALUATION_VIZWIZ_CONTRACTIONS = _with_apostrophe("`")

_ANY_PUNCTUATION = re.compile("[" + re.escape("".join(sorted(PUNCTUATION))) + "]")
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_DIGIT_COMMAS_DIGIT = re.compile(r"\d,+\d")  # MMF's and lmms-eval's reading of it
_FULL_STOP = re.compile(r"\.(?!\d)")  # the official lookbehind is mistyped and never excludes anything
_MOST_FULL_STOPS = 32  # the official script passes re.UNICODE (32) where `count` goes


def clean_whitespace(text: str) -> str:
    """Newlines and tabs become spaces; the ends are stripped. What the scorers do to a model's output first."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def process_punctuation(text: str, thousands: re.Pattern[str] = _DIGIT_COMMA_DIGIT) -> str:
    """Delete or blank out punctuation, and delete full stops that no digit follows.

    A mark is deleted if it touches a space anywhere in the text, or if the text holds digit,digit (`thousands`);
    otherwise every occurrence becomes a space.
    """
    if marks := set(_ANY_PUNCTUATION.findall(text)):
        delete_all = thousands.search(text) is not None
        replacement = {
            ord(mark): "" if delete_all or f"{mark} " in text or f" {mark}" in text else " " for mark in marks
        }
        text = text.translate(replacement)
    return _FULL_STOP.sub("", text, count=_MOST_FULL_STOPS) if "." in text else text


def process_digit_article(text: str, contractions: Mapping[str, str] = CONTRACTIONS) -> str:
    """Lower case; number words up to ten become digits; articles go; contractions get their apostrophe."""
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join([contractions.get(word, word) for word in words if word not in ARTICLES])


@lru_cache(maxsize=1 << 18)
def vqa(text: str) -> str:
    """VQAv2's whole treatment of a prediction."""
    return process_digit_article(process_punctuation(clean_whitespace(text)))


@lru_cache(maxsize=1 << 18)
def vizwiz(text: str) -> str:
    """The VizWiz API's whole treatment of a prediction."""
    return process_digit_article(process_punctuation(clean_whitespace(text)), VIZWIZ_CONTRACTIONS)


@lru_cache(maxsize=1 << 18)
def vizwiz_vlm_evaluation(text: str) -> str:
    """`vizwiz` as vlm-evaluation has it."""
    return process_digit_article(process_punctuation(clean_whitespace(text)), VLM_EVALUATION_VIZWIZ_CONTRACTIONS)


@lru_cache(maxsize=1 << 18)
def vqa_lmms_eval(text: str) -> str:
    """`vqa` as lmms-eval has it: any number of commas between two digits counts as digit,digit."""
    return process_digit_article(process_punctuation(clean_whitespace(text), _DIGIT_COMMAS_DIGIT))


@lru_cache(maxsize=1 << 18)
def vqa_punctuation(text: str) -> str:
    """process_punctuation alone: how VQAv2's 2016 script and vlm-evaluation treat the ground truth."""
    return process_punctuation(text)


@lru_cache(maxsize=1 << 18)
def evalai(text: str) -> str:
    """TextVQA's whole treatment of predictions and ground truth."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return process_digit_article(process_punctuation(clean_whitespace(text)))


@lru_cache(maxsize=1 << 18)
def evalai_and_vqa_lmms_eval(text: str) -> str:
    """lmms-eval's treatment of VQAv2's predictions before 2025-07-15."""
    return process_digit_article(process_punctuation(evalai(text), _DIGIT_COMMAS_DIGIT))
