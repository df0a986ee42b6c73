"""`judge.mode: reward`: stages of the loop on a tiny model, scored by the reward model."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from align.backends import choose
from align.core.rows import AnchorScore, Judgement, PreferencePair, ScoredResponse, read_rows
from align.reward.scoring import reward_scores
from align.run.runtime import RuntimeSettings
from align.run.work import Rows
from stages import judge
from tests.committed import copy_project, write_params
from tests.dvc_project import Project
from tests.factories import write_adapter
from tests.faults.broken.workspace import RUNTIME, SETTINGS, build, row, run

BY_REWARD = {"model": "reward", "mode": "reward", "use_parent": False}
SCORES = Path("data/m1/scores.jsonl")
PASS: dict[str, dict[str, Any]] = {
    "gates": {"max_mode_share": 1.0, "min_score_std": 0.0, "min_pairwise_accuracy": 0.0, "max_failure_rate": 1.0},
    "build_preferences": {"min_margin": 0.0},
    "generate_responses": {"num_responses": 3, "max_new_tokens": 12, "temperature": 1.5, "top_p": 1.0},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose models all differ."""
    root = build(tmp_path_factory.mktemp("whole") / "workspace")
    runtime = RuntimeSettings.model_validate(RUNTIME)
    write_adapter(root / "models/m0", root / "models/base", runtime, 1)
    write_adapter(root / "models/reward", root / "models/base", runtime, 2, head=True)
    return root


