"""What a model wrote, or a download holds, commands no terminal, is no markup, names no path; no secret gets out."""

import ast
import csv
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from markdown_it import MarkdownIt

from align.cli.main import main as align
from align.core.errors import InputError, printable, quoted
from align.core.rows import Instruction, read_rows
from stages import build_preferences, prepare_data, summary
from tests.committed import REPOSITORY
from tests.faults.broken.models import CODE, LEFT, pickled, with_code
from tests.faults.broken.workspace import contents, param, row, run
from tests.faults.test_bad_input import whole, workspace

__all__ = ["whole", "workspace"]  # fixtures

# Title, colours, cursor, C1 controls, carriage return and backspace, text that reads backwards, what hides text.
COMMANDS = (
    "\x1b]0;title\x07\x1b[31m\x1b[2J\x9b2J\x90q\x9c\r\x08\x7f\x85\u2028\u2029\u202e\u2066\u200f\u200b\ufeff\U000e0041"
)
ATTACKS = {
    "terminal": COMMANDS,
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "table": "| a | b |\n|---|---|\n| c | d |\n\n# Heading",
    "block": "# Heading",
    "link": "[here](javascript:alert(1)) ![pixel](https://example.com/pixel.png)",
    "yaml": "---\nseed: 18\n...",
    "path": "../../etc/passwd",
    "formula": '=HYPERLINK("https://example.com")',
}
CONTROL = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e007f]"
)


@pytest.mark.parametrize("flags", [[], ["--format", "json"]])
@pytest.mark.parametrize("attack", ATTACKS)
def test_align_diff_prints_no_control_character_and_one_line_a_row(
    attack: str, flags: Sequence[str], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("align.cli.diff.report.click.style", lambda text, **styles: text)  # ours are no attack
    text = ATTACKS[attack]
    row("data/eval/m1.jsonl", 1, response=text, category=text)()
    row("data/eval/m1.jsonl", 2, id=text)()

    result = CliRunner().invoke(align, ["diff", "m0", "m1", "--what", "answers", "--limit", "9", *flags], color=True)

    assert result.exit_code == 0
    assert CONTROL.findall(result.output) == []
    if flags:
        assert text in {
            found["b"]["id"] for found in json.loads(result.output)["data_sets"]["answers"]["rows"]["added"]
        }
    else:
        assert all(shown.startswith(("answers: ", "  ")) for shown in result.output.splitlines())


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_report_shows_model_text_as_text(attack: str, workspace: Path) -> None:
    assert CliRunner().invoke(summary.main).exit_code == 0
    before = MarkdownIt("commonmark").enable("table").parse(Path("data/summary/report.md").read_text(encoding="utf-8"))
    text = ATTACKS[attack]
    for number in range(1, 4):
        for name in ("base", "m0", "m1", "ppo"):
            row(f"data/eval/{name}.jsonl", number, response=text, prompt=text, category=text)()
    for number in range(1, 3):
        row("data/ppo/samples.jsonl", number, response=text, prompt=text)()

    assert CliRunner().invoke(summary.main).exit_code == 0

    report = Path("data/summary/report.md").read_text(encoding="utf-8")
    assert CONTROL.findall(report) == []
    after = MarkdownIt("commonmark").enable("table").parse(report)
    # The same headings, tables and paragraphs as with harmless text, and within them no markup but line breaks.
    assert [token.type for token in after] == [token.type for token in before]
    inline = [part for token in after for part in token.children or []]
    assert {part.content for part in inline if part.type == "html_inline"} <= {"<br>"}
    assert {part.type for part in inline} <= {"text", "html_inline", "code_inline", "softbreak", "hardbreak"}


def test_the_tables_of_the_summary_hold_no_model_text(workspace: Path) -> None:
    for number in range(1, 4):
        row("data/eval/m1.jsonl", number, response=ATTACKS["formula"])()
    assert CliRunner().invoke(summary.main).exit_code == 0
    for path in Path("data/summary").glob("*.csv"):
        with path.open(newline="", encoding="utf-8") as stream:
            cells = [cell for found in csv.reader(stream) for cell in found]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "@")) or "HYPERLINK" in cell]


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_error_that_quotes_bad_data_is_printable(attack: str, workspace: Path) -> None:
    text = ATTACKS[attack]
    for act in (row("data/seed/instructions.jsonl", 2, source=text), row("data/seed/instructions.jsonl", 2, id=[text])):
        act()
        result = CliRunner().invoke(prepare_data.main, color=True)
        assert result.exit_code == 1
        assert CONTROL.findall(result.stderr) == []
        assert len(result.stderr.splitlines()) == 1


def test_a_file_name_with_control_characters_is_escaped_in_an_error(workspace: Path) -> None:
    param("prepare_data.instructions", f"data/{COMMANDS}.jsonl".replace("\x85", "").replace("\u2028", ""))()
    result = CliRunner().invoke(prepare_data.main, color=True)
    assert result.exit_code == 1
    assert CONTROL.findall(result.stderr) == []
    assert r"\u001b[31m" in result.stderr


