"""The vision-language model: where visual tokens go, what the loss counts, blind and text-only batches."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import connectors
from ablate.core.errors import UserError
from ablate.model import vlm as vlm_module
from ablate.model.vlm import VLM
from connectors import Connector, Tokens
from datamodules import IMAGE_TOKEN_ID


def naive_loss(vlm, batch):
    """Logits everywhere, then the mean's parts: what `loss` must equal."""
    hidden = vlm.language.backbone(vlm.embed(batch), mask=batch["mask"])
    logits = vlm.language.lm_head(hidden)[:, :-1]
    targets = batch["labels"][:, 1:]
    loss = F.cross_entropy(logits.flatten(0, 1).double(), targets.flatten(), ignore_index=-100, reduction="sum")
    return loss, (targets != -100).sum()


def test_loss_is_the_naive_loss(vlm, make_batch):
    batch = make_batch((["<image>", 3, 4], [5, 6, 0]), ([7, 8], [9]), ([1, "<image>", 2], [3, 4]))
    total, count, _ = vlm.loss(batch)
    expected, expected_count = naive_loss(vlm, batch)
    assert (total.dtype, count.dtype) == (torch.float32, torch.int64)
    assert count == expected_count == 6
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("positions", [1, 2, 4])
def test_chunked_logits_change_neither_loss_nor_gradients(vlm, make_batch, monkeypatch, positions):
    batch = make_batch((["<image>", 3, 4], [5, 6, 0]), ([7, 8], [9]), ([1, "<image>", 2], [3, 4]))
    vlm.loss(batch)[0].backward()
    whole = {name: parameter.grad.clone() for name, parameter in vlm.named_parameters()}
    vlm.zero_grad()
    rows = vlm.language.lm_head.out_features
    monkeypatch.setattr(vlm_module, "_LOGITS_AT_ONCE", positions * rows)
    sizes = []
    vlm.language.lm_head.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    vlm.loss(batch)[0].backward()
    assert max(sizes) == positions
    assert sum(sizes) == 2 * 6  # forward, and once more in the backward pass
    for name, parameter in vlm.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[name], atol=1e-5, rtol=1e-4)


def test_visual_tokens_stand_where_the_image_tokens_are(vlm, make_batch):
    batch = make_batch((["<image>", 3], [5]), ([7, "<image>"], [9]), ([1, "<image>", "<image>"], [3]))
    embedded = vlm.embed(batch)
    visual = vlm.connector(batch["features"].float())
    assert torch.equal(embedded[batch["input_ids"] == IMAGE_TOKEN_ID], visual.flatten(0, 1))
    text = batch["input_ids"] != IMAGE_TOKEN_ID
    assert torch.equal(embedded[text], vlm.language.backbone.embedding(batch["input_ids"][text]))


def test_the_batchs_other_rows_and_its_padding_change_nothing(vlm, make_batch):
    rows = [(["<image>", 3, 4], [5, 6, 0]), ([7, 8], [9]), ([1, 2, 3, "<image>", 2], [3, 4, 5, 6, 7])]
    together = make_batch(*rows)
    ids = together.pop("features")
    likelihoods = vlm.answer_log_likelihood(together | {"features": ids})
    for row, features in ((0, ids[:1]), (1, None), (2, ids[1:])):
        alone = make_batch(rows[row])
        if features is not None:
            alone["features"] = features
        torch.testing.assert_close(vlm.answer_log_likelihood(alone)[0], likelihoods[row], atol=1e-5, rtol=0)


def test_packed_rows_have_the_loss_of_the_rows_apart(vlm, make_batch):
    apart = make_batch((["<image>", 3, 4], [5, 6, 0]), ([7, "<image>", 8], [9, 2]))
    lengths = apart["mask"].sum(dim=1).tolist()
    packed = {"features": apart["features"], "seq_idx": torch.tensor([[0] * lengths[0] + [1] * lengths[1]])}
    for name in ("input_ids", "labels", "mask"):
        packed[name] = torch.cat([row[:length] for row, length in zip(apart[name], lengths, strict=True)])[None]
    total, count, _ = vlm.loss(packed)
    expected, expected_count, _ = vlm.loss(apart)
    assert count == expected_count == 5
    torch.testing.assert_close(total, expected)


