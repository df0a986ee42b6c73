"""Fine-tune all weights on labelled texts: models/base -> models/text.

A killed run resumes from its last checkpoint. Run with `python -m stages.text.sft`.
"""

from functools import partial
from pathlib import Path

import click
from datasets import Dataset
from transformers import TrainingArguments

from align.core.errors import InputError
from align.core.files import replacing
from align.core.rows import read_rows
from align.core.split import prompt_key
from align.models.base import copy_tokenizer, load_tokenizer
from align.models.card import write_model_card
from align.models.full import load_full, save_trained
from align.models.tokenization import drop_too_long
from align.run.stage import BASE, Stage
from align.text.labelled import LabelledText, labels_of
from align.text.settings import TextSettings
from align.text.training import check_positions, collate, encode_choices_of, training_row
from align.training.trainer import Resumable, train, training_arguments
from align.training.validation import GROUP, dataset_of, described, hold_out

TRAIN = Path("data/text/train.jsonl")


@click.command(help=__doc__)
def main() -> None:
    stage = Stage("text_sft")
    settings = stage.section("text", TextSettings)
    if stage.runtime.quantization != "none":
        raise InputError(
            f"params.yaml: runtime.quantization: {stage.runtime.quantization}: packed weights cannot be trained; "
            "set it to none"
        )
    stage.start()
    tokenizer = load_tokenizer(BASE)
    pad_id, eos_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    assert isinstance(pad_id, int)
    assert isinstance(eos_id, int)

    read = read_rows(TRAIN, LabelledText)
    labels = labels_of(read)
    pairs = [(row, encode_choices_of(tokenizer, settings.template, labels, row)) for row in read]
    pairs, dropped = drop_too_long(pairs, [row.longest for _, row in pairs], settings.max_length, "text.max_length")
    rows = [training_row(ids, settings.loss, eos_id) | {GROUP: prompt_key(row.text)} for row, ids in pairs]
    rows, held_out = hold_out(rows, settings, stage.seed, "text")

    with stage.work([BASE, TRAIN]) as work:
        model = load_full(BASE, stage.runtime)
        check_positions(model, settings.max_length)
        arguments = training_arguments(settings, work.folder, stage.seed, stage.runtime, full=True)
        trainer = Resumable(
            model=model,
            args=TrainingArguments(**arguments),
            train_dataset=Dataset.from_list(rows),
            eval_dataset=dataset_of(held_out),
            data_collator=partial(collate, pad_id=pad_id),
        )
        validation = train(trainer, Path("data/text/history.csv"), work, settings)
        with replacing(Path("models/text")) as temporary:
            save_trained(model, temporary, stage.runtime)
            copy_tokenizer(BASE, temporary)
            write_model_card(temporary, stage, {"base": BASE}, {"train": TRAIN}, validation)
    click.echo(
        f"text_sft: {len(rows)} rows, {dropped} dropped as longer than {settings.max_length} tokens"
        f"{described(validation)}"
    )


if __name__ == "__main__":
    main()
