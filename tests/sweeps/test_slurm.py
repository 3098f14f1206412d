"""The slurm engine on a real SLURM of one node, on this machine's loopback."""

import io
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from ablate.core.config import to_data
from ablate.core.errors import UserError
from ablate.sweeps.engines.slurm import Slurm
from ablate.sweeps.operations import engine_of, run_sweep, stop_sweep

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "srun")
ALL = ["linear-s0", "linear-s1", "mlp-s0", "mlp-s1"]

CONF = """
ClusterName=loop
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={base}/munge.sock
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd.pid
SlurmctldLogFile={base}/slurmctld.log
SlurmdLogFile={base}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
KillWait=30
MinJobAge=3600
SchedulerParameters=requeue_delay=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_until(condition, seconds=60, what="it"):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} has not come within {seconds} s"
        time.sleep(0.1)
    return value


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """SLURM's daemons, on loopback, under a folder of their own; SLURM_CONF is set while it lives."""
    missing = [program for program in PROGRAMS if not (shutil.which(program) or Path("/usr/sbin", program).exists())]
    if missing or os.geteuid() != 0:
        pytest.skip(f"a SLURM of our own needs root and {', '.join(missing or PROGRAMS[:3])}: `make setup-engines`")
    base = tmp_path_factory.mktemp("slurm")
    path = f"{os.environ['PATH']}:/usr/sbin"
    host = socket.gethostname().partition(".")[0]
    (base / "state").mkdir()
    (base / "spool").mkdir()
    (base / "key").write_bytes(os.urandom(128))
    (base / "key").chmod(0o600)
    (base / "slurm.conf").write_text(CONF.format(host=host, base=base, ports=free_ports(2)))
    environment = {**os.environ, "PATH": path, "SLURM_CONF": str(base / "slurm.conf")}
    files = {"key-file": "key", "socket": "munge.sock", "pid-file": "munged.pid", "log-file": "munged.log"}
    munge = [f"--{option}={base / file}" for option, file in {**files, "seed-file": "seed"}.items()]

    def start(*command):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    def idle():
        listed = subprocess.run(
            ["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True, timeout=60
        )
        return listed.stdout.strip() == "idle"

    patch = pytest.MonkeyPatch()
    patch.setenv("SLURM_CONF", environment["SLURM_CONF"])
    try:
        start("munged", "--force", *munge, "--num-threads=2")
        start("slurmctld", "-c", "-f", environment["SLURM_CONF"])
        start("slurmd", "-f", environment["SLURM_CONF"], "-N", host)
        try:
            wait_until(idle, what="an idle node")
        except AssertionError as error:
            pytest.skip(f"SLURM does not start here: {error}")
        yield base
    finally:
        subprocess.run(["scancel", "--user=root", "--signal=KILL", "--full"], env=environment, capture_output=True)
        for name in ("slurmd", "slurmctld", "munged"):
            if (file := base / f"{name}.pid").exists():
                os.kill(int(file.read_text()), signal.SIGTERM)
        patch.undo()


@pytest.fixture(name="run")
def _run(cluster, run, monkeypatch):
    """Runs the small sweep on the cluster; returns the exit status and what was printed."""
    monkeypatch.setattr("ablate.sweeps.engines.slurm.WAIT_SECONDS", 0.2)
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")

    def on_cluster(**options):
        return run(**{"wait": True, "engine": Slurm(gpus=0), **options})

    return on_cluster


def scores(root):
    return {path.parent.name: path.read_text() for path in (root / "small").glob("*/result.json")}


def squeue():
    return subprocess.run(["squeue", "-h", "-r"], capture_output=True, text=True).stdout


def test_an_array_gives_what_the_local_engine_gives(run, folder, resolve):
    status, text = run(table=True)
    assert status == 0
    assert "Submitted job" in text
    assert "linear" in text
    assert folder.finished() == ALL
    assert [folder.attempts(name)[0].split()[1] for name in ALL] == ["0"] * 4
    status, text = run()
    assert status == 0
    assert "Submitted" not in text
    local = folder.path / "local"
    run_sweep(folder.file, root=local, table=False, resolve=resolve, launcher=folder.launcher)
    assert scores(local) == scores(folder.root)


def test_what_is_in_the_queue_is_not_submitted_again(run, folder, monkeypatch, resolve):
    monkeypatch.setenv("FAKE_SECONDS", "60")
    status, text = run(wait=False, jobs=1)
    assert status == 4
    assert "0 of 4 runs finished" in text
    wait_until(lambda: (folder.root / "small" / "linear-s0" / "started").exists(), what="the first run")
    status, text = run(wait=False)
    assert status == 4
    assert "Submitted" not in text
    assert text.count("in job") == 4
    assert "PENDING" in text
    assert "RUNNING" in text
    _, text = run(dry_run=True)
    assert "1 running, 3 queued" in text
    console = Console(file=io.StringIO())
    assert stop_sweep(folder.file, console=console, resolve=resolve) == 0
    wait_until(lambda: not squeue(), what="an empty queue")
    # The run that was under way has saved, and continues there.
    assert "stopped after a step, saved" in (folder.root / "small" / "linear-s0" / "log.txt").read_text()
    monkeypatch.setenv("FAKE_SECONDS", "0")
    assert run()[0] == 0
    assert folder.finished() == ALL
    assert int(folder.attempts("linear-s0")[1].split()[1]) > 0


def test_a_run_that_is_asked_to_save_before_its_time_limit_continues_in_the_queue(run, folder, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "8")
    status, _ = run(wait=False, overrides=["seed=0", "connector.name=mlp"])
    assert status == 4
    started = folder.root / "small" / "mlp-s0" / "started"
    wait_until(started.exists, what="the run")
    checkpoint = started.parent / "checkpoints" / "last.ckpt"
    wait_until(checkpoint.exists, what="a checkpoint")
    subprocess.run(["scancel", "--user=root", "--batch", "--signal=USR1"], check=True)
    wait_until(lambda: " PD " in squeue(), what="the task in the queue again")
    # SLURM lets a task that is requeued wait for two minutes.
    task = squeue().split()[0]
    subprocess.run(["scontrol", "update", f"JobId={task}", "StartTime=now"], check=True)
    wait_until(lambda: "mlp-s0" in folder.finished(), what="the run's end")
    first, second = folder.attempts("mlp-s0")
    assert int(second.split()[1]) > int(first.split()[1]) == 0
    wait_until(lambda: not squeue(), what="an empty queue")


def test_a_run_that_gets_no_further_does_not_go_back_into_the_queue(run, folder):
    script = "import pathlib, signal, time; signal.signal(signal.SIGINT, lambda *_: exit(130))\n"
    script += "folder = pathlib.Path('runs/small/mlp-s0'); (folder / 'started').touch(); time.sleep(600)\n"
    (folder.path / "train.py").write_text(script)
    run(wait=False, overrides=["seed=0", "connector.name=mlp"])
    wait_until((folder.root / "small" / "mlp-s0" / "started").exists, what="the run")
    subprocess.run(["scancel", "--user=root", "--batch", "--signal=USR1"], check=True)
    wait_until(lambda: not squeue(), what="an empty queue")
    assert "set engine.time to a longer one" in (folder.root / "small" / "mlp-s0" / "failed.json").read_text()


def test_a_cancelled_job_saves_and_does_not_come_back(run, folder, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "60")
    monkeypatch.setenv("FAKE_SAVES_ON_SIGTERM", "1")
    run(wait=False, overrides=["seed=0", "connector.name=mlp"])
    wait_until((folder.root / "small" / "mlp-s0" / "started").exists, what="the run")
    subprocess.run(["scancel", "--user=root"], check=True)
    wait_until(lambda: not squeue(), what="an empty queue")
    assert "stopped after a step, saved" in (folder.root / "small" / "mlp-s0" / "log.txt").read_text()
    assert folder.finished() == []


def test_only_what_failed_runs_again(run, folder, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "mlp")
    status, text = run()
    assert status == 1
    assert text.count("not finished, log") == 2
    monkeypatch.delenv("FAKE_FAIL")
    status, text = run(only_failed=True)
    assert status == 0
    assert "2 runs" in text
    assert [len(folder.attempts(name)) for name in ALL] == [1, 1, 2, 2]


def test_without_slurm_it_says_what_to_do(folder, resolve, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(folder.path)
    with pytest.raises(UserError, match="sbatch is not on this machine: run this on a login node"):
        run_sweep(folder.file, engine="slurm", table=False, resolve=resolve, launcher=folder.launcher)


def test_an_engines_options_come_by_file_and_by_key(tmp_path):
    (tmp_path / "cluster.yaml").write_text(
        "name: slurm\npartition: gpu\nmemory: 32G\ntime: 01:00:00\noptions: {account: vision}\n"
    )
    engine = engine_of(str(tmp_path / "cluster.yaml"), {"memory": "64G"})
    assert (engine.time, engine.memory, engine.options) == ("01:00:00", "64G", {"account": "vision"})
    with pytest.raises(UserError, match="partition"):
        engine_of("slurm", {"partitoin": "gpu"})
    with pytest.raises(UserError, match="local, slurm"):
        engine_of("slrum")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_real_run_of_two_ranks_gives_the_local_engines_bits(
    cluster, configure, benchmark_root, tmp_path, monkeypatch
):
    """Started by srun and stopped in the middle here; started by Lightning and left alone there."""
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    asked = [f"evaluation.root={benchmark_root}", "evaluation.benchmarks=[gqa]", "train.max_steps=300"]
    config = configure(
        *asked, "train.checkpoint_every=10", "train.devices=2", "train.strategy=ddp", "train.accelerator=cpu"
    )
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(to_data(config)))
    content = {
        "program": "ablate",
        "method": "grid",
        "command": ["ablate", "train", "--config", str(tmp_path / "base.yaml"), "group=tiny", "${args_no_hyphens}"],
        "parameters": {"connector.name": {"values": ["linear"]}},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    console = Console(file=io.StringIO(), width=200)
    sweep = tmp_path / "sweep.yaml"
    run_sweep(sweep, root=tmp_path / "slurm", engine="slurm", table=False, console=console)
    wait_until(lambda: list(tmp_path.glob("slurm/tiny/*/checkpoints/*.ckpt")), what="a checkpoint")
    assert stop_sweep(sweep, root=tmp_path / "slurm", console=console) == 0
    wait_until(lambda: not squeue(), what="an empty queue")
    assert not list(tmp_path.glob("slurm/tiny/*/result.json"))
    for engine in ("slurm", "local"):
        status = run_sweep(sweep, root=tmp_path / engine, engine=engine, table=False, wait=True, console=console)
        logs = [path.read_text() for path in (tmp_path / engine).glob("tiny/*/log.txt")]
        assert status == 0, (console.file.getvalue(), logs)
    weights = [next((tmp_path / engine).glob("tiny/*/model.safetensors")) for engine in ("slurm", "local")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    answers = [sorted((tmp_path / engine).glob("tiny/*/predictions/*.jsonl")) for engine in ("slurm", "local")]
    assert [file.read_bytes() for file in answers[0]] == [file.read_bytes() for file in answers[1]]
    log = next((tmp_path / "slurm").glob("tiny/*/log.txt")).read_text()
    assert log.count("$ srun") == 2
