"""Train the reward model with TRL's trainer, on tokenized pairs and on replies that break off."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from peft import PeftModel
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer

from align.core.errors import InputError
from align.core.rows import PreferencePair, ScoredPair
from align.core.split import conversation_key
from align.models.adapters import LoraSettings
from align.models.full import Trained, is_full, start_model
from align.models.packing import pack
from align.models.stack import AdapterStack
from align.models.tokenization import encode_completion, encode_prompt
from align.reward.scoring import packed_scorer
from align.run.runtime import RuntimeSettings
from align.run.work import Work
from align.training.settings import TrainingSettings
from align.training.trainer import LoraPlus, taken, train, training_arguments
from align.training.validation import GROUP, dataset_of

KEPT = (0.3, 0.9)  # the share of its tokens that a truncated reply keeps is drawn from this range

CUT_SHARES = (0.5, 0.8)  # where held-out replies are cut to measure what that costs


class RewardModelSettings(TrainingSettings):
    """Section `reward_model` of params.yaml."""

    init: Literal["base", "m0"]
    use_margin: bool
    truncated_negatives: int = Field(ge=0)
    loraplus_lr_ratio: float = Field(ge=1)


@dataclass(frozen=True)
class EncodedPair:
    """Token ids of a pair; both replies end with an EOS."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def encode_pairs(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair]) -> list[EncodedPair]:
    """Return the token ids of each pair."""
    return [
        EncodedPair(
            encode_prompt(tokenizer, pair.messages),
            encode_completion(tokenizer, pair.chosen),
            encode_completion(tokenizer, pair.rejected),
        )
        for pair in pairs
    ]


def truncated(reply: list[int], share: float) -> list[int] | None:
    """Return a reply that breaks off after about `share` of its tokens, with its EOS; None if it has fewer than two.

    The kept tokens are at least one and not all.
    """
    *tokens, eos = reply
    if len(tokens) < 2:
        return None
    return [*tokens[: min(max(1, round(share * len(tokens))), len(tokens) - 1)], eos]


def training_rows(
    pairs: Sequence[PreferencePair], encoded: Sequence[EncodedPair], settings: RewardModelSettings, seed: int
) -> list[dict[str, Any]]:
    """Return rows for `RewardModelTrainer`: a conversation with each reply, and the chosen one truncated.

    Where a chosen reply breaks off depends on the seed and the pair's id alone. Replies of one token have no truncated
    ones.
    """
    rows: list[dict[str, Any]] = []
    for pair, ids in zip(pairs, encoded, strict=True):
        if settings.use_margin and pair.margin is None:
            raise InputError(f"reward_model.use_margin: pair {pair.id} has no margin; set it to false")
        generator = random.Random(f"{seed} {pair.id}")
        cut = [truncated(ids.chosen, generator.uniform(*KEPT)) for _ in range(settings.truncated_negatives)]
        rows.append(
            {
                "chosen_ids": ids.prompt + ids.chosen,
                "rejected_ids": ids.prompt + ids.rejected,
                "truncated_ids": [ids.prompt + reply for reply in cut if reply is not None],
                "margin": pair.margin if settings.use_margin else 0.0,
                GROUP: conversation_key(pair.messages),
                "length": len(ids.prompt) + max(len(ids.chosen), len(ids.rejected)),
            }
        )
    return rows


