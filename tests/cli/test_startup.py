"""Which heavy packages each command imports: they are most of the time until it answers."""

import subprocess
import sys

import pytest

HEAVY = {"lightning", "matplotlib", "pandas", "scipy", "sklearn", "timm", "torch", "torchmetrics", "torchvision"}
HEAVY |= {"transformers", "wandb"}
SCRIPT = """
import sys
from contextlib import suppress
from ablate.cli import main
with suppress(SystemExit):
    main(sys.argv[1:])
print(*sorted(name for name in sys.modules if "." not in name), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("command", "allowed"),
    [
        ("--help", set()),
        ("list connectors --help", set()),
        ("train --config demo --print-config", {"torch"}),
        ("config train", {"torch"}),
        ("list connectors", {"torch"}),
        # FLOPs are counted on PyTorch's fake tensors, which load its compiler; that asks for these two where they are.
        ("connectors", {"torch", "pandas", "sklearn", "scipy"}),
        ("table nowhere", {"torch", "matplotlib", "scipy", "sklearn"}),
    ],
)
def test_a_command_imports_no_more_than_it_needs(command, allowed, tmp_path):
    ran = [sys.executable, "-c", SCRIPT, *command.split()]
    done = subprocess.run(ran, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert HEAVY & set(done.stderr.splitlines()[-1].split()) <= allowed
