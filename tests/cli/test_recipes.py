"""`align recipe` and the recipes themselves; tests/pipeline/test_recipe_runs.py runs their stages."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click import unstyle
from click.testing import CliRunner, Result

from align.cli.main import main
from align.cli.project.lock_file import flat
from align.cli.project.settings import settings_by_section, validate_params
from align.cli.recipes import recipes as module
from align.cli.recipes.recipes import Recipe, changes, stages_reading
from align.core.errors import InputError
from align.core.params import SECTIONS, Params
from tests.conftest import REPOSITORY

RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"), key=lambda path: path.stem)
NAMES = [path.stem for path in RECIPES]
every_recipe = pytest.mark.parametrize("path", RECIPES, ids=NAMES)


def git(*arguments: str) -> str:
    names = ("-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "advice.detachedHead=false")
    return subprocess.run(["git", *names, *arguments], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with the recipes, params.yaml and the graphs, as the working directory."""
    monkeypatch.chdir(tmp_path)
    for source in [*RECIPES, REPOSITORY / "dvc.yaml", *REPOSITORY.glob("*/dvc.yaml")]:
        target = Path(source.relative_to(REPOSITORY))
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(source.read_bytes())
    Path("params.yaml").write_bytes(Path("recipes/smollm2-cpu.yaml").read_bytes())
    git("init", "-q", "-b", "main")
    git("add", "-A")
    git("commit", "-qm", "start")
    return tmp_path


def recipe(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["recipe", *arguments])