class RewardModelTrainer(LoraPlus, RewardTrainer):
    """TRL's trainer with our checkpoints and two rates, on rows of `training_rows`.

    The replies of a pair share the prompt, and truncated ones all but their EOS, so they are packed into one sequence.
    """

    def __init__(
        self,
        model: Trained,
        loraplus_lr_ratio: float,
        rows: Sequence[dict[str, Any]],
        held_out: Sequence[dict[str, Any]] = (),
        **kwargs: Any,
    ):
        super().__init__(
            model=model,
            loraplus_lr_ratio=loraplus_lr_ratio,
            train_dataset=Dataset.from_list(list(rows)),
            eval_dataset=dataset_of(held_out),
            data_collator=lambda batch: {"pairs": batch},
            **kwargs,
        )

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Return the mean over the pairs of the loss of each.

        That is -logsigmoid(chosen - rejected - margin) (Bradley-Terry), and with truncated replies t the mean of it and
        of -logsigmoid(chosen - t).
        """
        losses, margins = [], []
        for row in inputs["pairs"]:
            chosen, *others = self._scores(model, [row["chosen_ids"], row["rejected_ids"], *row["truncated_ids"]])
            gaps = chosen - torch.stack(others)
            required = torch.tensor([row["margin"]] + [0.0] * (len(others) - 1), device=gaps.device)
            losses.append(-logsigmoid(gaps - required).mean())
            margins.append(float(gaps[0].detach()))
        metrics = self._metrics["train" if model.training else "eval"]  # which TRL logs
        metrics["accuracy"].append(sum(margin > 0 for margin in margins) / len(margins))
        metrics["margin"].append(sum(margins) / len(margins))
        return torch.stack(losses).mean()

    def measures(self, batch: Any) -> dict[str, tuple[float, int]]:
        """Return the loss of pairs, and how often the chosen reply scores higher."""
        loss, pairs = float(self.compute_loss(self.model, batch)), len(batch["pairs"])
        return {"loss": (loss, pairs), "accuracy": (taken(self._metrics["eval"], "accuracy"), pairs)}

    def _scores(self, model: Trained, rows: list[list[int]]) -> Tensor:
        packed = pack(rows)
        classifier: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16):
            hidden = classifier.base_model(**packed.inputs(self.args.device, classifier.dtype), use_cache=False)[0]
        scores: Tensor = classifier.score(hidden[0, packed.last.to(self.args.device)])
        return scores[:, 0].float()


def reward_start(base: Path, init: Path, runtime: RuntimeSettings, lora: LoraSettings | None) -> Trained:
    """Return a model to train with a new score head, which starts as `init`; see `start_model`."""
    if init != base and is_full(init) != (lora is None):
        raise InputError(
            f"{init}: section lora of params.yaml has changed since it was trained; run `dvc repro sft` first"
        )
    return start_model(base, init, runtime, lora, score=True)


def fit(
    model: Trained,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    held_out: Sequence[dict[str, Any]],
    runtime: RuntimeSettings,
    settings: RewardModelSettings,
    seed: int,
    history: Path,
    folder: Path,
    work: Work | None = None,
) -> dict[str, Any]:
    """Train `model` on `training_rows`, see `train`; checkpoints go to `folder` in `work`."""
    arguments = training_arguments(
        settings, folder, seed, runtime, order="random", full=not isinstance(model, PeftModel)
    )
    trainer = RewardModelTrainer(
        model,
        settings.loraplus_lr_ratio,
        rows,
        held_out,
        args=RewardConfig(**arguments, max_length=None),
        processing_class=tokenizer,
    )
    return train(trainer, history, work, settings)


def score_pairs(stack: AdapterStack, pairs: Sequence[PreferencePair], description: str) -> list[ScoredPair]:
    """Score the replies of each pair with the stack's model `reward`, and the chosen one cut at `CUT_SHARES`."""
    scored = []
    encoded = encode_pairs(stack.tokenizer, pairs)
    with packed_scorer(stack, "reward") as score:
        for pair, ids in zip(pairs, tqdm(encoded, desc=description, unit="pair"), strict=True):
            cut = [reply for share in CUT_SHARES if (reply := truncated(ids.chosen, share)) is not None]
            chosen, rejected, *others = score([ids.prompt + reply for reply in (ids.chosen, ids.rejected, *cut)])
            scored.append(
                ScoredPair(
                    id=pair.id,
                    chosen_score=chosen,
                    rejected_score=rejected,
                    truncated_scores=others,
                    chosen_tokens=len(ids.chosen),
                    rejected_tokens=len(ids.rejected),
                )
            )
    return scored
