"""The settings of DPO, KTO and their kind."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from align.models.attention import Attention
from align.training.settings import TrainingSettings

# TRL's but `sft`, which is `nll_coef`; kto is that of its KTOTrainer.
Loss = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
    "kto",
]
SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")  # the losses that read label_smoothing
SORTED = ("aot", "aot_unpaired")  # the losses that compare the sorted log-ratios of a micro-batch
KTO_WEIGHTS = ("desirable_weight", "undesirable_weight")
# What changes a loss of pairs, and its value that changes nothing.
OF_PAIRS = {"loss_weights": None, "label_smoothing": 0, "ld_alpha": None, "use_weighting": False, "nll_coef": 0}


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class DPOSettings(TrainingSettings):
    """Keys of a section that trains on preferences, named as in `trl.DPOConfig` and `trl.KTOConfig`."""

    loss_type: Annotated[list[Loss], BeforeValidator(_as_list)] = Field(min_length=1)
    loss_weights: list[float] | None
    beta: float = Field(gt=0)
    label_smoothing: float = Field(ge=0, lt=0.5)
    ld_alpha: float | None = Field(ge=0, le=1)
    use_weighting: bool
    nll_coef: float = Field(ge=0)
    desirable_weight: float = Field(gt=0)
    undesirable_weight: float = Field(gt=0)
    reference: Literal["previous", "m0"]
    attn_implementation: Attention | None

    @property
    def kto(self) -> bool:
        """Whether the loss is KTO's, which reads replies with a label and no pairs."""
        return "kto" in self.loss_type

    @model_validator(mode="after")
    def _the_losses_read_what_is_set(self) -> Self:
        if len(set(self.loss_type)) < len(self.loss_type):
            raise ValueError("a loss_type without the same loss twice; give it a weight in loss_weights")
        if self.kto:
            return self._kto_reads_what_is_set()
        if set_weights := [key for key in KTO_WEIGHTS if getattr(self, key) != 1]:
            raise ValueError(f"{' and '.join(set_weights)} 1.0, or loss_type [kto], which alone reads it")
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError("loss_weights with a number for each loss_type, or null")
        if self.loss_weights is not None and not any(self.loss_weights):
            raise ValueError("loss_weights that are not all 0")
        if self.label_smoothing and not set(self.loss_type) & set(SMOOTHED):
            raise ValueError(f"label_smoothing 0, or a loss_type that reads it: {', '.join(SMOOTHED)}")
        if "exo_pair" in self.loss_type and not self.label_smoothing:
            raise ValueError("loss_type exo_pair with a label_smoothing above 0, such as 0.001")
        if self.use_weighting and (self.nll_coef or set(self.loss_type) & set(SORTED)):
            raise ValueError(
                f"use_weighting false with nll_coef and with {', '.join(SORTED)}, whose terms are no pair's"
            )
        if self.per_device_train_batch_size < 2 and set(self.loss_type) & set(SORTED):
            raise ValueError(f"per_device_train_batch_size 2 or more with {', '.join(SORTED)}: they sort a micro-batch")
        return self

    def _kto_reads_what_is_set(self) -> Self:
        if len(self.loss_type) > 1:
            raise ValueError("loss_type [kto] alone, or losses of pairs without kto: it reads no pairs")
        if unread := [key for key, off in OF_PAIRS.items() if getattr(self, key) != off]:
            off = ", ".join(f"{key} {json.dumps(OF_PAIRS[key])}" for key in unread)
            raise ValueError(f"{off} with loss_type [kto], which reads no pairs")
        if self.per_device_train_batch_size < 2:
            raise ValueError(
                "per_device_train_batch_size 2 or more with loss_type [kto]: its KL term takes the replies of the "
                "micro-batch to each other's prompts"
            )
        return self
