"""report.html in a real browser: on a phone as on a desk, without a network, and the search box.

`make test-browser` runs these; they need Chromium and its driver.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from align.core.rows import write_rows
from stages.summary import main
from tests.answers import answer
from tests.faults.broken.workspace import write_files
from tests.servers.browser import Browser, browser

pytestmark = pytest.mark.browser
MODELS = ("base", "m0", "m1", "dpo", "ppo")
LONG = "A-word-without-any-place-to-break-it-" * 6


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser"), "--window-size=1280,1000") as session:
        yield session


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The report of a run whose second prompt alone speaks of geese."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in MODELS:
        texts = ["It is a lake.", "Geese fly <b>south</b>.", LONG]
        write_rows(Path(f"data/eval/{name}.jsonl"), [answer(f"e{i}", response=text) for i, text in enumerate(texts)])
    result = CliRunner().invoke(main)
    assert result.exit_code == 0, result.output
    return tmp_path / "data/summary/report.html"


def resize(window: Browser, width: int) -> None:
    values = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    window.post("goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=values)


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window_and_nothing_is_requested(window: Browser, page: Path, width: int) -> None:
    resize(window, width)
    window.requests()
    window.open(page)

    assert window.run("return document.documentElement.scrollWidth") <= width
    assert {url for url in window.requests() if url.startswith(("http", "file"))} == {page.resolve().as_uri()}
    assert window.run("return document.querySelectorAll('svg').length") > 10
    window.run("for (const part of document.querySelectorAll('details')) part.open = true")
    assert window.run("return document.documentElement.scrollWidth") <= width
    assert window.run(
        "return [...document.querySelectorAll('svg')].every((s) => s.getBoundingClientRect().width > 200)"
    )


def test_the_search_shows_the_answers_that_hold_all_its_words(window: Browser, page: Path) -> None:
    resize(window, 1280)
    window.open(page)
    shown = "return [...document.querySelectorAll('article')].filter((a) => !a.hidden).length"
    everything = window.run(shown)

    window.type("#search", "geese SOUTH")
    assert window.run(shown) == 1
    assert window.texts("#shown") == [f"1 of {everything}"]

    window.type("#search", "x")
    assert window.run(shown) == 0


def test_text_with_markup_is_shown_as_text(window: Browser, page: Path) -> None:
    window.open(page)
    assert "Geese fly <b>south</b>." in window.texts("td.text")
    assert window.run("return document.querySelectorAll('td.text b').length") == 0
