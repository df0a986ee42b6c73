"""`align iterate`: the loop with a `dvc repro` made of Python, and once with the real one."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from align.cli.iterate.loop import (
    EVAL_DIR,
    Dvc,
    add_iteration,
    extend_chain,
    next_model,
    run_dvc,
)
from align.cli.main import main
from align.cli.project.dvc import LOCK_FILE
from align.core.errors import InputError
from align.core.params import PARAMS_FILE, SECTIONS, Params
from align.core.rows import Answer, CheckedAnswer, write_rows
from align.report.comparisons import in_development_half
from tests.answers import answer, checked_answer

START = """\
# What the chain is made with.
seed: 17   # of everything

iterations:
  m1: m0  # the first
  m2: m1

""" + "".join(f"{section}: null  # not read here\n" for section in SECTIONS if section not in ("seed", "iterations"))

IDS = [f"e{i}" for i in range(40)]
# Skill of a model: on the prompts of the development half, and on the others where that differs.
Values = Mapping[str, float | tuple[float, float]]


def evaluated(skill: float | tuple[float, float]) -> tuple[list[Answer], list[CheckedAnswer]]:
    """Return answers whose judge score and reward are the skill, and checks passed on that share of prompts."""
    development, other = skill if isinstance(skill, tuple) else (skill, skill)
    skills = {name: development if in_development_half(name) else other for name in IDS}
    answers = [answer(name, judge_score=value, reward=value) for name, value in skills.items()]
    checked = [checked_answer(name, [i < value * len(IDS)]) for i, (name, value) in enumerate(skills.items())]
    return answers, checked


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a params.yaml and the chain m1, m2, as the working directory."""
    monkeypatch.chdir(tmp_path)
    PARAMS_FILE.write_text(START, encoding="utf-8")
    assert list(Params.read().iterations) == ["m1", "m2"]
    return tmp_path


class FakeRepro:
    """Writes data/eval and dvc.lock for the models in params.yaml, as the pipeline would; may fail or be edited at."""

    def __init__(
        self, values: Values, failing: str = "", during: Callable[[], None] = lambda: None, checks: bool = True
    ) -> None:
        self.values, self.failing, self.during, self.checks = values, failing, during, checks
        self.chains: list[list[str]] = []

    def __call__(self, command: str) -> bool:
        if command == "checkout":
            return True
        assert command == "repro"
        chain = list(Params.read().iterations)
        self.chains.append(chain)
        if len(self.chains) > 1:
            self.during()
        LOCK_FILE.write_text(f"stages of {chain}\n", encoding="utf-8")
        if self.failing in chain:
            return False
        for model in ("base", "m0", *chain, "dpo", "ppo"):
            answers, checked = evaluated(self.values.get(model, 0.5))
            write_rows(EVAL_DIR / f"{model}.jsonl", answers)
            if self.checks:
                write_rows(EVAL_DIR / f"{model}.checks.jsonl", checked)
        return True


def run(repro: Dvc, limit: int = 3, measure: str = "judge") -> list[str]:
    said: list[str] = []
    extend_chain(measure, limit, said.append, repro)
    return said


def chain_now() -> list[str]:
    return list(Params.read().iterations)


def interrupt_half_way() -> None:
    LOCK_FILE.write_text("half", encoding="utf-8")
    raise KeyboardInterrupt


