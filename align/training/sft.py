"""Supervised fine-tuning on instruction rows, for stage sft."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from pydantic import Field
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from align.core.rows import Message
from align.models.full import Trained
from align.models.tokenization import encode_completion, encode_prompt
from align.run.work import Work
from align.training.settings import TrainingSettings
from align.training.trainer import Resumable, train


class SFTSettings(TrainingSettings):
    """Section `sft` of params.yaml."""

    eft_share: float = Field(ge=0, lt=1)


class ResumableSFTTrainer(Resumable, SFTTrainer):
    """TRL's trainer with our checkpoints."""


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
    arguments: dict[str, Any],
    history: Path,
    work: Work | None = None,
) -> None:
    """Train `model` on rows of `encode_instruction`, with `training_arguments`; write the history."""
    trainer = ResumableSFTTrainer(
        model=model,
        args=SFTConfig(**arguments, max_length=None, completion_only_loss=True),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    train(trainer, history, work)
