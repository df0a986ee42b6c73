"""`align diff NAME@REV`: rows of another revision or experiment come from the cache in place, or from the remote."""

import json
import shutil
from pathlib import Path

import pytest
from click import unstyle

from align.cli.diff import sides
from tests.dvc_project import Project, align

PAIRS = "data/m1/preferences.jsonl"
DVC_YAML = """
stages:
  preferences:
    foreach: [m1, m2]
    do:
      cmd: python make.py ${item} ${margin}
      deps: [make.py]
      params: [margin]
      outs:
        - data/${item}/preferences.jsonl
"""
MAKE = """
import json, sys
from pathlib import Path
model, margin = sys.argv[1], float(sys.argv[2])
path = Path("data") / model / "preferences.jsonl"
path.parent.mkdir(parents=True, exist_ok=True)
pair = {"chosen": "good", "rejected": "bad", "margin": margin}
path.write_text("".join(json.dumps({"id": f"{model}-{i}"} | pair) + "\\n" for i in range(3)))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project of three commits: margins of 1, a file in git alone, and margins of 2; with an experiment of 5."""
    path = tmp_path_factory.mktemp("sides") / "project"
    path.mkdir()
    project = Project(path)
    for name, text in (
        ("dvc.yaml", DVC_YAML),
        ("make.py", MAKE),
        ("params.yaml", "margin: 1\n"),
        (".gitignore", "/data/m*\n"),
    ):
        project.write(name, text)
    project.run("git init -q -b main && git config user.name t && git config user.email t@example.com && dvc init -q")
    project.run("dvc config core.autostage false && dvc repro -q")
    project.commit("margins of 1")
    project.run("git tag one")
    project.write("notes.jsonl", '{"id": 1, "text": "old"}\n')
    project.commit("notes")
    project.write("params.yaml", "margin: 2\n")
    project.write("notes.jsonl", '{"id": 1, "text": "new"}\n')
    project.run("dvc repro -q")
    project.commit("margins of 2")
    project.run("dvc exp run -q -n five -S margin=5")
    project.run("git restore -SW . && dvc checkout -q")
    return project


@pytest.fixture
def project(made: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    return made.enter(tmp_path / "project", monkeypatch)


def margins(*arguments: str) -> tuple[float, float]:
    result = align("diff", *arguments, "--format", "json")
    assert result.exit_code == 0, result.output
    [data_set] = json.loads(result.output)["data_sets"].values()
    number = data_set["numbers"]["margin"]
    return number["a"]["mean"], number["b"]["mean"]


def error_of(*arguments: str) -> str:
    result = align("diff", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("m1@one", "m1", (1, 2)),
        ("m1@one", "m1@main", (1, 2)),
        ("m1@HEAD~2", "m2@five", (1, 5)),
        ("m1", "m1@five", (2, 5)),
        (f"{PAIRS}@one", PAIRS, (1, 2)),
        (f"{PAIRS}@five", "data/m2/preferences.jsonl@one", (5, 1)),
    ],
)
def test_models_and_files_are_compared_across_revisions_and_experiments(
    project: Project, a: str, b: str, expected: tuple[float, float]
) -> None:
    assert margins(a, b) == expected


def test_what_the_cache_has_is_read_in_place(project: Project) -> None:
    downloads = project.path / "downloads"
    downloads.mkdir()
    path = sides.Sources(downloads).file(sides.Side.parse("m1@one"), PAIRS)
    assert path.is_relative_to(project.path / ".dvc/cache")
    assert list(downloads.iterdir()) == []


def test_a_file_that_git_alone_has_is_read_from_git(project: Project) -> None:
    text = align("diff", "notes.jsonl@HEAD~1", "notes.jsonl").output
    assert "1 changed" in text
    assert "old -> " in text


def test_what_is_not_checked_out_here_is_read_from_the_cache(project: Project) -> None:
    shutil.rmtree("data/m1")
    assert margins("m1@one", "m1") == (1, 2)
    assert not Path(PAIRS).exists()


def test_what_is_not_pulled_is_streamed_from_the_remote_of_today(project: Project, tmp_path: Path) -> None:
    # The revision's own .dvc/config has no remote. (To push from it, DVC needs one in .dvc/config.local.)
    project.run(f"dvc remote add -q --local -d store {tmp_path / 'store'} && dvc push -q --all-commits")
    project.run(f"rm .dvc/config.local && dvc remote add -q -d store {tmp_path / 'store'}")
    shutil.rmtree(".dvc/cache")
    shutil.rmtree("data/m1")
    assert margins("m1@one", "m1") == (1, 2)
    assert not Path(PAIRS).exists()
    assert not Path(".dvc/cache/files").exists()


def test_a_missing_object_is_named_with_what_to_push(project: Project, tmp_path: Path) -> None:
    shutil.rmtree(".dvc/cache")
    line = error_of("m1@one", "m1")
    assert line.startswith(f"Error: {PAIRS} at one (md5 ")
    assert "no remote is set up" in line
    project.run(f"dvc remote add -q -d store {tmp_path / 'store'}")
    assert "nor on the remote store: `dvc exp push` or `dvc push` it where it was made" in error_of("m1@one", "m1")


def test_a_data_set_out_of_reach_is_reported_and_the_others_are_compared(project: Project) -> None:
    for model in ("m1", "m2"):
        project.write(f"data/{model}/prompts.jsonl", '{"id": 1}\n')
    project.run(f"rm -r {PAIRS} .dvc/cache")
    result = align("diff", "m1", "m2")
    assert result.exit_code == 2
    assert unstyle(result.stdout).startswith("prompts: 1 -> 1 rows")
    assert result.stderr.startswith(f"preferences: not compared: {PAIRS}")


def test_an_unknown_revision_is_named_with_where_to_look(project: Project) -> None:
    assert error_of("m1@nope", "m1").startswith("Error: no revision 'nope': neither a git branch, tag or commit")


def test_a_file_that_a_revision_lacks_is_named_with_the_revision(project: Project) -> None:
    assert error_of("notes.jsonl@one", "notes.jsonl").startswith("Error: notes.jsonl at one: no such file")


def test_a_file_with_an_at_sign_in_its_name_is_a_file(project: Project) -> None:
    project.write("a@one.jsonl", '{"id": 1}\n')
    assert "a@one.jsonl: 1 -> 1 rows" in align("diff", "a@one.jsonl", "a@one.jsonl").output


def test_a_project_in_a_folder_of_a_larger_repository_has_its_revisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "above" / "inner"
    path.mkdir(parents=True)
    project = Project(path)
    for name, text in (("dvc.yaml", DVC_YAML), ("make.py", MAKE), ("params.yaml", "margin: 1\n")):
        project.write(name, text)
    project.write("notes.jsonl", '{"id": 1, "text": "old"}\n')
    project.run("git -C .. init -q -b main && git config user.name t && git config user.email t@example.com")
    project.run("dvc init -q --subdir && echo /data/m* > .gitignore && dvc repro -q")
    project.commit("margins of 1")
    project.run("git tag one")
    project.write("params.yaml", "margin: 2\n")
    project.write("notes.jsonl", '{"id": 1, "text": "new"}\n')
    project.run("dvc repro -q")
    project.commit("margins of 2")
    monkeypatch.chdir(path)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", project.env["DVC_SITE_CACHE_DIR"])
    assert margins("m1@one", "m1") == margins(f"{PAIRS}@one", f"{PAIRS}@main") == (1, 2)
    assert "old -> " in align("diff", "notes.jsonl@one", "notes.jsonl").output
