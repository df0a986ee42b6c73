"""The keys that all trainer sections of params.yaml share."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from align.core.params import Settings, WarmupSteps, whole_steps


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
    eval_fraction: float = Field(ge=0, lt=1)
    eval_steps: Annotated[float, Field(gt=0), AfterValidator(whole_steps)]
    early_stopping_patience: int | None = Field(ge=1)
    load_best_model_at_end: bool

    @model_validator(mode="after")
    def _something_is_held_out_to_choose_by(self) -> Self:
        if not self.eval_fraction and (self.early_stopping_patience is not None or self.load_best_model_at_end):
            raise ValueError(
                "early_stopping_patience null and load_best_model_at_end false where eval_fraction is 0: no eval_loss "
                "is measured; set eval_fraction, such as 0.1"
            )
        return self
