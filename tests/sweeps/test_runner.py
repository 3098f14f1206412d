import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ablate.core.errors import UserError
from ablate.core.locks import RunLock, exclusive
from ablate.runs.folder import RunFiles
from ablate.sweeps.engines import attempts, environment
from ablate.sweeps.engines.runner import Runner
from ablate.sweeps.operations import stop_sweep
from ablate.sweeps.plan import PlannedRun

ALL = ["linear-s0", "linear-s1", "mlp-s0", "mlp-s1"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(attempts, "POLL_SECONDS", 0.01)


def test_all_runs_once_and_then_no_more(run, folder):
    status, text = run(table=True)
    assert status == 0
    assert folder.finished() == ALL
    assert "4 of 4 runs finished" in text
    assert "Difference from mlp" in text
    assert (folder.root / "small" / "table.md").exists()
    assert not list((folder.root / "small" / ".locks").iterdir())

    status, text = run()
    assert status == 0
    assert "4 runs, 4 already finished" in text
    assert all(len(folder.attempts(name)) == 1 for name in ALL)


@pytest.fixture
def source(tmp_path, monkeypatch):
    """The source of a connector; `made_of(folder)` says that a run was made of it as it is now."""
    (tmp_path / "mylab.py").write_text("WIDTH = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "mylab.py"


def made_of(folder, source, names=ALL):
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    for name in names:
        text = json.dumps({"sources": {"mylab": digest}})
        (folder.root / "small" / name / "provenance.json").write_text(text)


def test_finished_runs_of_changed_source_are_named_and_skipped(run, folder, source):
    run()
    made_of(folder, source)
    assert "changed" not in run()[1]
    source.write_text("WIDTH = 4\n")
    status, text = run(table=True)
    assert status == 0
    assert "4 finished runs were made before mylab changed: skipped; --rerun runs them again" in text
    assert "the source of mylab has changed since" in " ".join(text.split())
    assert all(len(folder.attempts(name)) == 1 for name in ALL)


def test_rerun_runs_what_changed_and_keeps_the_old_folders(run, folder, source):
    run()
    made_of(folder, source, ALL[:2])
    source.write_text("WIDTH = 4\n")
    made_of(folder, source, ALL[2:])
    old = (folder.root / "small" / "linear-s0" / "result.json").read_bytes()
    status, text = run(rerun=True, table=True)
    assert status == 0
    assert "2 finished runs were made before mylab changed: run again" in text
    kept = sorted(path.name for path in (folder.root / "small").glob("*.replaced-*"))
    assert kept == ["linear-s0.replaced-1", "linear-s1.replaced-1"]
    assert (folder.root / "small" / kept[0] / "result.json").read_bytes() == old
    assert folder.finished() == sorted([*ALL, *kept])
    assert all(len(folder.attempts(name)) == 1 for name in ALL)  # linear's in folders of their own
    assert "4 of 4 runs finished" in text  # the table passes the old ones over
    made_of(folder, source)
    assert "4 already finished" in run(rerun=True)[1]


def test_a_run_without_a_record_of_its_source_is_not_run_again(run, folder):
    run()
    assert "4 already finished" in run(rerun=True)[1]
    assert not list((folder.root / "small").glob("*.replaced-*"))


def test_the_plan_says_what_the_sweep_varies(run, folder):
    run()
    plan = json.loads((folder.root / "small" / "plan.json").read_text())
    assert plan["varies"] == {"connector.name": ALL, "seed": ALL}
    run(overrides=["seed=0"])
    plan = json.loads((folder.root / "small" / "plan.json").read_text())
    assert plan["varies"]["seed"] == ALL  # as of the first sweep


def test_the_log_holds_the_command_and_the_output(run, folder):
    run(only=["mlp"], overrides=["seed=0"])
    log = (folder.root / "small" / "mlp-s0" / "log.txt").read_text()
    assert log.startswith(f"$ {folder.launcher[0]} {folder.launcher[1]} train --config base.yaml group=small")
    assert "begins at 0" in log


def test_a_failed_run_is_told_and_does_not_stop_the_others(run, folder, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "connector.name=linear seed=1")
    status, text = run(table=True)
    assert status == 1
    assert folder.finished() == ["linear-s0", "mlp-s0", "mlp-s1"]
    assert "linear seed=1: failed after" in text
    assert "exit status 3" in text
    assert "│ error: the sky fell on this run" in text
    assert "3 of 4 runs finished, 1 failed" in text
    assert f"Continue with:  ablate sweep {folder.file}" in text
    assert "1 of 2†" in text  # in the table

    monkeypatch.delenv("FAKE_FAIL")
    status, text = run(table=True)
    assert status == 0
    assert folder.finished() == ALL
    assert len(folder.attempts("linear-s0")) == 1
    assert "†" not in text


def test_only_the_last_attempts_words_are_shown(run, folder, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "mlp")
    run(only=["mlp"])
    _, text = run(only=["mlp"], overrides=["seed=0"])
    assert text.count("the sky fell") == 1


def test_a_run_that_ends_without_a_result_has_failed(run, folder):
    (folder.path / "train.py").write_text("print('nothing to do')")
    status, text = run(only=["mlp"], overrides=["seed=0"])
    assert status == 1
    assert "it ended without a result.json" in text


def test_a_killed_run_names_the_signal(run, folder):
    (folder.path / "train.py").write_text("import os; os.kill(os.getpid(), 9)")
    status, text = run(only=["mlp"], overrides=["seed=0"])
    assert status == 1
    assert "killed by SIGKILL: out of memory?" in text


def test_shards_share_the_runs(run, folder):
    assert run(shard="0/2")[0] == 0
    assert folder.finished() == ["linear-s0", "mlp-s0"]
    assert run(shard="1/2")[0] == 0
    assert folder.finished() == ALL
    assert all(len(folder.attempts(name)) == 1 for name in ALL)


def test_jobs_run_side_by_side(run, folder, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "1.0")
    began = time.monotonic()
    status, text = run(jobs=4)
    assert status == 0
    assert "4 at a time" in text
    assert folder.finished() == ALL
    assert time.monotonic() - began < 4.0  # one after another they take more than four seconds


def test_jobs_get_a_gpu_each_and_their_share_of_the_cores(run, folder, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("WANDB_SWEEP_ID", "an agent around us")
    (folder.path / "train.py").write_text(
        "import os, time\nprint('env', os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS'],"
        "'WANDB_SWEEP_ID' in os.environ)\ntime.sleep(0.3)\n"
    )
    run(only=["mlp"], jobs=2)
    lines = [
        (folder.root / "small" / name / "log.txt").read_text().splitlines()[1].split() for name in ("mlp-s0", "mlp-s1")
    ]
    assert {line[1] for line in lines} == {"4", "GPU-7"}
    assert {line[2] for line in lines} == {str(max(1, len(os.sched_getaffinity(0)) // 2))}
    assert {line[3] for line in lines} == {"False"}


def gpu_run(devices=1, accelerator="auto"):
    settings = {"train.devices": devices, "train.accelerator": accelerator}
    return PlannedRun("x", {}, (), Path("x"), settings)


@given(gpus=st.integers(0, 8), jobs=st.integers(2, 8), devices=st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_jobs_never_share_the_gpus_of_a_run_on_several(gpus, jobs, devices):
    names, runs = [f"GPU-{i}" for i in range(gpus)], [gpu_run(each) for each in devices]
    needed = max(devices)
    if gpus and needed > 1 and jobs * needed > gpus:
        with pytest.raises(UserError, match=f"takes {jobs * needed}, but there are {gpus}"):
            environment._gpu_slots(names, jobs, runs)
        return
    slots = environment._gpu_slots(names, jobs, runs)
    assert len(slots) == (jobs if gpus else 0)
    assert all(len(slot) == needed for slot in slots)
    used = [gpu for slot in slots for gpu in slot]
    assert len(set(used)) == min(len(used), gpus)
    assert environment._gpu_slots(names, jobs, [gpu_run(4, "cpu")]) == ()


def test_jobs_that_share_a_gpu_are_said(run, folder, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    status, text = run(jobs=2)
    assert status == 0
    assert "2 jobs share 1 GPU" in text


@pytest.mark.parametrize(("answers", "mode"), [(True, "online"), (False, "offline")])
def test_wandbs_server_is_asked_once_for_all_runs(run, folder, resolve, monkeypatch, answers, mode):
    tracking = pytest.importorskip("ablate.training.loggers")
    asked = []
    monkeypatch.setattr(tracking, "server_answers", lambda: asked.append(1) or answers)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    (folder.path / "base.yaml").write_text("logger.wandb: auto\n")
    (folder.path / "train.py").write_text("import os; print('mode', os.environ['WANDB_MODE'])")
    run(only=["mlp"])
    assert len(asked) == 1
    assert f"mode {mode}" in (folder.root / "small" / "mlp-s1" / "log.txt").read_text()
    assert "WANDB_MODE" not in os.environ


def test_a_run_that_another_runner_has_is_left_to_it(run, folder):
    lock = RunLock(folder.root / "small" / ".locks" / "mlp-s0.lock")
    lock.acquire()
    status, text = run()
    assert status == 4
    assert folder.finished() == ["linear-s0", "linear-s1", "mlp-s1"]
    assert f"mlp seed=0: process {os.getpid()} on" in text
    assert "3 of 4 runs finished, 1 running elsewhere" in text
    lock.release()
    assert run()[0] == 0
    assert folder.finished() == ALL


def test_a_run_whose_training_lives_without_a_note_of_it_is_left_to_it(run, folder):
    """Its runner was killed between starting it and noting its number."""
    held = folder.root / "small" / "linear-s0" / ".lock"
    with exclusive(RunFiles(held.parent).lock):
        status, text = run()
    assert status == 4
    assert not folder.attempts("linear-s0")
    assert "linear seed=0: a training of an earlier runner runs it" in text
    assert not (held.parent / "failed.json").exists()
    assert run()[0] == 0
    assert folder.finished() == ALL


def test_a_run_that_another_runner_died_over_is_taken_up(run, folder, monkeypatch):
    """It is locked when its turn comes, and abandoned before the sweep ends."""
    lock = RunLock(folder.root / "small" / ".locks" / "linear-s0.lock")
    lock.acquire()
    ended = Runner._end

    def end_and_abandon(self, active):
        ended(self, active)
        lock.release()

    monkeypatch.setattr(Runner, "_end", end_and_abandon)
    assert run()[0] == 0
    assert folder.finished() == ALL


def test_two_runners_on_one_folder_run_nothing_twice(folder, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.3")
    runners = [start_runner(folder) for _ in range(3)]
    texts = [runner.communicate(timeout=60)[0] for runner in runners]
    assert {runner.returncode for runner in runners} <= {0, 4}, texts  # 4: another had the last one
    assert folder.finished() == ALL
    assert all(len(folder.attempts(name)) == 1 for name in ALL)


# -- Interruption: the runner in a process of its own ------------------------------------------------------------------


def start_runner(folder, *settings: str) -> subprocess.Popen:
    """The small sweep in a process of its own; `settings` are statements about `runner`, the module."""
    code = "\n".join(
        [
            "import importlib.util, sys",
            "from ablate.sweeps import operations",
            "from ablate.sweeps.engines import attempts, runner",
            f"spec = importlib.util.spec_from_file_location('conftest', {str(CONFTEST)!r})",
            "conftest = importlib.util.module_from_spec(spec); spec.loader.exec_module(conftest)",
            "attempts.POLL_SECONDS = 0.01",
            *settings,
            f"sys.exit(operations.run_sweep({str(folder.file)!r}, table=False, resolve=conftest.resolve, "
            f"launcher={folder.launcher!r}))",
        ]
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder.path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


CONFTEST = os.path.join(os.path.dirname(__file__), "conftest.py")


def wait_for(path, process):
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_saves_and_continues(folder, run, monkeypatch, signum):
    monkeypatch.setenv("FAKE_SECONDS", "2")
    process = start_runner(folder)
    wait_for(folder.root / "small" / "linear-s0" / "started", process)
    # As a terminal does: to the whole process group of the runner.
    os.killpg(process.pid, signum)
    text, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signum
    assert "interrupted after" in text
    assert f"Continue with:  ablate sweep {folder.file}" in text
    log = (folder.root / "small" / "linear-s0" / "log.txt").read_text()
    assert "stopped after a step, saved" in log  # it had the time to end cleanly
    assert not list((folder.root / "small" / ".locks").iterdir())
    assert not (folder.root / "small" / "linear-s0" / "failed.json").exists()

    monkeypatch.setenv("FAKE_SECONDS", "0")
    status, text = run()
    assert status == 0
    assert folder.finished() == ALL
    assert "linear seed=0: started, from its checkpoint" in text
    assert int(folder.attempts("linear-s0")[1].split()[1]) >= 1


def test_a_training_that_will_not_end_is_killed(folder, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "60")
    monkeypatch.setenv("FAKE_STUBBORN", "1")
    process = start_runner(folder, "runner.GRACE_SECONDS = (0.2, 0.2)")
    wait_for(folder.root / "small" / "linear-s0" / "started", process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    child = int(folder.attempts("linear-s0")[0].split()[0])
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


@pytest.mark.parametrize("before", [[], [signal.SIGINT], [signal.SIGTERM, signal.SIGINT]])
def test_sigquit_stops_at_once(folder, monkeypatch, before):
    monkeypatch.setenv("FAKE_SECONDS", "600")  # a step takes a minute
    process = start_runner(folder)
    wait_for(folder.root / "small" / "linear-s0" / "started", process)
    for signum in before:
        process.send_signal(signum)
        time.sleep(0.5)
        assert process.poll() is None
    process.send_signal(signal.SIGQUIT)
    process.communicate(timeout=20)
    assert process.returncode == 128 + [*before, signal.SIGQUIT][0]


def test_signals_to_runner_and_run_alike_save_once(folder, monkeypatch):
    """As a scheduler sends them to a whole job, and again."""
    monkeypatch.setenv("FAKE_SECONDS", "20")
    process = start_runner(folder)
    wait_for(folder.root / "small" / "linear-s0" / "started", process)
    child = int(folder.attempts("linear-s0")[0].split()[0])
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        process.send_signal(signum)
        os.kill(child, signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM)  # of signals that wait, either comes first
    assert "stopped after a step, saved" in (folder.root / "small" / "linear-s0" / "log.txt").read_text()


def test_a_killed_runners_training_is_not_run_again_beside_it(folder, run, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "600")  # it lives as long as the test, on a machine of any speed
    process = start_runner(folder)
    wait_for(folder.root / "small" / "linear-s0" / "started", process)
    process.kill()
    process.communicate()
    monkeypatch.setenv("FAKE_SECONDS", "0")
    status, text = run()
    assert status == 4
    assert "linear seed=0: process" in text
    assert len(folder.attempts("linear-s0")) == 1
    child = int(folder.attempts("linear-s0")[0].split()[0])
    os.kill(child, signal.SIGKILL)


# -- What is shown -----------------------------------------------------------------------------------------------------


def test_a_terminal_shows_the_runs_progress(run, monkeypatch, folder):
    monkeypatch.setenv("FAKE_SECONDS", "1.5")
    with open(folder.path / "screen", "w+") as screen:
        run(only=["mlp"], console=Console(file=screen, force_terminal=True, width=120))
        screen.seek(0)
        text = screen.read()
    assert re.search(r"train \d/10 · loss 2.500", text)
    assert "about 0:0" in text
    assert "1 of 2 runs" in text


def test_plain_output_reports_now_and_then(run, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "1")
    monkeypatch.setattr("ablate.sweeps.display.PLAIN_INTERVAL", 0.2)
    _, text = run(only=["mlp"], overrides=["seed=0"])
    assert re.search(r"mlp · \d0% · train \d/10 · loss 2.500", text)
    assert "\x1b" not in text


def test_mistakes_end_a_sweep_before_its_first_run(run, folder):
    with pytest.raises(UserError, match="jobs: got 0"):
        run(jobs=0)
    with pytest.raises(UserError, match="expected i/N"):
        run(shard="3/2")
    with pytest.raises(UserError, match="Unknown connector"):
        run(only=["nothing"])
    assert not folder.root.exists()


def test_the_command_to_continue_is_the_one_that_was_given(run, folder, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "mlp")
    _, text = run(["mlp", "linear"], "0/2", 2, ["seed=[0, 1]"], baseline="mlp")
    expected = f"ablate sweep {folder.file} 'seed=[0, 1]' --connector mlp,linear --shard 0/2 --jobs 2 --baseline mlp"
    assert f"Continue with:  {expected}" in text


def test_the_table_has_the_baseline_asked_for_and_another_if_it_is_not_there(run):
    _, text = run(baseline="linear", table=True)
    assert "Difference from linear" in text
    status, text = run(baseline="msc_csm", table=True)
    assert status == 0
    assert 'Unknown baseline "msc_csm"' in text
    assert "Difference from mlp" in text


def test_the_table_has_the_sweeps_other_connectors_but_no_runs_of_other_settings(run, folder, resolve):
    run(["linear"])
    stale = folder.root / "small" / "linear-s7"
    stale.mkdir()
    (stale / "config.yaml").write_text("connector: {name: linear}\nseed: 7\nblind: false\n")
    _, text = run(["mlp"], overrides=["seed=[0, 1]"], table=True)
    assert "4 of 4 runs finished" in text
    assert "Difference from mlp" in text
    assert "1 run with other settings left out; `ablate table runs/small` shows all." in text


def test_what_all_runs_share_is_made_once_before_the_first(run, folder, resolve):
    prepared = []
    run(prepare=prepared.append)
    assert len(prepared) == 1
    run(prepare=prepared.append)  # nothing is left to run
    assert len(prepared) == 1


def test_the_plan_lists_runs_that_never_started(run, folder):
    run(only=["mlp"], shard="0/2")
    plan = json.loads((folder.root / "small" / "plan.json").read_text())
    assert [entry["run_id"] for entry in plan["runs"]] == ["mlp-s0", "mlp-s1"]
    run(only=["linear"], shard="0/2")
    plan = json.loads((folder.root / "small" / "plan.json").read_text())
    # mlp-s1 was planned, never begun, and is no part of the plan any more.
    assert sorted(entry["run_id"] for entry in plan["runs"]) == ["linear-s0", "linear-s1", "mlp-s0"]


def test_a_dry_run_lists_and_writes_nothing(run, folder, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "mlp")
    run(overrides=["seed=0"])
    before = sorted(path for path in folder.root.rglob("*"))
    status, text = run(dry_run=True)
    assert status == 0
    assert sorted(path for path in folder.root.rglob("*")) == before
    lines = {line.split("  ")[0]: line for line in text.splitlines() if "seed=" in line}
    assert {label: line.split()[2] for label, line in lines.items() if "seed=0" in label} == {
        "linear seed=0": "finished",
        "mlp seed=0": "failed",
    }
    assert all("not started" in line for label, line in lines.items() if "seed=1" in label)
    assert "4 runs: 1 finished, 2 not started, 1 failed." in text.replace("\n", " ")


def test_a_cap_that_cuts_a_grid_is_said(run, folder):
    folder.file.write_text(folder.file.read_text() + "run_cap: 3\n")
    status, text = run()
    assert status == 0
    assert "run_cap keeps the first 3 of the grid's 4 runs" in text
    assert "run_cap" not in run(only=["mlp"])[1]


@pytest.mark.parametrize("override", ["seed=0,1,2", "seed=[0, 1, 2]"])
def test_several_values_of_an_override_are_swept(run, override):
    text = run(dry_run=True, overrides=[override])[1]
    assert "6 runs: 6 not started" in text


def test_a_run_that_a_signal_ended_is_tried_again_and_others_are_not(run, folder, monkeypatch):
    program = (folder.path / "train.py").read_text()
    killed = "if len(open(folder / 'attempts.txt').readlines()) < 3 and 'linear' in name: os.kill(os.getpid(), 9)\n"
    (folder.path / "train.py").write_text(program.replace("stopped = []\n", f"stopped = []\n{killed}"))
    monkeypatch.setenv("FAKE_FAIL", "mlp")
    status, text = run(retries=2, overrides=["seed=0"])
    assert status == 1
    assert len(folder.attempts("linear-s0")) == 3
    assert "killed by SIGKILL: out of memory?; tried again (2 of 2)" in text
    assert len(folder.attempts("mlp-s0")) == 1
    assert folder.finished() == ["linear-s0"]


def test_after_the_last_retry_it_has_failed(run, folder):
    (folder.path / "train.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    status, text = run(retries=1, only=["mlp"], overrides=["seed=0"])
    assert status == 1
    assert text.count("tried again") == 1
    assert "mlp: failed" in text


def test_waiting_takes_up_what_another_runner_leaves(run, folder):
    lock = RunLock(RunFiles(folder.root / "small" / "linear-s0").sweep_lock)
    assert lock.acquire()
    threading.Timer(1.0, lock.release).start()
    status, _ = run(wait=True)
    assert status == 0
    assert folder.finished() == ALL


def test_a_sweep_is_stopped_by_name(folder, monkeypatch, resolve):
    monkeypatch.setenv("FAKE_SECONDS", "20")
    process = start_runner(folder)
    wait_for(folder.root / "small" / "linear-s0" / "started", process)
    monkeypatch.chdir(folder.path)
    console = Console(file=io.StringIO(), width=120)
    assert stop_sweep(folder.file, console=console, resolve=resolve) == 0
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Asked 1 process on this machine to stop." in console.file.getvalue()
    assert "stopped after a step, saved" in (folder.root / "small" / "linear-s0" / "log.txt").read_text()


def test_what_a_dead_run_leaves_behind_is_ended_and_not_taken_for_another_training(run, folder):
    """A worker that outlives its training holds a copy of its lock for a while."""
    (folder.path / "train.py").write_text(
        "import fcntl, os, sys, time\n"
        "from pathlib import Path\n"
        "values = dict(a.split('=', 1) for a in sys.argv[1:] if '=' in a)\n"
        "folder = Path(values.get('root', 'runs')) / 'small' / f\"{values['connector.name']}-s{values['seed']}\"\n"
        f"file = open(folder / {RunFiles(Path()).lock.name!r}, 'a')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    time.sleep(60)\n"
        "(folder / 'worker').write_text(str(pid))\n"
        "os._exit(3)\n"
    )
    status, text = run(only=["mlp"], overrides=["seed=0"])
    assert status == 1
    assert "mlp: failed" in text
    worker = int((folder.root / "small" / "mlp-s0" / "worker").read_text())
    stat = Path(f"/proc/{worker}/stat")
    assert not stat.exists() or stat.read_text().split()[2] == "Z"