def error_of(*arguments: str) -> str:
    result = recipe(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


def edit(name: str, old: str, new: str) -> None:
    text = Path(name).read_text(encoding="utf-8")
    assert old in text
    Path(name).write_text(text.replace(old, new), encoding="utf-8")


# The recipes.


@every_recipe
def test_a_recipe_is_a_whole_params_file_that_every_stage_takes(path: Path) -> None:
    params = Params.read(path)
    assert validate_params(params) == len(settings_by_section())
    assert set(params.values) == set(SECTIONS)


@every_recipe
def test_a_recipes_first_lines_tell_its_name_what_it_needs_and_what_runs_it(path: Path) -> None:
    one = Recipe.read(path)
    assert path.read_text(encoding="utf-8").startswith(f"# Recipe {one.name}: {one.summary}\n")
    assert one.summary
    assert one.hardware
    assert one.command.startswith("dvc repro")


@every_recipe
def test_a_recipe_has_its_keys_in_the_order_of_the_default(path: Path) -> None:
    default = Params.read(REPOSITORY / "recipes/smollm2-cpu.yaml").values
    values = Params.read(path).values
    for name, section in default.items():
        if isinstance(section, dict) and name not in ("iterations", "sources"):
            assert list(values[name]) == list(section)
    assert list(values) == list(default)


@every_recipe
def test_hub_data_of_a_recipe_is_pinned_and_all_of_it_is_used(path: Path) -> None:
    values = Params.read(path).values
    used = [value for value in flat(values).values() if str(value).startswith("data/sources/")]
    assert {f"data/sources/{name}.jsonl" for name in values.get("sources", {})} == set(used)
    for source in values.get("sources", {}).values():
        assert re.fullmatch("[0-9a-f]{40}", source["revision"])


def test_a_committed_params_file_that_says_it_is_a_recipe_is_that_recipe() -> None:
    """An edit that is not committed is nobody's business; one that is gets another first line, or another recipe."""
    committed = subprocess.run(["git", "show", "HEAD:./params.yaml"], cwd=REPOSITORY, capture_output=True, check=False)
    match = re.match(rb"# Recipe ([\w.-]+):", committed.stdout)
    if match and match[1].decode() in NAMES:
        one = REPOSITORY / f"recipes/{match[1].decode()}.yaml"
        kept = subprocess.run(
            ["git", "show", f"HEAD:./recipes/{one.name}"], cwd=REPOSITORY, capture_output=True, check=True
        )
        assert committed.stdout == kept.stdout, f"make params.yaml and {one.name} equal, or change its first line"


def test_the_variant_in_four_bits_differs_in_nothing_else() -> None:
    values = [Params.read(REPOSITORY / f"recipes/mistral-7b-rlhf{suffix}.yaml").values for suffix in ("", "-nf4")]
    assert {change.name for change in changes(*values)} == {"runtime.quantization", "runtime.optim"}


# Comparing.


def test_changes_go_by_section_in_the_order_of_the_file_and_name_nested_keys() -> None:
    old = {"seed": 1, "b": {"x": 1, "gone": [1]}, "a": {"y": True, "n": {"deep": 1}}, "same": {"f": 2}}
    new = {"seed": 1, "b": {"x": 2, "come": None}, "a": {"y": 1, "n": {"deep": 0.5}}, "same": {"f": 2.0}}
    told = [f"{change.name}: {change.old} -> {change.new}" for change in changes(old, new)]
    assert told == [
        "b.x: 1 -> 2",
        "b.come: (none) -> null",
        "b.gone: [1] -> (none)",
        "a.y: true -> 1",
        "a.n.deep: 1 -> 0.5",
    ]


def test_an_empty_section_and_one_with_entries_differ_by_the_entries() -> None:
    assert [change.name for change in changes({"s": {}}, {"s": {"a": {"k": 1}}})] == ["s.a.k"]
    assert [change.name for change in changes({"s": {"a": {"k": 1}}}, {"s": {}})] == ["s.a.k"]
    assert changes({"s": {}}, {"s": {}}) == []


def test_a_recipe_compared_with_itself_differs_in_nothing(workspace: Path) -> None:
    for name in NAMES:
        result = recipe("diff", name, name, "--exit-code")
        assert (result.exit_code, result.output) == (0, "no setting differs\n")


def test_diff_tells_what_use_would_change(workspace: Path) -> None:
    edit("params.yaml", "kl_coef: 0.05", "kl_coef: 0.07")
    result = recipe("diff", "smollm2-cpu", "--exit-code")
    assert (result.exit_code, result.output) == (1, "ppo.kl_coef: 0.07 -> 0.05\n")
    assert recipe("diff", "smollm2-cpu").exit_code == 0
    both = recipe("diff", "smollm2-cpu", "mistral-7b-rlhf").output.splitlines()
    assert 'runtime.dtype: "float32" -> "bfloat16"' in both


def test_an_error_of_diff_is_not_taken_for_a_difference(workspace: Path) -> None:
    result = recipe("diff", "smollm-cpu", "--exit-code")
    assert result.exit_code == 2
    assert result.stderr == "Error: no recipe is named 'smollm-cpu'; did you mean smollm2-cpu?\n"


def test_in_a_terminal_changes_are_a_table_with_every_value_whole(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("align.cli.recipes.command.in_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    output = unstyle(recipe("diff", "smollm2-cpu", "mistral-7b-self-rewarding").output)
    assert max(map(len, output.splitlines())) <= 60
    assert "…" not in output
    assert "runtime.dtype" in output


def test_what_a_terminal_would_obey_is_written_out(workspace: Path) -> None:
    edit("recipes/smollm2-cpu.yaml", "# Recipe smollm2-cpu: ", "# Recipe smollm2-cpu: \x1b[31m")
    edit("recipes/smollm2-long.yaml", "launch: python", 'launch: "\\x1b[2J python"')
    for output in (recipe("list").output, recipe("diff", "smollm2-long").output):
        assert "\x1b" not in output
        assert "\\u001b" in output


# Taking one.


def test_use_writes_the_recipe_to_the_byte_and_tells_changes_stages_and_the_next_command(workspace: Path) -> None:
    result = recipe("use", "smollm2-long")
    assert result.exit_code == 0, result.output
    assert Path("params.yaml").read_bytes() == Path("recipes/smollm2-long.yaml").read_bytes()
    lines = result.output.splitlines()
    assert 'iterations.m3: (none) -> "m2"' in lines
    (stages,) = (line for line in lines if line.startswith("stages with other params"))
    assert {"sft", "generate_prompts", "dpo", "ppo", "summary"} <= set(re.findall(r"[\w/.:]+", stages))
    assert "base_model" not in stages
    assert lines[-1] == "params.yaml is smollm2-long now; next: dvc repro"


@every_recipe
def test_each_recipe_can_be_taken_and_the_default_again(path: Path, workspace: Path) -> None:
    result = recipe("use", path.stem)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1].endswith(f"next: {Recipe.read(path).command}")
    assert recipe("list").output.count("* ") == 1
    assert f"* {path.stem}: " in recipe("list").output
    # Not committed, and yet nothing that use writes is lost.
    assert recipe("use", "smollm2-cpu").exit_code == 0
    assert git("status", "--porcelain") == ""


def test_a_dry_run_writes_nothing_and_tells_the_same(workspace: Path) -> None:
    before = Path("params.yaml").read_bytes()
    dry = recipe("use", "smollm2-long", "--dry-run").output.splitlines()
    assert Path("params.yaml").read_bytes() == before
    assert dry[:-1] == recipe("use", "smollm2-long").output.splitlines()[:-1]
    assert dry[-1] == "params.yaml is as it was (--dry-run)"


def test_uncommitted_edits_are_not_overwritten_unless_by_force(workspace: Path) -> None:
    edit("params.yaml", "kl_coef: 0.05", "kl_coef: 0.07  # mine")
    before = Path("params.yaml").read_bytes()
    message = "it has uncommitted edits; see `git diff params.yaml`, then commit them"
    assert error_of("use", "smollm2-long") == f"Error: params.yaml: {message}, or add --force\n"
    assert recipe("use", "smollm2-long", "--dry-run").output.endswith(f"without --force: {message}\n")
    assert Path("params.yaml").read_bytes() == before
    git("add", "params.yaml")
    assert "uncommitted edits" in error_of("use", "smollm2-long")
    git("commit", "-qm", "mine")
    assert recipe("use", "smollm2-long").exit_code == 0
    edit("params.yaml", "kl_coef: 0.1", "kl_coef: 0.2")
    assert recipe("use", "smollm2-cpu", "--force").exit_code == 0
    assert "kl_coef: 0.05" in Path("params.yaml").read_text(encoding="utf-8")


def test_without_git_edits_need_force(workspace: Path) -> None:
    edit("params.yaml", "kl_coef: 0.05", "kl_coef: 0.07")
    os.rename(".git", "was_git")
    assert "git does not keep the one that is here" in error_of("use", "smollm2-long")
    assert recipe("use", "smollm2-long", "--force").exit_code == 0


def test_on_a_detached_head_edits_may_be_an_experiments_and_a_clean_tree_gets_a_word(workspace: Path) -> None:
    git("checkout", "-q", "--detach")
    edit("params.yaml", "kl_coef: 0.05", "kl_coef: 0.07")
    assert "HEAD is detached: see `align doctor` first" in error_of("use", "smollm2-long")
    git("checkout", "-q", "params.yaml")
    result = recipe("use", "smollm2-long")
    assert result.exit_code == 0
    assert result.stderr == "HEAD is detached: a commit made here is on no branch (`align doctor`)\n"


def test_params_are_not_changed_under_a_running_dvc(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "running_dvc", lambda: {7: "dvc repro"})
    assert "DVC is running (PID 7: dvc repro)" in error_of("use", "smollm2-long")


@pytest.mark.parametrize("text", ["a: [", "seed: 1\n", ""])
def test_a_broken_params_file_can_be_replaced_once_it_is_committed_or_by_force(workspace: Path, text: str) -> None:
    Path("params.yaml").write_text(text, encoding="utf-8")
    assert "uncommitted edits" in error_of("use", "smollm2-cpu")
    result = recipe("use", "smollm2-cpu", "--force")
    assert result.exit_code == 0
    assert result.stderr.startswith("what changes cannot be told: params.yaml: ")
    assert git("status", "--porcelain") == ""


def test_a_missing_params_file_is_written(workspace: Path) -> None:
    Path("params.yaml").unlink()
    assert recipe("use", "smollm2-cpu").exit_code == 0
    assert git("status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "kl_coef: 0.05",
            "kl_coef: -1",
            "smollm2-long.yaml: ppo.kl_coef: should be greater than or equal to 0",
        ),
        (
            "kl_coef: ",
            "kl_coeff: ",
            'smollm2-long.yaml: ppo.kl_coeff: unknown key; did you mean "ppo.kl_coef"?',
        ),
        ("seed: 17", "seed: x", "recipes/smollm2-long.yaml: seed: expected an integer"),
        ("iterations:", "iterations: [", "recipes/smollm2-long.yaml: not valid YAML"),
    ],
)
def test_a_recipe_with_a_mistake_is_not_taken(workspace: Path, old: str, new: str, says: str) -> None:
    before = Path("params.yaml").read_bytes()
    Path("recipes/smollm2-long.yaml").write_bytes(before)
    edit("recipes/smollm2-long.yaml", old, new)
    assert says in error_of("use", "smollm2-long")
    assert Path("params.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mistral", "did you mean mistral-7b-rlhf or mistral-7b-rlhf-nf4 or mistral-7b-self-rewarding?"),
        ("smollm2_cpu", "did you mean smollm2-cpu?"),
        ("zzz", f"there are: {', '.join(NAMES)}"),
        ("../params", "no recipe is named '../params'"),
        ("", "no recipe is named ''"),
    ],
)
def test_an_unknown_recipe_gets_those_of_a_close_name(workspace: Path, name: str, says: str) -> None:
    assert says in error_of("use", name)


