"""Finished work is kept until DVC has recorded its outputs."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from align.core.errors import InputError
from align.run.release import drop_recorded, resume_root
from align.run.work import Work
from tests.run.test_work import begin, folders, root

__all__ = ["begin", "root"]  # fixtures


@pytest.fixture
def in_dvc(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace in which DVC runs stage judge@m1; returns its dvc.lock, not written yet."""
    workspace = root / "workspace"
    workspace.mkdir()
    (workspace / "scores.jsonl").write_text("{}\n")
    (workspace / "model").mkdir()
    (workspace / "model" / "card.json").write_text("1")
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("DVC_STAGE", "judge@m1")
    return workspace / "dvc.lock"


def entry(*outs: str) -> str:
    """Return a dvc.lock as DVC writes it, with the files as they are now."""
    lines = []
    for name in outs:
        path = Path(name)
        if path.is_dir():
            listing = [{"md5": hashlib.md5((path / "card.json").read_bytes()).hexdigest(), "relpath": "card.json"}]
            digest = hashlib.md5(json.dumps(listing).encode()).hexdigest() + ".dir"
        else:
            digest = hashlib.md5(path.read_bytes()).hexdigest()
        lines.append(f"    - path: {name}\n      hash: md5\n      md5: {digest}\n")
    head = "schema: '2.0'\nstages:\n  judge@m0:\n    cmd: a\n    outs: []\n  judge@m1:\n    cmd: b\n    outs:\n"
    return head + "".join(lines) + "  judge@m10:\n    cmd: c\n    outs: []\n"


def test_the_work_of_a_stage_that_ended_is_kept_until_dvc_has_recorded_it(
    begin: Callable[..., Work], root: Path, in_dvc: Path
) -> None:
    with begin() as work:
        work.rows("a").finish({0: "x"})
    drop_recorded()
    assert len(folders(root)) == 1

    with begin() as work:  # DVC was killed before it wrote dvc.lock, and runs the stage again
        assert work.rows("a") == {0: "x"}
    in_dvc.write_text(entry("scores.jsonl", "model"))
    drop_recorded()
    assert folders(root) == []


@pytest.mark.parametrize("text", ["", "{", "{}", "[]"])
def test_a_damaged_mark_of_finished_work_is_named_with_the_folder_to_delete(
    text: str, begin: Callable[..., Work], in_dvc: Path
) -> None:
    with begin() as work:
        work.rows("a").finish({0: "x"})
    [mark] = resume_root().glob("*/*/done.json")
    mark.write_text(text)
    with pytest.raises(InputError, match=r"done\.json.*; delete ") as error:
        drop_recorded()
    assert f"delete {mark.parent}," in error.value.message


def test_a_stage_that_is_recorded_and_runs_again_starts_anew_and_leaves_nothing_if_its_outputs_are_the_same(
    begin: Callable[..., Work], root: Path, in_dvc: Path
) -> None:
    with begin() as work:
        work.rows("a").finish({0: "x"})
    in_dvc.write_text(entry("scores.jsonl", "model"))
    for _ in range(2):  # dvc repro --force, twice
        with begin() as work:
            assert work.rows("a") == {}
            work.rows("a").finish({0: "x"})
        assert folders(root) == []

    (in_dvc.parent / "model" / "card.json").write_text("2")
    with begin() as work:
        work.rows("a").finish({0: "x"})
    assert len(folders(root)) == 1


def test_the_work_of_a_temporary_workspace_that_is_gone_is_deleted(
    begin: Callable[..., Work], root: Path, in_dvc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with begin() as work:
        work.rows("a").finish({0: "x"})
    monkeypatch.chdir(root)
    shutil.rmtree(in_dvc.parent)
    drop_recorded()
    assert folders(root) == []


@pytest.mark.parametrize("end", ["outs:", "    outs:\n", "- path: scores", "hash: md5\n      md5: ", "cmd: b\n"])
def test_a_dvc_lock_that_breaks_off_within_the_entry_costs_no_work(
    end: str, begin: Callable[..., Work], root: Path, in_dvc: Path
) -> None:
    whole = entry("scores.jsonl", "model")
    start = whole.index("  judge@m1:")
    in_dvc.write_text(whole[: whole.index(end, start) + len(end)])
    with begin() as work:
        work.rows("a").finish({0: "x"})
    with begin() as work:  # DVC runs the stage again
        assert work.rows("a") == {0: "x"}
    in_dvc.write_text(whole)
    drop_recorded()
    assert folders(root) == []
