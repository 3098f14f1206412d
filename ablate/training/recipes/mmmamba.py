"""The stages of mmMamba (arXiv 2502.13145, section 3.2): a decoder's attention layers become Mamba-2 layers.

The student is a model whose config says `mmmamba` for the layers that are converted (`language.fields.layers`); the
teacher is a trained run with attention there. All else is the same, and is the teacher's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.core.errors import UserError
from ablate.model.languages.attention import Attention
from ablate.model.languages.stack import Block, StackedLanguageModel
from ablate.model.recipe import Recipe, register, registry
from ablate.model.vlm import VLM, Batch, Loss, in_chunks
from ablate.model.weights import read_tensors
from ablate.runs.folder import RunFiles
from ablate.runs.weights import load_run
from ablate.ssm import MMMambaMixer
from ablate.ssm.mmmamba import NEW, TAKEN
from ablate.ssm.precision import connected_zero

Seeding = Literal["mimic", "inherit", "scratch"]


class FromTeacher(Recipe):
    """What the stages have in common: a teacher, and which parameters of the converted layers learn.

    Args:
        teacher: folder of the teacher's run.
        seeding: how converted layers begin. mimic: with the teacher's projections, and new parameters near linear
            attention; inherit: with the projections alone; scratch: with neither. All else is the teacher's.
        layers_from: folder of a run of an earlier stage, whose converted layers these begin as, in place of `seeding`.
            It may have converted more layers than these.
        taken: whether the projections of queries, keys and values learn, beside the new parameters.
        rates: as in every recipe.

    Raises:
        UserError: a teacher that does not fit the student.
    """

    trains: ClassVar = ("language",)

    def __init__(
        self,
        *,
        teacher: str,
        seeding: Seeding = "mimic",
        layers_from: str | None = None,
        taken: bool = True,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(rates=rates)
        self.folder, self.seeding, self.taken = Path(teacher), seeding, taken
        self.earlier = None if layers_from is None else Path(layers_from)

    @classmethod
    def test_fields(cls, run: Path) -> Mapping[str, Any]:
        return {"teacher": str(run), "seeding": "inherit"}

    @classmethod
    def test_settings(cls) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        shared = {"name": "decoder", "d_model": 16, "n_layer": 2, "vocab_size": 48}
        return (
            {"language": {**shared, "fields": {"heads": 2, "layers": "mmmamba+attention"}}},
            {"language": {**shared, "fields": {"heads": 2}}},
        )

    def freeze(self, vlm: VLM) -> None:
        vlm.requires_grad_(False)
        for mixer in converted(vlm):
            for name in (*NEW, *(TAKEN if self.taken else ())):
                if (each := getattr(mixer, name)) is not None:
                    each.requires_grad_(True)

    def prepare(self, vlm: VLM) -> None:
        config, self.teacher = load_run(self.folder)
        if "encoder" in registry.get(config.train.stage).trains:
            raise UserError(f"The teacher {self.folder} has trained its encoder, which a student does not take over.")
        check_teacher(vlm, self.teacher)
        seed(vlm, self.teacher, self.seeding)
        if self.earlier is not None:
            take_layers(vlm, RunFiles(self.earlier).weights)

    def modules(self) -> Iterable[nn.Module]:
        return [self.teacher]

    def weights(self) -> Iterable[Path]:
        folders = [self.folder, *([] if self.earlier is None else [self.earlier])]
        return [RunFiles(folder).weights for folder in folders]


@register("mmmamba_layers")
class Layers(FromTeacher):
    """Stages 1 (`taken=false`) and 2: each converted layer learns what the teacher's attention makes of the same input.

    The loss is the mean square error of the heads' outputs before their projection, over channels and over a sample's
    tokens (padding not counted), as the mean over the layers, times `scale`. Each label counts it once for its sample.

    Args:
        scale: of the loss; 1000 as released.
        teacher, seeding, layers_from, taken, rates: see `FromTeacher`.
    """

    losses = ("layers",)

    def __init__(
        self,
        *,
        teacher: str,
        seeding: Seeding = "mimic",
        layers_from: str | None = None,
        taken: bool = True,
        scale: float = 1000.0,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(teacher=teacher, seeding=seeding, layers_from=layers_from, taken=taken, rates=rates)
        self.scale = scale

    def loss(self, vlm: VLM, batch: Batch) -> Loss:
        mask = _real(batch)
        errors: list[Tensor] = []
        pairs = list(zip(_layers(self.teacher), _layers(vlm), strict=True))
        with ExitStack() as stack:
            for theirs, ours in pairs:
                if isinstance(ours.mixer, MMMambaMixer):
                    stack.enter_context(_compared(theirs.mixer, ours.mixer, errors, mask))
            with torch.no_grad():
                embeddings = self.teacher.embed(batch)
                self.teacher.language.hidden(embeddings, mask=batch.get("mask"), seq_idx=batch.get("seq_idx"))
        by_row = self.scale * torch.stack(errors).mean(dim=0)  # (b,)
        total = (by_row * _labels(batch)).sum()
        return Loss(total, _labels(batch).sum(), {"layers": total.detach()})


@register("mmmamba_logits")
class Logits(FromTeacher):
    """Stage 3: the student as a whole learns the teacher's distribution over the next token, KL(teacher || student).

    It is the mean over all real tokens of a sample, or over its answers; each label counts it once for its sample. (As
    released it is a sum over tokens, so that its size grows with their number.)

    Args:
        tokens: "all" or "answers".
        teacher, seeding, layers_from, taken, rates: see `FromTeacher`.
    """

    losses = ("kl",)

    def __init__(
        self,
        *,
        teacher: str,
        seeding: Seeding = "mimic",
        layers_from: str | None = None,
        taken: bool = True,
        tokens: Literal["all", "answers"] = "all",
        rates: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(teacher=teacher, seeding=seeding, layers_from=layers_from, taken=taken, rates=rates)
        self.tokens = tokens

    def loss(self, vlm: VLM, batch: Batch) -> Loss:
        chosen = F.pad(vlm.is_target(batch), (0, 1)) if self.tokens == "answers" else _real(batch)
        mine, theirs = _hidden(vlm, batch), _no_grad(_hidden, self.teacher, batch)

        def divergence(hidden: Tensor, taught: Tensor) -> Tensor:
            ours = vlm.language.logits(hidden).float().log_softmax(-1)
            target = self.teacher.language.logits(taught).float().log_softmax(-1)
            return F.kl_div(ours, target, log_target=True, reduction="none").sum(-1)

        rows = chosen.nonzero()[:, 0]
        each = in_chunks(divergence, vlm.language.padded_vocab_size, mine[chosen], theirs[chosen])
        sums = each.new_zeros(len(chosen)).index_add(0, rows, each)
        by_row = sums / chosen.sum(dim=1).clamp(min=1)
        learning = [parameter for parameter in vlm.parameters() if parameter.requires_grad]
        total = (by_row * _labels(batch)).sum() + connected_zero(*learning)
        return Loss(total, _labels(batch).sum(), {"kl": total.detach()})


def converted(vlm: VLM) -> list[MMMambaMixer]:
    """The mixers that stand where the teacher has attention.

    Raises:
        UserError: there are none.
    """
    mixers = [layer.mixer for layer in _layers(vlm) if isinstance(layer.mixer, MMMambaMixer)]
    if not mixers:
        raise UserError(
            "No layer is converted: name them in language.fields.layers, as in mmmamba or attention+3*mmmamba."
        )
    return mixers


def check_teacher(vlm: VLM, teacher: VLM) -> None:
    """Raise UserError if the student is not the teacher with some attention layers converted."""
    ours, theirs = _layers(vlm), _layers(teacher)
    if len(ours) != len(theirs):
        raise UserError(f"The student has {len(ours)} layers, the teacher {len(theirs)}: expected as many.")
    for place, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if isinstance(mine.mixer, MMMambaMixer) and not isinstance(other.mixer, Attention):
            kind = type(other.mixer).__name__
            raise UserError(f"Layer {place} of the teacher is {kind}, not attention: it cannot be converted.")
    state, wanted = teacher.state_dict(), vlm.state_dict()
    new = set(_tensors(vlm, NEW))
    differing = [
        name
        for name in sorted((wanted.keys() - new) | state.keys())
        if name not in state or name not in wanted or state[name].shape != wanted[name].shape
    ]
    if differing:
        raise UserError(
            f"The teacher is of another model than the student, apart from its converted layers: {differing[0]}"
            f"{f' and {len(differing) - 1} more tensors differ' if len(differing) > 1 else ' differs'}."
        )
    if vlm.num_visual_tokens != teacher.num_visual_tokens:
        raise UserError(f"{vlm.num_visual_tokens} visual tokens, but the teacher's are {teacher.num_visual_tokens}.")


@torch.no_grad()
def seed(vlm: VLM, teacher: VLM, how: Seeding) -> None:
    """Give the student the teacher's tensors, as copies, and its converted layers their initial values."""
    fresh = set(_tensors(vlm, TAKEN)) if how == "scratch" else set()
    tensors = {name: tensor for name, tensor in teacher.state_dict().items() if name not in fresh}
    vlm.load_state_dict(tensors, strict=False)  # copies
    for mixer in converted(vlm):
        if how == "mimic":
            mixer.mimic()
        else:
            mixer.plain()


