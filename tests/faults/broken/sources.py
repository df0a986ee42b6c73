"""Broken sources of stage fetch_data, and rows in other formats than ours."""

import gzip
import json
from collections.abc import Iterator

from tests.faults.broken.workspace import Break, Case, both, param, put


def _source(path: str = "a.csv", content: str | bytes = "a,b\n1,2\n", **entry: object) -> Break:
    earlier = put("data/sources/x.jsonl", '{"a": 1}\n')  # which must survive
    return both(put(path, content), earlier, param("sources", {"x": {"dataset": path, **entry}}))


SOURCES: dict[str, tuple[Break, str]] = {
    "no such entry": (param("sources", {"y": {"dataset": "a.csv"}}), "sources.x: missing"),
    "a list of entries": (param("sources", ["a.csv"]), "params.yaml: sources: expected"),
    "an entry that is a text": (param("sources", {"x": "a.csv"}), "sources.x: expected keys such as dataset"),
    "no dataset": (param("sources", {"x": {"split": "train"}}), "sources.x.dataset: missing"),
    "an unknown key": (_source(splitt="train"), 'did you mean "sources.x.split"?'),
    "a limit of 0": (_source(limit=0), "sources.x.limit: should be greater than or equal to 1"),
    "no columns": (_source(columns=[]), "sources.x.columns"),
    "a column that is not there": (_source(columns=["c"]), "no row has 'c'; there are 'a', 'b'"),
    "a split that is not there": (_source(path="d/train.csv", dataset="d", split="dev"), "there is no 'dev'"),
    "no such file": (param("sources", {"x": {"dataset": "data/no.csv"}}), "no such file"),
    "no such folder": (param("sources", {"x": {"dataset": "./nowhere"}}), "no such folder"),
    "no such folder in one that is there": (param("sources", {"x": {"dataset": "data/no"}}), "no such folder: data/no"),
    "an empty folder": (_source(path="d/.hidden", dataset="d"), "sources.x"),
    "a file of another kind": (_source("a.pdf"), "has an unsupported type"),
    "not pinned": (param("sources", {"x": {"dataset": "owner/data"}}), "sources.x.revision: missing"),
    "pinned to main": (
        param("sources", {"x": {"dataset": "owner/data", "revision": "main"}}),
        "a moving branch",
    ),
    "offline, and not in the cache": (
        param("sources", {"x": {"dataset": "owner/data", "revision": "a" * 40}}),
        "HF_HUB_OFFLINE is set",
    ),
    "changed since it was pinned": (_source(revision="sha256:0123456789ab"), "has changed"),
    "code of its own": (both(_source("d/a.csv", dataset="d"), put("d/d.py", "1/0")), "never run"),
    "CSV of uneven rows": (_source(content="a,b\n1,2,3\n1\n1,2,3,4\n"), "a.csv:2: has 3 cells"),
    "CSV without rows": (_source(content="a,b\n"), "has no rows"),
    "JSON in Parquet's place": (_source("a.parquet", "{}"), "cannot read a.parquet"),
    "a broken line": (_source("a.jsonl", '{"a": 1}\n{"a"\n'), "a.jsonl:2: not a JSON object"),
    "NaN": (_source("a.jsonl", '{"a": NaN}\n'), "a.jsonl:1: not a JSON object: NaN"),
    "gzip cut off": (_source("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9)[:-9]), "cannot read a.jsonl.gz"),
}


def _told(file_format: str, *rows: object) -> Break:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    changes = (param("prepare_data.instructions", "told.jsonl"), param("prepare_data.instructions_format", file_format))
    return both(put("told.jsonl", text), *changes)


FLAT = {"message_id": "m", "parent_id": None, "message_tree_id": "m", "text": "Why?", "role": "prompter", "lang": "en"}
INSTRUCTIONS: dict[str, tuple[Break, str]] = {
    "an unknown format": (_told("nosuch", {}), "prepare_data.instructions_format: should be"),
    "no completion": (_told("prompt_completion", {"prompt": "a"}), 'told.jsonl:1: "completion" is missing'),
    "an instruction that is not there": (_told("alpaca", {}), 'told.jsonl:1: "instruction" is missing'),
    "a prompt of no turns": (_told("prompt_completion", {"prompt": [], "completion": "a"}), "prompt should be a list"),
    "one message alone": (
        _told("messages", {"messages": [{"role": "user", "content": "a"}]}),
        "has no instruction (1 'no reply')",
    ),
    "turns of a tool alone": (
        _told("messages", {"messages": [{"role": "tool", "content": "a"}] * 2}),
        "has no instruction (1 'a turn of a tool')",
    ),
    "system messages alone": (
        _told("messages", {"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]}),
        "has no instruction (1 'no reply')",
    ),
    "trees of another language": (_told("message_trees", {**FLAT, "lang": "de"}), "1 'another language'"),
    "a message twice": (
        _told("message_trees", FLAT, FLAT),
        "told.jsonl:2: duplicate message_id 'm', first used in line 1",
    ),
    "a rank that is a text": (_told("message_trees", FLAT, {**FLAT, "message_id": "n", "rank": "0"}), '"rank" should'),
    "max_instructions of 0": (param("prepare_data.max_instructions", 0), "prepare_data.max_instructions: should be"),
    "max_judgements below a question": (param("prepare_data.max_judgements", 3), "of the first question; raise it"),
}


def cases() -> Iterator[Case]:
    """Yield the cases."""
    for name, (act, says) in SOURCES.items():
        yield Case("source", name, "fetch_data x", act, (says,))
    for name, (act, says) in INSTRUCTIONS.items():
        yield Case("instructions in other formats", name, "prepare_data", act, (says,))
