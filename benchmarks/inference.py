"""Generation and judging against plain transformers, side by side in one run: `make bench` after `make repro`.

Prints medians over rounds that alternate between the two, as ratios; machines are noisy, so read the ratio.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.lib.generation import SamplingParams, generate, left_pad, next_token_logprobs
from stages.lib.judging import DIGITS, SCORE_PREFIX, judge_request
from stages.lib.models import load_base, load_tokenizer
from stages.lib.params import Params
from stages.lib.records import Instruction, read_rows
from stages.lib.runtime import RuntimeSettings, start
from stages.lib.tokenization import encode_choices, encode_user

Tokens = list[list[int]]


@torch.no_grad()
def transformers_generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Tokens, n: int, max_new_tokens: int
) -> None:
    """Sample with `model.generate` in the order given, as a script would: one padded batch."""
    ids, mask = left_pad(prompts, int(tokenizer.pad_token_id or 0), model.device)
    model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=mask,
        do_sample=True,
        temperature=0.9,
        top_p=0.95,
        top_k=0,
        num_return_sequences=n,
        max_new_tokens=max_new_tokens,
    )


@torch.no_grad()
def plain_logprobs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Tokens, batch_size: int
) -> None:
    """Read the next-token distribution of whole prompts, batch by batch, with all logits of the last position."""
    for first in range(0, len(prompts), batch_size):
        ids, mask = left_pad(prompts[first : first + batch_size], int(tokenizer.pad_token_id or 0), model.device)
        model(input_ids=ids, attention_mask=mask, logits_to_keep=1).logits.log_softmax(-1)


def race(name: str, ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> None:
    """Time both in turn and print the median times and their ratio."""
    times: dict[str, list[float]] = {"ours": [], "transformers": []}
    for number in range(rounds + 1):
        for side, function in (("ours", ours), ("transformers", theirs)):
            begin = time.perf_counter()
            function()
            if number:  # the first round warms up
                times[side].append(time.perf_counter() - begin)
    ours_s, theirs_s = (statistics.median(values) for values in times.values())
    click.echo(f"{name}: ours {ours_s:.2f} s, transformers {theirs_s:.2f} s, ratio {theirs_s / ours_s:.2f}x")


@click.command(help=__doc__)
@click.option("--prompts", "count", default=16, show_default=True)
@click.option("--samples", default=4, show_default=True)
@click.option("--max-new-tokens", default=48, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(count: int, samples: int, max_new_tokens: int, rounds: int) -> None:
    """Run both races on the base model and seed prompts."""
    runtime = Params.read().section("runtime", RuntimeSettings)
    start(runtime, 0)
    base = Path("models/base")
    model, tokenizer = load_base(base, runtime), load_tokenizer(base)
    rows = read_rows(Path("data/m0/ift.jsonl"), Instruction)[:count]
    prompts: Sequence[list[int]] = [encode_user(tokenizer, row.prompt) for row in rows]
    sampling = SamplingParams(max_new_tokens, 0.9, 0.95)
    click.echo(
        f"transformers {transformers.__version__}, torch {torch.__version__}, {model.device}, "
        f"{runtime.num_threads} threads"
    )
    race(
        f"{count} prompts x {samples} samples x up to {max_new_tokens} tokens",
        lambda: generate(
            model, tokenizer, prompts, sampling, range(len(prompts)), n=samples, batch_size=runtime.batch_size
        ),
        lambda: transformers_generate(model, tokenizer, list(prompts), samples, max_new_tokens),
        rounds,
    )
    requests = [
        encode_choices(tokenizer, judge_request(row.prompt, row.completion), SCORE_PREFIX, DIGITS) for row in rows * 2
    ]
    judged = [ids for ids, _ in requests]
    race(
        f"{len(judged)} judgements by digit logits",
        lambda: next_token_logprobs(model, tokenizer, judged, requests[0][1], batch_size=runtime.batch_size),
        lambda: plain_logprobs(model, tokenizer, judged, runtime.batch_size),
        rounds,
    )


if __name__ == "__main__":
    main()
