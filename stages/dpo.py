"""Direct preference optimization (arXiv 2305.18290): models/<parent> + preferences -> models/<model>.

The model continues its parent's adapter. The reference is a frozen copy of the starting point, or m0. A killed run
resumes from its last checkpoint. Run with `python -m stages.dpo m1 m0` (the new model, its parent).
"""

from pathlib import Path
from typing import Any, Literal

import click
from datasets import Dataset
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from pydantic import Field
from trl import DPOConfig, DPOTrainer

from align.core.files import replacing
from align.core.rows import PreferencePair, read_rows
from align.models.adapters import continue_adapter, save_adapter
from align.models.base import copy_tokenizer, load_base, load_tokenizer
from align.models.card import write_model_card
from align.models.loading import load_adapter_weights
from align.models.tokenization import drop_too_long, encode_completion, encode_prompt
from align.run.stage import BASE, Stage
from align.training.settings import TrainingSettings
from align.training.trainer import Resumable, train, training_arguments


class DPOSettings(TrainingSettings):
    """Section `dpo` of params.yaml."""

    beta: float = Field(gt=0)
    label_smoothing: float = Field(ge=0, lt=0.5)
    nll_coef: float = Field(ge=0)
    reference: Literal["previous", "m0"]


class TokenizedDPOTrainer(Resumable, DPOTrainer):
    """TRL's trainer on tokenized rows, so that every stage encodes conversations alike.

    `nll_coef` weighs the negative log-likelihood of the chosen replies, a mean over the tokens of a whole optimizer
    step: TRL's is one over a micro-batch, so that the loss would depend on how the step is cut into these.
    """

    def __init__(self, nll_coef: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.nll_coef, self.tokens_each = nll_coef, 1.0

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Return the micro-batches of the next optimizer step, and note their mean number of chosen tokens."""
        batches, count = super().get_batch_samples(*args, **kwargs)
        self.tokens_each = sum(map(chosen_tokens, batches)) / max(1, len(batches))
        return batches, count

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return TRL's loss of a micro-batch, its likelihood weighted by its share of the step's chosen tokens."""
        if self.nll_coef:
            self.loss_weights = [1.0, self.nll_coef * chosen_tokens(inputs) / self.tokens_each]
        trainer: Any = super()
        return trainer.compute_loss(model, inputs, *args, **kwargs)


def chosen_tokens(batch: dict[str, Any]) -> int:
    """Return the number of tokens of a batch's chosen replies, whose rows come before the rejected ones."""
    chosen, _ = batch["completion_mask"].chunk(2, dim=0)
    return int(chosen.sum())


@click.command(help=__doc__)
@click.argument("model_name", metavar="MODEL")
@click.argument("parent")
def main(model_name: str, parent: str) -> None:
    stage = Stage(f"dpo@{model_name}")
    settings = stage.section("dpo", DPOSettings)
    stage.start()
    parent_dir = Path("models") / parent
    data = Path("data") / model_name
    preferences = data / "preferences.jsonl"
    tokenizer = load_tokenizer(BASE)
    rows: list[dict[str, Any]] = [
        {
            "prompt_ids": encode_prompt(tokenizer, pair.messages),
            "chosen_ids": encode_completion(tokenizer, pair.chosen, pair.chosen_finish_reason),
            "rejected_ids": encode_completion(tokenizer, pair.rejected, pair.rejected_finish_reason),
        }
        for pair in read_rows(preferences, PreferencePair)
    ]
    for row in rows:  # padding makes both sides of a batch as long as the longest
        row["length"] = len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
    rows, dropped = drop_too_long(rows, [row["length"] for row in rows], settings.max_length, "dpo.max_length")

    with stage.work([BASE, parent_dir, Path("models/m0"), preferences]) as work:
        model = continue_adapter(load_base(BASE, stage.runtime), parent_dir)
        arguments = training_arguments(settings, work.folder / "dpo", stage.seed, stage.runtime)
        # TRL's robust DPO (arXiv 2403.00409) is the only loss of this kind that reads label_smoothing.
        arguments |= {"loss_type": ["robust" if settings.label_smoothing else "sigmoid"]}
        if settings.nll_coef:
            arguments |= {"loss_type": [*arguments["loss_type"], "sft"]}
        parents = {"base": BASE, "parent": parent_dir, "reference": parent_dir}
        start = {key: value.clone() for key, value in get_peft_model_state_dict(model).items()}
        if settings.reference == "m0":
            parents["reference"] = Path("models/m0")
            set_peft_model_state_dict(model, load_adapter_weights(parents["reference"]))
        trainer = TokenizedDPOTrainer(  # computes the reference's log-probabilities here, once for all epochs
            nll_coef=settings.nll_coef,
            model=model,
            args=DPOConfig(
                **arguments,
                max_length=None,
                beta=settings.beta,
                label_smoothing=settings.label_smoothing,
                precompute_ref_log_probs=True,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        set_peft_model_state_dict(model, start)
        train(trainer, data / "dpo_history.csv", work)
        with replacing(Path("models") / model_name) as temporary:
            save_adapter(model, temporary)
            copy_tokenizer(BASE, temporary)
            write_model_card(temporary, stage, parents, {"preferences": preferences})
    click.echo(f"dpo@{model_name}: {len(rows)} pairs, {dropped} dropped as longer than {settings.max_length} tokens")


if __name__ == "__main__":
    main()
