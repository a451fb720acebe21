"""Names and tables of the documentation's site, as `tools/page_layout.py` shapes them."""

from __future__ import annotations

import re

import pytest
from markdown import markdown

from tools.page_layout import Layout


def shaped(text: str) -> str:
    """A page's HTML."""
    return markdown(text, extensions=[Layout(), "tables", "toc"])


@pytest.mark.parametrize(
    ("name", "html"),
    [
        ("publish()", "publish()"),
        ("manage.py consume --processes=1 -v", "manage.py consume <whole>--processes=1</whole> <whole>-v</whole>"),
        ("<queue>-x", "<whole>&lt;queue&gt;-x</whole>"),
        ("tests/test_a.py::test_that_name[is-a-long-one]", "tests/|test_|a.py::|test_|that_|name[|is-a-long-one]"),
    ],
)
def test_a_name_breaks_where_its_parts_end(name: str, html: str) -> None:
    tags = html.replace("<whole>", '<span class="whole">').replace("</whole>", "</span>").replace("|", "<wbr />")
    assert f"<code>{tags}</code>" in shaped(f"See `{name}`.")


def test_names_break_sooner_among_many_columns() -> None:
    html = shaped("|A|B|C|D|E|\n|---|---|---|---|---|\n|`models.light.read_many`|2|3|4|5|\n\n`models.light.read_many`")
    assert "<code>models.<wbr />light.<wbr />read_<wbr />many</code></td>" in html
    assert "<code>models.light.read_many</code></p>" in html


def test_headings_and_their_anchors_stay_as_they_are() -> None:
    assert re.sub("</?span[^>]*>", "", shaped("# `x-y`")) == '<h1 id="x-y"><code>x-y</code></h1>'


def test_a_cell_of_three_columns_knows_its_head() -> None:
    html = shaped("|A|`b`||\n|---|---|---|\n|1|2||\n|3|2026-11-29||")
    cells = [("A", "1"), ("b", "2"), ("", ""), ("A", "3"), ("", "")]
    assert re.findall('<td data-label="(.*)" role="cell">(.*)</td>', html) == cells
    assert '<td class="whole" data-label="b" role="cell">2026-11-29</td>' in html
    assert "data-label" not in shaped("|A|B|\n|---|---|\n|1|2|")


def test_beside_a_long_name_a_phone_has_no_room_for_a_second_cell() -> None:
    long = "`view_payload_processedmessage`"
    assert "data-label" in shaped(f"|A|B|\n|---|---|\n|{long}|2|")
    assert "data-label" not in shaped(f"|A|B|\n|---|---|\n|1|{long}|")
