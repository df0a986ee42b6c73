"""The split of the raw data: by whole prompts, and for good."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.lib.errors import InputError
from stages.prepare_data import read_preferences, split_by_group

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
