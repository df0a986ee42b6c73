"""Stage ppo, killed without warning and run again: the same bytes as a run that nobody killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from align.core.files import sha256
from align.core.rows import Instruction, write_rows
from align.run.work import Checkpoint
from tests.committed import REPOSITORY, write_params

# Runs the stage in children of one process that has imported it, since imports take longer than the training: a line
# of jobs in, an exit code a line out. A child with a kill gets one function replaced by one that kills it at its n-th
# call, before or after doing its work.
CHILDREN = """
import json, os, shutil, signal, sys
import stages.ppo
from align.run import work as resume

def kill_at(place, count, moment):
    owner, name = {"save": (resume.Checkpoint, "save"), "rename": (os, "replace")}[place]
    plain, calls = getattr(owner, name), 0

    def fatal(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == count and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        plain(*args, **kwargs)
        if calls == count and moment == "after":
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, fatal)

for number, (folder, kill) in (job for line in sys.stdin for job in enumerate(json.loads(line))):
    pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        os.environ["DVC_ROOT"] = folder
        with open(f"{number}.log", "w") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        if kill:
            kill_at(*kill)
        stages.ppo.main([])
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
KILLS = {
    "before the first update is saved": (("save", 1, "before"), None),
    "half-way": (("save", 2, "after"), 2),
    "with a checkpoint written, and not yet in its place": (("rename", 4, "before"), 2),
    "with all updates done, and no output written": (("rename", 6, "before"), 4),
}


ADVANTAGES: dict[str, dict[str, object]] = {
    "gae": {"advantage": "gae", "num_generations": 1, "value_layers": 1},
    "rloo": {"advantage": "rloo", "num_generations": 2},
    "grpo": {"advantage": "grpo", "num_generations": 4},
}


@pytest.fixture
def workspace(tiny_base: Path, make_adapter: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder in which stage ppo finds all it needs, with `gae`."""
    folder = tmp_path / "workspace"
    shutil.copytree(tiny_base, folder / "models/base")
    shutil.copytree(make_adapter("policy", 1), folder / "models/m0")
    shutil.copytree(make_adapter("reward", 2, head=True), folder / "models/reward")
    changes = ADVANTAGES["gae"] | {
        "num_updates": 4,
        "rollout_batch_size": 4,
        "mini_batch_size": 2,
        "per_device_train_batch_size": 2,
        "num_ppo_epochs": 2,
        "max_new_tokens": 4,
        "max_prompt_length": 256,
        "adaptive_kl_target": 0.1,
        "adaptive_kl_horizon": 20,
    }
    write_params(folder, {"ppo": changes})
    write_rows(folder / "data/m0/ift.jsonl", [Instruction(id="i", category="a", prompt="Hi", completion="Hello")])
    (folder / "data/prepared").mkdir(parents=True)
    rows = [f'{{"id": "p{i}", "messages": [{{"role": "user", "content": "Say {i}"}}]}}\n' for i in range(6)]
    (folder / "data/prepared/prompts.jsonl").write_text("".join(rows), encoding="utf-8")
    return folder


Run = Callable[..., list[int]]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Return a function that runs the stage in each folder in turn, with or without a kill: (folder, kill or None).

    It returns the exit codes, negative for a signal.
    """
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "ALIGN_CHECKPOINT_SECONDS": "0"}
    command = [sys.executable, "-c", CHILDREN]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def jobs(*described: tuple[Path, tuple[str, int, str] | None]) -> list[int]:
            stdin.write(json.dumps([(str(folder), kill) for folder, kill in described]) + "\n")
            stdin.flush()
            return [int(stdout.readline()) for _ in described]

        yield jobs
        stdin.close()
        assert process.wait(60) == 0


def outputs(folder: Path) -> tuple[str, str]:
    return sha256(folder / "models/ppo"), sha256(folder / "data/ppo")


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / ".align").rglob("*.safetensors"))


def test_a_killed_run_goes_on_from_its_last_update_and_ends_in_the_same_bytes(workspace: Path, run: Run) -> None:
    folders = {name: Path(shutil.copytree(workspace, workspace.parent / f"killed-{i}")) for i, name in enumerate(KILLS)}
    jobs: list[tuple[Path, tuple[str, int, str] | None]] = [(workspace, None)]
    for name, (kill, _) in KILLS.items():
        jobs += [(folders[name], kill), (folders[name], None)]
    assert run(*jobs) == [0, *[-signal.SIGKILL, 0] * len(KILLS)]
    assert not checkpoints(workspace)
    for i, (name, (_, updates_done)) in enumerate(KILLS.items()):
        told = (folders[name] / f"{2 * i + 2}.log").read_text(encoding="utf-8")
        assert ("resumes after update" in told) == (updates_done is not None), name
        assert updates_done is None or f"resumes after update {updates_done}" in told, name
        assert outputs(folders[name]) == outputs(workspace), name
        assert not checkpoints(folders[name])


WITH_CHECKERS = [
    {"checker": "align.checks.rewards:right_answer", "weight": 1.0},
    {"checker": "align.checks.rewards:checks_passed", "weight": 0.5},
]