def test_an_iteration_is_one_more_line_and_no_other_byte_of_params_yaml() -> None:
    assert add_iteration(START, "m3", "m2") == START.replace("  m2: m1\n", "  m2: m1\n  m3: m2\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("iterations: {m1: m0}  # why\na: 1\n", "iterations: {m1: m0, m2: m1}  # why\na: 1\n"),
        ("iterations: { m1: m0, }\n", "iterations: { m1: m0, m2: m1, }\n"),
        (
            "iterations:\n    m1: m0   # first\n\n# next\na: null\n",
            "iterations:\n    m1: m0   # first\n    m2: m1\n\n# next\na: null\n",
        ),
        ("iterations:\n  m1: 'm0'", "iterations:\n  m1: 'm0'\n  m2: m1"),
        ("a: é\r\niterations:\r\n  m1: m0\r\nb: 2\r\n", "a: é\r\niterations:\r\n  m1: m0\r\n  m2: m1\r\nb: 2\r\n"),
        ("iterations: {\n  m1: m0  # first\n}\n", "iterations: {\n  m1: m0, m2: m1  # first\n}\n"),
    ],
)
def test_an_iteration_is_added_in_the_style_of_the_others(text: str, expected: str) -> None:
    assert add_iteration(text, "m2", "m1") == expected


def test_a_chain_in_a_style_that_cannot_be_added_to_is_an_error_and_no_broken_yaml() -> None:
    with pytest.raises(InputError, match="iterations: cannot add to it"):
        add_iteration("iterations:\n  ? m1\n  : m0\n", "m2", "m1")


def test_the_next_model_follows_the_last_entry() -> None:
    assert next_model({"m1": "m0"}) == ("m2", "m1")
    assert next_model({"m1": "m0", "m8": "m1", "m9": "m1"}) == ("m10", "m9")


@pytest.mark.parametrize("chain", [["first"], ["m1", "m01"], ["m1", "m3", "m2"], ["m1", "m2b"]])
def test_a_chain_that_no_name_can_follow_is_an_error(chain: list[str]) -> None:
    with pytest.raises(InputError, match=r"name the models m1, m2, \.\.\. in order"):
        next_model(dict.fromkeys(chain, "m0"))


def test_it_stops_at_the_first_iteration_that_is_not_better_than_its_parent_and_keeps_it() -> None:
    repro = FakeRepro({"m0": 0.5, "m1": 0.6, "m2": 0.65, "m3": 0.7, "m4": 0.7, "m5": 0.9})

    said = run(repro, limit=5)

    assert repro.chains == [["m1", "m2"], ["m1", "m2", "m3"], ["m1", "m2", "m3", "m4"]]
    development = sum(map(in_development_half, IDS))
    assert said == [
        "m3 against m2 by judge, on the development half: "
        f"+0.05 [+0.05, +0.05], better ({development} prompts can show 0.00)",
        "m3 against m2 by judge, on the other half: "
        f"+0.05 [+0.05, +0.05], better ({40 - development} prompts can show 0.00)",
        "m3 against m0 by judge, on the other half: "
        f"+0.20 [+0.20, +0.20], better ({40 - development} prompts can show 0.00)",
        "m4 against m3 by judge, on the development half: "
        f"+0.00 [+0.00, +0.00], cannot tell ({development} prompts can show 0.00)",
        "m4 against m3 by judge, on the other half: "
        f"+0.00 [+0.00, +0.00], cannot tell ({40 - development} prompts can show 0.00)",
        "m4 against m0 by judge, on the other half: "
        f"+0.20 [+0.20, +0.20], better ({40 - development} prompts can show 0.00)",
        "m4 is not shown to be better than m3, so the loop ends; m4 stays in params.yaml",
    ]
    assert Params.read().iterations == {"m1": "m0", "m2": "m1", "m3": "m2", "m4": "m3"}


def test_it_decides_on_the_development_half_and_reports_on_the_other() -> None:
    said = run(FakeRepro({"m2": 0.5, "m3": (0.9, 0.1), "m4": (0.1, 0.9)}))

    assert [line.split(":")[0] for line in said if "better" in line.split("(")[0] and "half" in line] == [
        "m3 against m2 by judge, on the development half",
        "m4 against m3 by judge, on the other half",
        "m4 against m0 by judge, on the other half",
    ]
    assert chain_now() == ["m1", "m2", "m3", "m4"]


