"""What more judge rows buy: the judge trained on 100, 300 and 1,000 of them, and measured on held-out questions.

Each point is the first part of stage sft (EFT, without the instructions after it) on as many whole questions as fit
into so many rows, for as many steps of one question: with equal steps, what differs is the data. Measured: pairwise
accuracy on the held-out judged questions; relevance, how often a question's best response beats a good one to another
question; and, with `--ranked`, the order of the ranked replies of OpenAssistant trees, which nothing here has seen. The
last line is one JSON object.
Run with `python -m benchmarks.judge_curve` after `dvc repro`.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
from peft import get_peft_model
from transformers import TrainingArguments

from stages.lib.eft import MessageTree, judgements_of_tree, off_topic_rows
from stages.lib.judge_report import relevance
from stages.lib.judge_trainer import JudgeTrainer, judged_questions
from stages.lib.judging import JudgeSettings
from stages.lib.metrics import agreement
from stages.lib.models import AdapterStack, LoraSettings, load_base, load_tokenizer, save_adapter
from stages.lib.params import Params
from stages.lib.records import Judgement, read_rows
from stages.lib.runtime import RuntimeSettings, start
from stages.lib.scoring import judge_responses
from stages.lib.tokenization import drop_too_long
from stages.lib.training import train
from stages.prepare_data import split_by_group
from stages.sft import EFTSettings

BASE = Path("models/base")
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
            model,
            stack.tokenizer,
            [(row.prompt, row.response) for row in rows],
            settings,
            params.seed,
            batch_size=batch_size,
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
@click.option(
    "--point",
    "points",
    type=(int, int),
    multiple=True,
    default=((100, 100), (300, 100), (1000, 100), (1000, 280)),
    show_default=True,
    help="Rows and steps.",
)
@click.option("--off-topic", default=2, show_default=True, help="Good responses to other questions, for each question.")
@click.option("--ranked", type=click.Path(path_type=Path, exists=True), help="OpenAssistant trees as JSONL.")
@click.option("--also", multiple=True, help="A model of this project to measure beside them, such as m0.")
def main(points: tuple[tuple[int, int], ...], off_topic: int, ranked: Path | None, also: tuple[str, ...]) -> None:
    """Train and measure each point."""
    params = Params.read()
    runtime = params.section("runtime", RuntimeSettings)
    lora = params.section("lora", LoraSettings)
    eft = params.section("eft", EFTSettings)
    judge = params.section("judge", JudgeSettings)
    start(runtime, params.seed)
    prepare = params.values["prepare_data"]
    judgements = read_rows(Path(prepare["judgements"]), Judgement)
    rows, test = split_by_group(judgements, lambda r: r.prompt, prepare["judgements_test_fraction"], params.seed)
    rows += off_topic_rows(rows, off_topic, params.seed)
    trees = read_rows(ranked, MessageTree) if ranked else []
    parsed = [judgements_of_tree(tree, language="en") for tree in trees]
    replies = [row for found in parsed if not isinstance(found, str) for row in found]

    tokenizer = load_tokenizer(BASE)
    result: dict[str, Measures] = {}
    with tempfile.TemporaryDirectory() as scratch:
        stack = AdapterStack(BASE, runtime)
        judges = {name: name for name in ("base", *also)}  # what the table calls it -> its adapter
        for name in judges:
            stack.add(name, Path("models") / name)
        for number, (size, steps) in enumerate(points):
            taken = first_questions(rows, size)
            examples = judged_questions(tokenizer, taken)
            examples, dropped = drop_too_long(
                examples, [example["length"] for example in examples], eft.max_length, "eft.max_length"
            )
            name = f"{len(taken)} rows, {steps} steps"
            settings = eft.model_copy(update={"num_train_epochs": steps / len(examples)})
            model = get_peft_model(load_base(BASE, runtime), lora.config(task_type="CAUSAL_LM"))
            arguments = settings.arguments(
                Path(scratch), params.seed, runtime.torch_device.type == "cpu", order="random"
            )
            trainer = JudgeTrainer(model, TrainingArguments(**arguments), examples, settings.ranking_coef)
            begin = time.perf_counter()
            train(trainer, Path(scratch) / "history.csv")
            seconds = time.perf_counter() - begin
            save_adapter(model, Path(scratch) / str(number))
            del trainer, model
            judges[name] = f"point{number}"
            stack.add(judges[name], Path(scratch) / str(number))
            result[name] = {"questions": len(examples), "dropped": dropped, "train_seconds": round(seconds)}
            click.echo(f"{name}: {result[name]}")
        for name, adapter in judges.items():
            measures = measure(stack, adapter, test, replies, judge, params, runtime.batch_size)
            result[name] = result.get(name, {}) | measures
            click.echo(f"{name}: " + ", ".join(f"{key} {value}" for key, value in result[name].items()))
    click.echo(json.dumps({"test_rows": len(test), "ranked_rows": len(replies), "judges": result}))


if __name__ == "__main__":
    main()
