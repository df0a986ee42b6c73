"""What benchmarks.results writes into the README."""

import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from align.core.errors import InputError
from align.core.rows import Answer, write_rows
from benchmarks.results import MAX_WORDS, main, markers, quote, replace_block, sample
from tests.committed import COMMITTED, write_params


def answer(number: int, response: str, finish_reason: str = "stop", turn: int = 1) -> Answer:
    return Answer.model_validate(
        {"id": f"e{number}", "category": "c", "turn": turn, "prompt": f"Question {number}?", "response": response}
        | {"finish_reason": finish_reason, "num_tokens": 3, "judge_score": 2.5, "judge_failure": None}
        | {"reward": 0.0, "kl_to_base": 0.0, "kl_to_m0": 0.0}
    )


FIRST = [
    answer(1, "cut", "length"),
    answer(2, "equal"),
    answer(3, "ends"),
    answer(4, "a later turn", turn=2),
    answer(5, "*One*\n\n1. two"),
    answer(6, "also fine"),
]
LAST = [
    answer(6, "and differs"),
    answer(5, "Another"),
    answer(4, "differs", turn=2),
    answer(3, "cut", "length"),
    answer(2, "equal\n"),
    answer(1, "ends"),
]


def test_the_sample_is_the_first_prompt_whose_answers_end_and_differ() -> None:
    assert sample(FIRST, LAST, ("m0", "m2")) == "\n\n".join(
        ["Prompt:", "> Question 5?", "m0:", "> \\*One\\*\n>\n> 1\\. two", "m2:", "> Another"]
    )


def test_without_such_a_prompt_the_sample_says_so() -> None:
    assert sample(FIRST[:2], LAST, ("m0", "m2")).startswith("For no held-out prompt")


def test_a_long_answer_is_cut() -> None:
    text = " ".join(["word"] * (MAX_WORDS + 1))

    assert quote(text) == f"> {text.removesuffix(' word')} …"


@pytest.mark.parametrize("text", ["<!-- /sample -->", "# title", "![a](b)", "```\ncode", "a | b", "- item", "a\x1b[2J"])
def test_no_answer_is_markup(text: str) -> None:
    for line in quote(text).splitlines():
        assert line.startswith(">")
        bare = line.removeprefix(">")
        assert not re.search(r"(?<!\\)[<>`|\[]", bare)
        assert not re.match(r" *[#-]", bare)
        assert "\x1b" not in bare


@pytest.mark.parametrize("name", ["results", "sample"])
@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_marker_is_named(name: str, missing: int) -> None:
    kept, lost = markers(name)[1 - missing], markers(name)[missing]

    with pytest.raises(InputError, match="has no line") as raised:
        replace_block(f"text\n{kept}\n", name, "new")

    assert lost in str(raised.value)


def test_a_block_is_replaced_and_the_rest_stays() -> None:
    begin, end = markers("sample")

    assert replace_block(f"a\n{begin}\nold\n{end}\nb\n", "sample", "new") == f"a\n{begin}\nnew\n{end}\nb\n"


@pytest.mark.parametrize("with_sample", [True, False])
def test_the_command_writes_both_blocks(with_sample: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params(tmp_path)
    shutil.copytree(COMMITTED / "data/summary", tmp_path / "data/summary")
    write_rows(tmp_path / "data/eval/m0.jsonl", FIRST)
    write_rows(tmp_path / "data/eval/m2.jsonl", LAST)
    blocks = ["results", "sample"] if with_sample else ["results"]
    (tmp_path / "README.md").write_text("".join("{}\n{}\n".format(*markers(name)) for name in blocks))
    monkeypatch.chdir(tmp_path)

    result = CliRunner().invoke(main)

    assert result.exit_code == 0
    assert ("no sample written" in result.output) == (not with_sample)
    text = (tmp_path / "README.md").read_text()
    assert "| m0 |" in text
    assert ("> Question 5" in text) == with_sample
