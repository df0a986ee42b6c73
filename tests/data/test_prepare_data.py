"""The split of the raw data: by whole prompts, and for good."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from align.checks.prompts import CheckedPrompt
from align.core.errors import InputError
from align.core.rows import EvalPrompt, Instruction, Judgement, KnownPrompt, read_rows
from align.core.split import split_by_group
from align.data.preferences import read_preferences
from stages.prepare_data import main
from tests.committed import COMMITTED, write_params

prompts = st.lists(st.text(max_size=3), min_size=2, max_size=40).filter(lambda rows: len(set(rows)) > 1)


def keep(row: str) -> str:
    return row


@given(prompts, st.floats(0.01, 0.99), st.integers(0, 9))
def test_each_row_is_on_one_side_no_prompt_is_on_both_and_neither_side_is_empty(
    rows: list[str], fraction: float, seed: int
) -> None:
    train, test = split_by_group(rows, keep, fraction, seed)
    assert sorted(train + test) == sorted(rows)
    assert not set(train) & set(test)
    assert train
    assert test


@given(st.integers(0, 9), st.integers(100, 150))
def test_rows_added_later_move_no_other_row_across_the_split(seed: int, more: int) -> None:
    before = split_by_group([f"prompt {i}" for i in range(100)], keep, 0.3, seed)
    after = split_by_group([f"prompt {i}" for i in range(more)], keep, 0.3, seed)
    for old, new in zip(before, after, strict=True):
        assert set(old) <= set(new)


def test_about_the_given_fraction_of_the_prompts_is_held_out() -> None:
    _, test = split_by_group([f"prompt {i}" for i in range(2000)], keep, 0.3, 17)
    assert len(test) == pytest.approx(600, abs=60)


def test_another_seed_is_another_split() -> None:
    rows = [f"prompt {i}" for i in range(50)]
    assert split_by_group(rows, keep, 0.5, 1) != split_by_group(rows, keep, 0.5, 2)


def test_one_prompt_alone_cannot_be_split() -> None:
    with pytest.raises(InputError, match="at least two different prompts, found 1"):
        split_by_group(["a", "a"], keep, 0.5, 0)


TURN = "\n\nHuman: Hi\n\nAssistant:"
UNUSABLE = {
    "empty last turn": (f"{TURN} a", TURN),
    "empty turn before the last": (f"{TURN}\n\nHuman: b\n\nAssistant: c", f"{TURN} a"),
    "turns do not alternate": (f"{TURN} a\n\nAssistant: b", f"{TURN} a"),
    "no human turn first": ("\n\nAssistant: a", f"{TURN} a"),
    "no reply last": ("\n\nHuman: Hi", f"{TURN} a"),
    "differ before the last reply": (f"{TURN} a", "\n\nHuman: Hello\n\nAssistant: b"),
    "equal replies": (f"{TURN} a", f"{TURN} a "),
}


def write_transcripts(path: Path, rows: list[tuple[str, str]]) -> Path:
    lines = [json.dumps({"chosen": chosen, "rejected": rejected}) + "\n" for chosen, rejected in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_pairs_that_compare_no_two_replies_are_dropped_and_counted_by_reason(tmp_path: Path) -> None:
    rows = [(f"{TURN} good", f"{TURN} bad"), *UNUSABLE.values(), *UNUSABLE.values(), (f"{TURN} 1", f"{TURN} 2")]
    pairs, dropped = read_preferences(write_transcripts(tmp_path / "pairs.jsonl", rows), drop=True)
    assert [(pair.id, pair.chosen, pair.rejected) for pair in pairs] == [
        ("pref-0001", "good", "bad"),
        ("pref-0016", "1", "2"),
    ]
    assert dropped == dict.fromkeys(sorted(UNUSABLE), 2)


@pytest.mark.parametrize("reason", UNUSABLE)
def test_such_a_pair_is_an_error_with_its_line_unless_dropping_is_asked_for(tmp_path: Path, reason: str) -> None:
    path = write_transcripts(tmp_path / "pairs.jsonl", [(f"{TURN} good", f"{TURN} bad"), UNUSABLE[reason]])
    with pytest.raises(InputError, match=r"pairs.jsonl:2: .*prepare_data\.unusable_preferences"):
        read_preferences(path)


def tree(number: int, *replies: str, lang: str = "en") -> dict[str, Any]:
    ranked = [{"text": text, "role": "assistant", "rank": rank} for rank, text in enumerate(replies)]
    prompt = {"text": f"Question {number}?", "role": "prompter", "lang": lang, "replies": ranked}
    return {"message_tree_id": f"t{number}", "tree_state": "ready_for_export", "prompt": prompt}


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Return a function that runs the stage on judge data of its own and returns what it counted."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/seed").symlink_to(COMMITTED / "data/seed", target_is_directory=True)

    def stage(rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
        Path("judged.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
        write_params(Path(), {"prepare_data": {"judgements": "judged.jsonl", "max_score_share": 1.0, **changes}})
        result = CliRunner().invoke(main, [], catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
        counts: dict[str, Any] = json.loads(Path("data/metrics/prepare_data.json").read_text(encoding="utf-8"))
        return counts

    return stage


def test_ranked_replies_become_judge_rows_whose_scores_fall_with_the_rank(prepare: Callable[..., Any]) -> None:
    trees = [tree(i, f"best of {i}", f"fair of {i}", f"poor of {i}") for i in range(20)]
    trees += [tree(20, "alone"), tree(21, "gut", "schlecht", lang="de")]
    counts = prepare(trees, judgements_format="message_trees", off_topic_negatives=0)
    assert counts["eft"] + counts["eval_judgements"] == 60
    assert counts["judgements_dropped"] == {"another language": 1, "fewer than two ranked replies": 1}
    for name in ("data/m0/eft.jsonl", "data/prepared/eval/judgements.jsonl"):
        rows = read_rows(Path(name), Judgement)
        assert {(row.rank, row.score) for row in rows} == {(0, 5), (1, 3), (2, 0)}


def test_each_question_gets_a_good_response_to_another_and_none_from_the_held_out_side(
    prepare: Callable[..., Any],
) -> None:
    counts = prepare(
        [tree(i, f"best of {i}", f"poor of {i}") for i in range(20)],
        judgements_format="message_trees",
        off_topic_negatives=1,
    )
    rows = read_rows(Path("data/m0/eft.jsonl"), Judgement)
    foreign = [row for row in rows if row.justification == "Answers another question."]
    assert len(foreign) == counts["eft_off_topic_added"] == len({row.question_id for row in rows})
    held_out = {row.response for row in read_rows(Path("data/prepared/eval/judgements.jsonl"), Judgement)}
    assert not held_out & {row.response for row in rows}
    assert all(row.response.startswith("best of") and row.score == 0 for row in foreign)


def flat(tree_row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a tree as the hub's tables have it: one message a row, replies before their prompt to show any order."""
    name, prompt = tree_row["message_tree_id"], tree_row["prompt"]
    same = {"message_tree_id": name, "tree_state": tree_row["tree_state"], "lang": prompt["lang"], "deleted": False}
    replies = [
        {**same, "message_id": f"{name}-{n}", "parent_id": name, "role": "assistant", **reply, "emojis": {}}
        for n, reply in enumerate(prompt["replies"])
    ]
    root = {**same, "message_id": name, "parent_id": None, "role": "prompter", "text": prompt["text"], "rank": None}
    return [*replies, root]


