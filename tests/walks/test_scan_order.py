"""A scan order from another package reads a grid in a scan connector."""


def test_a_scan_order(walk):
    fields = "{scans: [diagonal, rows], depth: 1, d_state: 8, headdim: 8, arrangement: released}"
    walk("diagonal_order").check_and_train("connector.name=msc_csm", f"connector.fields={fields}")
