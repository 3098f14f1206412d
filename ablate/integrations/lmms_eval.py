"""A run or checkpoint of ours as a model of the lmms-eval package (0.7), for all of its image tasks:

    lmms-eval --model ablate --model_args run=runs/demo/msc_csm-s0-1f2e3d4c --tasks mme --batch_size 32

The task's text becomes the user's turn in the run's own prompt template. A question has one image or none. Several
processes (`torchrun --nproc-per-node N -m lmms_eval ...`) take a GPU each.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image
from rich.progress import track

from ablate.errors import UserError
from ablate.training import load_run
from datamodules import IGNORE_INDEX
from datamodules.collate import Batch, Row, collate
from datamodules.conversation import ConversationEncoder
from datamodules.images import to_rgb
from datamodules.tokenizer import Tokenizer

MAX_NEW_TOKENS = 128  # where a task does not say


class Ablate(lmms):
    """See the module.

    Args:
        run: a run's folder, or a weights file or checkpoint in it.
        batch_size: questions at once.
        device: such as "cpu"; by default this process's GPU if there is one.
        max_batch_size: as lmms-eval passes it; not used.
    """

    is_simple = True

    def __init__(
        self, run: str, batch_size: int | str = 1, device: str | None = None, max_batch_size: int | None = None
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise UserError(f"batch_size is {batch_size!r}: expected a number from 1 on.")
        if device is None:
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
        config, vlm = load_run(Path(run))
        self.vlm = vlm.to(device)
        self.device, self.batch_size = torch.device(device), int(batch_size)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # kernels are launched on the current device, whatever their tensors' is
        self.tokenizer = Tokenizer.from_file(config.tokenizer)
        self.encoder = ConversationEncoder(self.tokenizer, config.data.prompt_template, vlm.num_visual_tokens)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers: greedy unless the task asks for sampling, cut at the first of the task's `until` texts."""
        texts = [""] * len(requests)
        rows = [self._prompt(request) for request in requests]
        by_options: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            by_options.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(place)
        for places in by_options.values():
            options = requests[places[0]].args[1]
            for batch_places in self._batches(places, rows):
                generated = self.vlm.generate(
                    self._batch([rows[place] for place in batch_places]),
                    eos_id=self.tokenizer.eos_id,
                    **_sampling(options),
                )
                for place, ids in zip(batch_places, generated, strict=True):
                    text = self.tokenizer.decode(ids, skip_special=True).strip()
                    texts[place] = _until(text, options.get("until"))
                    self.cache_hook.add_partial("generate_until", requests[place].args[:2], texts[place])
        return texts

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """The continuation's mean negative log-likelihood (its tokens and the end token), and whether it is greedy's.

        A loss, not a likelihood: lmms-eval takes the smallest, whatever the method's name.
        """
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        rows = [self._conversation(request) for request in requests]
        for places in self._batches(range(len(rows)), rows):
            chosen = [rows[place] for place in places]
            sums = self.vlm.answer_log_likelihood(self._batch(chosen)).tolist()
            answers = [[label for label in row.labels if label != IGNORE_INDEX] for row in chosen]
            prompts = [
                Row(row.key, row.input_ids[: -len(answer)], [], row.images)
                for row, answer in zip(chosen, answers, strict=True)
            ]
            greedy = self.vlm.generate(
                self._batch(prompts), max_new_tokens=max(map(len, answers)), eos_id=self.tokenizer.eos_id
            )
            for place, total, answer, said in zip(places, sums, answers, greedy, strict=True):
                results[place] = (-total / len(answer), [*said, self.tokenizer.eos_id] == answer)
        return results

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise UserError(f"The task {requests[0].args[-2]} asks in several rounds; models here answer one question.")

    # -- One request ------------------------------------------------------------------------------------------------

    def _prompt(self, request: Instance) -> Row:
        context, _, doc_to_visual, doc_id, task, split = request.args
        image = self._image(doc_to_visual, doc_id, task, split)
        key = f"{task}:{doc_id}"
        ids = self.encoder.prompt_ids(context, has_image=image is not None, key=key)
        return Row(key, ids, [], self._towers(image))

    def _conversation(self, request: Instance) -> Row:
        context, target, doc_to_visual, doc_id, task, split = request.args
        continuation = target if isinstance(target, str) else target(self.task_dict[task][split][doc_id])
        image = self._image(doc_to_visual, doc_id, task, split)
        turns = [{"from": "human", "value": context}, {"from": "gpt", "value": continuation.strip()}]
        key = f"{task}:{doc_id}"
        encoded = self.encoder.encode({"conversations": turns}, has_image=image is not None, key=key)
        end = max(place for place, label in enumerate(encoded.labels) if label != IGNORE_INDEX) + 1
        return Row(key, encoded.input_ids[:end], encoded.labels[:end], self._towers(image))

    def _image(self, doc_to_visual: Any, doc_id: int, task: str, split: str) -> Image.Image | None:
        visuals = list(doc_to_visual(self.task_dict[task][split][doc_id]) or []) if callable(doc_to_visual) else []
        if not visuals:
            return None
        if len(visuals) > 1 or not isinstance(visuals[0], Image.Image):
            kinds = ", ".join(type(visual).__name__ for visual in visuals)
            raise UserError(f"{task}, document {doc_id}: expected one image or none, got {len(visuals)} ({kinds}).")
        return to_rgb(visuals[0], key=f"{task}, document {doc_id}")

    def _towers(self, image: Image.Image | None) -> list[torch.Tensor] | None:
        return None if image is None else [transform(image) for transform in self.vlm.encoder.transforms]

    # -- Batches ----------------------------------------------------------------------------------------------------

    def _batches(self, places: Sequence[int], rows: Sequence[Row]) -> Iterator[list[int]]:
        """Rows of about one length together, the longest first."""
        ordered = sorted(places, key=lambda place: len(rows[place].input_ids), reverse=True)
        starts = range(0, len(ordered), self.batch_size)
        for start in track(starts, "asking", disable=self.rank != 0, transient=True):
            yield ordered[start : start + self.batch_size]

    def _batch(self, rows: Sequence[Row]) -> Batch:
        batch = collate(rows, pad_id=self.tokenizer.pad_id)
        moved = {
            name: value.to(self.device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()
        }
        if "images" in batch:
            moved["images"] = [tower.to(self.device) for tower in batch["images"]]
        return moved


def _sampling(options: dict[str, Any]) -> dict[str, Any]:
    """A task's generation options as our `generate` takes them."""
    if (options.get("num_beams") or 1) > 1:
        raise UserError(f"The task asks for {options['num_beams']} beams; generation here is greedy or sampled.")
    temperature = float(options.get("temperature") or 0)
    if options.get("do_sample") is False:
        temperature = 0.0
    return {
        "max_new_tokens": int(options.get("max_new_tokens") or MAX_NEW_TOKENS),
        "temperature": temperature,
        "top_p": float(options.get("top_p") or 1),
    }


def _until(text: str, until: str | Sequence[str] | None) -> str:
    for stop in [until] if isinstance(until, str) else until or []:
        text = text.partition(stop)[0] if stop else text
    return text
