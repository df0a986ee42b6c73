"""dvc.yaml and text/dvc.yaml against the code."""

import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from align.cli.project.graph import stages_of
from align.core.params import SECTIONS
from tests.committed import REPOSITORY, committed_params
from tests.dvc_project import Project, finished_project, project

__all__ = ["finished_project", "project"]  # fixtures
PROMPTS = REPOSITORY / "prompts"
CODE = ("align/", "stages/", "prompts/")
# They set log levels and when garbage is collected, which changes no output.
START_UP = {REPOSITORY / "align/__init__.py", REPOSITORY / "stages/__init__.py"}


def load_yaml(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    return value


GRAPHS = {folder: load_yaml(REPOSITORY / folder / "dvc.yaml")["stages"] for folder in ("", "text/")}
STAGES = {
    f"{folder}{name}": stage.get("do", stage) for folder, stages in GRAPHS.items() for name, stage in stages.items()
}


def code_deps(stage: str) -> list[str]:
    """Return the files and folders of code that a stage declares."""
    return [dep for dep in STAGES[stage]["deps"] if dep.startswith(CODE)]


def module_of(stage: str) -> Path:
    match = re.match(r"(?:python|\$\{generation\.launch\}) -m (stages\.[\w.]+)", STAGES[stage]["cmd"])
    assert match, STAGES[stage]["cmd"]
    return REPOSITORY / f"{match[1].replace('.', '/')}.py"


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_names(path: Path) -> list[str]:
    """Return the dotted names that a module imports, at its top and inside functions."""
    names = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return names


@cache
def imported_modules(path: Path) -> frozenset[Path]:
    """Return the modules of this project that a module imports; packages only if their __init__.py has code."""
    bases = [
        REPOSITORY / name.replace(".", "/") for name in imported_names(path) if name.startswith(("align", "stages"))
    ]
    packages = {base / "__init__.py" for base in bases if (base / "__init__.py").is_file()} - START_UP
    return frozenset(
        {base.with_suffix(".py") for base in bases if base.with_suffix(".py").is_file()}
        | {path for path in packages if len(tree(path).body) > (ast.get_docstring(tree(path)) is not None)}
    )


@cache
def import_closure(path: Path) -> frozenset[Path]:
    closure: set[Path] = set()
    todo = [path]
    while todo:
        module = todo.pop()
        if module not in closure:
            closure.add(module)
            todo += imported_modules(module)
    return frozenset(closure)


def code_of(stage: str) -> set[str]:
    """Return the modules that a stage imports and the templates that they name."""
    modules = import_closure(module_of(stage))
    literals = {
        node.value
        for module in modules
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    templates = {PROMPTS / text for text in literals if text.endswith(".jinja") and (PROMPTS / text).is_file()}
    if stage == "base_model":  # it takes its template's name from params.yaml
        templates |= set((PROMPTS / "chat").iterdir())
    if REPOSITORY / "align/judge/asking.py" in modules:  # it imports the checker that section `judge` may name
        modules |= {REPOSITORY / "align/judge/checkers.py"}
    return {file.relative_to(REPOSITORY).as_posix() for file in modules | templates}


def lies_in(file: str, dep: str) -> bool:
    return file == dep or file.startswith(f"{dep}/")


@pytest.mark.parametrize("stage", STAGES)
def test_code_deps_cover_what_a_stage_imports_and_renders_and_each_of_them_is_needed(stage: str) -> None:
    code, deps = code_of(stage), code_deps(stage)

    assert [file for file in sorted(code) if not any(lies_in(file, dep) for dep in deps)] == []
    assert [dep for dep in deps if not any(lies_in(file, dep) for file in code)] == []
    assert [dep for dep in deps if not (REPOSITORY / dep).exists()] == []


def stages_that_declare(file: str) -> set[str]:
    return {stage for stage in STAGES if any(lies_in(file, dep) for dep in code_deps(stage))}


def test_an_edit_of_ppo_reruns_no_stage_but_ppo() -> None:
    for path in (REPOSITORY / "align/ppo").glob("[!_]*.py"):
        assert stages_that_declare(path.relative_to(REPOSITORY).as_posix()) == {"ppo"}


def test_dpo_on_human_pairs_reaches_its_evaluation_and_the_summary_alone() -> None:
    for name in ("evaluate@dpo", "summary"):
        assert "offline_dpo" in stages_of([name], committed_params(), REPOSITORY)
    others = ["ppo", "evaluate@base", "evaluate@ppo", "evaluate_iteration", "diff"]
    assert "offline_dpo" not in stages_of(others, committed_params(), REPOSITORY)


def test_another_file_of_preferences_reruns_dpo_on_human_preferences_alone() -> None:
    readers = {
        stage
        for stage, spec in STAGES.items()
        if "${offline_dpo.data}" in spec["deps"] or "offline_dpo" in spec.get("params", [])
    }
    assert readers == {"offline_dpo", "summary"}  # the second shows the params
    own = committed_params({"offline_dpo": {"data": "data/seed/own.jsonl"}})
    assert "offline_dpo" in stages_of(["evaluate@dpo"], own, REPOSITORY)


def test_the_loop_may_start_from_dpo_on_human_pairs_and_the_other_way_round() -> None:
    from_dpo = committed_params({"iterations": {"m1": "dpo"}})
    assert "offline_dpo" in stages_of(["generate_prompts@m1"], from_dpo, REPOSITORY)
    from_m1 = committed_params({"iterations": {"m1": "m0"}, "offline_dpo": {"init": "m1"}})
    assert "dpo@m1" in stages_of(["offline_dpo"], from_m1, REPOSITORY)


def test_an_edit_of_the_judges_prompt_or_training_reruns_neither_the_reward_model_nor_ppo() -> None:
    assert stages_that_declare("prompts/judge.jinja") == {"sft", "judge", "evaluate", "evaluate_iteration", "summary"}
    assert stages_that_declare("align/judge/trainer.py") == {"sft"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_declares_exactly_the_params_that_its_code_reads(stage: str) -> None:
    read = set()
    for node in ast.walk(tree(module_of(stage))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.endswith("section"):
            assert isinstance(node.args[0], ast.Constant)
            read.add(node.args[0].value)
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "params.source":
            read.add("sources.${key}")
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Stage":
            read |= {"runtime", "seed"}
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("params.seed", "params.iterations"):
            read.add(node.attr)
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "params.values":  # the report shows them
            read |= set(SECTIONS) - {"text"}

    assert set(STAGES[stage].get("params", [])) == read


def test_the_stages_of_the_text_track_work_in_the_root_where_params_yaml_is() -> None:
    assert {stage["wdir"] for stage in GRAPHS["text/"].values()} == {".."}


def test_no_out_of_the_text_track_is_cached_so_that_the_pipeline_is_whole_without_it() -> None:
    outs = [
        out
        for stage in GRAPHS["text/"].values()
        for kind in ("outs", "metrics", "plots")
        for out in stage.get(kind, [])
    ]
    assert len(outs) == 7
    assert all(settings["cache"] is False for out in outs for settings in out.values())


def test_every_section_of_params_yaml_is_known_and_is_declared_by_a_stage() -> None:
    declared = {name.split(".")[0] for stage in STAGES.values() for name in stage.get("params", [])}

    assert set(committed_params()) == set(SECTIONS) == declared


def test_every_key_of_params_yaml_is_read_by_some_code() -> None:
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("align", "stages")
        for path in (REPOSITORY / folder).rglob("*.py")
    )
    for section, keys in committed_params().items():
        for key in keys if isinstance(keys, dict) and section != "iterations" else []:
            # Sections that go to a library whole (model_dump) declare the key; all others read it by name too.
            assert re.search(rf"\b{key}\b", code), f"{section}.{key} is read nowhere"


def test_dvc_yaml_is_short() -> None:
    assert len((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8").splitlines()) <= 300


def test_the_lock_file_is_of_the_committed_code_data_and_params(head: Path) -> None:
    lock = load_yaml(head / "dvc.lock")["stages"]
    params = load_yaml(head / "params.yaml")
    names = []
    for stage, spec in load_yaml(head / "dvc.yaml")["stages"].items():
        items = spec.get("foreach", [None])
        items = params[items[2:-1]] if isinstance(items, str) else items  # ${iterations}, ${sources}
        names += [stage if item is None else f"{stage}@{item}" for item in items]
    assert sorted(lock) == sorted(names)

    status = json.loads(Project(head).run("git init -q && dvc status --json dvc.yaml").stdout)
    changed: dict[str, dict[str, Any]] = {stage: {} for stage in status}
    for stage, changes in status.items():
        for change in changes:  # "changed command", or {"changed deps": {path: state}}
            found = {"": change} if isinstance(change, str) else change.get("changed deps", {})
            # The data between the stages are not in git.
            changed[stage] |= {path: state for path, state in found.items() if state != "deleted"}
    assert {stage: found for stage, found in changed.items() if found} == {}, "run `dvc repro`, commit dvc.lock"


def test_notes_notebooks_and_byte_code_are_in_no_folder_hash(project: Project) -> None:
    for name in (".dvcignore", "align/core/files.py"):
        project.write(name, (REPOSITORY / name).read_text(encoding="utf-8"))
    project.replace("dvc.yaml", "stages/base_model.py]", "stages/base_model.py, align/core]")
    project.run("dvc repro -q base_model")
    for name in ("README.md", "trials.ipynb", "__pycache__/files.cpython-311.pyc", "deep/notes.md"):
        project.write(f"align/core/{name}", "new\n")

    assert project.run("dvc status base_model").stdout == "Data and pipelines are up to date.\n"
    project.write("align/core/new.py", "x = 1\n")
    assert "align/core" in project.run("dvc status base_model").stdout


def test_stages_that_compute_no_tensors_start_without_torch() -> None:
    stages = ("prepare_data", "build_preferences", "diff", "summary", "text.data")
    heavy = "{'torch', 'transformers', 'peft', 'trl', 'datasets', 'accelerate'}"
    code = f"import sys, {', '.join(f'stages.{stage}' for stage in stages)}; print(*{heavy} & sys.modules.keys())"

    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)

    assert result.stdout.split() == []


@pytest.mark.parametrize(("page", "at_least"), [("PPO.md", 50), ("LOOP.md", 15), ("RLHF.md", 12)])
def test_each_test_that_a_checklist_names_exists(page: str, at_least: int) -> None:
    named = set(re.findall(r"`(test_\w+)`", (REPOSITORY / "docs" / page).read_text(encoding="utf-8")))
    existing = {
        node.name
        for path in (REPOSITORY / "tests").rglob("test_*.py")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef)
    }
    assert len(named) >= at_least
    assert named <= existing
