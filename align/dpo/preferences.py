"""What DPO and KTO learn from: pairs of replies, or single replies that are desirable or not."""

from collections.abc import Sequence
from pathlib import Path

from align.core.errors import InputError
from align.core.jsonl import read_objects
from align.core.rows import EvalPrompt, PreferencePair, TaskPrompt, UnpairedPreference, read_rows
from align.core.split import prompt_key

EVALUATION = (Path("data/prepared/eval/prompts.jsonl"), Path("data/prepared/eval/checked_prompts.jsonl"))

Preferences = Sequence[PreferencePair | UnpairedPreference]


def read_preferences(path: Path, section: str, kto: bool) -> Preferences:
    """Return the rows of a file, pairs or single replies by the keys of the first.

    Args:
        path: the file.
        section: of params.yaml, for messages.
        kto: whether the loss is KTO's, the only one that learns from single replies.
    """
    _, first = next(read_objects(path), (1, {}))
    if not {"completion", "label"} & first.keys():
        return read_rows(path, PreferencePair)
    if not kto:
        raise InputError(
            f"{path}: has single replies with a label, and only KTO learns from these; set {section}.loss_type to "
            "[kto], or name a file of pairs"
        )
    return read_rows(path, UnpairedPreference)


def drop_evaluated(path: Path, rows: Preferences) -> tuple[Preferences, int]:
    """Return the rows of `path` without those that have a prompt of the evaluation, and the number of these.

    A prompt is any turn of the user: of the held-out conversations and the checked prompts, as of the rows.

    Raises:
        InputError: no row is left.
    """
    conversations, checked = EVALUATION
    prompts = [turn for row in read_rows(conversations, EvalPrompt) for turn in row.turns]
    prompts += [row.conversation[-1].content for row in read_rows(checked, TaskPrompt)]
    held_out = set(map(prompt_key, prompts))
    kept = [row for row in rows if not _users_prompts(row) & held_out]
    if not kept:
        raise InputError(f"{path}: each of its rows has a prompt of the evaluation; add rows of other prompts")
    return kept, len(rows) - len(kept)


def _users_prompts(row: PreferencePair | UnpairedPreference) -> set[str]:
    messages = row.messages if isinstance(row, PreferencePair) else row.prompt
    return {prompt_key(turn.content) for turn in messages if turn.role == "user"}
