"""Train a reward model on human preferences: models/<reward_model.init> + data/prepared/preferences -> models/reward.

The loss is -logsigmoid(chosen - rejected) (Bradley-Terry), also against chosen replies that break off. The model is
saved with its score head and the bias that makes the mean score of reference answers 0. A killed run resumes from its
last checkpoint. Run with `python -m stages.reward_model`.
"""

import math
from dataclasses import replace
from pathlib import Path

import click

from align.core.files import replacing, write_csv, write_json
from align.core.rows import PreferencePair, read_rows, write_rows
from align.models.adapters import LoraSettings
from align.models.base import copy_tokenizer, load_tokenizer
from align.models.card import write_model_card
from align.models.full import save_trained
from align.models.stack import SCORE_FILE, AdapterStack
from align.models.tokenization import drop_too_long
from align.reward.report import calibration, reward_report
from align.reward.scoring import reward_scores
from align.reward.training import (
    RewardModelSettings,
    encode_pairs,
    fit,
    reward_start,
    score_pairs,
    training_rows,
)
from align.run.stage import BASE, Stage
from align.training.validation import described, hold_out

TRAIN, TEST = Path("data/prepared/preferences/train.jsonl"), Path("data/prepared/preferences/test.jsonl")
REPORT = Path("data/reward")
# Chosen training replies whose mean score becomes 0: enough for a mean within a tenth of a standard deviation.
CENTERING_ROWS = 128


@click.command(help=__doc__)
def main() -> None:
    stage = Stage("reward_model")
    lora = stage.optional_section("lora", LoraSettings)
    settings = stage.section("reward_model", RewardModelSettings)
    stage.start()
    tokenizer, init = load_tokenizer(BASE), Path("models") / settings.init
    pairs = read_rows(TRAIN, PreferencePair)
    test_pairs = read_rows(TEST, PreferencePair)  # read before training, so that a bad row costs no hours
    rows = training_rows(pairs, encode_pairs(tokenizer, pairs), settings, stage.seed)
    rows, dropped = drop_too_long(rows, [row["length"] for row in rows], settings.max_length, "reward_model.max_length")

    rows, held_out_rows = hold_out(rows, settings, stage.seed, "reward_model")

    with stage.work([BASE, init, TRAIN, TEST]) as work:
        model = reward_start(BASE, init, stage.runtime, lora)
        folder = work.folder / "reward"
        history = REPORT / "history.csv"
        validation = fit(
            model, tokenizer, rows, held_out_rows, stage.runtime, settings, stage.seed, history, folder, work
        )
        with replacing(Path("models/reward")) as temporary:
            save_trained(model, temporary, stage.runtime)
            copy_tokenizer(BASE, temporary)
            parents, data = {"base": BASE, "parent": init}, {"preferences": TRAIN}
            write_model_card(temporary, stage, parents, data, validation)
            del model
            # Measure what was written, not what was in memory.
            stack = AdapterStack(BASE, stage.runtime)
            stack.add("reward", temporary)
            references = [row["chosen_ids"] for row in rows[:CENTERING_ROWS]]
            scores = reward_scores(
                stack, "reward", references, batch_size=stage.runtime.batch_size, description="reference answers"
            )
            bias = -math.fsum(scores) / len(scores)
            write_json(temporary / SCORE_FILE, {"score_bias": bias})
            stack.heads["reward"] = replace(stack.heads["reward"], bias=bias)
            held_out = score_pairs(stack, test_pairs, "held-out pairs")
        counts = {
            "train_pairs": len(rows),
            "truncated_negatives": sum(len(row["truncated_ids"]) for row in rows),
            "dropped_too_long": dropped,
        }
        summary = reward_report(held_out)
        write_rows(REPORT / "test_scores.jsonl", held_out)
        write_csv(REPORT / "calibration.csv", calibration(held_out))
        write_json(Path("data/metrics/reward.json"), counts | summary)
    click.echo(
        f"reward_model: {len(rows)} pairs, {dropped} dropped as longer than {settings.max_length} tokens, "
        f"{counts['truncated_negatives']} truncated replies; held-out accuracy {summary['accuracy']:.2f} "
        f"[{summary['accuracy_low']:.2f}, {summary['accuracy_high']:.2f}] on {summary['pairs']}{described(validation)}"
    )


if __name__ == "__main__":
    main()
