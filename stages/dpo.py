"""Direct preference optimization (arXiv 2305.18290): models/<parent> + preferences -> models/<model>.

The model continues its parent's adapter, and the reference is a frozen copy of that adapter.
Run with `python -m stages.dpo m1 m0` (the new model, its parent).
"""

import tempfile
from pathlib import Path
from typing import Any

import click
from datasets import Dataset
from peft import PeftModel
from pydantic import Field
from trl import DPOConfig, DPOTrainer

from stages.lib.files import replacing
from stages.lib.models import copy_tokenizer, load_base, load_tokenizer, save_adapter, write_model_card
from stages.lib.params import Params
from stages.lib.records import PreferencePair, read_rows
from stages.lib.runtime import RuntimeSettings, start
from stages.lib.tokenization import drop_too_long, encode_completion, encode_prompt
from stages.lib.training import TrainingSettings, train


class DPOSettings(TrainingSettings):
    """Section `dpo` of params.yaml."""

    beta: float = Field(gt=0)


class TokenizedDPOTrainer(DPOTrainer):
    """TRL's trainer on rows that are tokenized already, so that every stage encodes a conversation the same way."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


@click.command(help=__doc__)
@click.argument("model_name", metavar="MODEL")
@click.argument("parent")
def main(model_name: str, parent: str) -> None:
    params = Params.read()
    runtime = params.section("runtime", RuntimeSettings)
    settings = params.section("dpo", DPOSettings)
    start(runtime, params.seed)
    base, parent_dir, out = Path("models/base"), Path("models") / parent, Path("models") / model_name
    preferences = Path("data") / model_name / "preferences.jsonl"
    tokenizer = load_tokenizer(base)
    rows = [
        {
            "prompt_ids": encode_prompt(tokenizer, pair.messages),
            "chosen_ids": encode_completion(tokenizer, pair.chosen, pair.chosen_finish_reason),
            "rejected_ids": encode_completion(tokenizer, pair.rejected, pair.rejected_finish_reason),
        }
        for pair in read_rows(preferences, PreferencePair)
    ]
    lengths = [len(r["prompt_ids"]) + max(len(r["chosen_ids"]), len(r["rejected_ids"])) for r in rows]
    rows, dropped = drop_too_long(rows, lengths, settings.max_length, "dpo.max_length")

    model = PeftModel.from_pretrained(load_base(base, runtime), parent_dir, is_trainable=True)
    with tempfile.TemporaryDirectory() as scratch:
        # Grouping by length needs one length a row; a pair has two.
        arguments = settings.arguments(Path(scratch), params.seed, runtime.torch_device.type == "cpu", order="random")
        trainer = TokenizedDPOTrainer(
            model=model,
            args=DPOConfig(**arguments, max_length=None, beta=settings.beta),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        train(trainer, Path("data") / model_name / "dpo_history.csv")
    with replacing(out) as temporary:
        save_adapter(model, temporary)
        copy_tokenizer(base, temporary)
        parents = {"base": base, "parent": parent_dir, "reference": parent_dir}
        write_model_card(temporary, "dpo", parents, {"preferences": preferences}, settings.model_dump(), params.seed)
    click.echo(f"dpo@{model_name}: {len(rows)} pairs, {dropped} dropped as longer than {settings.max_length} tokens")


if __name__ == "__main__":
    main()
