"""Small inputs in shapes that people have, through the real stages; skipped where their folder is missing."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from align.core.rows import Instruction, PreferencePair, read_rows
from stages import fetch_data, prepare_data
from tests.committed import COMMITTED, REPOSITORY, write_params

FOLDER = Path(os.environ.get("ALIGN_CASES", REPOSITORY.parent / "shared" / "data" / "cases"))
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no folder {FOLDER}")

CHERRY, CORNFLOWER = ("Name a red fruit.", "A cherry."), ("Name a blue flower.", "A cornflower.")
FEW = {"columns": ["prompt", "completion"]}
# File -> what is set beside it, and the prompts and completions of its instructions.
INSTRUCTIONS: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "bigid.parquet": (FEW, [CHERRY, CORNFLOWER]),
    "bom.csv": ({}, [CHERRY, CORNFLOWER]),
    "bool_answers.csv": ({}, [("Is ice cold?", "True"), ("Is fire cold?", "False")]),
    "categorical.parquet": ({}, [CHERRY, CORNFLOWER]),
    "chat_tool_calls.parquet": ({}, [CHERRY, CHERRY]),
    "cp1252.csv": ({"encoding": "cp1252"}, [("Name a caf\xe9.", "Noir."), ("Name a fruit.", "A cherry.")]),
    "cp1252.jsonl": ({"encoding": "cp1252"}, [("Name a caf\xe9.", "Noir.")]),
    "decimal.parquet": (FEW, [CHERRY, CORNFLOWER]),
    "duration.parquet": (FEW, [CHERRY, CORNFLOWER]),
    "largestring.parquet": ({}, [CHERRY, CORNFLOWER]),
    "list_bom.json": ({}, [CHERRY, CORNFLOWER]),
    "map.parquet": (FEW, [CHERRY, CORNFLOWER]),
    "messages_extra_key.jsonl": ({}, [CHERRY, CORNFLOWER]),
    "messages_parts.jsonl": ({}, [CHERRY]),
    "messages_tool.jsonl": ({}, [CHERRY, CORNFLOWER]),
    "nan.parquet": (FEW, [CHERRY, CORNFLOWER]),
    "nested_list.json": ({}, [("Name a fruit.", "A cherry.")]),
    "number_answers.csv": (
        {},
        [("What is 2 + 2?", "4"), ("What is 3 + 4?", "7"), ("What is the code of door nine?", "0042")],
    ),
    "oasst_flat.csv": ({}, [CHERRY, CORNFLOWER]),
    "oasst_hub.parquet": ({}, [CHERRY, CORNFLOWER]),
    "oasst_pandas.jsonl": ({}, [CHERRY, CORNFLOWER]),
    "oasst_pandas.parquet": ({}, [CHERRY, CORNFLOWER]),
    "quoted_newline.csv": ({}, [("Write a poem,\nin two lines.", 'Rain falls,\n"so" it does.'), CORNFLOWER]),
    "semicolon.csv": ({"delimiter": ";"}, [CHERRY, ("Name a blue flower.", "A cornflower, say.")]),
    "sharegpt.jsonl": ({}, [CHERRY, CORNFLOWER]),
    "u2028.jsonl": ({}, [(f"Name {n} red things.", "A rose\u2028and a cherry\x85.") for n in range(1, 5)]),
    "utf16.jsonl": ({"encoding": "utf-16"}, [("Name a fruit.", "A cherry.")]),
}
# File -> what the one line of fetch_data says where nothing is set.
REFUSED = {
    "bigid.parquet": "holds 1234567890123456789 in 'user'",
    "cp1252.csv": "sources.x.encoding",
    "cp1252.jsonl": "cp1252.jsonl:1: byte 0xe9 is not utf-8; name its encoding as sources.x.encoding",
    "decimal.parquet": "holds a Decimal in 'price'",
    "duration.parquet": "holds a timedelta in 'took'",
    "dup_header.csv": "dup_header.csv:1: has two columns 'completion'",
    "map.parquet": "in 'meta'",
    "nan.parquet": "holds nan in 'toxicity'",
    "semicolon.csv": "sources.x.delimiter",
    "utf16.jsonl": "sources.x.encoding",
}
PREFERENCES = {
    "ultrafeedback.jsonl": ([("A cherry.", "A banana."), ("A cornflower.", "A rose.")], [5.5, 5.0], 0),
    "trl_explicit_pref.jsonl": ([("A cherry.", "A banana."), ("A cornflower.", "A rose.")], [None, None], 0),
    "hh_extra_column.jsonl": ([("A cherry.", "A banana.")], [None], 0),
    "hh_odd.jsonl": (None, None, None),
}
ELSEWHERE = {"README.md", "base_variants.py", "dvc_lock_conflict.yaml", "judge_replies.txt"}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Return a function that fetches a case and prepares it in place of the seed data of its kind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/seed").symlink_to(COMMITTED / "data/seed", target_is_directory=True)

    def stages(name: str, kind: str, source: dict[str, Any], **changes: Any) -> Result:
        dataset = {"dataset": str(FOLDER / name), **source}
        prepare = {kind: "data/sources/x.jsonl", **changes}
        write_params(Path(), {"sources": {"x": dataset}, "prepare_data": prepare})
        fetched = CliRunner().invoke(fetch_data.main, ["x"])
        return CliRunner().invoke(prepare_data.main, []) if fetched.exit_code == 0 else fetched

    return stages


def test_every_case_is_tried() -> None:
    tried = {*INSTRUCTIONS, *REFUSED, *PREFERENCES, *ELSEWHERE}
    assert {path.name for path in FOLDER.iterdir()} == tried


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_instructions_in_the_shape_are_read(name: str, run: Callable[..., Result]) -> None:
    source, expected = INSTRUCTIONS[name]
    result = run(name, "instructions", source)
    assert result.exit_code == 0, result.output
    rows = read_rows(Path("data/m0/ift.jsonl"), Instruction)
    assert [(row.prompt, row.completion) for row in rows] == expected
    dropped = json.loads(Path("data/metrics/prepare_data.json").read_text()).get("instructions_dropped", {})
    assert dropped == ({"a turn of a tool": 1} if name == "messages_tool.jsonl" else {})


@pytest.mark.parametrize("name", [name for name in INSTRUCTIONS if name.startswith("oasst")])
def test_ranks_in_the_shape_are_read(name: str, run: Callable[..., Result]) -> None:
    changes = {"judgements_format": "message_trees", "max_score_share": 1.0, "off_topic_negatives": 0}
    result = run(name, "judgements", {}, **changes, cut_off_negatives=0)
    assert result.exit_code == 0, result.output
    counts = json.loads(Path("data/metrics/prepare_data.json").read_text())
    assert counts["eft"] + counts["eval_judgements"] == 4


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_one_line_that_names_the_setting(name: str, run: Callable[..., Result]) -> None:
    result = run(name, "instructions", {})
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert REFUSED[name] in line


@pytest.mark.parametrize("name", PREFERENCES)
def test_preferences_in_the_shape_are_read(name: str, run: Callable[..., Result]) -> None:
    pairs, margins, left_out = PREFERENCES[name]
    result = run(name, "preferences", {}, unusable_preferences="drop")
    if name.startswith("hh_extra"):  # a single pair cannot be split
        assert "at least two different prompts, found 1 usable" in result.stderr
        return
    assert result.exit_code == 0, result.output
    rows = [
        row
        for side in ("train", "test")
        for row in read_rows(Path(f"data/prepared/preferences/{side}.jsonl"), PreferencePair)
    ]
    counts = json.loads(Path("data/metrics/prepare_data.json").read_text())
    with (FOLDER / name).open(encoding="utf-8") as lines:
        assert len(rows) + sum(counts["preferences_dropped"].values()) == sum(1 for _ in lines)
    if pairs is not None:
        rows.sort(key=lambda row: row.id)
        assert [(row.chosen, row.rejected) for row in rows] == pairs
        assert [row.margin for row in rows] == margins
        assert sum(counts["preferences_dropped"].values()) == left_out
