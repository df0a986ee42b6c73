import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from stages.cli import main

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
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


def test_two_files_are_summed_up() -> None:
    write("a.jsonl", OLD)
    write("b.jsonl", NEW)
    result = diff("a.jsonl", "b.jsonl")
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "b.jsonl: 3 -> 3 rows; 1 added, 1 removed, 1 changed, 1 unchanged",
        "  changed columns: text 1, score 1",
        "  score            mean 2.000 -> 2.000   (b.jsonl higher in 1, lower in 0, equal in 1)",
    ]


def test_rows_are_shown_up_to_the_limit() -> None:
    write("a.jsonl", OLD)
    write("b.jsonl", [*NEW, {"id": 5, "text": "newer", "score": 0}])
    lines = diff("a.jsonl", "b.jsonl", "--limit", "1").output.splitlines()
    assert lines[-4:] == [
        '  + {"id": 4, "text": "new", "score": 0}',
        '  - {"id": 3, "text": "gone", "score": 1}',
        '  a.jsonl: {"id": 2, "text": "x", "score": 3}',
        '  b.jsonl: {"id": 2, "text": "y", "score": 4}',
    ]
    assert not any("newer" in line for line in lines)


def test_json_holds_counts_and_up_to_limit_rows() -> None:
    write("a.jsonl", OLD)
    write("b.jsonl", [*NEW, {"id": 5, "text": "newer", "score": 0}])
    value = json.loads(diff("a.jsonl", "b.jsonl", "--json", "--limit", "1").output)["b.jsonl"]
    assert value["added"] == {"count": 2, "rows": [NEW[2]]}
    assert value["removed"] == {"count": 1, "rows": [OLD[2]]}
    assert value["changed"] == {"count": 1, "rows": [[OLD[1], NEW[1]]]}
    assert (value["unchanged"], value["same"]) == (1, False)
    assert value["numbers"]["score"] == {"mean_a": 2.0, "mean_b": 1.5, "higher": 1, "lower": 0, "equal": 1}


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_the_exit_code_tells_on_request_whether_the_sides_differ(flags: list[str]) -> None:
    write("a.jsonl", OLD)
    write("b.jsonl", NEW)
    assert diff("a.jsonl", "b.jsonl", "--exit-code", *flags).exit_code == 1
    assert diff("a.jsonl", "a.jsonl", "--exit-code", *flags).exit_code == 0
    assert diff("a.jsonl", "b.jsonl", *flags).exit_code == 0


def test_models_are_compared_in_every_data_set_that_both_have() -> None:
    write("data/m1/prompts.jsonl", [{"id": 1}])
    write("data/m1/scores.jsonl", [{"id": 1, "sample": s, "score": 1.0} for s in (0, 1)])
    write("data/m2/scores.jsonl", [{"id": 1, "sample": s, "score": 2.0} for s in (0, 1)])
    write("data/eval/m1.jsonl", [{"id": 1, "turn": t} for t in (1, 2)])
    write("data/eval/m2.jsonl", [{"id": 1, "turn": t} for t in (1, 2)])
    value = json.loads(diff("m1", "m2", "--json").output)
    assert {name: result["same"] for name, result in value.items()} == {"scores": False, "answers": True}
    assert diff("m1", "m2", "--exit-code").exit_code == 1
    assert diff("m1", "m2", "--exit-code", "--what", "answers").exit_code == 0


def test_the_key_of_two_files_can_be_named() -> None:
    write("a.jsonl", [{"name": "x", "turn": 1}, {"name": "x", "turn": 2}])
    assert diff("a.jsonl", "a.jsonl", "-k", "name", "-k", "turn", "--exit-code").exit_code == 0
    assert "name more key columns" in error_of("a.jsonl", "a.jsonl", "-k", "name")
    assert "no key column 'id'" in error_of("a.jsonl", "a.jsonl")


def test_a_missing_file_is_named() -> None:
    write("a.jsonl", OLD)
    message = "Error: none.jsonl: no such file; check the path, or run `dvc repro` or `dvc pull`\n"
    assert error_of("a.jsonl", "none.jsonl") == message
    assert error_of("none.jsonl", "a.jsonl") == message


def test_a_missing_data_set_of_a_model_is_named() -> None:
    write("data/m1/scores.jsonl", OLD)
    assert error_of("m1", "m2", "--what", "scores").startswith("Error: data/m2/scores.jsonl: no such file; ")


def test_two_sides_that_are_nothing_are_an_error() -> None:
    assert error_of("m1", "m2").startswith("Error: nothing to compare: 'm1' and 'm2' are no files")


@pytest.mark.parametrize("line", ["{", "[1]", "null", '{"id": NaN}'])
def test_a_bad_line_is_named_by_file_and_number(line: str) -> None:
    write("a.jsonl", OLD)
    Path("b.jsonl").write_text(f'{{"id": 1}}\n\n{line}\n', encoding="utf-8")
    assert error_of("a.jsonl", "b.jsonl").startswith("Error: b.jsonl:3: not a JSON object")


def test_invalid_utf8_is_an_error_that_names_the_file() -> None:
    write("a.jsonl", OLD)
    Path("b.jsonl").write_bytes(b'{"id": "\xff"}\n')
    assert "b.jsonl" in error_of("a.jsonl", "b.jsonl")


def test_a_key_that_is_a_list_is_an_error_and_no_traceback() -> None:
    write("a.jsonl", [{"id": [1]}])
    assert error_of("a.jsonl", "a.jsonl").startswith("Error: a.jsonl, a.jsonl: row 1 of side A ")


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
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_control_characters_of_the_data_never_reach_the_terminal(
    old: list[Any], new: list[Any], flags: list[str]
) -> None:
    write("a.jsonl", old)
    write("b.jsonl", new)
    result = diff("a.jsonl", "b.jsonl", "--limit", "9", *flags)
    assert result.exit_code == 0
    assert CONTROL.findall(result.output) == []


def test_control_characters_never_reach_the_terminal_in_an_error() -> None:
    write("a.jsonl", [{"id": ATTACK}, {"id": ATTACK}])
    assert CONTROL.findall(error_of("a.jsonl", "a.jsonl")) == []


def test_json_keeps_the_texts_that_it_escapes() -> None:
    write("a.jsonl", [{"id": 1}])
    write("b.jsonl", [{"id": 1}, {"id": 2, "text": ATTACK + "é"}])
    value = json.loads(diff("a.jsonl", "b.jsonl", "--json", "--limit", "1").output)
    assert value["b.jsonl"]["added"]["rows"] == [{"id": 2, "text": ATTACK + "é"}]
