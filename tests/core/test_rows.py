import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from align.core.errors import InputError
from align.core.rows import (
    Answer,
    EvalPrompt,
    Instruction,
    Judgement,
    Message,
    PreferencePair,
    read_rows,
    write_rows,
)

JUDGEMENT = {
    "question_id": "q",
    "category": "c",
    "prompt": "p",
    "response": "r",
    "score": 3,
    "justification": "because",
}
characters = st.characters(codec="utf-8")
texts = st.text(characters, min_size=1).filter(lambda text: bool(text.strip()))
roles = st.sampled_from(["system", "user", "assistant"])
messages = st.lists(st.builds(Message, role=roles, content=texts), min_size=1, max_size=3)
pairs = st.builds(
    PreferencePair,
    id=texts,
    messages=messages,
    chosen=texts,
    rejected=texts,
    margin=st.none() | st.floats(allow_nan=False, allow_infinity=False),
)


def judgement(**changes: object) -> str:
    return json.dumps({**JUDGEMENT, **changes})


def error_of(path: Path, content: bytes, unique: tuple[str, ...] = ()) -> str:
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_rows(path, Judgement, unique=unique)
    assert len(caught.value.message.splitlines()) == 1
    return caught.value.message


@settings(derandomize=True, deadline=None, max_examples=50)
@given(rows=st.lists(pairs, min_size=1, max_size=4))
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, rows: list[PreferencePair]) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_rows(path, rows)
    assert read_rows(path, PreferencePair) == rows


def test_one_row_is_one_line_of_readable_utf8(tmp_path: Path) -> None:
    row = EvalPrompt(id="e", category="c", turns=["café\nau lait"])
    write_rows(tmp_path / "a.jsonl", [row, row])
    line = '{"id": "e", "category": "c", "turns": ["café\\nau lait"]}'
    assert (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines() == [line, line]


def test_a_number_that_json_does_not_have_is_not_written(tmp_path: Path) -> None:
    row = PreferencePair(
        id="p", messages=[Message(role="user", content="q")], chosen="a", rejected="b", margin=float("nan")
    )
    with pytest.raises(ValueError, match=r"NaN|nan|not JSON compliant"):
        write_rows(tmp_path / "a.jsonl", [row])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        pytest.param(b"score 3", "not a JSON object: ", id="not JSON"),
        pytest.param(b'{"score": 3', "not a JSON object: ", id="cut off"),
        pytest.param(judgement().encode() * 2, "not a JSON object: ", id="two objects"),
        pytest.param(b"[1]", "not a JSON object: ", id="a list"),
        pytest.param(b"null", "not a JSON object: ", id="null"),
        pytest.param(b'"text"', "not a JSON object: ", id="a string"),
        pytest.param(b'{"prompt": "\xff"}', "not a JSON object: 'utf-8' codec", id="invalid UTF-8"),
        pytest.param(
            b'{"prompt": "p"}', '"question_id" is missing; a row has the keys question_id, ', id="missing key"
        ),
        pytest.param(judgement(x=1).encode(), '"x" is not a key of this file; a row has the keys ', id="unknown key"),
        pytest.param(judgement(prompt=3).encode(), '"prompt" should be a valid string, got 3', id="wrong type"),
        pytest.param(
            judgement(score="3").encode(), "\"score\" should be a valid integer, got '3'", id="number as text"
        ),
        pytest.param(judgement(score=True).encode(), '"score" should be a valid integer, got True', id="bool"),
        pytest.param(judgement(score=3.5).encode(), '"score" should be a valid integer, got 3.5', id="float"),
        pytest.param(judgement(score=None).encode(), '"score" should be a valid integer, got None', id="null score"),
        pytest.param(judgement(prompt=" \n\t").encode(), '"prompt" is empty: write the text', id="blank text"),
        pytest.param(judgement(score=6).encode(), '"score" should be less than or equal to 5, got 6', id="score 6"),
        pytest.param(
            judgement(score=-1).encode(), '"score" should be greater than or equal to 0, got -1', id="score -1"
        ),
    ],
)
def test_a_bad_line_is_one_line_of_complaint_that_starts_with_file_and_line(
    tmp_path: Path, line: bytes, complaint: str
) -> None:
    path = tmp_path / "a.jsonl"
    message = error_of(path, judgement().encode() + b"\n" + line + b"\n")
    assert message.startswith(f"{path}:2: {complaint}")


