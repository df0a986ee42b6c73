"""Write new prompts from examples: models/base or models/<parent> -> data/<model>/prompts.jsonl.

The examples are seed prompts and, as in Self-Instruct (arXiv 2212.10560), earlier prompts of the loop. A killed run
resumes with the missing requests. Run with `python -m stages.generate_prompts m1 m0` (the new model, its parent).
"""

import random
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Literal, Self

import click
from pydantic import Field, model_validator

from align.backends.choose import GenerationSettings, open_generator
from align.checks.prompts import CheckedPrompt
from align.core.errors import InputError
from align.core.files import write_json
from align.core.params import Settings
from align.core.rows import EvalPrompt, Judgement, KnownPrompt, Message, Prompt, read_rows, write_rows
from align.core.templates import render
from align.generation.sampling import SamplingParams
from align.loop.novelty import PromptFilter, nearest_similarity
from align.models.tokenization import encode_user
from align.report.statistics import corpus_distinct_2, mean, words
from align.run.provenance import environment
from align.run.runtime import is_main_process, row_seed
from align.run.stage import BASE, Stage

REPLY_PREFIX = "Request:"
MEASURED = 200  # prompts whose similarity to the known ones is measured, which is quadratic


class GeneratePromptsSettings(Settings):
    """Section `generate_prompts` of params.yaml."""

    writer: Literal["base", "parent"]
    num_prompts: int = Field(ge=1)
    num_seed_examples: int = Field(ge=1)
    num_generated_examples: int = Field(ge=0)
    samples_per_request: int = Field(ge=1)
    max_rounds: int = Field(ge=1)
    max_new_tokens: int = Field(ge=1)
    temperature: float = Field(gt=0)
    top_p: float = Field(gt=0, le=1)
    min_words: int = Field(ge=1)
    max_words: int = Field(ge=1)
    language: str | None
    blocked_words: list[str]
    max_rouge_l: float = Field(gt=0, le=1)

    @model_validator(mode="after")
    def _some_length_is_allowed(self) -> Self:
        if self.min_words > self.max_words:
            raise ValueError("min_words of at most max_words")
        return self


def extract_prompt(completion: str) -> str | None:
    """Return the model's request, which is its first line, or None if it was cut off."""
    text, newline, _ = completion.lstrip().partition("\n")
    return text.strip() if newline else None


def pick_examples(
    seeds: Sequence[str], generated: Sequence[str], settings: GeneratePromptsSettings, seed: int
) -> list[str]:
    """Return the shuffled examples of one request; seeds replace generated prompts while there are too few."""
    generator = random.Random(seed)
    own = generator.sample(generated, min(settings.num_generated_examples, len(generated)))
    total = settings.num_seed_examples + settings.num_generated_examples
    examples = own + generator.sample(seeds, total - len(own))
    generator.shuffle(examples)
    return examples


@click.command(help=__doc__)
@click.argument("model")
@click.argument("parent")
def main(model: str, parent: str) -> None:
    stage = Stage(f"generate_prompts@{model}")
    generation = stage.section("generation", GenerationSettings)
    settings = stage.section("generate_prompts", GeneratePromptsSettings)
    stage.start()
    out_dir, held_out = Path("data") / model, Path("data/prepared/eval")
    known_file = Path("data") / parent / "known_prompts.jsonl"
    known = read_rows(known_file, KnownPrompt)
    evaluation = [turn for row in read_rows(held_out / "prompts.jsonl", EvalPrompt) for turn in row.turns]
    evaluation += [row.prompt for row in read_rows(held_out / "checked_prompts.jsonl", CheckedPrompt)]
    evaluation += dict.fromkeys(row.prompt for row in read_rows(held_out / "judgements.jsonl", Judgement))
    usable = [row for row in known if len(words(row.prompt)) <= settings.max_words and "\n" not in row.prompt]
    seeds = [row.prompt for row in usable if row.source == "seed"]
    generated = [row.prompt for row in usable if row.source == "generated"]
    if len(seeds) < settings.num_seed_examples + settings.num_generated_examples:
        raise InputError(
            f"params.yaml: generate_prompts.num_seed_examples: only {len(seeds)} one-line seed prompts of at most "
            f"{settings.max_words} words in {known_file}, and they also replace generated ones at first; lower it or "
            "num_generated_examples, or raise generate_prompts.max_words"
        )
    prompt_filter = PromptFilter(
        {"a known prompt": [row.prompt for row in known], "an evaluation prompt": evaluation},
        contained=["an evaluation prompt"],
        min_words=settings.min_words,
        max_words=settings.max_words,
        max_rouge_l=settings.max_rouge_l,
        language=settings.language,
        blocked_words=settings.blocked_words,
    )
    writer = parent if settings.writer == "parent" else "base"
    accepted: list[str] = []
    dropped = Counter[str]()
    inputs = [BASE, Path("models") / parent, known_file, held_out]
    with stage.unlocked_work(inputs) as work, open_generator(generation, stage.runtime, writer, work) as generator:
        for number in range(settings.max_rounds):
            missing = settings.num_prompts - len(accepted)
            if missing == 0:
                break
            # Part of the replies are cut off or not new, so ask for more than is missing and drop the rest.
            asked = ceil(min(settings.num_prompts, 2 * missing) / settings.samples_per_request)
            row_seeds = [row_seed(stage.seed, "generate_prompts", model, number, i) for i in range(asked)]
            pool = generated + accepted
            requests = [render("new_prompt.jinja", examples=pick_examples(seeds, pool, settings, s)) for s in row_seeds]
            completions = generator.generate(
                [encode_user(generator.tokenizer, request, REPLY_PREFIX) for request in requests],
                SamplingParams(settings.max_new_tokens, settings.temperature, settings.top_p),
                row_seeds,
                n=settings.samples_per_request,
                description=f"{model} prompts, round {number + 1}",
            )
            for completion in chain.from_iterable(completions):
                ended = "\n" if completion.finish_reason == "stop" else ""
                text = extract_prompt(completion.text + ended)
                if text is None:
                    dropped["cut off"] += 1
                elif len(accepted) == settings.num_prompts:
                    dropped["not needed"] += 1
                elif reason := prompt_filter.reason_to_drop(text):
                    dropped[reason] += 1
                else:
                    accepted.append(text)
        if len(accepted) < settings.num_prompts:
            raise InputError(
                f"generate_prompts: {writer} wrote {len(accepted)} usable prompts of {settings.num_prompts} in "
                f"{settings.max_rounds} rounds (dropped: {dict(dropped)}); raise generate_prompts.max_rounds or "
                "temperature"
            )
        if not is_main_process():
            return
        prompts = [
            Prompt(id=f"{model}-{i:04d}", messages=[Message(role="user", content=text)])
            for i, text in enumerate(accepted)
        ]
        write_rows(out_dir / "prompts.jsonl", prompts)
        new = [KnownPrompt(prompt=text, source="generated", iteration=model) for text in accepted]
        write_rows(out_dir / "known_prompts.jsonl", [*known, *new])
        texts = [words(text) for text in accepted]
        summary = {
            "accepted": len(accepted),
            "dropped": dict(sorted(dropped.items())),
            "mean_words": mean([len(text) for text in texts]),
            "nearest_known_rouge_l": nearest_similarity(texts[:MEASURED], [words(row.prompt) for row in known]),
            "distinct_2": corpus_distinct_2(texts),
            "environment": environment(stage.runtime),
        }
        write_json(Path("data/metrics") / model / "prompts.json", summary)
    click.echo(f"generate_prompts@{model}: {len(accepted)} accepted, dropped {dict(dropped)}")


if __name__ == "__main__":
    main()