def test_an_iteration_is_compared_with_its_parent_and_not_with_the_best_of_the_chain() -> None:
    said = run(FakeRepro({"m1": 0.9, "m2": 0.6, "m3": 0.7}), limit=1)

    assert said[-1] == "--max 1 reached, and each iteration was better than its parent"


def test_it_ends_at_max_while_every_iteration_is_better() -> None:
    said = run(FakeRepro({f"m{i}": i / 10 for i in range(10)}), limit=3)

    assert said[-1] == "--max 3 reached, and each iteration was better than its parent"
    assert chain_now() == ["m1", "m2", "m3", "m4", "m5"]


@pytest.mark.parametrize("measure", ["judge", "reward", "checks"])
def test_each_measure_can_decide(measure: str) -> None:
    said = run(FakeRepro({"m2": 0.2, "m3": 0.8, "m4": 0.3}), measure=measure)

    assert "better" in said[0]
    assert "worse" in said[3]
    assert chain_now() == ["m1", "m2", "m3", "m4"]


def test_a_measure_without_rows_is_an_error_before_anything_is_added() -> None:
    repro = FakeRepro({}, checks=False)

    with pytest.raises(InputError, match=r"--until checks: the development half of data/eval has no prompts"):
        run(repro, measure="checks")

    assert len(repro.chains) == 1
    assert PARAMS_FILE.read_text(encoding="utf-8") == START


def test_a_failing_iteration_is_removed_byte_for_byte() -> None:
    repro = FakeRepro({"m1": 0.6, "m2": 0.65, "m3": 0.7}, failing="m4")

    with pytest.raises(InputError, match=r"^m4 failed, .* params\.yaml is restored$") as error:
        run(repro)

    assert error.value.exit_code == 1
    assert PARAMS_FILE.read_text(encoding="utf-8") == add_iteration(START, "m3", "m2")
    assert repro.chains[-2:] == [["m1", "m2", "m3", "m4"], ["m1", "m2", "m3"]]


def test_the_lock_file_of_before_is_there_when_dvc_runs_after_a_failure() -> None:
    locks = []
    repro = FakeRepro({"m1": 0.6, "m2": 0.65}, failing="m3", during=lambda: locks.append(LOCK_FILE.read_text()))

    with pytest.raises(InputError, match="m3 failed"):
        run(repro)

    assert locks == ["stages of ['m1', 'm2']\n"] * 2


def test_a_first_repro_that_fails_adds_nothing() -> None:
    repro = FakeRepro({}, failing="m2")

    with pytest.raises(InputError, match="failed before any iteration was added"):
        run(repro)

    assert len(repro.chains) == 1
    assert PARAMS_FILE.read_text(encoding="utf-8") == START


def test_a_second_failure_of_dvc_is_reported() -> None:
    values = {"m1": 0.6, "m2": 0.65}
    repro = FakeRepro(values, failing="m3", during=lambda: setattr(repro, "failing", "m2"))

    with pytest.raises(InputError, match="failed after that: run it again"):
        run(repro)

    assert PARAMS_FILE.read_text(encoding="utf-8") == START


def test_ctrl_c_restores_params_and_lock_and_runs_nothing_more() -> None:
    repro = FakeRepro({"m1": 0.6, "m2": 0.65}, during=interrupt_half_way)

    with pytest.raises(KeyboardInterrupt):
        run(repro)

    assert len(repro.chains) == 2
    assert PARAMS_FILE.read_text(encoding="utf-8") == START
    assert LOCK_FILE.read_text(encoding="utf-8") == "stages of ['m1', 'm2']\n"


def test_an_unforeseen_error_restores_params_too() -> None:
    def no_python() -> None:
        raise PermissionError

    with pytest.raises(PermissionError):
        run(FakeRepro({"m1": 0.6, "m2": 0.65}, during=no_python))

    assert PARAMS_FILE.read_text(encoding="utf-8") == START


