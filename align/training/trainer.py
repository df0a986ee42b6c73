"""Shared by SFT, DPO and reward-model training: arguments, checkpoints, history."""

import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import torch
import trl.trainer.utils
from datasets import Dataset
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file, save_file
from torch.optim import Optimizer
from torch.utils.data import Sampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import get_length_grouped_indices

from align.core.errors import InputError
from align.core.files import read_json, sha256, write_csv, write_json
from align.models.full import Trained
from align.run.runtime import RuntimeSettings
from align.run.work import Pace, Work
from align.training.optimizers import IN_TRAINERS, adamw
from align.training.settings import TrainingSettings
from align.training.validation import Evaluations

# Timings would change the hash at every rerun.
_UNSTABLE = ("runtime", "per_second", "total_flos")

WHOLE_FILE = "whole.json"  # hashes of a checkpoint's files, written last
TRAINED_FILE = "trained.safetensors"
BEST_FILE = "best.safetensors"  # the trained parameters at the lowest eval_loss

# TRL skips the LM head at prompt positions on CUDA only. Skipping them everywhere gives the same loss, and makes SFT on
# judgements (long prompts, short replies) 1.6x faster on a CPU.
trl.trainer.utils._use_triton = lambda device: True


def training_arguments(
    settings: TrainingSettings,
    folder: Path,
    seed: int,
    runtime: RuntimeSettings,
    order: str = "group_by_length",
    *,
    full: bool = False,
) -> dict[str, Any]:
    """Return keyword arguments for `TrainingArguments`; `drop_too_long` applies `max_length`.

    `folder` is for the checkpoints of one trainer; `order` of the rows is `group_by_length`, `random` or `sequential`.
    With `full` weights, which are float32, bfloat16 is for the computation alone.

    Raises:
        InputError: the optimizer needs bitsandbytes, which does not load.
    """
    adamw(runtime.optim)  # fail before anything trains
    ours = {"max_length", "eval_fraction", "eval_steps", "early_stopping_patience", "load_best_model_at_end"}
    values = settings.model_dump(include=set(TrainingSettings.model_fields) - ours)
    if settings.eval_fraction:
        steps = settings.eval_steps if settings.eval_steps < 1 else int(settings.eval_steps)
        values |= {"eval_strategy": "steps", "eval_steps": steps}
        values["per_device_eval_batch_size"] = settings.per_device_train_batch_size
    return values | {
        "output_dir": str(folder),
        "optim": IN_TRAINERS.get(runtime.optim, runtime.optim),
        "gradient_checkpointing_kwargs": {"use_reentrant": False},  # the input of the lowest layer needs no gradient
        "train_sampling_strategy": order,
        "remove_unused_columns": False,  # the sampler reads column `length`
        "seed": seed,
        "use_cpu": runtime.torch_device.type == "cpu",
        "bf16": full and runtime.dtype == "bfloat16",  # a base is in runtime.dtype already; adapters stay in float32
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",  # `Checkpoints` decides
        "dataloader_pin_memory": False,
    }


class LossProgress(ProgressCallback):
    """A progress bar that shows the loss, instead of printing a line per step."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show the loss beside the bar."""
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")


class Checkpoints(TrainerCallback):
    """Saves a checkpoint at a `Pace` and after the last step; keeps only the newest."""

    def __init__(self, folder: Path, work: Work) -> None:
        self.folder, self.work, self.pace = folder, work, Pace()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Request a checkpoint if one is due."""
        control.should_save = self.pace.due() or state.global_step == state.max_steps

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Request a checkpoint if training stops here; it comes after the evaluation."""
        control.should_save |= control.should_training_stop

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mark the checkpoint complete, delete older ones, and stop if DVC was killed."""
        newest = self.folder / f"checkpoint-{state.global_step}"
        for file in newest.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        write_json(newest / WHOLE_FILE, {file.name: sha256(file) for file in sorted(newest.iterdir())})
        for older in self.folder.glob("checkpoint-*"):
            if older != newest:
                shutil.rmtree(older)
        self.pace.saved()
        self.work.check_parent()


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint; delete incomplete ones with a warning."""
    complete: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        if _is_whole(path):
            complete[int(path.name.rpartition("-")[2])] = path
        else:
            click.echo(f"{path}: the checkpoint is incomplete; deleting it", err=True)
            shutil.rmtree(path)
    return complete[max(complete)] if complete else None


