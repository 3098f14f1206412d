"""A recipe that distils from a teacher: the answers' logits of another run (Hinton et al. 2015, arXiv 1503.02531)."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.core.errors import UserError
from ablate.model.recipe import Recipe, register
from ablate.model.vlm import VLM, Loss, in_chunks
from ablate.runs.folder import RunFiles
from ablate.runs.weights import load_run


@register("distil")
class Distil(Recipe):
    """Connector and language model learn the answers, and the teacher's distribution over each of their tokens.

    Args:
        teacher: folder of a finished run with the same tokenizer, encoder and number of visual tokens.
        weight: of the Kullback-Leibler divergence from the teacher.
        rates: as in every recipe.
    """

    trains = ("connector", "language")
    losses = ("kl",)

    def __init__(self, *, teacher: str, weight: float = 1.0, rates: Mapping[str, float] | None = None) -> None:
        super().__init__(rates=rates)
        self.folder, self.weight = Path(teacher), weight

    @classmethod
    def test_fields(cls, run: Path) -> dict[str, Any]:
        return {"teacher": str(run)}

    def prepare(self, vlm: VLM) -> None:
        _, self.teacher = load_run(self.folder)
        sizes = [(each.language.padded_vocab_size, each.num_visual_tokens) for each in (vlm, self.teacher)]
        if sizes[0] != sizes[1]:
            raise UserError(f"(vocabulary, visual tokens) are {sizes[0]}, but the teacher's are {sizes[1]}.")

    def modules(self) -> Iterable[nn.Module]:
        return [self.teacher]

    def weights(self) -> Iterable[Path]:
        return [RunFiles(self.folder).weights]

    def loss(self, vlm: VLM, batch: Mapping[str, Any]) -> Loss:
        answers = vlm.answers(batch)
        with torch.no_grad():
            taught = self.teacher.answers(batch).hidden
        loss = vlm.loss(batch, answers)

        def divergence(student: Tensor, teacher: Tensor) -> Tensor:
            ours = vlm.language.logits(student).float().log_softmax(dim=-1)
            theirs = self.teacher.language.logits(teacher).float().log_softmax(dim=-1)
            return F.kl_div(ours, theirs, log_target=True, reduction="none").sum(dim=-1)

        kl = self.weight * in_chunks(divergence, vlm.language.padded_vocab_size, answers.hidden, taught).sum()
        return Loss(loss.total + kl, loss.count, {**loss.parts, "kl": kl.detach()})
