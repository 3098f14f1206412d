"""The contract of a recipe, on a small model, on the CPU."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ablate.core import config as config_io
from ablate.core.files import write_json, write_text
from ablate.model import VLM, build_vlm
from ablate.model.recipe import PARTS, Recipe, registry
from ablate.runs.config import RunConfig
from ablate.runs.folder import RunFiles
from ablate.runs.weights import save_weights
from datamodules import IGNORE_INDEX, IMAGE_TOKEN_ID

__all__ = ["CHECKS", "Subject", "registry", "subjects"]

ROWS = ((True, 3, 2), (False, 2, 3), (True, 0, 1))  # with an image, tokens of the question, of the answer


@dataclass(frozen=True)
class Subject:
    """A recipe, by name."""

    name: str

    def make(self) -> tuple[Recipe, VLM]:
        """The recipe, prepared for a model that is frozen as it says."""
        recipe, vlm = self.create(), _model(self.name)
        recipe.prepare(vlm)
        for module in recipe.modules():
            module.requires_grad_(False).eval()
        recipe.freeze(vlm)
        return recipe, vlm.train()

    def create(self) -> Recipe:
        return registry.create(self.name, **registry.get(self.name).test_fields(_finished_run(self.name)))


def subjects(name: str) -> dict[str, Subject]:
    return {"": Subject(name)}


def what_it_says_trains_and_nothing_else(subject: Subject) -> None:
    recipe, vlm = subject.make()
    unknown = set(recipe.trains) - set(PARTS)
    assert not unknown, f"trains {', '.join(unknown)}: the parts are {', '.join(PARTS)}"
    assert recipe.trains, "trains nothing"
    for part in PARTS:
        learning = [parameter.requires_grad for parameter in getattr(vlm, part).parameters()]
        assert any(learning) == (part in recipe.trains), f"{part}: {sum(learning)} of {len(learning)} parameters learn"


def a_loss_is_a_sum_over_the_labels(subject: Subject) -> None:
    recipe, vlm = subject.make()
    vlm.eval()
    loss = recipe.loss(vlm, _batch(*ROWS))
    assert loss.total.shape == (), f"a total of shape {tuple(loss.total.shape)}, expected a scalar"
    assert loss.total.isfinite()
    assert int(loss.count) == sum(answer for *_, answer in ROWS), f"counts {int(loss.count)} labels"
    assert set(loss.parts) >= set(recipe.losses), f"declares {recipe.losses}, returns {tuple(loss.parts)}"
    assert not any(part.requires_grad for part in loss.parts.values()), "parts must be detached"
    apart = [recipe.loss(vlm, batch) for batch in _apart(_batch(*ROWS), vlm)]
    assert all(set(each.parts) == set(loss.parts) for each in apart), "the names of the parts depend on the batch"
    error = float((sum(each.total for each in apart) - loss.total).detach().abs() / loss.total.detach().abs())
    assert error < 1e-4, f"micro-batches change the loss by {error:.1%}"


def every_parameter_that_trains_has_a_gradient_in_every_batch(subject: Subject) -> None:
    for rows in (ROWS, ((False, 3, 2),)):
        recipe, vlm = subject.make()
        recipe.loss(vlm, _batch(*rows)).total.backward()
        missing = [name for name, p in vlm.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing, f"no gradient: {', '.join(missing[:3])}"
        stray = [name for name, p in vlm.named_parameters() if not p.requires_grad and p.grad is not None]
        assert not stray, f"a gradient without learning: {', '.join(stray[:3])}"


def a_few_steps_lower_the_loss(subject: Subject) -> None:
    recipe, vlm = subject.make()
    vlm.eval()
    optimizer = torch.optim.Adam([p for p in vlm.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(12):
        loss = recipe.loss(vlm, _batch(*ROWS))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(float(loss.total.detach()))
    assert losses[-1] < losses[0], f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f}"


def what_it_made_is_no_part_of_the_model(subject: Subject) -> None:
    recipe, vlm = subject.make()
    before = set(_model(subject.name).state_dict())
    assert set(vlm.state_dict()) == before, "prepare has added tensors to the model: checkpoints would hold them"
    taught = [{name: tensor.clone() for name, tensor in module.state_dict().items()} for module in recipe.modules()]
    recipe.loss(vlm, _batch(*ROWS)).total.backward()
    for module, state in zip(recipe.modules(), taught, strict=True):
        changed = [name for name, tensor in module.state_dict().items() if not torch.equal(tensor, state[name])]
        assert not changed, f"a teacher's {', '.join(changed[:3])} changed"
        assert not any(parameter.grad is not None for parameter in module.parameters()), "a teacher has gradients"


CHECKS: list[Callable[[Subject], None]] = [
    what_it_says_trains_and_nothing_else,
    a_loss_is_a_sum_over_the_labels,
    every_parameter_that_trains_has_a_gradient_in_every_batch,
    a_few_steps_lower_the_loss,
    what_it_made_is_no_part_of_the_model,
]


def _config(settings: Mapping[str, Any], **fields: Any) -> RunConfig:
    overrides = [
        "encoder={names: [test_vit], weights: [random], image_size: [32], precision: float32}",
        "connector.name=linear",
        "language={d_model: 16, n_layer: 1, vocab_size: 48, ssm_cfg: {d_state: 8, headdim: 8}}",
        "tokenizer=none.json",
        *(f"{key}={value}" for key, value in fields.items()),
    ]
    plain = config_io.load(RunConfig, overrides=overrides)
    return config_io.load(RunConfig, [config_io.to_data(plain), settings]) if settings else plain


def _model(recipe: str) -> VLM:
    config = _config(registry.get(recipe).test_settings()[0])
    config.encoder.frozen = "encoder" not in registry.get(recipe).trains
    return build_vlm(config.model, seed=1)


@functools.cache
def _temporary_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()


@functools.cache
def _finished_run(recipe: str) -> Path:
    """The folder of a run of the same model, or of that of `test_settings`, from another seed."""
    files = RunFiles(Path(_temporary_folder().name) / "runs" / "group" / f"teacher-of-{recipe}")
    config = _config(registry.get(recipe).test_settings()[1], seed=7)
    write_text(files.config, config_io.to_yaml(config))
    save_weights(build_vlm(config.model, seed=7), files.weights, {"connector", "language"})
    write_json(files.training, {})
    return files.folder


def _batch(*rows: tuple[bool, int, int]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    visual = _model("align").num_visual_tokens
    ids = [
        [IMAGE_TOKEN_ID] * (visual * image) + torch.randint(1, 48, (question + answer,), generator=generator).tolist()
        for image, question, answer in rows
    ]
    length = max(map(len, ids))
    tokens = torch.tensor([row + [0] * (length - len(row)) for row in ids])
    mask = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in ids])
    labels = torch.full_like(tokens, IGNORE_INDEX)
    for place, (row, (_, _, answer)) in enumerate(zip(ids, rows, strict=True)):
        labels[place, len(row) - answer : len(row)] = tokens[place, len(row) - answer : len(row)]
    images = sum(image for image, *_ in rows)
    pixels = torch.randn(images, 3, 32, 32, generator=generator)
    batch = {"input_ids": tokens, "mask": mask, "labels": labels, "keys": [str(place) for place in range(len(ids))]}
    return batch | ({"images": [pixels]} if images else {})


def _apart(batch: dict[str, Any], vlm: VLM) -> list[dict[str, Any]]:
    """Each row as a batch of its own."""
    parts, image = [], 0
    for row in range(len(batch["input_ids"])):
        part: dict[str, Any] = {key: batch[key][row : row + 1] for key in ("input_ids", "mask", "labels", "keys")}
        images = int((part["input_ids"] == IMAGE_TOKEN_ID).sum()) // vlm.num_visual_tokens
        if images:
            part["images"] = [pixels[image : image + images] for pixels in batch["images"]]
        image += images
        parts.append(part)
    return parts
