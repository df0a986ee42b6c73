"""The whole graph on the tiny model, in a clone: the real `dvc repro`, with no network and no git identity."""

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

from align.checks.checking import check_reply
from align.checks.prompts import CheckedPrompt
from align.core.params import Params
from align.core.rows import (
    Answer,
    CheckedAnswer,
    Instruction,
    KnownPrompt,
    PreferencePair,
    Prompt,
    ScoredPair,
    read_rows,
)
from align.models.stack import AdapterStack
from align.report.statistics import mean
from align.reward.training import score_pairs
from align.run.runtime import RuntimeSettings
from stages.reward_model import CENTERING_ROWS
from tests.committed import REPOSITORY, copy_project, write_params
from tests.factories import build_tiny_source
from tests.shared import shared

# Settings small enough that the whole graph takes about a minute and a half; all else stays as in params.yaml.
SMALL: dict[str, dict[str, Any]] = {
    "runtime": {"batch_size": 64},
    "base_model": {"source": "data/tiny"},
    "prepare_data": {"judgements_test_fraction": 0.2, "preferences_test_fraction": 0.9, "max_checked_prompts": 20},
    "lora": {"r": 4, "layers_to_transform": None},
    "eft": {"num_train_epochs": 0.02, "max_length": 1024},
    "sft": {"num_train_epochs": 0.1, "max_length": 1024},
    "generate_prompts": {"num_prompts": 6, "min_words": 1, "max_words": 60, "max_rounds": 100, "temperature": 1.5}
    | {"language": None, "writer": "parent"},
    "generate_responses": {"num_responses": 3, "max_new_tokens": 48, "temperature": 1.5, "top_p": 1.0},
    "judge": {"min_digit_mass": 0.0},
    # A random judge on random text: everything passes, and every response that ends is accepted.
    "gates": {"max_mode_share": 1.0, "min_score_std": 0.0, "min_pairwise_accuracy": 0.0, "min_pair_yield": 0.0},
    "build_preferences": {"min_margin": 0.0, "accept_score": 0.0},
    "dpo": {"num_train_epochs": 1, "max_length": 512},
    "reward_model": {"num_train_epochs": 0.5, "max_length": 1024},
    "ppo": {"num_updates": 2, "rollout_batch_size": 8, "mini_batch_size": 4, "per_device_train_batch_size": 4}
    | {"value_layers": 1, "max_new_tokens": 8, "max_prompt_length": 512},
    "evaluate": {"max_new_tokens": 8, "checks_max_new_tokens": 8, "max_turns": 2},
}


# Planted in the environment of the first run.
SECRETS = {
    "OPENAI_API_KEY": "sk-planted-1f6e1c",
    "HF_TOKEN": "hf_planted2b7d40",
    "AWS_SECRET_ACCESS_KEY": "aws-planted-93c5aa",
    "WANDB_API_KEY": "wandb-planted-d01f77",
}

pytestmark = pytest.mark.timeout(1800)  # the first test to ask runs 25 stages, on a busy machine for many minutes