def test_a_count_that_does_not_match_names_the_packed_sample(vlm, make_batch):
    batch = make_batch((["<image>", 3, "<image>", 7], [9]))
    batch["seq_idx"] = torch.tensor([[0] * 7 + [1] * 8])
    batch["keys"] = ["first", "second"]
    batch["input_ids"][0, 8] = 4
    with pytest.raises(UserError, match=r"11 image tokens, in second \(5\)\."):
        vlm.loss(batch)


def test_the_first_token_of_a_packed_document_is_no_target(vlm, make_batch):
    batch = make_batch(([3, 4], [5, 6]))
    batch["labels"] = batch["input_ids"].clone()
    batch["seq_idx"] = torch.tensor([[0, 0, 1, 1]])
    assert vlm.loss(batch)[1] == 2


def test_a_batch_without_images_works_and_reaches_every_parameter(vlm, make_batch):
    """DistributedDataParallel waits for a gradient of every trainable parameter, so none may be missing."""
    batch = make_batch(([3, 4], [5, 6]), ([7], [8]))
    total, count, _ = vlm.loss(batch)
    assert count == 3
    assert total.item() == pytest.approx(naive_loss(vlm, batch)[0].item(), rel=1e-5)
    total.backward()
    assert all(parameter.grad is not None for parameter in vlm.parameters())
    assert not any(parameter.grad.any() for parameter in vlm.connector.parameters())


def test_a_batch_without_labels_has_a_loss_of_zero(vlm, make_batch):
    total, count, _ = vlm.loss(make_batch((["<image>", 3], [])))
    assert (total.item(), count.item()) == (0, 0)
    total.backward()
    assert not any(parameter.grad.any() for parameter in vlm.parameters())


def test_an_aligned_connector_can_train_on_text_only_batches(vlm, make_batch):
    vlm.language.requires_grad_(False)
    vlm.loss(make_batch(([3, 4], [5, 6])))[0].backward()
    assert all(parameter.grad is not None for parameter in vlm.connector.parameters())


def test_blind_sees_that_there_is_an_image_and_nothing_of_it(vlm, make_batch):
    rows = ((["<image>", 3, 4], [5, 6, 0]), ([7, 8], [9]))
    batch, other = make_batch(*rows), make_batch(*rows, seed=1)
    assert vlm.loss(batch)[0] != vlm.loss(other)[0]
    blind = VLM(None, vlm.connector, vlm.language, blind=True)
    total, count, _ = blind.loss(batch)
    assert torch.equal(total, blind.loss(other)[0])
    assert count == 4
    assert not blind.embed(batch)[batch["input_ids"] == IMAGE_TOKEN_ID].any()
    without = make_batch(([3, 4], [5, 6, 0]), ([7, 8], [9]))
    assert not torch.equal(blind.answer_log_likelihood(batch)[0], blind.answer_log_likelihood(without)[0])
    total.backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in vlm.connector.parameters())
    assert vlm.language.backbone.embedding.weight.grad.any()


def test_a_count_that_does_not_match_names_the_samples(vlm, make_batch):
    batch = make_batch((["<image>", 3], [5]), (["<image>", 7], [9]))
    batch["features"] = batch["features"][:1]
    with pytest.raises(
        UserError, match=r"1 images of 6 visual tokens.*12 image tokens.*sample-0 \(6\), sample-1 \(6\)"
    ):
        vlm.loss(batch)
    batch = make_batch((["<image>", 3], [5]), (["<image>", 7], [9]))
    batch["input_ids"][1, 0] = 4
    with pytest.raises(UserError, match=r"11 image tokens, in sample-1 \(5\)\."):
        vlm.loss(batch)
    batch = make_batch((["<image>", 3], [5]))
    del batch["features"]
    with pytest.raises(UserError, match=r"0 images.*sample-0 \(6\)"):
        vlm.generate(batch, max_new_tokens=1, eos_id=0)


def test_answers_are_the_same_alone_and_in_a_batch(vlm, make_batch):
    rows = [(["<image>", 3, 4], []), ([7, 8], []), ([1, 2, 3, "<image>", 2], [])]
    batch = make_batch(*rows)
    together = vlm.generate(batch, max_new_tokens=16, eos_id=-1)
    assert [len(text) for text in together] == [16, 16, 16]
    for row, features in ((0, batch["features"][:1]), (1, None), (2, batch["features"][1:])):
        alone = make_batch(rows[row])
        if features is not None:
            alone["features"] = features
        assert vlm.generate(alone, max_new_tokens=16, eos_id=-1) == [together[row]]


