"""Gates that stop the loop: a judge with uniform scores, failures or guesses would teach the next model noise."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from align.core.params import Settings


class GateSettings(Settings):
    """Section `gates` of params.yaml."""

    max_mode_share: float = Field(ge=0, le=1)
    min_score_std: float = Field(ge=0)
    max_failure_rate: float = Field(ge=0, le=1)
    min_pairwise_accuracy: float = Field(ge=0, le=1)
    min_pair_yield: float = Field(ge=0, le=1)


def judge_problems(gates: GateSettings, scores: Mapping[str, Any]) -> list[str]:
    """Return a message for each gate that the judge fails, from data/metrics/<model>/scores.json."""
    problems = []
    judge, by_reward = scores["as_judge"], scores["judge"] == "reward"  # the first is None if the judge is a checker
    longer = "train the reward model longer (reward_model.num_train_epochs)"
    if scores["failure_rate"] > gates.max_failure_rate:
        if judge is None:
            advice = "the checker (judge.checker) must know the prompts of generate_prompts; fix it or the seed prompts"
        elif by_reward:
            advice = (
                "empty responses fail: lower generate_responses.temperature, or train m0 longer (sft.num_train_epochs)"
            )
        else:
            advice = (
                "lower judge.min_digit_mass or raise judge.max_new_tokens, as the reasons suggest, or train the judge "
                "longer (eft.num_train_epochs; for judge.mode sample also on its replies, sft.eft_share)"
            )
        problems.append(
            f"{scores['failure_rate']:.2f} of the judgements failed ({scores['failures']}), over "
            f"gates.max_failure_rate {gates.max_failure_rate}: {advice}"
        )
    if scores["mode_share"] is not None and scores["mode_share"] > gates.max_mode_share:
        problems.append(
            f"{scores['mode_share']:.2f} of the responses have the same score, over gates.max_mode_share "
            f"{gates.max_mode_share}: "
            + (
                longer
                if by_reward
                else "train the judge longer (eft.num_train_epochs), on more varied scores "
                "(prepare_data.max_score_share)"
            )
        )
    if scores["std"] is not None and scores["std"] < gates.min_score_std:
        problems.append(
            f"the scores' standard deviation is {scores['std']:.3f}, under gates.min_score_std {gates.min_score_std}: "
            f"{longer if by_reward else 'train the judge longer (eft.num_train_epochs)'}, or raise "
            "generate_responses.temperature"
        )
    if judge is not None and (judge["pairwise_accuracy"] or 0.0) < gates.min_pairwise_accuracy:
        problems.append(
            f"the judge orders {_number(judge['pairwise_accuracy'])} [{_number(judge['pairwise_accuracy_low'])}, "
            f"{_number(judge['pairwise_accuracy_high'])}] of the held-out pairs, under gates.min_pairwise_accuracy "
            f"{gates.min_pairwise_accuracy}: "
            + (
                f"{longer} or on more pairs (prepare_data.preferences)"
                if by_reward
                else "train it on more judged questions (prepare_data.judgements) or longer (eft.num_train_epochs)"
            )
        )
    return problems


def yield_problems(gates: GateSettings, pairs: int, prompts: int, dropped: Mapping[str, int]) -> list[str]:
    """Return a message if there are too few pairs for the number of prompts."""
    if pairs and pairs / prompts >= gates.min_pair_yield:
        return []
    return [
        f"{pairs} pairs from {prompts} prompts (without: {dict(sorted(dropped.items()))}), under gates.min_pair_yield "
        f"{gates.min_pair_yield}: raise generate_responses.num_responses or temperature, or lower "
        "build_preferences.min_margin"
    ]


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
