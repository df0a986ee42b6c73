"""`align show` of rows: which rows, in which order, and how they look."""

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from align.cli.show.panels import show_rows
from align.cli.show.row_page import histograms
from tests.cli.test_page import Page
from tests.dvc_project import align, error_of

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]")
ATTACK = "\x1b[31m \x1b]0;title\x07 \x9b2J \x7f\x08\r\u202e"
ROWS = [
    {"id": "a", "prompt": "Plant a Garden", "score": 4.25, "iteration": "m1", "ok": True, "n": 1},
    {"id": "b", "prompt": "Fix a bicycle", "score": 4, "iteration": "m2", "ok": False, "n": 2},
    {"id": "c", "prompt": "Bake bread", "score": None, "iteration": None, "ok": True, "n": "1"},
    {"id": "d", "prompt": "Ride", "score": 1.5, "iteration": "m1", "n": 10, "messages": [{"content": "GARDEN path"}]},
]


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    write("data/m1/scores.jsonl", ROWS)


def write(name: str, rows: Sequence[Any]) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def show(*arguments: str) -> str:
    result = align("show", *arguments)
    assert result.exit_code == 0, result.output
    return result.output


def ids(*arguments: str) -> str:
    lines = show("data/m1/scores.jsonl", "--json", *arguments).splitlines()
    return "".join(json.loads(line)["id"] for line in lines)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("score>=4", "ab"),
        ("score > 4", "a"),
        ("score<4", "d"),
        ("score<=4", "bd"),
        ("score=4.0", "b"),
        ("score==4", "b"),
        ("score!=4", "acd"),
        ("score=null", "c"),
        ("score!=null", "abd"),
        ("iteration=m1", "ad"),
        ('iteration="m1"', "ad"),
        ("iteration!=m1", "bc"),
        ("prompt=Bake bread", "c"),
        ("prompt~garden", "a"),
        ("messages~garden", "d"),
        ("ok=true", "ac"),
        ("ok=1", ""),
        ("n=1", "ac"),
        ("n>1", "bd"),
    ],
)
def test_a_condition_compares_numbers_as_numbers_and_texts_as_texts(condition: str, expected: str) -> None:
    assert ids("--where", condition) == expected


def test_several_conditions_all_hold() -> None:
    assert ids("--where", "score>=1", "--where", "iteration=m1", "--grep", "garden") == "ad"
    assert ids("--where", "score>=4", "--where", "iteration=m1") == "a"


def test_grep_looks_into_every_column_at_any_depth() -> None:
    assert ids("--grep", "garden") == "ad"
    assert ids("--grep", "m2") == "b"
    assert ids("--grep", "nowhere") == ""


def test_rows_without_a_value_come_last_in_both_directions() -> None:
    assert ids("--sort", "score") == "dbac"
    assert ids("--sort", "score", "--desc") == "abdc"


def test_sorting_keeps_the_order_of_rows_that_are_alike_and_puts_numbers_before_texts() -> None:
    assert ids("--sort", "iteration") == "adbc"
    assert ids("--sort", "n") == "abdc"


def test_a_sample_is_drawn_by_its_seed_and_keeps_the_files_order() -> None:
    write("many.jsonl", [{"id": number} for number in range(1000)])

    def sample(seed: str) -> list[int]:
        lines = show("many.jsonl", "--json", "--sample", seed, "--rows", "20").splitlines()
        return [json.loads(line)["id"] for line in lines]

    first = sample("1")
    assert first == sample("1") == sorted(first)
    assert len(set(first)) == 20
    assert sample("2") != first
    assert max(first) > 500


def test_a_terminal_shows_ten_rows_and_json_all() -> None:
    write("many.jsonl", [{"id": number} for number in range(30)])
    assert show("many.jsonl", "--grep", "").splitlines()[-1] == "many.jsonl: 10 of 30 rows"
    assert show("many.jsonl", "--rows", "3").splitlines()[-1] == "many.jsonl: 3 of 30 rows"
    assert show("many.jsonl", "--where", "id<5", "--rows", "2").splitlines()[-1] == (
        "many.jsonl: 2 of 5 matching rows, 30 in all"
    )
    assert show("many.jsonl", "--where", "id<0") == "many.jsonl: none of 30 rows matches\n"
    assert len(show("many.jsonl", "--json", "--grep", "").splitlines()) == 30


def test_a_models_data_set_is_named_with_what() -> None:
    write("data/m1/prompts.jsonl", [{"id": "p"}])
    assert show("m1", "--what", "prompts", "--json") == '{"id": "p"}\n'
    assert show("models/m1", "--what", "prompts", "--json") == '{"id": "p"}\n'
    assert error_of("show", "m1", "--rows", "1").endswith("name one with --what: prompts, scores\n")
    assert error_of("show", "m1", "--what", "ift").startswith("Error: data/m1/ift.jsonl: no such file; ")


