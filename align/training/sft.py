"""Supervised fine-tuning on instruction rows, for stage sft."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from pydantic import Field
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from align.core.rows import Message
from align.models.tokenization import encode_completion, encode_prompt
from align.run.work import Work
from align.training.settings import TrainingSettings
from align.training.trainer import Resumable, taken, train
from align.training.validation import dataset_of


class SFTSettings(TrainingSettings):
    """Section `sft` of params.yaml."""

    eft_share: float = Field(ge=0, lt=1)


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
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, Any]],
    held_out: list[dict[str, Any]],
    settings: SFTSettings,
    arguments: dict[str, Any],
    history: Path,
    work: Work,
) -> dict[str, Any]:
    """Train `model` on rows of `encode_instruction`, with `training_arguments`; see `train`."""
    trainer = ResumableSFTTrainer(
        model=model,
        args=SFTConfig(**arguments, max_length=None, completion_only_loss=True),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=dataset_of(held_out),
        processing_class=tokenizer,
    )
    return train(trainer, history, work, settings)
