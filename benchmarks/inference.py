"""Generation and judging against the ways that are used instead, side by side in one run: `make bench`.

- The reference scripts' way: `model.generate` on one prompt at a time, N times; a judgement is 100 tokens of text.
- `model.generate` on 16 rows, and on the number of rows at which it is fastest here.
- Ours: the backends `transformers` (float32) and, on a CPU that multiplies it, `bfloat16`.

All write the same number of tokens (EOS ends nothing) to the same prompts with the same sampling. Rounds alternate
between the ways; ratios are of medians. The last line is one JSON object. Run after `dvc repro`.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from transformers import PreTrainedModel

from align.core.params import Params
from align.core.rows import Instruction, Response, read_rows
from align.generation.local import BFloat16Generator, TorchGenerator
from align.generation.sampling import SamplingParams
from align.judge.asking import judge_responses
from align.judge.request import JudgeSettings, judge_request
from align.models.batching import left_pad
from align.models.stack import AdapterStack
from align.models.tokenization import encode_user
from align.run.runtime import RuntimeSettings, start

Tokens = list[list[int]]
JUDGEMENT_TOKENS = 100  # that the reference scripts decode for each


class Endless:
    """A tokenizer without an EOS: every reply has all of its tokens."""

    eos_token_id = -1

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


class Race:
    """Ways to do the same, timed in turn."""

    def __init__(self) -> None:
        self.ways: dict[str, tuple[Callable[[], object], int]] = {}
        self.seconds: dict[str, float] = {}  # a unit of work, median

    def add(self, name: str, units: int, way: Callable[[], object]) -> None:
        """Add a way that does `units` units of work."""
        self.ways[name] = (way, units)

    def run(self, rounds: int) -> None:
        """Run all, once to warm up and then `rounds` times."""
        times: dict[str, list[float]] = {name: [] for name in self.ways}
        for number in range(rounds + 1):
            for name, (way, units) in self.ways.items():
                begin = time.perf_counter()
                way()
                if number:
                    times[name].append((time.perf_counter() - begin) / units)
        self.seconds = {name: statistics.median(values) for name, values in times.items()}


@torch.no_grad()
def plain_generate(model: PreTrainedModel, pad_id: int, prompts: Tokens, n: int, sampling: SamplingParams) -> None:
    """Sample with `model.generate` as a script would: one padded batch."""
    ids, mask = left_pad(prompts, pad_id, model.device)
    model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=mask,
        do_sample=True,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=0,
        num_return_sequences=n,
        max_new_tokens=sampling.max_new_tokens,
        min_new_tokens=sampling.max_new_tokens,
        pad_token_id=pad_id,
    )


@click.command(help=__doc__)
@click.option("--model", default="m0", show_default=True, help="Which of models/ writes and judges.")
@click.option("--rows", default=128, show_default=True, help="Rows that we decode together.")
@click.option("--samples", default=4, show_default=True)
@click.option("--max-new-tokens", default=64, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--generate-rows", default=(64, 128), multiple=True, show_default=True, help="Tried for its best.")
def main(model: str, rows: int, samples: int, max_new_tokens: int, rounds: int, generate_rows: Sequence[int]) -> None:
    """Run the races."""
    params = Params.read()
    runtime = params.section("runtime", RuntimeSettings)
    start(runtime, params.seed)
    stack = AdapterStack(Path("models/base"), runtime)
    stack.add(model, Path("models") / model)
    pad_id = int(stack.tokenizer.pad_token_id or 0)
    endless: Any = Endless(stack.tokenizer)
    encoded = [encode_user(stack.tokenizer, row.prompt) for row in read_rows(Path("data/m0/ift.jsonl"), Instruction)]
    sampling = SamplingParams(max_new_tokens, 0.7, 0.9)
    click.echo(
        f"transformers {transformers.__version__}, torch {torch.__version__}, {stack.device}, "
        f"{runtime.threads} threads, {max_new_tokens} tokens a reply"
    )

    def ours(kind: type[TorchGenerator], causal_lm: PreTrainedModel, prompts: Tokens) -> None:
        kind(causal_lm, endless, rows).generate(prompts, sampling, range(len(prompts)), n=samples)

    with stack.using(model) as causal_lm:
        kinds: list[type[TorchGenerator]] = [TorchGenerator]
        if stack.device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
            kinds.append(BFloat16Generator)

        decode = Race()
        one = sorted(encoded, key=len)[len(encoded) // 2]
        single = partial(plain_generate, causal_lm, pad_id, [one], 1, sampling)
        decode.add("generate, 1 row", max_new_tokens, single)
        for count in (16, *generate_rows):
            way = partial(plain_generate, causal_lm, pad_id, encoded[: count // samples], samples, sampling)
            decode.add(f"generate, {count} rows", count * max_new_tokens, way)
        prompts = encoded[: rows // samples]
        for kind in kinds:
            decode.add(
                f"ours {kind.backend}, {rows} rows", rows * max_new_tokens, partial(ours, kind, causal_lm, prompts)
            )
        decode.run(rounds)
        for name, seconds in decode.seconds.items():
            click.echo(f"{name}: {1 / seconds:.1f} tokens/s")

        judge = Race()
        judged = [(row.prompt, row.response) for row in read_rows(Path("data/m1/responses.jsonl"), Response)][:rows]
        settings = params.section("judge", JudgeSettings)
        request = encode_user(stack.tokenizer, judge_request(*judged[len(judged) // 2]))
        hundred = SamplingParams(JUDGEMENT_TOKENS, 0.7, 0.9)
        judge.add("generate, 1 row", 1, partial(plain_generate, causal_lm, pad_id, [request], 1, hundred))
        for kind in kinds:
            generator = kind(causal_lm, stack.tokenizer, runtime.batch_size)
            judging = partial(judge_responses, generator, judged, settings, params.seed)
            judge.add(f"ours {kind.backend}", len(judged), judging)
        judge.run(rounds)
        for name, seconds in judge.seconds.items():
            click.echo(f"judge, {name}: {1 / seconds:.2f} rows/s")

    best_name = min((name for name in decode.seconds if name.startswith("generate")), key=decode.seconds.__getitem__)
    result: dict[str, float | str] = {"generate_best": best_name}
    for kind in kinds:
        decoded, scored = decode.seconds[f"ours {kind.backend}, {rows} rows"], judge.seconds[f"ours {kind.backend}"]
        theirs = max_new_tokens * decode.seconds["generate, 1 row"] + judge.seconds["generate, 1 row"]
        found = {
            "end_to_end_vs_reference_scripts": theirs / (max_new_tokens * decoded + scored),
            "decode_vs_generate_b16": decode.seconds["generate, 16 rows"] / decoded,
            "decode_vs_generate_best": decode.seconds[best_name] / decoded,
            "judge_vs_reference_scripts": judge.seconds["generate, 1 row"] / scored,
        }
        suffix = "" if kind is TorchGenerator else f"_{kind.backend}"
        result |= {key + suffix: round(value, 3) for key, value in found.items()}
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
