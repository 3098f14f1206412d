"""The real `wandb sweep` and `wandb agent` with our sweep file, against a stand-in for W&B's server on this machine.

It shows that our YAML and our command are what W&B's programs take, not that W&B's service does its part.
"""

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from ablate import cli
from ablate.cli.configs import load_run_config
from ablate.sweeps import expand, load_sweep
from ablate.sweeps.expand import as_arguments
from ablate.sweeps.schema import resolve_command

DEMO = Path(__file__).parents[2] / "experiments" / "sweeps" / "demo.yaml"
RUNS = 2  # an agent asks for work every five seconds

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class FakeServer(ThreadingHTTPServer):
    """Answers what `wandb sweep` and `wandb agent` ask; hands out the first runs of the sweep it was given."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.config = ""
        self.handed_out: list[dict] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, query: str, variables: dict) -> dict:
        operation = re.search(r"\b(?:query|mutation)\s+(\w+)", query)
        name = operation[1] if operation else ""
        project = {"id": "p1", "name": "project", "entity": {"id": "e1", "name": "entity"}}
        answers = {
            "Viewer": lambda: {
                "viewer": {"id": "u1", "entity": "entity", "username": "user", "email": "", "flags": "{}"}
                | {"teams": {"edges": []}}
            },
            "ServerFeatures": lambda: {"serverInfo": {"features": []}},
            "UpsertSweep": lambda: self._upsert(variables, project),
            "SweepWithRuns": lambda: {
                "project": {"sweep": {"id": "s1", "name": "sweep1", "config": self.config, "runs": {"edges": []}}}
            },
            "CreateAgent": lambda: {"createAgent": {"agent": {"id": "agent1"}}},
            "Heartbeat": lambda: {
                "agentHeartbeat": {"agent": {"id": "agent1"}, "commands": json.dumps(self._commands(variables))}
            },
        }
        return answers[name]() if name in answers else {}

    def _upsert(self, variables: dict, project: dict) -> dict:
        self.config = variables["config"]
        sweep = {"name": "sweep1", "project": project}
        return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}

    def _commands(self, variables: dict) -> list[dict]:
        """The next run once the one before has ended; then the end."""
        if json.loads(variables["runState"]):
            return []
        content = yaml.safe_load(self.config)
        if len(self.handed_out) == RUNS:
            return [{"type": "exit"}]
        names = sorted(content["parameters"])
        number = len(self.handed_out)
        offered = {name: each.get("values", [each.get("value")]) for name, each in content["parameters"].items()}
        values = {name: offered[name][-1 if number else 0] for name in names}
        self.handed_out.append(values)
        arguments = {name: {"value": value} for name, value in values.items()}
        return [{"type": "run", "run_id": f"run{number}", "program": content["program"], "args": arguments}]


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer: dict = {}
        if self.path == "/graphql":
            asked = json.loads(body)
            answer = {"data": self.server.answer(asked["query"], asked.get("variables") or {})}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server():
    server = FakeServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def wandb(server, tmp_path):
    """Runs W&B's command line against the server, with a program named `ablate` that writes down its arguments."""
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "ablate"
    program.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"with open({str(tmp_path / 'calls.jsonl')!r}, 'a') as file:\n"
        "    file.write(json.dumps([sys.argv[1:], os.environ['WANDB_SWEEP_ID']]) + '\\n')\n"
    )
    program.chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment = clean | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "WANDB_BASE_URL": server.url,
        "WANDB_API_KEY": "0" * 40,
        "WANDB_DIR": str(tmp_path),
        "WANDB_CONFIG_DIR": str(tmp_path / "config"),
        "WANDB_CACHE_DIR": str(tmp_path / "cache"),
        "WANDB_DATA_DIR": str(tmp_path / "data"),
        "WANDB_ERROR_REPORTING": "false",
        "NO_PROXY": "127.0.0.1",
    }

    def _wandb(*arguments: str, program: str = "wandb") -> str:
        done = subprocess.run(
            [sys.executable, "-m", program, *arguments],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    return _wandb


def test_wandb_runs_our_sweep_file_as_it_is(wandb, server, tmp_path):
    pytest.importorskip("wandb")
    text = wandb("sweep", "--entity", "entity", "--project", "project", str(DEMO))
    assert "Creating sweep" in text
    assert "wandb agent entity/project/sweep1" in text
    assert yaml.safe_load(server.config) == yaml.safe_load(DEMO.read_text())

    wandb("agent", "entity/project/sweep1")
    calls = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    sweep = load_sweep(DEMO)
    assert server.handed_out[0] != server.handed_out[1]
    assert all(values in expand(sweep) for values in server.handed_out)
    # To the letter what the local runner gives `ablate`.
    expected = [resolve_command(sweep, as_arguments(values))[1:] for values in server.handed_out]
    assert [call[0] for call in calls] == expected
    assert {call[1] for call in calls} == {"sweep1"}


def test_the_wandb_engine_creates_the_sweep_and_starts_agents(wandb, server, tmp_path):
    pytest.importorskip("wandb")
    asked = ["--connector", "linear,mlp", "seed=4,5", "train.learning_rate=0.001"]
    text = wandb("sweep", "demo", *asked, "--engine", "wandb", "--jobs", "1", "engine.entity=entity", program="ablate")
    assert "wandb agent entity/ablate/sweep1" in text or "wandb agent entity/project/sweep1" in text
    sent, written = yaml.safe_load(server.config), yaml.safe_load(DEMO.read_text())
    assert sent["parameters"]["connector.name"] == {"values": ["linear", "mlp"]}
    assert sent["parameters"]["seed"] == {"values": [4, 5]}
    assert sent["parameters"]["blind"] == written["parameters"]["blind"]
    assert sent["command"] == [*written["command"], "train.learning_rate=0.001"]
    calls = [json.loads(line)[0] for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert len(calls) == RUNS
    assert all(call[0] == "train" and call[-1] == "train.learning_rate=0.001" for call in calls)


@pytest.mark.slow
def test_wandbs_default_command_trains_what_was_handed_out(wandb, server, tmp_path):
    """A sweep file without `command`: W&B runs `python PROGRAM --key=value ...`."""
    pytest.importorskip("wandb")
    content = yaml.safe_load(DEMO.read_text())
    del content["command"]
    content["program"] = str(tmp_path / "bin" / "ablate")
    content["parameters"]["group"] = {"value": "007"}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    wandb("sweep", "--entity", "entity", "--project", "project", "sweep.yaml")
    wandb("agent", "entity/project/sweep1")
    calls = [json.loads(line)[0] for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert len(calls) == len(server.handed_out) > 1
    for call, values in zip(calls, server.handed_out, strict=True):
        arguments = cli.parse(call)
        assert arguments.command == "train"
        arguments.config = ["demo"]
        config = load_run_config(arguments)
        assert (config.connector.name, config.seed, config.blind) == tuple(
            values[key] for key in ("connector.name", "seed", "blind")
        )
        assert config.group == "007"
