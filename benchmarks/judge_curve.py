"""What more judge rows buy: the judge trained on 100, 300 and 1,000 of them, and measured on held-out questions.

Each point is stage sft in a folder of its own in WORKSPACE, with as many whole questions as fit into so many rows and
as many EFT steps of one question: with equal steps, what differs is the data. What is there already is not made again.
Measured: pairwise accuracy on the held-out judged questions; relevance, how often a question's best response beats a
good one to another question; and, with `--ranked`, the order of the ranked replies of OpenAssistant trees, which
nothing here has seen. The last line is one JSON object. Run after `dvc repro`.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import click

from align.core.params import Params
from align.core.rows import Judgement, read_rows, write_rows
from align.data.judgements import judgements_of_tree
from align.data.message_trees import MessageTree
from align.data.off_topic import off_topic_rows
from align.generation.local import TorchGenerator
from align.judge.anchors import relevance
from align.judge.asking import judge_responses
from align.judge.request import JudgeSettings
from align.models.stack import AdapterStack
from align.report.statistics import agreement
from align.run.runtime import RuntimeSettings, start
from benchmarks.workspace import link, run, write_params
from stages.prepare_data import split_by_group

Measures = dict[str, float | int | None]


def first_questions(rows: Sequence[Judgement], count: int) -> list[Judgement]:
    """Return the rows of the first questions, in the order of their ids, that have no more than `count` together."""
    questions: dict[str, list[Judgement]] = {}
    for row in rows:
        questions.setdefault(row.question_id, []).append(row)
    taken: list[Judgement] = []
    for _, members in sorted(questions.items()):
        if len(taken) + len(members) > count:
            break
        taken += members
    return taken


def measure(
    stack: AdapterStack,
    name: str,
    judgements: Sequence[Judgement],
    ranked: Sequence[Judgement],
    settings: JudgeSettings,
    params: Params,
    batch_size: int,
) -> Measures:
    """Return the measures of one judge, each with its 95% interval."""
    foreign = off_topic_rows(judgements, 1, params.seed)
    rows = [*judgements, *foreign, *ranked]
    with stack.using(name) as model:
        verdicts = judge_responses(
            TorchGenerator(model, stack.tokenizer, batch_size),
            [(row.prompt, row.response) for row in rows],
            settings,
            params.seed,
            description=name,
        )
    own, rest = verdicts[: len(judgements)], verdicts[len(judgements) :]
    found: Measures = {}
    for kind, part, scores in (("", judgements, own), ("ranked_", ranked, rest[len(foreign) :])):
        agreed = agreement([v.score for v in scores], [r.score for r in part], [r.question_id for r in part])
        for key in ("pairwise_accuracy", "pairwise_accuracy_low", "pairwise_accuracy_high", "spearman"):
            found[kind + key] = agreed[key]
    on_topic = relevance(judgements, own, foreign, rest[: len(foreign)])
    return found | {f"relevance_{key}": value for key, value in on_topic.items()}


@click.command(help=__doc__)
@click.argument("workspace", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--point",
    "points",
    type=(int, int),
    multiple=True,
    default=((100, 280), (300, 280), (1000, 280)),
    show_default=True,
    help="Rows and steps.",
)
@click.option("--off-topic", default=2, show_default=True, help="Good responses to other questions, for each question.")
@click.option("--ranked", type=click.Path(path_type=Path, exists=True), help="OpenAssistant trees as JSONL.")
def main(workspace: Path, points: tuple[tuple[int, int], ...], off_topic: int, ranked: Path | None) -> None:
    """Make what is missing, then measure each point, the base model and m0."""
    params = Params.read()
    runtime = params.section("runtime", RuntimeSettings)
    judge = params.section("judge", JudgeSettings)
    start(runtime, params.seed)
    prepare = params.values["prepare_data"]
    judgements = read_rows(Path(prepare["judgements"]), Judgement)
    rows, test = split_by_group(judgements, lambda r: r.prompt, prepare["judgements_test_fraction"], params.seed)
    rows += off_topic_rows(rows, off_topic, params.seed)
    trees = read_rows(ranked, MessageTree) if ranked else []
    parsed = [judgements_of_tree(tree, language="en") for tree in trees]
    replies = [row for found in parsed if not isinstance(found, str) for row in found]

    judges = {"base": Path("models/base"), "m0": Path("models/m0")}
    result: dict[str, Measures] = {name: {} for name in judges}
    for size, steps in points:
        taken = first_questions(rows, size)
        questions = len({row.question_id for row in taken})
        name = f"{len(taken)} rows, {steps} steps"
        folder = workspace / f"{size}-{steps}"
        link(folder, ("models/base", "data/m0/ift.jsonl"))
        write_params(folder, {"eft": {"num_train_epochs": steps / questions}})
        if not (folder / "models/m0").exists():
            write_rows(folder / "data/m0/eft.jsonl", taken)
            begin = time.perf_counter()
            run(folder, "stages.sft")
            click.echo(f"{name}: {time.perf_counter() - begin:.0f} s")
        judges[name] = folder / "models/m0"
        result[name] = {"questions": questions}
    stack = AdapterStack(Path("models/base"), runtime)
    for number, (name, model) in enumerate(judges.items()):
        stack.add(f"judge{number}", model)
        result[name] |= measure(stack, f"judge{number}", test, replies, judge, params, runtime.batch_size)
        click.echo(f"{name}: " + ", ".join(f"{key} {value}" for key, value in result[name].items()))
    click.echo(json.dumps({"test_rows": len(test), "ranked_rows": len(replies), "judges": result}))


if __name__ == "__main__":
    main()
