"""Check and split the raw data -> data/prepared/, data/m0/; no prompt is in two splits.

Run with `python -m stages.prepare_data`.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import click
from pydantic import Field

from align.checks.prompts import CheckedPrompt
from align.core.errors import InputError, quoted
from align.core.files import write_json
from align.core.params import Params, Settings
from align.core.rows import (
    EvalPrompt,
    Instruction,
    Judgement,
    KnownPrompt,
    Prompt,
    read_numbered_rows,
    read_rows,
    write_rows,
)
from align.core.split import conversation_key, prompt_key, split_by_group
from align.data.cut_off import cut_off_rows
from align.data.instructions import InstructionsFormat, instructions_layout, read_instructions, take
from align.data.judgements import cap_scores, first_questions, judgements_of_tree, keep_consistent
from align.data.message_trees import read_trees
from align.data.off_topic import off_topic_rows
from align.data.preferences import PreferencesFormat, read_preferences

DATA = Path("data")


class PrepareDataSettings(Settings):
    """Section `prepare_data` of params.yaml."""

    instructions: str
    instructions_format: InstructionsFormat
    max_instructions: int | None = Field(ge=1)
    judgements: str
    judgements_format: Literal["scores", "message_trees"]
    max_judgements: int | None = Field(ge=1)
    language: str | None
    max_score_share: float = Field(gt=0, le=1)
    off_topic_negatives: int = Field(ge=0)
    cut_off_negatives: int = Field(ge=0)
    preferences: str
    preferences_format: PreferencesFormat
    max_preferences: int | None = Field(ge=1)
    unusable_preferences: Literal["error", "drop"]
    eval_prompts: str
    checked_prompts: str
    max_checked_prompts: int | None = Field(ge=1)
    judgements_test_fraction: float = Field(gt=0, lt=1)
    preferences_test_fraction: float = Field(gt=0, lt=1)


def read_judgements(settings: PrepareDataSettings) -> tuple[list[Judgement], Counter[str]]:
    """Read scored responses or ranked trees, up to the limit, and count the questions left out by reason."""
    path = Path(settings.judgements)
    if settings.judgements_format == "scores":
        rows, contradictions = keep_consistent(read_rows(path, Judgement, unique=["question_id", "response"]))
        left_out = Counter({"scores against the ranking": contradictions})
    else:
        trees, left_out = read_trees(path)
        results = [judgements_of_tree(tree, language=settings.language) for tree in trees]
        rows = [row for result in results if not isinstance(result, str) for row in result]
        left_out += Counter(result for result in results if isinstance(result, str))
    if settings.max_judgements is not None:
        rows, beyond = first_questions(rows, settings.max_judgements)
        left_out["beyond max_judgements"] = beyond
    return rows, +left_out


def held_out_prompts(
    evaluation: Sequence[EvalPrompt], checked: Sequence[CheckedPrompt], judged: Sequence[Judgement]
) -> dict[str, str]:
    """Return the prompts that no instruction may have, each with the reason."""
    held_out = {prompt_key(row.prompt): "held out for the judge" for row in judged}
    held_out |= {prompt_key(row.prompt): "a checked prompt" for row in checked}
    return held_out | {prompt_key(turn): "an evaluation prompt" for row in evaluation for turn in row.turns}


def check_own_instructions(
    settings: PrepareDataSettings, evaluation: Sequence[EvalPrompt], checked: Sequence[CheckedPrompt]
) -> None:
    """Raise `InputError` if a row in our own format is held out for evaluation: an error to fix, not a row to drop."""
    files = {prompt_key(row.prompt): settings.checked_prompts for row in checked}
    files |= {prompt_key(turn): settings.eval_prompts for row in evaluation for turn in row.turns}
    for number, row in read_numbered_rows(Path(settings.instructions), Instruction):
        asked = [prompt_key(turn.content) for turn in row.messages if turn.role == "user"]
        if file := next((files[key] for key in asked if key in files), None):
            raise InputError(
                f"{settings.instructions}:{number}: {quoted(row.id)} is a prompt of {file}: training on it spoils the "
                "test; delete it from one of them"
            )


@click.command(help=__doc__)
def main() -> None:
    params = Params.read()
    settings = params.section("prepare_data", PrepareDataSettings)
    layout = instructions_layout(Path(settings.instructions), settings.instructions_format)
    rows, unusable = read_instructions(Path(settings.instructions), layout, settings.language)
    judgements, dropped_questions = read_judgements(settings)
    preferences, dropped = read_preferences(
        Path(settings.preferences),
        settings.preferences_format,
        settings.unusable_preferences == "drop",
        settings.max_preferences,
    )
    eval_prompts = read_rows(Path(settings.eval_prompts), EvalPrompt, unique=["id"])
    checked_prompts = read_rows(Path(settings.checked_prompts), CheckedPrompt, unique=["id"])

    eft, eval_judgements = split_by_group(
        judgements, lambda r: r.prompt, settings.judgements_test_fraction, params.seed, settings.judgements
    )
    # Also beyond max_checked_prompts: raising it later must not measure what was trained on.
    held_out = held_out_prompts(eval_prompts, checked_prompts, eval_judgements)
    if layout == "instructions":
        check_own_instructions(settings, eval_prompts, checked_prompts)
    checked_prompts = checked_prompts[: settings.max_checked_prompts]
    instructions, left_out = take(rows, lambda prompt: held_out.get(prompt_key(prompt)), settings.max_instructions)
    instructions_dropped = dict(sorted((unusable + left_out).items()))
    judged = {prompt_key(row.prompt) for row in eft}
    off_topic = off_topic_rows(eft, settings.off_topic_negatives, params.seed)
    cut_off = cut_off_rows(eft, settings.cut_off_negatives, params.seed)
    eft, over_frequent = cap_scores([*eft, *off_topic, *cut_off], settings.max_score_share, params.seed)
    train, test = split_by_group(
        preferences,
        lambda pair: conversation_key(pair.messages),
        settings.preferences_test_fraction,
        params.seed,
        settings.preferences,
    )
    # PPO's prompts: one per conversation, from the training pairs only.
    prompts = {tuple(pair.messages): Prompt(id=pair.id, messages=pair.messages) for pair in reversed(train)}

    prepared = DATA / "prepared"
    write_rows(DATA / "m0" / "ift.jsonl", instructions)
    write_rows(DATA / "m0" / "eft.jsonl", eft)
    # A later turn is no prompt: it asks for what only its conversation says.
    first_turns = [row.prompt for row in instructions if all(turn.role == "system" for turn in row.history)]
    known = [KnownPrompt(prompt=prompt, source="seed") for prompt in first_turns]
    write_rows(DATA / "m0" / "known_prompts.jsonl", known)
    write_rows(prepared / "preferences" / "train.jsonl", train)
    write_rows(prepared / "preferences" / "test.jsonl", test)
    write_rows(prepared / "prompts.jsonl", reversed(prompts.values()))
    write_rows(prepared / "eval" / "prompts.jsonl", eval_prompts)
    write_rows(prepared / "eval" / "checked_prompts.jsonl", checked_prompts)
    write_rows(prepared / "eval" / "judgements.jsonl", eval_judgements)
    counts: dict[str, object] = {
        "ift": len(instructions),
        "eft": len(eft),
        "eft_off_topic_added": len(off_topic),
        "eft_cut_off_added": len(cut_off),
        "eft_scores": {str(score): n for score, n in sorted(Counter(row.score for row in eft).items())},
        "eft_over_frequent_dropped": over_frequent,
        "judgements_dropped": dict(sorted(dropped_questions.items())),
        "preferences_train": len(train),
        "preferences_test": len(test),
        "preferences_dropped": dropped,
        "prompts": len(prompts),
        "eval_prompts": len(eval_prompts),
        "checked_prompts": len(checked_prompts),
        "eval_judgements": len(eval_judgements),
    }
    if layout != "instructions" or instructions_dropped:
        counts["instructions_dropped"] = instructions_dropped
        counts["ift_judged"] = sum(prompt_key(row.prompt) in judged for row in instructions)
    write_json(DATA / "metrics" / "prepare_data.json", counts)
    parts = [f"{n} {name}" for name, n in counts.items() if isinstance(n, int)]
    for what, reasons in (
        ("instructions left out", instructions_dropped),
        ("preferences dropped", dropped),
        ("judged questions dropped", dropped_questions),
    ):
        parts += [f"{n} {what} ({reason})" for reason, n in reasons.items()]
    click.echo("prepare_data: " + ", ".join(parts))


if __name__ == "__main__":
    main()