@pytest.mark.parametrize("failing", ["m3", "none"])
def test_an_edit_of_the_user_during_a_repro_is_never_overwritten(failing: str) -> None:
    def edit() -> None:
        text = PARAMS_FILE.read_text(encoding="utf-8")
        PARAMS_FILE.write_text(text.replace("seed: 17", "seed: 18"), encoding="utf-8")

    repro = FakeRepro({"m1": 0.6, "m2": 0.65, "m3": 0.7}, failing=failing, during=edit)
    with pytest.raises(InputError, match=r"params\.yaml: changed while DVC ran.*the change is kept"):
        run(repro)

    expected = add_iteration(START, "m3", "m2").replace("seed: 17", "seed: 18")
    assert PARAMS_FILE.read_text(encoding="utf-8") == expected
    assert len(repro.chains) == 2


def test_a_bad_number_is_a_one_line_error() -> None:
    result = CliRunner().invoke(main, ["iterate", "--max", "0"])

    assert result.exit_code == 1
    assert result.stderr.startswith("Error: --max: expected ")
    assert len(result.stderr.splitlines()) == 1


def test_ctrl_c_waits_for_dvc_to_end(project: Path) -> None:
    code = "import os, signal, time; os.kill(os.getppid(), signal.SIGINT); time.sleep(1); open('ended', 'w')"
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's default is to ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            run_dvc("x", [sys.executable, "-c", code])
    finally:
        signal.signal(signal.SIGINT, previous)

    assert (project / "ended").exists()


DVC_YAML = """\
stages:
  first:
    foreach: ${iterations}
    do:
      cmd: mkdir -p data/metrics && echo ${item} > data/metrics/${key}
      outs:
        - data/metrics/${key}  # also m4's, which then lies in a folder that summary depends on
  second:
    foreach: ${iterations}
    do:
      cmd:
        - echo the gate of ${key} && test ${key} != m4
        - mkdir -p data/eval && cp answers/${key}.jsonl data/eval/${key}.jsonl
      deps:
        - data/metrics/${key}
      outs:
        - data/eval/${key}.jsonl
  summary:
    cmd: mkdir -p data/summary && ls data/eval data/metrics > data/summary/report.md
    deps:
      - data/eval
      - data/metrics
    params: [iterations]
    outs:
      - data/summary/report.md: {cache: false}
"""


def test_with_the_real_dvc_a_failed_iteration_leaves_a_consistent_pipeline(project: Path) -> None:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(project),
        "DVC_NO_ANALYTICS": "1",
    }

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, cwd=project, env=environment, capture_output=True, text=True, check=False)

    (project / "dvc.yaml").write_text(DVC_YAML, encoding="utf-8")
    for i in range(1, 5):
        write_rows(project / f"answers/m{i}.jsonl", evaluated(i / 10)[0])
    write_rows(project / EVAL_DIR / "m0.jsonl", evaluated(0.0)[0])
    assert command("git", "init", "-q").returncode == 0
    assert command("dvc", "init", "-q").returncode == 0

    result = command(sys.executable, "-m", "align.cli.main", "iterate", "--max", "3")

    assert result.returncode == 1, result.stderr
    assert "m3 against m2 by judge, on the development half: +0.10 " in result.stdout
    assert "the gate of m4" in result.stdout
    assert result.stderr.splitlines()[-1].startswith("Error: m4 failed, ")
    assert PARAMS_FILE.read_text(encoding="utf-8") == add_iteration(START, "m3", "m2")
    lock = YAML(typ="safe").load(LOCK_FILE.read_text(encoding="utf-8"))["stages"]
    assert sorted(lock) == ["first@m1", "first@m2", "first@m3", "second@m1", "second@m2", "second@m3", "summary"]
    assert command("dvc", "status").stdout.strip() == "Data and pipelines are up to date."
    # Nothing of m4 is in what summary depends on: a fresh clone that pulls would find its own summary up to date.
    assert sorted(path.name for path in (project / "data/metrics").glob("m*")) == ["m1", "m2", "m3"]
