import json

import pytest

from ablate.core.errors import UserError
from ablate.runs.folder import is_finished
from ablate.tables import collect, latest_group
from ablate.tables.results import states


def test_runs_are_found_from_a_run_a_group_and_the_folder_of_groups(runs):
    run = runs.add("mlp")
    runs.add("linear")
    assert [found.connector for found in collect([run])] == ["mlp"]
    assert [found.connector for found in collect([runs.group])] == ["linear", "mlp"]
    assert [found.connector for found in collect([runs.group.parent])] == ["linear", "mlp"]
    assert len(collect([run, runs.group, runs.group.parent])) == 2  # each once


def test_what_is_in_a_run(runs):
    (found,) = collect([runs.add("mlp", 2, level=0.25, provenance={"code": {"commit": "abc"}})])
    assert (found.connector, found.seed, found.blind, found.state) == ("mlp", 2, False, "finished")
    assert found.scores["demo_vqa"]["score"] == 25.0
    assert found.cost["visual_tokens"] == 49
    assert found.provenance["code"] == {"commit": "abc"}
    predictions = found.predictions("demo_vqa")
    assert predictions.scores.mean() == 0.25
    assert predictions.ids[:2].tolist() == ["demo_vqa-0", "demo_vqa-1"]
    assert predictions.images[:4].tolist() == ["0.jpg", "0.jpg", "0.jpg", "1.jpg"]
    assert found.predictions("nothing") is None


def test_unfinished_failed_and_planned_runs_are_counted(runs):
    runs.add("mlp", 0)
    runs.unfinished("mlp", 1)
    runs.unfinished("mlp", 2, failed=True)
    begun = runs.group / "mlp-s3"  # died before it wrote its config
    begun.mkdir()
    (begun / "failed.json").write_text("{}")
    planned = [
        {"run_id": f"mlp-s{seed}", "settings": {"connector.name": "mlp", "seed": seed, "blind": False}}
        for seed in range(5)
    ]
    (runs.group / "plan.json").write_text(json.dumps({"runs": planned}))
    found = collect([runs.group])
    assert [(run.seed, run.state) for run in found] == [
        (0, "finished"),
        (1, "unfinished"),
        (2, "failed"),
        (3, "failed"),
        (4, "not started"),
    ]
    assert states(found) == {"finished": 1, "failed": 2, "unfinished": 1, "not started": 1}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"status": "running"}'])
def test_a_result_that_is_not_whole_is_no_result(runs, content):
    folder = runs.add("mlp")
    (folder / "result.json").write_text(content)
    assert not is_finished(folder)
    assert [run.state for run in collect([folder])] == ["unfinished"]


def test_a_result_of_a_newer_version_is_refused(runs):
    folder = runs.add("mlp")
    (folder / "result.json").write_text('{"schema": 2, "status": "finished"}')
    with pytest.raises(UserError, match="has schema 2; this version reads 1"):
        collect([folder])


def test_no_folder_and_no_runs(tmp_path):
    with pytest.raises(UserError, match="No folder"):
        collect([tmp_path / "nothing"])
    with pytest.raises(UserError, match="No runs in"):
        collect([tmp_path])
    with pytest.raises(UserError, match="No runs under"):
        latest_group(tmp_path)


def test_a_damaged_prediction_names_its_line(runs):
    folder = runs.add("mlp")
    with open(folder / "predictions" / "demo_vqa.jsonl", "a") as file:
        file.write('{"id": 1, "image": "x", "score": null}\n')
    with pytest.raises(UserError, match=r"demo_vqa.jsonl, line 61: not a prediction"):
        collect([folder])[0].predictions("demo_vqa")


def test_the_latest_group(tmp_path, runs):
    import os

    old = runs.add("mlp")
    new = type(runs)(tmp_path / "runs" / "other").add("mlp")
    os.utime(old, (1, 1))
    assert latest_group(tmp_path / "runs") == new.parent
