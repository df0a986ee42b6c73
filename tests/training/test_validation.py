"""Rows held out of training: which, that nothing learns from them, what they measure, and resuming with them."""

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase, TrainerCallback

from align.core.errors import InputError
from align.core.rows import Instruction, Judgement, Message, PreferencePair, write_rows
from align.core.split import split_by_group
from align.dpo.kto import TokenizedKTOTrainer
from align.dpo.training import TokenizedDPOTrainer
from align.judge.trainer import JudgeTrainer
from align.models.base import load_tokenizer
from align.reward.training import RewardModelTrainer
from align.run.runtime import RuntimeSettings
from align.run.work import Work
from align.training.settings import TrainingSettings
from align.training.sft import ResumableSFTTrainer
from align.training.trainer import BEST_FILE, Resumable, last_checkpoint, train
from align.training.validation import GROUP, Evaluations, described, hold_out
from stages import offline_dpo, reward_model, sft
from tests.committed import write_params
from tests.training.test_resume import HELD_OUT, MAKERS, SETTINGS, STEPS, StopAfter, Stopped, make, trained, work

__all__ = ["work"]  # a fixture
ACCURACY = {"sft": "mean_token_accuracy", "eft": "pairwise_accuracy", "dpo": "rewards/accuracies", "reward": "accuracy"}
ACCURACY |= {"sft of all weights": "mean_token_accuracy"}  # KTO has none
EVALUATED = SETTINGS.model_copy(update={"eval_fraction": 0.2, "eval_steps": 1})


def rows_of(groups: list[str]) -> list[dict[str, Any]]:
    return [{GROUP: group, "id": i, "length": (7 * i) % 5} for i, group in enumerate(groups)]


def ids(rows: list[dict[str, Any]]) -> list[int]:
    return [row["id"] for row in rows]


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=30), st.floats(0.01, 0.99), st.integers(0, 99))
def test_each_conversation_is_on_one_side_and_neither_side_is_empty(
    groups: list[str], fraction: float, seed: int
) -> None:
    settings = SETTINGS.model_copy(update={"eval_fraction": fraction})
    if len(set(groups)) < 2:
        with pytest.raises(InputError, match=r"dpo\.eval_fraction: .* two different prompts, found 1 .* set it to 0"):
            hold_out(rows_of(groups), settings, seed, "dpo")
        return
    kept, held_out = hold_out(rows_of(groups), settings, seed, "dpo")
    sides = [{groups[i] for i in ids(part)} for part in (kept, held_out)]
    assert all(sides)
    assert not sides[0] & sides[1]
    assert sorted(ids(kept) + ids(held_out)) == list(range(len(groups)))
    assert ids(kept) == sorted(ids(kept))  # training's order is that of the rows
    assert all(row.keys() == {"id", "length"} for row in kept + held_out)


def test_without_a_fraction_nothing_is_held_out_and_a_single_conversation_will_do() -> None:
    kept, held_out = hold_out(rows_of(["a", "a"]), SETTINGS, 17, "sft")
    assert (ids(kept), held_out) == ([0, 1], [])


def test_the_side_of_a_conversation_follows_from_the_seed_and_its_prompt_alone() -> None:
    groups = [f"prompt {i}" for i in range(200)]
    _, few = hold_out(rows_of(groups[:100]), EVALUATED, 17, "sft")
    _, more = hold_out(rows_of(groups), EVALUATED, 17, "dpo")
    assert set(ids(few)) == {i for i in ids(more) if i < 100}
    _, other = hold_out(rows_of(groups), EVALUATED, 18, "dpo")
    assert set(ids(other)) != set(ids(more))


def test_what_the_test_split_left_in_the_training_rows_is_split_afresh() -> None:
    # By the same places, all of these would be above the fraction.
    left, _ = split_by_group([f"prompt {i}" for i in range(2000)], lambda text: text, 0.4, 17)
    _, held_out = hold_out(rows_of(left), EVALUATED, 17, "reward_model")
    assert 0.15 < len(held_out) / len(left) < 0.25


