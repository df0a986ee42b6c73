"""Plain fine-tuning of all weights on labelled texts: models/base -> models/text.

A run that was killed goes on from its last checkpoint. Run with `python -m stages.text.sft`.
"""

from functools import partial
from pathlib import Path

import click
from datasets import Dataset
from torch import nn
from transformers import TrainingArguments

from align.core.errors import InputError
from align.core.files import replacing
from align.core.params import Params
from align.core.rows import read_rows
from align.models.base import copy_tokenizer, load_base, load_tokenizer, write_model_card
from align.models.tokenization import drop_too_long
from align.run.locks import hold_devices
from align.run.runtime import RuntimeSettings, start
from align.run.work import Work
from align.text.labelled import LabelledText, labels_of
from align.text.training import TextSettings, check_positions, collate, encode_choices_of, training_row
from align.training.trainer import Resumable, train


@click.command(help=__doc__)
@click.option("--base", type=click.Path(path_type=Path), default="models/base", show_default=True)
@click.option("--data", type=click.Path(path_type=Path), default="data/text/train.jsonl", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default="models/text", show_default=True)
@click.option("--history", type=click.Path(path_type=Path), default="data/text/history.csv", show_default=True)
def main(base: Path, data: Path, out: Path, history: Path) -> None:
    params = Params.read()
    runtime = params.section("runtime", RuntimeSettings)
    settings = params.section("text", TextSettings)
    if runtime.quantization != "none":
        raise InputError(
            f"params.yaml: runtime.quantization: {runtime.quantization}: all weights are trained here, and packed ones "
            "cannot be; set none"
        )
    start(runtime, params.seed)
    tokenizer = load_tokenizer(base)
    pad_id, eos_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    assert isinstance(pad_id, int)
    assert isinstance(eos_id, int)

    read = read_rows(data, LabelledText)
    labels = labels_of(read)
    encoded = [encode_choices_of(tokenizer, settings.template, labels, row) for row in read]
    encoded, dropped = drop_too_long(encoded, [row.longest for row in encoded], settings.max_length, "text.max_length")
    rows = [training_row(row, settings.loss, eos_id) for row in encoded]

    hold_devices("text_sft", runtime)
    # In bfloat16 most steps of the optimizer are too small to change a weight: they are kept in float32.
    model = load_base(base, runtime.model_copy(update={"dtype": "float32"}))
    check_positions(model, settings.max_length)
    with Work("text_sft", params, runtime, [base, data]) as work:
        arguments = settings.arguments(work.folder, params.seed, runtime)
        trainer = Resumable(
            model=model,
            args=TrainingArguments(**arguments | {"bf16": runtime.dtype == "bfloat16"}),
            train_dataset=Dataset.from_list(rows),
            data_collator=partial(collate, pad_id=pad_id),
        )
        train(trainer, history, work)
        with replacing(out) as temporary:
            nn.Module.to(model, runtime.torch_dtype)
            model.save_pretrained(temporary)
            copy_tokenizer(base, temporary)
            write_model_card(temporary, "text_sft", {"base": base}, {"train": data}, params, runtime)
    click.echo(f"text_sft: {len(rows)} rows, {dropped} dropped as longer than {settings.max_length} tokens")


if __name__ == "__main__":
    main()
