"""Supervised fine-tuning on instruction rows, for stage sft."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from datasets import Dataset
from pydantic import Field, model_validator
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from align.core.rows import Message
from align.models.attention import FLASH, Attention, use_attention
from align.models.full import Trained
from align.models.tokenization import encode_completion, encode_prompt
from align.run.work import Work
from align.training.settings import TrainingSettings
from align.training.trainer import Resumable, taken, train
from align.training.validation import dataset_of


class SFTSettings(TrainingSettings):
    """Section `sft` of params.yaml."""

    eft_share: float = Field(ge=0, lt=1)
    attn_implementation: Attention | None
    packing: bool
    padding_free: bool

    @model_validator(mode="after")
    def _rows_side_by_side_need_flash_attention(self) -> Self:
        if (self.packing or self.padding_free) and self.attn_implementation not in FLASH:
            raise ValueError(
                f"attn_implementation {' or '.join(FLASH)} with packing and padding_free: others compute the attention "
                "of all rows to all others, and mask it"
            )
        if self.padding_free and not self.packing and self.per_device_train_batch_size < 2:
            raise ValueError("per_device_train_batch_size 2 or more with padding_free: one row has no padding")
        return self

    @property
    def order(self) -> str:
        """The `order` of `training_arguments`: packed rows are of nearly equal length."""
        return "random" if self.packing else "group_by_length"


class ResumableSFTTrainer(Resumable, SFTTrainer):
    """TRL's trainer with our checkpoints and evaluations."""

    def measures(self, batch: Any) -> dict[str, tuple[float, int]]:
        """Return loss and accuracy of the tokens of the completions."""
        measures = super().measures(batch)
        accuracy = taken(self._metrics["eval"], "mean_token_accuracy")
        return measures | {"mean_token_accuracy": (accuracy, measures["loss"][1])}


def encode_instruction(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], completion: str
) -> dict[str, Any]:
    """Return a row for TRL; the loss is on the completion only, the reply to `messages`, including its EOS."""
    prompt_ids, completion_ids = encode_prompt(tokenizer, messages), encode_completion(tokenizer, completion)
    mask = [0] * len(prompt_ids) + [1] * len(completion_ids)
    return {"input_ids": prompt_ids + completion_ids, "completion_mask": mask, "length": len(mask)}


def instruction_tune(
    model: Trained,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, Any]],
    held_out: list[dict[str, Any]],
    settings: SFTSettings,
    arguments: dict[str, Any],
    history: Path,
    work: Work | None = None,
) -> dict[str, Any]:
    """Train `model` on rows of `encode_instruction`; see `train` for what it writes and returns.

    With `packing` rows are put side by side up to `max_length` tokens, and with `padding_free` those of a batch; no row
    sees another.

    Args:
        model: the base with an adapter, or a model all of whose weights are trained.
        tokenizer: of the base.
        rows: of at most `max_length` tokens.
        held_out: rows to measure on.
        settings: how rows become batches.
        arguments: of `training_arguments`, in the settings' order.
        history: the CSV file to write.
        work: for checkpoints.
    """
    use_attention(model, settings.attn_implementation)
    trainer = ResumableSFTTrainer(
        model=model,
        args=SFTConfig(
            **arguments,
            max_length=settings.max_length if settings.packing else None,
            packing=settings.packing,
            padding_free=settings.padding_free,
            completion_only_loss=True,
        ),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=dataset_of(held_out),
        processing_class=tokenizer,
    )
    return train(trainer, history, work, settings)
