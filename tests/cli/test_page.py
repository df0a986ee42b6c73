"""The HTML page as a file: what is in it, that it is whole, and that no data in it can be more than data."""

import base64
import hashlib
import json
import re
import tracemalloc
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.cli.page.page import CHUNK_SIZE, Histogram, Section, write_page
from align.compare.changes import RowChange
from align.core.errors import InputError

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "-->]]>&lt;&amp;",
    "\u2028\u2029\u202e\u0000\u0085\ufeff\ue000",
    "'\"`${1}\\",
]


class Page(HTMLParser):
    """The elements of a page, as a parser other than a browser's finds them."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # with the tag before
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if data.strip():
            tag, attributes = self.tags[-1]
            self.texts.append((f"{tag}.{attributes['class']}" if "class" in attributes else tag, data))

    def text(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]

    def rows(self) -> list[Any]:
        return [row for text in self.text("script.rows") for row in json.loads(text)]


def write(path: Path, *rows: Any, sides: tuple[str, str] | None = None, **values: Any) -> Page:
    write_page(path, "title", "subtitle", [Section("scores", rows, sides=sides, **values)])
    return Page(path)


def test_rows_and_changes_come_back_as_they_went_in(tmp_path: Path) -> None:
    rows = [{"id": 1, "text": text, "list": [{"role": "user", "content": text}], "none": None} for text in HOSTILE]
    assert write(tmp_path / "rows.html", *rows).rows() == rows

    changes = [RowChange("added", None, rows[0]), RowChange("removed", rows[1], None), RowChange("changed", *rows[:2])]
    page = write(tmp_path / "changes.html", *changes, sides=("m1", "m2"))
    assert page.rows() == [list(change) for change in changes]
    assert json.loads(page.text("script.about")[0])["sides"] == ["m1", "m2"]


def test_data_add_no_element_to_the_page(tmp_path: Path) -> None:
    tags = [tag for tag, _ in write(tmp_path / "a.html", {"id": 1}, facts=["one"]).tags]
    path = tmp_path / "b.html"
    for text in HOSTILE:
        section = Section(text, [{text: text}], [text], [Histogram(text, [0, 1], [1])])
        write_page(path, text, text, [section])
        page = Page(path)
        assert [tag for tag, _ in page.tags] == tags
        assert page.rows() == [{text: text}]


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.dictionaries(st.text(), st.text() | st.lists(st.text()) | st.floats(allow_nan=False, allow_infinity=False)))
def test_any_row_is_json_without_markup_or_characters_that_cannot_be_seen(
    tmp_path_factory: pytest.TempPathFactory, row: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.html"
    page = write(path, row)
    (text,) = page.text("script.rows")
    assert not re.search("[<>&\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\ud800-\udfff]", text)
    assert page.rows() == [row]


def test_integers_that_a_browser_would_round_are_texts(tmp_path: Path) -> None:
    row = {
        "id": 2**53 + 1,
        "list": [-(2**60)],
        "small": 2**53 - 1,
        "text": "1234567890123456789",
        "x": 0.1234567890123456,
    }
    expected = row | {"id": "9007199254740993", "list": ["-1152921504606846976"]}
    assert write(tmp_path / "a.html", row).rows() == [expected]


def test_only_the_pages_own_script_and_style_are_allowed_by_their_hashes(tmp_path: Path) -> None:
    page = write(tmp_path / "a.html", {"id": 1})
    policies = [attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes]
    assert len(policies) == 1
    policy = policies[0] or ""
    for tag, name in (("script", "script-src"), ("style", "style-src")):
        (text,) = page.text(tag)
        value = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name} 'sha256-{value}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert re.findall(r"(?:src|href)=|url\(|https?:(?!//www\.w3\.org/2000/svg)", path_text(tmp_path / "a.html")) == []


def path_text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_facts_can_be_read_without_the_script(tmp_path: Path) -> None:
    page = write(tmp_path / "a.html", facts=["one & <two>", "three"])
    assert page.text("li") == ["one & <two>", "three"]
    assert page.text("h1") == ["title"]


def test_rows_are_streamed_into_the_file(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        for number in range(20):
            yield {"id": number, "text": "x" * CHUNK_SIZE}

    tracemalloc.start()
    write_page(tmp_path / "a.html", "t", "s", [Section("scores", rows())])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "a.html").stat().st_size > 20 * CHUNK_SIZE
    assert peak < 12 * CHUNK_SIZE


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_page_that_cannot_be_finished_leaves_the_one_before(tmp_path: Path, value: float) -> None:
    write(tmp_path / "a.html", {"id": 1})
    before = path_text(tmp_path / "a.html")
    with pytest.raises(ValueError, match="JSON compliant"):
        write(tmp_path / "a.html", {"id": 2}, {"id": value})
    assert path_text(tmp_path / "a.html") == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"folder: cannot write .*; name another file"):
        write(tmp_path / "folder", {"id": 1})