@pytest.mark.parametrize("key", ["a\nb", "a\r\nb", "\x1b[31mred", "a\u2028b"])
def test_an_unknown_key_reaches_the_terminal_without_its_control_characters(tmp_path: Path, key: str) -> None:
    message = error_of(tmp_path / "a.jsonl", judgement(**{key: 1}).encode())
    assert "\x1b" not in message


def test_a_bad_item_of_a_list_is_named_by_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "e", "category": "c", "turns": ["fine", " "]}', encoding="utf-8")
    with pytest.raises(InputError, match=r'a\.jsonl:1: "turns\.1" is empty'):
        read_rows(path, EvalPrompt)


def test_blank_lines_are_ignored_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"\n{judgement()}\n  \n\r\n{judgement(score=4)}\n\n", encoding="utf-8")
    assert [row.score for row in read_rows(path, Judgement)] == [3, 4]
    assert error_of(path, f"\n{judgement()}\n  \n\r\n{judgement(score=9)}\n".encode()).startswith(f"{path}:5: ")


def test_a_last_line_without_a_newline_counts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f"{judgement()}\n{judgement(score=4)}", encoding="utf-8")
    assert len(read_rows(tmp_path / "a.jsonl", Judgement)) == 2


def test_a_duplicate_of_a_unique_key_names_both_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    content = "\n".join([judgement(), "", judgement(response="other"), judgement()]).encode()
    message = error_of(path, content, unique=("question_id", "response"))
    assert message == f"{path}:4: duplicate question_id 'q', response 'r', first used in line 1; make it unique"


def test_rows_that_differ_in_one_of_two_unique_fields_are_fine(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f"{judgement()}\n{judgement(response='other')}\n", encoding="utf-8")
    assert len(read_rows(tmp_path / "a.jsonl", Judgement, unique=("question_id", "response"))) == 2


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_a_file_without_rows_is_an_error_unless_allowed(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    assert error_of(path, content) == f"{path}: has no rows; at least one is needed"
    assert read_rows(path, Judgement, allow_empty=True) == []


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl: no such file"):
        read_rows(tmp_path / "none.jsonl", Judgement, allow_empty=True)


def test_a_directory_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a directory"):
        read_rows(tmp_path, Judgement)


def test_rows_are_frozen() -> None:
    row = Instruction(id="i", category="c", prompt="p", completion="x")
    with pytest.raises(ValidationError, match="frozen"):
        row.prompt = "other"


def test_an_answer_may_be_empty_but_its_prompt_may_not() -> None:
    values = {
        "id": "e",
        "category": "c",
        "turn": 1,
        "prompt": "p",
        "response": "",
        "finish_reason": "stop",
        "num_tokens": 0,
        "judge_score": None,
        "judge_failure": "none",
        "reward": 0.0,
        "kl_to_base": 0.0,
        "kl_to_m0": 0.0,
    }
    assert Answer.model_validate(values).response == ""
    with pytest.raises(ValidationError, match="is empty"):
        Answer.model_validate({**values, "prompt": ""})


@pytest.mark.parametrize(
    ("score", "read"), [(4.0, 4), ("4", 4), ("4.0", 4), (4.5, None), ("4.5", None), ("four", None)]
)
def test_whole_numbers_may_be_floats_and_in_fetched_files_texts(
    score: object, read: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data/sources").mkdir(parents=True)
    for path in (Path("data/sources/x.jsonl"), Path("own.jsonl")):
        path.write_text(judgement(score=score) + "\n", encoding="utf-8")
        if read is None or (isinstance(score, str) and path.name == "own.jsonl"):
            with pytest.raises(InputError, match=rf'{path}:1: "score" should be a valid integer'):
                read_rows(path, Judgement)
        else:
            assert read_rows(path, Judgement)[0].score == read


def test_a_text_of_a_fetched_file_stays_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data/sources").mkdir(parents=True)
    path = Path("data/sources/x.jsonl")
    path.write_text(judgement(response="0042") + "\n", encoding="utf-8")
    assert read_rows(path, Judgement)[0].response == "0042"
    path.write_text(judgement(response=42) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match='"response" should be a valid string, got 42'):
        read_rows(path, Judgement)
