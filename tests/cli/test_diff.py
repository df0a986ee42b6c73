import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click import unstyle
from click.testing import CliRunner, Result

from align.cli.main import main

OLD = [{"id": 1, "text": "same", "score": 2}, {"id": 2, "text": "x", "score": 3}, {"id": 3, "text": "gone", "score": 1}]
NEW = [{"id": 1, "text": "same", "score": 2}, {"id": 2, "text": "y", "score": 4}, {"id": 4, "text": "new", "score": 0}]
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
ATTACK = "\x1b[31m \x1b]0;title\x07 \x9b2J \x7f\x08\r"


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, rows: Sequence[Any]) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def diff(*arguments: str) -> Result:
    # color=True: without it click itself removes escape sequences, which a terminal would get.
    return CliRunner().invoke(main, ["diff", *arguments], color=True)


def error_of(*arguments: str) -> str:
    result = diff(*arguments)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


def sets(*arguments: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(diff(*arguments, "--format", "json").output)["data_sets"]
    return value


def test_two_files_are_summed_up() -> None:
    write("a.jsonl", OLD)
    write("b.jsonl", NEW)
    result = diff("a.jsonl", "b.jsonl", "--limit", "0")
    assert result.exit_code == 0
    assert unstyle(result.output).splitlines() == [
        "b.jsonl: 3 -> 3 rows; 1 added, 1 removed, 1 changed, 1 unchanged",
        "  changed: text 1, score 1",
        "  score  mean 2 -> 2  median 2 -> 2  (b.jsonl higher in 1, lower in 0, equal in 1)",
        "         0 |  █  █ █  | -> |█    █   █| 4",
    ]


def test_rows_are_shown_up_to_the_limit_with_what_changed_in_them() -> None:
    write("a.jsonl", OLD)
    write("b.jsonl", [*NEW, {"id": 5, "text": "newer", "score": 0}])
    lines = unstyle(diff("a.jsonl", "b.jsonl", "--limit", "1").output).splitlines()
    assert lines[4:] == [
        "  + id=4",
        "      text: new",
        "      score: 0",
        "  - id=3",
        "      text: gone",
        "      score: 1",
        "  ~ id=2",
        "      text: x -> y",
        "      score: 3 -> 4",
    ]


def test_only_rows_of_the_requested_kinds_are_shown() -> None:
    write("a.jsonl", OLD)
    write("b.jsonl", NEW)
    text = unstyle(diff("a.jsonl", "b.jsonl", "--only", "removed").output)
    assert ("- id=3" in text, "+ id=4" in text, "~ id=2" in text) == (True, False, False)
    lines = diff("a.jsonl", "b.jsonl", "--only", "added", "--only", "changed", "--format", "jsonl").output.splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["added", "changed"]


def test_the_words_that_changed_are_marked_and_long_equal_parts_are_left_out() -> None:
    words = [f"w{i}" for i in range(40)]
    write("a.jsonl", [{"id": 1, "text": " ".join(words)}])
    write("b.jsonl", [{"id": 1, "text": " ".join([*words[:20], "new", *words[21:], "end"])}])
    text = unstyle(diff("a.jsonl", "b.jsonl").output)
    assert "text: ... w12 w13 w14 w15 w16 w17 w18 w19 [-w20-] {+new+} w21 w22 w23 w24 w25 w26 w27 w28 ... w32" in text
    assert text.rstrip().endswith("w38 w39 {+end+}")


def test_lines_of_a_text_are_shown_below_each_other_and_indented() -> None:
    write("a.jsonl", [{"id": 1, "text": "one two"}])
    write("b.jsonl", [{"id": 1, "text": "one\nb.jsonl: 9 -> 9 rows two"}, {"id": 2, "text": "x\ny"}])
    lines = unstyle(diff("a.jsonl", "b.jsonl").output).splitlines()
    assert lines[0].startswith("b.jsonl: 1 -> 2 rows")
    assert all(line.startswith("  ") for line in lines[1:])
    assert "        b.jsonl: 9 -> 9 rows+} two" in lines
    assert lines[2:5] == ["  + id=2", "      text: x", "        y"]


def test_a_pair_whose_replies_swapped_is_reported_in_one_line() -> None:
    write("a.jsonl", [{"id": 1, "chosen": "x x", "rejected": "y y", "margin": 1.0}])
    write("b.jsonl", [{"id": 1, "chosen": "y y", "rejected": "x x", "margin": 2.0}])
    assert unstyle(diff("a.jsonl", "b.jsonl").output).splitlines()[-3:] == [
        "  ~ id=1",
        "      chosen and rejected have swapped",
        "      margin: 1.0 -> 2.0",
    ]


def test_json_holds_counts_and_up_to_limit_rows() -> None:
    write("a.jsonl", OLD)
    write("b.jsonl", [*NEW, {"id": 5, "text": "newer", "score": 0}])
    value = sets("a.jsonl", "b.jsonl", "--limit", "1")["b.jsonl"]
    assert [value[kind] for kind in ("added", "removed", "changed", "unchanged", "same")] == [2, 1, 1, 1, False]
    assert value["rows"] == {
        "added": [{"kind": "added", "a": None, "b": NEW[2]}],
        "removed": [{"kind": "removed", "a": OLD[2], "b": None}],
        "changed": [{"kind": "changed", "a": OLD[1], "b": NEW[1]}],
    }
    score = value["numbers"]["score"]
    assert (score["a"]["mean"], score["b"]["mean"], score["higher"], score["lower"]) == (2.0, 1.5, 1, 0)
    assert "rows" not in sets("a.jsonl", "b.jsonl")["b.jsonl"]


def test_jsonl_has_all_rows_that_differ() -> None:
    write("a.jsonl", OLD)
    write("b.jsonl", NEW)
    rows = [json.loads(line) for line in diff("a.jsonl", "b.jsonl", "--format", "jsonl").output.splitlines()]
    assert rows == [
        {"data_set": "b.jsonl", "kind": "added", "a": None, "b": NEW[2]},
        {"data_set": "b.jsonl", "kind": "removed", "a": OLD[2], "b": None},
        {"data_set": "b.jsonl", "kind": "changed", "a": OLD[1], "b": NEW[1]},
    ]


def test_the_page_goes_into_the_named_file() -> None:
    write("a.jsonl", OLD)
    write("b.jsonl", NEW)
    assert diff("a.jsonl", "b.jsonl", "--format", "html", "-o", "out.html").output == ""
    text = Path("out.html").read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert CONTROL.findall(text) == []
    for arguments in (["--format", "html"], ["-o", "out.txt"]):
        result = diff("a.jsonl", "b.jsonl", *arguments)
        assert result.exit_code == 2
        assert "--format html and -o FILE belong together" in result.stderr


def test_an_error_leaves_the_page_unchanged() -> None:
    write("a.jsonl", OLD)
    Path("b.jsonl").write_text("{")
    Path("out.html").write_text("old")
    error_of("a.jsonl", "b.jsonl", "--format", "html", "-o", "out.html")
    assert Path("out.html").read_text() == "old"


@pytest.mark.parametrize("flags", [[], ["--format", "json"], ["--format", "jsonl"], ["--format", "html", "-o", "x"]])
def test_the_exit_code_reports_on_request_whether_the_sides_differ(flags: list[str]) -> None:
    write("a.jsonl", OLD)
    write("b.jsonl", NEW)
    assert diff("a.jsonl", "b.jsonl", "--exit-code", *flags).exit_code == 1
    assert diff("a.jsonl", "a.jsonl", "--exit-code", *flags).exit_code == 0
    assert diff("a.jsonl", "b.jsonl", *flags).exit_code == 0
    assert diff("a.jsonl", "none.jsonl", "--exit-code", *flags).exit_code == 2


def test_the_tolerance_makes_near_numbers_equal() -> None:
    write("a.jsonl", [{"id": 1, "score": 1.0}])
    write("b.jsonl", [{"id": 1, "score": 1.1}])
    assert diff("a.jsonl", "b.jsonl", "--exit-code", "--tolerance", "0.2").exit_code == 0
    assert diff("a.jsonl", "b.jsonl", "--exit-code", "--tolerance", "0.05").exit_code == 1


def test_rows_of_one_key_are_reported() -> None:
    write("a.jsonl", [{"id": 1}, {"id": 1}])
    write("b.jsonl", [{"id": 1}])
    text = unstyle(diff("a.jsonl", "b.jsonl").output)
    assert 'a.jsonl: 1 duplicate keys in 2 rows, matched in file order: {"id": 1}' in text


def test_sides_without_a_common_row_are_reported() -> None:
    write("a.jsonl", [{"id": 1, "x": 1}])
    write("b.jsonl", [{"id": 2, "x": 1}])
    assert "the sides have no row in common (by id)" in diff("a.jsonl", "b.jsonl").output


def test_models_are_compared_in_every_data_set_that_both_have() -> None:
    write("data/m1/prompts.jsonl", [{"id": 1}])
    write("data/m1/scores.jsonl", [{"id": 1, "sample": s, "score": 1.0} for s in (0, 1)])
    write("data/m2/scores.jsonl", [{"id": 1, "sample": s, "score": 2.0} for s in (0, 1)])
    write("data/eval/m1.jsonl", [{"id": 1, "turn": t} for t in (1, 2)])
    write("data/eval/m2.jsonl", [{"id": 1, "turn": t} for t in (1, 2)])
    value = sets("m1", "m2")
    assert {name: result["same"] for name, result in value.items()} == {"scores": False, "answers": True}
    assert diff("m1", "m2", "--exit-code").exit_code == 1
    assert diff("m1", "m2", "--exit-code", "--what", "answers").exit_code == 0


def test_the_key_of_two_files_can_be_named() -> None:
    write("a.jsonl", [{"name": "x", "turn": 1}, {"name": "x", "turn": 2}])
    assert diff("a.jsonl", "a.jsonl", "-k", "name", "-k", "turn", "--exit-code").exit_code == 0
    assert error_of("a.jsonl", "a.jsonl") == "Error: a.jsonl: no row has the key column id; name columns of all rows\n"


def test_a_missing_file_is_named() -> None:
    write("a.jsonl", OLD)
    message = "Error: none.jsonl: no such file; check the path, or run `dvc repro` or `dvc pull`\n"
    assert error_of("a.jsonl", "none.jsonl") == message
    assert error_of("none.jsonl", "a.jsonl") == message


def test_a_missing_data_set_of_a_model_is_named() -> None:
    write("data/m1/scores.jsonl", OLD)
    assert error_of("m1", "m2", "--what", "scores").startswith("Error: data/m2/scores.jsonl: no such file; ")


def test_two_unknown_sides_are_an_error() -> None:
    assert error_of("m1", "m2").startswith("Error: nothing to compare: 'm1' and 'm2' are not files")


@pytest.mark.parametrize("line", ["{", "[1]", "null", '{"id": NaN}'])
def test_a_bad_line_is_named_by_file_and_number(line: str) -> None:
    write("a.jsonl", OLD)
    Path("b.jsonl").write_text(f'{{"id": 1}}\n\n{line}\n', encoding="utf-8")
    assert error_of("a.jsonl", "b.jsonl").startswith("Error: b.jsonl:3: not a JSON object")


def test_invalid_utf8_is_an_error_that_names_the_file() -> None:
    write("a.jsonl", OLD)
    Path("b.jsonl").write_bytes(b'{"id": "\xff"}\n')
    assert "b.jsonl" in error_of("a.jsonl", "b.jsonl")


@pytest.fixture
def without_styles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The only escape sequences left would be those of the data."""
    monkeypatch.setattr("align.cli.diff.report.click.style", lambda text, **styles: text)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param([{"id": 1, "text": ATTACK}], [{"id": 1, "text": "b"}], id="value of a changed row"),
        pytest.param([{"id": 1}], [{"id": 1}, {"id": ATTACK}], id="value of an added row"),
        pytest.param([{"id": 1}, {"id": 2, "list": [{"a": ATTACK}]}], [{"id": 1}], id="value of a removed row"),
        pytest.param([{"id": 1}], [{"id": 1, ATTACK: 1}], id="added column"),
        pytest.param([{"id": 1, ATTACK: 1}], [{"id": 1}], id="removed column"),
        pytest.param([{"id": 1, ATTACK: 1}], [{"id": 1, ATTACK: 2}], id="changed column of numbers"),
        pytest.param([{"id": 1, ATTACK: "a"}], [{"id": 1, ATTACK: "b"}], id="changed column of texts"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--format", "json"], ["--format", "jsonl"]])
@pytest.mark.usefixtures("without_styles")
def test_control_characters_of_the_data_never_reach_the_terminal(
    old: list[Any], new: list[Any], flags: list[str]
) -> None:
    write("a.jsonl", old)
    write("b.jsonl", new)
    result = diff("a.jsonl", "b.jsonl", "--limit", "9", *flags)
    assert result.exit_code == 0
    assert CONTROL.findall(result.output) == []


def test_control_characters_never_reach_the_terminal_in_an_error() -> None:
    write("a.jsonl", [{"id": 1, ATTACK: 1, ATTACK.upper(): 2}])
    assert CONTROL.findall(error_of("a.jsonl", "a.jsonl")) == []
    assert CONTROL.findall(error_of(f"m1@{ATTACK}", f"m2@{ATTACK}")) == []


def test_json_keeps_the_texts_that_it_escapes() -> None:
    write("a.jsonl", [{"id": 1}])
    write("b.jsonl", [{"id": 1}, {"id": 2, "text": ATTACK + "é"}])
    row = sets("a.jsonl", "b.jsonl", "--limit", "1")["b.jsonl"]["rows"]["added"][0]
    assert row["b"] == {"id": 2, "text": ATTACK + "é"}