def test_the_generated_answer_is_the_likeliest_next_token_at_each_place(vlm, make_batch):
    """Greedy text must be what the training loss, reading prompt and answer at once, ranks first."""
    prompt = ["<image>", 3, 4]
    (answer,) = vlm.generate(make_batch((prompt, [])), max_new_tokens=6, eos_id=-1)
    best = vlm.answer_log_likelihood(make_batch((prompt, answer)))[0]
    for place in range(6):
        every = vlm.first_token_probabilities(make_batch((prompt + answer[:place], [])), list(range(64)))[0]
        assert every[:50].argmax() == answer[place]
        best = best - every[answer[place]].log()
    assert best.item() == pytest.approx(0, abs=1e-4)  # the likelihood is the product of the probabilities


def test_first_token_probabilities_are_renormalised(vlm, make_batch):
    batch = make_batch((["<image>", 3, 4], []), ([7], []))
    everything = vlm.first_token_probabilities(batch, list(range(64)))
    two = vlm.first_token_probabilities(batch, [11, 40])
    torch.testing.assert_close(two, everything[:, [11, 40]] / everything[:, [11, 40]].sum(dim=1, keepdim=True))
    torch.testing.assert_close(two.sum(dim=1), torch.ones(2))
    likelihood = vlm.answer_log_likelihood(make_batch((["<image>", 3, 4], [11]), ([7], [40])))
    torch.testing.assert_close(likelihood, everything[[0, 1], [11, 40]].log(), atol=1e-5, rtol=0)


def test_evaluation_ignores_dropout_and_leaves_the_modes_as_they_were(vlm, make_batch):
    dropout = torch.nn.Dropout(0.5)
    vlm.connector = Odd(dropout)
    vlm.train()
    vlm.language.eval()
    batch = make_batch((["<image>", 3, 4], [5, 6]))
    assert torch.equal(vlm.answer_log_likelihood(batch), vlm.answer_log_likelihood(batch))
    assert vlm.training
    assert dropout.training
    assert not vlm.language.training
    assert not torch.equal(vlm.loss(batch)[0], vlm.loss(batch)[0])


def test_images_and_their_cached_features_give_the_same_loss(built, make_batch):
    photo = Image.effect_noise((40, 30), 80)
    images = [transform(photo)[None] for transform in built.encoder.transforms]
    batch = make_batch((["<image>", 3], [5, 6]), visual=built.num_visual_tokens)
    del batch["features"]
    built.eval()
    total = built.loss(batch | {"images": images})[0]
    features = built.encoder(images)
    torch.testing.assert_close(built.loss(batch | {"features": features})[0], total)
    total.backward()
    assert all(parameter.grad is not None for parameter in built.connector.parameters())
    assert all(parameter.grad is None for parameter in built.encoder.parameters())


def test_images_without_an_encoder_are_the_users_error(vlm, make_batch):
    batch = make_batch((["<image>", 3], [5]))
    del batch["features"]
    with pytest.raises(UserError, match="encoder"):
        vlm.loss(batch | {"images": [torch.zeros(1, 3, 8, 8)]})


# ------------------------------------------------------------------------------- connectors that are not as declared


class Odd(Connector):
    """Returns what it is given a function for."""

    def __init__(self, result, tokens=None):
        super().__init__(8, 32)
        self.projection = torch.nn.Linear(8, 32)
        self.result, self.tokens = result, tokens

    def num_tokens(self, height, width):
        return height * width if self.tokens is None else self.tokens

    def forward(self, features):
        return self.result(self.projection(features.flatten(1, 2)))


RESULTS = {
    "a tuple": (lambda t: (t, {}), "returned a tuple"),
    "nothing": (lambda t: None, "returned None"),
    "a list": (lambda t: list(t), "returned a list"),
    "a grid": (lambda t: t.unflatten(1, (2, 3)), r"shape \(2, 2, 3, 32\)"),
    "too few tokens": (lambda t: t[:, ::2], r"shape \(2, 3, 32\)"),
    "too many tokens": (lambda t: t.repeat(1, 2, 1), r"shape \(2, 12, 32\)"),
    "one image": (lambda t: t[:1], r"shape \(1, 6, 32\)"),
    "images on the tokens": (lambda t: t.flatten(0, 1)[None], r"shape \(1, 12, 32\)"),
    "another width": (lambda t: t[..., :31], r"shape \(2, 6, 31\)"),
    "tokens and width changed over": (lambda t: t.transpose(1, 2), r"shape \(2, 32, 6\)"),
    "integers": (lambda t: t.long(), "torch.int64"),
    "another device": (lambda t: t.to("meta"), "on meta"),
    "a sparse tensor": (lambda t: t.to_sparse(), "a sparse torch.float32"),
}


