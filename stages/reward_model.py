"""Train a reward model on human preferences: models/base + data/prepared/preferences -> models/reward.

The loss is -logsigmoid(chosen - rejected) (Bradley-Terry); the adapter and its score head are saved together, with the
bias that makes the mean score of reference answers 0. A run that was killed goes on from its last checkpoint.
Run with `python -m stages.reward_model`.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer

from align.core.errors import InputError
from align.core.files import replacing, write_csv, write_json
from align.core.params import Params
from align.core.rows import PreferencePair, ScoredPair, read_rows, write_rows
from align.judge.asking import reward_scores
from align.models.base import (
    SCORE_FILE,
    AdapterStack,
    LoraSettings,
    copy_tokenizer,
    load_base,
    load_tokenizer,
    new_adapter,
    save_adapter,
    write_model_card,
)
from align.models.tokenization import drop_too_long, encode_completion, encode_prompt
from align.reward.report import calibration, reward_report
from align.run.locks import hold_devices
from align.run.runtime import RuntimeSettings, start
from align.run.work import Work
from align.training.trainer import Resumable, TrainingSettings, train

# Chosen replies of the training pairs whose mean score becomes 0: enough for a mean within a tenth of a deviation.
CENTERING_ROWS = 128


class RewardModelSettings(TrainingSettings):
    """Section `reward_model` of params.yaml."""

    use_margin: bool


class ResumableRewardTrainer(Resumable, RewardTrainer):
    """TRL's, with checkpoints of our own."""


def encode_pairs(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair]) -> list[dict[str, list[int]]]:
    """Return token ids of both sides of each pair, each a whole conversation that ends with EOS."""
    rows = []
    for pair in pairs:
        prompt = encode_prompt(tokenizer, pair.messages)
        sides = {"chosen_ids": pair.chosen, "rejected_ids": pair.rejected}
        rows.append({key: prompt + encode_completion(tokenizer, text) for key, text in sides.items()})
    return rows


def training_rows(
    pairs: Sequence[PreferencePair], encoded: Sequence[dict[str, list[int]]], use_margin: bool
) -> list[dict[str, Any]]:
    """Return rows as TRL takes them; with `use_margin` the loss is -logsigmoid(chosen - rejected - margin).

    Raises:
        InputError: margins are asked for, and a pair has none.
    """
    rows: list[dict[str, Any]] = []
    for pair, ids in zip(pairs, encoded, strict=True):
        row = {**ids, "length": max(map(len, ids.values()))}
        if use_margin:
            if pair.margin is None:
                raise InputError(f"reward_model.use_margin: pair {pair.id} has no margin; set it to false")
            row["margin"] = pair.margin
        rows.append(row)
    return rows


def fit(
    base: Path,
    rows: Sequence[dict[str, Any]],
    runtime: RuntimeSettings,
    lora: LoraSettings,
    settings: RewardModelSettings,
    seed: int,
    history: Path,
    folder: Path,
    work: Work | None = None,
    **arguments: Any,
) -> RewardTrainer:
    """Train an adapter and its head on `training_rows`, write the history, and return the finished trainer.

    `folder`, in `work`, is for checkpoints. `arguments` overrule what the settings say, in the words of
    `trl.RewardConfig`.
    """
    sequence_model = load_base(base, runtime, AutoModelForSequenceClassification, num_labels=1)
    settled = settings.arguments(folder, seed, runtime)
    trainer = ResumableRewardTrainer(
        model=new_adapter(sequence_model, lora, task_type="SEQ_CLS", modules_to_save=["score"]),
        args=RewardConfig(**settled | {"max_length": None} | arguments),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=load_tokenizer(base),
    )
    train(trainer, history, work)
    return trainer


