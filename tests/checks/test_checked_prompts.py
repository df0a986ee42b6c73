"""The seed file of checked prompts: each can be passed, none by saying next to nothing."""

from collections import Counter
from itertools import chain
from pathlib import Path

import pytest

from align.checks.checking import check_reply
from align.checks.kinds import Check
from align.checks.prompts import CheckedPrompt
from align.core.errors import InputError
from align.core.jsonl import read_objects
from align.core.rows import read_rows
from tests.committed import COMMITTED, REPOSITORY

ROWS = read_rows(COMMITTED / "data/seed/checked_prompts.jsonl", CheckedPrompt, unique=["id"])
# A good reply to each, written by hand.
EXAMPLES = {row["id"]: row["response"] for _, row in read_objects(REPOSITORY / "tests/checks/examples.jsonl")}
NEXT_TO_NOTHING = (
    "x",
    "It.",
    "...",
    "the the the",
    "The answer.",
    "I am a model.",
    "word " * 30,
    "I am not sure. " * 5,
)


def failed(row: CheckedPrompt, response: str) -> list[Check]:
    strict, _ = check_reply(row, response, "stop")
    return [check for check, passed in zip(row.checks, strict, strict=True) if not passed]


def test_a_good_reply_to_each_prompt_passes_all_its_checks() -> None:
    assert EXAMPLES.keys() == {row.id for row in ROWS}
    assert [(row.prompt, wrong) for row in ROWS if (wrong := failed(row, EXAMPLES[row.id]))] == []


@pytest.mark.parametrize("response", NEXT_TO_NOTHING)
def test_no_prompt_is_passed_by_saying_next_to_nothing(response: str) -> None:
    assert [row.prompt for row in ROWS if not failed(row, response)] == []


def test_no_prompt_is_passed_by_repeating_it_strictly_or_loosely() -> None:
    for row in ROWS:
        for repeated in (row.prompt, f'"{row.prompt}"', row.prompt.lower()):
            assert not any(chain.from_iterable(check_reply(row, repeated, "stop")))


def test_no_good_reply_to_one_prompt_passes_many_others() -> None:
    rates = [sum(not failed(row, reply) for row in ROWS) / len(ROWS) for reply in EXAMPLES.values()]
    assert max(rates) < 0.2


def test_there_are_200_prompts_and_more_than_half_have_several_checks() -> None:
    assert len(ROWS) == 200
    assert {len(row.checks) for row in ROWS} == {1, 2, 3}
    assert sum(len(row.checks) > 1 for row in ROWS) > 100


def test_the_first_prompts_are_a_fair_sample_of_all() -> None:
    def shares(rows: list[CheckedPrompt]) -> dict[str, float]:
        kinds = Counter(check.kind for row in rows for check in row.checks)
        return {kind: kinds[kind] / len(rows) for kind in {check.kind for row in ROWS for check in row.checks}}

    everywhere, first = shares(ROWS), shares(ROWS[:50])
    assert max(abs(everywhere[kind] - first[kind]) for kind in everywhere) < 0.1


def test_a_contradiction_names_the_line_and_what_to_remove(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(
        '{"id": "a", "prompt": "p", "checks": [{"kind": "contains", "words": ["Cat"]},'
        ' {"kind": "without", "words": ["dog", "cat"]}]}'
    )
    with pytest.raises(InputError, match=r"mine.jsonl:1: checks contains and without both have 'cat'; remove it"):
        read_rows(path, CheckedPrompt)
