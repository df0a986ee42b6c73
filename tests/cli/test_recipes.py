"""`align recipe` and the recipes themselves; tests/pipeline/test_recipe_runs.py runs their stages."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from align.cli.main import main
from align.cli.project.lock_file import flat
from align.cli.project.settings import settings_by_section, validate_params
from align.cli.recipes import recipes as module
from align.cli.recipes.recipes import Recipe, defaults, merged, render
from align.cli.recipes.recipes import recipe as find
from align.core.errors import InputError
from align.core.params import SECTIONS, Params, parse
from tests.committed import REPOSITORY

NAMES = sorted(path.stem for path in (REPOSITORY / "recipes").glob("*.yaml"))
every_recipe = pytest.mark.parametrize("name", NAMES)


def git(*arguments: str) -> str:
    names = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    return subprocess.run(["git", *names, *arguments], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="session")
def committed() -> str:
    """The default params of the repository, whatever the working tree has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        return defaults()


@pytest.fixture
def workspace(committed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with the recipes and the default params, as the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(REPOSITORY / "recipes", "recipes")
    Path("params.yaml").write_text(committed, encoding="utf-8")
    git("init", "-q", "-b", "main")
    git("add", "-A")
    git("commit", "-qm", "start")
    return Path("params.yaml")


def recipe(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["recipe", *arguments])


def use(*arguments: str) -> str:
    result = recipe("use", *arguments)
    assert result.exit_code == 0, result.output
    return result.output


def error_of(*arguments: str) -> str:
    result = recipe(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


def overlay(text: str, name: str = "mine") -> None:
    Path(f"recipes/{name}.yaml").write_text(text, encoding="utf-8")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


# The recipes.


@every_recipe
def test_a_recipe_is_taken_by_every_stage_and_has_a_header(name: str, workspace: Path) -> None:
    params = Params(merged(name))
    assert validate_params(params) == len(settings_by_section())
    assert list(params.values) == list(SECTIONS)
    one = find(name)
    assert one.summary
    assert re.search(r"minutes|hour", one.hardware)
    assert one.command.startswith("dvc repro")


@every_recipe
def test_each_key_of_a_recipe_differs_from_what_it_is_merged_over(name: str, workspace: Path) -> None:
    below = merged(find(name).extends or "smollm2-cpu")
    for key, value in flat(parse(Path(f"recipes/{name}.yaml").read_bytes(), Path(name))).items():
        if key.partition(".")[0] not in module.WHOLE:
            assert flat(below)[key] != value, key


@every_recipe
def test_hub_data_of_a_recipe_is_pinned_and_all_of_it_is_used(name: str, workspace: Path) -> None:
    values = merged(name)
    used = {value for value in flat(values).values() if str(value).startswith("data/sources/")}
    assert {f"data/sources/{source}.jsonl" for source in values["sources"]} == used
    for source in values["sources"].values():
        assert re.fullmatch("[0-9a-f]{40}", source["revision"])


def test_every_section_has_the_settings_of_a_stage() -> None:
    assert set(settings_by_section()) == set(SECTIONS) - {"seed", "iterations"}


# Merging.


def test_what_a_recipe_does_not_name_stays_to_the_byte_and_comments_in_their_columns(
    committed: str, workspace: Path
) -> None:
    overlay("# Mine\n# Run: dvc repro ppo\nppo:\n  kl_coef: 0.07  # why\nruntime: {dtype: bfloat16}\n")
    changed = committed.replace("kl_coef: 0.05", "kl_coef: 0.07").replace("dtype: float32 ", "dtype: bfloat16")
    note, run, text = render(find("mine")).split("\n", 2)
    assert text == changed
    assert note.startswith("# Recipe: mine; ")
    assert run == "# Run: dvc repro ppo"
    assert Recipe.read(Path("recipes/mine.yaml")) == find("mine")


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("ppo: {target_kl: 0.1, value_layers: null}", "ppo.target_kl", 0.1),
        ("ppo: {value_layers: null}", "ppo.value_layers", None),
        ("lora:\n  target_modules: [q_proj]\n", "lora.target_modules", ["q_proj"]),
        ("lora:\n  target_modules:\n    - q_proj\n    - v_proj\n", "lora.target_modules", ["q_proj", "v_proj"]),
        ("generation:\n    openai: {model: x}", "generation.openai.model", "x"),
        ("generation: {openai: {model: x}}", "generation.openai.dialect", "vllm"),
        ("iterations: {a: m0}", "iterations", {"a": "m0"}),
        ("iterations:\n  a: m0\n  # b\n  b: a\n", "iterations", {"a": "m0", "b": "a"}),
        ("sources:\n  s: {dataset: d}\n", "sources", {"s": {"dataset": "d"}}),
        ('text:\n  template: "é: {text} # {label_text}"', "text.template", "é: {text} # {label_text}"),
    ],
)
def test_maps_are_merged_while_lists_iterations_and_sources_are_replaced(
    text: str, key: str, expected: Any, committed: str, workspace: Path
) -> None:
    overlay(text)
    values: Any = merged("mine")
    names = key.split(".")
    untouched = parse(committed.encode(), workspace)
    assert {name for name in values if values[name] != untouched[name]} == {names[0]}
    for name in names:
        values = values[name]
    assert values == expected
    comments = [line for line in committed.splitlines() if line.lstrip().startswith("#")]
    assert set(comments) <= set(render(find("mine")).splitlines())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ppo: {kl_coeff: 1}", "recipes/mine.yaml: ppo.kl_coeff: unknown key; known keys: init, "),
        ("generation: {openai: {url: 1}}", "generation.openai.url: unknown key; known keys: base_url, "),
        ("pppo: {kl_coef: 1}", "recipes/mine.yaml: pppo: unknown key; known keys: seed, "),
        ("[a]: 1", "unknown key"),
        ("ppo: {kl_coef: -1}", "recipes/mine.yaml: ppo.kl_coef: should be greater than or equal to 0"),
        ("ppo:\n  # kl_coef: 1\n", "recipes/mine.yaml: ppo: expected keys such as init, "),
        ("ppo: {init: m0, init: m1}", "recipes/mine.yaml: not valid YAML: line 1: "),
        ("ppo: [", "recipes/mine.yaml: not valid YAML: line "),
        ("# nothing\n", "recipes/mine.yaml: expected sections such as"),
        ("iterations: {m2: m1}", "recipes/mine.yaml: iterations.m2: its parent 'm1' is not one of m0"),
        ("judge: {mode: checker, checker: 'stages.lib.checkers:f'}", "judge.checker: should be align.judge.checkers:f"),
        ("# Mine\n# Extends: mine\nseed: 1", "recipes/mine.yaml: `# Extends: mine` closes a circle"),
        ("# Mine\n# Extends: none\nseed: 1", "no recipe is named 'none'; there are: gpt-"),
    ],
)
def test_a_recipe_with_a_mistake_changes_nothing(text: str, says: str, committed: str, workspace: Path) -> None:
    overlay(text)
    assert says in error_of("use", "mine")
    assert workspace.read_text(encoding="utf-8") == committed


