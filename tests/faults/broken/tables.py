"""Broken files that the summary and `align` read, and broken command lines."""

import json
from collections.abc import Iterator
from pathlib import Path

from tests.faults.broken.workspace import Break, Case, both, nothing, param, put, row, value, without

SCORES, REWARD, EVAL = "data/metrics/m1/scores.json", "data/metrics/reward.json", "data/eval/m1.json"
CHANGES = "data/diff/m1.json"
HISTORY, CALIBRATION = "data/ppo/history.csv", "data/reward/calibration.csv"
READERS = {SCORES: "build_preferences m1 m0", REWARD: "summary", EVAL: "summary", CHANGES: "summary"}


def _cut(path: str) -> Break:
    return lambda: put(path, Path(path).read_bytes()[:-20])()


def _gone(path: str) -> Break:
    return lambda: Path(path).unlink()


def _csv(path: str, old: str, new: str) -> Break:
    def act() -> None:
        text = Path(path).read_text()
        assert old in text
        Path(path).write_text(text.replace(old, new))

    return act


JSON: dict[str, tuple[str, Break, str]] = {
    "a key missing": (SCORES, without(SCORES, "failure_rate"), "failure_rate is missing"),
    "a key missing within": (SCORES, without(SCORES, "as_judge", "spearman"), "as_judge.spearman is missing"),
    "a text for a number": (SCORES, value(SCORES, "std", to="1.0"), "std cannot be '1.0'"),
    "a list for a number": (REWARD, value(REWARD, "accuracy", to=[1]), "accuracy cannot be [1]"),
    "a histogram of other bins": (SCORES, value(SCORES, "histogram", to=[1, 2]), "histogram cannot be [1, 2]"),
    "null for a count": (SCORES, value(SCORES, "rows", to=None), "rows cannot be None"),
    "a text for an object": (REWARD, value(REWARD, "by_length", to="x"), "by_length cannot be 'x'"),
    "a wrong object within": (REWARD, value(REWARD, "by_length", to={"x": {}}), "by_length.x.pairs is missing"),
    "a number that is a text": (CHANGES, value(CHANGES, "ift", to={"rows": "3"}), "ift.rows cannot be '3'"),
    "counts that are texts": (SCORES, value(SCORES, "failures", to={"x": "1"}), "failures.x cannot be '1'"),
}
CSV: dict[str, tuple[str, Break, str]] = {
    "empty": (HISTORY, put(HISTORY, ""), "column update, mean_reward"),
    "a column missing": (HISTORY, _csv(HISTORY, "kl,", "kl2,"), "column kl is missing"),
    "a cell missing": (HISTORY, _csv(HISTORY, ",4,0.0", ",4"), ":2: not a row of numbers"),
    "a cell too many": (HISTORY, _csv(HISTORY, ",4,0.0", ",4,0.0,1"), ":2: not a row of numbers"),
    "a text": (HISTORY, _csv(HISTORY, ",4,", ",four,"), ":2: not a row of numbers"),
    "an empty cell": (CALIBRATION, _csv(CALIBRATION, "0.5", ""), ":2: not a row of numbers"),
    "a quote left open": (CALIBRATION, _csv(CALIBRATION, "0.5", '"0.5'), "not a row of numbers"),
    "NUL bytes": (CALIBRATION, _csv(CALIBRATION, "0.5", "0\0"), "not a row of numbers"),
    "invalid UTF-8": (CALIBRATION, put(CALIBRATION, b"predicted,observed,pairs\n\xff,1,1\n"), "not a row of numbers"),
    "missing": (CALIBRATION, lambda: Path(CALIBRATION).unlink(), "no such file"),
}
OTHER_ROWS: dict[str, tuple[Break, str]] = {
    "an answer missing": (_cut("data/eval/m1.jsonl"), "data/eval/m1.jsonl:3: not a JSON object"),
    "answers to fewer prompts": (
        lambda: put("data/eval/m1.jsonl", Path("data/eval/m1.jsonl").read_text().split("\n")[0])(),
        "data/eval/m1.jsonl: its rows differ from m0's",
    ),
    "answers to other prompts": (
        row("data/eval/ppo.jsonl", 1, id="e9"),
        "ppo.jsonl: its rows differ from m0's",
    ),
    "checked answers to other prompts": (
        row("data/eval/m1.checks.jsonl", 1, id="c9"),
        "data/eval/m1.checks.jsonl: its rows differ from m0's",
    ),
    "other checks of the same prompt": (
        row("data/eval/m1.checks.jsonl", 2, strict=[True, False], loose=[True, False]),
        "data/eval/m1.checks.jsonl: has other numbers of checks than m0's",
    ),
    "checked answers of one model missing": (_gone("data/eval/m1.checks.jsonl"), "m1.checks.jsonl: no such file"),
    "a checked answer without checks": (
        row("data/eval/m0.checks.jsonl", 1, strict=[]),
        '"strict" List should have at least 1 item',
    ),
}
ROW = '{"id": 1, "text": "x"}\n'
DIFF: dict[str, tuple[Break, str]] = {
    "cut off": (put("b.jsonl", ROW + ROW[:10]), "b.jsonl:2: not a JSON object"),
    "invalid UTF-8": (put("b.jsonl", b'{"id": "\xff"}'), "b.jsonl:1: not a JSON object"),
    "an array": (put("b.jsonl", "[1]"), "b.jsonl:1: not a JSON object"),
    "NaN": (put("b.jsonl", '{"id": NaN}'), "b.jsonl:1: not a JSON object: NaN"),
    "half a surrogate pair": (put("b.jsonl", r'{"id": "\udc00"}'), "b.jsonl:1: not a JSON object: half a surrogate"),
    "nested deeply": (put("b.jsonl", '{"id": 1, "x": ' + "[" * 100_000), "b.jsonl:1: not a JSON object: nested"),
    "a number of 5000 digits": (put("b.jsonl", '{"id": ' + "9" * 5000 + "}"), "b.jsonl:1: not a JSON object"),
    "a key twice in an object": (put("b.jsonl", '{"id": 1, "id": 2}'), "b.jsonl:1: not a JSON object: key 'id'"),
    "no key column": (put("b.jsonl", '{"text": "x"}'), "b.jsonl: no row has the key column id"),
    "a row without the key": (put("b.jsonl", ROW + '{"text": "x"}'), "b.jsonl: row 2 has no key column id"),
    "a key that is a list": (put("b.jsonl", '{"id": [1]}'), "b.jsonl: row 1 has a list or an object as its key"),
    "columns of one name": (
        put("b.jsonl", '{"id": 1, "A": 1, "a": 2}'),
        "b.jsonl: columns A and a differ only in case",
    ),
    "missing": (nothing, "b.jsonl: no such file"),
    "a directory": (lambda: Path("b.jsonl").mkdir(), "b.jsonl: is a directory"),
    "a link to itself": (lambda: Path("b.jsonl").symlink_to("b.jsonl"), "b.jsonl"),
}
COMMANDS: dict[str, tuple[str, str]] = {
    "diff: nothing there": ("align diff m7 m8", "nothing to compare: 'm7' and 'm8'"),
    "diff: a data set that is not there": ("align diff m0 m1 --what answer", "is not one of"),
    "diff: a data set of one side": ("align diff m0 m1 --what scores", "data/m0/scores.jsonl: no such file"),
    "diff: a path out of the data": ("align diff ../../etc m1 --what ift", "no such file"),
    "diff: an escape": ("align diff \x1b[2J m1", "nothing to compare: '\\x1b[2J'"),
    "diff: a name of 5000 letters": (f"align diff {'m' * 5000} m1", "nothing to compare"),
    "diff: a limit below 0": ("align diff m0 m1 --limit -1", "--limit"),
    "diff: no revision": ("align diff m0@ m1", "'m0@': no revision after the @"),
    "diff: an unknown revision": ("align diff m0@nope m1", "DVC cannot open this folder"),
    "diff: an unknown format": ("align diff m0 m1 --format xml", "--format"),
    "diff: a page without a name": ("align diff m0 m1 --format html", "-o FILE belong together"),
    "diff: a tolerance below 0": ("align diff m0 m1 --tolerance -1", "--tolerance"),
    "diff: a tolerance that is no number": (
        "align diff m0 m1 --tolerance nan",
        "--tolerance: expected a number from 0",
    ),
    "diff: a file that cannot be written": (
        "align diff m0 m1 --format html -o params.yaml/x",
        "params.yaml/x: cannot write",
    ),
    "diff: one side only": ("align diff m0", "Missing argument 'B'"),
    "iterate: --max 0": ("align iterate --max 0", "--max: expected 1 or more"),
    "iterate: --max -1": ("align iterate --max -1", "--max: expected 1 or more"),
    "iterate: --max x": ("align iterate --max x", "--max"),
    "iterate: no --max": ("align iterate", "--max"),
    "iterate: an unknown measure": ("align iterate --max 1 --until beauty", "Invalid value for '--until': 'beauty'"),
    "export: a model that is not there": ("align export m9 --to out", "no model 'm9'"),
    "export: no folder": ("align export m0", "Missing option '--to'"),
    "export: a folder with files": ("align export m0 --to models/base", "models/base: holds"),
    "export: a file as folder": ("align export m0 --to params.yaml", "params.yaml: Not a directory"),
    "export: a folder in a file": ("align export m0 --to params.yaml/x", "params.yaml/x: cannot write"),
    "export: a base that is none": ("align export m0 --to out --base data", "data: holds no base model"),
    "export: an unknown dtype": ("align export m0 --to out --dtype int8", "--dtype"),
    "export: a licence that is none": ("align export m0 --to out --license a:b", "--license: expected"),
    "push-to-hub: an id without an owner": ("align push-to-hub m0 name", "give OWNER/NAME"),
    "push-to-hub: a path as id": ("align push-to-hub m0 ../name", "give OWNER/NAME"),
    "an unknown command": ("align explode", "No such command 'explode'"),
    "an unknown option": ("judge m1 m0 --fast", "No such option"),
    "no parent": ("dpo m1", "Missing argument 'PARENT'"),
    "a model that is not there": ("evaluate m9", "models/m9: holds no model"),
    "a judge that is not there": ("evaluate m0 --judge m9", "models/m9: holds no model"),
    "an iteration that is not there": ("build_preferences m9 m0", "data/m9/scores.jsonl: no such file"),
    "a parent that is not there": ("dpo m1 m9", "models/m9/adapter_config.json: no such file"),
    "a path option, which no stage has": ("sft --base nowhere", "No such option"),
}
ITERATE: dict[str, tuple[Break, str]] = {
    "an empty params.yaml": (put("params.yaml", ""), "params.yaml: expected sections"),
    "iterations that no name can follow": (param("iterations", {"first": "m0"}), "iterations.first: no next name"),
}


