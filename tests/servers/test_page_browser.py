"""The HTML page in a real browser: it is used as people use it, and hostile data stay data.

`make test-browser` runs these; they need Chromium and its driver.
"""

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from align.cli.page.page import Histogram, Section, write_page
from align.compare.changes import RowChange
from tests.servers.browser import DOWN, ENTER, Browser, browser

pytestmark = pytest.mark.browser

HOSTILE = [
    "</script><img src=x onerror=document.title='hit'>",
    "<!--<script>document.title='hit'</script>",
    "<img src=http://127.0.0.1:9/x.png onerror=\"document.title='hit'\">",
    "<style>@import 'http://127.0.0.1:9/x.css'; body{display:none}</style><svg onload=document.title='hit'>",
    "a\u2028b\u2029c",
    "abc\u202edef",
    "nul\x00 escape\x1b[31m",
    "{{ 7 * 7 }} ${7*7} javascript:document.title='hit'",
]
ROWS = [
    {"id": f"r{number:03d}", "score": score, "finish": finish, "text": text}
    for number, (score, finish, text) in enumerate(
        [
            (10, "stop", "alpha one"),
            (9.5, "length", "beta two"),
            (None, "stop", "gamma three"),
            (-1, "stop", "delta four"),
            (100, "length", "Alpha five"),
            (9.5, "stop", "epsilon six"),
        ]
    )
]
LONG = " ".join(f"word{number}" for number in range(60))
CHANGES = [
    RowChange(
        "changed",
        {"id": "c1", "score": 1, "text": f"{LONG} old end"},
        {"id": "c1", "score": 3.5, "text": f"{LONG} new end"},
    ),
    RowChange("added", None, {"id": "c2", "score": 2, "text": "fresh"}),
    RowChange("removed", {"id": "c3", "score": 4, "text": "gone"}, None),
    RowChange("changed", {"id": "c4", "score": 5, "text": "same"}, {"id": "c4", "score": 4, "text": "same"}),
]


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser"), "--window-size=1200,900") as session:
        yield session


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "page.html"


def open_page(window: Browser, page: Path, *sections: Section, fragment: str = "") -> None:
    write_page(page, "title", "subtitle", sections)
    window.open(page, fragment)


def shown(window: Browser, column: str = "id") -> list[str]:
    return window.texts(f"main > section:not([hidden]) tr.row > td[data-column={column}]")


def counter(window: Browser) -> str:
    (text,) = window.texts("main > section:not([hidden]) .counter[role=status]")
    return text


def fill(window: Browser, selector: str, text: str) -> None:
    window.run(
        "const e = document.querySelector(arguments[0]); e.value = arguments[1];"
        "e.dispatchEvent(new Event(e.tagName === 'SELECT' ? 'change' : 'input', {bubbles: true}))",
        selector,
        text,
    )


def sort_by(window: Browser, title: str) -> None:
    window.click(f"button[title='sort by {title}']")


def order(window: Browser) -> str:
    return "".join(text[-1] for text in shown(window))


def test_a_click_on_a_head_sorts_numbers_as_numbers_stably_with_empty_ones_last(window: Browser, page: Path) -> None:
    open_page(window, page, Section("rows", ROWS))
    assert order(window) == "012345"
    sort_by(window, "score")
    assert order(window) == "315042"
    sort_by(window, "score")
    assert order(window) == "401532"
    sort_by(window, "score")
    assert order(window) == "012345"
    sort_by(window, "text")
    assert order(window) == "401352"


def test_rows_are_filtered_by_range_and_by_choice(window: Browser, page: Path) -> None:
    open_page(window, page, Section("rows", ROWS))
    window.click("summary")
    fill(window, "input[aria-label='score min']", "9.5")
    assert (order(window), counter(window)) == ("0145", "shown 4 of 6")
    fill(window, "input[aria-label='score max']", "10")
    assert order(window) == "015"
    fill(window, "select[aria-label=finish]", "=stop")
    assert (order(window), counter(window)) == ("05", "shown 2 of 6")
    assert window.texts("summary") == ["Filters (3 on)"]
    window.click(".filters button")
    assert order(window) == "012345"


