"""Supervised fine-tuning: models/base learns to judge (EFT), then to follow instructions (IFT) -> models/m0.

A run that was killed goes on from its last checkpoint. Run with `python -m stages.sft`.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import click
from pydantic import Field
from transformers import TrainingArguments

from stages.lib.files import replacing
from stages.lib.instruction_tuning import SFTSettings, encode_instruction, instruction_tune
from stages.lib.judge_trainer import JudgeTrainer, judged_questions
from stages.lib.judging import judge_reply, judge_request
from stages.lib.locks import hold_devices
from stages.lib.models import (
    LoraSettings,
    copy_tokenizer,
    load_base,
    load_tokenizer,
    new_adapter,
    save_adapter,
    write_model_card,
)
from stages.lib.params import Params
from stages.lib.records import Instruction, Judgement, read_rows
from stages.lib.resume import Work
from stages.lib.runtime import RuntimeSettings, start
from stages.lib.tokenization import drop_too_long
from stages.lib.training import TrainingSettings, train


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