def _is_whole(checkpoint: Path) -> bool:
    try:
        hashes = read_json(checkpoint / WHOLE_FILE)
        return all(sha256(checkpoint / name) == value for name, value in hashes.items())
    except (InputError, OSError):
        return False


class LengthGroups(Sampler[int]):
    """Groups rows of similar length, in an order that depends on seed and epoch alone.

    The sampler of transformers draws from the global random state, which differs in a resumed run. The first epoch has
    the same order here.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        torch.empty((), dtype=torch.int64).random_(generator=generator)  # as the data loader does in transformers
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))

    def set_epoch(self, epoch: int) -> None:
        """Set the next epoch."""
        self.epoch = epoch


class Resumable(Trainer):
    """A mixin, placed before a trainer, that resumes from a checkpoint to the same bytes.

    Its checkpoints hold only the trained parameters, and those of the lowest `eval_loss` if these are to be kept. All
    else on evaluations is in the log, which a checkpoint holds too.
    """

    patience: int | None = None  # evaluations without a lower eval_loss before training stops
    keep_best = False
    best: Mapping[str, torch.Tensor] = {}

    def __init__(self, model: Any, **kwargs: Any) -> None:
        if getattr(model, "is_loaded_in_4bit", False):
            model.is_loaded_in_4bit = False  # TRL would round the adapters to bfloat16, which loses small updates
        super().__init__(model=model, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        rows: Any = train_dataset or self.train_dataset
        return LengthGroups(list(rows["length"]), size, self.args.seed)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained parameters."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file({key: value.detach().cpu().contiguous() for key, value in self._trained()}, folder / TRAINED_FILE)
        if self.best:
            save_file(dict(self.best), folder / BEST_FILE)

    def measures(self, batch: Any) -> dict[str, tuple[float, int]]:
        """Return each measure of a held-out batch: its mean, and over how many it is one; the loss is over tokens."""
        tokens = int((batch["labels"][:, 1:] != -100).sum())  # the first is never predicted
        trainer: Any = self
        return {"loss": (float(trainer.compute_loss(self.model, batch)), tokens)}

    @torch.no_grad()
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Add the means over the held-out rows to the log of this step; note the weights, or stop, if it is time to.

        Nothing is drawn: training continues as if there had been no evaluation.
        """
        model, rows = self.model, self.eval_dataset
        assert isinstance(model, torch.nn.Module)
        assert isinstance(rows, Dataset)
        totals, counts = defaultdict[str, float](float), Counter[str]()
        model.eval()
        for batch in rows.iter(self.args.per_device_eval_batch_size):
            columns: Any = batch
            examples = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            inputs = self._prepare_inputs(self.data_collator(examples))
            with self.compute_loss_context_manager():
                measures = self.measures(inputs)
            for key, (value, count) in measures.items():
                totals[key] += value * count if count else 0.0
                counts[key] += count
        model.train()
        metrics = {f"eval_{key}": total / counts[key] for key, total in totals.items() if counts[key]}
        self.state.log_history[-1] |= metrics
        seen = Evaluations.of(self.state.log_history)
        assert seen is not None
        if self.keep_best and seen.since == 0:
            self.best = {key: value.detach().cpu().clone() for key, value in self._trained()}
        self.control.should_training_stop |= self.is_stopped()
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def is_stopped(self) -> bool:
        """Return whether the log has as many evaluations after the best one as there is patience for."""
        seen = Evaluations.of(self.state.log_history)
        return self.patience is not None and seen is not None and seen.since >= self.patience

    def load_best(self) -> None:
        """Put back the weights of the lowest `eval_loss`, if they were kept."""
        if self.best:
            self._load(self.best)

    @torch.no_grad()
    def _load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for key, parameter in self._trained():
            parameter.copy_(tensors[key])

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._load(load_file(Path(resume_from_checkpoint) / TRAINED_FILE))
        best = Path(resume_from_checkpoint) / BEST_FILE
        self.best = load_file(best) if best.exists() else {}
        # TRL's log counts tokens, and would restart from 0.
        log = read_json(Path(resume_from_checkpoint) / TRAINER_STATE_NAME)["log_history"]
        self._total_train_tokens = int(max((entry.get("num_tokens", 0) for entry in log), default=0))

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        assert isinstance(self.model, torch.nn.Module)
        return [(key, parameter) for key, parameter in self.model.named_parameters() if parameter.requires_grad]


