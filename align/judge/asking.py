"""Responses scored by a model: by a judge (the causal LM itself) or by a reward model's head."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from align.core.errors import InputError
from align.generation.generator import Generator
from align.generation.sampling import SamplingParams
from align.judge.request import (
    DIGITS,
    SCORE_PREFIX,
    JudgeSettings,
    Verdict,
    judge_request,
    load_checker,
    verdict_of_checker,
    verdict_of_digits,
    verdict_of_replies,
    without_forgery,
)
from align.models.base import AdapterStack
from align.models.batching import cut_batches, left_pad, positions
from align.models.tokenization import encode_choices, encode_user
from align.run.runtime import row_seed


def judge_responses(
    generator: Generator,
    rows: Sequence[tuple[str, str]],
    settings: JudgeSettings,
    seed: int,
    *,
    description: str | None = None,
) -> list[Verdict]:
    """Judge each (question, response); an empty response is a failure, not a score."""
    empty = Verdict(None, "empty response")
    if settings.checker is not None:
        checker = load_checker(settings.checker)
        return [verdict_of_checker(checker, *row) if row[1].strip() else empty for row in rows]
    verdicts = [empty] * len(rows)
    asked = [i for i, (_, response) in enumerate(rows) if without_forgery(response)]
    if not asked:
        return verdicts
    requests = [judge_request(*rows[i]) for i in asked]
    if settings.mode == "logits":
        try:
            encoded = [encode_choices(generator.tokenizer, request, SCORE_PREFIX, DIGITS) for request in requests]
        except ValueError as error:
            raise InputError(f"params.yaml: judge.mode: {error}; use `sample`") from None
        logprobs = generator.next_token_logprobs([ids for ids, _ in encoded], encoded[0][1], description=description)
        found = [verdict_of_digits(row, settings.min_digit_mass) for row in logprobs]
    else:
        completions = generator.generate(
            [encode_user(generator.tokenizer, request) for request in requests],
            SamplingParams(settings.max_new_tokens, settings.temperature, settings.top_p),
            [row_seed(seed, "judge", request) for request in requests],
            n=settings.samples,
            description=description,
        )
        found = [verdict_of_replies([completion.text for completion in samples]) for samples in completions]
    for i, verdict in zip(asked, found, strict=True):
        verdicts[i] = verdict
    return verdicts


def reward_scores(
    stack: AdapterStack, name: str, rows: Sequence[list[int]], *, batch_size: int, description: str | None = None
) -> list[float]:
    """Return the reward model's score of each row of token ids: its head at the EOS, centred.

    The model has learned from ended replies alone, so a row that was cut off is scored as if it ended there: at another
    token the head's output is on another scale (docs/LOG.md has a PPO run that lived on the difference).
    """
    return score_and_record(stack, name, rows, (), batch_size=batch_size, description=description)[0]


@torch.no_grad()
def score_and_record(
    stack: AdapterStack,
    name: str,
    rows: Sequence[list[int]],
    layers: Collection[int],
    *,
    batch_size: int,
    description: str | None = None,
) -> tuple[list[float], dict[int, list[Tensor]]]:
    """Return `reward_scores` and, for each of `layers`, the states (T, H) of each row's T tokens that entered it."""
    eos = stack.tokenizer.eos_token_id
    lengths = [len(row) for row in rows]
    ended = [row if row[-1] == eos else [*row, eos] for row in rows]
    order = sorted(range(len(rows)), key=lambda i: len(ended[i]))
    scores = [0.0] * len(rows)
    states: dict[int, list[Tensor]] = {layer: [torch.empty(0)] * len(rows) for layer in layers}
    with (
        stack.using(name) as model,
        stack.recording(layers) as recorded,
        tqdm(total=len(rows), desc=description, unit="row", disable=description is None) as progress,
    ):
        for batch in cut_batches(order, [len(row) for row in ended], batch_size):
            ids, mask = left_pad([ended[i] for i in batch], int(stack.tokenizer.pad_token_id or 0), stack.device)
            hidden = model.base_model(
                input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False
            ).last_hidden_state
            for position, (i, score) in enumerate(zip(batch, stack.heads[name](hidden[:, -1]).tolist(), strict=True)):
                scores[i] = score
                first = ids.shape[1] - len(ended[i])
                for layer, found in recorded.items():
                    states[layer][i] = found[position, first : first + lengths[i]]
            progress.update(len(batch))
    return scores, states
