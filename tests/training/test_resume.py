"""Training that is stopped after any step and begun again: the same bytes as training that was not."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from transformers import TrainerCallback, TrainingArguments
from trl import DPOConfig, RewardConfig, SFTConfig

from align.core.params import Params
from align.core.rows import Instruction, Judgement, Message, PreferencePair, UnpairedPreference, read_rows
from align.dpo.kto import batched, encode_replies, kto_trainer
from align.dpo.settings import DPOSettings
from align.dpo.training import TokenizedDPOTrainer
from align.judge.trainer import JudgeTrainer, judged_questions
from align.models.adapters import LoraSettings
from align.models.base import load_base, load_tokenizer
from align.models.full import load_full
from align.reward.training import (
    RewardModelSettings,
    RewardModelTrainer,
    encode_pairs,
    reward_start,
    training_rows,
)
from align.run.runtime import RuntimeSettings
from align.run.work import Work
from align.training.settings import TrainingSettings
from align.training.sft import ResumableSFTTrainer, encode_instruction
from align.training.trainer import Resumable, last_checkpoint, train, training_arguments
from align.training.validation import GROUP, dataset_of
from tests.committed import COMMITTED, PARAMS_YAML, committed_params

# Two passes, dropout, batches of several steps: whatever a checkpoint could forget takes part.
SETTINGS = TrainingSettings(
    learning_rate=1e-2,
    lr_scheduler_type="cosine",
    warmup_steps=0.2,
    num_train_epochs=2,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
    max_grad_norm=1.0,
    max_length=512,
    gradient_checkpointing=False,
    eval_fraction=0.0,
    eval_steps=0.1,
    early_stopping_patience=None,
    load_best_model_at_end=False,
)
STEPS = 6
LORA = LoraSettings(r=4, lora_alpha=8, lora_dropout=0.2, target_modules="all-linear", layers_to_transform=None)
ROWS = 11
HELD_OUT = 4  # more, where SETTINGS has an eval_fraction


class Stopped(Exception):
    """Stands for a kill."""


class StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Stopped


def adapter(base: Path, runtime: RuntimeSettings) -> PeftModel:
    return PeftModel(load_base(base, runtime), LORA.config(task_type="CAUSAL_LM"))


def count() -> int:
    return ROWS + HELD_OUT * (SETTINGS.eval_fraction > 0)


def instructions() -> list[Instruction]:
    return read_rows(COMMITTED / "data/seed/instructions.jsonl", Instruction)[: count()]


def sft(base: Path, runtime: RuntimeSettings, folder: Path) -> Resumable:
    tokenizer = load_tokenizer(base)
    rows = [encode_instruction(tokenizer, row.messages, row.completion) for row in instructions()]
    arguments = training_arguments(SETTINGS, folder, 3, runtime)
    return ResumableSFTTrainer(
        model=get_peft_model(load_base(base, runtime), LORA.config(task_type="CAUSAL_LM")),
        args=SFTConfig(**arguments, max_length=None, completion_only_loss=True),
        train_dataset=Dataset.from_list(rows[:ROWS]),
        eval_dataset=dataset_of(rows[ROWS:]),
        processing_class=tokenizer,
    )


def sft_full(base: Path, runtime: RuntimeSettings, folder: Path) -> Resumable:
    tokenizer = load_tokenizer(base)
    rows = [encode_instruction(tokenizer, row.messages, row.completion) for row in instructions()]
    arguments = training_arguments(SETTINGS, folder, 3, runtime, full=True)
    return ResumableSFTTrainer(
        model=load_full(base, runtime),
        args=SFTConfig(**arguments, max_length=None, completion_only_loss=True),
        train_dataset=Dataset.from_list(rows[:ROWS]),
        eval_dataset=dataset_of(rows[ROWS:]),
        processing_class=tokenizer,
    )


def eft(base: Path, runtime: RuntimeSettings, folder: Path) -> Resumable:
    judgements = read_rows(COMMITTED / "data/seed/judgements.jsonl", Judgement)
    questions = judged_questions(load_tokenizer(base), judgements[: 4 * ROWS])
    questions = [
        question | {"requests": question["requests"][:2], "scores": question["scores"][:2]} for question in questions
    ]
    questions = (questions * 2)[: count()]
    model = get_peft_model(load_base(base, runtime), LORA.config(task_type="CAUSAL_LM"))
    arguments = training_arguments(SETTINGS, folder, 3, runtime, order="random")
    return JudgeTrainer(model, TrainingArguments(**arguments), questions[:ROWS], 1.0, 16.0, questions[ROWS:])


def dpo(base: Path, runtime: RuntimeSettings, folder: Path) -> Resumable:
    tokenizer = load_tokenizer(base)
    pairs = [encode_instruction(tokenizer, row.messages, row.completion) for row in instructions()]
    rows = [
        {
            "prompt_ids": [i for i, m in zip(row["input_ids"], row["completion_mask"], strict=True) if not m],
            "chosen_ids": [i for i, m in zip(row["input_ids"], row["completion_mask"], strict=True) if m],
            "rejected_ids": row["input_ids"][-5:],
        }
        for row in pairs
    ]
    # As stage dpo has them.
    losses: dict[str, Any] = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}
    arguments = training_arguments(SETTINGS, folder, 3, runtime, order="random") | losses
    return TokenizedDPOTrainer(
        nll_coef=0.5,
        model=get_peft_model(load_base(base, runtime), LORA.config(task_type="CAUSAL_LM")),
        args=DPOConfig(**arguments, max_length=None, precompute_ref_log_probs=True),
        train_dataset=Dataset.from_list(rows[:ROWS]),
        eval_dataset=dataset_of(rows[ROWS:]),
        processing_class=tokenizer,
    )


def kto(base: Path, runtime: RuntimeSettings, folder: Path) -> Resumable:
    tokenizer = load_tokenizer(base)
    rows = encode_replies(
        tokenizer,
        [
            UnpairedPreference.model_validate({"prompt": row.prompt, "completion": row.completion, "label": i % 3 == 0})
            for i, row in enumerate(instructions())
        ],
    )
    values = committed_params()["dpo"] | SETTINGS.model_dump() | {"loss_type": ["kto"], "undesirable_weight": 0.7}
    settings = DPOSettings.model_validate(values)
    rows = [{key: value for key, value in row.items() if key != GROUP} for row in rows]
    return kto_trainer(
        get_peft_model(load_base(base, runtime), LORA.config(task_type="CAUSAL_LM")),
        tokenizer,
        batched(rows[:ROWS], settings, 3),
        batched(rows[ROWS:], settings, 3),
        settings,
        training_arguments(SETTINGS, folder, 3, runtime, order="sequential"),
    )


def reward(base: Path, runtime: RuntimeSettings, folder: Path) -> Resumable:
    tokenizer = load_tokenizer(base)
    pairs = [
        PreferencePair(
            id=row.id,
            messages=[Message(role="user", content=row.prompt)],
            chosen=row.completion,
            rejected=row.completion[: len(row.completion) // 2],
        )
        for row in instructions()
    ]
    arguments = training_arguments(SETTINGS, folder, 3, runtime, order="random")
    params = Params.read(PARAMS_YAML).section("reward_model", RewardModelSettings)
    settings = params.model_copy(update={"truncated_negatives": 1})
    rows = training_rows(pairs, encode_pairs(tokenizer, pairs), settings, seed=3)
    return RewardModelTrainer(
        reward_start(base, base, runtime, LORA),
        4.0,
        rows[:ROWS],
        rows[ROWS:],
        args=RewardConfig(**arguments, max_length=None),
        processing_class=tokenizer,
    )


MAKERS: dict[str, Callable[[Path, RuntimeSettings, Path], Resumable]] = {
    "sft": sft,
    "sft of all weights": sft_full,
    "eft": eft,
    "dpo": dpo,
    "kto": kto,
    "reward": reward,
}


@pytest.fixture
def work(tmp_path: Path, runtime: RuntimeSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("ALIGN_CHECKPOINT_SECONDS", "0")
    with suppress(Stopped), Work("sft", Params.read(PARAMS_YAML), runtime, []) as work:
        yield work
        raise Stopped


def make(name: str, base: Path, runtime: RuntimeSettings, folder: Path) -> Resumable:
    torch.manual_seed(0)
    return MAKERS[name](base, runtime, folder)


def trained(trainer: Resumable, history: Path) -> tuple[dict[str, torch.Tensor], bytes]:
    assert isinstance(trainer.model, torch.nn.Module)
    parameters = {key: value.detach() for key, value in trainer.model.named_parameters() if value.requires_grad}
    return parameters, history.read_bytes()


@pytest.mark.parametrize("name", MAKERS)
def test_training_that_goes_on_after_any_step_ends_in_the_same_bytes(
    name: str, tiny_base: Path, runtime: RuntimeSettings, work: Work, tmp_path: Path
) -> None:
    history = tmp_path / "history.csv"
    plain = make(name, tiny_base, runtime, tmp_path / "plain")
    train(plain, history)
    assert plain.state.global_step == STEPS
    weights, rows = trained(plain, history)
    begun = {key: value.clone() for key, value in trained(make(name, tiny_base, runtime, tmp_path), history)[0].items()}
    assert any(not torch.equal(weights[key], begun[key]) for key in weights)

    # Before and after the first step and the end of the first epoch, and at the last step.
    for step in (1, 2, 3, 4, STEPS):
        folder = work.folder / str(step)
        stopped = make(name, tiny_base, runtime, folder)
        stopped.add_callback(StopAfter(step))
        # Callbacks run in order, and that of `train` comes last: the checkpoint of this step is not declared whole.
        with pytest.raises(Stopped):
            train(stopped, history, work)
        torch.rand(7)  # whatever else has drawn from the global state
        again = make(name, tiny_base, runtime, folder)
        train(again, history, work)
        found, found_rows = trained(again, history)
        assert all(torch.equal(weights[key], found[key]) for key in weights), step
        assert found_rows == rows, step


@pytest.mark.parametrize("epochs", [2, 0.5])
def test_training_that_had_ended_is_not_done_again(
    epochs: float,
    tiny_base: Path,
    runtime: RuntimeSettings,
    work: Work,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A part of an epoch ends while there are rows left, and a constant rate would show one step more.
    part = {"num_train_epochs": epochs, "lr_scheduler_type": "constant"}
    monkeypatch.setattr(f"{__name__}.SETTINGS", SETTINGS.model_copy(update=part))
    folder, history = work.folder / "sft", tmp_path / "history.csv"
    first = make("sft", tiny_base, runtime, folder)
    train(first, history, work)
    expected = trained(first, history)

    second = make("sft", tiny_base, runtime, folder)
    monkeypatch.setattr(second, "training_step", None)  # cannot be called
    train(second, history, work)

    steps = first.state.max_steps
    assert f"sft resumes after step {steps} of {steps}" in capsys.readouterr().out
    weights, rows = trained(second, history)
    assert rows == expected[1]
    assert all(torch.equal(weights[key], expected[0][key]) for key in weights)


@pytest.mark.parametrize("damage", ["cut off", "missing", "not declared whole", "declared in half"])
def test_a_checkpoint_that_is_not_whole_is_left_out_with_a_word_and_the_one_before_it_is_taken(
    damage: str,
    tiny_base: Path,
    runtime: RuntimeSettings,
    work: Work,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = work.folder / "sft"
    train(make("sft", tiny_base, runtime, folder), tmp_path / "history.csv", work)
    whole = last_checkpoint(folder)
    assert whole == folder / f"checkpoint-{STEPS}"
    later = Path(shutil.copytree(whole, folder / f"checkpoint-{STEPS + 1}"))
    if damage == "cut off":
        weights = later / "trained.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "missing":
        (later / "optimizer.pt").unlink()
    elif damage == "not declared whole":
        (later / "whole.json").unlink()
    else:
        (later / "whole.json").write_text('{"optimizer.pt": "ab')

    assert last_checkpoint(folder) == whole
    assert f"{later}: the checkpoint is incomplete" in capsys.readouterr().err
    assert not later.exists()
