"""The JSON files that stages exchange: the keys that readers rely on, checked when read."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from align.core.errors import InputError, quoted
from align.core.files import REBUILD, read_json
from align.report.statistics import SCORE_EDGES

Measure = float | None  # None: undefined, such as the mean of no rows


class Measures(BaseModel):
    """Base of a file's content: listed keys are required, others allowed."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Agreement(Measures):
    """A judge's agreement with human scores, see `align.report.statistics.agreement`."""

    failures: int
    exact_match: Measure
    five_best: Measure
    pairwise_accuracy: Measure
    pairwise_accuracy_low: Measure
    pairwise_accuracy_high: Measure
    spearman: Measure
    kendall: Measure


class Relevance(Measures):
    """How often a judge prefers an answer to the question over one to another question."""

    accuracy: Measure


class ModelMeasures(Measures):
    """data/eval/<model>.json, of stage evaluate."""

    judge_score: Measure
    judge_failures: int
    reward: Measure
    reward_of_ended: Measure
    response_tokens: Measure
    ended_share: Measure
    distinct_2: Measure
    kl_to_base: Measure
    kl_to_m0: Measure
    weights: str  # SHA-256
    environment: dict[str, object]


class PromptCounts(Measures):
    """data/metrics/<model>/prompts.json, of stage generate_prompts."""

    accepted: int
    dropped: dict[str, int]
    mean_words: Measure
    nearest_known_rouge_l: Measure
    distinct_2: Measure


class ScoreCounts(Measures):
    """data/metrics/<model>/scores.json, of stage judge; `as_judge` and `relevance` are None if a checker judged."""

    judge: str
    rows: int
    mean_score: Measure
    std: Measure
    mode_share: Measure
    histogram: list[int] = Field(min_length=len(SCORE_EDGES) - 1, max_length=len(SCORE_EDGES) - 1)
    failure_rate: float
    failures: dict[str, int]
    score_length_correlation: Measure
    as_judge: Agreement | None
    relevance: Relevance | None


class PairCounts(Measures):
    """data/metrics/<model>/preferences.json, of stage build_preferences."""

    pairs: int
    pair_yield: float
    mean_margin: Measure
    mean_words_chosen: Measure
    mean_words_rejected: Measure
    margin_length_correlation: Measure
    accepted: int
    ift: int


class Accuracy(Measures):
    """A reward model's accuracy on some pairs."""

    pairs: int
    accuracy: Measure
    accuracy_low: Measure
    accuracy_high: Measure


class RewardMeasures(Accuracy):
    """data/metrics/reward.json, of stage reward_model."""

    train_pairs: int
    truncated_negatives: int
    truncation_gap: Measure
    by_length: dict[str, Accuracy]
    calibration_error: Measure
    score_length_correlation: Measure
    margin_length_correlation: Measure


class DataSetChange(Measures):
    """How a data set of a model differs from its parent's."""

    rows: int
    added: int
    removed: int
    changed: int
    mean: dict[str, float]
    change: dict[str, float]


Changes = RootModel[dict[str, DataSetChange]]  # data/diff/<model>.json, of stage diff


def read_measures(path: Path, kind: type[BaseModel]) -> dict[str, Any]:
    """Read a stage's JSON file, check it against `kind` and return it unchanged."""
    values = read_json(path)
    try:
        kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        problem = "is missing" if first["type"] == "missing" else f"cannot be {quoted(first['input'])}"
        raise InputError(f"{path}: {key} {problem}; {REBUILD}") from None
    return values
