"""A thousand rows in a foreign layout, from prepare_data to the model that learns from them: each is accounted for."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from align.core.rows import Instruction, PreferencePair, read_rows
from stages import prepare_data, reward_model, sft
from tests.committed import COMMITTED, write_params

ROWS = 1000
FRUITS = ("cherry", "plum", "pear", "fig", "quince")
TRAINING = {"per_device_train_batch_size": 50, "gradient_accumulation_steps": 1, "num_train_epochs": 1}


@pytest.fixture
def workspace(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/seed").symlink_to(COMMITTED / "data/seed", target_is_directory=True)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/base").symlink_to(tiny_base, target_is_directory=True)
    return tmp_path


def run(main: Any, said: str) -> None:
    result = CliRunner().invoke(main, [], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert said in result.output


def counts() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(Path("data/metrics/prepare_data.json").read_text(encoding="utf-8"))
    return value


def write(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_a_set_in_ultrafeedbacks_layout_trains_the_reward_model(workspace: Path) -> None:
    def row(number: int) -> dict[str, Any]:
        asked = {"role": "user", "content": f"Name fruit {number}."}
        good, bad = f"A {FRUITS[number % 5]}.", "No." if number % 100 else f"A {FRUITS[number % 5]}."  # some are equal
        sides = {
            side: [asked, {"role": "assistant" if number % 250 else "tool", "content": text}]
            for side, text in (("chosen", good), ("rejected", bad))
        }
        return {"prompt": asked["content"], "prompt_id": number, **sides, "score_chosen": 8.5, "score_rejected": 4}

    write("pairs.jsonl", [row(number) for number in range(ROWS)])
    data = {"preferences": "pairs.jsonl", "unusable_preferences": "drop", "preferences_test_fraction": 0.2}
    rewarded = {**TRAINING, "init": "base", "use_margin": True}
    write_params(Path(), {"prepare_data": data, "reward_model": rewarded, "lora": {"r": 2}})
    run(prepare_data.main, "pairs.jsonl: read as pairs")
    found = counts()
    assert found["preferences_dropped"] == {"a turn of a tool": 4, "equal replies": 8}
    assert found["preferences_train"] + found["preferences_test"] + 12 == ROWS
    train = read_rows(Path("data/prepared/preferences/train.jsonl"), PreferencePair)
    assert {pair.margin for pair in train} == {4.5}
    run(reward_model.main, "")
    scored = Path("data/reward/test_scores.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(scored) == found["preferences_test"]


def test_a_set_in_sharegpts_layout_trains_m0_on_every_reply(workspace: Path) -> None:
    def row(number: int) -> dict[str, Any]:
        turns = [{"from": "system", "value": "Be short."}] if number % 3 == 0 else []
        for turn in range(1 + number % 4):
            turns.append({"from": "human", "value": f"Name fruit {turn} for guest {number}."})
            turns.append({"from": "gpt", "value": f"A {FRUITS[(number + turn) % 5]}."})
        if number % 200 == 7:
            turns.insert(1, {"from": "observation", "value": "12"})
        return {"id": str(number), "conversations": turns, "source": "made"}

    rows = [row(number) for number in range(ROWS)]
    write("chats.jsonl", rows)
    data = {"instructions": "chats.jsonl", "max_judgements": 40}
    short = {**TRAINING, "max_length": 512}
    write_params(Path(), {"prepare_data": data, "sft": short, "eft": {"num_train_epochs": 1}, "lora": {"r": 2}})
    run(prepare_data.main, "chats.jsonl: read as messages")
    replies = sum(turn["from"] == "gpt" for row in rows for turn in row["conversations"])
    unusable = [row for row in rows if any(turn["from"] == "observation" for turn in row["conversations"])]
    lost = sum(turn["from"] == "gpt" for row in unusable for turn in row["conversations"])
    found = counts()
    assert found["instructions_dropped"] == {"a turn of a tool": len(unusable)} == {"a turn of a tool": 5}
    assert found["ift"] == replies - lost
    learned = read_rows(Path("data/m0/ift.jsonl"), Instruction)
    assert sum(bool(row.history) and row.history[0].role == "system" for row in learned) > 300
    run(sft.main, f"; {found['ift']} rows, 0 dropped")
