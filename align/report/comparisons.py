"""Models compared by what `evaluate` measured: the same prompts, answered by each."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from align.core.errors import InputError
from align.core.files import REBUILD
from align.core.rows import AnchorScore, Answer, CheckedAnswer, read_rows
from align.report.paired import Difference, length_controlled_win_rate, mcnemar_p, paired_difference
from align.report.statistics import bootstrap_interval, corpus_distinct_2, mean, win_rate, words

R = TypeVar("R", Answer, AnchorScore, CheckedAnswer)
BASELINES = ("m0", "base")
LOOP_WORDS = 4
LOOP_TIMES = 3


@dataclass(frozen=True)
class Evaluated:
    """A model's answers to the held-out conversations and to the checked prompts (none: not checked)."""

    answers: Sequence[Answer]
    checked: Sequence[CheckedAnswer]


def read_same(
    folder: Path,
    models: Sequence[str],
    ending: str,
    row_type: type[R],
    key: Sequence[str],
    first: str = "m0",
    allow_empty: bool = False,
) -> dict[str, list[R]]:
    """Read a file of each model; all must have the keys of `first` in its order, to be compared row by row."""
    rows = {
        name: read_rows(folder / f"{name}{ending}", row_type, unique=key, allow_empty=allow_empty) for name in models
    }
    keys = {name: [tuple(getattr(row, field) for field in key) for row in own] for name, own in rows.items()}
    for name in models:
        if keys[name] != keys[first]:
            raise InputError(f"{folder / name}{ending}: its rows differ from {first}'s, by {', '.join(key)}; {REBUILD}")
    return rows


def read_evaluated(folder: Path, models: Sequence[str]) -> dict[str, Evaluated]:
    """Read data/eval/<model>.jsonl and <model>.checks.jsonl; `models` include m0.

    Where m0 has no checked answers, no model is compared by checks.
    """
    answers = read_same(folder, models, ".jsonl", Answer, ["id", "turn"])
    checked: dict[str, list[CheckedAnswer]] = {name: [] for name in models}
    if (folder / "m0.checks.jsonl").exists():
        checked = read_same(folder, models, ".checks.jsonl", CheckedAnswer, ["id"])
        numbers = {name: [(len(row.strict), len(row.loose)) for row in rows] for name, rows in checked.items()}
        for name in models:
            if numbers[name] != numbers["m0"]:
                raise InputError(f"{folder / name}.checks.jsonl: has other numbers of checks than m0's; {REBUILD}")
    return {name: Evaluated(answers[name], checked[name]) for name in models}


def in_development_half(conversation: str) -> bool:
    """Return whether a held-out conversation, by its id, is in the half that may decide.

    The hash of an id does not depend on the other ids, so added prompts move none across.
    """
    return hashlib.sha256(conversation.encode()).digest()[0] % 2 == 1


def half(model: Evaluated, development: bool) -> Evaluated:
    """Return one half of a model's answers; all turns of a conversation are in the same half."""
    return Evaluated(
        [row for row in model.answers if in_development_half(row.id) == development],
        [row for row in model.checked if in_development_half(row.id) == development],
    )


def _clusters(ids: Sequence[str], values: Sequence[float]) -> list[list[float]]:
    """Return the values of each id, in the order of the ids."""
    groups: defaultdict[str, list[float]] = defaultdict(list)
    for key, value in zip(ids, values, strict=True):
        groups[key].append(value)
    return [sorted(groups[key]) for key in sorted(groups)]


def _judged(ours: Evaluated, theirs: Evaluated) -> list[tuple[Answer, float, Answer, float]]:
    """Return the pairs of answers that both have a judge's score, with the scores."""
    return [
        (a, a.judge_score, b, b.judge_score)
        for a, b in zip(ours.answers, theirs.answers, strict=True)
        if a.judge_score is not None and b.judge_score is not None
    ]


def judge_differences(ours: Evaluated, theirs: Evaluated) -> list[tuple[str, float]]:
    """Compare by the judge's score; prompts with a failed judgement of either answer take no part."""
    return [(a.id, mine - other) for a, mine, _, other in _judged(ours, theirs)]


