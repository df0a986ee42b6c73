"""Compare models/base and models/text on held-out labelled texts -> data/text/eval.json and eval.csv.

A model predicts the label whose tokens are most likely after the text. Run with `python -m stages.text.evaluate`.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from align.core.files import write_csv, write_json
from align.core.rows import read_rows
from align.models.base import load_base, load_tokenizer
from align.models.tokenization import drop_too_long
from align.report.statistics import bootstrap_interval, wilson_interval
from align.run.stage import BASE, Stage
from align.text.labelled import LabelledText, labels_of
from align.text.settings import TextSettings
from align.text.training import Choices, check_positions, encode_choices_of, score_choices

DATA = Path("data/text")


def predicted_label(score: dict[str, Any]) -> int:
    """Return the number of the most likely label; the first one if tied."""
    choices: list[float] = score["choices"]
    return choices.index(max(choices))


def measures(rows: Sequence[Choices], scores: Sequence[dict[str, Any]], labels: Sequence[str]) -> dict[str, Any]:
    """Return a model's measures on the test rows.

    `accuracy` has a 95% Wilson interval. `perplexity` is per token, over each row's text and right label (all tokens
    but the first), without an EOS; `label_perplexity` is over the right label's tokens. `confusion` counts rows by
    right label, then by predicted label.
    """
    pairs = Counter((row.gold, predicted_label(score)) for row, score in zip(rows, scores, strict=True))
    right = sum(n for (gold, predicted), n in pairs.items() if gold == predicted)
    low, high = wilson_interval(right, len(rows)) or (0.0, 1.0)
    text = math.fsum(score["row"] for score in scores) / sum(len(row.ids) - 1 for row in rows)
    label = math.fsum(score["choices"][row.gold] for row, score in zip(rows, scores, strict=True))
    return {
        "accuracy": right / len(rows),
        "accuracy_low": low,
        "accuracy_high": high,
        "perplexity": math.exp(-text),
        "label_perplexity": math.exp(-label / sum(len(row.tails[row.gold]) for row in rows)),
        "confusion": {gold: {label: pairs[i, j] for j, label in enumerate(labels)} for i, gold in enumerate(labels)},
    }


@click.command(help=__doc__)
def main() -> None:
    stage = Stage("text_evaluate")
    settings = stage.section("text", TextSettings)
    stage.start()
    tokenizer = load_tokenizer(BASE)
    pad_id = tokenizer.pad_token_id
    assert isinstance(pad_id, int)
    trained_on = read_rows(DATA / "train.jsonl", LabelledText)
    labels = labels_of(trained_on)
    read = read_rows(DATA / "test.jsonl", LabelledText)
    pairs = [(row, encode_choices_of(tokenizer, settings.template, labels, row)) for row in read]
    pairs, dropped = drop_too_long(pairs, [row.longest for _, row in pairs], settings.max_length, "text.max_length")
    rows = [row for _, row in pairs]

    scores = {}
    models = {"base": BASE, "text": Path("models/text")}
    with stage.work([*models.values(), DATA / "train.jsonl", DATA / "test.jsonl"]) as work:
        for name, folder in models.items():
            loaded = load_base(folder, stage.runtime)
            check_positions(loaded, settings.max_length)
            scores[name] = score_choices(
                loaded, pad_id, rows, work.rows(name), batch_size=stage.runtime.batch_size, description=name
            )
            del loaded
        majority = Counter(row.label_text for row in trained_on).most_common(1)[0][0]
        gains = [
            float(predicted_label(after) == row.gold) - float(predicted_label(before) == row.gold)
            for row, before, after in zip(rows, scores["base"], scores["text"], strict=True)
        ]
        low, high = bootstrap_interval([[gain] for gain in gains]) or (0.0, 0.0)
        by_model = {name: measures(rows, scores[name], labels) for name in scores}
        result = {
            "rows": len(rows),
            "dropped_too_long": dropped,
            "majority_accuracy": sum(row.label_text == majority for row, _ in pairs) / len(rows),
            "accuracy_gain": sum(gains) / len(rows),
            "accuracy_gain_low": low,
            "accuracy_gain_high": high,
            **by_model,
        }
        table = [
            {"id": row.id, "label_text": row.label_text}
            | {name: labels[predicted_label(own[i])] for name, own in scores.items()}
            | {
                f"{name}_{label}": own[i]["choices"][j]
                for name, own in scores.items()
                for j, label in enumerate(labels)
            }
            for i, (row, _) in enumerate(pairs)
        ]
        write_csv(DATA / "eval.csv", table)
        write_json(DATA / "eval.json", result)
    for name, values in by_model.items():
        click.echo(
            f"text_evaluate: {name}: accuracy {values['accuracy']:.3f} "
            f"[{values['accuracy_low']:.3f}, {values['accuracy_high']:.3f}], perplexity {values['perplexity']:.1f}"
        )
    click.echo(
        f"text_evaluate: {len(rows)} rows, {dropped} dropped; most frequent label {result['majority_accuracy']:.3f}"
    )


if __name__ == "__main__":
    main()