def test_search_looks_into_all_columns_and_into_what_a_cell_does_not_show(window: Browser, page: Path) -> None:
    rows: list[dict[str, Any]] = [
        *ROWS,
        {"id": "deep9", "text": LONG * 5 + " needle", "messages": [{"role": "user", "content": "Hidden Thing"}]},
    ]
    open_page(window, page, Section("rows", rows))
    for query, expected in (("ALPHA", "04"), ("needle", "9"), ("hidden thing", "9"), ("r003", "3"), ("nothing", "")):
        window.run("document.querySelector('input[type=search]').value = ''")
        window.type("input[type=search]", query)
        window.wait(
            "[...document.querySelectorAll('td[data-column=id]')].map((e) => e.textContent.at(-1)).join('')"
            " === arguments[0]",
            expected,
        )
        assert counter(window) == f"shown {len(expected)} of 7"
    assert window.texts(".empty") == ["No row passes the filters."]


def test_a_row_opens_to_its_full_text_with_messages_as_a_conversation(window: Browser, page: Path) -> None:
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": LONG * 5}]
    open_page(window, page, Section("rows", [{"id": "a", "messages": messages, "nothing": None}]))
    assert window.texts(".detail") == []
    window.click("tr.row")
    assert window.texts(".detail .message .role") == ["user", "assistant"]
    assert window.texts(".detail .message .value") == ["Why?", LONG * 5]
    assert window.texts(".detail dt") == ["id", "messages", "nothing"]
    window.click("tr.row")
    assert window.texts(".detail") == []


def test_the_keyboard_reaches_search_rows_and_details(window: Browser, page: Path) -> None:
    open_page(window, page, Section("rows", ROWS))
    window.press("/")
    assert window.run("return document.activeElement.type") == "search"
    window.run("document.querySelector('tr.row button').focus()")
    window.press(DOWN, DOWN, ENTER)
    assert window.run("return document.activeElement.closest('tr').nextSibling.className") == "detail"
    assert window.texts(".detail dd:first-of-type") == ["r002"]
    window.press(DOWN, ENTER)
    assert window.texts(".detail dd:first-of-type") == ["r002", "r003"]


def test_changed_words_and_numbers_are_marked_and_the_rest_is_quiet(window: Browser, page: Path) -> None:
    open_page(window, page, Section("rows", CHANGES, sides=("m1", "m2")))
    window.wait("document.querySelector('td del')")
    assert window.texts("td del") == [" old"]
    assert window.texts("td ins") == [" new"]
    assert shown(window, "score") == ["1 \u2192 3.5 (+2.5)", "2", "4", "5 \u2192 4 (\u22121)"]
    assert shown(window, "change") == ["~ changed", "+ added", "\u2212 removed", "~ changed"]
    assert window.texts("td.same") == ["c1", "c4", "same"]
    assert len(shown(window, "text")[0]) < 120
    window.click("tr.row")
    assert window.texts(".detail del") == [" old"]
    assert LONG in window.texts(".detail")[0]


def test_changes_are_filtered_by_kind_and_by_difference_and_sorted_by_it(window: Browser, page: Path) -> None:
    open_page(window, page, Section("rows", CHANGES, sides=("m1", "m2")))
    sort_by(window, "new \u2212 old of score")
    assert order(window) == "4123"
    window.click("summary")
    fill(window, "select[aria-label=change]", "changed")
    assert (order(window), counter(window)) == ("41", "shown 2 of 4")
    fill(window, "select[aria-label=change]", "")
    fill(window, "select[aria-label='score: which']", "delta")
    fill(window, "input[aria-label='score min']", "0")
    assert order(window) == "1"
    fill(window, "select[aria-label='score: which']", "old")
    fill(window, "input[aria-label='score min']", "4")
    assert order(window) == "43"


def test_messages_that_changed_are_compared_one_by_one(window: Browser, page: Path) -> None:
    a, b = ([{"role": "user", "content": f"my {animal} is ill and I do not know why"}] for animal in ("cat", "dog"))
    open_page(
        window, page, Section("rows", [RowChange("changed", {"id": 1, "m": a}, {"id": 1, "m": b})], sides=("a", "b"))
    )
    window.click("tr.row")
    assert window.texts(".detail .message del") == [" cat"]
    assert window.texts(".detail .message ins") == [" dog"]