class Clone:
    """A clone of the working tree, and `dvc` in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.first: list[str] = []  # the stages that the first repro ran, in order
        self.env = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(path.parent / "home"),
            "HF_HUB_OFFLINE": "1",
            "DVC_NO_ANALYTICS": "1",
        }
        (path.parent / "home").mkdir()

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(command, cwd=self.path, env=self.env, capture_output=True, text=True, check=False)
        assert not check or result.returncode == 0, f"{command}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
        return result

    def stages_run(self, *command: str) -> list[str]:
        """Run a dvc command and return the stages that were executed, in order."""
        return executed(self.run(*command).stdout)


def executed(output: str) -> list[str]:
    """Return the stages that DVC says it ran."""
    return re.findall(r"^Running stage '([^']+)'", output, re.MULTILINE)


def first_repro(folder: Path) -> None:
    """Run the whole graph in a clone of the working tree."""
    path = folder / "clone"
    copy_project(path)
    build_tiny_source(path / "data/tiny")
    write_params(path, SMALL)
    result = Clone(path)
    result.run("git", "init", "-q")
    commit = ("git", "-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-qm")
    result.run("git", "add", "-A")
    result.run(*commit, "start")
    plain, result.env = result.env, result.env | SECRETS
    first = result.run("dvc", "repro")
    result.env = plain
    (folder / "first.log").write_text(first.stdout + first.stderr)
    result.run("git", "add", "-A")
    result.run(*commit, "run")  # or DVC would want a git identity, to keep the changes beside an experiment


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    made = shared(tmp_path_factory, "repro", first_repro)
    path = tmp_path_factory.mktemp("repro") / "clone"
    shutil.copytree(made / "clone", path, symlinks=True)
    result = Clone(path)
    result.first = executed((made / "first.log").read_text())
    return result


def test_the_first_repro_runs_every_stage_once_and_writes_the_report(clone: Clone) -> None:
    first = clone.first

    assert len(first) == len(set(first)) == 25
    metrics = json.loads((clone.path / "data/summary/metrics.json").read_text())
    assert 0 <= metrics["reward_model_accuracy"] <= 1
    report = (clone.path / "data/summary/report.md").read_text()
    for model in ("base", "m0", "m1", "m2", "dpo", "ppo"):
        assert f"| {model} |" in report


def leaks(written: Mapping[str, bytes], secrets: Collection[str]) -> list[str]:
    return [name for name, data in written.items() if any(secret.encode() in data for secret in secrets)]


def test_no_key_of_the_environment_gets_into_outs_locks_logs_or_output(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    made = shared(tmp_path_factory, "repro", first_repro)
    files = {path.relative_to(made).as_posix(): path for path in made.rglob("*") if path.is_file()}
    written = {name: path.read_bytes() for name, path in files.items() if not name.startswith("clone/tests/")}

    assert any(name.startswith("clone/.dvc/cache/") for name in written)
    assert leaks(written, SECRETS.values()) == []
    assert leaks(written | {"planted": b"token: hf_planted2b7d40\n"}, SECRETS.values()) == ["planted"]


def test_a_second_repro_runs_nothing(clone: Clone) -> None:
    assert clone.stages_run("dvc", "repro") == []


@pytest.mark.slow
def test_rerunning_a_stage_by_force_gives_the_same_bytes(clone: Clone) -> None:
    before = (clone.path / "dvc.lock").read_bytes()

    for stage in ("sft", "generate_responses@m1", "ppo"):  # of the others tests of their own
        assert clone.stages_run("dvc", "repro", "-f", "-s", stage) == [stage]

    assert (clone.path / "dvc.lock").read_bytes() == before


def test_the_reward_of_ended_answers_leaves_out_those_that_were_cut_off(clone: Clone) -> None:
    for model in ("m0", "ppo"):
        answers = read_rows(clone.path / f"data/eval/{model}.jsonl", Answer)
        summary = json.loads((clone.path / f"data/eval/{model}.json").read_text())
        assert summary["reward"] == pytest.approx(mean([row.reward for row in answers]))
        ended = mean([row.reward for row in answers if row.finish_reason == "stop"])
        assert summary["reward_of_ended"] == pytest.approx(ended)


def test_every_model_answers_the_first_checked_prompts_and_its_rates_are_those_of_its_rows(clone: Clone) -> None:
    asked = read_rows(clone.path / "data/seed/checked_prompts.jsonl", CheckedPrompt)[:20]
    for model in ("base", "m0", "m1", "m2", "dpo", "ppo"):
        answers = read_rows(clone.path / f"data/eval/{model}.checks.jsonl", CheckedAnswer)
        assert [(row.id, row.prompt) for row in answers] == [(row.id, row.prompt) for row in asked]
        for row, answer in zip(asked, answers, strict=True):
            assert (answer.strict, answer.loose) == check_reply(row, answer.response, answer.finish_reason)
            assert answer.num_tokens <= 8
        checks = json.loads((clone.path / f"data/eval/{model}.json").read_text())["checks"]
        assert checks["prompts"] == 20
        assert checks["strict"] == mean([float(all(row.strict)) for row in answers])
        assert sum(kind["checks"] for kind in checks["by_kind"].values()) == sum(len(row.checks) for row in asked)


def test_dpo_starts_at_log_2_since_the_reference_is_the_parent(clone: Clone) -> None:
    for model in ("m1", "m2"):
        with (clone.path / f"data/metrics/{model}/dpo_history.csv").open() as stream:
            first = next(csv.DictReader(stream))
        assert float(first["loss"]) == pytest.approx(math.log(2), abs=1e-4)


def test_what_one_iteration_wrote_and_accepted_is_in_the_data_of_the_next(clone: Clone) -> None:
    prompts = {}
    for model in ("m1", "m2"):
        rows = read_rows(clone.path / f"data/{model}/prompts.jsonl", Prompt)
        prompts[model] = {row.messages[0].content for row in rows}
    known = read_rows(clone.path / "data/m2/known_prompts.jsonl", KnownPrompt)
    assert {row.prompt for row in known if row.iteration == "m1"} == prompts["m1"]
    assert {row.prompt for row in known if row.iteration == "m2"} == prompts["m2"]
    assert not prompts["m1"] & prompts["m2"]

    generated = [row for row in read_rows(clone.path / "data/m2/ift.jsonl", Instruction) if row.source == "generated"]
    accepted = {
        model: json.loads((clone.path / f"data/metrics/{model}/preferences.json").read_text())["accepted"]
        for model in ("m1", "m2")
    }
    assert sum(accepted.values()) > 0
    for model, judge in (("m1", "m0"), ("m2", "m1")):
        rows_of_it = [row for row in generated if row.iteration == model]
        assert len(rows_of_it) == accepted[model]
        assert {row.prompt for row in rows_of_it} <= prompts[model]
        assert all(row.judge == judge and row.score is not None for row in rows_of_it)


def test_a_gate_stops_the_loop_keeps_the_scores_and_a_lower_threshold_goes_on_from_there(clone: Clone) -> None:
    scores = (clone.path / "data/m1/scores.jsonl").read_bytes()
    params = (clone.path / "params.yaml").read_text(encoding="utf-8")
    strict = params.replace("min_score_std: 0.0", "min_score_std: 4.0")
    assert strict != params
    (clone.path / "params.yaml").write_text(strict, encoding="utf-8")
    try:
        result = clone.run("dvc", "repro", "build_preferences@m1", check=False)
        assert result.returncode != 0
        assert "under gates.min_score_std 4.0" in result.stdout + result.stderr
        assert "Traceback" not in result.stderr
        assert (clone.path / "data/m1/scores.jsonl").read_bytes() == scores
    finally:
        (clone.path / "params.yaml").write_text(params, encoding="utf-8")
    assert clone.stages_run("dvc", "repro") == []


def test_the_reward_model_reloads_in_another_process_with_equal_and_centred_scores(clone: Clone) -> None:
    params = Params.read(clone.path / "params.yaml")
    runtime = params.section("runtime", RuntimeSettings)
    stack = AdapterStack(clone.path / "models/base", runtime)
    stack.add("reward", clone.path / "models/reward")
    pairs = clone.path / "data/prepared/preferences"
    found = score_pairs(stack, read_rows(pairs / "test.jsonl", PreferencePair), "test")
    written = read_rows(clone.path / "data/reward/test_scores.jsonl", ScoredPair)
    assert [row.id for row in found] == [row.id for row in written]
    for ours, theirs in zip(found, written, strict=True):
        assert ours.chosen_score == pytest.approx(theirs.chosen_score, abs=1e-5)
        assert ours.rejected_score == pytest.approx(theirs.rejected_score, abs=1e-5)

    references = read_rows(pairs / "train.jsonl", PreferencePair)[:CENTERING_ROWS]
    scores = [row.chosen_score for row in score_pairs(stack, references, "references")]
    assert sum(scores) / len(scores) == pytest.approx(0, abs=1e-4)
    assert stack.heads["reward"].bias != 0


def test_truncated_replies_are_counted_and_are_neither_training_nor_test_pairs(clone: Clone) -> None:
    metrics = json.loads((clone.path / "data/metrics/reward.json").read_text())
    train, test = (
        read_rows(clone.path / f"data/prepared/preferences/{side}.jsonl", PreferencePair) for side in ("train", "test")
    )
    assert metrics["train_pairs"] + metrics["dropped_too_long"] == len(train)
    assert metrics["truncated_negatives"] == metrics["train_pairs"] > 0
    assert metrics["pairs"] == len(test)
    assert isinstance(metrics["truncation_gap"], float)


def test_models_load_with_peft_from_the_repository_root(clone: Clone) -> None:
    code = (
        "from transformers import AutoModelForCausalLM; from peft import PeftModel; "
        "m = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained('models/base'), 'models/m2'); "
        "print(sum(p.abs().sum().item() for n, p in m.named_parameters() if 'lora_B' in n) > 0)"
    )

    assert clone.run(sys.executable, "-c", code).stdout.strip() == "True"


def test_a_model_without_base_weights_is_a_one_line_error_and_leaves_no_partial_out(clone: Clone) -> None:
    (clone.path / "models/base/model.safetensors").rename(clone.path / "weights")
    try:
        result = clone.run(sys.executable, "-m", "stages.evaluate", "m0", check=False)
    finally:
        (clone.path / "weights").rename(clone.path / "models/base/model.safetensors")

    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("Error: models/base: cannot load the model")


def common_tasks() -> list[str]:
    """Return the commands of the README's common tasks."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    part = readme.split("## Common tasks")[1].split("\n## ")[0]
    return [line for block in re.findall(r"```sh\n(.*?)```", part, re.DOTALL) for line in block.splitlines()]


