"""Token ids and labels of conversations: exact by construction, checked by decoding."""

import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ablate.core import config
from ablate.core.errors import UserError
from datamodules import IGNORE_INDEX, IMAGE_TOKEN_ID
from datamodules.config import DataConfig
from datamodules.errors import BadSample
from datamodules.text.conversation import TEMPLATES, ConversationEncoder, PromptTemplate, get_template, text_size

VISUAL = 4
# Characters on both sides of every cut, special tokens and markers of the templates, and anything else in Unicode.
HOSTILE = ["<|endoftext|>", "{eos}", "<|assistant|>\n", "<|user|>", "\n", " ", "ASSISTANT:", "<", ">", "imag", "<|"]
text = st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(exclude_categories=["Cs"])), st.just("red")))
text = text.map("".join).map(lambda value: unicodedata.normalize("NFC", value).replace("<image>", ""))
words = text.filter(lambda value: value.strip())
fixture_is_shared = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)


def conversation(*turns: str) -> dict:
    roles = ("human", "gpt")
    return {"conversations": [{"from": roles[i % 2], "value": value} for i, value in enumerate(turns)]}


@pytest.fixture(params=sorted(name for name, template in TEMPLATES.items() if template.questions))
def encoder(request, tokenizer) -> ConversationEncoder:
    return ConversationEncoder(tokenizer, get_template(request.param), VISUAL)


def learned_runs(encoded) -> list[list[int]]:
    """Runs of neighbouring labels."""
    runs: list[list[int]] = [[]]
    for label in encoded.labels:
        if label == IGNORE_INDEX:
            runs.append([])
        else:
            runs[-1].append(label)
    return [run for run in runs if run]


@fixture_is_shared
@given(pairs=st.lists(st.tuples(words, words), min_size=1, max_size=4), has_image=st.booleans())
def test_labels_are_exactly_the_answers_and_their_end_tokens(encoder, tokenizer, pairs, has_image):
    turns = [turn for pair in pairs for turn in pair]
    encoded = encoder.encode(conversation(*turns), has_image=has_image, key="k")
    answers = [answer.strip() for _, answer in pairs]
    lead = encoder.template.answer_lead
    assert [tokenizer.decode(run[:-1]) for run in learned_runs(encoded)] == [lead + answer for answer in answers]
    assert all(run[-1] == tokenizer.eos_id for run in learned_runs(encoded))
    pairs_of_ids = zip(encoded.input_ids, encoded.labels, strict=True)
    assert all(label in (token, IGNORE_INDEX) for token, label in pairs_of_ids)


@fixture_is_shared
@given(pairs=st.lists(st.tuples(words, words), min_size=1, max_size=3), has_image=st.booleans())
def test_everything_decodes_to_the_rendered_template(encoder, tokenizer, pairs, has_image):
    turns = [turn for pair in pairs for turn in pair]
    encoded = encoder.encode(conversation(*turns), has_image=has_image, key="k")
    template, end = encoder.template, "<|endoftext|>"
    expected = template.system
    for number, (question, answer) in enumerate(pairs):
        lead = "\n" if has_image and number == 0 and template.image != "first" else ""
        expected += template.user_prefix.replace("{eos}", end) + lead + question.strip()
        expected += (template.user_suffix + template.assistant_prefix).replace("{eos}", end)
        expected += template.answer_lead + answer.strip() + template.assistant_suffix.replace("{eos}", end)
    assert tokenizer.decode([i for i in encoded.input_ids if i != IMAGE_TOKEN_ID]) == expected
    assert encoded.input_ids.count(IMAGE_TOKEN_ID) == (VISUAL if has_image else 0)


@fixture_is_shared
@given(turns=st.lists(words, min_size=2, max_size=7), has_image=st.booleans())
def test_a_prompt_is_a_prefix_of_the_training_ids(encoder, turns, has_image):
    questions = turns if len(turns) % 2 else turns[:-1]
    prompt = encoder.prompt_ids(conversation(*questions), has_image=has_image)
    encoded = encoder.encode(conversation(*questions, "red"), has_image=has_image, key="k")
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.labels[len(prompt)] != IGNORE_INDEX
    assert encoder.prompt_ids(conversation(*questions, "red"), has_image=has_image) == prompt
    if len(questions) == 1:
        assert encoder.prompt_ids(questions[0], has_image=has_image) == prompt


def test_cobra_prompt_is_the_published_one(tokenizer):
    encoder = ConversationEncoder(tokenizer, get_template("cobra"), VISUAL)
    ids = encoder.prompt_ids("What is it?", has_image=True)
    expected = "<|user|>\n" + "#" * VISUAL + "\nWhat is it?<|endoftext|>\n<|assistant|>\n"
    assert "".join("#" if i == IMAGE_TOKEN_ID else tokenizer.decode([i]) for i in ids) == expected


