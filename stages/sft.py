"""Fine-tune models/base to judge (EFT), then to follow instructions (IFT) -> models/m0.

A killed run resumes from its last checkpoint. Run with `python -m stages.sft`.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import click
from pydantic import Field
from transformers import TrainingArguments

from align.core.files import replacing
from align.core.rows import Instruction, Judgement, Message, read_rows
from align.core.split import conversation_key, prompt_key
from align.judge.request import judge_reply, judge_request
from align.judge.trainer import JudgeTrainer, judged_questions
from align.models.adapters import LoraSettings
from align.models.attention import check_attention
from align.models.base import copy_tokenizer, load_tokenizer
from align.models.card import write_model_card
from align.models.full import save_trained, start_model
from align.models.tokenization import drop_too_long
from align.run.stage import BASE, Stage
from align.training.settings import TrainingSettings
from align.training.sft import SFTSettings, encode_instruction, instruction_tune
from align.training.trainer import train, training_arguments
from align.training.validation import GROUP, described, hold_out

IFT, EFT = Path("data/m0/ift.jsonl"), Path("data/m0/eft.jsonl")


class EFTSettings(TrainingSettings):
    """Section `eft` of params.yaml."""

    ranking_coef: float = Field(ge=0)
    loraplus_lr_ratio: float = Field(ge=1)


def judge_replies(judgements: Sequence[Judgement], instructions: int, share: float, seed: int) -> list[Judgement]:
    """Return random judgements, at most `share` of the rows when joined with `instructions` others."""
    wanted = round(share / (1 - share) * instructions)
    return random.Random(seed).sample(list(judgements), min(wanted, len(judgements)))


@click.command(help=__doc__)
def main() -> None:
    stage = Stage("sft")
    lora = stage.optional_section("lora", LoraSettings)
    eft_settings = stage.section("eft", EFTSettings)
    settings = stage.section("sft", SFTSettings)
    check_attention("sft", settings.attn_implementation, stage.runtime)
    stage.start()
    tokenizer = load_tokenizer(BASE)

    judgements = read_rows(EFT, Judgement)
    questions = judged_questions(tokenizer, judgements)
    questions, dropped_questions = drop_too_long(
        questions, [question["length"] for question in questions], eft_settings.max_length, "eft.max_length"
    )
    questions, held_out_questions = hold_out(questions, eft_settings, stage.seed, "eft")
    rows = [
        encode_instruction(tokenizer, row.messages, row.completion) | {GROUP: conversation_key(row.messages)}
        for row in read_rows(IFT, Instruction)
    ]
    for judged in judge_replies(judgements, len(rows), settings.eft_share, stage.seed):
        request = [Message(role="user", content=judge_request(judged.prompt, judged.response))]
        row = encode_instruction(tokenizer, request, judge_reply(judged.score, judged.justification))
        rows.append(row | {GROUP: prompt_key(judged.prompt)})
    rows, dropped = drop_too_long(rows, [row["length"] for row in rows], settings.max_length, "sft.max_length")
    rows, held_out = hold_out(rows, settings, stage.seed, "sft")

    with stage.work([BASE, IFT, EFT]) as work:
        model = start_model(BASE, BASE, stage.runtime, lora)
        full = lora is None
        arguments = training_arguments(
            eft_settings, work.folder / "eft", stage.seed, stage.runtime, order="random", full=full
        )
        judge_trainer = JudgeTrainer(
            model,
            TrainingArguments(**arguments),
            questions,
            eft_settings.ranking_coef,
            eft_settings.loraplus_lr_ratio,
            held_out_questions,
        )
        judging = train(judge_trainer, Path("data/m0/eft_history.csv"), work, eft_settings)
        arguments = training_arguments(
            settings, work.folder / "ift", stage.seed, stage.runtime, settings.order, full=full
        )
        history = Path("data/m0/sft_history.csv")
        following = instruction_tune(model, tokenizer, rows, held_out, settings, arguments, history, work)
        with replacing(Path("models/m0")) as temporary:
            save_trained(model, temporary, stage.runtime)
            copy_tokenizer(BASE, temporary)
            parts = {"eft": judging, "sft": following}
            validation = {name: part for name, part in parts.items() if part}
            write_model_card(temporary, stage, {"base": BASE}, {"ift": IFT, "eft": EFT}, validation)
    click.echo(
        f"sft: {len(questions)} judged questions, {dropped_questions} dropped as longer than "
        f"{eft_settings.max_length} tokens; {len(rows)} rows, {dropped} dropped as longer than {settings.max_length}"
        f"{described(judging, 'questions: ')}{described(following, 'rows: ')}"
    )


if __name__ == "__main__":
    main()
