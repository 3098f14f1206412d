import textwrap
from collections.abc import Sequence
from typing import Literal

import pytest
from torch import nn

import connectors
from ablate.core.fields import REQUIRED
from ablate.errors import UserError
from connectors import Connector, Field, create, describe, names, register
from connectors.registry import registry


@pytest.fixture
def scratch(monkeypatch):
    """Connectors registered in the test are gone after it."""
    names()
    monkeypatch.setattr(registry, "_members", dict(registry._members))
    monkeypatch.setattr(registry, "_broken", {})


class Plain(Connector):
    """A connector of the tests.

    Args:
        depth: how deep,
            in blocks.
        rate: how fast.

    Raises:
        nothing: ever.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        depth: int,
        rate: float = 0.5,
        mode: Literal["slow", "fast"] = "slow",
        on: bool = False,
        orders: Sequence[str] | None = None,
        path: str = "",
    ) -> None:
        super().__init__(in_dim, out_dim)
        self.got = {"depth": depth, "rate": rate, "mode": mode, "on": on, "orders": orders, "path": path}


def test_the_papers_connectors_are_there():
    expected = {"linear", "mlp", "msc_basic_bsm", "msc_basic_csm", "msc_bsm", "msc_csm"}
    assert expected <= set(names())
    assert list(names()) == sorted(names())


def test_create_gives_what_the_name_says(scratch):
    register("plain")(Plain)
    connector = create("plain", 4, 3, depth=2, rate=1, orders=["rows"], mode="fast", on=True)
    assert type(connector) is Plain
    assert (connector.in_dim, connector.out_dim) == (4, 3)
    expected = {"depth": 2, "rate": 1.0, "mode": "fast", "on": True, "orders": ("rows",), "path": ""}
    assert connector.got == expected
    assert connector.num_tokens(3, 5) == 15


def test_describe(scratch):
    register("plain")(Plain)
    described = describe("plain")
    assert described.summary == "A connector of the tests."
    assert described.doc.endswith("nothing: ever.")
    assert described.fields == (
        Field("depth", "int", REQUIRED, "how deep, in blocks."),
        Field("rate", "float", 0.5, "how fast."),
        Field("mode", "slow or fast", "slow"),
        Field("on", "bool", False),
        Field("orders", "list of str or null", None),
        Field("path", "str", ""),
    )


@pytest.mark.parametrize("name", names())
def test_every_connector_explains_itself(name):
    described = describe(name)
    assert described.summary
    assert not [field.name for field in described.fields if field.default is REQUIRED]


def test_the_fields_of_our_own_are_explained():
    assert not [field.name for field in describe("msc_csm").fields if not field.doc]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"depth": 2, "orders": "rows"}, ['field "orders"', "got 'rows' (str)", "list of str or null"]),
        ({"depth": 2, "orders": [1]}, ['field "orders"', "list of str"]),
        ({"depth": "2"}, ['field "depth"', "got '2' (str)", "expected int"]),
        ({"depth": 2.0}, ['field "depth"', "got 2.0 (float)", "expected int"]),
        ({"depth": True}, ['field "depth"', "got True (bool)", "expected int"]),
        ({"depth": None}, ['field "depth"', "expected int"]),
        ({"depth": 2, "rate": "x"}, ['field "rate"', "expected float"]),
        ({"depth": 2, "rate": True}, ['field "rate"', "expected float"]),
        ({"depth": 2, "on": 1}, ['field "on"', "expected bool"]),
        ({"depth": 2, "mode": "medium"}, ['field "mode"', "'medium'", "slow or fast"]),
        ({"depth": 2, "path": 3}, ['field "path"', "expected str"]),
        ({"depth": 2, "dept": 3}, ['no field "dept"', "Did you mean depth", "rate"]),
        ({}, ["needs a value for: depth"]),
    ],
)
def test_wrong_fields_are_told(scratch, fields, said):
    register("plain")(Plain)
    with pytest.raises(UserError) as error:
        create("plain", 4, 3, **fields)
    assert not [text for text in ['"plain"', *said] if text not in str(error.value)], str(error.value)


@pytest.mark.parametrize("dims", [(0, 3), (4, -1), (4.0, 3), ("4", 3)])
def test_wrong_widths_are_told(dims):
    with pytest.raises(UserError, match=r"(in_dim|out_dim) is .*expected a whole number"):
        create("linear", *dims)


def test_a_field_where_there_are_none():
    with pytest.raises(UserError, match='"linear" has no fields, got "depth"'):
        create("linear", 4, 3, depth=2)


def test_unknown_names_get_the_nearest_and_all():
    with pytest.raises(UserError, match=r'Unknown connector "msc_cms"\. Did you mean msc_csm') as error:
        create("msc_cms", 4, 3)
    assert all(name in str(error.value) for name in names())


@pytest.mark.parametrize("name", ["ml", "mlp2", "mof_mlp", "MLP", "mlp ", "connectors.mlp", "msc", "", "*"])
def test_names_are_exact(name):
    """A neighbour of this project chose a file whose name contained the one asked for."""
    with pytest.raises(UserError, match="Unknown connector"):
        create(name, 4, 3)


def test_a_longer_name_is_another_connector(scratch):
    register("mof_mlp")(Plain)
    assert type(create("mlp", 4, 3)) is not Plain
    assert type(create("mof_mlp", 4, 3, depth=1)) is Plain


def test_a_taken_name_is_an_error(scratch):
    with pytest.raises(UserError, match=r'"mlp" is registered twice: by connectors\.mlp\.MLP and by .*Plain'):
        register("mlp")(Plain)
    assert describe("mlp").module == "connectors.mlp"


@pytest.mark.parametrize("name", ["a,b", "a b", "", "../up", "-x", "a/b"])
def test_names_fit_into_lists_and_folders(scratch, name):
    with pytest.raises(UserError, match="expected letters"):
        register(name)(Plain)


def test_authors_are_told_at_once(scratch):
    class NoFields(Connector):
        def __init__(self, in_dim: int, out_dim: int, depth: int = 2) -> None: ...

    class AnyFields(Connector):
        def __init__(self, in_dim: int, out_dim: int, **fields) -> None: ...

    class OtherStart(Connector):
        def __init__(self, width: int) -> None: ...

    for wrong, said in [
        (nn.Linear, r"subclass of connectors\.registry\.Connector"),
        (NoFields, r"after a \*"),
        (AnyFields, r"after a \*"),
        (OtherStart, "must begin with"),
    ]:
        with pytest.raises(TypeError, match=said):
            register("wrong")(wrong)


def test_a_new_file_is_found_by_existing(scratch, tmp_path, monkeypatch):
    (tmp_path / "brand_new.py").write_text(
        textwrap.dedent(
            """
            from torch import nn
            from connectors import Connector, register

            @register("brand_new")
            class BrandNew(Connector):
                def __init__(self, in_dim: int, out_dim: int, *, bias: bool = True) -> None:
                    super().__init__(in_dim, out_dim)
                    self.layer = nn.Linear(in_dim, out_dim, bias=bias)
            """
        )
    )
    monkeypatch.setattr(connectors, "__path__", [*connectors.__path__, str(tmp_path)])
    registry._import_package()
    assert "brand_new" in names()
    assert create("brand_new", 4, 3, bias=False).layer.bias is None


# --- connectors of other packages ------------------------------------------------------------------------------------


def install(folder, monkeypatch, distribution, entry_point, source):
    """A package as pip would leave it: a module and a dist-info folder with an entry point."""
    module = f"{distribution}_module"
    (folder / f"{module}.py").write_text(textwrap.dedent(source))
    info = folder / f"{distribution}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[ablate.connectors]\n{entry_point} = {module}\n")
    monkeypatch.syspath_prepend(folder)


GOOD = """
from connectors import Connector, register

