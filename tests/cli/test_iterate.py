"""`align iterate`: the loop with a `dvc repro` made of Python, and once with the real one."""

import csv
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
    MODELS_FILE,
    WIN_RATE,
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

START = """\
# What the chain is made with.
seed: 17   # of everything

iterations:
  m1: m0  # the first
  m2: m1

""" + "".join(f"{section}: null  # not read here\n" for section in SECTIONS if section not in ("seed", "iterations"))

Values = Mapping[str, float | None]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a params.yaml and the chain m1, m2, as the working directory."""
    monkeypatch.chdir(tmp_path)
    PARAMS_FILE.write_text(START, encoding="utf-8")
    assert list(Params.read().iterations) == ["m1", "m2"]
    return tmp_path


class FakeRepro:
    """Writes models.csv and dvc.lock for the models in params.yaml, as the pipeline would; may fail or be edited at."""

    def __init__(self, values: Values, failing: str = "", during: Callable[[], None] = lambda: None) -> None:
        self.values, self.failing, self.during = values, failing, during
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
        MODELS_FILE.parent.mkdir(parents=True, exist_ok=True)
        with MODELS_FILE.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["model", "win_rate_vs_m0", "reward", "note"])
            for model in ("base", "m0", *chain, "ppo"):
                writer.writerow([model, self.values.get(model), self.values.get(model), "words"])
        return True


def run(repro: Dvc, limit: int = 3, metric: str = WIN_RATE, lower_is_better: bool = False) -> list[str]:
    said: list[str] = []
    extend_chain(metric, limit, lower_is_better, said.append, repro)
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


def test_it_stops_at_the_first_iteration_that_is_no_better_and_keeps_it() -> None:
    repro = FakeRepro({"m1": 0.6, "m2": 0.65, "m3": 0.66, "m4": 0.66, "m5": 0.9})

    said = run(repro, limit=5)

    assert repro.chains == [["m1", "m2"], ["m1", "m2", "m3"], ["m1", "m2", "m3", "m4"]]
    assert said == [
        "m3: win_rate_vs_m0 0.66 (best before: 0.65 of m2)",
        "m4: win_rate_vs_m0 0.66 (best before: 0.66 of m3)",
        "m4 is no better than m3, so the loop ends; m4 stays in params.yaml",
    ]
    assert Params.read().iterations == {"m1": "m0", "m2": "m1", "m3": "m2", "m4": "m3"}


def test_the_value_to_beat_is_the_best_of_the_chain_not_the_last() -> None:
    said = run(FakeRepro({"m1": 0.7, "m2": 0.6, "m3": 0.65}))

    assert said[0] == "m3: win_rate_vs_m0 0.65 (best before: 0.7 of m1)"
    assert "m3 is no better than m1, so the loop ends" in said[1]


def test_m0_is_to_be_beaten_too_and_ties_with_itself() -> None:
    assert "(best before: 0.5 of m0)" in run(FakeRepro({"m1": 0.3, "m2": 0.4, "m3": 0.45}))[0]


def test_base_and_ppo_are_not_in_the_chain() -> None:
    assert "(best before: 0.6 of m1)" in run(FakeRepro({"m1": 0.6, "m2": 0.6, "base": 0.9, "ppo": 0.9, "m3": 0.5}))[0]


def test_it_ends_at_max_while_the_metric_still_improves() -> None:
    said = run(FakeRepro({"m1": 0.6, "m2": 0.65, "m3": 0.7, "m4": 0.75, "m5": 0.8, "m6": 0.9}), limit=3)

    assert said[-1] == "m5 is the best; --max 3 reached"
    assert chain_now() == ["m1", "m2", "m3", "m4", "m5"]


def test_a_metric_may_have_to_fall() -> None:
    values = {"m0": 3.0, "m1": 2.0, "m2": 1.0, "m3": 0.5, "m4": 0.7}

    said = run(FakeRepro(values), metric="reward", lower_is_better=True)

    assert said[1] == "m4: reward 0.7 (best before: 0.5 of m3)"
    assert chain_now() == ["m1", "m2", "m3", "m4"]


def test_a_model_without_a_value_is_no_better() -> None:
    said = run(FakeRepro({"m1": 0.6, "m2": None, "m3": None}))

    assert said[0] == "m3: win_rate_vs_m0 nan (best before: 0.6 of m1)"
    assert "m3 is no better" in said[1]


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


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("win_rate", "unknown metric 'win_rate'; data/summary/models.csv has win_rate_vs_m0, reward, note"),
        ("model", "unknown metric 'model'"),
        ("note", "'note' is not a number: m0 has 'words'"),
    ],
)
def test_an_unknown_metric_is_an_error_before_anything_is_added(metric: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(FakeRepro({"m1": 0.6, "m2": 0.65}), metric=metric)

    assert PARAMS_FILE.read_text(encoding="utf-8") == START


def test_an_unknown_metric_is_found_before_dvc_runs_where_there_is_a_summary() -> None:
    repro = FakeRepro({"m1": 0.6, "m2": 0.65})
    repro("repro")

    with pytest.raises(InputError, match="unknown metric"):
        run(repro, metric="win_rate")

    assert len(repro.chains) == 1


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
        - mkdir -p data/eval && cp data/metrics/${key} data/eval/${key}.json
      deps:
        - data/metrics/${key}
      outs:
        - data/eval/${key}.json
  summary:
    cmd: python summary.py
    deps:
      - data/eval
      - data/metrics
    params: [iterations]
    outs:
      - data/summary/models.csv: {cache: false}
"""
SUMMARY = """\
import os
from ruamel.yaml import YAML
os.makedirs("data/summary", exist_ok=True)
with open("params.yaml") as params, open("data/summary/models.csv", "w") as out:
    print("model,win_rate_vs_m0", "m0,", sep="\\n", file=out)
    for model in YAML(typ="safe").load(params)["iterations"]:
        print(model, int(model[1:]) / 10 + 0.5, sep=",", file=out)
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
    (project / "summary.py").write_text(SUMMARY, encoding="utf-8")
    assert command("git", "init", "-q").returncode == 0
    assert command("dvc", "init", "-q").returncode == 0

    result = command(sys.executable, "-m", "align.cli.main", "iterate", "--max", "3")

    assert result.returncode == 1, result.stderr
    assert "m3: win_rate_vs_m0 0.8 (best before: 0.7 of m2)" in result.stdout
    assert "the gate of m4" in result.stdout
    assert result.stderr.splitlines()[-1].startswith("Error: m4 failed, ")
    assert PARAMS_FILE.read_text(encoding="utf-8") == add_iteration(START, "m3", "m2")
    lock = YAML(typ="safe").load(LOCK_FILE.read_text(encoding="utf-8"))["stages"]
    assert sorted(lock) == ["first@m1", "first@m2", "first@m3", "second@m1", "second@m2", "second@m3", "summary"]
    assert command("dvc", "status").stdout.strip() == "Data and pipelines are up to date."
    # Nothing of m4 is in what summary depends on: a fresh clone that pulls would find its own summary up to date.
    assert sorted(path.name for path in (project / "data/metrics").glob("m*")) == ["m1", "m2", "m3"]
