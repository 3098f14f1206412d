"""An engine from another package gets the runs of a sweep."""

import json

SWEEP = {
    "program": "ablate",
    "command": ["ablate", "train", "${args_no_hyphens}"],
    "method": "grid",
    "parameters": {"seed": {"values": [0, 1]}},
}


def test_an_engine(walk):
    package = walk("printed_engine")
    assert "printed" in package.run("-m", "ablate", "list", "engines")
    (package.folder / "sweep.yaml").write_text(json.dumps(SWEEP))
    settings = [*package.settings, "engine.before=qsub"]
    code = (
        f"from ablate.sweeps import run_sweep; print(run_sweep('sweep.yaml', overrides={settings}, engine='printed'))"
    )
    lines = package.run("-c", code).splitlines()
    assert sum(line.startswith("qsub") and "ablate.cli train" in line for line in lines) == 2
    assert lines[-1] == "4"