def test_two_long_texts_with_nothing_in_common_stand_side_by_side(window: Browser, page: Path) -> None:
    rng = random.Random(1)
    texts = [" ".join(str(rng.random()) for _ in range(10_000)) for _ in range(2)]
    open_page(
        window,
        page,
        Section("rows", [RowChange("changed", {"id": 1, "x": texts[0]}, {"id": 1, "x": texts[1]})], sides=("a", "b")),
    )
    window.click("tr.row")
    assert window.texts(".detail .rewrite > *") == texts


def test_a_word_diff_gives_back_both_texts_and_marks_no_more_than_was_changed(window: Browser, page: Path) -> None:
    rng = random.Random(2)
    changes = []
    for number in range(60):
        old = [rng.choice(["a", "bb", "c.", "d,", "\n", "\u4e2d\u6587", "\u00e9"]) for _ in range(rng.randint(30, 60))]
        new = list(old)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(new))
            new[place : place + rng.randint(0, 2)] = [f"new{place}"] * rng.randint(0, 2)
        changes.append(
            RowChange("changed", {"id": number, "x": " ".join(old)}, {"id": number, "x": " ".join([*new, "end"])})
        )
    fragment = "#open=" + ",".join(map(str, range(60)))
    open_page(window, page, Section("rows", changes, sides=("a", "b")), fragment=fragment)
    parts = window.run(
        "return [...document.querySelectorAll('.detail dd:last-child > div')]"
        ".map((cell) => [...cell.children].map((part) => [part.tagName, part.textContent]))"
    )
    assert len(parts) == 60
    for change, pieces in zip(changes, parts, strict=True):
        assert change.a is not None
        assert change.b is not None
        assert "".join(text for tag, text in pieces if tag != "INS") == change.a["x"]
        assert "".join(text for tag, text in pieces if tag != "DEL") == change.b["x"]
        assert sum(len(text) for tag, text in pieces if tag == "SPAN") > 0.5 * len(change.a["x"])


def test_fifty_thousand_rows_show_their_first_and_search_finds_the_one(window: Browser, page: Path) -> None:
    rows = [{"id": f"n{number}", "score": number % 7, "text": f"{LONG} {number}"} for number in range(50_000)]
    rows[43_210]["text"] = f"{LONG} the needle"
    open_page(window, page, Section("rows", rows))
    assert counter(window) == "shown 50,000 of 50,000"
    assert shown(window)[:3] == ["n0", "n1", "n2"]
    window.type("input[type=search]", "the needle")
    window.wait("document.querySelector('.counter').textContent === 'shown 1 of 50,000'")
    assert shown(window) == ["n43210"]
    window.run("document.querySelector('input[type=search]').value = ''")
    fill(window, "input[type=search]", "")
    window.wait("document.querySelector('.counter').textContent === 'shown 50,000 of 50,000'")
    sort_by(window, "score")
    sort_by(window, "score")
    window.click("button[aria-label='next page']")
    assert shown(window)[0] == "n706"
    assert window.texts(".pager .counter") == ["page 2 of 500"]


def test_the_hash_holds_the_view_and_opens_it_again(window: Browser, page: Path) -> None:
    sections = [Section("first", ROWS), Section("sec&ond #1", ROWS)]
    open_page(window, page, *sections)
    window.run("document.querySelectorAll('nav button')[1].click()")
    second = "section:not([hidden])"
    sort_by_second = f"{second} button[title='sort by score']"
    window.click(sort_by_second)
    window.click(sort_by_second)
    fill(window, f"{second} input[aria-label='score min']", "0")
    window.click(f"{second} tr.row")
    before = (order(window), counter(window), window.texts(".detail"))
    assert before[:2] == ("4015", "shown 4 of 6")
    fragment = window.run("return location.hash")

    window.open(page, fragment)
    assert (order(window), counter(window), window.texts(".detail")) == before
    assert window.texts("nav [aria-pressed=true]") == ["sec&ond #1"]


