"""What SFT, DPO and reward-model training share: settings, TRL arguments, the history of a run."""

from pathlib import Path
from typing import Any, Literal

import trl.trainer.utils
from pydantic import Field
from transformers import PrinterCallback, ProgressCallback, Trainer

from stages.lib.files import write_csv
from stages.lib.params import Settings

# Timings differ between runs and would give every rerun a new hash.
_UNSTABLE = ("runtime", "per_second", "total_flos")


# TRL runs the LM head over every position, prompts included, except on CUDA, where it scores the completion's positions
# alone. The loss is the same; on a CPU the short way makes SFT on judgements (long prompts, short replies) 1.6x faster.
trl.trainer.utils._use_triton = lambda device: True


class TrainingSettings(Settings):
    """Keys that every trainer section has, in the words of `transformers.TrainingArguments`."""

    learning_rate: float = Field(gt=0)
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"]
    warmup_ratio: float = Field(ge=0, lt=1)
    num_train_epochs: float = Field(gt=0)
    per_device_train_batch_size: int = Field(ge=1)
    gradient_accumulation_steps: int = Field(ge=1)
    max_grad_norm: float = Field(gt=0)
    max_length: int = Field(ge=1)
    gradient_checkpointing: bool

    def arguments(self, scratch: Path, seed: int, use_cpu: bool, order: str = "group_by_length") -> dict[str, Any]:
        """Return keyword arguments for `TrainingArguments`; see `drop_too_long` for `max_length`."""
        values = self.model_dump(
            exclude=set(self.model_fields) - set(TrainingSettings.model_fields) | {"max_length", "warmup_ratio"}
        )
        return values | {
            "output_dir": str(scratch),
            "warmup_steps": self.warmup_ratio,  # a value under 1 is a share of all steps
            "train_sampling_strategy": order,
            "remove_unused_columns": False,  # the sampler reads column `length`
            "seed": seed,
            "use_cpu": use_cpu,
            "bf16": False,  # the weights are in runtime.dtype already; adapters stay in float32
            "logging_steps": 1,
            "report_to": "none",
            "save_strategy": "no",
            "dataloader_pin_memory": False,
        }


class LossProgress(ProgressCallback):
    """A progress bar with the last loss in it, instead of a printed line at every step."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show the loss beside the bar."""
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")


def train(trainer: Trainer, history: Path) -> None:
    """Train behind a quiet progress bar, then write the history."""
    for callback in (PrinterCallback, ProgressCallback):  # which of them is there depends on the log level
        trainer.remove_callback(callback)
    trainer.add_callback(LossProgress())
    trainer.train()
    write_history(trainer, history)


def write_history(trainer: Trainer, path: Path) -> None:
    """Write the trainer's log, a row an optimizer step, as CSV for `dvc plots`; without timings."""
    rows = [
        {key: value for key, value in entry.items() if not any(word in key for word in _UNSTABLE)}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    write_csv(path, [{"step": row.pop("step"), **row} for row in rows])
