import io
import json

import pytest
from rich.console import Console

from ablate.core.console import Reporter, duration


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def __call__(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr("ablate.core.console.time.monotonic", clock)
    return clock


def console(terminal=False):
    return Console(file=io.StringIO(), force_terminal=terminal, width=120)


def test_plain_lines_now_and_then(clock):
    out = console()
    with Reporter(None, out, every=10).phase("train", 40) as phase:
        for step in range(1, 41):
            clock.now += 2
            phase.update(step, text=f"loss {step}")
    lines = out.file.getvalue().splitlines()
    assert lines[0] == "train 1/40 · loss 1 · 1m18s left"
    assert lines[1] == "train 6/40 · loss 6 · 1m08s left"
    assert lines[-1] == "train 40/40 · loss 40"
    assert len(lines) == 9


def test_the_pace_of_an_earlier_attempt_does_not_count(clock):
    phase = Reporter(None, None).phase("train", 100, start=90)
    assert phase.eta_seconds() is None
    clock.now += 4
    phase.update(92)
    assert phase.eta_seconds() == 16.0


def test_file_once_a_second_and_at_the_end(clock, tmp_path):
    def state():
        return json.loads((tmp_path / "progress.json").read_text())

    phase = Reporter(tmp_path, None).phase("train", 10)
    assert state() == {"phase": "train", "step": 0, "steps": 10, "eta_seconds": None}
    clock.now += 0.5
    phase.update(1)
    assert state()["step"] == 0
    clock.now += 0.5
    phase.update(2)
    assert state() == {"phase": "train", "step": 2, "steps": 10, "eta_seconds": 4.0}
    phase.update(10)
    assert state()["eta_seconds"] == 0.0


def test_a_bar_in_a_terminal():
    out = console(terminal=True)
    with Reporter(None, out).phase("train", 3) as phase:
        phase.update(3, text="loss 1.5")
    assert "3/3" in out.file.getvalue()
    assert "loss 1.5" in out.file.getvalue()


def test_text_in_brackets_is_shown_as_it_is():
    out = console()
    Reporter(None, out).say("skipped shard[0]")
    assert out.file.getvalue() == "skipped shard[0]\n"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59.6, "1m00s"), (187, "3m07s"), (7500, "2h05m")])
def test_duration(seconds, text):
    assert duration(seconds) == text
