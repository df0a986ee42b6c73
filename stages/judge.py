"""Judge the responses with m0 or the parent model: data/<model>/responses.jsonl -> data/<model>/scores.jsonl.

The judge (`judge.model`) also judges the anchors, which are the held-out judgements ->
data/metrics/<model>/{anchors.jsonl,scores.json}.
A killed run resumes with the missing rows. Run with `python -m stages.judge m1 m0` (the new model, its parent).
"""

from collections import Counter
from pathlib import Path

import click

from align.backends.choose import GenerationSettings, open_generator
from align.core.errors import InputError
from align.core.files import write_json
from align.core.rows import Judgement, Response, ScoredResponse, read_rows, write_rows
from align.data.off_topic import off_topic_rows
from align.judge.anchors import anchor_scores, as_judge, relevance
from align.judge.asking import judge_responses
from align.judge.request import JudgeSettings
from align.report.statistics import mean, mode_share, spearman, standard_deviation
from align.run.provenance import environment
from align.run.runtime import is_main_process
from align.run.stage import BASE, Stage


@click.command(help=__doc__)
@click.argument("model")
@click.argument("parent")
def main(model: str, parent: str) -> None:
    stage = Stage(f"judge@{model}")
    generation = stage.section("generation", GenerationSettings)
    settings = stage.section("judge", JudgeSettings)
    stage.start()
    judge = parent if settings.model == "parent" else "m0"
    data, held_out = Path("data") / model, Path("data/prepared/eval/judgements.jsonl")
    responses = read_rows(data / "responses.jsonl", Response, unique=["id", "sample"])
    # build_preferences has the gate: a judge that cannot order these must not choose what the next model learns.
    judgements = read_rows(held_out, Judgement) if settings.checker is None else []
    off_topic = off_topic_rows(judgements, 1, stage.seed)
    asked = [(row.prompt, row.response) for row in responses]
    asked += [(row.prompt, row.response) for row in [*judgements, *off_topic]]
    inputs = [BASE, Path("models") / judge, data / "responses.jsonl", held_out]
    with stage.unlocked_work(inputs) as work, open_generator(generation, stage.runtime, judge, work) as generator:
        verdicts = judge_responses(
            generator,
            asked,
            settings,
            stage.seed,
            description=f"{model} judgements",
        )
        if not is_main_process():
            return
        rows = [
            ScoredResponse(**row.model_dump(), **vars(verdict) | {"judgements": list(verdict.judgements)})
            for row, verdict in zip(responses, verdicts, strict=False)  # verdicts on the held-out judgements follow
        ]
        own = verdicts[len(responses) : len(responses) + len(judgements)]
        scores = [row.score for row in rows if row.score is not None]
        failures = Counter(row.failure for row in rows if row.failure is not None)
        if not scores:
            raise InputError(
                f"judge@{model}: all {len(rows)} judgements failed ({dict(failures)}); try another judge.mode (mode "
                "sample needs a judge that learned to write judgements, with sft.eft_share above 0)"
            )
        summary = {
            "judge": judge,
            "rows": len(rows),
            "mean_score": mean(scores),
            "std": standard_deviation(scores),
            "mode_share": mode_share(scores),
            "failure_rate": 1 - len(scores) / len(rows),
            "failures": dict(sorted(failures.items())),
            "score_length_correlation": spearman(scores, [row.num_tokens for row in rows if row.score is not None]),
            "as_judge": as_judge(judgements, own) if judgements else None,
            "relevance": relevance(judgements, own, off_topic, verdicts[-len(off_topic) :]) if judgements else None,
            "environment": environment(stage.runtime),
        }
        write_rows(data / "scores.jsonl", rows)
        metrics = Path("data/metrics") / model
        write_rows(metrics / "anchors.jsonl", anchor_scores(judgements, own))
        write_json(metrics / "scores.json", summary)
    click.echo(f"judge@{model}: {len(scores)} judged, mean {mean(scores):.2f}, failed {failures.total()}")


if __name__ == "__main__":
    main()
