"""`align show` of lineages: it reports what the files, git and DVC contain."""

import json
import re
import subprocess
from typing import Any

import pytest
from ruamel.yaml import YAML

from align.cli.project.cards import source_hash
from align.core.files import sha256
from align.models.card import weights_hash
from tests.committed import REPOSITORY
from tests.dvc_project import Project, align, error_of, finished_project, project

__all__ = ["finished_project", "project"]

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
ATTACK = "\x1b[31m \x1b]0;title\x07 \x9b2J \x7f\x08\r"
OLD_CARD = {"stage": "dpo", "parents": {}, "data": {}, "params": {}, "seed": 17, "versions": {"torch": "2"}}


def show(*arguments: str) -> str:
    result = align("show", *arguments)
    assert result.exit_code == 0, result.output
    return result.output


def show_json(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(show(name, "--json"))
    return value


def line_of(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.strip().startswith(start))


def write_card(project: Project, model: str = "m1", **changes: Any) -> None:
    base = project.path / "models/base"
    pairs = project.path / "data/m1/pairs.jsonl"
    card = {
        "stage": "dpo",
        "parents": {"base": {"path": "models/base", "sha256": weights_hash(base)}},
        "data": {"preferences": {"path": "data/m1/pairs.jsonl", "sha256": sha256(pairs)}},
        "params": {"seed": 17},
        "environment": {"python": "3.11.0", "device": "cpu (AVX2)"},
    }
    project.write(f"models/{model}/model_card.json", json.dumps(card | changes))


def test_the_tree_goes_back_to_the_seed_files_and_shows_each_stage_once(project: Project) -> None:
    lines = show("m1").splitlines()
    tree = [
        line.split("<-")[-1].split("(")[0].strip() for line in lines[lines.index("  made from") + 1 :] if "<-" in line
    ]
    above = [line.split()[0] for line in lines if line.endswith("(above)")]

    assert tree == ["pairs", "base_model", "base_model"]
    assert above == ["models/base"]
    assert [line.split()[0] for line in lines if line.endswith("made by no stage")] == [
        "data/seed/more.txt",
        "data/seed/text.txt",
    ]


def test_the_target_has_its_command_params_and_the_hashes_of_its_run(project: Project) -> None:
    lock = YAML(typ="safe").load(project.read("dvc.lock"))["stages"]
    value = show_json("data/m1/pairs.jsonl")
    run = value["runs"]["pairs"]

    assert run["command"] == lock["pairs"]["cmd"]
    assert value["target"]["hash"] == lock["pairs"]["outs"][0]["md5"]
    assert {node["path"]: node["hash"] for node in run["inputs"]} == {
        dep["path"]: dep["md5"] for dep in lock["pairs"]["deps"]
    }
    params = lock["pairs"]["params"]["params.yaml"]
    assert (run["params"]["seed"], run["params"]["dpo.beta"]) == (params["seed"], params["dpo"]["beta"])
    text = show("data/m1/pairs.jsonl")
    assert value["target"]["hash"][:12] in text.splitlines()[0]
    assert f"beta={params['dpo']['beta']}" in text


def test_a_model_is_found_by_its_name_its_folder_and_a_file_in_it(project: Project) -> None:
    expected = show("m1")

    assert expected.startswith("models/m1  ")
    for name in ("models/m1", "./models/m1/", "models/m1/model.safetensors", str(project.path / "models/m1")):
        assert show(name).splitlines()[1:] == expected.splitlines()[1:]


@pytest.mark.parametrize("name", ["data/m1/pairs.jsonl", "models/m1"])
def test_content_is_compared_with_the_lock_file_as_dvc_compares_it(project: Project, name: str) -> None:
    file = project.path / (name if name.endswith("jsonl") else f"{name}/model.safetensors")
    assert show(name).splitlines()[0].endswith("  as in dvc.lock")

    text = file.read_text()
    file.write_text(text + "x")
    assert show(name).splitlines()[0].endswith("  changed since")
    assert project.run("dvc status").stdout.count(f"modified:           {name}") >= 1

    file.write_text(text)
    assert show(name).splitlines()[0].endswith("  as in dvc.lock")


def test_a_file_that_dvc_ignores_is_no_change_of_a_folder(project: Project) -> None:
    project.write(".dvcignore", "*.tmp\n")
    project.write("models/m1/left.tmp", "x")
    assert show("m1").splitlines()[0].endswith("  as in dvc.lock")

    project.write("models/m1/left.other", "x")
    assert show("m1").splitlines()[0].endswith("  changed since")


def test_a_missing_output_is_shown_with_the_command_that_restores_it(project: Project) -> None:
    project.run("rm -r models/m1")
    assert show("m1").splitlines()[0].endswith("  not here (`dvc checkout`)")
    project.run("dvc checkout -q")
    assert show("m1").splitlines()[0].endswith("  as in dvc.lock")

    project.run("rm -r models/m1 .dvc/cache")
    assert show("m1").splitlines()[0].endswith("  not here (`dvc pull` or `dvc repro`)")


def test_an_ancestor_that_has_changed_is_marked_in_the_tree(project: Project) -> None:
    project.write("data/seed/text.txt", "another\n")

    assert "changed since" in line_of(show("m1"), "data/seed/text.txt")


def test_an_input_that_its_stage_has_rewritten_is_from_an_older_run(project: Project) -> None:
    project.write("data/seed/text.txt", "another\n")
    project.run("dvc repro -q -s base_model")
    now = YAML(typ="safe").load(project.read("dvc.lock"))["stages"]["base_model"]["outs"][0]["md5"]

    line = line_of(show("m1"), "models/base")
    assert f"from an older run: base_model has since written {now[:12]}" in line


def test_changed_code_is_named_by_file_and_by_folder(project: Project) -> None:
    code = line_of(show("base"), "code")
    assert code.endswith(", 2 files or folders, unchanged")
    project.write("stages/base_model.py", "x = 2\n")
    assert line_of(show("base"), "code").endswith(", 1 of 2 files or folders changed since: stages/base_model.py")

    project.replace("align/core/rows.py", "z = 1", "z = 2")
    changed = "2 of 2 files or folders changed since"
    assert line_of(show("base"), "code").endswith(f", {changed}: align/core, stages/base_model.py")
    assert f", code: {changed})" in line_of(show("m1"), "models/base")
    project.run("dvc repro -q")
    assert line_of(show("base"), "code").endswith(", 2 files or folders, unchanged")
    assert line_of(show("base"), "code") != code


def test_a_folder_of_code_has_one_hash_which_ignored_files_do_not_change(project: Project) -> None:
    project.write(".dvcignore", "__pycache__/\n*.md\n")
    project.write("align/core/__pycache__/files.pyc", "byte code")
    project.write("align/core/NOTES.md", "notes")
    code = show_json("base")["runs"]["base_model"]["code"]
    assert code["changed"] == []
    assert set(code["paths"]) == {"align/core", "stages/base_model.py"}
    assert code["paths"]["align/core"].endswith(".dir")

    project.write("align/core/new.py", "")
    assert show_json("base")["runs"]["base_model"]["code"]["changed"] == ["align/core"]
    project.run("rm -r align/core/new.py stages/base_model.py")
    assert show_json("base")["runs"]["base_model"]["code"]["changed"] == ["stages/base_model.py"]


def test_the_revision_is_the_commit_that_brought_the_present_hash(project: Project) -> None:
    first = project.run("git rev-parse --short HEAD").stdout.strip()
    project.run("sed -i 's/^seed: .*/seed: 123456/' params.yaml")
    project.run("dvc repro -q")
    assert "not committed" in line_of(show("data/m1/pairs.jsonl"), "revision")  # same bytes, another run
    project.commit("another seed, the same bytes")
    assert line_of(show("data/m1/pairs.jsonl"), "revision").split() == ["revision", first]

    project.write("data/seed/more.txt", "other\n")
    project.run("dvc repro -q")
    assert line_of(show("data/m1/pairs.jsonl"), "revision").split() == ["revision", "not", "committed"]
    second = project.commit("other data")
    assert line_of(show("data/m1/pairs.jsonl"), "revision").split() == ["revision", second]
    assert line_of(show("base"), "revision").split() == ["revision", first]

    project.write("data/seed/more.txt", "more text\n")
    project.run("dvc repro -q")
    third = project.commit("back again")
    assert line_of(show("data/m1/pairs.jsonl"), "revision").split() == ["revision", third]


def test_a_commit_that_adds_a_reader_did_not_make_the_file(project: Project) -> None:
    first = project.run("git rev-parse --short HEAD").stdout.strip()
    text = project.read("dvc.yaml")
    project.write(
        "dvc.yaml",
        f"{text}  copy:\n    cmd: cp data/m1/pairs.jsonl copy\n    deps: [data/m1/pairs.jsonl]\n    outs: [copy]\n",
    )
    project.run("dvc repro -q")
    second = project.commit("a reader with the same content")

    assert line_of(show("data/m1/pairs.jsonl"), "revision").split() == ["revision", first]
    assert line_of(show("copy"), "revision").split() == ["revision", second]


def test_without_git_the_rest_is_shown(project: Project) -> None:
    project.run("rm -rf .git && dvc config core.no_scm true")

    assert line_of(show("m1"), "revision").split() == ["revision", "not", "committed"]


def test_the_sources_of_a_model_card_are_compared_with_the_files(project: Project) -> None:
    write_card(project, "elsewhere")
    text = show("elsewhere")
    assert line_of(text, "base ").endswith("as recorded")
    assert line_of(text, "preferences ").endswith("as recorded")
    assert line_of(text, "environment").split(maxsplit=1)[1] == "python 3.11.0, device cpu (AVX2)"
    assert line_of(text, "seed").split() == ["seed", "17"]

    project.write("models/base/model.safetensors", "other weights\n")
    project.run("rm data/m1/pairs.jsonl")
    text = show("elsewhere")
    assert line_of(text, "base ").endswith("changed since")
    assert line_of(text, "preferences ").endswith("not here")


def test_a_model_of_the_pipeline_has_the_environment_of_its_card(project: Project) -> None:
    write_card(project)
    assert line_of(show("m1"), "environment").split(maxsplit=1)[1] == "python 3.11.0, device cpu (AVX2)"


def test_the_weights_hash_is_that_of_the_model_cards(project: Project) -> None:
    folder = project.path / "models/base"
    assert source_hash(folder) == weights_hash(folder)
    project.write("models/base/model-2.safetensors", "second part")
    assert source_hash(folder) == weights_hash(folder)


def test_a_card_of_the_first_format_is_shown_as_not_recorded(project: Project) -> None:
    project.write("models/elsewhere/model_card.json", json.dumps(OLD_CARD))
    text = show("elsewhere")

    for name in ("seed", "environment"):
        assert line_of(text, name).split(maxsplit=1)[1] == "not recorded"


@pytest.mark.parametrize("lock", [True, False])
def test_a_model_that_no_stage_made_is_shown_from_its_card_alone(project: Project, lock: bool) -> None:
    write_card(project, "elsewhere")
    if not lock:
        project.run("rm dvc.lock")
    for name in ("elsewhere", "models/elsewhere"):
        text = show(name)
        assert text.startswith("models/elsewhere  made by no stage of dvc.lock")
        assert line_of(text, "base ").endswith("as recorded")
        assert show_json(name)["target"] is None


def test_data_have_the_environment_that_their_stage_wrote_beside_them(project: Project) -> None:
    assert line_of(show("data/m1/pairs.jsonl"), "environment").split(maxsplit=1)[1] == "not recorded"

    project.replace("dvc.yaml", "outs: [data/m1/pairs.jsonl]", "outs: [data/m1/pairs.jsonl, data/m1/pairs.json]")
    project.replace("dvc.yaml", "> data/m1/pairs.jsonl", "> data/m1/pairs.jsonl && cp measures data/m1/pairs.json")
    project.write("measures", json.dumps({"environment": {"torch": "2.0"}}))
    project.run("dvc repro -q")
    assert line_of(show("data/m1/pairs.jsonl"), "environment").split(maxsplit=1)[1] == "torch 2.0"


@pytest.mark.parametrize(
    "text", ["{", "- a", "stages: [1]", "stages: {a: 1}", "stages: {a: {cmd: x, outs: [1]}}", "", "\x00"]
)
def test_a_broken_lock_file_is_a_one_line_error_that_says_how_to_fix_it(project: Project, text: str) -> None:
    project.write("dvc.lock", text)

    assert re.match(r"Error: dvc\.lock: .*; run `git checkout", error_of("show", "m1"))


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[1]",
        b'{"a": "\xff"}',
        b"[" * 100_000,
        b"{}",
        b'{"stage": "dpo", "parents": ["base"]}',
        b'{"stage": "dpo", "parents": {"base": {"path": 1}}}',
    ],
)
def test_a_broken_card_is_a_one_line_error_that_names_it(project: Project, data: bytes) -> None:
    project.write("models/elsewhere/model_card.json", "").write_bytes(data)

    assert re.match(r"Error: models/elsewhere/model_card\.json: .*`dvc repro`", error_of("show", "elsewhere"))