@pytest.mark.parametrize("case", RESULTS)
@pytest.mark.parametrize("call", ["loss", "answer_log_likelihood"])
def test_a_connector_that_returns_something_else_is_named(vlm, make_batch, case, call):
    result, said = RESULTS[case]
    vlm.connector = Odd(result)
    batch = make_batch((["<image>", 3, "<image>"], [5]))
    with pytest.raises(UserError, match=rf'Connector "Odd".*{said}.*expected.*\(2, 6, 32\)'):
        getattr(vlm, call)(batch)


def test_a_wrong_number_of_tokens_is_found_where_the_batch_agrees_with_it(vlm, make_batch):
    """9 claimed and 16 made: the places are counted by what is claimed, so that nothing else would notice."""
    vlm.connector = Odd(lambda t: t.repeat(1, 3, 1)[:, :16], tokens=9)
    with pytest.raises(UserError, match=r"shape \(2, 16, 32\).*num_tokens\(2, 3\), d_model\) = \(2, 9, 32\)"):
        vlm.loss(make_batch((["<image>", 3], [5]), (["<image>"], [5]), visual=9))


@pytest.mark.parametrize("tokens", [0, -6, 6.0, True, "6"])
def test_a_number_of_tokens_that_is_none_is_named(vlm, make_batch, tokens):
    vlm.connector = Odd(lambda t: t, tokens=tokens)
    with pytest.raises(UserError, match=r'Connector "Odd": num_tokens\(2, 3\) is '):
        vlm.loss(make_batch((["<image>", 3], [5])))


def test_registered_connectors_are_named_as_they_are_registered(vlm, make_batch, monkeypatch):
    monkeypatch.setattr(type(vlm.connector), "forward", lambda self, features: None)
    with pytest.raises(UserError, match='Connector "mlp": forward returned None'):
        vlm.loss(make_batch((["<image>", 3], [5])))


def test_memory_layout_and_half_precision_are_the_connectors_own_business(vlm, make_batch):
    batch = make_batch((["<image>", 3, "<image>"], [5]))
    vlm.connector = Odd(lambda t: t)
    expected = vlm.loss(batch)[0]
    vlm.connector.result = lambda t: t.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(vlm.loss(batch)[0], expected)
    vlm.connector.result = lambda t: t.bfloat16()
    torch.testing.assert_close(vlm.loss(batch)[0], expected, rtol=0.05, atol=0)


def test_a_connector_without_parameters(vlm, make_batch):
    class Wider(Connector):
        def forward(self, features):
            return F.pad(features.flatten(1, 2), (0, 24))

    vlm.connector = Wider(8, 32)
    vlm.loss(make_batch((["<image>", 3], [5])))[0].backward()
    vlm.loss(make_batch(([3], [5])))[0].backward()


@pytest.mark.parametrize(
    "change", [lambda f: f[..., :7], lambda f: f.flatten(1, 2), lambda f: f[0], lambda f: f.to(torch.uint8)]
)
def test_features_of_another_encoder_are_told(vlm, make_batch, change):
    batch = make_batch((["<image>", 3], [5]))
    batch["features"] = change(batch["features"])
    with pytest.raises(UserError, match=r'Connector "mlp" was built for features of shape .* 8\).*got a'):
        vlm.loss(batch)


def test_an_encoder_whose_features_have_changed_is_told(built, make_batch):
    images = [torch.zeros(1, 3, tower.image_size, tower.image_size) for tower in built.encoder.towers]
    batch = make_batch((["<image>", 3], [5]), visual=built.num_visual_tokens)
    del batch["features"]
    built.encoder.grid = (built.encoder.grid[0] + 1, built.encoder.grid[1])
    with pytest.raises(UserError, match=r"Encoder test_vit made features of shape \(1, 2, 2, 64\), expected"):
        built.encoder(images)
    with pytest.raises(UserError, match=r"got images of shape \(1, 3, 64, 64\), expected \(1, 3, 32, 32\)"):
        built.encoder([torch.zeros(1, 3, 64, 64)])