@pytest.mark.parametrize("model", [True, False])
def test_with_checkers_a_killed_run_ends_in_the_same_bytes(model: bool, workspace: Path, run: Run) -> None:
    values = YAML(typ="safe").load(workspace / "params.yaml")
    rewards = [*([{"model": "reward", "weight": 0.1}] if model else []), *WITH_CHECKERS]
    values["ppo"] |= ADVANTAGES["rloo"] | {"prompts": "tasks.jsonl", "rewards": rewards}
    YAML().dump(values, workspace / "params.yaml")
    rows = [{"id": f"t{i}", "prompt": f"Say {i}", "answer": i} for i in range(6)]
    checks = {"checks": [{"kind": "words", "min": 1, "max": 2}]}
    (workspace / "tasks.jsonl").write_text("".join(json.dumps(row | checks) + "\n" for row in rows), encoding="utf-8")
    if not model:
        shutil.rmtree(workspace / "models/reward")
    killed = Path(shutil.copytree(workspace, workspace.parent / "killed"))
    assert run((workspace, None), (killed, ("save", 2, "after")), (killed, None)) == [0, -signal.SIGKILL, 0]
    assert "resumes after update 2" in (killed / "2.log").read_text(encoding="utf-8")
    assert outputs(killed) == outputs(workspace)
    columns = (workspace / "data/ppo/history.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert {"reward_right_answer", "reward_checks_passed"} < set(columns)
    assert ("reward" in json.loads((workspace / "models/ppo/model_card.json").read_text())["parents"]) == model


@pytest.mark.parametrize("advantage", ["rloo", "grpo"])
def test_without_a_critic_a_killed_run_ends_in_the_same_bytes_and_the_history_has_no_measure_of_one(
    advantage: str, workspace: Path, run: Run
) -> None:
    values = YAML(typ="safe").load(workspace / "params.yaml")
    values["ppo"] |= ADVANTAGES[advantage]
    YAML().dump(values, workspace / "params.yaml")
    killed = Path(shutil.copytree(workspace, workspace.parent / "killed"))
    assert run((workspace, None), (killed, ("save", 2, "after")), (killed, None)) == [0, -signal.SIGKILL, 0]
    assert "resumes after update 2" in (killed / "2.log").read_text(encoding="utf-8")
    assert outputs(killed) == outputs(workspace)
    columns = (workspace / "data/ppo/history.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert not {"explained_variance", "value_loss", "mean_value"} & set(columns)
    assert ("kl_loss" in columns) == (advantage == "grpo")


def test_a_run_with_other_params_does_not_see_the_checkpoint(workspace: Path, run: Run) -> None:
    changed = Path(shutil.copytree(workspace, workspace.parent / "changed"))
    text = (workspace / "params.yaml").read_text(encoding="utf-8")
    (changed / "params.yaml").write_text(text.replace("kl_coef: 0.05", "kl_coef: 0.06"), encoding="utf-8")
    assert run((workspace, ("save", 2, "after"))) == [-signal.SIGKILL]
    assert len(checkpoints(workspace)) == 1
    shutil.move(workspace / ".align", changed)
    assert run((changed, None), (workspace, None)) == [0, 0]
    assert "resumes after" not in (changed / "0.log").read_text(encoding="utf-8")
    assert outputs(changed) != outputs(workspace)


def test_a_checkpoint_gives_back_what_was_saved_to_the_last_bit(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors")
    assert checkpoint.load() is None
    checkpoint.save({"x": torch.arange(3.0) / 7}, {"updates_done": 7, "reward": 0.1 + 0.2})
    found = checkpoint.load()
    assert found is not None
    assert torch.equal(found[0]["x"], torch.arange(3.0) / 7)
    assert found[1] == {"updates_done": 7, "reward": 0.1 + 0.2}


@pytest.mark.parametrize("damage", ["cut off", "a byte of the weights", "a digit of the state", "nothing of it left"])
def test_a_damaged_checkpoint_is_left_out_with_a_word(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors")
    checkpoint.save({"x": torch.arange(3.0)}, {"updates_done": 7})
    content = checkpoint.path.read_bytes()
    whole = {
        "cut off": content[:-4],
        "a byte of the weights": content[:-4] + bytes([content[-4] ^ 1]) + content[-3:],
        "a digit of the state": content.replace(b": 7", b": 8"),
        "nothing of it left": b"",
    }
    assert whole[damage] != content
    checkpoint.path.write_bytes(whole[damage])

    assert checkpoint.load() is None
    assert f"{checkpoint.path}: the checkpoint is damaged" in capsys.readouterr().err


def test_a_run_that_finds_a_damaged_checkpoint_starts_anew_and_ends_in_the_same_bytes(
    workspace: Path, run: Run
) -> None:
    plain, killed = (Path(shutil.copytree(workspace, workspace.parent / name)) for name in ("plain", "killed"))
    assert run((plain, None), (killed, ("save", 2, "after"))) == [0, -signal.SIGKILL]
    [checkpoint] = checkpoints(killed)
    content = bytearray(checkpoint.read_bytes())
    content[-100] ^= 1  # safetensors itself would not notice
    checkpoint.write_bytes(content)

    assert run((killed, None)) == [0]
    told = (killed / "0.log").read_text(encoding="utf-8")
    assert "the checkpoint is damaged" in told
    assert "resumes after update" not in told
    assert outputs(killed) == outputs(plain)