def test_one_data_set_needs_no_name() -> None:
    assert len(show("m1", "--rows", "9", "--json").splitlines()) == len(ROWS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--where", "scor>=4"],
            "no row has the column 'scor'; columns: id, prompt, score, iteration, ok, n, messages",
        ),
        (["--where", "score"], "--where 'score': not a condition; write a column, "),
        (["--where", ">=4"], "--where '>=4': not a condition; "),
        (["--where", "score>=high"], "--where 'score>=high': >= compares numbers, and 'high' is not one"),
        (["--where", "prompt<5"], "column 'prompt' has no numbers, and < compares numbers; "),
        (["--sort", "scor"], "no row has the column 'scor'; "),
        (["--desc"], "--desc needs --sort COLUMN"),
        (["-o", "x.html"], "-o needs --html"),
        (["--html", "--json"], "--html and --json exclude each other"),
        (["--what", "ift"], "data/m1/scores.jsonl is a file; --what names a data set of a model"),
    ],
)
def test_a_bad_filter_is_one_line_that_says_what_is_wrong(arguments: list[str], message: str) -> None:
    assert error_of("show", "data/m1/scores.jsonl", *arguments).startswith(f"Error: {message}")


def test_an_unknown_name_is_a_one_line_error() -> None:
    assert error_of("show", "m9", "--rows", "1").startswith("Error: 'm9': not a file, nor a model with data here")
    assert error_of("show", "x/y.jsonl", "--rows", "1").startswith("Error: x/y.jsonl: no such file; ")
    assert error_of("show", "data/m1", "--rows", "1").startswith("Error: data/m1: is a directory; ")
    Path("bad.jsonl").write_text('{"id": 1}\n{"id": NaN}\n', encoding="utf-8")
    assert error_of("show", "bad.jsonl", "--rows", "1").startswith("Error: bad.jsonl:2: not a JSON object")


def test_an_empty_file_has_no_rows_and_is_no_error() -> None:
    write("empty.jsonl", [])
    assert show("empty.jsonl", "--where", "score>=4") == "empty.jsonl: 0 rows\n"


def test_a_panel_shows_scores_roles_and_wrapped_texts_in_80_columns() -> None:
    row = {
        "id": "p1",
        "messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}],
        "chosen": "word " * 40,
        "score": 3.25,
        "failure": None,
    }
    write("rows.jsonl", [row])
    lines = show("rows.jsonl", "--rows", "1").splitlines()
    assert all(len(line) == 80 for line in lines[:-1])
    texts = [line.strip("│╭╮╰╯─ ") for line in lines]
    assert texts[:7] == ["p1", "score 3.25  failure -", "user", "Why?", "assistant", "Because.", "chosen"]
    assert sum(text.count("word") for text in texts[7:]) == 40


def test_text_is_no_markup_and_no_control_character_reaches_the_terminal() -> None:
    text = f"[bold red]x[/] :smile: [link=http://x]y[/link] {ATTACK}"
    row = {
        "id": text,
        text: text,
        "messages": [{"role": text, "content": text}],
        "list": [text],
        "other": {text: [text]},
    }
    write("rows.jsonl", [row])
    for flags in ([], ["--json"]):
        output = show("rows.jsonl", "--rows", "1", *flags)
        assert CONTROL.findall(output) == []
        assert "[bold red]x[/] :smile: [link=http://x]y[/link]" in output.splitlines()[0]
    assert json.loads(show("rows.jsonl", "--rows", "1", "--json")) == row


@pytest.mark.parametrize("color", [True, False])
def test_roles_have_colours_unless_no_color_is_set(monkeypatch: pytest.MonkeyPatch, color: bool) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not color:
        monkeypatch.setenv("NO_COLOR", "1")
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system="standard", width=80)
    show_rows(console, [{"id": 1, "chosen": "yes", "rejected": "no"}])
    assert ("\x1b[1;32mchosen" in stream.getvalue()) == color
    assert ("\x1b[1;31mrejected" in stream.getvalue()) == color


def test_html_has_a_section_for_each_data_set_of_a_model() -> None:
    write("data/m1/prompts.jsonl", [{"id": "p"}])
    lines = show("m1", "--html").splitlines()
    page = Page(Path(".align/pages/m1.html"))
    assert lines[0].startswith(".align/pages/m1.html  ")
    assert lines[1:] == ["  data/m1/prompts.jsonl: 1 rows", "  data/m1/scores.jsonl: 4 rows"]
    assert page.text("h2") == ["prompts", "scores"]
    assert page.rows() == [{"id": "p"}, *ROWS]


def test_filtered_rows_are_written_to_the_named_page() -> None:
    show("m1", "--what", "scores", "--where", "score>=4", "--html", "-o", "x/y.html")
    page = Page(Path("x/y.html"))
    assert page.rows() == ROWS[:2]
    assert page.text("li") == ["data/m1/scores.jsonl: 2 of 2 matching rows, 4 in all"]


def test_a_bad_file_leaves_no_page() -> None:
    Path("data/m1/ift.jsonl").write_text("{", encoding="utf-8")
    assert error_of("show", "m1", "--html").startswith("Error: data/m1/ift.jsonl:1: ")
    assert list(Path(".align/pages").iterdir()) == []


def test_histograms_count_every_number_once() -> None:
    rows = [{"score": number / 7, "whole": number % 4, "same": 1, "text": "x"} for number in range(50)] + [
        {"score": None}
    ]
    scores, whole = histograms(rows)
    assert (scores.name, whole.name) == ("score", "whole")
    assert sum(scores.a) == sum(whole.a) == 50
    assert len(scores.edges) == len(scores.a) + 1
    assert whole.a == [13, 13, 12, 12]
    assert histograms([{"x": 1e308}, {"x": -1e308}, {"x": 0}, {"x": 5e-324}]) == []
