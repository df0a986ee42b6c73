"""Stages that compute on one device at the same time, as real processes: one at a time, however the others end."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from align.core.errors import InputError
from align.run import locks
from align.run.locks import SWITCH, hold_devices
from align.run.runtime import RuntimeSettings
from align.run.stage import Stage
from tests.committed import PARAMS_YAML, REPOSITORY, write_params

IMPORTS = """
import json, os, subprocess, sys, time
from pathlib import Path
from align.run.locks import hold_devices
from align.core.params import Params
from align.run.work import Work
from align.run.runtime import RuntimeSettings
runtime = RuntimeSettings(device="cpu", dtype="float32", quantization="none", optim="adamw_torch",
    num_threads=1, batch_size=1)
"""
# Says when it asks for the device and when it has it, and ends when it is told to.
STAGE = f"""{IMPORTS}
print("asks", flush=True)
hold_devices(sys.argv[1], runtime)
print("holds", flush=True)
sys.stdin.readline()
"""
# Fails if another computes at the same time.
COMPUTES = f"""{IMPORTS}
for line in sys.stdin:
    break
hold_devices(sys.argv[1], runtime)
Path("busy").touch(exist_ok=False)
time.sleep(0.3)
Path("busy").unlink()
"""
# Does as a stage of the pipeline does: the device first, then the folder of its finished work.
WORKS = f"""{IMPORTS}
print("asks", flush=True)
sys.stdin.readline()
hold_devices("judge@m1", runtime)
with Work("judge@m1", Params.read(Path(sys.argv[1])), runtime, []) as work:
    rows = work.rows("request")
    found = len(rows)
    for number in range(20):
        if number not in rows:
            rows.finish({{number: 0}})
            time.sleep(0.01)
    sys.exit(0)