@register("thirdly")
class Thirdly(Connector):
    "Of another package."
    def __init__(self, in_dim: int, out_dim: int, *, depth: int = 1) -> None:
        super().__init__(in_dim, out_dim)
"""


def test_a_third_partys_connector(scratch, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "goodpkg", "thirdly", GOOD)
    registry._load_entry_points()
    assert "thirdly" in names()
    assert describe("thirdly").module == "goodpkg_module"
    with pytest.raises(UserError, match="Did you mean depth"):
        create("thirdly", 4, 3, dept=2)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module_at_all", "ModuleNotFoundError"),
        ("this is no python", "SyntaxError"),
        (GOOD.replace("thirdly", "mlp"), '"mlp" is registered twice'),
        (GOOD + "\nraise RuntimeError('half-way')", "RuntimeError: half-way"),
    ],
)
def test_a_broken_third_party_is_named_and_breaks_no_other(scratch, tmp_path, monkeypatch, source, reason):
    before = names()
    install(tmp_path, monkeypatch, "brokenpkg", "shiny", source)
    with pytest.warns(UserWarning, match="brokenpkg") as warned:
        registry._load_entry_points()
    assert reason in str(warned[0].message)
    assert names() == before
    assert describe("mlp").module == "connectors.mlp"
    with pytest.raises(UserError, match=r'"brokenpkg" offers the connector "shiny"') as error:
        create("shiny", 4, 3)
    assert reason in str(error.value)
    with pytest.raises(UserError, match=r'Unknown connector "thirdly".*"brokenpkg"'):
        create("thirdly", 4, 3)