# --------------------------------------------------------------------------------------------------- empty batches


def empty_batch(batch, length, **more):
    ids = torch.zeros(batch, length, dtype=torch.long)
    return {"input_ids": ids, "labels": ids - 100, "mask": ids.bool(), **more}


@pytest.mark.parametrize("shape", [(0, 4), (0, 0), (2, 0), (2, 4)], ids=str)
@pytest.mark.parametrize("with_features", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("blind", [False, True])
def test_batches_of_nothing_have_a_loss_of_zero(vlm, shape, with_features, packed, blind):
    """No row, no token, or rows of nothing but padding: a last batch, or one whose samples were all left out."""
    vlm.blind = blind
    batch = empty_batch(*shape)
    if with_features:
        batch["features"] = torch.zeros(0, 2, 3, 8)
    if packed:
        batch["seq_idx"] = torch.zeros(shape, dtype=torch.long)
    total, count, _ = vlm.loss(batch)
    assert (total.item(), count.item()) == (0, 0)
    total.backward()
    for name, parameter in vlm.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name
    assert vlm.answer_log_likelihood(batch).tolist() == [0.0] * shape[0]


@pytest.mark.parametrize("length", [0, 4])
def test_no_prompts_have_no_answers(vlm, length):
    batch = empty_batch(0, length)
    assert vlm.generate(batch, max_new_tokens=3, eos_id=0) == []
    assert vlm.first_token_probabilities(batch, [1, 2]).shape == (0, 2)


@pytest.mark.parametrize("mask", [True, False])
def test_a_prompt_without_a_token_is_told(vlm, make_batch, mask):
    """Its answer would be a continuation of whatever stands in the padding."""
    batch = empty_batch(2, 0)
    if mask:
        batch = make_batch(([3, 4], []), ([], []))
    for call in (
        lambda: vlm.generate(batch, max_new_tokens=3, eos_id=0),
        lambda: vlm.first_token_probabilities(batch, [1, 2]),
    ):
        with pytest.raises(UserError, match=r"[12] of 2 prompts have no token \(row (1|0, 1)\)"):
            call()


@pytest.mark.parametrize("frozen", [True, False])
def test_encoders_take_no_images(built, frozen):
    built.encoder.frozen = frozen
    built.encoder.requires_grad_(not frozen)
    features = built.encoder([torch.zeros(0, 3, 32, 32)])
    assert features.shape == (0, *built.encoder.grid, built.encoder.dim)
    if not frozen:
        features.sum().backward()
        assert all(parameter.grad is not None for parameter in built.encoder.parameters())


@pytest.mark.parametrize("name", connectors.names())
def test_batches_of_no_image_reach_every_connectors_parameters(vlm, name):
    vlm.connector = connectors.create(name, 8, 32, **connectors.contract.registry.get(name).test_fields)
    vlm.size = max(vlm.connector.sizes, default=None)
    vlm.loss(empty_batch(1, 3, features=torch.zeros(0, 4, 4, 8)))[0].backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in vlm.connector.parameters())


# ------------------------------------------------------------------------------- connectors that declare more


VISUAL = 6  # per image, as in conftest.py


class Asking(Connector):
    """Keeps the questions that it was given, and has a loss for each image: the sum of its features."""

    reads_text = True
    losses = ("sum",)

    def __init__(self):
        super().__init__(8, 32)
        self.projection = torch.nn.Linear(8, 32)

    def forward(self, features, *, text):
        self.text = text
        return Tokens(self.projection(features.flatten(1, 2)), {"sum": features.sum(dim=(1, 2, 3))})


def _questions(vlm, batch):
    """The token ids of each image's question."""
    vlm.connector = Asking()
    vlm.loss(batch) if "labels" in batch else vlm.embed(batch)
    embedding, text = vlm.language.backbone.embedding.weight, vlm.connector.text
    ids = (text.embeddings[:, :, None] == embedding).all(-1).int().argmax(-1)
    return [row[mask].tolist() for row, mask in zip(ids, text.mask, strict=True)]


def test_a_question_is_the_text_around_its_image_and_never_an_answer(vlm, make_batch):
    batch = make_batch((["<image>", 3, 4], [5, 6]), ([7, 8], [9]), ([10, "<image>", 11], [12]), (["<image>"], [13]))
    assert _questions(vlm, batch) == [[3, 4], [10, 11], []]
    del batch["labels"]  # a prompt is all question
    assert _questions(vlm, batch)[1] == [10, 11, 12]


