"""Stage fetch_data: rows as they are, from files, folders in the hub's layout and a stand-in for the hub."""

import bz2
import gzip
import io
import json
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from huggingface_hub import constants

from stages.fetch_data import main
from tests.committed import write_params
from tests.servers.hub import COMMIT, TAG, Hub, serving

ROWS: list[dict[str, Any]] = [
    {"id": n, "text": f"line {n}", "note": "NA" if n % 2 else "2023-02-05", "label": n % 3} for n in range(7)
]


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that can be reached, with one dataset."""
    with serving() as server:
        go_online(monkeypatch, server.url)
        server.repositories["owner/data"] = {
            "README.md": b"---\nconfigs:\n- config_name: default\n  data_files: rows.jsonl\n---\n",
            "rows.jsonl": jsonl(ROWS),
        }
        yield server


def go_online(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # these two are for streaming
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def csv(rows: list[dict[str, Any]], sep: str = ",") -> bytes:
    return "".join(sep.join(map(str, row)) + "\n" for row in [list(rows[0]), *(row.values() for row in rows)]).encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


def put(path: str, data: bytes) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data)
    return path


def fetch(dataset: str | Path, **changes: Any) -> Result:
    write_params(Path(), {"sources": {"x": {"dataset": str(dataset), **changes}}})
    return CliRunner().invoke(main, ["x"])


def rows_of(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr or result.exc_info
    return [json.loads(line) for line in Path("data/sources/x.jsonl").read_text(encoding="utf-8").splitlines()]


def counts() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(Path("data/sources/x.json").read_text(encoding="utf-8"))
    return value


def assert_one_line(result: Result, *words: str) -> None:
    assert isinstance(result.exception, SystemExit), result.exc_info
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0]
    assert not Path("data/sources").exists() or not list(Path("data/sources").iterdir())


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("rows.jsonl", jsonl(ROWS)),
        ("rows.jsonl.gz", gzip.compress(jsonl(ROWS))),
        ("rows.jsonl.bz2", bz2.compress(jsonl(ROWS))),
        ("rows.json", jsonl(ROWS)),
        ("list.json", b" \n" + json.dumps(ROWS, indent=1).encode()),
        ("rows.csv", csv(ROWS)),
        ("rows.csv.gz", gzip.compress(csv(ROWS))),
        ("rows.tsv", csv(ROWS, "\t")),
        ("rows.parquet", parquet(ROWS)),
        ("odd [1] name.csv", csv(ROWS)),
    ],
)
def test_a_file_of_any_kind_gives_the_same_rows_in_order(name: str, data: bytes) -> None:
    texts = [{key: str(value) for key, value in row.items()} for row in ROWS]
    assert rows_of(fetch(put(name, data))) == (texts if ".csv" in name or ".tsv" in name or "odd" in name else ROWS)
    assert (counts()["rows"], counts()["columns"]) == (7, list(ROWS[0]))
    assert counts()["revision"].startswith("sha256:")


def test_lines_of_json_come_out_to_the_letter() -> None:
    rows: list[dict[str, Any]] = [
        {"a": "2023-02-05 10:00:00", "b": 1, "c": [1, 2.5, None]},
        {"b": 1.0, "e": {"f": {}}},
        {"c": "x"},
    ]
    fetch(put("rows.jsonl", jsonl(rows)))
    assert Path("data/sources/x.jsonl").read_bytes() == jsonl(rows)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_in_the_hubs_layout_gives_the_split_of_the_configuration(streaming: bool) -> None:
    put(
        "repo/README.md",
        b"---\nlicense: mit\nconfigs:\n- config_name: big\n  data_files:\n  - split: train\n    path: data/train-*\n"
        b"  - split: test\n    path: data/test-*\n- config_name: small\n  data_files: other/*\n---\n# Data\n",
    )
    put("repo/data/train-00001-of-00002.parquet", parquet(ROWS[3:]))
    put("repo/data/train-00000-of-00002.parquet", parquet(ROWS[:3]))
    put("repo/data/test-00000-of-00001.parquet", parquet(ROWS[:1]))
    put("repo/other/rows.parquet", parquet(ROWS[2:4]))
    assert rows_of(fetch("repo", config="big", streaming=streaming)) == ROWS
    assert rows_of(fetch("repo", config="big", split="test")) == ROWS[:1]
    assert rows_of(fetch("repo", config="small", streaming=streaming)) == ROWS[2:4]
    Path("data/sources/x.jsonl").unlink()
    Path("data/sources/x.json").unlink()
    assert_one_line(fetch("repo"), "sources.x.config", "big", "small")
    assert_one_line(fetch("repo", config="huge"), "sources.x.config", "huge", "small")
    assert_one_line(fetch("repo", config="big", split="dev"), "sources.x.split: there is no 'dev'", "'train', 'test'")
    assert_one_line(fetch("repo", config="big", split="train[:2]"), "sources.x.split", "use limit")


def test_a_folder_of_compressed_lines_as_hh_rlhf_ships_them() -> None:
    put("hh/harmless-base/train.jsonl.gz", gzip.compress(jsonl(ROWS[:2])))
    put("hh/helpful-base/train.jsonl.gz", gzip.compress(jsonl(ROWS[2:])))
    put("hh/helpful-base/test.jsonl.gz", gzip.compress(jsonl(ROWS[:1])))
    assert rows_of(fetch("hh")) == ROWS
    assert rows_of(fetch("hh", data_files="helpful-base/train.jsonl.gz")) == ROWS[2:]


def test_limit_and_columns_cut_and_rename() -> None:
    path = put("rows.jsonl", jsonl(ROWS))
    assert rows_of(fetch(path, limit=2, columns=["label", "id"])) == [
        {"label": r["label"], "id": r["id"]} for r in ROWS[:2]
    ]
    assert rows_of(fetch(path, columns={"prompt": "text"}))[0] == {"prompt": "line 0"}
    assert counts() | {"revision": ""} == {"rows": 7, "columns": ["prompt"], "revision": ""}


def test_the_same_source_gives_the_same_bytes_and_a_failed_run_keeps_them() -> None:
    path = put("rows.csv", csv(ROWS))
    fetch(path)
    before = Path("data/sources/x.jsonl").read_bytes()
    fetch(path)
    assert Path("data/sources/x.jsonl").read_bytes() == before
    assert fetch(path, columns=["nothing"]).exit_code == 1
    assert [p.name for p in sorted(Path("data/sources").iterdir())] == ["x.json", "x.jsonl"]
    assert Path("data/sources/x.jsonl").read_bytes() == before


def test_dates_of_tables_become_iso_text_and_bytes_are_an_error() -> None:
    path = put("rows.parquet", parquet([{"when": datetime(2023, 2, 5, 10, 30), "raw": b"\x00"}]))
    assert rows_of(fetch(path, columns=["when"])) == [{"when": "2023-02-05T10:30:00"}]
    Path("data/sources/x.jsonl").unlink()
    Path("data/sources/x.json").unlink()
    assert_one_line(fetch(path), "row 1 holds bytes in 'raw'", "columns", "'when'")


def test_cells_of_csv_stay_the_text_that_they_are_in_every_column() -> None:
    rows = [
        {"a": "4", "b": "0042", "c": "True", "d": "1.50"},
        {"a": None, "b": "x", "c": "NA", "d": 'two\nlines, "so"'},
    ]
    text = 'a,b,c,d\r\n4,0042,True,1.50\r\n,x,NA,"two\nlines, ""so"""\r\n'
    assert rows_of(fetch(put("rows.csv", text.encode()))) == rows
    assert rows_of(fetch(put("rows.csv", b"\xef\xbb\xbf" + text.encode()))) == rows
    semicolons = text.replace(",", ";")
    assert rows_of(fetch(put("rows.csv", semicolons.encode("cp1252")), delimiter=";", encoding="cp1252"))[0] == rows[0]
    assert rows_of(fetch(put("one.csv", b"a;b\n1;2\n"), delimiter=",")) == [{"a;b": "1;2"}]
    put("folder/rows.csv", text.encode())
    assert rows_of(fetch("folder")) == rows


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8"])
def test_an_encoding_may_be_named_for_csv_and_json(encoding: str) -> None:
    rows = [{"a": "caf\xe9", "b": "NA"}, {"a": "b", "b": "c"}]
    for name, text in (
        ("rows.csv", "a,b\ncaf\xe9,NA\nb,c\n"),
        ("rows.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)),
        ("rows.json", json.dumps(rows, ensure_ascii=False, indent=1)),
    ):
        assert rows_of(fetch(put(name, text.encode(encoding)), encoding=encoding)) == rows


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("indent", [None, 1])
def test_json_may_be_lines_a_list_or_an_object_with_a_list_with_or_without_a_mark(
    mark: bytes, indent: int | None
) -> None:
    for value in (ROWS, {"version": 1, "data": ROWS, "tags": ["a"]}):
        assert rows_of(fetch(put("rows.json", mark + json.dumps(value, indent=indent).encode()))) == ROWS
    assert rows_of(fetch(put("rows.json", mark + b"\n" + jsonl(ROWS)))) == ROWS
    assert rows_of(fetch(put("rows.jsonl", mark + jsonl(ROWS[:1])))) == ROWS[:1]
    assert rows_of(fetch(put("rows.jsonl", b'{"data": [{"a": 1}]}\n'))) == [{"data": [{"a": 1}]}]
    assert rows_of(fetch(put("rows.json", b'{"a": 1}'))) == [{"a": 1}]


def test_a_column_that_cannot_be_read_is_no_obstacle_where_it_is_not_wanted() -> None:
    table = pa.table(
        {
            "a": ["x", "y"],
            "map": pa.array([[("k", "v")], []], pa.map_(pa.string(), pa.string())),
            "took": pa.array([3, 4], pa.duration("s")),
        }
    )
    pq.write_table(table, "rows.parquet")
    put("folder/rows.parquet", Path("rows.parquet").read_bytes())
    for dataset in ("rows.parquet", "folder"):
        assert_one_line(fetch(dataset), "in 'map'", "sources.x.columns", "'a', 'map', 'took'")
        assert rows_of(fetch(dataset, columns={"b": "a"})) == [{"b": "x"}, {"b": "y"}]
        assert fetch(dataset, columns=["z"]).exit_code == 1
        for file in Path("data/sources").iterdir():
            file.unlink()


def test_a_file_may_be_pinned_by_its_hash() -> None:
    path = put("rows.jsonl", jsonl(ROWS))
    fetch(path)
    digest = counts()["revision"]
    assert rows_of(fetch(path, revision=digest[:24])) == ROWS
    Path("data/sources/x.jsonl").unlink()
    Path("data/sources/x.json").unlink()
    assert_one_line(fetch(path, revision="sha256:0123456789abcdef"), "sources.x.revision", "has changed", digest)
    assert_one_line(fetch(path, revision="v1"), "sources.x.revision", digest)


BROKEN: dict[str, tuple[str, bytes, str]] = {
    "no Parquet": ("a.parquet", b"PAR1 no", "cannot read a.parquet"),
    "Parquet cut off": ("a.parquet", parquet(ROWS)[:-20], "cannot read a.parquet"),
    "CSV of uneven rows": ("a.csv", b"a,b\n1,2\n1,2,3\n", "a.csv:3: has 3 cells, and the header 2"),
    "CSV of longer rows": ("a.csv", b"a,b\n1,2,3\n4,5,6\n", "a.csv:2: has 3 cells"),
    "CSV of shorter rows": ("a.csv", b"a,b\n\n1\n", "a.csv:3: has 1 cells"),
    "CSV with an open quote": ("a.csv", b'a,b\n1,2\n"x,3\n4,5\n', "check the quotes"),
    "CSV with text after a quote": ("a.csv", b'a,b\n1,"x" y\n', "a.csv:2: "),
    "CSV with equal columns": ("a.csv", b"a,b,a\n1,2,3\n", "a.csv:1: has two columns 'a'; rename one"),
    "CSV of semicolons": ("a.csv", b"a;b\n1;2\n", "sources.x.delimiter"),
    "CSV of semicolons and commas": ("a.csv", b"a;b\n1,5;2\n", "sources.x.delimiter"),
    "CSV of bytes": ("a.csv", b"a,b\n\xff\xfe,2\n", "byte 0xff is not utf-8; name its encoding as sources.x.encoding"),
    "JSON of cp1252": (
        "a.jsonl",
        b'{"a": "x"}\n{"a": "caf\xe9"}\n',
        "a.jsonl:2: byte 0xe9 is not utf-8; name its encoding",
    ),
    "JSON of UTF-16": ("a.jsonl", '{"a": 1}\n'.encode("utf-16"), "a.jsonl:1: byte 0xff is not utf-8"),
    "an object with two lists": ("a.json", b'{"a": [{"x": 1}], "b": [{"y": 2}]}', "several lists ('a', 'b')"),
    "a list of objects and texts": ("a.json", b'{"a": [{"x": 1}, "b"]}', "element 2 is 'b'"),
    "empty CSV": ("a.csv", b"", "a.csv"),
    "CSV of a header": ("a.csv", b"a,b\n", "has no rows"),
    "no JSON": ("a.jsonl", b'{"a": 1}\n{"a": \n', "a.jsonl:2: not a JSON object"),
    "a list that is cut off": ("a.json", b'[{"a": 1},', "a.json: not valid JSON"),
    "a list of texts": ("a.json", b'["a"]', "element 1 is 'a'"),
    "no gzip": ("a.jsonl.gz", jsonl(ROWS), "cannot read a.jsonl.gz"),
    "gzip cut off": ("a.jsonl.gz", gzip.compress(jsonl(ROWS) * 50)[:-30], "cannot read a.jsonl.gz"),
    "empty lines": ("a.jsonl", b"\n\n", "has no rows"),
    "another kind of file": ("a.pdf", b"%PDF", "has an unsupported type"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line_and_leaves_nothing(name: str) -> None:
    path, data, says = BROKEN[name]
    assert_one_line(fetch(put(path, data)), says)


def test_a_dataset_whose_rows_come_from_code_is_refused_and_the_code_not_run() -> None:
    put("tricky/tricky.py", b"open('ran', 'w')")
    put("tricky/rows.jsonl", jsonl(ROWS))
    assert_one_line(fetch("tricky"), "tricky.py", "never run")
    assert not Path("ran").exists()
    assert rows_of(fetch("tricky/rows.jsonl")) == ROWS


@pytest.mark.parametrize("revision", [COMMIT, TAG])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_of_the_hub_is_fetched_at_its_revision(hub: Hub, revision: str, streaming: bool) -> None:
    assert rows_of(fetch("owner/data", revision=revision, streaming=streaming, limit=3)) == ROWS[:3]
    assert counts()["revision"] == COMMIT


def test_offline_the_cache_serves_the_pinned_revision_and_no_other(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch("owner/data", revision=COMMIT)
    before = Path("data/sources/x.jsonl").read_bytes()
    Path("data/sources/x.jsonl").unlink()
    Path("data/sources/x.json").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert_one_line(fetch("owner/data", revision="f" * 40), "HF_HUB_OFFLINE", "hf download owner/data")
    assert_one_line(fetch("owner/other", revision=COMMIT), "HF_HUB_OFFLINE", "hf download owner/other")
    assert_one_line(fetch("owner/data", revision=COMMIT, streaming=True), "streaming", "HF_HUB_OFFLINE")
    rows_of(fetch("owner/data", revision=COMMIT))
    assert Path("data/sources/x.jsonl").read_bytes() == before
    assert len(hub.requests) == asked


@pytest.mark.parametrize("revision", [None, "main"])
def test_a_dataset_of_the_hub_must_be_pinned(hub: Hub, revision: str | None) -> None:
    assert_one_line(
        fetch("owner/data", revision=revision), "sources.x.revision", "git ls-remote", "datasets/owner/data"
    )
    assert not hub.requests


@pytest.mark.parametrize("streaming", [False, True])
def test_an_unknown_revision_names_those_that_exist(hub: Hub, streaming: bool) -> None:
    said = ("owner/data has no revision 'v9'", "'main', 'v1.0'")
    assert_one_line(fetch("owner/data", revision="v9", streaming=streaming), *said)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("status", "code", "token", "says"),
    [
        (401, "RepoNotFound", None, "the hub has no dataset owner/data that is public; check its name"),
        (404, "RepoNotFound", "hf_secretsecret", "the hub has no dataset owner/data that this token sees"),
        (401, "", "hf_secretsecret", "the hub refuses the token"),
        (401, "GatedRepo", None, "owner/data is gated"),
        (403, "GatedRepo", "hf_secretsecret", "use a token of an account that has access"),
        (403, "", "hf_secretsecret", "the hub denies access to owner/data (403)"),
    ],
)
def test_what_the_hub_refuses_is_one_line_without_the_token(
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    code: str,
    token: str | None,
    says: str,
    streaming: bool,
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.refused["owner/data"] = (status, code)
    result = fetch("owner/data", revision=TAG, streaming=streaming)
    assert_one_line(result, says)
    assert "secret" not in result.output


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_that_cannot_be_reached_is_one_line_after_few_tries(
    monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        go_online(monkeypatch, f"http://127.0.0.1:{taken.getsockname()[1]}")
        result = fetch("owner/data", revision=COMMIT, streaming=streaming)
    assert sum(waits) < 60
    assert_one_line(result, "cannot reach the hub at http://127.0.0.1", "ConnectError", "HTTPS_PROXY")
