"""Connectors from another package: one with a loss of its own, one that reads the question."""

from ablate.core.files import read_lines


def test_a_connector_with_an_extra_loss(walk):
    run = walk("balanced_pool").check_and_train("connector.name=balanced_pool", "connector.fields={slots: 3}")
    lines = read_lines(run.steps)
    assert len(lines) > 3
    assert all(0 < line["loss/balance"] < line["loss"] for line in lines)


def test_a_connector_that_reads_the_question(walk):
    walk("question_gate").check_and_train("connector.name=question_gate")


def test_the_simplest_connector(walk):
    walk("avg_pool").check_and_train("connector.name=avg_pool", "connector.fields.bias=false")
