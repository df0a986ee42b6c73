"""Mode `sample` of the judge against mode `logits`, on the same held-out responses: agreement with people, and cost.

A judge that has learned to write its judgement is trained in folder WORKSPACE first (stage sft with `sft.eft_share`),
then both modes judge with it. The last line is one JSON object. Run after `dvc repro`.
"""

import json
import time
from pathlib import Path

import click

from align.core.params import Params
from align.core.rows import Judgement, read_rows
from align.generation.local import TorchGenerator
from align.judge.asking import judge_responses
from align.judge.request import JudgeSettings, Verdict
from align.models.stack import AdapterStack
from align.report.statistics import agreement, spearman
from align.run.runtime import RuntimeSettings, start
from benchmarks.workspace import link, run, write_params

DATA = ("data/m0/ift.jsonl", "data/m0/eft.jsonl")


@click.command(help=__doc__)
@click.argument("workspace", type=click.Path(path_type=Path, file_okay=False))
@click.option("--eft-share", default=0.5, show_default=True, help="Of judge replies among the rows of SFT.")
@click.option("--samples", default=3, show_default=True)
def main(workspace: Path, eft_share: float, samples: int) -> None:
    """Make what is missing, then measure."""
    link(workspace, ("models/base", *DATA))
    write_params(workspace, {"sft": {"eft_share": eft_share}})
    if not (workspace / "models/m0").exists():
        run(workspace, "stages.sft")
    params = Params.read()
    runtime = params.section("runtime", RuntimeSettings)
    settings = params.section("judge", JudgeSettings)
    start(runtime, params.seed)
    rows = read_rows(Path("data/prepared/eval/judgements.jsonl"), Judgement)
    stack = AdapterStack(Path("models/base"), runtime)
    stack.add("m0", Path("models/m0"))
    stack.add("with replies", workspace / "models/m0")
    judged: dict[str, list[Verdict]] = {}
    seconds: dict[str, float] = {}
    result: dict[str, dict[str, float | int | None]] = {}
    for name, judge, mode in (
        ("m0, logits", "m0", "logits"),
        ("with replies, logits", "with replies", "logits"),
        ("with replies, sample", "with replies", "sample"),
    ):
        chosen = settings.model_copy(update={"mode": mode, "samples": samples})
        begin = time.perf_counter()
        with stack.using(judge) as model:
            judged[name] = judge_responses(
                TorchGenerator(model, stack.tokenizer, runtime.batch_size),
                [(row.prompt, row.response) for row in rows],
                chosen,
                params.seed,
                description=name,
            )
        seconds[name] = time.perf_counter() - begin
        agreed = agreement(
            [verdict.score for verdict in judged[name]], [row.score for row in rows], [row.question_id for row in rows]
        )
        result[name] = {"seconds_per_row": seconds[name] / len(rows), **agreed}
        click.echo(f"{name}: " + ", ".join(f"{key} {value}" for key, value in result[name].items()))
    both = [
        (a.score, b.score)
        for a, b in zip(judged["with replies, logits"], judged["with replies, sample"], strict=True)
        if a.score is not None and b.score is not None
    ]
    for row, verdict in list(zip(rows, judged["with replies, sample"], strict=True))[:5]:
        click.echo(f"human {row.score}, judge {verdict.score}: {verdict.judgements[0]!r}")
    summary = {
        "rows": len(rows),
        "samples": samples,
        "modes": result,
        "spearman_between_modes": spearman([a for a, _ in both], [b for _, b in both]),
        "seconds_ratio": seconds["with replies, sample"] / seconds["with replies, logits"],
    }
    click.echo(json.dumps(summary))


if __name__ == "__main__":
    main()
