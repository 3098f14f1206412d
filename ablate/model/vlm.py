"""The vision-language model: image -> encoder -> connector -> language model over [visual tokens, text tokens]."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ablate.core.errors import UserError
from ablate.model.encoders import VisionEncoder
from ablate.model.generation import Decoding, generate, generate_steps, last_real
from ablate.model.languages import LanguageModel
from ablate.ssm.precision import connected_zero
from connectors import Connector, Text, Tokens, apply, check_size, title, tokens_per_image
from connectors.contract import in_channels
from datamodules import IGNORE_INDEX, IMAGE_TOKEN_ID

# Logits of this many positions x vocabulary entries are held at once: 256 MiB in float32.
_LOGITS_AT_ONCE = 2**26

Batch = Mapping[str, Any]


class Loss(NamedTuple):
    """total: the sum over the labels of their cross entropy and of the losses of their images, a float32 scalar.
    count: int64 scalar, how many labels. parts: the other losses by name, likewise summed and without gradients.
    """

    total: Tensor
    count: Tensor  # type: ignore[assignment]  # tuples have a method of this name
    parts: Mapping[str, Tensor]


class Answers(NamedTuple):
    """What the model knows where it has to answer: hidden (n, d_model), from which each of the targets (n,) is to be
    predicted; the row (n,) of each in the batch; and the connector's losses, summed over the targets.
    """

    hidden: Tensor
    targets: Tensor
    rows: Tensor
    parts: Mapping[str, Tensor]


class VLM(nn.Module):
    """Visual tokens stand where the batch's `input_ids` are `IMAGE_TOKEN_ID`; all else is text.

    A batch is a dict: `input_ids` int64 (b, l), `mask` bool (b, l), `labels` int64 (b, l) with -100 where nothing is to
    be learned (not shifted), perhaps `seq_idx` int (b, l) for packed documents, `keys` (names of the samples; with
    `seq_idx`, which holds each token's place in it, one for each document), and either `images` (one tensor
    (n, 3, H, W) per tower of the encoder), or `features` (n, h, w, c), or neither. Images are in the order of their
    tokens, row by row. Rows and whole batches without an image work too.

    Args:
        encoder: None if every batch brings its features.
        connector: features (n, h, w, c) -> visual tokens (n, tokens, d_model).
        language: the language model.
        blind: replace the visual tokens, after the connector, by zeros: the model sees that an image exists, but none
            of its content. Encoder and connector do not run and learn nothing.
        size: one of the connector's sizes; None for its largest, or where it offers none. May be set at any time. With
            None, and in training mode, `loss` trains the sizes that the connector's `trained_sizes` says.

    Raises:
        UserError: a size that the connector does not offer.
    """

    def __init__(
        self,
        encoder: VisionEncoder | None,
        connector: Connector,
        language: LanguageModel,
        *,
        blind: bool = False,
        size: int | None = None,
    ) -> None:
        super().__init__()
        self.encoder: Any = encoder  # whoever reads images or transforms has one
        self.connector, self.language = connector, language
        self.blind = blind
        self.size = check_size(connector, size)
        self.trained_sizes = "largest" if size is not None or not connector.sizes else connector.trained_sizes

    @property
    def num_visual_tokens(self) -> int:
        """Visual tokens per image, at the encoder's own image size."""
        if self.encoder is None:
            raise UserError("Without an encoder the number of visual tokens depends on the features.")
        height, width = self.encoder.grid
        return tokens_per_image(self.connector, height, width, self.size)

    def forward(self, batch: Batch) -> Loss:
        return self.loss(batch)

    def loss(self, batch: Batch, answers: Answers | None = None) -> Loss:
        """The sum over the labels of their cross entropies, and of the connector's losses for the images before them.

        A sum, so that the mean can be taken over all answer tokens of the global batch: it does not depend on how the
        samples are divided among micro-batches and ranks. Every trainable parameter has a gradient, be it zero: batches
        without images need no special case under data parallelism.

        Args:
            answers: those of the batch, where they have been computed.
        """
        if answers is None and self.training and self.trained_sizes != "largest" and _has_images(batch):
            return self._loss_of_sizes(batch)
        return self._loss(batch, answers)

    def _loss(self, batch: Batch, answers: Answers | None = None) -> Loss:
        hidden, targets, _, parts = answers or self.answers(batch)
        total = token_losses(self.language, hidden, targets).sum() + sum(parts.values())
        if self.blind or not _has_images(batch):
            total = total + self._zero()
        count = torch.tensor(len(targets), device=total.device)
        return Loss(total, count, {name: part.detach() for name, part in parts.items()})

    def _loss_of_sizes(self, batch: Batch) -> Loss:
        """The mean of the losses at all sizes; or the loss at one, drawn from PyTorch's global generator."""
        made_for, sizes = self.size, list(self.connector.sizes)
        if self.trained_sizes == "sampled":
            sizes = [sizes[int(torch.randint(len(sizes), ()))]]
        before = self._expected_tokens(batch)[1]
        losses = []
        try:
            for size in sizes:
                self.size = size
                losses.append(self._loss(_with_fewer_tokens(batch, before, self._expected_tokens(batch)[1])))
        finally:
            self.size = made_for
        parts = {name: sum(loss.parts[name] for loss in losses) / len(sizes) for name in losses[0].parts}
        total = torch.stack([loss.total for loss in losses]).mean()
        return Loss(total, losses[0].count, parts)  # type: ignore[arg-type]  # a sum of tensors

    def answers(self, batch: Batch) -> Answers:
        """The hidden states from which the batch's labels are to be predicted. Logits are made of no others."""
        embeddings, visual = self._embed(batch)
        hidden = self.language.hidden(embeddings, mask=batch.get("mask"), seq_idx=batch.get("seq_idx"))
        is_target = self.is_target(batch)
        rows = is_target.nonzero()[:, 0]
        parts = self._connector_losses(batch, visual)
        return Answers(hidden[:, :-1][is_target], batch["labels"][:, 1:][is_target], rows, parts)

    def encode_images(self, batch: Batch) -> Tensor:
        """Features (n, h, w, c) of the batch's images, cached or computed, in the connector's dtype.

        Raises:
            UserError: images without an encoder, or features that the connector was not built for.
        """
        features = batch.get("features")
        if features is None:
            if self.encoder is None:
                raise UserError("The batch brings images, but the model was built without an encoder for them.")
            features = self.encoder(batch["images"])
        self._check_features(features)
        # A connector need not have parameters.
        like = next(chain(self.connector.parameters(), self.language.parameters()))
        return features.to(like.dtype)

    def embed(self, batch: Batch) -> Tensor:
        """Embeddings (b, l, d_model): visual tokens where the image tokens stand, text elsewhere.

        Raises:
            UserError: image tokens and images that do not match, with the keys of the samples; or a connector that
                returns something else than it declares, by its name.
        """
        return self._embed(batch)[0]

    def _embed(self, batch: Batch) -> tuple[Tensor, Tokens | None]:
        """Embeddings (b, l, d_model), and what the connector returned if it ran."""
        input_ids = batch["input_ids"]
        is_image = input_ids == IMAGE_TOKEN_ID
        text = self.language.embed(input_ids.masked_fill(is_image, 0))
        self._check_image_tokens(batch, is_image)
        if not _has_images(batch):
            return text, None
        if self.blind:
            return text.masked_fill(is_image[..., None], 0), None
        features = self.encode_images(batch)
        question = self._questions(batch, text, is_image) if self.connector.reads_text else None
        # Too many or too few tokens would fill the places in order: each image with parts of another's.
        visual = apply(self.connector, features, text.shape[-1], text=question, size=self.size)
        return text.masked_scatter(is_image[..., None], visual.tokens.to(text.dtype)), visual

    def _questions(self, batch: Batch, text: Tensor, is_image: Tensor) -> Text:
        """For each image the text around it: of its document, behind the answer before it, up to the answer after it.

        Answers are the tokens with a label; in a prompt, which has none, it is all of the text.
        """
        images, per_image = self._expected_tokens(batch)
        rows, places = (indices[::per_image] for indices in is_image.nonzero(as_tuple=True))  # of the first tokens
        is_answer = batch["labels"] != IGNORE_INDEX if "labels" in batch else torch.zeros_like(is_image)
        starts = is_answer & ~F.pad(is_answer, (1, 0))[:, :-1]
        turn = starts.cumsum(dim=1)
        if (seq_idx := batch.get("seq_idx")) is not None:
            turn = turn + seq_idx * (turn.shape[1] + 1)
        is_text = ~is_answer & ~is_image
        if (mask := batch.get("mask")) is not None:
            is_text = is_text & mask
        chosen = is_text[rows] & (turn[rows] == turn[rows, places][:, None])  # (n, l)
        length = int(chosen.sum(dim=1).max()) if images else 0
        order = chosen.int().argsort(dim=1, descending=True, stable=True)[:, :length]
        return Text(text[rows[:, None], order], chosen.gather(1, order))

    def _connector_losses(self, batch: Batch, visual: Tokens | None) -> dict[str, Tensor]:
        """The connector's losses, summed over the labels: each label counts the mean of its document's images."""
        names = tuple(self.connector.losses)
        if not names:
            return {}
        if visual is None:
            return {name: batch["input_ids"].new_zeros((), dtype=torch.float32) for name in names}
        labels = self.is_target(batch)
        documents = batch.get("seq_idx")
        if documents is None:
            documents = torch.zeros_like(batch["input_ids"])
        row = torch.arange(len(labels), device=labels.device)[:, None]
        documents = documents + row * (documents.max() + 1)  # a number for each document of the batch
        is_image = batch["input_ids"] == IMAGE_TOKEN_ID
        of_image = documents[is_image][:: self._expected_tokens(batch)[1]]  # (n,)
        size = int(documents.max()) + 1
        answer_tokens = torch.bincount(documents[:, 1:][labels], minlength=size)
        images = torch.bincount(of_image, minlength=size)
        weights = (answer_tokens / images.clamp(min=1))[of_image]
        return {name: (visual.losses[name].float() * weights).sum() for name in names}

    def generate(self, batch: Batch, **decoding: Unpack[Decoding]) -> list[list[int]]:
        """Answers to a batch of prompts as token ids, without the end token; see `generation.generate_steps`."""
        with self._inference():
            return generate(self.language, self.embed(batch), batch.get("mask"), **decoding)

    def stream(self, batch: Batch, **decoding: Unpack[Decoding]) -> Iterator[list[tuple[int, int]]]:
        """The answers of `generate` step by step: (row, token id) of the rows that have not ended."""
        with self._inference():
            steps = generate_steps(self.language, self.embed(batch), batch.get("mask"), **decoding)
        while True:
            with self._inference():  # not around the whole: between two steps the caller's mode must be its own
                step = next(steps, None)
            if step is None:
                return
            yield step

    def first_token_probabilities(self, batch: Batch, token_ids: list[int]) -> Tensor:
        """(b, len(token_ids)) float32: how the probability of the answer's first token divides among these tokens."""
        with self._inference():
            hidden = self.language.hidden(self.embed(batch), mask=batch.get("mask"), seq_idx=batch.get("seq_idx"))
            logits = self.language.logits(last_real(hidden, batch.get("mask")))
            return logits[:, token_ids].float().softmax(dim=-1)

    def answer_log_likelihood(self, batch: Batch) -> Tensor:
        """(b,) float32: per row, the sum of the log-probabilities of its labels."""
        with self._inference():
            hidden, targets, rows, _ = self.answers(batch)
            losses = token_losses(self.language, hidden, targets)
            return -losses.new_zeros(len(batch["input_ids"])).index_add(0, rows, losses)

    @staticmethod
    def is_target(batch: Batch) -> Tensor:
        """(b, l - 1) bool: the tokens after the first that have a label; each is predicted from the one before it."""
        labels, seq_idx = batch["labels"], batch.get("seq_idx")
        is_target = labels[:, 1:] != IGNORE_INDEX
        if seq_idx is not None:  # a document's first token follows nothing
            is_target = is_target & (seq_idx[:, 1:] == seq_idx[:, :-1])
        return is_target

    def _check_image_tokens(self, batch: Batch, is_image: Tensor) -> None:
        images, per_image = self._expected_tokens(batch)
        if int(is_image.sum()) == images * per_image:
            return
        if (seq_idx := batch.get("seq_idx")) is None:
            counts = is_image.sum(dim=1).tolist()
        else:
            counts = torch.bincount(seq_idx[is_image], minlength=int(seq_idx.max()) + 1).tolist()
        keys = batch.get("keys") or [f"row {row}" for row in range(len(counts))]
        odd = {key: n for key, n in zip(keys, counts, strict=True) if (n % per_image if per_image else n)}
        named = odd or {key: n for key, n in zip(keys, counts, strict=True) if n}
        raise UserError(
            f"The batch has {images} images of {per_image} visual tokens each, but {sum(counts)} image tokens, in "
            f"{', '.join(f'{key} ({n})' for key, n in named.items()) or 'no sample'}. Every <image> needs one image."
        )

    def _expected_tokens(self, batch: Batch) -> tuple[int, int]:
        """Number of images in the batch, and of visual tokens per image."""
        if batch.get("features") is not None:
            self._check_features(batch["features"])
            images, height, width, _ = batch["features"].shape
            return images, tokens_per_image(self.connector, height, width, self.size)
        if batch.get("images") is not None:
            return len(batch["images"][0]), self.num_visual_tokens
        return 0, 0

    def _check_features(self, features: Tensor) -> None:
        channels = in_channels(self.connector)
        fits = features.ndim == 4 and channels in (None, features.shape[3]) and features.is_floating_point()
        if not fits:
            raise UserError(
                f"{title(self.connector)} was built for features of shape (images, height, width, {channels}), got a "
                f"{features.dtype} tensor of shape {tuple(features.shape)}. Cached features must come from the encoder "
                "that the model is built for."
            )

    def _zero(self) -> Tensor:
        """Zero, with a gradient of zero for what a batch without (visible) images leaves out.

        DistributedDataParallel waits for a gradient of every parameter, from every rank.
        """
        unused = chain(self.connector.parameters(), self.encoder.parameters() if self.encoder is not None else ())
        return connected_zero(*(parameter for parameter in unused if parameter.requires_grad))

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """No autograd and no dropout, whichever mode the modules are in; their modes are put back."""
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            for module in training:
                module.training = True


