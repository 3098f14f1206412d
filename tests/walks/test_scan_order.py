"""A scan order from another package reads a grid in a scan connector."""

from ablate.core.files import read_json


def test_a_scan_order(walk):
    package = walk("diagonal_order")
    assert "none failed: scan order diagonal" in package.run("ablate.testing", "diagonal_order")
    run = package.train(
        "connector.name=msc_csm",
        "connector.fields={scans: [diagonal, rows], depth: 1, d_state: 8, headdim: 8, arrangement: released}",
    )
    assert read_json(run / "result.json")["scores"]