def cases() -> Iterator[Case]:
    """Yield the cases."""
    for name, (path, act, says) in JSON.items():
        yield Case("JSON of a stage", name, READERS[path], act, (path, says))
    for path, command in READERS.items():
        broken = {"cut off": _cut(path), "empty": put(path, ""), "a list": put(path, "[]"), "null": put(path, "null")}
        broken |= {"NaN": put(path, '{"rows": NaN}'), "invalid UTF-8": put(path, b'{"\xff": 1}')}
        broken |= {"nested deeply": put(path, "[" * 100_000), "missing": _gone(path)}
        for name, act in broken.items():
            yield Case("JSON of a stage", f"{path}: {name}", command, act, (f"{path}: ",))
    for name, (path, act, says) in CSV.items():
        yield Case("CSV of a stage", f"{path}: {name}", "summary", act, (path, says))
    for name, (act, says) in OTHER_ROWS.items():
        yield Case("answers of models", name, "summary", act, (says,))
    for name, (act, says) in DIFF.items():
        both_sides = both(put("a.jsonl", ROW), act)
        yield Case("align diff", name, "align diff a.jsonl b.jsonl", both_sides, (says,))
    for name, (command, says) in COMMANDS.items():
        yield Case("command line", name, command, nothing, (says,))
    for name, (act, says) in ITERATE.items():
        yield Case("align iterate", name, "align iterate --max 1", act, (says,))
    gates = both(value(SCORES, "std", to=0.0), value(SCORES, "failures", to={json.dumps("x" * 5000): 1}))
    yield Case("JSON of a stage", "a gate that is not passed", READERS[SCORES], gates, ("gates.min_score_std",))
