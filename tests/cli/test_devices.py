"""Each process of an evaluation makes its GPU the current one: kernels are launched there, wherever the tensors are."""

import queue
import types

import pytest
import torch

import ablate.model
import ablate.training
from ablate.cli import scoring


@pytest.mark.parametrize(("device", "expected"), [("cuda", "cuda:3"), ("cpu", "cpu")])
def test_each_process_of_an_evaluation_takes_its_gpu(monkeypatch, device, expected):
    moved = []
    monkeypatch.setattr(scoring, "_die_with_parent", lambda: None)
    monkeypatch.setattr(scoring.signal, "signal", lambda *_: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(ablate.training, "load_run", lambda weights: (None, "the model"))
    monkeypatch.setattr(ablate.model, "move_to_device", lambda vlm, device: moved.append((vlm, device)))
    monkeypatch.setattr(scoring, "create_benchmarks", lambda config: [])
    monkeypatch.setattr(scoring, "_ask", lambda *_, **__: None)
    events = queue.Queue()
    scoring._ask_part(types.SimpleNamespace(weights="", config=None), device, 3, 4, 1, events)
    assert moved == [("the model", expected)]
    assert events.get_nowait() == ("finished",)