def test_a_recipe_can_extend_another(workspace: Path) -> None:
    overlay("# Mine\n# Extends: mistral-7b-rlhf-nf4\nseed: 1\n")
    below, values = flat(merged("mistral-7b-rlhf")), flat(merged("mine"))
    assert {key for key in values if values[key] != below[key]} == {"runtime.quantization", "runtime.optim", "seed"}


# Using one.


def test_use_names_the_next_command(workspace: Path) -> None:
    first, following = use("smollm2-long").splitlines()
    assert first == "params.yaml has recipe smollm2-long now; `git diff params.yaml` shows the changes"
    assert following == "next: dvc repro"


@pytest.mark.parametrize("name", ["mistral-7b-rlhf-nf4", "gpt-tweet-sentiment"])
def test_after_a_recipe_another_leaves_nothing_of_it(name: str, committed: str, workspace: Path) -> None:
    use(name)
    # Not committed, and yet the recipe's file has all of it.
    use("smollm2-long")
    assert workspace.read_text(encoding="utf-8") == render(find("smollm2-long"))
    git("commit", "-aqm", "a recipe, committed")
    use(name)
    assert Params.read().values == merged(name)
    use("smollm2-cpu")
    assert workspace.read_text(encoding="utf-8") == committed


def test_uncommitted_edits_are_kept_unless_by_force(committed: str, workspace: Path) -> None:
    for start in ("smollm2-cpu", "smollm2-long"):
        use(start, "--force")
        edit(workspace, "seed: 17", "seed: 18  # mine")
        message = "it has uncommitted edits; commit them (`git diff params.yaml` shows them), or add --force"
        assert error_of("use", "mistral-7b-rlhf") == f"Error: params.yaml: {message}\n"
        assert "seed: 18  # mine" in workspace.read_text(encoding="utf-8")
    workspace.write_bytes(b"\xff")
    assert "uncommitted edits" in error_of("use", "smollm2-long")
    use("smollm2-cpu", "--force")
    assert workspace.read_text(encoding="utf-8") == committed
    workspace.unlink()
    use("smollm2-cpu")
    assert git("status", "--porcelain") == ""


def test_committed_edits_are_the_new_defaults(workspace: Path) -> None:
    edit(workspace, "seed: 17", "seed: 18")
    git("commit", "-aqm", "mine")
    use("smollm2-long")
    assert Params.read().seed == 18
    edit(workspace, "# Recipe: ", "# My own defaults, from ")
    git("commit", "-aqm", "the recipe as the defaults")
    assert merged("smollm2-cpu")["ppo"]["num_updates"] == 16


def test_without_a_committed_file_there_is_nothing_to_merge_over(workspace: Path) -> None:
    shutil.rmtree(".git")
    assert "git has none; commit it first" in error_of("use", "smollm2-long", "--force")


def test_a_running_dvc_is_in_the_way(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "running", lambda _: {7: "dvc repro"})
    assert "DVC is running (PID 7)" in error_of("use", "smollm2-long")
    use("smollm2-long", "--force")


def test_the_list_has_the_summary_and_the_hardware(workspace: Path) -> None:
    overlay("# \x1b[31mMine\n# Hardware: a cluster\n{}\n")
    lines = recipe("list").output.splitlines()
    assert "smollm2-long: The default run with larger numbers and three iterations" in lines
    assert lines[lines.index("    a cluster") - 1] == "mine: \\u001b[31mMine"
    for name in ("zzz", "../params", ""):
        assert f"no recipe is named {name!r}; there are: gpt-tweet-sentiment, mine, " in error_of("use", name)


def test_elsewhere_the_message_says_where_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert error_of("list") == "Error: recipes: holds no recipe (NAME.yaml); run from the repository's root\n"
    with pytest.raises(InputError, match="holds no recipe"):
        merged("smollm2-cpu")
