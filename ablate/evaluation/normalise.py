"""How the benchmarks' official scorers rewrite answers before they compare them, to the letter.

`vqa` is VQAv2's and VizWiz's, `evalai` is TextVQA's (the "EvalAI" processor of MMF, used by LLaVA and lmms-eval too).
Both are process_punctuation followed by process_digit_article. Their quirks are kept, since published numbers depend on
them: each is named where it is. Sources: GT-Vision-Lab/VQA `vqaEval.py`, MMF `m4c_evaluators.py`.

Answers repeat a great deal ("yes", "no", "2"), so `vqa` and `evalai` remember what they have seen.
"""

import re
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

_ANY_PUNCTUATION = re.compile("[" + re.escape("".join(sorted(PUNCTUATION))) + "]")
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_DIGIT_COMMAS_DIGIT = re.compile(r"\d,+\d")  # MMF's and lmms-eval's reading of it
_FULL_STOP = re.compile(r"\.(?!\d)")  # the official look-behind is mistyped and never excludes anything
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


def process_digit_article(text: str) -> str:
    """Lower case; number words up to ten become digits; articles go; contractions get their apostrophe."""
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join([CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES])


@lru_cache(maxsize=1 << 18)
def vqa(text: str) -> str:
    """VQAv2's and VizWiz's whole treatment of a prediction."""
    return process_digit_article(process_punctuation(clean_whitespace(text)))


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
