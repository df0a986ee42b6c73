"""Supervised fine-tuning on instructions (IFT) and judgements (EFT): models/base -> models/m0.

Run with `python -m stages.sft`.
"""

import tempfile
from pathlib import Path
from typing import Any

import click
from datasets import Dataset
from peft import get_peft_model
from trl import SFTConfig, SFTTrainer

from stages.lib.files import replacing
from stages.lib.judging import judge_reply, judge_request
from stages.lib.models import LoraSettings, copy_tokenizer, load_base, load_tokenizer, save_adapter, write_model_card
from stages.lib.params import Params
from stages.lib.records import Instruction, Judgement, read_rows
from stages.lib.runtime import RuntimeSettings, start
from stages.lib.tokenization import drop_too_long, encode_completion, encode_user
from stages.lib.training import TrainingSettings, train


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
    settings = params.section("sft", TrainingSettings)
    start(runtime, params.seed)
    tokenizer = load_tokenizer(base)

    texts = [(row.prompt, row.completion) for row in read_rows(ift, Instruction)]
    texts += [
        (judge_request(row.prompt, row.response), judge_reply(row.score, row.justification))
        for row in read_rows(eft, Judgement)
    ]
    rows: list[dict[str, Any]] = []
    for prompt, completion in texts:
        prompt_ids, completion_ids = encode_user(tokenizer, prompt), encode_completion(tokenizer, completion)
        mask = [0] * len(prompt_ids) + [1] * len(completion_ids)  # the loss is on the completion alone
        rows.append({"input_ids": prompt_ids + completion_ids, "completion_mask": mask, "length": len(mask)})
    rows, dropped = drop_too_long(rows, [row["length"] for row in rows], settings.max_length, "sft.max_length")

    model = get_peft_model(load_base(base, runtime), lora.config(task_type="CAUSAL_LM"))
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                **settings.arguments(Path(scratch), params.seed, runtime.torch_device.type == "cpu"),
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
