"""How long the search for near duplicates takes: RougeIndex, and on fewer prompts rapidfuzz on every pair.

The prompts are made of the seed prompts' words, some of them near an earlier one; each is looked up, then added.
Run with `python -m benchmarks.novelty --prompts 100000`.
"""

import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from rapidfuzz import process
from rapidfuzz.distance import Indel

from align.core.rows import EvalPrompt, Instruction, Judgement, read_rows
from align.loop.novelty import RougeIndex, rouge_l
from align.report.statistics import words

SMALL = 3000
MAX_ROUGE_L = 0.7
NEAR_SHARE, CHANGED_SHARE = 0.1, 0.15
LENGTHS = range(4, 41)

Answers = list[float | None]


def seed_words() -> list[str]:
    """Return the words of all distinct seed prompts, as often as they occur."""
    seed = Path("data/seed")
    prompts = [row.prompt for row in read_rows(seed / "instructions.jsonl", Instruction)]
    prompts += [turn for row in read_rows(seed / "eval_prompts.jsonl", EvalPrompt) for turn in row.turns]
    prompts += [row.prompt for row in read_rows(seed / "judgements.jsonl", Judgement)]
    return [word for prompt in dict.fromkeys(prompts) for word in words(prompt)]


def synthetic_prompts(count: int) -> list[list[str]]:
    """Return `count` word lists: seed words at random, or an earlier prompt with some of its words changed."""
    generator = random.Random(0)
    vocabulary = seed_words()
    prompts: list[list[str]] = []
    for _ in range(count):
        if prompts and generator.random() < NEAR_SHARE:
            prompts.append(
                [
                    generator.choice(vocabulary) if generator.random() < CHANGED_SHARE else word
                    for word in generator.choice(prompts)
                ]
            )
        else:
            [length] = generator.choices(LENGTHS, [1 / length for length in LENGTHS])
            prompts.append(generator.choices(vocabulary, k=length))
    return prompts


def by_index(prompts: Sequence[list[str]]) -> Answers:
    """Return each prompt's highest ROUGE-L to an earlier one, None under the limit."""
    index, answers = RougeIndex(), Answers()
    for tokens in prompts:
        answers.append(index.nearest(tokens, MAX_ROUGE_L))
        index.add(tokens)
    return answers


def by_brute_force(prompts: Sequence[list[str]]) -> Answers:
    """Return the same by comparing with every earlier prompt, in one call of C++ each."""
    answers = Answers()
    for number, tokens in enumerate(prompts):
        # The normalized Indel similarity is ROUGE-L up to rounding, hence the cutoff just under the limit.
        found = process.extractOne(
            tokens, prompts[:number], scorer=Indel.normalized_similarity, score_cutoff=MAX_ROUGE_L - 1e-9
        )
        similarity = rouge_l(tokens, list(found[0])) if found else 0.0
        answers.append(similarity if similarity >= MAX_ROUGE_L else None)
    return answers


def timed(search: Callable[[Sequence[list[str]]], Answers], prompts: Sequence[list[str]]) -> tuple[float, Answers]:
    """Return the seconds that `search` takes, and its answers."""
    start = time.perf_counter()
    answers = search(prompts)
    return time.perf_counter() - start, answers


@click.command(help=__doc__)
@click.option("--prompts", "count", default=100_000, show_default=True, help="How many prompts the index is timed on.")
def main(count: int) -> None:
    """Print both times, and whether the answers are the same, as one line of JSON."""
    prompts = synthetic_prompts(count)
    small = prompts[:SMALL]
    seconds, answers = timed(by_index, prompts)
    seconds_small, answers_small = timed(by_index, small)
    seconds_brute_force, answers_brute_force = timed(by_brute_force, small)
    near = sum(answer is not None for answer in answers)
    click.echo(f"{count} prompts, {near} of them at ROUGE-L {MAX_ROUGE_L} or more to an earlier one: {seconds:.1f} s")
    click.echo(f"{len(small)} prompts: {seconds_small:.2f} s, by brute force {seconds_brute_force:.2f} s")
    result = {
        "prompts": count,
        "seconds_index": round(seconds, 3),
        "prompts_small": len(small),
        "seconds_index_small": round(seconds_small, 3),
        "seconds_brute_force_small": round(seconds_brute_force, 3),
        "same_answers": answers_small == answers_brute_force,
    }
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