@torch.no_grad()
def take_layers(vlm: VLM, weights: Path) -> None:
    """Give the student's converted layers the values that they have in a run's weights.

    Raises:
        UserError: the run has not converted one of them, or at other sizes.
    """
    found, wanted = read_tensors(weights), vlm.state_dict()
    names = _tensors(vlm, (*NEW, *TAKEN))
    if missing := [name for name in names if name not in found or found[name].shape != wanted[name].shape]:
        raise UserError(f"{weights} has no {missing[0]} of this size: name a run that has converted these layers.")
    vlm.load_state_dict({name: found[name] for name in names}, strict=False)


def _layers(vlm: VLM) -> list[Block]:
    if not isinstance(vlm.language, StackedLanguageModel):
        raise UserError(
            f"{type(vlm.language).__name__} has no layers that can be converted: set language.name=decoder."
        )
    return list(vlm.language.backbone.layers)


def _tensors(vlm: VLM, names: Iterable[str]) -> list[str]:
    """The model's names of these parameters of the converted layers."""
    places = [place for place, layer in enumerate(_layers(vlm)) if isinstance(layer.mixer, MMMambaMixer)]
    beginnings = tuple(f"language.backbone.layers.{place}.mixer.{name}" for place in places for name in names)
    return [name for name in vlm.state_dict() if name.startswith(beginnings)]