def score_pairs(
    stack: AdapterStack, pairs: Sequence[PreferencePair], batch_size: int, description: str
) -> list[ScoredPair]:
    """Score both replies of each pair with the stack's model `reward`."""
    rows = encode_pairs(stack.tokenizer, pairs)
    chosen, rejected = (
        reward_scores(
            stack, "reward", [row[key] for row in rows], batch_size=batch_size, description=f"{description}, {key[:-4]}"
        )
        for key in ("chosen_ids", "rejected_ids")
    )
    return [
        ScoredPair(
            id=pair.id,
            chosen_score=chosen[i],
            rejected_score=rejected[i],
            chosen_tokens=len(encode_completion(stack.tokenizer, pair.chosen)),
            rejected_tokens=len(encode_completion(stack.tokenizer, pair.rejected)),
        )
        for i, pair in enumerate(pairs)
    ]


@click.command(help=__doc__)
@click.option("--base", type=click.Path(path_type=Path), default="models/base", show_default=True)
@click.option(
    "--train",
    "train_path",
    type=click.Path(path_type=Path),
    default="data/prepared/preferences/train.jsonl",
    show_default=True,
)
@click.option(
    "--test",
    "test_path",
    type=click.Path(path_type=Path),
    default="data/prepared/preferences/test.jsonl",
    show_default=True,
)
@click.option("--out", type=click.Path(path_type=Path), default="models/reward", show_default=True)
@click.option("--report", type=click.Path(path_type=Path), default="data/reward", show_default=True)
@click.option("--metrics", type=click.Path(path_type=Path), default="data/metrics/reward.json", show_default=True)
def main(base: Path, train_path: Path, test_path: Path, out: Path, report: Path, metrics: Path) -> None:
    params = Params.read()
    runtime = params.section("runtime", RuntimeSettings)
    lora = params.section("lora", LoraSettings)
    settings = params.section("reward_model", RewardModelSettings)
    start(runtime, params.seed)
    tokenizer = load_tokenizer(base)
    pairs = read_rows(train_path, PreferencePair)
    test_pairs = read_rows(test_path, PreferencePair)  # before training: a bad row costs no hours
    rows = training_rows(pairs, encode_pairs(tokenizer, pairs), settings.use_margin)
    rows, dropped = drop_too_long(rows, [row["length"] for row in rows], settings.max_length, "reward_model.max_length")

    hold_devices("reward_model", runtime)
    with Work("reward_model", params, runtime, [base, train_path, test_path]) as work:
        folder = work.folder / "reward"
        trainer = fit(base, rows, runtime, lora, settings, params.seed, report / "history.csv", folder, work)
        assert isinstance(trainer.model, PeftModel)
        with replacing(out) as temporary:
            save_adapter(trainer.model, temporary)
            copy_tokenizer(base, temporary)
            write_model_card(temporary, "reward_model", {"base": base}, {"preferences": train_path}, params, runtime)
            del trainer
            # What follows measures what was written, not what was in memory.
            stack = AdapterStack(base, runtime)
            stack.add("reward", temporary)
            references = [row["chosen_ids"] for row in rows[:CENTERING_ROWS]]
            scores = reward_scores(
                stack, "reward", references, batch_size=runtime.batch_size, description="reference answers"
            )
            bias = -math.fsum(scores) / len(scores)
            write_json(temporary / SCORE_FILE, {"score_bias": bias})
            stack.heads["reward"] = replace(stack.heads["reward"], bias=bias)
            held_out = score_pairs(stack, test_pairs, runtime.batch_size, "held-out pairs")
        summary = reward_report(held_out)
        write_rows(report / "test_scores.jsonl", held_out)
        write_csv(report / "calibration.csv", calibration(held_out))
        write_json(metrics, {"train_pairs": len(rows), "dropped_too_long": dropped} | summary)
    click.echo(
        f"reward_model: {len(rows)} pairs, {dropped} dropped as longer than {settings.max_length} tokens, held-out "
        f"accuracy {summary['accuracy']:.2f} [{summary['accuracy_low']:.2f}, {summary['accuracy_high']:.2f}] on "
        f"{summary['pairs']}"
    )


if __name__ == "__main__":
    main()
