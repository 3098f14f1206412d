"""Runs with other language models than Mamba-2: trained, packed, saved, loaded and asked, by the contract alone."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ablate.config import load, to_yaml
from ablate.errors import UserError
from ablate.model.languages import LanguageModel, LanguageSizes, registry
from ablate.sweeps.models import ModelCheck
from ablate.testing.languages import check_language_model
from ablate.training import RunConfig, load_run, train
from ablate.training.files import read_lines
from ablate.training.runs import RunFiles, run_digest, sources


class Memory(NamedTuple):
    hidden: Tensor


class Recurrent(LanguageModel):
    """A language model of another package: a GRU, with nothing of ours but the contract.

    Args:
        dropout: share of the hidden states that are dropped.
    """

    supports_packing = False

    def __init__(self, config: LanguageSizes, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.d_model, self.vocab_size, self.padded_vocab_size = config.d_model, config.vocab_size, config.vocab_size
        self.words = nn.Embedding(config.vocab_size, config.d_model)
        self.cells = nn.ModuleList(nn.GRUCell(config.d_model, config.d_model) for _ in range(config.n_layer))
        self.drop = nn.Dropout(dropout)

    def embed(self, ids):
        return self.words(ids)

    def hidden(self, inputs_embeds, *, mask=None, seq_idx=None, state=None, return_state=False, max_length=None):
        self.refuse_unsupported(mask, seq_idx)
        state, outs = self.init_state(len(inputs_embeds)) if state is None else state, []
        for place, embedding in enumerate(inputs_embeds.unbind(1)):
            out, after = self.step(embedding, state)
            if mask is not None:
                real = mask[:, place, None]
                after = tuple(
                    Memory(torch.where(real, new.hidden, old.hidden)) for new, old in zip(after, state, strict=True)
                )
            state = after
            outs.append(out)
        hidden = torch.stack(outs, dim=1)
        return (hidden, state) if return_state else hidden

    def logits(self, hidden):
        return hidden @ self.words.weight.T

    def step(self, embedding, state, *, inplace=False):
        after = []
        for cell, before in zip(self.cells, state, strict=True):
            embedding = cell(embedding, before.hidden.to(embedding.dtype))
            after.append(Memory(embedding))
        return self.drop(embedding), tuple(after)

    def init_state(self, batch, max_length=0):
        return tuple(Memory(self.words.weight.new_zeros(batch, self.d_model)) for _ in self.cells)


@pytest.fixture
def foreign():
    registry.register("recurrent")(Recurrent)
    yield
    del registry._members["recurrent"]


def test_a_foreign_model_keeps_the_contract():
    check_language_model(lambda: Recurrent(LanguageSizes(d_model=32, n_layer=2, vocab_size=50)))


LANGUAGES = [
    "language={name: decoder, d_model: 16, n_layer: 2, vocab_size: 64, fields: {heads: 2, kv_heads: 1}}",
    "language={name: decoder, d_model: 16, n_layer: 3, vocab_size: 64, ssm_cfg: {d_state: 8, headdim: 8}, "
    "fields: {layers: mamba2+attention+mamba1, heads: 2, mlp: [true, false, false]}}",
    "language={name: mamba1, d_model: 16, n_layer: 1, vocab_size: 64, fields: {d_state: 4}}",
    "language={name: recurrent, d_model: 16, n_layer: 1, vocab_size: 64, fields: {dropout: 0.1}}",
]


# The mixers of one default are set aside by a whole new group, so that a test's language stands alone.
@pytest.mark.parametrize("language", LANGUAGES, ids=["decoder", "hybrid", "mamba1", "foreign"])
def test_a_run_learns_and_is_loaded_again(configure, foreign, language):
    default = "language.ssm_cfg={d_state: 128, headdim: 64}"
    config = configure(default, language, "train.epochs=4")
    assert load(RunConfig, overrides=[]).language.name == "mamba2"
    folder = train(config)
    losses = [line["loss"] for line in read_lines(RunFiles(folder).steps)]
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])
    _, vlm = load_run(folder)
    ids = torch.tensor([[-200] * vlm.num_visual_tokens + [2, 3], [5, 6, 7, 8, 9, 0]])
    batch = {"input_ids": ids, "images": [torch.zeros(1, 3, 64, 64)], "mask": ids != 0}
    assert len(vlm.generate(batch, max_new_tokens=3, eos_id=0)) == 2
    assert vlm.first_token_probabilities(batch, [2, 3]).isfinite().all()


def test_the_source_of_a_foreign_model_is_part_of_what_made_a_run(configure, foreign):
    ours, theirs = (sources(configure("language.ssm_cfg={d_state: 128, headdim: 64}", LANGUAGES[n])) for n in (0, 3))
    assert theirs.keys() - ours.keys() == {Recurrent.__module__}


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_sweep_plans_without_memory_for_weights(configure, foreign, language):
    check = ModelCheck()
    check(configure("language.ssm_cfg={d_state: 128, headdim: 64}", language).model)


def test_packing_is_refused_before_training_where_it_is_not_supported(configure, foreign):
    config = configure(
        "language.ssm_cfg={d_state: 128, headdim: 64}", LANGUAGES[3], "data.packing=128", "data.max_length=64"
    )
    with pytest.raises(UserError, match=r"Recurrent does not support packing: set data\.packing=0"):
        train(config)


def test_packed_and_padded_runs_of_a_decoder_have_one_loss(configure):
    losses = []
    for packing in ("data.packing=0", "data.packing=64"):
        config = configure(
            "language.ssm_cfg={d_state: 128, headdim: 64}",
            LANGUAGES[0],
            packing,
            "data.max_length=64",
            "data.batch_size=22",
            "train.max_steps=1",
        )
        losses.append(read_lines(RunFiles(train(config)).steps)[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["language.name=mamba3"], "Unknown language model.*Did you mean mamba2 or mamba1"),
        (["language.fields.heads=2"], "has no fields"),
        (["language.name=decoder", "language.fields.head=2"], "Did you mean heads"),
        (["language.name=decoder", "language.fields.layers=[atention]"], "Did you mean attention"),
        (
            ["language.name=mamba1"],
            r"not read language\.ssm_cfg\.d_state, language\.ssm_cfg\.headdim: leave",
        ),
        (["language.name=transformers"], r"needs language\.pretrained"),
    ],
)
def test_a_mistake_is_told_before_anything_is_made(configure, overrides, said):
    with pytest.raises(UserError, match=said):
        train(configure(*overrides))


def test_runs_from_before_there_was_a_choice_keep_their_identity():
    """The digest that these settings had before `language.name` and `language.fields`."""
    config = load(RunConfig, overrides=["language.d_model=32"])
    spelt_out = load(RunConfig, overrides=["language={d_model: 32, name: mamba2, fields: {}}"])
    assert "name: mamba2" in to_yaml(config)
    assert run_digest(config) == run_digest(spelt_out)
    other = load(RunConfig, overrides=["language={d_model: 32, name: decoder}"])
    fields = load(RunConfig, overrides=["language={d_model: 32, name: decoder, fields: {heads: 2}}"])
    assert len({run_digest(config), run_digest(other), run_digest(fields)}) == 3