"""
# What `dvc` and `accelerate launch` have in common here: it starts processes, as their parent, and waits.
STARTER = """
import json, os, subprocess, sys
processes = [subprocess.Popen(command, env=os.environ | env) for command, env in json.loads(sys.argv[1])]
sys.exit(max(process.wait() for process in processes))
"""


class Process(subprocess.Popen[str]):
    """A process whose lines can be waited for."""

    def wait_for(self, line: str) -> str:
        """Return the lines up to the first that holds `line`."""
        assert self.stdout is not None
        said = ""
        while line not in said:
            new = self.stdout.readline()
            assert new, f"ended without {line!r}: {said}"
            said += new
        return said

    def tell(self) -> None:
        """Let it go on."""
        assert self.stdin is not None
        self.stdin.write("\n")
        self.stdin.flush()

    def end(self) -> str:
        """Let it end, and return what it said meanwhile."""
        return self.communicate("\n")[0]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def run(program: str, *arguments: str, **variables: str) -> Process:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path)}
        process = Process(
            [sys.executable, "-c", program, *arguments],
            cwd=tmp_path,
            env=environment | {SWITCH: "1"} | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        finally:
            process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                stream.close()


def waits(name: str, holder: int, other: str) -> str:
    return f"{name}: waits for process {holder} ({other}), which holds the CPU\n"


@pytest.mark.parametrize("how", ["it ends", "it is killed"])
def test_the_second_waits_says_for_whom_and_goes_on_when_the_first_is_gone(
    start: Callable[..., Process], how: str
) -> None:
    first = start(STAGE, "ppo")
    first.wait_for("holds")
    second = start(STAGE, "evaluate@m1")
    assert second.wait_for("waits") == "asks\n" + waits("evaluate@m1", first.pid, "ppo")
    if how == "it ends":
        assert first.end() == ""
    else:
        first.kill()
    assert second.wait_for("holds") == "holds\n"
    third = start(STAGE, "judge@m1")
    assert waits("judge@m1", second.pid, "evaluate@m1") in third.wait_for("waits")
    second.end()
    third.wait_for("holds")


def test_three_that_start_together_compute_one_after_the_other(start: Callable[..., Process], tmp_path: Path) -> None:
    processes = [start(COMPUTES, f"dpo@m{number}") for number in range(3)]

    for process in processes:
        process.tell()
    said = [process.communicate()[0] for process in processes]

    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert not (tmp_path / "busy").exists()


def launch(start: Callable[..., Process], stage: str) -> Process:
    """Start two ranks of one launch; the second one asks first."""
    rank_1 = [[sys.executable, "-c", STAGE, stage], {"RANK": "1", "LOCAL_RANK": "1"}]
    rank_0 = [[sys.executable, "-c", f"import time; time.sleep(0.5){STAGE}", stage], {"RANK": "0", "LOCAL_RANK": "0"}]
    return start(STARTER, json.dumps([rank_1, rank_0]))


def test_of_two_launches_all_processes_of_one_compute_and_then_all_of_the_other(start: Callable[..., Process]) -> None:
    first = launch(start, "judge@m1")
    said = first.wait_for("holds")
    second = launch(start, "judge@m2")
    said += first.wait_for("holds")
    assert sorted(said.splitlines()) == ["asks", "asks", "holds", "holds"]

    waiting = second.wait_for("waits")
    assert re.search(r"^judge@m2: waits for process \d+ \(judge@m1\), which holds the CPU$", waiting, re.MULTILINE)
    while waiting.count("asks") < 2:
        waiting += second.wait_for("\n")
    assert "holds\n" not in waiting
    first.end()
    second.wait_for("holds")
    second.wait_for("holds")


def test_a_process_whose_launcher_is_killed_before_the_main_one_has_the_device_ends_with_a_line(
    start: Callable[..., Process],
) -> None:
    first = start(STAGE, "ppo")
    first.wait_for("holds")
    second = launch(start, "judge@m1")
    said = second.wait_for("asks")
    said += second.wait_for("waits") if "waits" not in said else ""
    while said.count("asks") < 2:
        said += second.wait_for("\n")

    second.kill()

    second.wait_for("InputError: judge@m1: the launcher was killed; run the stage again")
    first.end()  # now the main one has the device, too late
    assert "holds\n" not in second.wait_for("InputError: judge@m1: the launcher was killed")


def test_an_orphan_that_waited_does_not_compute_and_one_that_computes_keeps_the_device(
    start: Callable[..., Process],
) -> None:
    def under_dvc(stage: str) -> Process:
        return start(STARTER, json.dumps([[[sys.executable, "-c", STAGE, stage], {"DVC_STAGE": stage}]]))

    first = under_dvc("ppo")
    first.wait_for("holds")
    second = under_dvc("evaluate@ppo")
    second.wait_for("waits")
    first.kill()
    second.kill()
    third = start(STAGE, "judge@m1")
    assert "(ppo), which holds the CPU" in third.wait_for("waits")

    first.end()  # the orphan: it has the pipe
    assert "holds\n" not in second.wait_for("InputError: evaluate@ppo: DVC was killed")
    third.wait_for("holds")


@pytest.mark.parametrize("switch", ["1", "0"])
def test_two_with_the_same_work_do_not_wait_for_each_other(
    start: Callable[..., Process], tmp_path: Path, switch: str
) -> None:
    (tmp_path / ".align").mkdir()
    processes = [start(WORKS, str(PARAMS_YAML), ALIGN_DEVICE_LOCK=switch) for _ in range(3)]
    for process in processes:
        process.wait_for("asks")

    for process in processes:
        process.tell()

    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said


@pytest.mark.parametrize(
    ("module", "function"),
    [(f"stages/{stage}.py", "main") for stage in ("sft", "reward_model", "ppo", "evaluate")]
    + [("align/dpo/training.py", "train_dpo")],
)
def test_a_stage_loads_its_models_inside_its_work(module: str, function: str) -> None:
    main = (REPOSITORY / module).read_text(encoding="utf-8").partition(f"def {function}(")[2]

    [work] = [match.start() for match in re.finditer(r"with stage\.work\(", main)]

    loads = [found.start() for found in re.finditer(r"(AdapterStack|load_base|start_model|reward_start|fit)\(", main)]
    assert loads
    assert work < min(loads)


def test_a_stage_takes_the_device_before_its_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    taken: list[str] = []
    monkeypatch.setattr("align.run.stage.hold_devices", lambda name, runtime: taken.append("device"))
    stage = Stage("sft")

    def work(inputs: list[Path]) -> nullcontext[None]:
        taken.append("work")
        return nullcontext()

    monkeypatch.setattr(stage, "unlocked_work", work)

    with stage.work([]):
        pass

    assert taken == ["device", "work"]


def test_without_the_switch_the_cpu_is_free_and_gpus_are_locked_in_one_order_however_they_are_numbered(
    runtime: RuntimeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = runtime.model_copy(update={"device": "cuda:1"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv(SWITCH, raising=False)
    for order in (("c", "a", "b"), ("b", "c", "a")):
        properties = [SimpleNamespace(uuid=name) for name in order]
        monkeypatch.setattr(torch.cuda, "get_device_properties", properties.__getitem__)
        assert locks._devices(on_gpu) == ["GPU a", "GPU b", "GPU c"]
    assert locks._devices(runtime) == []
    monkeypatch.setenv(SWITCH, "1")
    assert locks._devices(runtime) == ["CPU"]
    monkeypatch.setenv(SWITCH, "0")
    assert locks._devices(on_gpu) == locks._devices(runtime) == []


def test_another_user_can_use_the_lock_file_whatever_the_umask_is(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    process = start(f"import os; os.umask(0o077){STAGE}", "ppo")
    process.wait_for("holds")
    file = tmp_path / "align-CPU.lock"
    assert file.stat().st_mode & 0o777 == 0o666
    assert file.read_text() == f"{process.pid} ppo"


@pytest.mark.parametrize("what", ["a link", "a second name", "a directory", "a pipe"])
def test_what_is_no_lock_file_is_left_as_it_is_with_one_line(
    what: str, runtime: RuntimeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv(SWITCH, "1")
    file, precious = tmp_path / "align-CPU.lock", tmp_path / "precious"
    precious.write_text("mine")
    make: dict[str, Callable[[], object]] = {
        "a link": lambda: file.symlink_to(precious),
        "a second name": lambda: file.hardlink_to(precious),
        "a directory": file.mkdir,
        "a pipe": lambda: os.mkfifo(file),
    }
    make[what]()

    with pytest.raises(InputError, match=r"align-CPU\.lock: cannot lock the CPU \(.+\); delete it, or set ALIGN_DEV"):
        hold_devices("ppo", runtime)

    assert precious.read_text() == "mine"


def test_a_switch_that_is_neither_0_nor_1_is_an_error(
    runtime: RuntimeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "yes")

    with pytest.raises(InputError, match=r"ALIGN_DEVICE_LOCK: should be 0 .+ got 'yes'"):
        hold_devices("ppo", runtime)
