"""Credits are read from the packages, and only what is clearly free for all is taken."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablate.demo.licences import Credit, credits_table, read_credits

README = """Copyright: Berthold Werner
License: Public Domain
Source: https://example.org/File:Petra.JPG
Files:
wonders/petra.webp
wonders/petra_small.webp

Files: heron.webp
License: CC-BY-SA-4.0
Copyright: Stephan Sprinz

Copyright: nobody says under which terms
Files:
unclear.webp

License: CC0-1.0
Files: ownerless.webp

Copyright: One
License: CC0-1.0
Files: contested.webp

Copyright: Another
License: GPL-3
Files: contested.webp
"""


def test_paragraphs_in_any_order_of_fields() -> None:
    credits = read_credits(README)
    assert credits["petra"] == Credit("petra", "Berthold Werner", "Public Domain", "https://example.org/File:Petra.JPG")
    assert credits["petra_small"].authors == "Berthold Werner"
    assert credits["heron"].licence == "CC-BY-SA-4.0"


@pytest.mark.parametrize("name", ["unclear", "ownerless", "contested"])
def test_what_is_unclear_is_left_out(name: str) -> None:
    assert name not in read_credits(README)


@pytest.mark.parametrize(
    ("licence", "free"),
    [
        ("Public Domain", True),
        ("public-domain", True),
        ("CC0-1.0", True),
        ("CC0", True),
        ("CC-BY-SA 4.0", False),
        ("CC-BY 4.0", False),
        ("GPL-3", False),
        ("Public Domain in some countries", False),
    ],
)
def test_public_domain(licence: str, free: bool) -> None:
    assert Credit("a", "b", licence, "").public_domain is free


def test_table() -> None:
    table = credits_table(read_credits(README).values())
    assert "| petra | Berthold Werner | Public Domain | <https://example.org/File:Petra.JPG> |" in table.splitlines()


@given(st.text(max_size=300))
def test_any_text_is_read(text: str) -> None:
    for name, credit in read_credits(text).items():
        assert name
        assert credit.authors
        assert credit.licence