@pytest.fixture
def workspace(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it with the reward model in the loop, as the working directory."""
    shutil.copytree(whole, tmp_path / "workspace")
    monkeypatch.chdir(tmp_path / "workspace")
    write_params(Path(), SETTINGS | PASS | {"judge": BY_REWARD | {"min_digit_mass": 0.0}})
    return tmp_path / "workspace"


def succeed(command: str) -> None:
    result = run(command)
    assert result.exit_code == 0, f"{command}: {result.output}{result.exception!r}"


def rewards(rows: Sequence[tuple[str, str]]) -> list[float]:
    """Return the rewards as transformers and PEFT compute them, row by row, from text to score."""
    tokenizer = AutoTokenizer.from_pretrained("models/base")
    base: Any = AutoModelForSequenceClassification.from_pretrained("models/base", num_labels=1)
    model = PeftModel.from_pretrained(base, "models/reward").eval()
    bias = json.loads(Path("models/reward/score_bias.json").read_text())["score_bias"]
    scores = []
    for prompt, response in rows:
        text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{response}<|im_end|>"
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            scores.append(float(model(input_ids=ids).logits[0, 0]) + bias)
    return scores


def sigmoids(values: Sequence[float]) -> list[float]:
    return [5 / (1 + math.exp(-value)) for value in values]


def test_the_loop_is_scored_by_the_reward_model_and_learns_its_order(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeed("generate_responses m1 m0")
    monkeypatch.setattr(choose, "BACKENDS", {})  # none may be opened
    succeed("judge m1 m0")
    succeed("build_preferences m1 m0")

    rows = read_rows(SCORES, ScoredResponse)
    expected = rewards([(row.prompt, row.response) for row in rows])
    scores = [row.score or 0.0 for row in rows]
    assert {row.finish_reason for row in rows} >= {"length"}  # scored as if they ended there
    assert scores == pytest.approx(sigmoids(expected), abs=1e-4)
    assert len({round(score, 3) for score in scores}) > 1
    order = sorted(range(len(rows)), key=expected.__getitem__)
    assert [scores[i] for i in order] == sorted(scores)
    assert {(row.failure, row.digit_mass, row.entropy, tuple(row.judgements)) for row in rows} == {(None,) * 3 + ((),)}

    pairs = read_rows(Path("data/m1/preferences.jsonl"), PreferencePair)
    assert pairs
    for pair in pairs:
        same = {row.response: row.score for row in rows if row.id == pair.id.rpartition("-")[0] or row.id == pair.id}
        assert same[pair.chosen] == max(score for score in same.values() if score is not None)
        assert same[pair.rejected] == min(score for score in same.values() if score is not None)

    judged = read_rows(Path("data/prepared/eval/judgements.jsonl"), Judgement)
    anchors = read_rows(Path("data/metrics/m1/anchors.jsonl"), AnchorScore)
    found = [anchor.predicted or 0.0 for anchor in anchors]
    assert found == pytest.approx(sigmoids(rewards([(row.prompt, row.response) for row in judged])), abs=1e-4)
    summary = json.loads(Path("data/metrics/m1/scores.json").read_text())
    assert summary["judge"] == "reward"
    assert summary["as_judge"]["pairwise_accuracy"] is not None
    assert summary["relevance"]["accuracy"] is not None


def test_an_empty_response_fails_and_gets_no_score(workspace: Path) -> None:
    row(str(Path("data/m1/responses.jsonl")), 2, response=" ")()
    succeed("judge m1 m0")
    scored = [(row.score is None, row.failure) for row in read_rows(SCORES, ScoredResponse)]
    assert scored == [(i == 1, "empty response" if i == 1 else None) for i in range(len(scored))]


class Killed(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("batches", [1, 3])
def test_a_killed_judge_resumes_with_the_missing_rows_and_ends_in_the_same_bytes(
    batches: int, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = {"runtime": RUNTIME | {"batch_size": 3}}
    write_params(Path(), SETTINGS | PASS | runtime | {"judge": BY_REWARD | {"min_digit_mass": 0.0}})
    outs = [SCORES, Path("data/metrics/m1/anchors.jsonl"), Path("data/metrics/m1/scores.json")]
    plain, scored = reward_scores, list[int]()

    def score(stack: Any, name: str, ids: Sequence[list[int]], **settings: Any) -> list[float]:
        scored.append(len(ids))
        return plain(stack, name, ids, **settings)

    def die(self: Rows, rows: Any) -> None:
        finish(self, rows)
        if len(scored) == batches:
            raise Killed

    monkeypatch.setattr(judge, "reward_scores", score)
    succeed("judge m1 m0")
    expected = [out.read_bytes() for out in outs]
    whole = list(scored)
    scored.clear()
    for out in outs:
        out.unlink()
    finish = Rows.finish
    with monkeypatch.context() as patch:
        patch.setattr(Rows, "finish", die)
        assert isinstance(run("judge m1 m0").exception, Killed)
    assert not SCORES.exists()
    assert len(scored) == batches < len(whole)
    succeed("judge m1 m0")
    assert [out.read_bytes() for out in outs] == expected
    assert scored == whole  # each batch once


def test_only_the_main_process_of_a_launch_scores(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    before = SCORES.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(judge, "reward_scores", None)
        succeed("judge m1 m0")
    assert SCORES.read_bytes() == before
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    succeed("judge m1 m0")
    assert SCORES.read_bytes() != before


def test_the_evaluation_is_judged_by_m0_as_in_mode_logits(workspace: Path) -> None:
    succeed("evaluate m0")
    by_reward = Path("data/eval/m0.jsonl").read_bytes()
    write_params(Path(), SETTINGS | PASS)
    succeed("evaluate m0")
    assert Path("data/eval/m0.jsonl").read_bytes() == by_reward


@pytest.mark.parametrize(("settings", "named"), [(BY_REWARD, True), ({"use_parent": False}, False)])
def test_another_reward_model_reruns_the_judge_only_where_it_judges(
    settings: dict[str, Any], named: bool, tmp_path: Path
) -> None:
    project = Project(tmp_path / "project")
    copy_project(project.path)
    write_params(project.path, {"judge": settings})
    for name in ("models/base", "models/m0", "models/reward"):
        project.write(f"{name}/adapter_model.safetensors", "weights\n")
    names = ("data/m1/responses.jsonl", "data/m1/scores.jsonl", "data/prepared/eval/judgements.jsonl")
    for name in (*names, "data/metrics/m1/anchors.jsonl", "data/metrics/m1/scores.json"):
        project.write(name, "{}\n")
    project.run("git init -q && dvc commit -q -f judge@m1")
    assert json.loads(project.run("dvc status --json judge@m1").stdout) == {}

    project.write("models/reward/adapter_model.safetensors", "other weights\n")

    changed = json.loads(project.run("dvc status --json judge@m1").stdout)
    assert changed == ({"judge@m1": [{"changed deps": {"models/reward": "modified"}}]} if named else {})
