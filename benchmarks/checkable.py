"""The loop where the judge is known to be right: sentences that shall hold given words, with a checker for a judge.

The stages of the loop run in folder WORKSPACE (made here, what is there already is not made again): SFT on sentences of
the seed data and the words taken out of them, then iterations in which the model writes new word lists, answers each
several times, `align.judge.checkers:sentence_with_words` scores the answers, and DPO learns from the best against the
worst. Measured on held-out word lists, greedily: the mean score, and the share of answers that hold every word. The
last line is one JSON object. Run after `dvc repro`.
"""

import json
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from align.core.rows import Answer, EvalPrompt, Instruction, read_rows, write_rows
from align.judge.checkers import sentence_with_words
from align.report.statistics import mean, wilson_interval
from benchmarks.workspace import link, project_params, run, write_params

NUM_WORDS = 3
MIN_LENGTH, MAX_LENGTH = 5, 20  # words of a sentence
RIGHT = 5.0
TRAIN, TEST = 160, 150  # sentences of the SFT data, held-out word lists
CHANGES: dict[str, dict[str, Any]] = {
    "prepare_data": {"instructions": "data/sentences.jsonl", "eval_prompts": "data/held_out.jsonl"},
    "eft": {"num_train_epochs": 0.02},  # no judge is needed, a checker judges
    "sft": {"num_train_epochs": 2, "learning_rate": 5e-4},
    "generate_prompts": {
        "num_prompts": 96,
        "num_seed_examples": 8,
        "num_generated_examples": 0,  # some of what the loop writes is no word list, and would lead further away
        "max_rounds": 12,
        "language": None,
        "blocked_words": [],
        "max_rouge_l": 1.0,  # two lists in the same frame are two prompts
    },
    "generate_responses": {"num_responses": 8, "max_new_tokens": 40},
    "judge": {"model": "m0", "use_parent": False}
    | {"mode": "checker", "checker": "align.judge.checkers:sentence_with_words"},
    "gates": {"max_mode_share": 1.0, "max_failure_rate": 0.6, "min_pair_yield": 0.2},
    "build_preferences": {"accept_score": 5.0, "min_margin": 1.0},
    "evaluate": {"max_new_tokens": 40},
}


def word_lists(completions: Iterable[str], seed: int) -> list[tuple[str, str]]:
    """Return (prompt, sentence) for the sentences of seed replies that have three different words to ask for."""
    generator = random.Random(seed)
    parts = dict.fromkeys(part for text in completions for part in re.split(r"(?<=[.!?])\s+", text))
    found = []
    for sentence in parts:
        words = sorted(set(re.findall(r"\b[a-z]{4,}\b", sentence)))
        if MIN_LENGTH <= len(sentence.split()) <= MAX_LENGTH and len(words) >= NUM_WORDS:
            *first, last = (f'"{word}"' for word in generator.sample(words, NUM_WORDS))
            prompt = f"Write a sentence with the words {', '.join(first)} and {last}."
            if sentence_with_words(prompt, sentence) == RIGHT:
                found.append((prompt, sentence))
    generator.shuffle(found)
    return found


@click.command(help=__doc__)
@click.argument("workspace", type=click.Path(path_type=Path, file_okay=False))
@click.option("--iterations", default=3, show_default=True)
def main(workspace: Path, iterations: int) -> None:
    """Make what is missing, then measure."""
    chain = {f"m{i}": f"m{i - 1}" for i in range(1, iterations + 1)}
    write_params(workspace, {**CHANGES, "iterations": chain})
    link(workspace, ("models/base", "models/reward", "data/seed"))
    if not (workspace / "data/prepared").exists():
        completions = [row.completion for row in read_rows(Path("data/seed/instructions.jsonl"), Instruction)]
        found = word_lists(completions, int(project_params()["seed"]))
        instructions = [
            Instruction(id=f"s{i}", category="sentences", prompt=prompt, completion=sentence)
            for i, (prompt, sentence) in enumerate(found[:TRAIN])
        ]
        held_out = [
            EvalPrompt(id=f"e{i}", category="sentences", turns=[prompt])
            for i, (prompt, _) in enumerate(found[TRAIN : TRAIN + TEST])
        ]
        write_rows(workspace / "data/sentences.jsonl", instructions)
        write_rows(workspace / "data/held_out.jsonl", held_out)
        run(workspace, "stages.prepare_data")
    if not (workspace / "models/m0").exists():
        run(workspace, "stages.sft")
    for model, parent in chain.items():
        if not (workspace / "models" / model).exists():
            for stage in ("generate_prompts", "generate_responses", "judge", "build_preferences", "dpo"):
                run(workspace, f"stages.{stage}", model, parent)
    result = []
    for model in ("base", "m0", *chain):
        if not (workspace / "data/eval" / f"{model}.json").exists():
            run(workspace, "stages.evaluate", model)
        answers = read_rows(workspace / "data/eval" / f"{model}.jsonl", Answer)
        scores = [answer.judge_score or 0.0 for answer in answers]  # none: an empty answer
        low, high = wilson_interval(right := scores.count(RIGHT), len(answers)) or (None, None)
        row: dict[str, Any] = {"model": model, "all_words": right / len(answers), "low": low, "high": high}
        row |= {"mean_score": mean(scores), "tokens": mean([answer.num_tokens for answer in answers])}
        result.append(row)
        click.echo(" ".join(f"{key} {value}" for key, value in row.items()))
    click.echo(json.dumps({"train": TRAIN, "test": TEST, "models": result}))


if __name__ == "__main__":
    main()
