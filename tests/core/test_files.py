import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from align.core.files import replacing, sha256, write_csv, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_tree(folder: Path, files: list[tuple[str, str]]) -> Path:
    for name, text in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_a_file_has_its_name_only_after_the_block(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.txt"
    with replacing(path) as temporary:
        temporary.write_text("whole", encoding="utf-8")
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "whole"
    assert names(path.parent) == ["out.txt"]


def test_an_exception_leaves_no_file_and_no_temporary(tmp_path: Path) -> None:
    def fail_half_way() -> None:
        with replacing(tmp_path / "out.txt") as temporary:
            temporary.write_text("half", encoding="utf-8")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert names(tmp_path) == []


def test_an_exception_leaves_the_old_directory_untouched(tmp_path: Path) -> None:
    old = write_tree(tmp_path / "model", [("weights", "old")])

    def fail_half_way() -> None:
        with replacing(old) as temporary:
            write_tree(temporary, [("weights", "new")])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert names(tmp_path) == ["model"]
    assert (old / "weights").read_text(encoding="utf-8") == "old"


def test_a_directory_is_replaced_not_merged(tmp_path: Path) -> None:
    path = write_tree(tmp_path / "model", [("old/weights", "old"), ("card", "old")])
    with replacing(path) as temporary:
        write_tree(temporary, [("new/weights", "new")])
    assert names(tmp_path) == ["model"]
    assert names(path) == ["new"]


def test_what_a_killed_run_left_does_not_enter_the_output(tmp_path: Path) -> None:
    write_tree(tmp_path / ".tmp-model", [("stale", "half")])
    with replacing(tmp_path / "model") as temporary:
        write_tree(temporary, [("weights", "new")])
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["weights"]


def test_a_block_that_writes_nothing_is_an_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    write_text(path, "old")

    def write_nothing() -> None:
        with replacing(path):
            pass

    with pytest.raises(FileNotFoundError):
        write_nothing()
    assert path.read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_refuses_what_is_no_number_and_keeps_the_old_file(tmp_path: Path, value: float) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": value})
    assert json.loads(path.read_text(encoding="utf-8")) == {"loss": 1.0}
    assert names(tmp_path) == ["metrics.json"]


def test_json_is_utf8_that_people_can_read(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "café"})
    assert (tmp_path / "a.json").read_bytes() == '{\n  "name": "café"\n}\n'.encode()


def test_csv_has_the_columns_of_all_rows_and_no_value_where_a_row_has_none(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [{"step": 1, "loss": 0.5}, {"step": 2, "note": "a,b"}])
    assert (tmp_path / "a.csv").read_bytes() == b'step,loss,note\n1,0.5,\n2,,"a,b"\n'


def test_the_hash_of_a_file_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_hash_of_a_directory_does_not_depend_on_the_order_of_writing(tmp_path: Path) -> None:
    files = [("b", "2"), ("a/x", "1"), ("a/y", "3"), ("c", "4")]
    forward, backward = write_tree(tmp_path / "f", files), write_tree(tmp_path / "b", files[::-1])
    assert sha256(forward) == sha256(backward)


def test_the_hash_of_a_directory_is_that_of_its_sorted_names_and_hashes(tmp_path: Path) -> None:
    file_names = [f"{number:02d}" for number in range(20)]
    folder = write_tree(tmp_path / "f", [(name, "abc") for name in file_names[1::2] + file_names[::2]])
    abc = hashlib.sha256(b"abc").hexdigest()
    assert sha256(folder) == hashlib.sha256("".join(f"{name} {abc}\n" for name in file_names).encode()).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda folder: (folder / "a").write_text("other"), id="content"),
        pytest.param(lambda folder: (folder / "a").rename(folder / "z"), id="name"),
        pytest.param(lambda folder: (folder / "sub/x").rename(folder / "x"), id="folder"),
        pytest.param(lambda folder: (folder / "new").write_text(""), id="added"),
        pytest.param(lambda folder: (folder / "a").unlink(), id="removed"),
    ],
)
def test_the_hash_of_a_directory_changes_with(tmp_path: Path, change: Callable[[Path], object]) -> None:
    folder = write_tree(tmp_path / "f", [("a", "1"), ("b", "2"), ("sub/x", "3")])
    before = sha256(folder)
    change(folder)
    assert sha256(folder) != before


def test_swapping_the_contents_of_two_files_changes_the_hash(tmp_path: Path) -> None:
    one = write_tree(tmp_path / "one", [("a", "1"), ("b", "2")])
    two = write_tree(tmp_path / "two", [("a", "2"), ("b", "1")])
    assert sha256(one) != sha256(two)
