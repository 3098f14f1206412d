"""A run or checkpoint of ours as a model of the lmms-eval package (0.7), for all of its image tasks:

    lmms-eval --model ablate --model_args run=runs/demo/msc_csm-s0-1f2e3d4c --tasks mme --batch_size 32

The task's text becomes the user's turn in the run's own prompt template. A question has one image or none. Several
processes (`torchrun --nproc-per-node N -m lmms_eval ...`) take a GPU each.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image
from rich.progress import track

from ablate.api.answering import MAX_NEW_TOKENS, by_length, check_batch_size, load
from ablate.core.errors import UserError
from datamodules import IGNORE_INDEX
from datamodules.batches.collate import Row


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
        self.batch_size = check_batch_size(batch_size)
        self.trained = load(run, device=device or "auto")
        self.device = self.trained.device

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers: greedy unless the task asks for sampling, cut at the first of the task's `until` texts."""
        model = self.trained
        texts = [""] * len(requests)
        rows = [self._prompt(request) for request in requests]
        by_options: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            by_options.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(place)
        for places in by_options.values():
            options = requests[places[0]].args[1]
            for batch_places in self._batches(rows, places):
                generated = model.vlm.generate(
                    model.batch([rows[place] for place in batch_places]),
                    eos_id=model.tokenizer.eos_id,
                    **_sampling(options),
                )
                for place, ids in zip(batch_places, generated, strict=True):
                    texts[place] = _until(model.text(ids), options.get("until"))
                    self.cache_hook.add_partial("generate_until", requests[place].args[:2], texts[place])
        return texts

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """The continuation's mean negative log-likelihood (its tokens and the end token), and whether it is greedy's.

        A loss, not a likelihood: lmms-eval takes the smallest, despite the method's name.
        """
        model = self.trained
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        rows = [self._conversation(request) for request in requests]
        for places in self._batches(rows):
            chosen = [rows[place] for place in places]
            sums = model.vlm.answer_log_likelihood(model.batch(chosen)).tolist()
            answers = [[label for label in row.labels if label != IGNORE_INDEX] for row in chosen]
            prompts = [
                Row(row.key, row.input_ids[: -len(answer)], [], row.images)
                for row, answer in zip(chosen, answers, strict=True)
            ]
            greedy = model.vlm.generate(
                model.batch(prompts), max_new_tokens=max(map(len, answers)), eos_id=model.tokenizer.eos_id
            )
            for place, total, answer, said in zip(places, sums, answers, greedy, strict=True):
                results[place] = (-total / len(answer), [*said, model.tokenizer.eos_id] == answer)
        return results

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise UserError(f"The task {requests[0].args[-2]} asks in several rounds; models here answer one question.")

    # -- One request ------------------------------------------------------------------------------------------------

    def _prompt(self, request: Instance) -> Row:
        context, _, doc_to_visual, doc_id, task, split = request.args
        return self.trained.prompt(context, self._image(doc_to_visual, doc_id, task, split), key=_key(task, doc_id))

    def _conversation(self, request: Instance) -> Row:
        context, target, doc_to_visual, doc_id, task, split = request.args
        image = self._image(doc_to_visual, doc_id, task, split)
        continuation = target if isinstance(target, str) else target(self.task_dict[task][split][doc_id])
        turns = [{"from": "human", "value": context}, {"from": "gpt", "value": continuation.strip()}]
        key = _key(task, doc_id)
        encoded = self.trained.encoder.encode({"conversations": turns}, has_image=image is not None, key=key)
        end = max(place for place, label in enumerate(encoded.labels) if label != IGNORE_INDEX) + 1
        return Row(key, encoded.input_ids[:end], encoded.labels[:end], self.trained.towers(image, key=key))

    def _image(self, doc_to_visual: Any, doc_id: int, task: str, split: str) -> Image.Image | None:
        visuals = list(doc_to_visual(self.task_dict[task][split][doc_id]) or []) if callable(doc_to_visual) else []
        if not visuals:
            return None
        if len(visuals) > 1 or not isinstance(visuals[0], Image.Image):
            kinds = ", ".join(type(visual).__name__ for visual in visuals)
            raise UserError(f"{_key(task, doc_id)}: expected one image or none, got {len(visuals)} ({kinds}).")
        return visuals[0]

    def _batches(self, rows: Sequence[Row], places: Sequence[int] | None = None) -> Iterable[list[int]]:
        batches = by_length(rows, self.batch_size, places)
        return track(batches, "asking", disable=self.rank != 0, transient=True)


def _key(task: str, doc_id: int) -> str:
    return f"{task}, document {doc_id}"


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