def test_an_unknown_name_is_a_one_line_error_that_lists_the_models(project: Project) -> None:
    assert error_of("show", "m9").endswith("models: base, m1\n")
    assert "an input of the pipeline, made by no stage (read by pairs)" in error_of("show", "data/seed/more.txt")
    assert "a folder of 1 outputs; name one of them: data/m1/pairs.jsonl" in error_of("show", "data/m1")
    project.run("rm dvc.lock")
    assert "dvc.lock: no such file; run from the repository's root" in error_of("show", "m1")


@pytest.mark.parametrize("name", ["m1", "elsewhere"])
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_control_characters_of_cards_and_lock_file_never_reach_the_terminal(
    project: Project, flags: list[str], name: str
) -> None:
    source = {"path": ATTACK.replace("\x00", ""), "sha256": ATTACK}
    card: dict[str, Any] = {
        "parents": {ATTACK: source},
        "params": {"seed": ATTACK},
        "environment": {ATTACK: ATTACK},
    }
    write_card(project, name, **card)
    lock = YAML(typ="safe").load(project.read("dvc.lock"))
    lock["stages"]["dpo"]["cmd"] = ATTACK
    lock["stages"]["dpo"]["params"] = {"params.yaml": {ATTACK: {ATTACK: ATTACK}}}
    with (project.path / "dvc.lock").open("w", encoding="utf-8") as stream:
        YAML(typ="safe").dump(lock, stream)

    assert CONTROL.findall(show(name, *flags)) == []


