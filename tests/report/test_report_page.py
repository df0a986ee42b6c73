"""report.html: complete, safe, equal in bytes, and of the same figures as metrics.json."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from align.core.rows import write_rows
from align.core.templates import source_hash
from stages.summary import main
from tests.answers import answer, checked_answer
from tests.faults.broken.workspace import write_files

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "\u2028\u202e\x1b[31m\x00",
    "a\tb\r\nc",
    "{{ 7 * 191 }}",
]
MODELS = ("base", "m0", "m1", "dpo", "ppo")


class Page(HTMLParser):
    """The tags and the visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.raw: dict[str, str] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("script", "style") and data.strip():
            self.raw.setdefault(self.tags[-1][0], data)
        else:
            self.text.append(data)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What summary reads."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def summarize() -> str:
    result = CliRunner().invoke(main)
    assert result.exit_code == 0, result.output
    return Path("data/summary/report.html").read_text(encoding="utf-8")


def write_answers(workspace: Path, text: str, count: int = 3) -> None:
    for shift, name in enumerate(MODELS):
        rows: list[Any] = [
            answer(f"e{i}", prompt=text, response=text, category=text, judge_score=1.0 + 0.3 * shift + 0.01 * i)
            for i in range(count)
        ]
        write_rows(workspace / f"data/eval/{name}.jsonl", rows)
        checked = [checked_answer(f"c{i}", [i % 5 >= shift]) for i in range(40)]
        write_rows(workspace / f"data/eval/{name}.checks.jsonl", checked)


def test_two_runs_write_the_same_bytes_and_nothing_of_time_or_machine(workspace: Path) -> None:
    page = summarize()
    assert page == summarize()
    assert str(workspace) not in page


def test_every_figure_of_metrics_json_is_in_the_page(workspace: Path) -> None:
    write_answers(workspace, "hello", 20)
    text = " ".join(" ".join(Page(summarize()).text).split())
    metrics = json.loads((workspace / "data/summary/metrics.json").read_text())

    names = {"base": "base", "loop": "m1", "dpo": "dpo", "rlhf": "ppo"}
    for key, value in metrics.items():
        side, _, measure = key.partition("_")
        if value is None or key.endswith(("_low", "_high")) or not key.endswith("_difference"):
            continue
        shown = f"{value:+.2f} [{metrics[f'{key}_low']:+.2f}, {metrics[f'{key}_high']:+.2f}]"
        assert shown in text, (names[side], measure)
    accuracy = [metrics[f"reward_model_accuracy{end}"] for end in ("", "_low", "_high")]
    assert "{:.2f} [{:.2f}, {:.2f}]".format(*accuracy) in text
    assert f"of {metrics['reward_model_test_pairs']} held-out pairs" in text


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_a_model_adds_no_element_and_no_control_character(workspace: Path, text: str) -> None:
    write_answers(workspace, "plain")
    before = [tag for tag, _ in Page(summarize()).tags]

    write_answers(workspace, text)
    page = summarize()

    assert [tag for tag, _ in Page(page).tags] == before
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u202e]", page)
    assert "1337" not in page


def test_the_page_loads_nothing_and_runs_only_its_own_script(workspace: Path) -> None:
    page = Page(summarize())

    policy = next(str(attrs["content"]) for tag, attrs in page.tags if attrs.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert f"script-src '{source_hash(page.raw['script'])}'" in policy
    assert f"style-src '{source_hash(page.raw['style'])}'" in policy
    assert not re.search(r"url\(|@import|fetch|XMLHttp|import\(", page.raw["style"] + page.raw["script"])
    assert not [attrs for _, attrs in page.tags if {"src", "style", "onclick", "onload"} & set(attrs)]
    assert [attrs["href"] for tag, attrs in page.tags if tag == "a" and not str(attrs["href"]).startswith("#")] == []


def test_each_link_of_the_page_has_its_section(workspace: Path) -> None:
    page = Page(summarize())
    ids = {attrs.get("id") for _, attrs in page.tags}
    assert {str(attrs["href"])[1:] for tag, attrs in page.tags if tag == "a"} <= ids


def test_a_large_evaluation_stays_under_500_kb_and_says_how_many_answers_it_shows(workspace: Path) -> None:
    write_answers(workspace, "word " * 90, 400)
    page = summarize()
    assert len(page.encode()) < 500_000
    assert "The first 100 of 400" in page


def test_gates_that_are_near_and_models_that_rarely_end_are_warnings(workspace: Path) -> None:
    scores = json.loads(Path("data/metrics/m1/scores.json").read_text())
    gate = json.loads(json.dumps(scores))
    gate["as_judge"]["pairwise_accuracy"] = 0.61
    Path("data/metrics/m1/scores.json").write_text(json.dumps(gate))
    assert "judge_pairwise_accuracy 0.61 is near gates.min_pairwise_accuracy" in summarize()

    rows = [answer(f"e{i}", finish_reason="length") for i in range(1, 4)]
    for name in MODELS:
        write_rows(workspace / f"data/eval/{name}.jsonl", rows)
    measures = json.loads(Path("data/eval/m1.json").read_text())
    Path("data/eval/m1.json").write_text(json.dumps(measures | {"ended_share": 0.25}))
    assert "m1: 75% of its answers were cut off" in summarize()