def test_the_common_tasks_of_the_readme_run_unchanged(clone: Clone) -> None:
    start = clone.run("git", "rev-parse", "HEAD").stdout.strip()
    said: dict[str, str] = {}
    colleague = clone.path.parent / "colleague"
    for command in common_tasks():
        if colleague.exists():  # this base model comes with no package
            shutil.copytree(clone.path / "data/tiny", colleague / "data/tiny", dirs_exist_ok=True)
        identity = "export GIT_AUTHOR_NAME=t GIT_AUTHOR_EMAIL=t@t GIT_COMMITTER_NAME=t GIT_COMMITTER_EMAIL=t@t"
        said[command] = clone.run("bash", "-ec", f"{identity}; {command}").stdout

    def stages(command: str) -> list[str]:
        return executed(said[command])

    assert stages("dvc repro") == []
    assert stages("dvc exp run -n low-kl -S ppo.kl_coef=0.02") == ["ppo", "evaluate@ppo", "summary"]
    assert "low-kl" in said["dvc exp show --only-changed"]
    assert (clone.path / "out/m2/model.safetensors").exists()
    assert {line.split(":")[0] for line in said["align diff m1 m2"].splitlines() if not line.startswith(" ")} == {
        "prompts",
        "responses",
        "scores",
        "preferences",
        "ift",
        "answers",
    }
    assert said["align diff m0 m2 --what answers --limit 1"].startswith("answers: ")
    assert said["align diff ppo@HEAD ppo@low-kl"].startswith("answers: ")
    assert (clone.path / "diff.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert stages("cd ../colleague && dvc repro --pull") == ["base_model"]
    assert clone.run("git", "-C", str(colleague), "status", "--porcelain").stdout == ""

    clone.run("git", "reset", "-q", "--hard", start)
    clone.run("dvc", "checkout")
    assert clone.stages_run("dvc", "repro") == []


@pytest.mark.slow
def test_one_more_iteration_runs_its_own_stages_alone(clone: Clone) -> None:
    assert sorted(clone.stages_run("dvc", "exp", "run", "-S", "+iterations.m3=m2")) == sorted(
        [
            *(
                f"{stage}@m3"
                for stage in ("generate_prompts", "generate_responses", "judge", "build_preferences", "dpo")
            ),
            "evaluate_iteration@m3",
            "diff@m3",
            "summary",
        ]
    )
    assert "| m3 |" in (clone.path / "data/summary/report.md").read_text()

    clone.run("git", "restore", "-SW", ".")
    clone.run("dvc", "checkout")
    assert clone.stages_run("dvc", "repro") == []


def test_an_unknown_param_is_an_error_that_names_the_nearest(clone: Clone) -> None:
    result = clone.run("dvc", "exp", "run", "-S", "+ppo.klcoef=0.02", check=False)
    clone.run("git", "restore", "-SW", ".")
    clone.run("dvc", "checkout")

    assert result.returncode != 0
    assert 'params.yaml: ppo.klcoef: unknown key; did you mean "ppo.kl_coef"?' in result.stdout + result.stderr
