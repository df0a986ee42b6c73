"""Supervised fine-tuning on instructions (IFT) and judgements (EFT): models/base -> models/m0.

Run with `python -m stages.sft`.
"""

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
from datasets import Dataset
from peft import get_peft_model
from pydantic import Field
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from stages.lib.errors import InputError
from stages.lib.files import replacing
from stages.lib.judging import DIGITS, SCORE_PREFIX, judge_reply, judge_request
from stages.lib.models import LoraSettings, copy_tokenizer, load_base, load_tokenizer, save_adapter, write_model_card
from stages.lib.params import Params
from stages.lib.records import Instruction, Judgement, read_rows
from stages.lib.runtime import RuntimeSettings, start
from stages.lib.tokenization import drop_too_long, encode_choices, encode_completion, encode_user
from stages.lib.training import TrainingSettings, train

T = TypeVar("T")
TrainingRow = dict[str, Any]


class SFTSettings(TrainingSettings):
    """Section `sft` of params.yaml."""

    eft_passes: float = Field(ge=0)
    eft_target: Literal["score", "reply"]


def encode_instruction(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str) -> TrainingRow:
    """Return a row as TRL takes it; the loss is on the completion, EOS included."""
    return _training_row(encode_user(tokenizer, prompt), encode_completion(tokenizer, completion))


def encode_judgement(
    tokenizer: PreTrainedTokenizerBase, row: Judgement, target: Literal["score", "reply"]
) -> TrainingRow:
    """Return a row as TRL takes it, with the loss on the whole reply or on the digit after `score: ` alone.

    In a mean over the reply's tokens the one that holds the score weighs little; alone, at the very position that
    `judge.mode: logits` reads, it gets the whole gradient.
    """
    request = judge_request(row.prompt, row.response)
    if target == "reply":
        return encode_instruction(tokenizer, request, judge_reply(row.score, row.justification))
    try:
        prompt_ids, digits = encode_choices(tokenizer, request, SCORE_PREFIX, DIGITS)
    except ValueError as error:
        raise InputError(f"params.yaml: sft.eft_target: {error}; use `reply`") from None
    return _training_row(prompt_ids, [digits[row.score]])


def _training_row(prompt_ids: list[int], completion_ids: list[int]) -> TrainingRow:
    mask = [0] * len(prompt_ids) + [1] * len(completion_ids)
    return {"input_ids": prompt_ids + completion_ids, "completion_mask": mask, "length": len(mask)}


def several_passes(questions: Sequence[T], passes: float, seed: int) -> list[T]:
    """Return each question `passes` times; the fraction of a pass is a random share of the questions."""
    shuffled = random.Random(seed).sample(questions, len(questions))
    return [shuffled[i % len(shuffled)] for i in range(round(passes * len(shuffled)))]


def arrange(
    instructions: list[TrainingRow], questions: list[list[TrainingRow]], batch_size: int, seed: int
) -> list[TrainingRow]:
    """Return all rows in the order of training: shuffled batches, each of instructions or of judgements.

    The judged responses of one question stand together: what their common gradient keeps is what makes them differ,
    and that is what a judge has to learn. Instructions of like length stand together, which saves padding.
    """
    shuffler = random.Random(seed)
    judgements = [row for question in shuffler.sample(questions, len(questions)) for row in question]
    by_length = sorted(shuffler.sample(instructions, len(instructions)), key=lambda row: row["length"])
    whole: list[list[TrainingRow]] = []
    rest: list[TrainingRow] = []
    for rows in (judgements, by_length):
        for first in range(0, len(rows), batch_size):
            batch = rows[first : first + batch_size]
            if len(batch) == batch_size:
                whole.append(batch)
            else:
                rest += batch  # goes last, so that it shifts no other batch
    shuffler.shuffle(whole)
    return [row for batch in whole for row in batch] + rest


@click.command(help=__doc__)
@click.option("--base", type=click.Path(path_type=Path), default="models/base", show_default=True)
@click.option("--ift", type=click.Path(path_type=Path), default="data/m0/ift.jsonl", show_default=True)
@click.option("--eft", type=click.Path(path_type=Path), default="data/m0/eft.jsonl", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default="models/m0", show_default=True)
@click.option("--history", type=click.Path(path_type=Path), default="data/m0/sft_history.csv", show_default=True)
def main(base: Path, ift: Path, eft: Path, out: Path, history: Path) -> None:
    params = Params.read()
    runtime = params.section("runtime", RuntimeSettings)
    lora = params.section("lora", LoraSettings)
    settings = params.section("sft", SFTSettings)
    start(runtime, params.seed)
    tokenizer = load_tokenizer(base)

    instructions = [encode_instruction(tokenizer, row.prompt, row.completion) for row in read_rows(ift, Instruction)]
    judgements: dict[str, list[TrainingRow]] = {}
    for row in read_rows(eft, Judgement):
        encoded = encode_judgement(tokenizer, row, settings.eft_target)
        judgements.setdefault(row.question_id, []).append(encoded)
    questions = several_passes(list(judgements.values()), settings.eft_passes, params.seed)
    rows = arrange(instructions, questions, settings.per_device_train_batch_size, params.seed)
    rows, dropped = drop_too_long(rows, [row["length"] for row in rows], settings.max_length, "sft.max_length")

    model = get_peft_model(load_base(base, runtime), lora.config(task_type="CAUSAL_LM"))
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                **settings.arguments(
                    Path(scratch), params.seed, runtime.torch_device.type == "cpu", order="sequential"
                ),
                completion_only_loss=True,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        train(trainer, history)
    with replacing(out) as temporary:
        save_adapter(model, temporary)
        copy_tokenizer(base, temporary)
        config = settings.model_dump() | {"lora": lora.model_dump()}
        write_model_card(temporary, "sft", {"base": base}, {"ift": ift, "eft": eft}, config, params.seed)
    click.echo(f"sft: {len(rows)} rows, {dropped} dropped as longer than {settings.max_length} tokens")


if __name__ == "__main__":
    main()