def test_each_turn_has_its_own_question(vlm, make_batch):
    batch = make_batch((["<image>", 3, 4, 5, 6, "<image>", 7, 8, 9], []))
    for place in (VISUAL + 1, VISUAL + 2, 2 * VISUAL + 5):  # 4 5 and 8 are answers
        batch["labels"][0, place] = batch["input_ids"][0, place]
    assert _questions(vlm, batch) == [[3], [6, 7]]


def test_questions_of_packed_documents(vlm, make_batch):
    batch = make_batch((["<image>", 3, 4, 5, "<image>", 6], []), (["<image>", 7, 8], []))
    length = batch["input_ids"].shape[1]
    first = torch.arange(length) < VISUAL + 3
    batch["seq_idx"] = torch.stack([(~first).int(), torch.full((length,), 2, dtype=torch.int32)])
    assert _questions(vlm, batch) == [[3, 4, 5], [6], [7, 8]]


def test_a_loss_of_an_image_counts_once_for_each_answer_token(vlm, make_batch):
    vlm.connector = Asking()
    rows = [(["<image>", 3], [5, 6, 7]), ([4], [5, 6]), (["<image>", 3, "<image>"], [8])]
    batch = make_batch(*rows)
    found = vlm.loss(batch)
    sums = batch["features"].float().sum(dim=(1, 2, 3))
    torch.testing.assert_close(found.parts["sum"], 3 * sums[0] + (sums[1] + sums[2]) / 2)
    plain = vlm.loss(batch | {"features": batch["features"] * 1.0})
    assert torch.equal(plain.total, found.total)
    # However the samples are divided: the features of each are cut out of the whole batch's.
    parts = [make_batch(row) for row in rows]
    parts[0]["features"], parts[2]["features"] = batch["features"][:1], batch["features"][1:]
    apart = [vlm.loss(part) for part in parts]
    torch.testing.assert_close(sum(each.total for each in apart), found.total, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(sum(each.parts["sum"] for each in apart), found.parts["sum"])
    assert set(apart[1].parts) == {"sum"}  # a batch without images has every name


def test_losses_and_sizes_that_are_not_declared_are_named(vlm, make_batch):
    batch = make_batch((["<image>", 3], [5]))
    vlm.connector = Odd(lambda t: Tokens(t, {"more": t.sum(dim=(1, 2))}))
    with pytest.raises(UserError, match="the losses more, but the connector declares none"):
        vlm.loss(batch)
    vlm.connector.losses = ("more",)
    vlm.loss(batch)
    vlm.connector.result = lambda t: Tokens(t, {"more": t.sum()})
    with pytest.raises(
        UserError, match=r'the loss "more" has shape \(\) .*, expected one .*number for each image, \(1,\)'
    ):
        vlm.loss(batch)
    for losses, said in [
        (None, "are a NoneType, expected a mapping"),
        ([torch.zeros(1)], "are a list, expected a mapping"),
        ({"more": torch.ones(1).long()}, "torch.int64"),
        ({"more": 1.0}, "is a float"),
    ]:
        vlm.connector.result = lambda t, losses=losses: Tokens(t, losses)
        with pytest.raises(UserError, match=rf'Connector "Odd": .*{said}'):
            vlm.loss(batch)
    vlm.connector, vlm.size = Odd(lambda t: t), 4
    with pytest.raises(UserError, match=r'"Odd" has no size 4: it offers none'):
        vlm.loss(batch)


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"reads_text": True}, "its forward does not fit what it declares .*'text'"),
        ({"sizes": (4,)}, "its num_tokens does not fit"),
        ({"sizes": (4,), "num_tokens": lambda height, width, size: 6}, "its forward does not fit .*'size'"),
        ({"num_tokens": 6}, "its num_tokens does not fit .*not a callable"),
        ({"sizes": 4}, "its sizes are 4, expected"),
        ({"sizes": None}, "its sizes are None, expected"),
        ({"sizes": (0, 1.5)}, "its sizes are .*expected"),
    ],
)
def test_what_a_connector_declares_and_does_not_have_is_named(vlm, make_batch, declared, said):
    vlm.connector = Odd(lambda t: t)
    for name, value in declared.items():
        setattr(vlm.connector, name, value)
    with pytest.raises(UserError, match=rf'Connector "Odd": {said}'):
        vlm.loss(make_batch((["<image>", 3], [5])))


