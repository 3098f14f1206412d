import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ablate.core.errors import UserError
from ablate.core.files import JsonLines, explain_full_disk, read_json, read_lines, write_json
from ablate.core.locks import exclusive


def test_json_round_trip_and_absence(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"a": [1, None]})
    assert read_json(tmp_path / "new" / "a.json") == {"a": [1, None]}
    assert read_json(tmp_path / "none.json") is None
    (tmp_path / "bad.json").write_text('{"a": ')
    assert read_json(tmp_path / "bad.json") is None


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, float("nan"))
    assert read_json(path) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_pipe_or_device_stays_one(tmp_path):
    """A file in the place of /dev/null would break the system for everybody."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_text)
        write_json(pipe, 1)
        assert read.result() == "1\n"
    assert pipe.is_fifo()
    assert [file.name for file in tmp_path.iterdir()] == ["pipe"]


def test_lines_after_the_checkpoint_and_a_cut_line_go(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = JsonLines(path)
    for step in (1, 2, 3):
        lines.append({"step": step})
    lines.close()
    with open(path, "a") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3]
    lines = JsonLines(path, after=2)
    lines.append({"step": 3, "again": True})
    assert [json.loads(line) for line in path.read_text().splitlines()][1:] == [{"step": 2}, {"step": 3, "again": True}]
    lines.close()


@pytest.mark.skipif(not hasattr(errno, "ENOSPC"), reason="no such error here")
@pytest.mark.parametrize("what", ["text", "checkpoint"])
def test_a_full_disk_is_told(tmp_path, what):
    try:
        full = open("/dev/full", "wb", buffering=0)  # noqa: SIM115 - closed below
    except OSError:
        pytest.skip("this system has no /dev/full")
    write = full.write if what == "text" else lambda data: torch.save({"weights": torch.zeros(100_000)}, full)
    with (
        full,
        pytest.raises(UserError, match=r"No space left .* free some space"),
        explain_full_disk(tmp_path / "none"),
    ):
        write(b"x")


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "denied"), RuntimeError("shape"), UserError("mine")])
def test_other_errors_pass(tmp_path, error):
    with pytest.raises(type(error)) as caught, explain_full_disk(tmp_path):
        raise error
    assert caught.value is error


def test_exclusive_refuses_or_waits(tmp_path):
    lock = tmp_path / "folder" / ".lock"
    with (
        exclusive(lock, busy="taken"),
        pytest.raises(UserError, match="taken"),
        exclusive(lock, busy="taken"),
    ):
        raise AssertionError("not reached")
    with exclusive(lock, busy="free again"):
        pass
