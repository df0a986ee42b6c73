"""The loop stops before it trains on noise, and says which parameter to change."""

from typing import Any

import pytest

from align.loop.gates import GateSettings, judge_problems, yield_problems
from tests.committed import committed_params

GATES = GateSettings(
    max_mode_share=0.8, min_score_std=0.2, max_failure_rate=0.1, min_pairwise_accuracy=0.55, min_pair_yield=0.3
)
HEALTHY: dict[str, Any] = {
    "judge": "m0",
    "std": 0.7,
    "mode_share": 0.2,
    "failure_rate": 0.02,
    "failures": {"digit mass under 0.5": 2},
    "as_judge": {"pairwise_accuracy": 0.7, "pairwise_accuracy_low": 0.6, "pairwise_accuracy_high": 0.8},
}
GUESSING = {"pairwise_accuracy": 0.51, "pairwise_accuracy_low": 0.42, "pairwise_accuracy_high": 0.6}


def test_a_healthy_judge_passes() -> None:
    assert judge_problems(GATES, HEALTHY) == []


@pytest.mark.parametrize(
    ("scores", "gate"),
    [
        ({"mode_share": 0.81}, "gates.max_mode_share"),
        ({"std": 0.19}, "gates.min_score_std"),
        ({"failure_rate": 0.11}, "gates.max_failure_rate"),
        ({"failure_rate": 0.11, "as_judge": None}, "gates.max_failure_rate"),  # a checker
        ({"as_judge": GUESSING}, "gates.min_pairwise_accuracy"),
        ({"as_judge": dict.fromkeys(GUESSING)}, "gates.min_pairwise_accuracy"),
    ],
)
@pytest.mark.parametrize("judge", ["m0", "reward"])
def test_each_gate_stops_the_loop_and_names_itself_and_a_param_to_change(
    scores: dict[str, Any], gate: str, judge: str
) -> None:
    (problem,) = judge_problems(GATES, HEALTHY | {"judge": judge} | scores)
    params = committed_params()
    named = [word.strip("(),;:") for word in problem.split() if "." in word.strip("(),;:.")]
    keys = [word.split(".") for word in named if word.split(".")[0] in params]
    assert gate in named
    assert len(keys) > 1
    for section, key in keys:
        assert key in params[section], f"{section}.{key} is no parameter"


@pytest.mark.parametrize("scores", [{"mode_share": 0.8}, {"std": 0.2}, {"failure_rate": 0.1}])
def test_the_threshold_itself_passes(scores: dict[str, float]) -> None:
    assert judge_problems(GATES, HEALTHY | scores) == []


def test_a_checker_has_no_held_out_judgements_and_needs_none() -> None:
    assert judge_problems(GATES, HEALTHY | {"as_judge": None}) == []


def test_a_checker_that_fails_is_not_told_to_learn() -> None:
    (problem,) = judge_problems(GATES, HEALTHY | {"failure_rate": 0.5, "as_judge": None})
    assert "judge.checker" in problem
    assert "eft." not in problem


@pytest.mark.parametrize("scores", [{"mode_share": 0.9}, {"std": 0.0}, {"failure_rate": 0.2}, {"as_judge": GUESSING}])
def test_a_reward_model_that_judges_is_trained_by_its_own_params(scores: dict[str, Any]) -> None:
    (problem,) = judge_problems(GATES, HEALTHY | {"judge": "reward"} | scores)
    assert "eft." not in problem
    assert "judge." not in problem


def test_all_that_is_wrong_is_told_at_once() -> None:
    assert len(judge_problems(GATES, HEALTHY | {"std": 0.0, "mode_share": 1.0, "as_judge": GUESSING})) == 3


@pytest.mark.parametrize(("pairs", "dropped", "problems"), [(3, 7, 0), (2, 8, 1), (0, 0, 1), (0, 5, 1)])
def test_too_few_pairs_a_prompt_stop_the_loop(pairs: int, dropped: int, problems: int) -> None:
    found = yield_problems(GATES, pairs, pairs + dropped, {"margin too small": dropped} if dropped else {})
    assert len(found) == problems
    assert all("gates.min_pair_yield" in text and "build_preferences.min_margin" in text for text in found)