def test_llava_prompt_is_the_published_one(tokenizer):
    encoder = ConversationEncoder(tokenizer, get_template("llava_v1"), VISUAL)
    ids = encoder.prompt_ids("<image>\nWhat is it?", has_image=True)
    expected = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed,"
        " and polite answers to the user's questions. USER: ####\nWhat is it? ASSISTANT:"
    )
    assert "".join("#" if i == IMAGE_TOKEN_ID else tokenizer.decode([i]) for i in ids) == expected


def test_an_answers_tokens_are_those_that_training_teaches(encoder):
    for answer in ("Yes", "a red ball"):
        encoded = encoder.encode(conversation("Is it?", answer), has_image=False, key="k")
        assert learned_runs(encoded)[0] == encoder.answer_ids(answer)


def test_image_goes_where_the_text_says(tokenizer):
    encoder = ConversationEncoder(tokenizer, get_template("plain"), VISUAL)
    ids = encoder.encode(conversation("red <image> green", "blue"), has_image=True, key="k").input_ids
    start = ids.index(IMAGE_TOKEN_ID)
    assert ids[start : start + VISUAL] == [IMAGE_TOKEN_ID] * VISUAL
    assert tokenizer.decode(ids[:start]) == "red "
    assert tokenizer.decode(ids[start + VISUAL :]).startswith(" green\n")


def test_image_without_marker_is_placed_first(encoder):
    with_marker = encoder.encode(conversation("<image>\nred?", "yes"), has_image=True, key="k")
    without = encoder.encode(conversation("red?", "yes"), has_image=True, key="k")
    assert with_marker == without


def test_image_in_a_later_question(encoder):
    ids = encoder.encode(conversation("hello", "hi", "<image>", "a dog"), has_image=True, key="k").input_ids
    assert ids.count(IMAGE_TOKEN_ID) == VISUAL


@pytest.mark.parametrize(
    ("record", "has_image", "reason"),
    [
        (conversation("<image> red?", "yes"), False, "has no image"),
        (conversation("<image> and <image>", "yes"), True, "2 <image> markers"),
        (conversation("<image>", "yes", "<image>", "no"), True, "2 <image> markers"),
        (conversation("red?", "an <image>"), True, "an answer contains <image>"),
        (conversation("red?"), False, "without an answer"),
        (conversation("red?", "yes", "green?"), False, "without an answer"),
        (conversation("red?", "  "), False, "empty answer"),
        (conversation(" \n", "yes"), False, "empty question"),
        (conversation("red?", "yes", "", "no"), True, "empty question"),
        ({"conversations": []}, False, '"conversations"'),
        ({}, False, '"conversations"'),
        ([], False, '"conversations"'),
        ({"conversations": [{"from": "gpt", "value": "hi"}]}, False, 'turn 0 is from "gpt", expected "human"'),
        ({"conversations": [{"from": "human", "value": "hi"}] * 2}, False, 'turn 1 is from "human"'),
        ({"conversations": [{"from": "system", "value": "hi"}]}, False, 'from "system"'),
        ({"conversations": ["hi"]}, False, "turn 0 is not"),
        ({"conversations": [{"from": "human", "value": 3}]}, False, "turn 0 is not"),
        ({"conversations": [{"from": "human", "value": "\ud800"}]}, False, "surrogate"),
    ],
)
def test_bad_samples_are_named_with_the_reason(encoder, record, has_image, reason):
    with pytest.raises(BadSample) as error:
        encoder.encode(record, has_image=has_image, key="train-0.tar:17")
    assert reason in str(error.value)
    assert "train-0.tar:17" in str(error.value)
    assert error.value.key == "train-0.tar:17"


@fixture_is_shared
@given(question=words, answer=words, spare=st.integers(1, 60))
def test_text_is_cut_at_max_length_and_visual_tokens_never(tokenizer, question, answer, spare):
    record = conversation(f"<image>\n{question}", answer)
    whole = ConversationEncoder(tokenizer, get_template("cobra"), VISUAL).encode(record, has_image=True, key="k")
    limit = VISUAL + spare
    encoder = ConversationEncoder(tokenizer, get_template("cobra"), VISUAL, limit)
    if all(label == IGNORE_INDEX for label in whole.labels[:limit]):
        with pytest.raises(BadSample, match=r"never cut|no answer token is left"):
            encoder.encode(record, has_image=True, key="k")
        return
    cut = encoder.encode(record, has_image=True, key="k")
    assert cut.input_ids == whole.input_ids[:limit]
    assert cut.labels == whole.labels[:limit]
    assert cut.cut == max(0, len(whole.input_ids) - limit)
    assert cut.input_ids.count(IMAGE_TOKEN_ID) == VISUAL


