"""The parent model writes new prompts from examples: models/<parent> + its IFT data -> data/<model>/prompts.jsonl.

Run with `python -m stages.generate_prompts m1 m0` (the new model, its parent).
"""

import random
from collections import Counter
from pathlib import Path

import click
from pydantic import Field

from stages.lib.errors import InputError
from stages.lib.files import write_json
from stages.lib.generation import SamplingParams, generate
from stages.lib.models import AdapterStack
from stages.lib.novelty import NoveltyFilter
from stages.lib.params import Params, Settings
from stages.lib.records import EvalPrompt, Instruction, Message, Prompt, read_rows, write_rows
from stages.lib.runtime import RuntimeSettings, row_seed, start
from stages.lib.templates import render
from stages.lib.tokenization import encode_user


class GeneratePromptsSettings(Settings):
    """Section `generate_prompts` of params.yaml."""

    num_prompts: int = Field(ge=1)
    num_examples: int = Field(ge=1)
    max_rounds: int = Field(ge=1)
    max_new_tokens: int = Field(ge=1)
    temperature: float = Field(gt=0)
    top_p: float = Field(gt=0, le=1)
    min_words: int = Field(ge=1)
    max_words: int = Field(ge=1)
    max_rouge_l: float = Field(gt=0, le=1)


REPLY_PREFIX = "Request:"


def extract_prompt(completion: str) -> str:
    """Return the one request in what the model wrote: all up to where it starts another example or a reply to it."""
    for stop in ("\nRequest:", "\nResponse:", "\nAnswer:", "\n\n"):
        completion = completion.split(stop)[0]
    return completion.strip()


@click.command(help=__doc__)
@click.argument("model")
@click.argument("parent")
def main(model: str, parent: str) -> None:
    params = Params.read()
    runtime = params.section("runtime", RuntimeSettings)
    settings = params.section("generate_prompts", GeneratePromptsSettings)
    start(runtime, params.seed)
    out_dir = Path("data") / model
    seeds = read_rows(Path("data") / parent / "ift.jsonl", Instruction)
    held_out = read_rows(Path("data/prepared/eval/prompts.jsonl"), EvalPrompt)
    examples = [row for row in seeds if len(row.prompt.split()) <= settings.max_words and "\n" not in row.prompt]
    if len(examples) < settings.num_examples:
        raise InputError(
            f"params.yaml: generate_prompts.num_examples: only {len(examples)} one-line prompts of at most "
            f"{settings.max_words} words in data/{parent}/ift.jsonl; lower it, or raise generate_prompts.max_words"
        )
    known = [row.prompt for row in seeds] + [turn for row in held_out for turn in row.turns]
    novelty = NoveltyFilter(
        known, min_words=settings.min_words, max_words=settings.max_words, max_rouge_l=settings.max_rouge_l
    )
    stack = AdapterStack(Path("models/base"), runtime)
    stack.add(parent, Path("models") / parent)

    accepted: list[Prompt] = []
    dropped = Counter[str]()
    for number in range(settings.max_rounds):
        missing = settings.num_prompts - len(accepted)
        if missing == 0:
            break
        # Part of what a model writes is cut off or not new, so more is asked for than is missing; the rest goes unused.
        asked = min(settings.num_prompts, 2 * missing)
        row_seeds = [row_seed(params.seed, "generate_prompts", model, number, i) for i in range(asked)]
        requests = [
            render(
                "new_prompt.jinja",
                examples=[row.prompt for row in random.Random(s).sample(examples, settings.num_examples)],
            )
            for s in row_seeds
        ]
        with stack.using(parent) as causal_lm:
            completions = generate(
                causal_lm,
                stack.tokenizer,
                [encode_user(stack.tokenizer, request, REPLY_PREFIX) for request in requests],
                SamplingParams(settings.max_new_tokens, settings.temperature, settings.top_p),
                row_seeds,
                batch_size=runtime.batch_size,
                description=f"{model} prompts, round {number + 1}",
            )
        for [completion] in completions:
            text = extract_prompt(completion.text)
            if completion.finish_reason == "length" and text == completion.text.strip():
                reason: str | None = "cut off"
            elif len(accepted) == settings.num_prompts:
                reason = "not needed"
            else:
                reason = novelty.reason_to_drop(text)
            if reason is not None:
                dropped[reason] += 1
                continue
            row_id = f"{model}-{len(accepted):04d}"
            accepted.append(Prompt(id=row_id, messages=[Message(role="user", content=text)]))
    if len(accepted) < settings.num_prompts:
        raise InputError(
            f"generate_prompts: {parent} wrote {len(accepted)} usable prompts of {settings.num_prompts} in "
            f"{settings.max_rounds} rounds (dropped: {dict(dropped)}); raise generate_prompts.max_rounds or temperature"
        )
    write_rows(out_dir / "prompts.jsonl", accepted)
    write_json(
        Path("data/metrics") / model / "prompts.json",
        {"accepted": len(accepted), "dropped": dict(sorted(dropped.items()))},
    )
    click.echo(f"generate_prompts@{model}: {len(accepted)} accepted, dropped {dict(dropped)}")


if __name__ == "__main__":
    main()
