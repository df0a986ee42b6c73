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
from align.report.statistics import agreement, words
from stages.prepare_data import conversation_key, read_preferences

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
    features: NDArray[np.float64], targets: NDArray[np.float64], groups: Sequence[str], penalty: float, folds: int
) -> NDArray[np.float64]:
    """Return each row's prediction by ridge regression on the rows of the other folds."""
    fold = np.array(fold_numbers(groups, folds))
    predicted = np.zeros(len(targets))
    for held_out in range(folds):
        train = features[fold != held_out]
        weights = np.linalg.solve(train @ train.T + penalty * np.eye(len(train)), targets[fold != held_out])
        predicted[fold == held_out] = features[fold == held_out] @ train.T @ weights
    return predicted


def preference_margins(pairs: Sequence[PreferencePair], penalty: float, folds: int) -> NDArray[np.float64]:
    """Return for each pair by how much the chosen reply is predicted to be better; above 0 is right."""
    counts = word_counts([pair.chosen for pair in pairs] + [pair.rejected for pair in pairs])
    difference = counts[: len(pairs)] - counts[len(pairs) :]
    sign = np.where(np.arange(len(pairs)) % 2 == 0, 1.0, -1.0)  # half of the pairs the other way round
    groups = [conversation_key(pair) for pair in pairs]
    return cross_validated(difference * sign[:, None], sign, groups, penalty, folds) * sign


def preference_accuracy(path: Path, penalty: float) -> float:
    """Return the share of pairs whose chosen reply is predicted to be better than the rejected one."""
    return float((preference_margins(read_preferences(path)[0], penalty, FOLDS) > 0).mean())


def judgement_accuracy(path: Path, penalty: float) -> float:
    """Return the pairwise accuracy within questions of scores predicted from the response's words."""
    rows = read_rows(path, Judgement)
    scores = [row.score for row in rows]
    groups = [row.question_id for row in rows]
    counts = word_counts([row.response for row in rows])
    predicted = cross_validated(counts, np.array(scores) - np.mean(scores), groups, penalty, FOLDS)
    return float(agreement(predicted.tolist(), scores, groups)["pairwise_accuracy"] or 0.0)


@click.command(help=__doc__)
def main() -> None:
    """Print both accuracies at each penalty."""
    seed = Path("data/seed")
    for name, accuracy, file in (
        ("preferences: chosen told from rejected", preference_accuracy, "preferences.jsonl"),
        ("judgements: pairwise accuracy", judgement_accuracy, "judgements.jsonl"),
    ):
        found = ", ".join(f"{accuracy(seed / file, penalty):.2f} (penalty {penalty:g})" for penalty in PENALTIES)
        click.echo(f"{name}, {FOLDS}-fold by prompt: {found}")


if __name__ == "__main__":
    main()
