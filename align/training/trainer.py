"""What SFT, DPO and reward-model training share: TRL arguments, checkpoints, the history of a run."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
import trl.trainer.utils
from safetensors.torch import load_file, save_file
from torch.utils.data import Sampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import get_length_grouped_indices

from align.core.errors import InputError
from align.core.files import read_json, sha256, write_csv, write_json
from align.run.runtime import RuntimeSettings
from align.run.work import Pace, Work
from align.training.optimizers import IN_TRAINERS, adamw
from align.training.settings import TrainingSettings

# Timings differ between runs and would give every rerun a new hash.
_UNSTABLE = ("runtime", "per_second", "total_flos")

WHOLE_FILE = "whole.json"  # hashes of a checkpoint's files, written last
TRAINED_FILE = "trained.safetensors"

# TRL runs the LM head over every position, prompts included, except on CUDA, where it scores the completion's positions
# alone. The loss is the same; on a CPU the short way makes SFT on judgements (long prompts, short replies) 1.6x faster.
trl.trainer.utils._use_triton = lambda device: True


def training_arguments(
    settings: TrainingSettings, folder: Path, seed: int, runtime: RuntimeSettings, order: str = "group_by_length"
) -> dict[str, Any]:
    """Return keyword arguments for `TrainingArguments`; see `drop_too_long` for `max_length`.

    Args:
        settings: a trainer section of params.yaml.
        folder: of checkpoints, one for each trainer.
        seed: of the run.
        runtime: where it trains, and with which optimizer.
        order: of the rows, `group_by_length` or `random`.

    Raises:
        InputError: the optimizer needs bitsandbytes, which does not load.
    """
    adamw(runtime.optim)  # what is missing for it is told before anything trains
    values = settings.model_dump(include=set(TrainingSettings.model_fields) - {"max_length"})
    return values | {
        "output_dir": str(folder),
        "optim": IN_TRAINERS.get(runtime.optim, runtime.optim),
        "gradient_checkpointing_kwargs": {"use_reentrant": False},  # no gradient needs to enter the lowest layer
        "train_sampling_strategy": order,
        "remove_unused_columns": False,  # the sampler reads column `length`
        "seed": seed,
        "use_cpu": runtime.torch_device.type == "cpu",
        "bf16": False,  # the weights are in runtime.dtype already; adapters stay in float32
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",  # `Checkpoints` says when
        "dataloader_pin_memory": False,
    }


class LossProgress(ProgressCallback):
    """A progress bar with the last loss in it, instead of a printed line at every step."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show the loss beside the bar."""
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")


class Checkpoints(TrainerCallback):
    """Has the trainer save its state at a `Pace` and after the last step; keeps the last one that is whole."""

    def __init__(self, folder: Path, work: Work) -> None:
        self.folder, self.work, self.pace = folder, work, Pace()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint when it is time."""
        control.should_save = self.pace.due() or state.global_step == state.max_steps

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Declare the checkpoint whole, delete those before it, and stop if DVC is gone."""
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
    """Return the last checkpoint that was written to its end; the others are deleted, with a word."""
    found: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*"):
        if _is_whole(path):
            found.append((int(path.name.rpartition("-")[2]), path))
        else:
            click.echo(f"{path}: the checkpoint is not whole, and is left out", err=True)
            shutil.rmtree(path)
    return max(found)[1] if found else None


def _is_whole(checkpoint: Path) -> bool:
    try:
        hashes = read_json(checkpoint / WHOLE_FILE)
        return all(sha256(checkpoint / name) == value for name, value in hashes.items())
    except (InputError, OSError):
        return False


class LengthGroups(Sampler[int]):
    """Rows of like length together, in another order each epoch, which follows from the seed and the epoch alone.

    The one of transformers draws from the global random state, which is another one in a run that goes on. The order of
    the first epoch is the same as there.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        torch.empty((), dtype=torch.int64).random_(generator=generator)  # there the data loader draws before it
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))

    def set_epoch(self, epoch: int) -> None:
        """Set which epoch comes next."""
        self.epoch = epoch


class Resumable(Trainer):
    """A mixin before a trainer: it goes on from a checkpoint to the same bytes.

    Its checkpoints hold what it trains, and nothing else of the model.
    """

    def __init__(self, model: Any, **kwargs: Any) -> None:
        if getattr(model, "is_loaded_in_4bit", False):
            # TRL would round the adapters of such a model to bfloat16, in which small updates are lost.
            model.is_loaded_in_4bit = False
        super().__init__(model=model, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        rows: Any = train_dataset or self.train_dataset
        return LengthGroups(list(rows["length"]), size, self.args.seed)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the parameters that are trained."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file({key: value.detach().cpu().contiguous() for key, value in self._trained()}, folder / TRAINED_FILE)

    @torch.no_grad()
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        tensors = load_file(Path(resume_from_checkpoint) / TRAINED_FILE)
        for key, parameter in self._trained():
            parameter.copy_(tensors[key])
        # TRL counts the tokens that it has seen, for its log, and begins again from 0.
        log = read_json(Path(resume_from_checkpoint) / TRAINER_STATE_NAME)["log_history"]
        self._total_train_tokens = int(max((entry.get("num_tokens", 0) for entry in log), default=0))

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        assert isinstance(self.model, torch.nn.Module)
        return [(key, parameter) for key, parameter in self.model.named_parameters() if parameter.requires_grad]


def train(trainer: Resumable, history: Path, work: Work | None = None) -> None:
    """Train behind a quiet progress bar, then write the history.

    With `work` the trainer's `output_dir` is a folder in it: training goes on from the last checkpoint there.
    """
    for callback in (PrinterCallback, ProgressCallback):  # which of them is there depends on the log level
        trainer.remove_callback(callback)
    progress = LossProgress()
    trainer.add_callback(progress)
    last = None
    if work is not None:
        folder = Path(str(trainer.args.output_dir))
        trainer.add_callback(Checkpoints(folder, work))
        last = last_checkpoint(folder)
        if last is not None:
            state = read_json(last / TRAINER_STATE_NAME)
            click.echo(f"{work.stage}: {folder.name} goes on after step {state['global_step']} of {state['max_steps']}")
            if state["global_step"] >= state["max_steps"]:
                # Where the last epoch is a part of one, transformers would do one step more.
                trainer.state = TrainerState.load_from_json(str(last / TRAINER_STATE_NAME))
                trainer._load_from_checkpoint(str(last))
                write_history(trainer, history)
                return
    try:
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    finally:
        if progress.training_bar is not None:
            progress.training_bar.close()  # what is said of an error begins a line of its own
    write_history(trainer, history)


def write_history(trainer: Trainer, path: Path) -> None:
    """Write the trainer's log, a row an optimizer step, as CSV for `dvc plots`; without timings."""
    rows = [
        {key: value for key, value in entry.items() if not any(word in key for word in _UNSTABLE)}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    # A checkpoint keeps the entries, not the order of their keys.
    write_csv(path, [{"step": row.pop("step"), "loss": row.pop("loss"), **dict(sorted(row.items()))} for row in rows])
