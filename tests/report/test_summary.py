"""The headline figures of a run, and the report's words for them."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from align.core.errors import InputError
from align.core.files import read_csv
from align.core.rows import write_rows
from stages.summary import last_third, main
from tests.answers import answer, checked_answer
from tests.faults.broken.workspace import AGREEMENT, HISTORY, MEASURES, SCORE_COUNTS, write_files

DIFFERENCES = (
    "base_judge",
    "loop_judge",
    "loop_checks",
    "loop_reward",
    "dpo_judge",
    "dpo_checks",
    "dpo_reward",
    "rlhf_judge",
    "rlhf_checks",
    "rlhf_reward",
)
KEYS = {f"{name}_difference{end}" for name in DIFFERENCES for end in ("", "_low", "_high")} | {
    *("dpo_kl_to_m0", "rlhf_kl_to_m0", "critic_explained_variance", "m0_judge_accuracy", "m0_judge_relevance"),
    *("reward_model_accuracy", "reward_model_accuracy_low", "reward_model_accuracy_high", "reward_model_test_pairs"),
    *("ppo_training_reward_first_third", "ppo_training_reward_last_third"),
}
# Model -> what its judge score and its reward are above m0's, and how many of 40 checked prompts it passes.
MODELS = (("base", -1, 0, 10), ("m0", 0, 0, 10), ("m1", 1, 0, 12), ("dpo", 0.5, 1, 20), ("ppo", 1, 2, 30))
NOISE = [0.05 * (7 * i % 11 - 5) for i in range(40)]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What summary reads: 40 prompts on which m1 beats m0 by the judge, and ppo by everything."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, judge, reward, passed in MODELS:
        answers = [
            answer(f"e{i}", judge_score=2.5 + judge + noise, reward=reward + noise, kl_to_m0=float(judge))
            for i, noise in enumerate(NOISE if name != "m1" else NOISE[::-1])
        ]
        write_rows(tmp_path / f"data/eval/{name}.jsonl", answers)
        checks = [checked_answer(f"c{i}", [i < passed]) for i in range(40)]
        write_rows(tmp_path / f"data/eval/{name}.checks.jsonl", checks)
        (tmp_path / f"data/eval/{name}.json").write_text(json.dumps(MEASURES | {"kl_to_m0": 3.25}))
    return tmp_path


def summarize(workspace: Path) -> tuple[dict[str, Any], str, str]:
    """Run the stage; return metrics.json, the report and what it printed."""
    result = CliRunner().invoke(main)
    assert result.exit_code == 0, result.output
    summary = workspace / "data/summary"
    return json.loads((summary / "metrics.json").read_text()), (summary / "report.md").read_text(), result.output


def test_the_metrics_are_paired_differences_against_m0_with_their_intervals(workspace: Path) -> None:
    metrics, _, _ = summarize(workspace)

    assert set(metrics) == KEYS
    assert metrics["base_judge_difference"] == pytest.approx(-1)
    assert metrics["loop_judge_difference"] == pytest.approx(1)
    assert metrics["loop_judge_difference_low"] < 1 < metrics["loop_judge_difference_high"]
    assert metrics["loop_checks_difference"] == pytest.approx(2 / 40)
    assert metrics["rlhf_reward_difference"] == pytest.approx(2)
    assert metrics["rlhf_checks_difference"] == pytest.approx(20 / 40)
    assert metrics["rlhf_kl_to_m0"] == 3.25


def test_the_report_says_in_words_what_each_measure_can_tell(workspace: Path) -> None:
    _, report, _ = summarize(workspace)

    assert "- m1 against m0: better by the judge, cannot tell by the reward model, cannot tell by the checks." in report
    assert "- ppo against m0: better by the judge, better by the reward model, better by the checks." in report
    assert "- base against m0: worse by the judge" in report


def test_a_loop_that_learned_from_the_reward_model_is_reported_as_such(workspace: Path) -> None:
    metrics, report, _ = summarize(workspace)
    assert metrics["m0_judge_accuracy"] == AGREEMENT["pairwise_accuracy"]
    assert "m0 also chose the pairs" in report

    (workspace / "data/metrics/m1/scores.json").write_text(json.dumps(SCORE_COUNTS | {"judge": "reward"}))
    metrics, report, _ = summarize(workspace)

    assert (metrics["m0_judge_accuracy"], metrics["m0_judge_relevance"]) == (None, None)
    assert "The reward model, not m0, chose the pairs" in report
    assert "second opinion" not in report


def test_without_checked_prompts_their_metrics_are_null_and_the_report_does_not_mention_them(workspace: Path) -> None:
    for path in workspace.glob("data/eval/*.checks.jsonl"):
        path.unlink()

    metrics, report, _ = summarize(workspace)

    assert {metrics[key] for key in KEYS if "checks" in key} == {None}
    assert "by the checks" not in report
    assert "- m1 against m0: better by the judge, cannot tell by the reward model." in report


@pytest.mark.parametrize(("explained", "warned"), [("-0.5", True), ("0.25", False), ("", False)])
def test_a_critic_that_explains_nothing_is_a_warning(workspace: Path, explained: str, warned: bool) -> None:
    header, row = HISTORY.splitlines()
    (workspace / "data/ppo/history.csv").write_text(f"{header},explained_variance\n{row},{explained}\n")

    metrics, report, output = summarize(workspace)

    assert metrics["critic_explained_variance"] == (float(explained) if explained else None)
    assert ("Warning" in report) == ("warning" in output) == warned
    assert ("explained variance" in report) == bool(explained)


def test_a_history_without_the_critics_column_has_no_explained_variance(workspace: Path) -> None:
    metrics, report, output = summarize(workspace)

    assert metrics["critic_explained_variance"] is None
    assert "explained variance" not in report + output


def test_the_last_third_of_a_column_leaves_out_empty_cells() -> None:
    rows = [{"update": float(i), "x": float(i)} for i in range(7)]
    assert last_third(rows, "x") == 5.5
    assert last_third([*rows[:6], {"update": 6.0}], "x") == 5.0
    assert last_third([], "x") is None
    assert last_third(rows, "y") is None


def test_only_columns_that_are_needed_must_have_a_number_in_each_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,\n2,3\n")
    assert read_csv(path, ["a"]) == [{"a": 1.0}, {"a": 2.0, "b": 3.0}]
    with pytest.raises(InputError, match=r"a\.csv:2: not a row of numbers"):
        read_csv(path, ["a", "b"])
