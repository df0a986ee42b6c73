"""The loop where the judge is known to be right: sums, with a checker in the judge's place.

The stages of the loop run in folder WORKSPACE (made here, what is there already is not made again): SFT on some sums,
then iterations in which the model writes new sums, answers each several times, a checker scores the answers through
`judge.mode: checker`, and DPO learns from right against wrong. What is measured is the share of held-out sums that each
model gets right, greedily; sums that the loop wrote itself, in whatever words, are left out. The last line is one JSON
object.
"""

import json
import math
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from benchmarks.workspace import link, project_params, run, write_params
from stages.lib.files import read_json
from stages.lib.metrics import wilson_interval
from stages.lib.records import Answer, EvalPrompt, Instruction, Prompt, read_rows, write_rows

FORMS = ("What is {a} + {b}?", "Add {a} + {b}.", "How much is {a} + {b}?", "Work out {a} + {b}.", "{a} + {b} = ?")
CHANGES: dict[str, dict[str, Any]] = {
    "prepare_data": {"instructions": "data/sums.jsonl", "eval_prompts": "data/held_out.jsonl"},
    "eft": {"num_train_epochs": 0.02},  # no judge is needed, a checker judges
    "generate_prompts": {
        "num_prompts": 96,
        "max_rounds": 20,  # a space this small fills up
        "min_words": 2,
        "language": None,
        "max_rouge_l": 1.0,  # two sums in the same words are two sums
        "temperature": 0.5,
        "max_new_tokens": 24,
    },
    "sft": {"num_train_epochs": 3},
    "generate_responses": {"num_responses": 8, "max_new_tokens": 12, "temperature": 0.7, "top_p": 1.0},
    "judge": {"mode": "checker", "checker": "stages.lib.checkers:sums"},
    "gates": {"max_mode_share": 1.0, "max_failure_rate": 0.5, "min_pair_yield": 0.1},
    "build_preferences": {"accept_score": 5.0},
    "dpo": {"num_train_epochs": 2, "nll_coef": 0.2},
    "evaluate": {"max_new_tokens": 12},
}


def sums(count: int, seed: int, largest: int) -> list[tuple[str, int]]:
    """Return `count` different sums of two numbers from 1 to `largest`, as prompt and answer."""
    generator = random.Random(seed)
    pairs: dict[tuple[int, int], None] = {}
    while len(pairs) < count:
        pairs[generator.randint(1, largest), generator.randint(1, largest)] = None
    return [(generator.choice(FORMS).format(a=a, b=b), a + b) for a, b in pairs]


def summands(prompts: Iterable[str]) -> set[tuple[str, ...]]:
    """Return the two numbers of each prompt that has two."""
    found = (tuple(re.findall(r"\d+", prompt)) for prompt in prompts)
    return {numbers for numbers in found if len(numbers) == 2}


@click.command(help=__doc__)
@click.argument("workspace", type=click.Path(path_type=Path, file_okay=False))
@click.option("--iterations", default=3, show_default=True)
@click.option("--train", default=200, show_default=True, help="Sums of the SFT data.")
@click.option("--test", default=200, show_default=True, help="Held-out sums.")
@click.option("--largest", default=30, show_default=True, help="Largest summand.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="[default: runtime.dtype]")
def main(workspace: Path, iterations: int, train: int, test: int, largest: int, dtype: str | None) -> None:
    """Make what is missing, then measure."""
    chain = {f"m{i}": f"m{i - 1}" for i in range(1, iterations + 1)}
    write_params(workspace, {**CHANGES, "iterations": chain, "runtime": {"dtype": dtype} if dtype else {}})
    link(workspace, ("models/base", "models/reward", "data/seed"))
    seed = int(project_params()["seed"])
    if not (workspace / "data/prepared").exists():
        found = sums(train + test, seed, largest)
        write_rows(
            workspace / "data/sums.jsonl",
            [
                Instruction(id=f"s{i}", category="sums", prompt=prompt, completion=f"{answer}")
                for i, (prompt, answer) in enumerate(found[:train])
            ],
        )
        held_out = [
            EvalPrompt(id=f"e{i}", category="sums", turns=[prompt]) for i, (prompt, _) in enumerate(found[train:])
        ]
        write_rows(workspace / "data/held_out.jsonl", held_out)
        run(workspace, "stages.prepare_data")
    if not (workspace / "models/m0").exists():
        run(workspace, "stages.sft")
    for model, parent in chain.items():
        if not (workspace / "models" / model).exists():
            for stage in ("generate_prompts", "generate_responses", "judge", "build_preferences", "dpo"):
                run(workspace, f"stages.{stage}", model, parent)
    written: set[tuple[str, ...]] = set()
    for model in chain:
        rows = read_rows(workspace / "data" / model / "prompts.jsonl", Prompt)
        written |= summands(row.messages[0].content for row in rows)
    result = []
    for model in ("base", "m0", *chain):
        if not (workspace / "data/eval" / f"{model}.json").exists():
            run(workspace, "stages.evaluate", model)
        answers = read_rows(workspace / "data/eval" / f"{model}.jsonl", Answer)
        answers = [answer for answer in answers if not summands([answer.prompt]) & written]
        right = math.fsum(answer.judge_score == 5 for answer in answers)
        low, high = wilson_interval(right, len(answers)) or (None, None)
        row = {"model": model, "right": right / len(answers), "low": low, "high": high, "sums": len(answers)}
        if model in chain:
            metrics = workspace / "data/metrics" / model
            scores, pairs = read_json(metrics / "scores.json"), read_json(metrics / "preferences.json")
            row |= {"sampled_right": scores["mean_score"] / 5, "failures": scores["failures"]}
            row |= {key: pairs[key] for key in ("pairs", "pair_yield", "accepted")}
        result.append(row)
        click.echo(" ".join(f"{key} {value}" for key, value in row.items()))
    click.echo(json.dumps({"train": train, "largest": largest, "models": result}))


if __name__ == "__main__":
    main()
