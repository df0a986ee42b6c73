"""Train the judge (EFT) to score the responses to a question, and to rank them.

The responses share the rubric and the question, so they are packed into one sequence. This gives the logits of separate
rows at less than half their cost.
"""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase, TrainingArguments

from align.core.errors import InputError
from align.core.rows import Judgement
from align.core.split import prompt_key
from align.judge.request import DIGITS, SCORE_PREFIX, judge_request
from align.models.full import Trained
from align.models.packing import pack
from align.models.tokenization import encode_choices
from align.training.trainer import LoraPlus
from align.training.validation import GROUP, dataset_of


def judged_questions(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Judgement]) -> list[dict[str, Any]]:
    """Return a training example for each question: the requests for all of its responses, and their scores.

    Each digit must be one token.
    """
    questions: dict[str, dict[str, Any]] = {}
    for row in rows:
        try:
            ids, digits = encode_choices(tokenizer, judge_request(row.prompt, row.response), SCORE_PREFIX, DIGITS)
        except ValueError as error:
            raise InputError(f"params.yaml: base_model.source: {error}; the judge cannot be trained on it") from None
        new = {"requests": [], "scores": [], "digits": digits, "length": 0, GROUP: prompt_key(row.prompt)}
        question = questions.setdefault(row.question_id, new)
        question["requests"].append(ids)
        question["scores"].append(row.score)
        question["length"] = max(question["length"], len(ids))
    return list(questions.values())


def judge_loss(logprobs: Tensor, scores: Tensor, ranking_coef: float) -> Tensor:
    """Return a question's loss: cross-entropy of the scores plus `ranking_coef` times a ranking loss.

    The ranking loss is RankNet's (Burges et al., 2005): the mean of -log sigmoid(e_i - e_j) over pairs with score i >
    score j, where e is the expected digit, which the judge reports. It is 0 if all scores are equal.

    Args:
        logprobs: (N, 6), log-probability of each digit for each of the N responses, over the whole vocabulary.
        scores: (N,), the right ones, from 0 to 5.
        ranking_coef: weight of the ranking loss.
    """
    cross_entropy = -logprobs.gather(-1, scores.unsqueeze(-1)).mean()
    expected = expected_digit(logprobs)
    better, worse = (scores.unsqueeze(1) > scores).nonzero(as_tuple=True)
    if len(better) == 0:
        return cross_entropy
    return cross_entropy - ranking_coef * functional.logsigmoid(expected[better] - expected[worse]).mean()


def expected_digit(logprobs: Tensor) -> Tensor:
    """Return what the judge reports (N,), from the log-probabilities of the digits (N, 6)."""
    return logprobs.softmax(-1) @ torch.arange(logprobs.shape[-1], dtype=logprobs.dtype, device=logprobs.device)


def ordered(logprobs: Tensor, scores: Tensor) -> tuple[int, int]:
    """Return how many pairs of responses with different scores the judge orders as `scores` do, and of how many."""
    expected = expected_digit(logprobs)
    better, worse = (scores.unsqueeze(1) > scores).nonzero(as_tuple=True)
    return int((expected[better] > expected[worse]).sum()), len(better)


class JudgeTrainer(LoraPlus):
    """Trains a causal LM to predict the digit after `score: `, and to rank the responses to a question.

    Examples come from `judged_questions`; `per_device_train_batch_size` counts questions.
    """

    def __init__(
        self,
        model: Trained,
        args: TrainingArguments,
        questions: list[dict[str, Any]],
        ranking_coef: float,
        loraplus_lr_ratio: float,
        held_out: Sequence[dict[str, Any]] = (),
    ):
        super().__init__(
            model=model,
            loraplus_lr_ratio=loraplus_lr_ratio,
            args=args,
            train_dataset=Dataset.from_list(questions),
            eval_dataset=dataset_of(held_out),
            data_collator=lambda batch: {"questions": batch},
        )
        self.ranking_coef = ranking_coef

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Return the mean over the questions of `judge_loss`."""
        return torch.stack([self._loss(self._logprobs(model, q), q) for q in inputs["questions"]]).mean()

    def measures(self, batch: Any) -> dict[str, tuple[float, int]]:
        """Return the loss of questions, and the share of ordered pairs of responses; see `ordered`."""
        losses, right, pairs = 0.0, 0, 0
        for question in batch["questions"]:
            logprobs = self._logprobs(self.model, question)
            losses += float(self._loss(logprobs, question))
            good, compared = ordered(logprobs, self._scores(question))
            right, pairs = right + good, pairs + compared
        questions = len(batch["questions"])
        return {"loss": (losses / questions, questions), "pairwise_accuracy": (right / max(1, pairs), pairs)}

    def _scores(self, question: dict[str, Any]) -> Tensor:
        return torch.tensor(question["scores"], device=self.args.device)

    def _loss(self, logprobs: Tensor, question: dict[str, Any]) -> Tensor:
        return judge_loss(logprobs, self._scores(question), self.ranking_coef)

    def _logprobs(self, model: Any, question: dict[str, Any]) -> Tensor:
        packed = pack(question["requests"])
        device = self.args.device
        logits = model(
            **packed.inputs(device, model.dtype), logits_to_keep=packed.last.to(device), use_cache=False
        ).logits[0]
        logprobs: Tensor = logits.float().log_softmax(-1)[:, question["digits"]]
        return logprobs