def test_a_connector_of_several_sizes_gives_fewer_tokens(vlm, make_batch):
    class First(Connector):
        sizes = (2, 6)

        def num_tokens(self, height, width, size):
            return size

        def forward(self, features, *, size):
            return F.pad(features.flatten(1, 2), (0, 24))[:, :size]

    for size in First.sizes:
        vlm.connector, vlm.size = First(8, 32), size
        vlm.loss(make_batch((["<image>", 3], [5]), visual=size))
    assert VLM(None, First(8, 32), vlm.language).size == 6
    with pytest.raises(UserError, match="no size 3: it offers 2, 6"):
        VLM(None, First(8, 32), vlm.language, size=3)


class Nested(Connector):
    """The first `size` patches."""

    sizes = (1, 2, 6)

    def __init__(self, trained_sizes="all"):
        super().__init__(8, 32)
        self.trained_sizes = trained_sizes
        self.projection = torch.nn.Linear(8, 32)

    def num_tokens(self, height, width, size):
        return size

    def forward(self, features, *, size):
        return self.projection(features.flatten(1, 2)[:, :size])


CONVERSATIONS = ((["<image>", 3, 4], [5, 6, 0]), ([7, 8], [9]), ([1, "<image>", 2], [3, 4]))


def test_all_sizes_are_trained_as_if_the_batch_had_been_made_for_each(vlm, make_batch):
    model = VLM(None, Nested(), vlm.language).train()
    loss = model.loss(make_batch(*CONVERSATIONS))
    apart = []
    for size in Nested.sizes:
        alone = VLM(None, model.connector, vlm.language, size=size).train()
        apart.append(alone.loss(make_batch(*CONVERSATIONS, visual=size)).total)
    assert loss.total.item() == pytest.approx(torch.stack(apart).mean().item(), rel=1e-5)
    assert loss.count == 6
    assert model.size == 6


def test_a_sampled_size_is_drawn_by_pytorchs_generator(vlm, make_batch):
    model = VLM(None, Nested("sampled"), vlm.language).train()
    apart = {
        VLM(None, model.connector, vlm.language, size=size).loss(make_batch(*CONVERSATIONS, visual=size)).total.item()
        for size in Nested.sizes
    }
    drawn = []
    for seed in range(20):
        torch.manual_seed(seed)
        drawn.append(model.loss(make_batch(*CONVERSATIONS)).total.item())
    assert all(any(one == pytest.approx(other, rel=1e-5) for other in apart) for one in drawn)
    assert len({round(one, 3) for one in drawn}) == 3
    torch.manual_seed(0)
    assert model.loss(make_batch(*CONVERSATIONS)).total.item() == drawn[0]


def test_a_chosen_size_or_evaluation_trains_no_other(vlm, make_batch):
    largest = VLM(None, Nested("sampled"), vlm.language).eval()
    batch = make_batch(*CONVERSATIONS)
    assert len({largest.loss(batch).total.item() for _ in range(5)}) == 1
    chosen = VLM(None, Nested("sampled"), vlm.language, size=2).train()
    small = make_batch(*CONVERSATIONS, visual=2)
    assert len({chosen.loss(small).total.item() for _ in range(5)}) == 1


def test_towers_are_read_apart(vlm, make_batch):
    class Second(Connector):
        reads_towers = True

        def forward(self, features):
            assert torch.equal(torch.cat([each.values for each in features.maps], dim=-1), features.fused)
            return F.pad(features.maps[1].values.flatten(1, 2), (0, 27))

    vlm.connector = Second((3, 5), 32)
    batch = make_batch((["<image>", 3], [5]))
    expected = vlm.loss(batch).total
    batch["features"][..., :3] = 7.0
    assert torch.equal(vlm.loss(batch).total, expected)


def test_grids_that_a_connector_does_not_take_are_refused(vlm, make_batch):
    class Even(Odd):
        def check_grid(self, height, width):
            if height % 2 or width % 2:
                raise UserError(f"got a grid of {height} x {width}, expected even numbers.")

    vlm.connector = Even(lambda t: t)
    with pytest.raises(UserError, match="2 x 3, expected even"):
        vlm.loss(make_batch((["<image>", 3], [5])))
