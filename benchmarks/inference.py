"""Generation and judging against the ways that are used instead, side by side in one run: `make bench`.

- The reference scripts' way: `model.generate` on one prompt at a time, N times; a judgement is 100 tokens of text.
- `model.generate` on 16 rows, and on the number of rows at which it is fastest here.
- CTranslate2 in float32, if it is there: `--ct2-python` is the Python of an environment that has it, `--ct2-model` the
  converted model; docs/INFERENCE.md says how.
- Ours: the backends `transformers` (float32) and, on a CPU that multiplies it, `bfloat16`.

All write the same number of tokens (EOS ends nothing) to the same prompts with the same sampling. Rounds alternate
between the ways; ratios are of medians. The last line is one JSON object. Run after `dvc repro`.
"""

import json
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import click
import psutil
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
from align.models.linears import linear, pack
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
        self.ways: dict[str, tuple[Callable[[], float | None], int]] = {}
        self.seconds: dict[str, float] = {}  # a unit of work, median
        self.memory: dict[str, float] = {}  # MiB that the process grew by, at most

    def add(self, name: str, units: int, way: Callable[[], float | None]) -> None:
        """Add a way that does `units` units of work; it may return seconds that it has measured itself."""
        self.ways[name] = (way, units)

    def run(self, rounds: int) -> None:
        """Run all, once to warm up and then `rounds` times."""
        times: dict[str, list[float]] = {name: [] for name in self.ways}
        for number in range(rounds + 1):
            for name, (way, units) in self.ways.items():
                with peak_memory() as grown:
                    begin = time.perf_counter()
                    found = way()
                    seconds = time.perf_counter() - begin if found is None else found
                if number:
                    times[name].append(seconds / units)
                self.memory[name] = max(self.memory.get(name, 0.0), grown[0])
        self.seconds = {name: statistics.median(values) for name, values in times.items()}


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Yield a list whose one value is, after the block, by how many MiB the process was larger than before it."""
    process, grown, done = psutil.Process(), [0.0], threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.05):
            grown[0] = max(grown[0], (process.memory_info().rss - before) / 2**20)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield grown
    finally:
        done.set()
        thread.join()


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


def ctranslate2(python: Path, model: Path, prompts: Tokens, n: int, threads: int, sampling: SamplingParams) -> float:
    """Return the seconds that CTranslate2 takes, in a process of its own that loads, warms up and measures."""
    request = {
        "model": str(model),
        "prompts": [prompt for prompt in prompts for _ in range(n)],
        "max_new_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "threads": threads,
    }
    worker = Path(__file__).parent / "ct2_worker.py"
    found = subprocess.run(
        [str(python), str(worker)], input=json.dumps(request), capture_output=True, text=True, check=True
    )
    return float(json.loads(found.stdout)["seconds"])


@torch.no_grad()
def roofline_seconds(model: PreTrainedModel, rows: int, context: int) -> float:
    """Return what a decoding step of `rows` rows takes at least: its products or its memory, whichever takes longer.

    Both speeds are measured here: float32 products by the best of oneDNN and MKL, on the model's largest layer but one
    (the head is larger than any cache), and reading from memory.
    """
    linears = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    weight = sorted(linears, key=torch.numel)[-2].detach()
    x = torch.randn(1024, weight.shape[1])
    packed = pack(weight)
    ways = (partial(linear, x, packed), partial(torch.nn.functional.linear, x, weight))
    flops = 2 * len(x) * weight.numel() / min(best(way) for way in ways)
    block = torch.ones(2**28)  # 1 GiB
    bandwidth = block.nbytes / best(block.sum)
    config = model.config.get_text_config()
    head = config.hidden_size // config.num_attention_heads
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * head * rows * context
    weights = sum(map(torch.numel, linears))
    click.echo(f"products {flops / 1e9:.0f} GFLOP/s, memory {bandwidth / 1e9:.0f} GB/s")
    return float(max(2 * weights * rows / flops, 4 * (weights + cached) / bandwidth))


def best(way: Callable[[], object], times: int = 7) -> float:
    """Return the shortest of some runs, in seconds."""
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        way()
        found.append(time.perf_counter() - begin)
    return min(found)


@click.command(help=__doc__)
@click.option("--model", default="m0", show_default=True, help="Which of models/ writes and judges.")
@click.option("--rows", default=128, show_default=True, help="Rows that we decode together.")
@click.option("--samples", default=4, show_default=True)
@click.option("--max-new-tokens", default=64, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--generate-rows", default=(64, 128), multiple=True, show_default=True, help="Tried for its best.")
@click.option("--ct2-python", type=click.Path(path_type=Path, exists=True))
@click.option("--ct2-model", type=click.Path(path_type=Path, exists=True))
@click.option("--linear", "growth", is_flag=True, help="Measure instead how cost grows with 50, 200 and 800 prompts.")
def main(
    model: str,
    rows: int,
    samples: int,
    max_new_tokens: int,
    rounds: int,
    generate_rows: Sequence[int],
    ct2_python: Path | None,
    ct2_model: Path | None,
    growth: bool,
) -> None:
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
        f"{runtime.num_threads} threads, {max_new_tokens} tokens a reply"
    )

    def ours(kind: type[TorchGenerator], causal_lm: PreTrainedModel, prompts: Tokens) -> None:
        kind(causal_lm, endless, rows).generate(prompts, sampling, range(len(prompts)), n=samples)

    with stack.using(model) as causal_lm:
        if growth:
            click.echo(json.dumps(grow(encoded, partial(ours, TorchGenerator, causal_lm), samples)))
            return
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
        if ct2_python and ct2_model:
            run_ct2 = partial(ctranslate2, ct2_python, ct2_model, prompts, samples, runtime.num_threads, sampling)
            decode.add(f"CTranslate2 float32, {rows} rows", rows * max_new_tokens, run_ct2)
        for kind in kinds:
            decode.add(
                f"ours {kind.backend}, {rows} rows", rows * max_new_tokens, partial(ours, kind, causal_lm, prompts)
            )
        decode.run(rounds)
        for name, seconds in decode.seconds.items():
            click.echo(f"{name}: {1 / seconds:.1f} tokens/s, +{decode.memory[name]:.0f} MiB")

        judge = Race()
        judged = [(row.prompt, row.response) for row in read_rows(Path("data/m1/responses.jsonl"), Response)][:rows]
        settings = params.section("judge", JudgeSettings)
        request = encode_user(stack.tokenizer, judge_request(*judged[len(judged) // 2]))
        hundred = SamplingParams(JUDGEMENT_TOKENS, 0.7, 0.9)
        judge.add("generate, 1 row", 1, partial(plain_generate, causal_lm, pad_id, [request], 1, hundred))
        for kind in kinds:
            generator = kind(causal_lm, stack.tokenizer, runtime.batch_size)
            judge.add(f"ours {kind.backend}", len(judged), partial(judge_all, generator, judged, settings))
        judge.run(rounds)
        for name, seconds in judge.seconds.items():
            click.echo(f"judge, {name}: {1 / seconds:.2f} rows/s, +{judge.memory[name]:.0f} MiB")
        step = roofline_seconds(causal_lm, rows, len(one) + max_new_tokens // 2)

    best_name = min((name for name in decode.seconds if name.startswith("generate")), key=decode.seconds.__getitem__)
    result: dict[str, float | str | None] = {"generate_best": best_name}
    for kind in kinds:
        decoded, scored = decode.seconds[f"ours {kind.backend}, {rows} rows"], judge.seconds[f"ours {kind.backend}"]
        theirs = max_new_tokens * decode.seconds["generate, 1 row"] + judge.seconds["generate, 1 row"]
        ct2 = decode.seconds.get(f"CTranslate2 float32, {rows} rows")
        found = {
            "end_to_end_vs_reference_scripts": theirs / (max_new_tokens * decoded + scored),
            "decode_vs_generate_b16": decode.seconds["generate, 16 rows"] / decoded,
            "decode_vs_generate_best": decode.seconds[best_name] / decoded,
            "judge_vs_reference_scripts": judge.seconds["generate, 1 row"] / scored,
            "decode_vs_ctranslate2": ct2 / decoded if ct2 else None,
            "roofline_share": step / rows / decoded if kind is TorchGenerator else None,  # it is of float32
        }
        suffix = "" if kind is TorchGenerator else f"_{kind.backend}"
        result |= {key + suffix: round(value, 3) for key, value in found.items() if value is not None}
    click.echo(json.dumps(result))


def grow(encoded: Tokens, way: Callable[[Tokens], None], samples: int) -> dict[str, dict[str, float]]:
    """Return seconds a row and the memory for the first 50 prompts once, four and sixteen times."""
    way(encoded[:50])
    found = {}
    for count in (50, 200, 800):
        with peak_memory() as grown:
            begin = time.perf_counter()
            way(list(islice(cycle(encoded[:50]), count)))
            seconds = time.perf_counter() - begin
        found[str(count)] = {"seconds_per_row": seconds / count / samples, "grown_mib": grown[0]}
        click.echo(f"{count} prompts: {1000 * seconds / count / samples:.1f} ms a row, +{grown[0]:.0f} MiB")
    return found


def judge_all(generator: TorchGenerator, rows: Sequence[tuple[str, str]], settings: JudgeSettings) -> None:
    """Judge the rows, as stage judge does."""
    judge_responses(generator, rows, settings, 0)


if __name__ == "__main__":
    main()