def test_an_error_says_no_more_of_a_value_than_200_characters(workspace: Path) -> None:
    row("data/seed/instructions.jsonl", 2, source="x" * 100_000)()
    assert len(CliRunner().invoke(prepare_data.main).stderr) < 500
    assert len(quoted({"a": ["x" * 1000] * 1000})) <= 200
    assert len(InputError("x" * 100_000).message) <= 3000


def test_what_is_printable_stays_as_it_is() -> None:
    text = "café, 日本語 עברית 👩\u200d🔬 <b>|</b> \\u001b"
    assert printable(text) == text
    assert printable(COMMANDS).isprintable()
    assert json.loads(f'"{printable(COMMANDS)}"') == COMMANDS


def test_ids_that_look_like_paths_stay_ids(workspace: Path) -> None:
    for number in range(1, 7):
        row("data/m1/scores.jsonl", number, id=f"../../{(number - 1) // 2}", response=f"/etc/passwd {number}")()
    before = set(contents(workspace))

    assert CliRunner().invoke(build_preferences.main, ["m1", "m0"]).exit_code == 0

    assert set(contents(workspace)) == before
    assert [path.name for path in workspace.parent.iterdir()] == ["workspace"]
    assert any(found.id == "../../0" for found in read_rows(Path("data/m1/ift.jsonl"), Instruction))


def test_text_that_looks_like_a_template_is_not_rendered(workspace: Path) -> None:
    row("data/eval/m0.jsonl", 1, response="{{ 7 * 191 }}", prompt="{% for x in y %}")()
    row("data/ppo/samples.jsonl", 1, response="{{ 7 * 191 }}")()
    assert CliRunner().invoke(summary.main).exit_code == 0
    assert "1337" not in Path("data/summary/report.md").read_text(encoding="utf-8")


def called_names(path: Path) -> set[str]:
    """Return the dotted names of what a module calls and imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    imports = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return calls | imports | modules


CODE_FILES = sorted(path for folder in ("align", "stages") for path in (REPOSITORY / folder).rglob("*.py"))
each_module = pytest.mark.parametrize(
    "path", CODE_FILES, ids=lambda path: path.relative_to(REPOSITORY).with_suffix("").as_posix()
)


@each_module
def test_no_module_unpickles_evaluates_or_trusts_code(path: Path) -> None:
    names = called_names(path)
    unpickling = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "torch.load", "np.load", "numpy.load"}
    assert not names & (unpickling | {"eval", "exec", "os.system", "yaml.load_all", "torch.hub.load"})
    assert not re.search(r"trust_remote_code\W+True", path.read_text(encoding="utf-8"))


@each_module
def test_every_load_of_a_model_is_one_of_the_safe_ones(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained"):
            settings = {ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg is None}
            settings |= {ast.unparse(keyword) for keyword in node.keywords if keyword.arg is not None}
            due = {"AutoTokenizer": "trust_remote_code=False", "LoraConfig": "", "AutoConfig": ""}
            safe = due.get(ast.unparse(node.func).split(".")[0], "**SAFELY").removeprefix("**") in {"", *settings}
            assert safe, f"{path.name}:{node.lineno}: may run code or unpickle"


@pytest.mark.parametrize(
    ("command", "folder"),
    [("base_model", "source"), ("generate_responses m1 m0", "models/base"), ("sft", "models/base")],
)
def test_a_pickle_in_place_of_weights_is_refused_and_does_not_run(command: str, folder: str, workspace: Path) -> None:
    pickled(folder, "model.safetensors", "pytorch_model.bin")()
    result = run(command)
    assert result.exit_code == 1
    assert "safetensors" in result.stderr
    assert not Path(LEFT).exists()


def test_the_payload_would_run_if_it_were_unpickled(workspace: Path) -> None:
    pickled("source", "model.safetensors", "pytorch_model.bin")()
    subprocess.run(
        [sys.executable, "-c", "import pickle; pickle.load(open('source/pytorch_model.bin', 'rb'))"], check=True
    )
    assert Path(LEFT).exists()


@pytest.mark.parametrize(("command", "folder"), [("base_model", "source"), ("judge m1 m0", "models/base")])
def test_code_that_a_model_brings_along_is_refused_and_does_not_run(command: str, folder: str, workspace: Path) -> None:
    with_code(folder)()
    assert Path(folder, "evil.py").read_text() == CODE
    result = run(command)
    assert result.exit_code == 1
    assert not Path(LEFT).exists()


@pytest.mark.parametrize(
    "address", ["http://me:hunter2@host/v1", "https://hunter2@host/v1", "http://host/v1?key=hunter2"]
)
def test_a_key_in_the_servers_address_is_refused_and_not_repeated(address: str, workspace: Path) -> None:
    param("generation.openai.base_url", address)()
    result = run("generate_responses m1 m0")
    assert result.exit_code == 1
    assert "OPENAI_API_KEY" in result.stderr
    assert "hunter2" not in result.stderr
