import re
from collections import Counter
from collections.abc import Callable
from itertools import combinations

import pytest

from align.checks.prompts import CheckedPrompt
from align.checks.rewards import checks_passed, right_answer
from align.core.rows import EvalPrompt, Instruction, Judgement, PreferencePair, read_rows
from align.data.preferences import read_preferences
from align.loop.novelty import rouge_l
from align.report.statistics import words
from align.text.labelled import LabelledText
from benchmarks.tasks import arithmetic
from tests.committed import COMMITTED

SEED = COMMITTED / "data/seed"
MAX_ROUGE_L = 0.7


def instructions() -> list[Instruction]:
    return read_rows(SEED / "instructions.jsonl", Instruction, unique=["id"])


def judgements() -> list[Judgement]:
    return read_rows(SEED / "judgements.jsonl", Judgement, unique=["question_id", "response"])


def preferences() -> list[PreferencePair]:
    pairs, dropped = read_preferences(SEED / "preferences.jsonl")
    assert not dropped
    return pairs


def eval_prompts() -> list[EvalPrompt]:
    return read_rows(SEED / "eval_prompts.jsonl", EvalPrompt, unique=["id"])


def instruction_prompts() -> list[str]:
    return [row.prompt for row in instructions()]


def judgement_prompts() -> list[str]:
    return list({row.question_id: row.prompt for row in judgements()}.values())


def preference_prompts() -> list[str]:
    return [turn.content for row in preferences() for turn in row.messages if turn.role == "user"]


def eval_first_turns() -> list[str]:
    return [row.turns[0] for row in eval_prompts()]


def checked_prompts() -> list[str]:
    return [row.prompt for row in read_rows(SEED / "checked_prompts.jsonl", CheckedPrompt, unique=["id"])]


def tweets() -> list[str]:
    return [row.text for split in ("train", "test") for row in read_rows(SEED / f"tweets_{split}.jsonl", LabelledText)]


def test_there_are_at_least_200_instructions_in_8_categories() -> None:
    rows = instructions()
    assert len(rows) >= 200
    assert len({row.category for row in rows}) == 8


def test_every_question_has_one_prompt_and_five_different_judged_responses() -> None:
    rows = judgements()
    responses = Counter(row.question_id for row in rows)
    assert len(responses) >= 24
    assert set(responses.values()) == {5}
    assert len({(row.question_id, row.prompt, row.category) for row in rows}) == len(responses)
    assert len({row.prompt for row in rows}) == len(responses)


def test_every_score_is_given_at_least_ten_times() -> None:
    scores = Counter(row.score for row in judgements())
    assert set(scores) == set(range(6))
    assert min(scores.values()) >= 10


def test_no_justification_has_more_than_30_words() -> None:
    assert [row for row in judgements() if not row.justification or len(row.justification.split()) > 30] == []


def test_there_are_at_least_200_preference_pairs_and_a_quarter_has_several_turns() -> None:
    rows = preferences()
    assert len(rows) >= 200
    assert sum(len(row.messages) > 1 for row in rows) >= len(rows) / 4


def test_a_preference_is_not_a_preference_for_length() -> None:
    rows = preferences()
    chosen, rejected = (sum(len(getattr(row, side)) for row in rows) for side in ("chosen", "rejected"))
    assert chosen / rejected == pytest.approx(1, abs=0.15)


def test_there_are_48_eval_prompts_of_two_turns_six_in_each_of_8_categories() -> None:
    rows = eval_prompts()
    assert len(rows) == 48
    assert {len(row.turns) for row in rows} == {2}
    assert sorted(Counter(row.category for row in rows).values()) == [6] * 8


@pytest.mark.parametrize(
    "prompts", [instruction_prompts, judgement_prompts, preference_prompts, eval_first_turns, checked_prompts, tweets]
)
def test_no_two_prompts_of_a_file_are_alike(prompts: Callable[[], list[str]]) -> None:
    tokens = [words(prompt) for prompt in prompts()]
    assert [(" ".join(a), " ".join(b)) for a, b in combinations(tokens, 2) if rouge_l(a, b) >= MAX_ROUGE_L] == []


@pytest.mark.parametrize("prompts", [instruction_prompts, judgement_prompts, preference_prompts])
def test_no_eval_prompt_is_like_one_of_the_training_data(prompts: Callable[[], list[str]]) -> None:
    known = [words(prompt) for prompt in prompts()]
    alike = [
        (turn, " ".join(other))
        for turn in [*eval_first_turns(), *checked_prompts()]
        for other in known
        if rouge_l(words(turn), other) >= MAX_ROUGE_L
    ]
    assert alike == []


def test_no_checked_prompt_is_like_an_eval_prompt() -> None:
    held_out = [words(turn) for row in eval_prompts() for turn in row.turns]
    assert [text for text in checked_prompts() if max(rouge_l(words(text), other) for other in held_out) >= 0.7] == []


def test_the_sums_are_what_the_script_writes_and_train_and_test_share_no_operands() -> None:
    for name, text in arithmetic.texts().items():
        assert (SEED / name).read_text(encoding="utf-8") == text
    train, test = arithmetic.rows()
    operands = [{frozenset(re.findall(r"\d+", row["prompt"])) for row in rows} for rows in (train, test)]
    assert len(operands[0]) > 100
    assert operands[0].isdisjoint(operands[1])
    assert len({row["prompt"] for row in [*train, *test]}) == len(train) + len(test)
    for row in train:
        a, sign, b = re.findall(r"\d+|[+-]", row["prompt"])[:3]
        assert int(row["answer"]) == (int(a) + int(b) if sign == "+" else int(a) - int(b)) >= 0
        assert right_answer(row["prompt"], f"It is {row['answer']}.", row, "stop") == 1
        assert right_answer(row["prompt"], row["answer"] + "1", row, "stop") == 0
    for row in test:
        [check] = row["checks"]
        for reply, passed in (("{}", 1), ("7 + 8 = {}.", 1), ("{}1", 0), ("1{}", 0)):
            assert checks_passed(row["prompt"], reply.format(check["text"]), row, "stop") == passed
