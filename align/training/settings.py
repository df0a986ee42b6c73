"""The keys that all trainer sections of params.yaml share."""

from typing import Literal

from pydantic import Field

from align.core.params import Settings, WarmupSteps


class TrainingSettings(Settings):
    """Keys of every trainer section, named as in `transformers.TrainingArguments`."""

    learning_rate: float = Field(gt=0)
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"]
    warmup_steps: WarmupSteps
    num_train_epochs: float = Field(gt=0)
    per_device_train_batch_size: int = Field(ge=1)
    gradient_accumulation_steps: int = Field(ge=1)
    max_grad_norm: float = Field(gt=0)
    max_length: int = Field(ge=1)
    gradient_checkpointing: bool
