"""Supervised fine-tuning: models/base learns to judge (EFT), then to follow instructions (IFT) -> models/m0.

Run with `python -m stages.sft`.
"""

import tempfile
from pathlib import Path
from typing import Any

import click
from datasets import Dataset
from peft import get_peft_model
from pydantic import Field
from transformers import PreTrainedTokenizerBase, TrainingArguments
from trl import SFTConfig, SFTTrainer

from stages.lib.files import replacing
from stages.lib.judge_trainer import JudgeTrainer, judged_questions
from stages.lib.judging import judge_reply, judge_request
from stages.lib.models import LoraSettings, copy_tokenizer, load_base, load_tokenizer, save_adapter, write_model_card
from stages.lib.params import Params
from stages.lib.records import Instruction, Judgement, read_rows
from stages.lib.runtime import RuntimeSettings, start
from stages.lib.tokenization import drop_too_long, encode_completion, encode_user
from stages.lib.training import TrainingSettings, train


class EFTSettings(TrainingSettings):
    """Section `eft` of params.yaml."""

    ranking_coef: float = Field(ge=0)


class SFTSettings(TrainingSettings):
    """Section `sft` of params.yaml."""

    judge_replies: bool


def encode_row(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str) -> dict[str, Any]:
    """Return a row as TRL takes it; the loss is on the completion alone, its EOS included."""
    prompt_ids, completion_ids = encode_user(tokenizer, prompt), encode_completion(tokenizer, completion)
    mask = [0] * len(prompt_ids) + [1] * len(completion_ids)
    return {"input_ids": prompt_ids + completion_ids, "completion_mask": mask, "length": len(mask)}


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
    use_cpu = runtime.torch_device.type == "cpu"

    judgements = read_rows(eft, Judgement)
    questions = judged_questions(tokenizer, judgements)
    questions, dropped_questions = drop_too_long(
        questions, [question["length"] for question in questions], eft_settings.max_length, "eft.max_length"
    )
    rows = [encode_row(tokenizer, row.prompt, row.completion) for row in read_rows(ift, Instruction)]
    if settings.judge_replies:
        for judged in judgements:
            reply = judge_reply(judged.score, judged.justification)
            rows.append(encode_row(tokenizer, judge_request(judged.prompt, judged.response), reply))
    rows, dropped = drop_too_long(rows, [row["length"] for row in rows], settings.max_length, "sft.max_length")

    model = get_peft_model(load_base(base, runtime), lora.config(task_type="CAUSAL_LM"))
    with tempfile.TemporaryDirectory() as scratch:
        arguments = eft_settings.arguments(Path(scratch), params.seed, use_cpu, order="random")
        judge_trainer = JudgeTrainer(model, TrainingArguments(**arguments), questions, eft_settings.ranking_coef)
        train(judge_trainer, history_dir / "eft_history.csv")
        arguments = settings.arguments(Path(scratch), params.seed, use_cpu)
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(**arguments, max_length=None, completion_only_loss=True),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        train(trainer, history_dir / "sft_history.csv")
    with replacing(out) as temporary:
        save_adapter(model, temporary)
        copy_tokenizer(base, temporary)
        config = {"eft": eft_settings.model_dump(), "sft": settings.model_dump(), "lora": lora.model_dump()}
        write_model_card(temporary, "sft", {"base": base}, {"ift": ift, "eft": eft}, config, params.seed)
    click.echo(
        f"sft: {len(questions)} judged questions, {dropped_questions} dropped as longer than "
        f"{eft_settings.max_length} tokens; {len(rows)} rows, {dropped} dropped as longer than {settings.max_length}"
    )


if __name__ == "__main__":
    main()