@pytest.mark.parametrize("change", [{"early_stopping_patience": 2}, {"load_best_model_at_end": True}])
def test_what_chooses_by_an_eval_loss_that_is_not_measured_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="where eval_fraction is 0"):
        TrainingSettings.model_validate(SETTINGS.model_dump() | change)
    TrainingSettings.model_validate(SETTINGS.model_dump() | change | {"eval_fraction": 0.1})


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([3.0], (3.0, 0, 0)),
        ([3.0, 2.0, 2.0, 2.5], (2.0, 1, 2)),
        ([3.0, float("nan"), 2.0], (2.0, 2, 0)),
        ([float("nan"), 3.0], (3.0, 1, 0)),
    ],
)
def test_the_best_evaluation_is_the_first_of_the_lowest_loss(losses: list[float], best: tuple[float, int, int]) -> None:
    log: list[dict[str, float]] = [{"step": i, "eval_loss": loss} for i, loss in enumerate(losses)]
    assert Evaluations.of([{"step": 9, "loss": 0.0}, *log]) == best


def texts_in(value: Any, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return all text in a batch of any trainer."""
    if isinstance(value, torch.Tensor):
        return texts_in(value.tolist(), tokenizer)
    if isinstance(value, dict):
        return " ".join(texts_in(part, tokenizer) for part in value.values())
    if isinstance(value, list) and value and all(isinstance(part, int) for part in value):
        return str(tokenizer.decode([part for part in value if 0 <= part < len(tokenizer)]))
    return " ".join(texts_in(part, tokenizer) for part in value) if isinstance(value, list) else ""


def asked(number: int) -> str:
    return f"What is q{number:02d}q?"


def pair_rows() -> list[PreferencePair]:
    # Two pairs a conversation, which are not neighbours.
    return [
        PreferencePair(
            id=f"p{i}",
            messages=[
                Message(role="system", content="Be short."),
                Message(role="user", content=asked(i % 12)),
                *(
                    [Message(role="assistant", content="A thing."), Message(role="user", content="Which?")]
                    if i >= 12
                    else []
                ),
            ],
            chosen=f"A pear {i}.",
            rejected="No.",
        )
        for i in range(24)
    ]


@pytest.fixture
def workspace(
    tmp_path: Path, tiny_base: Path, make_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path("models/base").symlink_to(tiny_base)
    Path("data/m0").mkdir(parents=True)
    write_rows(
        Path("data/m0/ift.jsonl"),
        [Instruction(id=f"i{i}", category="c", prompt=asked(i), completion="A pear.") for i in range(12)],
    )
    judgements = [
        Judgement(question_id=f"j{i}", category="c", prompt=asked(i), response=f"It is {score}.", score=score)
        for i in range(6, 18)
        for score in (1, 4)
    ]
    write_rows(Path("data/m0/eft.jsonl"), judgements)
    for name, rows in {"train": pair_rows(), "test": pair_rows()[:2]}.items():
        write_rows(Path(f"data/prepared/preferences/{name}.jsonl"), rows)
    Path("data/m0/known_prompts.jsonl").write_text('{"id": "b"}\n')


STAGES: dict[str, tuple[click.Command, dict[str, dict[str, Any]], set[str]]] = {
    "sft": (sft.main, {"sft": {"eft_share": 0.4}, "eft": {}}, {"JudgeTrainer", "ResumableSFTTrainer"}),
    "offline_dpo": (offline_dpo.main, {"offline_dpo": {}}, {"TokenizedDPOTrainer"}),
    "reward_model": (reward_model.main, {"reward_model": {"init": "base"}}, {"RewardModelTrainer"}),
}


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("name", STAGES)
def test_no_row_of_a_held_out_conversation_is_trained_on_and_every_row_is_on_a_side(
    name: str, make_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    main, sections, trainers = STAGES[name]
    if name == "offline_dpo":
        Path("models/m0").symlink_to(make_adapter("m0", 1))
    changes = {"eval_fraction": 0.3, "eval_steps": 0.5, "load_best_model_at_end": True}
    changes |= {"num_train_epochs": 1, "per_device_train_batch_size": 2, "max_length": 1024}
    write_params(Path(), {section: changes | more for section, more in sections.items()})
    tokenizer = load_tokenizer(Path("models/base"))
    learned: dict[str, str] = {}
    measured: dict[str, str] = {}
    step, evaluate = Resumable.training_step, Resumable.evaluate

    def spy(self: Resumable, model: Any, inputs: Any, *rest: Any) -> torch.Tensor:
        kind = type(self).__name__
        learned[kind] = learned.get(kind, "") + texts_in(inputs, tokenizer)
        result: torch.Tensor = step(self, model, inputs, *rest)
        return result

    def spy_too(self: Resumable, *args: Any, **kwargs: Any) -> dict[str, float]:
        rows: Any = self.eval_dataset
        measured[type(self).__name__] = texts_in(list(rows), tokenizer)
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(Resumable, "training_step", spy)
    monkeypatch.setattr(Resumable, "evaluate", spy_too)
    result = CliRunner().invoke(main, catch_exceptions=False)

    assert result.exit_code == 0, result.output
    assert learned.keys() == measured.keys() == trainers
    for kind in trainers:
        sides = [set(re.findall(r"q\d\dq", text[kind])) for text in (learned, measured)]
        assert all(sides), kind
        assert not sides[0] & sides[1], kind
        assert len(sides[0] | sides[1]) >= 12, kind
    assert result.output.count("held out, lowest eval_loss") == len(trainers)


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainingSettings]:
    """Return a function that sets what the trainers of test_resume.py are made with, and returns it."""

    def use(**changes: Any) -> TrainingSettings:
        settings = EVALUATED.model_copy(update=changes)
        monkeypatch.setattr("tests.training.test_resume.SETTINGS", settings)
        return settings

    return use


@pytest.mark.parametrize("name", MAKERS)
def test_evaluations_change_nothing_that_is_trained_and_measure_what_the_rows_give_one_by_one(
    name: str,
    tiny_base: Path,
    runtime: RuntimeSettings,
    tmp_path: Path,
    evaluated: Callable[..., TrainingSettings],
) -> None:
    plain = make(name, tiny_base, runtime, tmp_path / "plain")
    assert train(plain, tmp_path / "plain.csv") == {}
    settings = evaluated(eval_steps=4)
    trainer = make(name, tiny_base, runtime, tmp_path / "evaluated")
    found = train(trainer, tmp_path / "evaluated.csv", settings=settings)

    weights, _ = trained(plain, tmp_path / "plain.csv")
    same, _ = trained(trainer, tmp_path / "evaluated.csv")
    assert all(torch.equal(weights[key], same[key]) for key in weights)
    tables = []
    for history in ("plain", "evaluated"):
        with (tmp_path / f"{history}.csv").open(encoding="utf-8") as stream:
            tables.append(list(csv.DictReader(stream)))
    extra = tables[1][0].keys() - tables[0][0].keys()
    assert extra == {"eval_loss"} | ({f"eval_{ACCURACY[name]}"} if name in ACCURACY else set())
    assert [{key: row[key] for key in tables[0][0]} for row in tables[1]] == tables[0]
    # Every fourth step, and the last one.
    assert [row["step"] for row in tables[1] if row["eval_loss"]] == ["4", str(STEPS)]
    assert all(bool(row[key]) == bool(row["eval_loss"]) for row in tables[1] for key in extra)

    model: Any = trainer.model
    rows: Any = trainer.eval_dataset
    model.eval()  # LORA has dropout
    sums, counts = dict.fromkeys(extra, 0.0), dict.fromkeys(extra, 0)
    with torch.no_grad():
        size = trainer.args.per_device_train_batch_size if name == "kto" else 1  # whose z is that of a batch
        for start in range(0, len(rows), size):
            batch = [rows[i] for i in range(start, min(start + size, len(rows)))]
            for key, (value, count) in trainer.measures(trainer.data_collator(batch)).items():
                sums[f"eval_{key}"] += value * count
                counts[f"eval_{key}"] += count
    for key in extra:
        assert float(tables[1][-1][key]) == pytest.approx(sums[key] / counts[key], rel=1e-5, abs=1e-7)
    assert (found["eval_rows"], found["last_step"], found["weights_of_step"]) == (HELD_OUT, STEPS, STEPS)
    assert "4 held out" in described(found)


class Weights(TrainerCallback):
    """Notes the weights after every step."""

    def __init__(self, trainer: Resumable) -> None:
        self.trainer, self.after = trainer, dict[int, dict[str, torch.Tensor]]()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.after[state.global_step] = {key: value.detach().clone() for key, value in self.trainer._trained()}


@pytest.fixture
def worse_after_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the eval_loss rise from step 3 on, whatever is trained."""
    for kind in (ResumableSFTTrainer, JudgeTrainer, TokenizedDPOTrainer, TokenizedKTOTrainer, RewardModelTrainer):

        def raised(self: Resumable, batch: Any, measures: Any = kind.measures) -> dict[str, tuple[float, int]]:
            result: dict[str, tuple[float, int]] = measures(self, batch)
            loss, count = result["loss"]
            return result | {"loss": (loss + 100 * max(0, self.state.global_step - 2), count)}

        monkeypatch.setattr(kind, "measures", raised)


@pytest.mark.usefixtures("worse_after_2")
@pytest.mark.parametrize("name", MAKERS)
def test_training_that_stops_early_goes_on_after_any_kill_and_ends_in_the_best_weights_and_the_same_bytes(
    name: str,
    tiny_base: Path,
    runtime: RuntimeSettings,
    work: Work,
    tmp_path: Path,
    evaluated: Callable[..., TrainingSettings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = evaluated(early_stopping_patience=2, load_best_model_at_end=True)
    history = tmp_path / "history.csv"
    plain = make(name, tiny_base, runtime, tmp_path / "plain")
    seen = Weights(plain)
    plain.add_callback(seen)
    found = train(plain, history, settings=settings)
    weights, rows = trained(plain, history)
    best = found["best_step"]
    assert best in (1, 2)
    stop = best + 2
    assert (found["last_step"], found["weights_of_step"]) == (stop, best)
    assert list(seen.after) == list(range(1, stop + 1))
    assert all(torch.equal(weights[key], seen.after[best][key]) for key in weights)
    assert any(not torch.equal(weights[key], seen.after[stop][key]) for key in weights)

    # After the evaluation of a step and before its checkpoint is whole: `StopAfter` comes before `Checkpoints`.
    for step in range(best, stop + 1):
        folder = work.folder / str(step)
        stopped = make(name, tiny_base, runtime, folder)
        stopped.add_callback(StopAfter(step))
        with pytest.raises(Stopped):
            train(stopped, history, work, settings)
        again = make(name, tiny_base, runtime, folder)
        assert train(again, history, work, settings) == found, step
        same, same_rows = trained(again, history)
        assert all(torch.equal(weights[key], same[key]) for key in weights), step
        assert same_rows == rows, step

    # After the step that stopped it, the only one with a checkpoint.
    monkeypatch.setenv("ALIGN_CHECKPOINT_SECONDS", "1000")
    folder = work.folder / "once"
    train(make(name, tiny_base, runtime, folder), history, work, settings)
    checkpoint = last_checkpoint(folder)
    assert checkpoint is not None
    assert checkpoint.name == f"checkpoint-{stop}"
    assert (checkpoint / BEST_FILE).is_file()
    ended = make(name, tiny_base, runtime, folder)
    monkeypatch.setattr(ended, "training_step", None)  # cannot be called
    assert train(ended, history, work, settings) == found
    same, same_rows = trained(ended, history)
    assert all(torch.equal(weights[key], same[key]) for key in weights)
    assert same_rows == rows
