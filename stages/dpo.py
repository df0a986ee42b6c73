"""Direct preference optimization (arXiv 2305.18290): models/<parent> + preferences -> models/<model>.

The model continues its parent's adapter. The reference is a frozen copy of what DPO starts from, or m0.
A run that was killed goes on from its last checkpoint. Run with `python -m stages.dpo m1 m0` (the new model, its
parent).
"""

from pathlib import Path
from typing import Any, Literal

import click
from datasets import Dataset
from peft import set_peft_model_state_dict
from pydantic import Field
from trl import DPOConfig, DPOTrainer

from align.core.files import replacing
from align.core.params import Params
from align.core.rows import Instruction, PreferencePair, read_rows
from align.models.base import (
    continue_adapter,
    copy_tokenizer,
    load_base,
    load_tokenizer,
    save_adapter,
    write_model_card,
)
from align.models.loading import load_adapter_weights
from align.models.tokenization import drop_too_long, encode_completion, encode_prompt
from align.run.locks import hold_devices
from align.run.runtime import RuntimeSettings, start
from align.run.work import Work
from align.training.sft import SFTSettings, encode_instruction, instruction_tune
from align.training.trainer import Resumable, TrainingSettings, train


class DPOSettings(TrainingSettings):
    """Section `dpo` of params.yaml."""

    beta: float = Field(gt=0)
    nll_coef: float = Field(ge=0)
    reference: Literal["previous", "m0"]
    sft_on_accepted: bool


class TokenizedDPOTrainer(Resumable, DPOTrainer):
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
    sft_settings = params.section("sft", SFTSettings)
    start(runtime, params.seed)
    base, parent_dir, out = Path("models/base"), Path("models") / parent, Path("models") / model_name
    data = Path("data") / model_name
    preferences, ift = data / "preferences.jsonl", data / "ift.jsonl"
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

    accepted = [
        encode_instruction(tokenizer, row.prompt, row.completion)
        for row in read_rows(ift, Instruction)
        if settings.sft_on_accepted and row.iteration == model_name
    ]
    dropped_accepted = 0
    if accepted:
        accepted, dropped_accepted = drop_too_long(
            accepted, [row["length"] for row in accepted], sft_settings.max_length, "sft.max_length"
        )

    hold_devices(f"dpo@{model_name}", runtime)
    model = continue_adapter(load_base(base, runtime), parent_dir)
    inputs = [base, parent_dir, Path("models/m0"), preferences, ift]
    with Work(f"dpo@{model_name}", params, runtime, inputs) as work:
        if accepted:
            arguments = sft_settings.arguments(work.folder / "sft", params.seed, runtime)
            instruction_tune(model, tokenizer, accepted, arguments, work.folder / "sft_history.csv", work)
        # Grouping by length needs one length a row; a pair has two.
        arguments = settings.arguments(work.folder / "dpo", params.seed, runtime, order="random")
        if settings.nll_coef:
            arguments |= {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, settings.nll_coef]}
        trainer = TokenizedDPOTrainer(
            model=model,
            args=DPOConfig(**arguments, max_length=None, beta=settings.beta),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        reference_dir = parent_dir
        if settings.reference == "m0":  # in place of the trainer's copy of what it starts from
            reference_dir = Path("models/m0")
            set_peft_model_state_dict(model, load_adapter_weights(reference_dir), adapter_name="ref")
        train(trainer, data / "dpo_history.csv", work)
        with replacing(out) as temporary:
            save_adapter(model, temporary)
            copy_tokenizer(base, temporary)
            parents = {"base": base, "parent": parent_dir, "reference": reference_dir}
            sources = {"preferences": preferences} | ({"accepted": ift} if accepted else {})
            write_model_card(temporary, "dpo", parents, sources, params, runtime)
    click.echo(
        f"dpo@{model_name}: {len(rows)} pairs, {dropped} dropped as longer than {settings.max_length} tokens"
        + (
            f"; SFT on {len(accepted)} accepted rows before, {dropped_accepted} dropped as longer than "
            f"{sft_settings.max_length}"
            if settings.sft_on_accepted
            else ""
        )
    )


if __name__ == "__main__":
    main()