TREES = [tree(i, *(f"reply {rank} to {i}" for rank in range(2 + i % 3))) for i in range(20)]


def as_ift(rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    Path("told.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return {"instructions": "told.jsonl", "instructions_format": "message_trees", **changes}


def test_flat_messages_give_what_their_trees_give(prepare: Callable[..., Any]) -> None:
    outs = ("data/m0/ift.jsonl", "data/m0/eft.jsonl", "data/prepared/eval/judgements.jsonl")
    of_trees = prepare(TREES, judgements_format="message_trees", **as_ift(TREES))
    expected = [Path(name).read_bytes() for name in outs]
    rows = [row for one in TREES for row in flat(one)]
    of_messages = prepare(rows, judgements_format="message_trees", **as_ift(rows))
    assert [Path(name).read_bytes() for name in outs] == expected
    assert of_messages == of_trees
    lost = prepare([*rows, {**rows[0], "message_id": "x", "parent_id": "gone"}], judgements_format="message_trees")
    assert lost["judgements_dropped"] == {"messages without their parent": 1}


def test_the_best_reply_to_each_prompt_is_learned_and_no_prompt_that_the_judge_is_tested_on(
    prepare: Callable[..., Any],
) -> None:
    asked = read_rows(COMMITTED / "data/seed/eval_prompts.jsonl", EvalPrompt)[0].turns[0]
    checked = read_rows(COMMITTED / "data/seed/checked_prompts.jsonl", CheckedPrompt)
    trees = [*TREES, tree(20, "a", "b", lang="de"), tree(21)]
    trees[1] = {**trees[1], "prompt": {**trees[1]["prompt"], "text": asked}}
    # The last checked prompt is held out even where only the first is asked.
    held_out_tree = tree(22, "a", "b")
    trees.append({**held_out_tree, "prompt": {**held_out_tree["prompt"], "text": checked[-1].prompt.upper()}})
    counts = prepare(TREES, judgements_format="message_trees", max_checked_prompts=1, **as_ift(trees))
    assert read_rows(Path("data/prepared/eval/checked_prompts.jsonl"), CheckedPrompt) == checked[:1]
    assert counts["checked_prompts"] == 1
    rows = read_rows(Path("data/m0/ift.jsonl"), Instruction)
    held_out = {row.prompt for row in read_rows(Path("data/prepared/eval/judgements.jsonl"), Judgement)}
    assert held_out
    assert not held_out & {row.prompt for row in rows}
    assert all(row.completion == f"reply 0 to {row.id[1:]}" for row in rows)
    assert counts["instructions_dropped"] == {
        "a checked prompt": 1,
        "an evaluation prompt": 1,
        "another language": 1,
        "held out for the judge": len(held_out - {"Question 1?"}),
        "no reply of rank 0": 1,
    }
    assert counts["ift"] + sum(counts["instructions_dropped"].values()) == len(trees)


def test_the_best_instructions_are_the_first_of_most_ranked_replies(prepare: Callable[..., Any]) -> None:
    prepare(TREES, judgements_format="message_trees", max_judgements=10, **as_ift(TREES, max_instructions=5))
    rows = read_rows(Path("data/m0/ift.jsonl"), Instruction)
    held_out = {row.prompt for row in read_rows(Path("data/prepared/eval/judgements.jsonl"), Judgement)}
    largest = [t["message_tree_id"] for t in TREES if len(t["prompt"]["replies"]) == 4]
    free = [name for name in largest if f"Question {name[1:]}?" not in held_out]
    assert [row.id for row in rows] == free[:5]


def test_judgements_are_limited_by_whole_questions(prepare: Callable[..., Any]) -> None:
    limit = {"judgements_format": "message_trees", "max_judgements": 10, "off_topic_negatives": 0}
    counts = prepare(TREES, **limit)  # of 2, 3, 4, 2, ... replies: the fourth question would make 11
    assert counts["eft"] + counts["eval_judgements"] == 9
    assert counts["judgements_dropped"] == {"beyond max_judgements": 17}


@pytest.mark.parametrize(
    ("file_format", "row"),
    [
        ("prompt_completion", {"prompt": "Why? ", "completion": " So.", "label": 1}),
        (
            "messages",
            {
                "messages": [
                    {"role": r, "content": c} for r, c in (("user", "Why?"), ("assistant", "So."), ("user", "!"))
                ]
            },
        ),
    ],
)
def test_rows_by_trls_names_are_instructions_with_their_lines_number(
    prepare: Callable[..., Any], file_format: str, row: dict[str, Any]
) -> None:
    system = {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]}
    more = [system] if file_format == "messages" else []
    counts = prepare(
        TREES, judgements_format="message_trees", **as_ift([row, *more, row], instructions_format=file_format)
    )
    rows = read_rows(Path("data/m0/ift.jsonl"), Instruction)
    assert [(r.prompt, r.completion, r.source) for r in rows] == [("Why?", "So.", "seed")] * 2
    assert rows[0].id == "row-000001"
    assert counts["instructions_dropped"] == ({"no reply": 1} if more else {})


def test_only_the_first_preferences_are_read(prepare: Callable[..., Any]) -> None:
    counts = prepare(TREES, judgements_format="message_trees", max_preferences=50)
    assert counts["preferences_train"] + counts["preferences_test"] == 50


def test_a_question_whose_scores_contradict_its_ranking_is_dropped_and_counted(prepare: Callable[..., Any]) -> None:
    rows = [
        {"question_id": f"q{i}", "category": "c", "prompt": f"Q {i}?", "response": f"{i} {rank}"}
        | {"score": score, "rank": rank}
        for i in range(10)
        for rank, score in enumerate([5, 2] if i else [2, 5])
    ]
    counts = prepare(rows, off_topic_negatives=0)
    assert counts["judgements_dropped"] == {"scores against the ranking": 1}
    assert counts["eft"] + counts["eval_judgements"] == 18


def test_scores_that_are_too_frequent_are_down_sampled_and_counted(prepare: Callable[..., Any]) -> None:
    rows = [
        {"question_id": f"q{i}", "category": "c", "prompt": f"Q {i}?", "response": f"{i} {k}", "score": score}
        for i in range(20)
        for k, score in enumerate([4, 4, 4, 1])
    ]
    counts = prepare(rows, max_score_share=0.5, off_topic_negatives=0)
    assert counts["eft_scores"]["4"] == counts["eft_scores"]["1"]
    assert counts["eft_over_frequent_dropped"] > 0


def test_the_prompts_that_the_loop_knows_at_first_are_the_seeds(prepare: Callable[..., Any]) -> None:
    prepare([tree(i, f"best of {i}", f"poor of {i}") for i in range(5)], judgements_format="message_trees")
    known = read_rows(Path("data/m0/known_prompts.jsonl"), KnownPrompt)
    assert [row.prompt for row in known] == [row.prompt for row in read_rows(Path("data/m0/ift.jsonl"), Instruction)]
    assert {row.source for row in known} == {"seed"}
