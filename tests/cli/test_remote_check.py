"""`align remote-check` on a remote in a folder: what it finds and repairs. Real servers are in test_remotes.py."""

import hashlib
import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from align.cli.doctor.repository import check_credentials
from tests.committed import REPOSITORY
from tests.dvc_project import Project, align, error_of, finished_project, project
from tests.servers.remotes import commands_of

__all__ = ["finished_project", "project"]

BASE = "models/base/model.safetensors"
PAIRS = "data/m1/pairs.jsonl"
ADAPTER = "models/m1/model.safetensors"


@pytest.fixture(scope="module")
def pushed_project(finished_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project with its base not pushed, and all else on a remote named `store`, in the folder beside it."""
    project = finished_project.copy(tmp_path_factory.mktemp("pushed") / "project")
    project.replace("dvc.yaml", "outs: [models/base]", "outs: [{models/base: {push: false}}]")
    project.run("dvc remote add -d store ../store && dvc push")
    project.commit("remote")
    return project


@pytest.fixture
def pushed(pushed_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of project and remote, as the working directory."""
    shutil.copytree(pushed_project.path.parent / "store", tmp_path / "store")
    return pushed_project.enter(tmp_path / "project", monkeypatch)


def check(*arguments: str) -> dict[str, Any]:
    result = align("remote-check", "--json", *arguments)
    report: dict[str, Any] = json.loads(result.stdout)
    assert result.exit_code == int(len(report["repaired"]) < len(report["bad"]))
    return report


def faults(*arguments: str) -> dict[str, str]:
    return {one["paths"][0]: one["fault"] for one in check(*arguments)["bad"]}


def oid_of(project: Project, name: str) -> str:
    """Return the object's name of a file or of a folder's list of files."""
    path = project.path / name
    if path.is_file():
        return hashlib.md5(path.read_bytes()).hexdigest()
    match = re.search(rf"path: {name}\n *hash: md5\n *md5: (\S+)", project.read("dvc.lock"))
    assert match
    return match[1]


def stored(project: Project, name: str) -> Path:
    """Return the file on the remote, which may be written to."""
    oid = oid_of(project, name)
    path = project.path.parent / "store/files/md5" / oid[:2] / oid[2:]
    path.chmod(0o644)
    return path


def cached(project: Project, name: str) -> Path:
    """Return the file in the cache, which may be written to."""
    oid = oid_of(project, name)
    path = project.path / ".dvc/cache/files/md5" / oid[:2] / oid[2:]
    path.chmod(0o644)
    return path


def test_an_undamaged_remote_is_reported_in_one_line_and_what_is_not_pushed_in_another(pushed: Project) -> None:
    result = align("remote-check")

    assert result.exit_code == 0, result.output
    url = pushed.path.parent / "store/files/md5"
    assert result.output.splitlines() == [
        f"store ({url}): 3 objects, 118 B hashed: no problem",
        "not checked: models/base (push: false in dvc.yaml)",
    ]
    report = check()
    assert (report["checked"], report["hashed"], report["not_pushed"]) == (3, 3, ["models/base"])


def test_each_bad_object_is_a_line_with_its_path_its_fault_and_the_command_that_repairs_it(pushed: Project) -> None:
    os.truncate(stored(pushed, PAIRS), 3)
    stored(pushed, ADAPTER).write_text("x" * len(pushed.read(ADAPTER)), encoding="utf-8")
    lines = align("remote-check").output.splitlines()

    assert len(lines) == 4
    assert re.fullmatch(rf"damaged   {ADAPTER}: \d+ bytes, md5 \w{{32}} \(.*\); .*", lines[1])
    assert lines[0].startswith(f"damaged   {PAIRS}: 3 bytes, md5 ")
    for line in lines[:2]:
        assert line.endswith("; the cache here has it undamaged, run `align remote-check -r store --repair`")

    for name in (PAIRS, ADAPTER):
        stored(pushed, name).chmod(0o444)  # what is read-only DVC takes for whole, in a folder too
    assert align("remote-check", "-r", "store", "--repair").exit_code == 0
    assert faults() == {}


def test_a_missing_file_of_a_folder_which_dvc_calls_up_to_date_is_put_back(pushed: Project) -> None:
    stored(pushed, ADAPTER).unlink()
    assert "in sync" in pushed.run("dvc status -c").stdout
    assert "Everything is up to date" in pushed.run("dvc push").stdout

    assert faults() == {ADAPTER: "missing"}
    assert check("--repair")["repaired"] == [oid_of(pushed, ADAPTER)]
    assert faults() == {}


def test_a_damaged_list_of_files_is_found_and_the_files_are_still_known(pushed: Project) -> None:
    os.truncate(stored(pushed, "models/m1"), 5)
    stored(pushed, ADAPTER).unlink()
    assert faults() == {"models/m1": "damaged", ADAPTER: "missing"}
    assert "models/m1 (the folder's list of files): 5 bytes" in align("remote-check").output

    assert len(check("--repair")["repaired"]) == 2
    assert faults() == {}


def test_a_list_that_nobody_has_is_bad_and_not_repairable(pushed: Project) -> None:
    os.truncate(stored(pushed, "models/m1"), 5)
    cached(pushed, "models/m1").unlink()
    assert [(one["paths"], one["repairable"]) for one in check()["bad"]] == [(["models/m1"], False)]


def test_what_the_cache_lacks_is_neither_deleted_nor_called_repaired(pushed: Project) -> None:
    os.truncate(stored(pushed, PAIRS), 3)
    cached(pushed, PAIRS).write_text("other", encoding="utf-8")
    result = align("remote-check", "--repair")

    assert result.exit_code == 1
    assert stored(pushed, PAIRS).stat().st_size == 3
    assert f"damaged   {PAIRS}" in result.output
    assert "the cache here does not have it undamaged" in result.output
    assert "rebuild it with `dvc repro pairs`" in result.output


def test_a_folders_list_is_not_put_back_while_one_of_its_files_is_lost(pushed: Project) -> None:
    for name in ("models/m1", ADAPTER):
        stored(pushed, name).unlink()
    cached(pushed, ADAPTER).unlink()
    report = check("--repair")

    assert report["repaired"] == []
    assert not any((pushed.path.parent / "store").rglob("*.dir"))


def test_quick_hashes_only_what_has_the_wrong_size_or_an_unknown_one(pushed: Project) -> None:
    assert check("--quick")["hashed"] == 0
    stored(pushed, ADAPTER).write_text("x" * len(pushed.read(ADAPTER)), encoding="utf-8")
    assert faults("--quick") == {}
    os.truncate(stored(pushed, PAIRS), 3)
    assert faults("--quick") == {PAIRS: "damaged"}
    shutil.rmtree(pushed.path / ".dvc/cache")  # dvc.lock has the size of a folder, not of its files
    assert faults("--quick") == {PAIRS: "damaged", ADAPTER: "damaged"}


def test_targets_are_outs_files_in_them_and_stages(pushed: Project) -> None:
    assert check(PAIRS)["checked"] == check("pairs")["checked"] == 1
    assert check("models/m1")["checked"] == check(ADAPTER)["checked"] == check("dpo")["checked"] == 2
    assert check("dpo", PAIRS)["checked"] == 3
    assert "none" in error_of("remote-check", "none")


def test_an_old_revision_is_checked_and_repaired_by_its_name(pushed: Project) -> None:
    old = oid_of(pushed, PAIRS)
    pushed.write("data/seed/more.txt", "other text\n")
    pushed.run("dvc repro -q && dvc push -q")
    pushed.commit("other")
    path = pushed.path.parent / "store/files/md5" / old[:2] / old[2:]
    path.chmod(0o644)
    os.truncate(path, 3)

    assert faults() == {}
    result = align("remote-check", "--rev", "HEAD~1")
    assert f"damaged   {PAIRS}" in result.output
    assert "run `align remote-check -r store --rev 'HEAD~1' --repair`" in result.output
    assert check("--rev", "HEAD~1", "--repair")["repaired"] == [old]
    assert faults("--rev", "HEAD~1") == {}
    assert "nope" in error_of("remote-check", "--rev", "nope")


def test_a_base_that_is_asked_for_is_pushed_and_looked_for_and_no_stage_turns_stale(pushed: Project) -> None:
    assert "up to date" in pushed.run("dvc status").stdout
    assert "Everything is up to date" in pushed.run("dvc push models/base").stdout
    pushed.replace("dvc.yaml", "push: false", "push: true")

    assert "up to date" in pushed.run("dvc status").stdout
    assert set(faults()) == {"models/base", BASE}
    pushed.run("dvc push")
    assert faults() == {}


def fresh_clone(project: Project, name: str) -> Project:
    clone = Project(project.path.parent / name)
    project.run(f"git clone -q . {clone.path}")
    clone.env |= {"DVC_SITE_CACHE_DIR": str(clone.path.parent / f"{name}.site")}
    return clone


def test_a_fresh_clone_gets_all_by_repro_pull_which_builds_nothing_but_the_base(pushed: Project) -> None:
    clone = fresh_clone(pushed, "clone")
    [command] = [line for line in commands_of("Push and pull") if "fresh clone" in line]
    ran = clone.run(command).stdout

    assert re.findall("Running stage '(.*)'", ran) == ["base_model"]
    assert clone.run("git status --short").stdout == ""
    assert all(clone.read(name) == pushed.read(name) for name in (BASE, PAIRS, ADAPTER))
    assert "up to date" in clone.run("dvc status").stdout


def test_a_plain_pull_brings_all_but_the_base_and_fails_until_the_base_is_built(pushed: Project) -> None:
    clone = fresh_clone(pushed, "clone")
    pull = clone.run("dvc pull", check=False)

    assert pull.returncode == 1
    assert "models/base" in pull.stderr
    assert all(clone.read(name) == pushed.read(name) for name in (PAIRS, ADAPTER))
    clone.run("dvc pull --allow-missing && dvc repro base_model && dvc pull")
    assert "up to date" in clone.run("dvc status").stdout


@pytest.mark.parametrize("heading", ["Push and pull", "Check a remote"])
def test_the_commands_of_the_docs_run(heading: str, pushed: Project) -> None:
    pushed.env["PYTHONPATH"] = str(REPOSITORY)
    for line in commands_of(heading):
        pushed.run(re.sub("^align ", "python -m align.cli.main ", line))


def test_of_this_project_all_is_pushed_but_the_base() -> None:
    text = (REPOSITORY / "dvc.yaml").read_text(encoding="utf-8")
    assert re.findall(r"- (.*?): \{.*?push: (\w+)", text) == [("models/base", "false")]


def credentials() -> list[dict[str, Any]]:
    """Return the findings of `align doctor` that are about passwords and keys."""
    return [asdict(finding) for finding in check_credentials()]


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("dvc remote modify store url s3://b/x && dvc remote modify store secret_access_key k3y", "secret_access_key"),
        ("dvc remote modify store url ssh://h/x && dvc remote modify store password k3y", "password"),
        ("dvc remote modify store url webdav://u:k3y@h/x", "url"),
    ],
)
def test_a_password_in_the_config_that_git_has_is_reported_by_the_doctor_and_not_shown(
    pushed: Project, command: str, option: str
) -> None:
    assert credentials() == []
    pushed.run(command)
    [found] = credentials()

    assert found["status"] == "problem"
    assert found["what"] == f".dvc/config is in git and holds {option} of remote store"
    assert "k3y" not in json.dumps(found)
    reported = [one for one in json.loads(align("doctor", "--json").output) if one["check"] == "credentials"]
    assert reported == [found | {"steps": list(found["steps"])}]


def test_a_local_config_that_git_has_is_reported(pushed: Project) -> None:
    pushed.run("dvc remote modify --local store verify true && git add -f .dvc/config.local")
    assert credentials()[0]["what"] == ".dvc/config.local is in git"


def test_no_remote_and_an_unknown_one_are_one_line(project: Project) -> None:
    assert "dvc remote add -d" in error_of("remote-check")
    assert "remote 'nowhere' doesn't exist" in error_of("remote-check", "-r", "nowhere")
