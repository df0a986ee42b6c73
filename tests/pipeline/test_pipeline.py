"""dvc.yaml, params.yaml and dvc.lock against the code."""

import ast
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from align.core.params import SECTIONS
from tests.conftest import REPOSITORY

PROMPTS = REPOSITORY / "prompts"


def load_yaml(name: str) -> dict[str, Any]:
    value: dict[str, Any] = YAML(typ="safe").load((REPOSITORY / name).read_text(encoding="utf-8"))
    return value


GRAPHS = {"": load_yaml("dvc.yaml")["stages"], "text/": load_yaml("text/dvc.yaml")["stages"]}
STAGES = {f"{folder}{name}": stage for folder, stages in GRAPHS.items() for name, stage in stages.items()}


def body(stage: str) -> dict[str, Any]:
    value: dict[str, Any] = STAGES[stage].get("do", STAGES[stage])
    return value


def module_of(stage: str) -> Path:
    match = re.match(r"(?:python|\$\{generation\.launch\}) -m stages\.(\w+)", body(stage)["cmd"])
    assert match, body(stage)["cmd"]
    return REPOSITORY / "stages" / f"{match[1]}.py"


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_modules(path: Path) -> set[Path]:
    found = set()
    for node in ast.walk(tree(path)):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            candidate = REPOSITORY / (name.replace(".", "/") + ".py")
            if name.startswith("stages.") and candidate.is_file():
                found.add(candidate)
    return found


def import_closure(path: Path) -> set[Path]:
    closure: set[Path] = set()
    todo = [path]
    while todo:
        module = todo.pop()
        if module not in closure:
            closure.add(module)
            todo += imported_modules(module)
    return closure


def code_and_templates(path: Path) -> set[str]:
    """Return the modules that a stage imports and the templates that they name, as dvc.yaml writes them."""
    modules = import_closure(path)
    literals = {
        node.value
        for module in modules
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    templates = {PROMPTS / text for text in literals if text.endswith(".jinja") and (PROMPTS / text).is_file()}
    if path.name == "base_model.py":  # this one takes its template's name from params.yaml
        templates |= {PROMPTS / f"{name}.jinja" for name in ("chatml", "mistral", "plain")}
    return {file.relative_to(REPOSITORY).as_posix() for file in modules | templates}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_code_deps_are_the_modules_it_imports_and_the_templates_it_renders(stage: str) -> None:
    declared = {dep for dep in body(stage)["deps"] if dep.startswith("stages/")}

    assert declared == code_and_templates(module_of(stage))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_declares_exactly_the_params_that_its_code_reads(stage: str) -> None:
    read = set()
    for node in ast.walk(tree(module_of(stage))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "section":
            assert isinstance(node.args[0], ast.Constant)
            read.add(node.args[0].value)
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "params.source":
            read.add("sources.${key}")
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("params.seed", "params.iterations"):
            read.add(node.attr)

    assert set(body(stage).get("params", [])) == read


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
    declared = {name.split(".")[0] for stage in STAGES for name in body(stage).get("params", [])}

    assert set(load_yaml("params.yaml")) == set(SECTIONS) == declared


def test_every_key_of_params_yaml_is_read_by_some_code() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "stages").rglob("*.py"))
    for section, keys in load_yaml("params.yaml").items():
        for key in keys if isinstance(keys, dict) and section != "iterations" else []:
            # Sections that go to a library whole (model_dump) declare the key; all others read it by name too.
            assert re.search(rf"\b{key}\b", code), f"{section}.{key} is read nowhere"


def test_no_stage_imports_a_stage_or_the_command_and_the_library_imports_neither() -> None:
    for path in (REPOSITORY / "stages").rglob("*.py"):
        for module in imported_modules(path):
            allowed = {"align": {"lib", "align"}, "commands": {"lib", "align"}}.get(path.parent.name, {"lib"})
            assert module.parent.name in allowed, f"{path.name} imports {module.name}"


PURE = {
    "errors",
    "files",
    "recorded",
    "params",
    "jsonl",
    "records",
    "labelled_texts",
    "templates",
    "transcripts",
    "trees",
    "instructions",
    "eft",
    "judging",
    "checkers",
    "gates",
    "growing",
    "judge_report",
    "loop_report",
    "preferences",
    "novelty",
    "metrics",
    "diff",
    "reward_report",
}
TENSORS = {"advantages", "losses"}


def test_the_pure_layer_imports_neither_torch_nor_transformers_nor_an_effectful_module() -> None:
    heavy = {"torch", "transformers", "peft", "trl", "datasets", "accelerate"}
    for name in PURE | TENSORS:
        path = REPOSITORY / "stages/lib" / f"{name}.py"
        roots = set()
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and node.module:
                roots.add(node.module.split(".")[0])
            elif isinstance(node, ast.Import):
                roots |= {alias.name.split(".")[0] for alias in node.names}
        assert not roots & (heavy - ({"torch"} if name in TENSORS else set())), name
        assert {module.stem for module in imported_modules(path)} <= PURE | (TENSORS if name in TENSORS else set()), (
            name
        )


def test_library_imports_have_no_cycle() -> None:
    done: set[Path] = set()

    def visit(path: Path, above: tuple[Path, ...]) -> None:
        assert path not in above, " -> ".join(p.stem for p in (*above, path))
        if path not in done:
            for module in imported_modules(path):
                visit(module, (*above, path))
            done.add(path)

    for path in (REPOSITORY / "stages").glob("*/*.py"):
        visit(path, ())


def test_the_lock_file_is_of_the_committed_code_data_and_params() -> None:
    lock = load_yaml("dvc.lock")["stages"]
    params = load_yaml("params.yaml")
    names = []
    for stage, spec in GRAPHS[""].items():
        items = spec.get("foreach", [None])
        items = params[items[2:-1]] if isinstance(items, str) else items  # ${iterations}, ${sources}
        names += [stage if item is None else f"{stage}@{item}" for item in items]
    assert sorted(lock) == sorted(names)
    for name, entry in lock.items():
        for section, value in entry.get("params", {}).get("params.yaml", {}).items():
            assert value == params[section], f"{name}: {section} has changed since the last `dvc repro`"
        for dep in entry["deps"]:
            path = REPOSITORY / dep["path"]
            if dep["path"].startswith(("stages/", "data/seed/")):
                found = hashlib.md5(path.read_bytes()).hexdigest()
                assert found == dep["md5"], f"{name}: {dep['path']} has changed since the last `dvc repro`"
        recorded = {dep["path"] for dep in entry["deps"] if dep["path"].startswith("stages/")}
        assert recorded == code_and_templates(module_of(name.split("@")[0])), name


def test_a_stage_that_computes_no_tensors_starts_without_torch() -> None:
    import_roots = {
        root
        for stage in ("prepare_data", "build_preferences", "summary")
        for module in import_closure(REPOSITORY / f"stages/{stage}.py")
        for node in ast.walk(tree(module))
        if isinstance(node, ast.ImportFrom) and node.module
        for root in [node.module.split(".")[0]]
    }

    assert not import_roots & {"torch", "transformers", "peft", "trl", "datasets"}


@pytest.mark.parametrize(("checklist", "at_least"), [("PPO.md", 41), ("JUDGE.md", 15)])
def test_each_test_that_a_checklist_names_exists(checklist: str, at_least: int) -> None:
    named = set(re.findall(r"`(test_\w+)`", (REPOSITORY / "docs" / checklist).read_text(encoding="utf-8")))
    existing = {
        node.name
        for path in (REPOSITORY / "tests").glob("test_*.py")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef)
    }
    assert len(named) >= at_least
    assert named <= existing
