"""How far style alone goes on the seed data: ridge regression on word counts, against chance.

A reward model or judge that does no better than this has shown that training works, and nothing about quality.
Run with `python -m benchmarks.bag_of_words`.
"""

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from align.core.rows import Judgement, PreferencePair, read_rows
from align.core.split import conversation_key, split_by_group
from align.data.preferences import read_preferences
from align.report.statistics import agreement, words
from benchmarks.workspace import project_params

FOLDS = 10
PENALTIES = (1.0, 10.0, 100.0)


def word_counts(texts: Sequence[str]) -> NDArray[np.float64]:
    """Return log(1 + count) of each word that two texts or more hold, (texts, words), and each text's length."""
    tokens = [words(text) for text in texts]
    vocabulary = {word: i for i, word in enumerate(sorted({word for row in tokens for word in row}))}
    counts = np.zeros((len(texts), len(vocabulary)))
    for i, row in enumerate(tokens):
        for word in row:
            counts[i, vocabulary[word]] += 1
    counts = counts[:, (counts > 0).sum(0) > 1]
    return np.hstack([np.log1p(counts), np.log1p(counts.sum(1, keepdims=True))])


def fold_numbers(groups: Sequence[str], folds: int) -> list[int]:
    """Return the fold of each row by its group, which is in one fold: groups take turns in the order they appear."""
    order = {group: i % folds for i, group in enumerate(dict.fromkeys(groups))}
    return [order[group] for group in groups]


def cross_validated(
    features: NDArray[np.float64], targets: NDArray[np.float64], folds: Sequence[int], penalty: float
) -> NDArray[np.float64]:
    """Return each row's prediction by ridge regression on the rows of the other folds, by their numbers."""
    fold = np.array(folds)
    predicted = np.zeros(len(targets))
    for held_out in sorted(set(folds)):
        train = features[fold != held_out]
        weights = np.linalg.solve(train @ train.T + penalty * np.eye(len(train)), targets[fold != held_out])
        predicted[fold == held_out] = features[fold == held_out] @ train.T @ weights
    return predicted


def preference_margins(pairs: Sequence[PreferencePair], folds: Sequence[int], penalty: float) -> NDArray[np.float64]:
    """Return for each pair by how much the chosen reply is predicted to be better; above 0 is right."""
    counts = word_counts([pair.chosen for pair in pairs] + [pair.rejected for pair in pairs])
    difference = counts[: len(pairs)] - counts[len(pairs) :]
    sign = np.where(np.arange(len(pairs)) % 2 == 0, 1.0, -1.0)  # half of the pairs the other way round
    return cross_validated(difference * sign[:, None], sign, folds, penalty) * sign


def preference_accuracy(path: Path, penalty: float) -> float:
    """Return the share of pairs whose chosen reply is predicted to be better than the rejected one."""
    pairs, _ = read_preferences(path)
    folds = fold_numbers([conversation_key(pair.messages) for pair in pairs], FOLDS)
    return float((preference_margins(pairs, folds, penalty) > 0).mean())


def held_out_accuracy(path: Path, penalty: float) -> float:
    """Return the same on the held-out pairs of params.yaml's split, from its training pairs."""
    params = project_params()
    pairs, _ = read_preferences(path)
    fraction = params["prepare_data"]["preferences_test_fraction"]
    test = {
        pair.id
        for pair in split_by_group(pairs, lambda pair: conversation_key(pair.messages), fraction, params["seed"])[1]
    }
    held_out = [int(pair.id in test) for pair in pairs]
    margins = preference_margins(pairs, held_out, penalty)
    return float((margins[np.array(held_out) == 1] > 0).mean())


def judgement_accuracy(path: Path, penalty: float) -> float:
    """Return the pairwise accuracy within questions of scores predicted from the response's words."""
    rows = read_rows(path, Judgement)
    scores = [row.score for row in rows]
    groups = [row.question_id for row in rows]
    counts = word_counts([row.response for row in rows])
    predicted = cross_validated(counts, np.array(scores) - np.mean(scores), fold_numbers(groups, FOLDS), penalty)
    return float(agreement(predicted.tolist(), scores, groups)["pairwise_accuracy"] or 0.0)


@click.command(help=__doc__)
def main() -> None:
    """Print each accuracy at each penalty."""
    seed = Path("data/seed")
    for name, accuracy, file in (
        (f"preferences, {FOLDS} folds by prompt", preference_accuracy, "preferences.jsonl"),
        ("preferences, the split of params.yaml", held_out_accuracy, "preferences.jsonl"),
        (f"judgements, pairs of a question, {FOLDS} folds by prompt", judgement_accuracy, "judgements.jsonl"),
    ):
        shares = ", ".join(f"{accuracy(seed / file, penalty):.3f} (penalty {penalty:g})" for penalty in PENALTIES)
        click.echo(f"{name}: {shares}")


if __name__ == "__main__":
    main()