def test_elsewhere_the_message_tells_where_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert error_of("list") == "Error: recipes: holds no recipe (NAME.yaml); run from the repository's root\n"


def test_a_write_that_fails_leaves_params_as_they_were(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Path("params.yaml").read_bytes()

    @contextmanager
    def no_room(path: Path) -> Iterator[Path]:
        yield path.parent / "no/such/folder"

    monkeypatch.setattr(module, "replacing", no_room)
    result = recipe("use", "smollm2-long")
    assert result.exit_code == 1
    assert result.stderr == "Error: params.yaml: cannot write (No such file or directory)\n"
    assert Path("params.yaml").read_bytes() == before


# Who reads what.


def test_stages_are_found_by_section_in_every_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    Path("dvc.yaml").write_text(
        "stages: {a: {params: [seed, x.key]}, b: {foreach: [1], do: {params: [y]}}, c: {cmd: true}}", encoding="utf-8"
    )
    Path("sub/dvc.yaml").write_text("stages: {a: {params: [{../params.yaml: [y, z]}]}}", encoding="utf-8")
    assert stages_reading(["x"]) == ["a"]
    assert stages_reading(["y"]) == ["b", "sub/dvc.yaml:a"]
    assert stages_reading(["w"]) == []
    Path("dvc.yaml").write_text("stages: [", encoding="utf-8")
    with pytest.raises(InputError, match=r"^dvc\.yaml: not as DVC takes it "):
        stages_reading(["x"])


def test_every_section_has_the_settings_of_a_stage() -> None:
    assert set(settings_by_section()) == set(SECTIONS) - {"seed", "iterations"}


def test_list_and_diff_start_without_torch() -> None:
    code = "import sys, align.cli.recipes.command; assert not {'torch', 'dvc.repo', 'trl'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
