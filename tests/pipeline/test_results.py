"""What benchmarks.results writes into the README."""

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from align.core.errors import InputError
from align.core.files import write_csv, write_json
from align.core.rows import Answer, write_rows
from benchmarks.results import MAX_WORDS, main, markers, over_seeds, quote, replace_block, sample, table
from tests.answers import answer as answer_to
from tests.committed import write_params


def answer(number: int, response: str, finish_reason: str = "stop", turn: int = 1) -> Answer:
    return answer_to(f"e{number}", response=response, finish_reason=finish_reason, turn=turn)


def model_row(name: str, **changes: float | str | None) -> dict[str, Any]:
    row: dict[str, Any] = {"model": name, "checks_passed": 0.25, "ended_share": 0.5}
    for measure in ("judge", "reward", "checks"):
        key = f"{measure}_difference_vs_m0"
        row |= {key: 0.224, f"{key}_low": 0.066, f"{key}_high": 0.381, f"{key}_verdict": "better"}
    return row | changes


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


def test_the_table_has_each_difference_with_its_interval_and_verdict(tmp_path: Path) -> None:
    none = dict.fromkeys([f"reward_difference_vs_m0{end}" for end in ("", "_low", "_high")])
    rows = [
        model_row("base", judge_difference_vs_m0=-0.1, judge_difference_vs_m0_verdict="cannot tell"),
        model_row("m0"),
        model_row("m1", **none, reward_difference_vs_m0_verdict="cannot tell"),
        model_row("ppo", checks_passed=None, checks_difference_vs_m0=None),
    ]
    write_csv(tmp_path / "data/summary/models.csv", rows)

    assert table(tmp_path).splitlines()[2:] == [
        "| base | -0.10 [+0.07, +0.38] ? | +0.22 [+0.07, +0.38] better | 0.25 better | 0.50 |",
        "| m0 | - | - | 0.25 | 0.50 |",
        "| m1 | +0.22 [+0.07, +0.38] better | - [-, -] ? | 0.25 better | 0.50 |",
        "| ppo | +0.22 [+0.07, +0.38] better | +0.22 [+0.07, +0.38] better | - | 0.50 |",
    ]


def test_a_summary_of_an_earlier_version_is_an_error_that_says_what_to_run(tmp_path: Path) -> None:
    write_csv(tmp_path / "data/summary/models.csv", [{"model": "m0", "win_rate_vs_m0": 0.5}])
    with pytest.raises(InputError, match=r"column .*checks_passed.* is missing; run `dvc repro summary`"):
        table(tmp_path)


def test_the_sample_is_the_first_prompt_whose_answers_end_and_differ() -> None:
    assert sample(FIRST, LAST, ("m0", "m2")) == "\n\n".join(
        ["Prompt:", "> Question e5?", "m0:", "> \\*One\\*\n>\n> 1\\. two", "m2:", "> Another"]
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
    write_csv(tmp_path / "data/summary/models.csv", [model_row("m0"), model_row("m1")])
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
    assert ("> Question e5" in text) == with_sample


def test_the_sentence_over_seeds_has_every_difference_with_its_interval(tmp_path: Path) -> None:
    keys = (
        "loop_gain",
        "reward_change_loop",
        "checks_change_loop",
        "judge_change_rlhf",
        "rlhf_gain",
        "checks_change_rlhf",
    )
    values = {
        f"{key}{end}": number + extra
        for number, key in enumerate(keys)
        for end, extra in (("", 0.25), ("_low", -0.5), ("_high", 0.5))
    }
    write_json(tmp_path / "benchmarks/learning.json", {"seeds": 3, "commit": "abc1234", **values})
    assert over_seeds(tmp_path) == (
        "Over 3 seeds at abc1234 (judge, reward, checks): the loop +0.25 [-0.50, +0.50], +1.25 [+0.50, +1.50], "
        "+2.25 [+1.50, +2.50]; ppo +3.25 [+2.50, +3.50], +4.25 [+3.50, +4.50], +5.25 [+4.50, +5.50]."
    )
