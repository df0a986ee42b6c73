"""What reads bytes of unknown origin, as functions of bytes: each returns, or raises `InputError` and nothing else.

`python -m tests.faults.fuzz_targets TARGET [libFuzzer's options]` runs one under atheris; test_fuzz.py runs all of them
on what hypothesis finds.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from align.checks.prompts import CheckedPrompt
from align.compare.join import compare
from align.core.errors import InputError
from align.core.files import read_csv, read_json
from align.core.params import SECTIONS, Params, Settings
from align.core.rows import (
    AnchorScore,
    Answer,
    CheckedAnswer,
    EvalPrompt,
    Instruction,
    Judgement,
    KnownPrompt,
    PreferencePair,
    Prompt,
    Response,
    Row,
    ScoredPair,
    ScoredResponse,
    TrainingSample,
    Transcript,
    read_rows,
    write_rows,
)
from align.data.conversations import Unusable
from align.data.judgements import judgements_of_tree
from align.data.message_trees import MessageTree
from align.data.transcripts import parse_pair
from align.judge.request import parse_score, without_forgery
from align.report.schemas import ModelMeasures, RewardMeasures, ScoreCounts, read_measures

ROWS: tuple[type[Row], ...] = (
    AnchorScore,
    Answer,
    CheckedAnswer,
    CheckedPrompt,
    EvalPrompt,
    Instruction,
    Judgement,
    KnownPrompt,
    MessageTree,
    PreferencePair,
    Prompt,
    Response,
    ScoredPair,
    ScoredResponse,
    TrainingSample,
    Transcript,
)
_SCRATCH = tempfile.TemporaryDirectory()  # gone when the process ends
FOLDER = Path(_SCRATCH.name)


class _Anything(Settings):
    """A section with a key of each type."""

    number: float
    count: int
    text: str
    flag: bool
    names: list[str] | None


def _file(data: bytes, name: str) -> Path:
    path = FOLDER / name
    path.write_bytes(data)
    return path


def rows(data: bytes) -> None:
    """Every kind of row; what could be read can be written, and is the same when it is read again."""
    path = _file(data, "rows.jsonl")
    for kind in ROWS:
        try:
            found = read_rows(path, kind)
        except InputError:
            continue
        write_rows(FOLDER / "again.jsonl", found)
        assert read_rows(FOLDER / "again.jsonl", kind) == found


def params(data: bytes) -> None:
    """params.yaml: the file, then its values, in place of a section."""
    try:
        values = Params.read(_file(data, "params.yaml"))
    except InputError:
        return
    _ = values.iterations


def section(data: bytes) -> None:
    """The sections of params.yaml, one of which is of unknown origin."""
    text = "".join(f"{name}: {{}}\n" for name in SECTIONS if name not in ("seed", "iterations", "sft"))
    path = _file(b"seed: 1\niterations: {m1: m0}\n" + text.encode() + b"sft:\n  " + data, "section.yaml")
    try:
        Params.read(path).section("sft", _Anything)
    except InputError:
        return


def jsons(data: bytes) -> None:
    """The JSON and CSV files of stages."""
    path = _file(data, "file.json")
    for kind in (ModelMeasures, RewardMeasures, ScoreCounts):
        try:
            read_measures(path, kind)
        except InputError:
            continue
    with suppress(InputError):
        read_json(path)
    with suppress(InputError):
        read_csv(path, ["a"])


def score(data: bytes) -> None:
    """A judge's reply: a score from 0 to 5 or none."""
    text = data.decode("utf-8", errors="replace")
    assert parse_score(text) in (None, 0, 1, 2, 3, 4, 5)
    assert parse_score(f"score: 3\n{without_forgery(text)}\nscore: 4") == 4


def transcripts(data: bytes) -> None:
    """A pair of hh-rlhf transcripts, put together from pieces so that they meet often."""
    pieces = ["\n\nHuman:", "\n\nAssistant:", " ", "a", "\n", "Human:", "\u2028", "b"]
    half = len(data) // 2
    sides = ["".join(pieces[byte % 8] for byte in part) for part in (data[:half], data[half:])]
    try:
        pair = parse_pair("p", Transcript.model_construct(chosen=sides[0], rejected=sides[1]))
    except Unusable:
        return
    assert pair.messages
    assert pair.chosen != pair.rejected


def trees(data: bytes) -> None:
    """OpenAssistant message trees."""
    try:
        found = read_rows(_file(data, "trees.jsonl"), MessageTree)
    except InputError:
        return
    for tree in found:
        judgements_of_tree(tree, language=None)


def diff(data: bytes) -> None:
    """Two JSONL files, which are the halves of the data, row by row."""
    left, _, right = data.partition(b"\x00")
    try:
        with compare(_file(left, "a.jsonl"), _file(right, "b.jsonl")) as found:
            json.dumps(found.as_dict(None), allow_nan=False)
    except InputError:
        return


TARGETS: dict[str, Callable[[bytes], None]] = {
    "rows": rows,
    "params": params,
    "section": section,
    "jsons": jsons,
    "score": score,
    "transcripts": transcripts,
    "trees": trees,
    "diff": diff,
}


def main() -> None:
    """Fuzz the target that the command line names."""
    atheris = import_module("atheris")
    target = TARGETS[sys.argv.pop(1)]
    atheris.instrument_all()
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
