"""What benchmarks/tasks say of a task with checkable answers, and of two methods."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from align.core.files import write_csv
from align.core.rows import write_rows
from align.report.comparisons import read_evaluated
from benchmarks.tasks.methods import METHODS, cell, row
from benchmarks.tasks.result import main
from tests.answers import answer, checked_answer


def test_the_result_is_the_paired_difference_with_mcnemars_p_and_the_rewards_in_equal_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, passed in (("m0", 4), ("ppo", 16)):
        write_rows(Path(f"data/eval/{name}.jsonl"), [answer("e1")])
        write_rows(Path(f"data/eval/{name}.checks.jsonl"), [checked_answer(f"c{i}", [i < passed]) for i in range(40)])
    history = [{"update": u, "kl": 0.1 * u, "reward_right_answer": 0.01 * u} for u in range(1, 41)]
    write_csv(Path("data/ppo/history.csv"), history)

    lines = CliRunner().invoke(main, catch_exceptions=False).output.splitlines()

    result = json.loads(lines[-1])
    assert (result["m0"], result["ppo"], result["prompts"]) == (0.1, 0.4, 40)
    assert result["difference"] == pytest.approx(12 / 40)
    assert result["mcnemar_p"] == pytest.approx(2 * 0.5**12)  # twelve prompts changed, all to passed
    assert "  line [0.015, 0.035," in "\n".join(lines)  # two updates a point
    assert lines[2:4] == ["| m0 | 0.100 | 0.100 |", "| ppo | 0.400 | 0.400 |"]


def test_two_methods_are_compared_with_m0_on_the_same_prompts(tmp_path: Path) -> None:
    folder = tmp_path / "data/eval"
    rewards = {"m0": 0.0, "dpo": 1.0, "ppo": -1.0}
    for name, reward in rewards.items():
        answers = [answer(f"e{i}", reward=reward + 0.01 * i, judge_score=2.0 + 0.01 * i) for i in range(20)]
        write_rows(folder / f"{name}.jsonl", answers)
        write_rows(folder / f"{name}.checks.jsonl", [checked_answer(f"c{i}", [i < 4]) for i in range(40)])
    models = read_evaluated(folder, list(rewards))
    measured = {"kl_to_m0": 1.5, "response_tokens": 30.0, "ended_share": 1.0}

    better, worse = (row(name, models, measured) for name in METHODS)

    assert (better["reward"], better["reward_verdict"]) == (pytest.approx(1), "better")
    assert (worse["reward"], worse["reward_verdict"]) == (pytest.approx(-1), "worse")
    assert cell(better, "reward") == "+1.00 [+1.00, +1.00] better (20)"
    assert better["judge"] == better["checks"] == 0
    assert better["kl_to_m0"] == 1.5