def token_losses(language: LanguageModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy (n,) float32 of targets (n,) given hidden (n, d_model), by `in_chunks`."""

    def cross_entropy(hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(language.logits(hidden).float(), targets, reduction="none")

    return in_chunks(cross_entropy, language.padded_vocab_size, hidden, targets)


def in_chunks(losses: Callable[..., Tensor], vocabulary: int, *tensors: Tensor) -> Tensor:
    """`losses(*tensors)` (n,) for tensors of n rows, where it makes logits (n, vocabulary) on the way.

    Once these would be large, it is called for some rows at a time, and again in the backward pass. (torch's
    `linear_cross_entropy` does that for one kind of loss and head, and slower: `python tests/bench/run.py losses`.)
    """
    size = max(1, _LOGITS_AT_ONCE // vocabulary)
    if len(tensors[0]) <= size:
        return losses(*tensors)
    chunks = zip(*(tensor.split(size) for tensor in tensors), strict=True)
    return torch.cat([checkpoint(losses, *chunk, use_reentrant=False) for chunk in chunks])


def _with_fewer_tokens(batch: Batch, before: int, after: int) -> Batch:
    """A batch made for `before` visual tokens per image, with the first `after` of each; what follows moves up."""
    if after == before:
        return batch
    is_image = batch["input_ids"] == IMAGE_TOKEN_ID
    place = (is_image.flatten().cumsum(0) - 1).view_as(is_image) % before  # of a visual token in its image
    keep = ~is_image | (place < after)
    order = (~keep).int().argsort(dim=1, stable=True)[:, : int(keep.sum(dim=1).max())]
    kept = keep.gather(1, order)
    fewer = dict(batch)
    fewer["mask"] = kept & batch["mask"].gather(1, order) if batch.get("mask") is not None else kept
    # What now fills up a row is padding of its last document.
    ends = {"input_ids": 0, "labels": IGNORE_INDEX}
    for name, end in ends.items():
        if batch.get(name) is not None:
            fewer[name] = batch[name].gather(1, order).masked_fill(~kept, end)
    if (seq_idx := batch.get("seq_idx")) is not None:
        last = seq_idx.amax(dim=1, keepdim=True)
        fewer["seq_idx"] = torch.where(kept, seq_idx.gather(1, order), last)
    return fewer


def _has_images(batch: Batch) -> bool:
    return batch.get("images") is not None or batch.get("features") is not None