class LoraPlus(Resumable):
    """A mixin with two learning rates (LoRA+, arXiv 2402.12354), for the trainer of an adapter; others have one.

    The B matrices, which start at zero, learn at `loraplus_lr_ratio` times the rate of everything else; so do DoRA's
    magnitudes, which PEFT puts beside them.
    """

    def __init__(self, model: Trained, loraplus_lr_ratio: float, **kwargs: Any) -> None:
        super().__init__(model=model, **kwargs)
        self.loraplus_lr_ratio = loraplus_lr_ratio

    def create_optimizer(self, model: Any = None) -> Optimizer:
        """Return AdamW (`runtime.optim`) with the two rates."""
        if not isinstance(self.model, PeftModel):
            return super().create_optimizer(model)
        if self.optimizer is None:
            kind, options = adamw(self.args.optim)
            self.optimizer = create_loraplus_optimizer(
                self.model, kind, lr=self.args.learning_rate, loraplus_lr_ratio=self.loraplus_lr_ratio, **options
            )
        return self.optimizer


def taken(metrics: dict[str, list[float]], name: str) -> float:
    """Return the value that a trainer of TRL has noted for a batch, and forget all that it has."""
    value = metrics[name][-1]
    metrics.clear()
    return value


def train(
    trainer: Resumable, history: Path, work: Work | None = None, settings: TrainingSettings | None = None
) -> dict[str, Any]:
    """Train with a progress bar, then write the history.

    Args:
        trainer: with `training_arguments`; its `eval_dataset`, if any, is what `hold_out` gave.
        history: the CSV file to write.
        work: the trainer's `output_dir` is a folder in it, and training resumes from the last checkpoint there.
        settings: needed with an `eval_dataset`: when to stop early, and whether to end with the best weights.

    Returns:
        What the evaluations found, for the model card; empty if there were none.
    """
    for callback in (PrinterCallback, ProgressCallback):  # the log level decides which one is there
        trainer.remove_callback(callback)
    progress = LossProgress()
    trainer.add_callback(progress)
    if trainer.eval_dataset is not None:
        assert settings is not None
        trainer.patience, trainer.keep_best = settings.early_stopping_patience, settings.load_best_model_at_end
    last = None
    if work is not None:
        folder = Path(str(trainer.args.output_dir))
        trainer.add_callback(Checkpoints(folder, work))
        last = last_checkpoint(folder)
    if not (work is not None and last is not None and _had_ended(trainer, last, work)):
        try:
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
        finally:
            if progress.training_bar is not None:
                progress.training_bar.close()  # an error message starts on its own line
    trainer.load_best()
    write_history(trainer, history)
    return _evaluated(trainer)


def _had_ended(trainer: Resumable, last: Path, work: Work) -> bool:
    """Load the last checkpoint and return True if no step is left."""
    state = TrainerState.load_from_json(str(last / TRAINER_STATE_NAME))
    click.echo(f"{work.stage}: {last.parent.name} resumes after step {state.global_step} of {state.max_steps}")
    trainer.state = state
    # After a partial last epoch, transformers would do one more step.
    if state.global_step < state.max_steps and not trainer.is_stopped():
        return False
    trainer._load_from_checkpoint(str(last))
    return True


def _evaluated(trainer: Resumable) -> dict[str, Any]:
    seen = Evaluations.of(trainer.state.log_history)
    if seen is None:
        return {}
    rows: Any = trainer.eval_dataset
    last = trainer.state.global_step
    weights = seen.step if trainer.keep_best else last
    return {"eval_rows": len(rows), "best_eval_loss": seen.loss, "best_step": seen.step} | {
        "last_step": last,
        "weights_of_step": weights,
    }


def write_history(trainer: Trainer, path: Path) -> None:
    """Write the trainer's log as CSV for `dvc plots`: one row per optimizer step, no timings."""
    rows = [
        {key: value for key, value in entry.items() if not any(word in key for word in _UNSTABLE)}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    # A checkpoint does not keep the order of keys.
    write_csv(path, [{"step": row.pop("step"), "loss": row.pop("loss"), **dict(sorted(row.items()))} for row in rows])
