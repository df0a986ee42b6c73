"""Supervised fine-tuning: models/base learns to judge (EFT), then to follow instructions (IFT) -> models/m0.

A run that was killed goes on from its last checkpoint. Run with `python -m stages.sft`.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import click
from pydantic import Field
from transformers import TrainingArguments

from align.core.files import replacing
from align.core.params import Params
from align.core.rows import Instruction, Judgement, read_rows
from align.judge.request import judge_reply, judge_request
from align.judge.trainer import JudgeTrainer, judged_questions
from align.models.base import (
    LoraSettings,
    copy_tokenizer,
    load_base,
    load_tokenizer,
    new_adapter,
    save_adapter,
    write_model_card,
)
from align.models.tokenization import drop_too_long
from align.run.locks import hold_devices
from align.run.runtime import RuntimeSettings, start
from align.run.work import Work
from align.training.sft import SFTSettings, encode_instruction, instruction_tune
from align.training.trainer import TrainingSettings, train


class EFTSettings(TrainingSettings):
    """Section `eft` of params.yaml."""

    ranking_coef: float = Field(ge=0)
    loraplus_lr_ratio: float = Field(ge=1)


def judge_replies(judgements: Sequence[Judgement], instructions: int, share: float, seed: int) -> list[Judgement]:
    """Return judgements, drawn at random, that make up `share` of the rows beside `instructions` others (or all)."""
    wanted = round(share / (1 - share) * instructions)
    return random.Random(seed).sample(list(judgements), min(wanted, len(judgements)))


@click.command(help=__doc__)
@click.option("--base", type=click.Path(path_type=Path), default="models/base", show_default=True)
@click.option("--ift", type=click.Path(path_type=Path), default="data/m0/ift.jsonl", show_default=True)
@click.option("--eft", type=click.Path(path_type=Path), default="data/m0/eft.jsonl", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default="models/m0", show_default=True)
@click.option("--history-dir", type=click.Path(path_type=Path), default="data/m0", show_default=True)
def main(base: Path, ift: Path, eft: Path, out: Path, history_dir: Path) -> None:
    params = Params.read()
    runtime = params.section("runtime", RuntimeSettings)
    lora = params.section("lora", LoraSettings)
    eft_settings = params.section("eft", EFTSettings)
    settings = params.section("sft", SFTSettings)
    start(runtime, params.seed)
    tokenizer = load_tokenizer(base)

    judgements = read_rows(eft, Judgement)
    questions = judged_questions(tokenizer, judgements)
    questions, dropped_questions = drop_too_long(
        questions, [question["length"] for question in questions], eft_settings.max_length, "eft.max_length"
    )
    rows = [encode_instruction(tokenizer, row.prompt, row.completion) for row in read_rows(ift, Instruction)]
    for judged in judge_replies(judgements, len(rows), settings.eft_share, params.seed):
        request = judge_request(judged.prompt, judged.response)
        rows.append(encode_instruction(tokenizer, request, judge_reply(judged.score, judged.justification)))
    rows, dropped = drop_too_long(rows, [row["length"] for row in rows], settings.max_length, "sft.max_length")

    hold_devices("sft", runtime)
    model = new_adapter(load_base(base, runtime), lora, task_type="CAUSAL_LM")
    with Work("sft", params, runtime, [base, ift, eft]) as work:
        arguments = eft_settings.arguments(work.folder / "eft", params.seed, runtime, order="random")
        judge_trainer = JudgeTrainer(
            model, TrainingArguments(**arguments), questions, eft_settings.ranking_coef, eft_settings.loraplus_lr_ratio
        )
        train(judge_trainer, history_dir / "eft_history.csv", work)
        arguments = settings.arguments(work.folder / "ift", params.seed, runtime)
        instruction_tune(model, tokenizer, rows, arguments, history_dir / "sft_history.csv", work)
        with replacing(out) as temporary:
            save_adapter(model, temporary)
            copy_tokenizer(base, temporary)
            write_model_card(temporary, "sft", {"base": base}, {"ift": ift, "eft": eft}, params, runtime)
    click.echo(
        f"sft: {len(questions)} judged questions, {dropped_questions} dropped as longer than "
        f"{eft_settings.max_length} tokens; {len(rows)} rows, {dropped} dropped as longer than {settings.max_length}"
    )


if __name__ == "__main__":
    main()
