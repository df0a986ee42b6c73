"""Kahneman-Tversky optimization (KTO, arXiv 2402.01306): learns from replies that are desirable or not, without pairs.

The loss of a reply is 1 - sigmoid(beta (log-ratio - z)) if it is desirable and 1 - sigmoid(beta (z - log-ratio)) if
not, times its weight. z is the KL to the reference, estimated from replies to other prompts; no gradient runs through
it.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import KTOConfig, KTOTrainer

from align.core.errors import InputError
from align.core.rows import PreferencePair, UnpairedPreference
from align.core.split import conversation_key
from align.dpo.settings import DPOSettings
from align.models.full import Trained
from align.models.tokenization import encode_completion, encode_prompt
from align.training.settings import TrainingSettings
from align.training.trainer import LengthGroups, Resumable
from align.training.validation import GROUP, dataset_of


class TokenizedKTOTrainer(Resumable, KTOTrainer):
    """TRL's trainer on tokenized rows, each with the completion of another prompt for the KL term."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def measures(self, batch: Any) -> dict[str, tuple[float, int]]:
        """Return the loss of replies; that of each takes the z of its batch."""
        trainer: Any = self
        return {"loss": (float(trainer.compute_loss(self.model, batch)), len(batch["label"]))}


def encode_replies(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[PreferencePair | UnpairedPreference]
) -> list[dict[str, Any]]:
    """Return prompt, completion and label of each reply; a pair has a desirable reply and an undesirable one."""
    replies: list[dict[str, Any]] = []
    for row in rows:
        if isinstance(row, PreferencePair):
            sides = [
                (encode_completion(tokenizer, row.chosen, row.chosen_finish_reason), True),
                (encode_completion(tokenizer, row.rejected, row.rejected_finish_reason), False),
            ]
            prompt = row.messages
        else:
            sides = [(encode_completion(tokenizer, row.reply), row.label)]
            prompt = row.prompt
        prompt_ids = encode_prompt(tokenizer, prompt)
        replies += [
            {"prompt_ids": prompt_ids, "completion_ids": ids, "label": label, "length": len(prompt_ids) + len(ids)}
            | {GROUP: conversation_key(prompt)}
            for ids, label in sides
        ]
    return replies


def check_replies(rows: Sequence[dict[str, Any]], path: Path, max_length: int) -> None:
    """Raise `InputError` unless rows of `path` have both labels and two different prompts."""
    fitting = f"{path}: of its rows to train on, of at most {max_length} tokens,"
    if missing := {True, False} - {row["label"] for row in rows}:
        [label] = missing
        raise InputError(
            f'{fitting} none has "label" {str(label).lower()}; KTO learns from desirable and undesirable replies: add '
            "the others, or raise max_length"
        )
    if all(row["prompt_ids"] == rows[0]["prompt_ids"] for row in rows):
        raise InputError(f"{fitting} all have one prompt; KTO's KL term takes replies to others: add rows of another")


def batched(rows: Sequence[dict[str, Any]], settings: TrainingSettings, seed: int) -> list[dict[str, Any]]:
    """Return rows in the order of training, the same in each epoch, with `KL_completion_ids`.

    TRL pairs the prompts of a micro-batch with each other's completions, and so do we: each row gets that of the row
    before it, the first that of the last. Unlike TRL, rows of the same prompt are passed over, such as the other reply
    of a pair: the two would match. Where a micro-batch has a single prompt, the search goes on in those before it.
    """
    if not rows:
        return []
    size = settings.per_device_train_batch_size
    lengths = [row["length"] for row in rows]
    rows = [rows[i] for i in LengthGroups(lengths, size * settings.gradient_accumulation_steps, seed)]
    found = []
    for i, row in enumerate(rows):
        start = i - i % size
        width = min(size, len(rows) - start)
        within = (start + (i - start - step) % width for step in range(1, width))
        before = ((start - step) % len(rows) for step in range(1, len(rows)))
        other = next(j for j in chain(within, before) if rows[j]["prompt_ids"] != row["prompt_ids"])
        found.append(row | {"KL_completion_ids": rows[other]["completion_ids"]})
    return found


def kto_trainer(
    policy: Trained,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    held_out: Sequence[dict[str, Any]],
    settings: DPOSettings,
    arguments: dict[str, Any],
) -> TokenizedKTOTrainer:
    """Return the trainer; it computes the log-probabilities of the reference, `policy` as it is now, once.

    Args:
        policy: the model to train.
        tokenizer: of the base.
        rows: of `batched`.
        held_out: rows to measure on, likewise.
        settings: weights and beta.
        arguments: of `training_arguments`, in the order of the rows.
    """
    return TokenizedKTOTrainer(
        model=policy,
        args=KTOConfig(
            **arguments,
            **settings.model_dump(include={"beta", "desirable_weight", "undesirable_weight"}),
            max_length=settings.max_length,  # no row is longer, but a prompt with another's completion may be
            precompute_ref_log_probs=True,
        ),
        train_dataset=Dataset.from_list(list(rows)),
        eval_dataset=dataset_of(held_out),
        processing_class=tokenizer,
    )
