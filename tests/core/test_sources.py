import hashlib
import importlib
import json
import os
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablate.core import sources as identity
from ablate.core.sources import changed_sources, file_entry, is_edited, sealed, set_aside, source_digests

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@settings(deadline=None, max_examples=100)
@given(content=st.dictionaries(st.text(max_size=5).filter(lambda key: key != "digests"), JSON, max_size=5), other=JSON)
def test_sealed_content_survives_json_and_shows_any_change(content, other, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    whole = json.loads(json.dumps(sealed(content, folder, [])))
    assert not is_edited(whole)
    for key in content:
        changed = {**whole, key: other}
        assert is_edited(changed) == (json.dumps(other) != json.dumps(content[key]))
    assert not is_edited(content)  # from before there were digests


def test_digests_of_files_are_part_of_what_is_sealed(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    whole = sealed({"x": 1}, tmp_path, ["a.txt", "missing.txt"])
    assert whole["digests"]["a.txt"] == hashlib.sha256(b"a").hexdigest()
    assert set(whole["digests"]) == {"a.txt", "self"}
    assert is_edited({**whole, "digests": {**whole["digests"], "a.txt": "0"}})


def test_a_file_is_hashed_in_pieces_and_again_only_once_it_changed(tmp_path, monkeypatch):
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(3_000_000))
    os.utime(path, (1, 1))  # one that changed just now is hashed again
    first = file_entry(path)
    assert first == {"name": "weights.bin", "size": 3_000_000, "sha256": hashlib.sha256(bytes(3_000_000)).hexdigest()}
    with monkeypatch.context() as patched:
        patched.setattr(identity.hashlib, "file_digest", None)
        assert file_entry(path) == first
    path.write_bytes(b"x")
    assert file_entry(path)["sha256"] == hashlib.sha256(b"x").hexdigest()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Another package with a connector, what it is made of, and what it is not made of."""
    folder = tmp_path / "otherlab"
    (folder / "parts").mkdir(parents=True)
    files = {
        "__init__.py": "",
        "connector.py": "from connectors import Connector\nfrom otherlab.parts import layer\nimport torch\n\n\n"
        "class Mine(Connector):\n    pass\n",
        "parts/__init__.py": "",
        "parts/layer.py": "from ..shared import WIDTH\n",
        "shared.py": "WIDTH = 3\n",
        "unrelated.py": "x = 1\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.startswith("otherlab")]:
        del sys.modules[name]


def test_the_source_of_a_member_of_another_package(package):
    member = importlib.import_module("otherlab.connector").Mine
    recorded = source_digests([member])
    modules = {"otherlab.connector", "otherlab.parts", "otherlab.parts.layer", "otherlab.shared"}
    assert set(recorded) == modules
    assert changed_sources(recorded) == []
    (package / "unrelated.py").write_text("x = 2\n")
    assert changed_sources(recorded) == []
    (package / "shared.py").write_text("WIDTH = 4\n")
    assert changed_sources(recorded) == ["otherlab.shared"]
    (package / "parts" / "layer.py").unlink()
    assert changed_sources(recorded) == ["otherlab.parts.layer", "otherlab.shared"]


def test_changes_are_found_without_importing(package):
    recorded = source_digests([importlib.import_module("otherlab.connector").Mine])
    for name in [name for name in sys.modules if name.startswith("otherlab")]:
        del sys.modules[name]
    (package / "shared.py").write_text("WIDTH = 5\n")
    assert changed_sources(recorded) == ["otherlab.shared"]
    assert not [name for name in sys.modules if name.startswith("otherlab")]


def test_a_package_that_is_not_installed_here_is_no_change():
    assert changed_sources({"not_installed_anywhere.connector": "0"}) == []
    assert changed_sources(None) == []


def test_what_our_connectors_are_made_of():
    import connectors
    from connectors.contract import registry

    made_of = {name: set(source_digests([registry.get(name)])) for name in connectors.names()}
    assert made_of["linear"] == {"connectors.linear"}
    assert made_of["mlp"] == {"connectors.mlp"}
    assert {"connectors.msc", "connectors.mlp", "connectors.scan_orders"} <= made_of["msc_csm"]


def test_folders_set_aside_are_never_overwritten(tmp_path):
    names = []
    for _ in range(3):
        (tmp_path / "run").mkdir()
        names.append(set_aside(tmp_path / "run").name)
    assert names == ["run.replaced-1", "run.replaced-2", "run.replaced-3"]