@pytest.mark.parametrize(
    "fragment",
    ["#", "#%", "#%ff=%00", "#sort=by.none&page=x&open=9,,x&min.score=abc", "#sort=__proto__&section=none", "#page=-5"],
)
def test_a_broken_hash_shows_the_rows_all_the_same(window: Browser, page: Path, fragment: str) -> None:
    open_page(window, page, Section("rows", ROWS), fragment=fragment)
    assert len(shown(window)) in (0, 6)
    assert counter(window).endswith(" of 6")


def test_hostile_texts_are_shown_and_never_run(window: Browser, page: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": text, text: text, "messages": [{"role": text, "content": text}]} for text in HOSTILE
    ]
    changes = [RowChange("changed", {"id": 1, "x": old}, {"id": 1, "x": new}) for old, new in pairwise(HOSTILE)]
    sections = [
        Section("rows", rows, HOSTILE, [Histogram(text, [0, 1], [1]) for text in HOSTILE]),
        Section(HOSTILE[0], changes, HOSTILE, [Histogram(HOSTILE[0], [0, 1], [1], [2])], (HOSTILE[0], HOSTILE[1])),
    ]
    window.requests()
    write_page(page, HOSTILE[0], HOSTILE[2], sections)
    title = HOSTILE[0]
    for fragment in (
        "#open=0,1,2,3,4,5,6,7",
        "#open=0,1,2,3,4,5,6&section=" + HOSTILE[0].replace("=", "%3D").replace("'", "%27"),
    ):
        window.open(page, fragment)
        assert window.run("return document.title") == title
        assert (
            window.run("return document.querySelectorAll('img, svg[onload], main style, iframe, object').length") == 0
        )
        assert window.run("return document.querySelectorAll('main script:not([type])').length") == 0
    window.open(page, "#open=0,1,2,3,4,5,6,7")
    texts = "\n".join(window.texts("main > section:not([hidden]) tbody"))
    for text in HOSTILE[:4]:
        assert text in texts
    for name in ("aU+2028bU+2029c", "abcU+202Edef", "nulU+0000 escapeU+001B[31m"):
        assert name in texts
    assert [url for url in window.requests() if not url.startswith(("file:///", "about:", "data:,"))] == []


def test_the_page_asks_for_nothing_but_itself(window: Browser, page: Path) -> None:
    window.requests()
    open_page(window, page, Section("rows", ROWS))
    window.click("tr.row")
    assert set(window.requests()) <= {"about:blank", page.as_uri()}
    result = window.post(
        "execute/async",
        script="fetch('http://127.0.0.1:9/').then(() => arguments[0]('let through'), (e) => arguments[0](String(e)))",
        args=[],
    )
    assert "Failed to fetch" in result
    window.run(
        "const added = document.createElement('script'); added.textContent = 'document.title = 1';"
        "document.body.append(added)"
    )
    assert window.run("return document.title") == "title"


def test_column_names_that_objects_have_by_themselves_are_columns_like_others(window: Browser, page: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": "a", "__proto__": "p", "constructor": "c", "toString": 1}, {"id": "b", "x": 1}]
    open_page(window, page, Section("rows", rows))
    assert shown(window, "__proto__") == ["p", "\u2013"]
    assert shown(window, "constructor") == ["c", "\u2013"]
    assert shown(window, "toString") == ["1", "\u2013"]


@pytest.mark.parametrize("width", [360, 700, 1200])
def test_the_page_is_no_wider_than_the_window(window: Browser, page: Path, width: int) -> None:
    wide = [
        {f"column {number} with a long name": LONG if number % 2 else number for number in range(20)}
        | {"id": "x" * 200}
    ]
    open_page(
        window,
        page,
        Section("rows", [*ROWS, *wide], ["f" * 300], [Histogram("score", [0, 1, 2], [1, 2])]),
        fragment="#open=6",
    )
    window.post("window/rect", width=width, height=800)
    assert window.run("return document.documentElement.scrollWidth - innerWidth") <= 0
    window.post("window/rect", width=1200, height=900)