def reward_differences(ours: Evaluated, theirs: Evaluated) -> list[tuple[str, float]]:
    """Compare by the reward model's score over the prompts where both answers end by themselves.

    A cut-off answer would be compared by where it was cut, not by what it says.
    """
    pairs = zip(ours.answers, theirs.answers, strict=True)
    return [(a.id, a.reward - b.reward) for a, b in pairs if a.finish_reason == b.finish_reason == "stop"]


def checks_differences(ours: Evaluated, theirs: Evaluated) -> list[tuple[str, float]]:
    """Compare by whether all checks of a prompt pass: 1, 0 or -1."""
    return [(a.id, int(passes(a)) - int(passes(b))) for a, b in zip(ours.checked, theirs.checked, strict=True)]


# Measure -> the paired differences (id of the conversation or checked prompt, ours minus theirs).
MEASURES: dict[str, Callable[[Evaluated, Evaluated], list[tuple[str, float]]]] = {
    "judge": judge_differences,
    "reward": reward_differences,
    "checks": checks_differences,
}


def compare(ours: Evaluated, theirs: Evaluated, measure: str) -> Difference:
    """Return the mean difference by a key of `MEASURES`; for checks, `p` is McNemar's exact test's."""
    pairs = MEASURES[measure](ours, theirs)
    changes = [value for _, value in pairs]
    p = mcnemar_p(changes.count(1), changes.count(-1)) if measure == "checks" and pairs else None
    return paired_difference(_clusters([key for key, _ in pairs], changes), p)


def passes(row: CheckedAnswer) -> bool:
    """Return whether an answer passes all checks of its prompt, without leniency."""
    return all(row.strict)


def is_loop(text: str) -> bool:
    """Return whether a text repeats itself: the same four words three times, or most word pairs more than once.

    Occurrences may overlap, case and punctuation do not count, and "most" is a distinct-2 below one half.
    """
    found = words(text)
    runs = Counter(tuple(found[i : i + LOOP_WORDS]) for i in range(len(found) - LOOP_WORDS + 1))
    distinct = corpus_distinct_2([found])
    return max(runs.values(), default=0) >= LOOP_TIMES or (distinct is not None and distinct < 0.5)


def own_columns(model: Evaluated) -> dict[str, float | None]:
    """Return the share of a model's answers that loop, and of checked prompts that it passes."""
    return {
        "loop_share": mean([float(is_loop(row.response)) for row in model.answers]),
        "checks_passed": mean([float(passes(row)) for row in model.checked]),
        "checks_passed_loose": mean([float(all(row.loose)) for row in model.checked]),
    }


def comparison_columns(models: Mapping[str, Evaluated], name: str, baseline: str) -> dict[str, Any]:
    """Return a model's columns of models.csv against a baseline, such as `judge_difference_vs_m0_low`."""
    ours, theirs = models[name], models[baseline]
    columns: dict[str, Any] = {}
    for measure in MEASURES:
        found = compare(ours, theirs, measure)
        key = f"{measure}_difference_vs_{baseline}"
        columns |= {key: found.mean, f"{key}_low": found.low, f"{key}_high": found.high, f"{key}_pairs": found.pairs}
        columns |= {f"{key}_detectable": found.detectable, f"{key}_verdict": found.verdict}
        if measure == "checks":
            columns[f"{key}_p"] = found.p
    judged = _judged(ours, theirs)
    wins = win_rate([mine for _, mine, _, _ in judged], [other for *_, other in judged])
    low, high = bootstrap_interval(_clusters([a.id for a, *_ in judged], wins)) or (None, None)
    lengths = [a.num_tokens - b.num_tokens for a, _, b, _ in judged]
    key = f"win_rate_vs_{baseline}"
    columns |= {key: mean(wins), f"{key}_low": low, f"{key}_high": high}
    columns[f"length_controlled_{key}"] = length_controlled_win_rate(wins, lengths)
    return columns
