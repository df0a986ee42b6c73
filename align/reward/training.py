"""Train the reward model with TRL's trainer on tokenized rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer

from align.core.errors import InputError
from align.core.rows import PreferencePair, ScoredPair
from align.models.adapters import LoraSettings, new_adapter
from align.models.base import load_base, load_tokenizer
from align.models.stack import AdapterStack
from align.models.tokenization import encode_completion, encode_prompt
from align.reward.scoring import reward_scores
from align.run.runtime import RuntimeSettings
from align.run.work import Work
from align.training.settings import TrainingSettings
from align.training.trainer import Resumable, train, training_arguments


class RewardModelSettings(TrainingSettings):
    """Section `reward_model` of params.yaml."""

    use_margin: bool


class ResumableRewardTrainer(Resumable, RewardTrainer):
    """TRL's trainer with our checkpoints."""


def encode_pairs(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair]) -> list[dict[str, list[int]]]:
    """Return token ids of both sides of each pair, each a whole conversation with an EOS."""
    rows = []
    for pair in pairs:
        prompt = encode_prompt(tokenizer, pair.messages)
        sides = {"chosen_ids": pair.chosen, "rejected_ids": pair.rejected}
        rows.append({key: prompt + encode_completion(tokenizer, text) for key, text in sides.items()})
    return rows


def training_rows(
    pairs: Sequence[PreferencePair], encoded: Sequence[dict[str, list[int]]], use_margin: bool
) -> list[dict[str, Any]]:
    """Return rows for TRL; with `use_margin` the loss is -logsigmoid(chosen - rejected - margin)."""
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
    """Train an adapter and its head on `training_rows`, write the history, and return the trainer.

    Checkpoints go to `folder` in `work`. `arguments`, those of `trl.RewardConfig`, override the settings.
    """
    sequence_model = load_base(base, runtime, AutoModelForSequenceClassification, num_labels=1)
    settled = training_arguments(settings, folder, seed, runtime)
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
