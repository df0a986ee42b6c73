"""Judge the responses: data/<model>/responses.jsonl -> data/<model>/scores.jsonl.

The judge is m0, the parent (`judge.use_parent`) or the reward model, with which the main process alone scores, without
a backend. It also judges the anchors, which are the held-out judgements -> data/metrics/<model>/{anchors.jsonl,
scores.json}. A killed run resumes with the missing rows. Run with `python -m stages.judge m1 m0` (the new model, its
parent).
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click
from tqdm import tqdm

from align.backends.choose import GenerationSettings, open_generator
from align.core.errors import InputError
from align.core.files import write_json
from align.core.rows import Judgement, Response, ScoredResponse, read_rows, write_rows
from align.data.off_topic import off_topic_rows
from align.generation.generator import check_lengths
from align.judge.anchors import anchor_scores, as_judge, relevance
from align.judge.asking import judge_responses
from align.judge.request import JudgeSettings, Verdict, verdict_of_reward
from align.models.batching import cut_batches
from align.models.stack import AdapterStack
from align.models.tokenization import encode_completion, encode_user
from align.report.statistics import SCORE_EDGES, histogram, mean, mode_share, spearman, standard_deviation
from align.reward.scoring import reward_scores
from align.run.provenance import environment
from align.run.runtime import RuntimeSettings, is_main_process
from align.run.stage import BASE, Stage
from align.run.work import Work


def reward_verdicts(
    rows: Sequence[tuple[str, str]], runtime: RuntimeSettings, work: Work, *, description: str
) -> list[Verdict]:
    """Judge each (prompt, response) by models/reward; an empty response is a failure, not a score.

    The token ids are those of the reward model's training, so a response that was cut off is scored as if it ended
    there. Finished batches are in `work`; a batch depends on the rows alone, so a killed run resumes to equal scores.

    Raises:
        InputError: a row is longer than the model's context.
    """
    stack = AdapterStack(BASE, runtime)
    stack.add("reward", Path("models/reward"))
    encoded = [encode_user(stack.tokenizer, p) + encode_completion(stack.tokenizer, r) for p, r in rows]
    check_lengths(encoded, 0, getattr(stack.causal_lm.config.get_text_config(), "max_position_embeddings", None))
    lengths = [len(ids) for ids in encoded]
    asked = sorted((i for i, (_, response) in enumerate(rows) if response.strip()), key=lambda i: lengths[i])
    rewards = work.rows("rewards")
    with tqdm(total=len(asked), desc=description, unit="row") as progress:
        for batch in cut_batches(asked, lengths, runtime.batch_size):
            if batch[0] not in rewards:
                ids = [encoded[i] for i in batch]
                scores = reward_scores(stack, "reward", ids, batch_size=runtime.batch_size)
                rewards.finish(dict(zip(batch, scores, strict=True)))
            progress.update(len(batch))
    return [
        verdict_of_reward(rewards[i]) if i in rewards else Verdict(None, "empty response") for i in range(len(rows))
    ]


@click.command(help=__doc__)
@click.argument("model")
@click.argument("parent")
def main(model: str, parent: str) -> None:
    stage = Stage(f"judge@{model}")
    generation = stage.section("generation", GenerationSettings)
    settings = stage.section("judge", JudgeSettings)
    stage.start()
    judge, by_reward = parent if settings.use_parent else settings.model, settings.mode == "reward"
    if by_reward and not is_main_process():
        return
    data, held_out = Path("data") / model, Path("data/prepared/eval/judgements.jsonl")
    responses = read_rows(data / "responses.jsonl", Response, unique=["id", "sample"])
    # build_preferences has the gate: a judge that cannot order these must not choose what the next model learns.
    judgements = read_rows(held_out, Judgement) if settings.checker is None else []
    off_topic = off_topic_rows(judgements, 1, stage.seed)
    asked = [(row.prompt, row.response) for row in responses]
    asked += [(row.prompt, row.response) for row in [*judgements, *off_topic]]
    inputs = [BASE, Path("models") / judge, data / "responses.jsonl", held_out]
    description = f"{model} judgements"
    with stage.work(inputs) if by_reward else stage.unlocked_work(inputs) as work:
        if by_reward:
            verdicts = reward_verdicts(asked, stage.runtime, work, description=description)
        else:
            with open_generator(generation, stage.runtime, judge, work) as generator:
                verdicts = judge_responses(generator, asked, settings, stage.seed, description=description)
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
            "histogram": histogram(scores, SCORE_EDGES),
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
