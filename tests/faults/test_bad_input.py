"""Broken inputs through the real entry points: one clear line, nothing half-written, nothing lost."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.committed import REPOSITORY
from tests.faults.broken import CASES
from tests.faults.broken.__main__ import table
from tests.faults.broken.models import CODE, LEFT
from tests.faults.broken.rows import SEED
from tests.faults.broken.workspace import Case, build, contents, run, value

# What to do about it: after a semicolon, or as the rule that is broken.
ADVICE = re.compile(
    r"; |should be |must |did you mean|make it |write the |is missing|expected |: raise |: lower |: train "
)
PROGRESS = re.compile(r"\d+%\|")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which nothing is broken."""
    return build(tmp_path_factory.mktemp("whole") / "workspace")


@pytest.fixture
def workspace(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the working directory, as `python -m` has it: modules in it can be imported."""
    copy = tmp_path / "workspace"
    shutil.copytree(whole, copy)
    monkeypatch.chdir(copy)
    monkeypatch.syspath_prepend(str(copy))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "checkers", raising=False)  # another workspace's
    return copy


def assert_one_clear_line(code: int, stderr: str, case: Case) -> None:
    lines = [text for text in stderr.splitlines() if text.strip() and not PROGRESS.search(text)]
    if usage := lines[0].startswith("Usage: "):  # click's own word for a wrong command line
        assert code == 2
        lines = lines[-1:]
    assert code == (2 if usage or case.command.startswith("align diff") else 1)
    assert len(lines) == 1, stderr
    assert lines[0].startswith("Error: ")
    for part in case.says:
        assert part in lines[0]
    assert usage or ADVICE.search(lines[0]), lines[0]
    assert len(lines[0]) < 3100
    assert lines[0].isprintable()


@pytest.mark.parametrize("case", [pytest.param(case, id=f"{case.kind}-{case.name}") for case in CASES])
def test_a_broken_input_is_one_clear_line_and_changes_no_file(case: Case, workspace: Path) -> None:
    case.breaks()
    before = contents(workspace)

    result = run(case.command)

    assert isinstance(result.exception, SystemExit), result.exc_info
    assert_one_clear_line(result.exit_code, result.stderr, case)
    assert contents(workspace) == before


# One of each of these kinds, as the command line that DVC runs.
IN_A_PROCESS = {
    ("data file", "UTF-16"),
    ("parameter", "eft.learning_rate: 'nan'"),
    ("base model", "a pickle in place of safetensors"),
    ("adapter", "configuration: cut off, dpo"),
    ("checker", "an exit at import"),
    ("align diff", "half a surrogate pair"),
}


def test_the_corpus_is_as_large_as_it_says_and_has_no_case_twice() -> None:
    names = [(case.kind, case.name) for case in CASES]
    assert len(names) == len(set(names)) >= 220
    assert set(names) >= IN_A_PROCESS


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [pytest.param(c, id=f"{c.kind}-{c.name}") for c in CASES if (c.kind, c.name) in IN_A_PROCESS]
)
def test_a_process_of_its_own_says_the_same(case: Case, workspace: Path) -> None:
    case.breaks()
    before = contents(workspace)
    name, *arguments = case.command.split()
    module = "align.cli.main" if name == "align" else f"stages.{name}"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}

    result = subprocess.run(
        [sys.executable, "-m", module, *arguments], env=environment, capture_output=True, text=True, check=False
    )

    assert_one_clear_line(result.returncode, result.stderr, case)
    assert contents(workspace) == before


@pytest.mark.parametrize(
    "command",
    ["base_model", "prepare_data", "generate_responses m1 m0", "judge m1 m0", "build_preferences m1 m0", "summary"],
)
def test_the_unbroken_workspace_passes(command: str, workspace: Path) -> None:
    assert run(command).exit_code == 0


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda data: data.replace(b"\n", b"\r\n"), id="CRLF"),
        pytest.param(lambda data: b"\xef\xbb\xbf" + data, id="byte order mark"),
        pytest.param(lambda data: data.rstrip(b"\n"), id="no newline at the end"),
        pytest.param(lambda data: data.replace(b"\n", b"\n\n \n"), id="blank lines"),
        pytest.param(lambda data: data.replace(b"red", rb"\ud83d\ude00"), id="an escaped surrogate pair"),
    ],
)
def test_what_editors_do_to_a_good_file_is_no_harm(change: Callable[[bytes], bytes], workspace: Path) -> None:
    assert run("prepare_data").exit_code == 0
    before = Path("data/m0/ift.jsonl").read_bytes()
    Path(SEED).write_bytes(change(Path(SEED).read_bytes()))

    assert run("prepare_data").exit_code == 0

    assert Path("data/m0/ift.jsonl").read_bytes() in (before, before.replace(b"red", "\U0001f600".encode()))


def test_code_that_a_known_model_brings_along_is_not_run_and_not_needed(workspace: Path) -> None:
    value("source/config.json", "auto_map", to={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"})()
    Path("source/evil.py").write_text(CODE)

    assert run("base_model").exit_code == 0

    assert not Path(LEFT).exists()


def test_the_page_has_the_table_that_the_corpus_gives() -> None:
    page = (REPOSITORY / "docs/DATA.md").read_text(encoding="utf-8")
    assert table() in page, "put the table of `python -m tests.faults.broken` into docs/DATA.md"
    assert f"{len(CASES)} broken inputs" in page