@pytest.mark.parametrize("text", ["m1" + ATTACK, "../" * 50 + "etc/passwd"])
def test_control_characters_of_the_name_never_reach_the_terminal(project: Project, text: str) -> None:
    assert CONTROL.findall(error_of("show", text)) == []


def test_the_committed_lock_file_leads_from_preferences_to_the_seeds(project: Project) -> None:
    show_lock = ["git", "show", "HEAD:dvc.lock"]
    committed = subprocess.run(show_lock, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout
    project.write("dvc.lock", committed)
    value = show_json("data/m2/preferences.jsonl")
    assert value["target"]["stage"] == "build_preferences@m2"
    loop = ("generate_prompts", "generate_responses", "judge", "build_preferences")
    assert set(value["runs"]) == {
        "base_model",
        "prepare_data",
        "sft",
        "dpo@m1",
        *(f"{stage}@{model}" for stage in loop for model in ("m1", "m2")),
    }
    starts = {node["path"] for run in value["runs"].values() for node in run["inputs"] if node["stage"] is None}
    starts -= {"data/prepared/eval"}  # a folder of outputs
    read = YAML(typ="safe").load(committed)["stages"]["prepare_data"]["deps"]
    assert starts == {dep["path"] for dep in read if dep["path"].startswith("data/seed/")}
    assert len(starts) >= 4
    assert len({run["params"]["seed"] for name, run in value["runs"].items() if "build" not in name}) == 1
    assert all(run["code"]["paths"] for run in value["runs"].values())