def _hidden(vlm: VLM, batch: Batch) -> Tensor:
    return vlm.language.hidden(vlm.embed(batch), mask=batch.get("mask"), seq_idx=batch.get("seq_idx"))


def _no_grad(function: Any, *args: Any) -> Tensor:
    with torch.no_grad():
        return function(*args)


def _real(batch: Batch) -> Tensor:
    mask = batch.get("mask")
    return torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask


def _labels(batch: Batch) -> Tensor:
    return VLM.is_target(batch).sum(dim=1)


@contextmanager
def _compared(teacher: Attention, student: MMMambaMixer, errors: list[Tensor], mask: Tensor) -> Iterator[None]:
    """While the teacher runs, run the student's mixer on the same inputs; add the error of each row (b,) to `errors`.

    What is compared enters the output projections: the heads before they are mixed.
    """
    inputs: list[tuple[Any, Any]] = []

    def heads(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        target = args[0]
        (hidden,), options = inputs.pop()
        found: list[Tensor] = []
        handle = student.out_proj.register_forward_pre_hook(lambda _, args: found.append(args[0]))
        try:
            with torch.enable_grad():
                student(hidden.detach(), mask=options.get("mask"), seq_idx=options.get("seq_idx"))
        finally:
            handle.remove()
        with torch.enable_grad():
            squares = (found[0].float() - target.detach().float()).square().mean(dim=-1)  # (b, l)
            errors.append((squares * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1))

    handles = [
        teacher.register_forward_pre_hook(lambda _, args, kwargs: inputs.append((args, kwargs)), with_kwargs=True),
        teacher.out_proj.register_forward_pre_hook(heads),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
