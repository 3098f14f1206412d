"""Generation: the same text whatever else is in the batch, and one step per token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ablate.core.errors import UserError
from ablate.model.generation import choose, generate


def prompts(language, lengths, seed=0):
    """Embeddings (b, l, d) right-padded with noise, mask, and each row's own embeddings (1, l, d)."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 50, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    embeddings = language.backbone.embedding(ids).detach()
    return embeddings, mask, [embeddings[row : row + 1, :length] for row, length in enumerate(lengths)]


def by_the_whole_sequence(language, embeddings, new, eos):
    """Greedy text by reading the whole sequence again for every token."""
    text = []
    with torch.no_grad():
        for _ in range(new):
            logits = language.lm_head(language.backbone(embeddings)[:, -1])
            token = logits[0, : language.config.vocab_size].argmax()
            if token == eos:
                break
            text.append(token.item())
            embeddings = torch.cat([embeddings, language.backbone.embedding(token)[None, None]], dim=1)
    return text


def early_end(language, single):
    """The token which, taken as the end token, ends the rows at the most different places."""
    free = [by_the_whole_sequence(language, row, 20, eos=-1) for row in single]
    return max(range(50), key=lambda eos: len({text.index(eos) for text in free if eos in text}))


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_gives_each_row_the_text_it_gets_alone(language, side):
    lengths = [3, 17, 9, 1, 12, 7, 2, 14]
    embeddings, mask, single = prompts(language, lengths)
    if side == "left":
        shifts = [17 - length for length in lengths]
        embeddings = torch.stack([row.roll(shift, 0) for row, shift in zip(embeddings, shifts, strict=True)])
        mask = torch.stack([row.roll(shift, 0) for row, shift in zip(mask, shifts, strict=True)])
    eos = early_end(language, single)
    expected = [by_the_whole_sequence(language, row, 20, eos) for row in single]
    assert len({len(text) for text in expected}) > 2
    assert generate(language, embeddings, mask, max_new_tokens=20, eos_id=eos) == expected
    assert [generate(language, row, max_new_tokens=20, eos_id=eos)[0] for row in single] == expected


def test_one_prefill_then_one_step_per_token(language, monkeypatch):
    embeddings, mask, _ = prompts(language, [5, 8])
    calls = []
    backbone = language.backbone
    forward, step = backbone.forward, backbone.step
    monkeypatch.setattr(backbone, "forward", lambda *args, **kw: calls.append("prefill") or forward(*args, **kw))
    monkeypatch.setattr(
        backbone, "step", lambda token, *args, **kw: calls.append(len(token)) or step(token, *args, **kw)
    )
    generate(language, embeddings, mask, max_new_tokens=6, eos_id=-1)
    assert calls == ["prefill"] + [2] * 5


def test_finished_rows_leave_and_the_loop_ends_with_the_last(language, monkeypatch):
    embeddings, mask, single = prompts(language, [3, 17, 9, 1, 12, 7, 2, 14])
    eos = early_end(language, single)
    expected = [by_the_whole_sequence(language, row, 20, eos) for row in single]
    sizes = []
    backbone, step = language.backbone, language.backbone.step
    monkeypatch.setattr(
        backbone, "step", lambda token, *args, **kw: sizes.append(len(token)) or step(token, *args, **kw)
    )
    assert generate(language, embeddings, mask, max_new_tokens=20, eos_id=eos) == expected
    assert sizes == [sum(len(text) > done for text in expected) for done in range(min(19, max(map(len, expected))))]


def test_no_token_of_the_padded_vocabulary_is_generated(language):
    embeddings, mask, _ = prompts(language, [5])
    with torch.no_grad():
        language.backbone.embedding.weight[50:] = 100 * language.backbone(embeddings)[0, -1]
        assert language.lm_head(language.backbone(embeddings))[0, -1].argmax() >= 50
    assert all(token < 50 for token in generate(language, embeddings, mask, max_new_tokens=8, eos_id=-1)[0])


def test_sampling_follows_its_generator(language):
    embeddings, mask, _ = prompts(language, [5, 8, 3])

    def sample(seed):
        return generate(
            language,
            embeddings,
            mask,
            max_new_tokens=10,
            eos_id=-1,
            temperature=1.0,
            top_p=0.9,
            generator=torch.Generator().manual_seed(seed),
        )

    assert sample(0) == sample(0)
    assert sample(0) != sample(1)


def test_sampled_frequencies_are_the_tempered_probabilities():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    drawn = choose(logits.expand(20000, -1), temperature=0.7, generator=torch.Generator().manual_seed(0))
    frequencies = drawn.bincount(minlength=4) / 20000
    torch.testing.assert_close(frequencies, torch.softmax(logits / 0.7, dim=0), atol=0.015, rtol=0)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8), st.floats(0.01, 1.0), st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_top_p_draws_only_from_the_smallest_sufficient_set(values, top_p, seed):
    logits = torch.tensor(values)
    probabilities = logits.softmax(dim=0)
    drawn = choose(logits.expand(64, -1), temperature=1.0, top_p=top_p, generator=torch.Generator().manual_seed(seed))
    for token in drawn.unique():
        # A token is out once those strictly likelier than it have reached top_p.
        assert probabilities[probabilities > probabilities[token]].sum() < top_p + 1e-5


@pytest.mark.parametrize(
    "wrong", [{"max_new_tokens": -1}, {"temperature": -0.1}, {"top_p": 0.0}, {"temperature": 1.0, "top_p": 1.5}]
)
def test_wrong_settings_are_the_users_error(language, wrong):
    embeddings, mask, _ = prompts(language, [3])
    with pytest.raises(UserError, match="expected"):
        generate(language, embeddings, mask, **{"max_new_tokens": 3, "eos_id": 0} | wrong)


def test_no_tokens_asked_none_given(language):
    embeddings, mask, _ = prompts(language, [3, 4])
    assert generate(language, embeddings, mask, max_new_tokens=0, eos_id=0) == [[], []]