def test_image_beyond_max_length_is_a_bad_sample(tokenizer):
    encoder = ConversationEncoder(tokenizer, get_template("plain"), VISUAL, VISUAL + 2)
    with pytest.raises(BadSample, match="never cut"):
        encoder.encode(conversation("a long question before the <image>", "yes"), has_image=True, key="k")


def test_max_length_must_hold_an_image(tokenizer):
    with pytest.raises(UserError, match="never cut"):
        ConversationEncoder(tokenizer, get_template("cobra"), VISUAL, VISUAL)


def test_unknown_template_lists_the_choices():
    with pytest.raises(UserError, match=r'prompt template "cobr".*cobra, llava_v1, ml_mamba, plain'):
        get_template("cobr")


def test_template_must_end_answers():
    with pytest.raises(UserError, match="never stop"):
        PromptTemplate(assistant_suffix="\n")


def test_template_from_the_command_line():
    assert config.load(DataConfig, [], ["template=plain"]).custom_template is None
    loaded = config.load(DataConfig, [], ["custom_template={user_prefix: 'Q: ', user_suffix: ' A:', answer_lead: ' '}"])
    assert loaded.custom_template == PromptTemplate(user_prefix="Q: ", user_suffix=" A:", answer_lead=" ")


@pytest.mark.parametrize("override", ["batch_size=0", "on_bad_sample=ignore", "max_length=-1", "num_workers=-2"])
def test_settings_out_of_range_are_refused(override):
    with pytest.raises(UserError, match=override.split("=")[0]):
        config.load(DataConfig, [], [override])


def test_text_size():
    assert text_size(conversation("four", "two", "x")) == (8, 3)
    assert text_size({"conversations": "no"}) == (0, 0)
    assert text_size(None) == (0, 0)
    assert text_size({"conversations": [{"value": None}, 3]}) == (0, 2)


@fixture_is_shared
@given(question=text, answer=words, before=words)
def test_the_image_stands_first_wherever_the_text_has_it(tokenizer, question, answer, before):
    encoder = ConversationEncoder(tokenizer, get_template("ml_mamba"), VISUAL)
    plain = ConversationEncoder(tokenizer, get_template("cobra"), VISUAL)
    body = f"{before.strip()}\n{question}".strip()
    without = plain.encode(conversation(body, answer), has_image=False, key="k").input_ids
    for asked in (f"<image>\n{body}", f"{body}\n<image>"):
        encoded = encoder.encode(conversation(asked, answer), has_image=True, key="k")
        assert encoded.input_ids == [IMAGE_TOKEN_ID] * VISUAL + without
    assert encoder.encode(conversation(body, answer), has_image=False, key="k").input_ids == without


def test_in_a_later_question_it_stands_first_too(tokenizer):
    encoder = ConversationEncoder(tokenizer, get_template("ml_mamba"), VISUAL)
    ids = encoder.encode(conversation("a", "b", "<image>\nc", "d"), has_image=True, key="k").input_ids
    assert [place for place, token in enumerate(ids) if token == IMAGE_TOKEN_ID] == list(range(VISUAL))
    assert tokenizer.decode(ids[VISUAL:]).count("<|user|>") == 2


@fixture_is_shared
@given(question=text, answer=words)
def test_a_caption_follows_its_image_at_once(tokenizer, question, answer):
    encoder = ConversationEncoder(tokenizer, get_template("caption"), VISUAL)
    encoded = encoder.encode(conversation(f"<image>\n{question}", answer), has_image=True, key="k")
    caption = [*tokenizer.encode(answer.strip()), tokenizer.eos_id]
    assert encoded.input_ids == [IMAGE_TOKEN_ID] * VISUAL + caption
    assert encoded.labels == [IGNORE_INDEX] * VISUAL + caption
    assert encoder.prompt_ids(question or "a", has_image=True) == [IMAGE_TOKEN_ID] * VISUAL


@pytest.mark.parametrize(("turns", "has_image"), [(("a", "b"), False), (("<image>\na", "b", "c", "d"), True)])
def test_what_is_no_caption_is_refused_and_not_cut(tokenizer, turns, has_image):
    encoder = ConversationEncoder(tokenizer, get_template("caption"), VISUAL)
    with pytest.raises(BadSample, match="it takes an image and one answer"):
        encoder.encode(conversation(*turns), has_image=has_image, key="k")


def test_places_and_questions_go_together():
    with pytest.raises(UserError, match=r'image place "last".*first, where_it_stands'):
        PromptTemplate(image="last")
    with pytest.raises(UserError, match='set image: "first"'):
        PromptTemplate(questions=False)
