"""`align diff` beside an outer merge in pandas and `oxen diff`: time and memory of each, in one run.

`python -m benchmarks.diff WORKSPACE --preferences FILE` compares two files of 1,000 preference rows made from FILE
(hh-rlhf transcripts), and two of 1,000,000 rows written from its words: a twentieth of the rows on one side alone,
others with their replies swapped, with a longer reply, or with another margin. Each program runs as a process of its
own, in turns; time is the median of its whole life, memory the most that it held (maximum resident set). They must find
the same. Oxen is installed into WORKSPACE. The last line is a JSON object; its ratios are of the large files.
"""

import gzip
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import duckdb

from benchmarks.workspace import ROOT

OXEN = "0.65.1"
KINDS = ("added", "removed", "changed")
PANDAS = """
import json, sys
import pandas as pd
a, b = (pd.read_json(path, lines=True, dtype=False) for path in sys.argv[1:3])
both = a.merge(b, on="id", how="outer", suffixes=("_a", "_b"), indicator=True)
common = both[both["_merge"] == "both"]
columns = [name for name in a.columns if name != "id"]
differs = pd.DataFrame({name: common[name + "_a"] != common[name + "_b"] for name in columns})
print(json.dumps({
    "added": int((both["_merge"] == "right_only").sum()),
    "removed": int((both["_merge"] == "left_only").sum()),
    "changed": int(differs.any(axis=1).sum()),
    "changed_columns": {name: int(n) for name, n in differs.sum().items() if n},
    "mean": [float(a["margin"].mean()), float(b["margin"].mean())],
}))
"""
OXEN_DIFF = """
import json, sys
from oxen import diff
found = diff(sys.argv[1], sys.argv[2], keys=["id"])
rows = found.tabular.data
status = rows["_oxen_diff_status"].value_counts()
counts = dict(zip(*(status[name].to_list() for name in status.columns)))
print(json.dumps({"added": counts["added"], "removed": counts["removed"], "changed": counts["modified"]}))
"""


def pairs(path: Path) -> list[tuple[str, str, str]]:
    """Return prompt, chosen and rejected reply of hh-rlhf transcripts, cut at the last turn of the assistant."""
    found = []
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as stream:
        for row in map(json.loads, stream):
            prompt, _, chosen = row["chosen"].rpartition("\n\nAssistant:")
            found.append((prompt, chosen, row["rejected"].rpartition("\n\nAssistant:")[2]))
    return found


def rows_of(real: list[tuple[str, str, str]], number: int) -> Iterator[dict[str, Any]]:
    """Yield preference rows: the real ones as far as they go, then of windows of their words."""
    source = random.Random(1)
    words = " ".join(text for pair in real for text in pair).split()

    def window(size: int) -> str:
        begin = source.randrange(len(words) - size)
        return " ".join(words[begin : begin + size])

    for i in range(number):
        prompt, chosen, rejected = real[i] if i < len(real) else (window(15), window(30), window(30))
        yield {
            "id": f"pair-{i:07d}",
            "messages": [{"role": "user", "content": prompt}],
            "chosen": chosen,
            "rejected": rejected,
            "margin": round(source.random() * 5, 4),
        }


def write_sides(folder: Path, real: list[tuple[str, str, str]], number: int) -> tuple[Path, Path]:
    """Write both sides."""
    folder.mkdir(parents=True, exist_ok=True)
    a, b = folder / "a.jsonl", folder / "b.jsonl"
    change = random.Random(2)
    with a.open("w", encoding="utf-8") as old, b.open("w", encoding="utf-8") as new:
        for row in rows_of(real, number):
            place = change.random()
            if place >= 0.05:
                old.write(json.dumps(row) + "\n")
            if 0.10 > place >= 0.05:
                continue
            if place > 0.9:
                row = row | {"margin": round(change.random() * 5, 4)}
            elif place > 0.85:
                row = row | {"chosen": row["rejected"], "rejected": row["chosen"]}
            elif place > 0.8:
                row = row | {"chosen": row["chosen"] + " and so on"}
            new.write(json.dumps(row) + "\n")
    return a, b


def measure(command: list[str]) -> tuple[float, float, str]:
    """Run a process; return its seconds, its largest resident set in MB, and what it printed."""
    begin = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if status != 0:
        raise click.ClickException(f"{command[:4]} failed")
    return seconds, usage.ru_maxrss / 1000, output


def counts(name: str, output: str) -> dict[str, int]:
    """Return what a program found."""
    value = json.loads(output.splitlines()[-1])
    [found] = value["data_sets"].values() if name == "align" else [value]
    return {kind: found[kind] for kind in KINDS}


def install_oxen(workspace: Path) -> Path:
    """Return a Python that has Oxen."""
    folder = workspace / "oxen"
    if not (folder / "bin/python").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin/python", "-m", "pip", "install", "-q", f"oxenai=={OXEN}"], check=True)
    return folder / "bin/python"


@click.command(help=__doc__)
@click.argument("workspace", type=click.Path(path_type=Path, file_okay=False))
@click.option("--preferences", type=click.Path(path_type=Path, exists=True), required=True, help="hh-rlhf transcripts.")
@click.option("--rows", default=1_000_000, show_default=True, help="Of the large files.")
@click.option("--rounds", default=3, show_default=True)
def main(workspace: Path, preferences: Path, rows: int, rounds: int) -> None:
    """Measure."""
    oxen = install_oxen(workspace)
    real = pairs(preferences)
    versions = {"duckdb": duckdb.__version__, "pandas": version("pandas"), "oxenai": OXEN}
    found: dict[int, dict[str, dict[str, float]]] = {}
    for number in (1000, rows):
        a, b = map(str, write_sides(workspace / str(number), real, number))
        programs = {
            "align": [sys.executable, "-m", "align.cli.main", "diff", a, b, "--format", "json"],
            "pandas": [sys.executable, "-c", PANDAS, a, b],
            "oxen": [str(oxen), "-c", OXEN_DIFF, a, b],
        }
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
        for _ in range(rounds):
            results = {}
            for name, command in programs.items():
                seconds, megabytes, output = measure(command)
                results[name] = counts(name, output)
                runs[name].append((seconds, megabytes))
                click.echo(f"{number} rows, {name}: {seconds:.2f} s, {megabytes:.0f} MB, {results[name]}")
            if len({json.dumps(value) for value in results.values()}) > 1:
                raise click.ClickException(f"they do not find the same: {results}")
        found[number] = {
            name: {"seconds": statistics.median(s for s, _ in own), "megabytes": max(m for _, m in own)}
            for name, own in runs.items()
        }
    large = found[rows]
    click.echo(
        json.dumps(
            {
                "time_vs_pandas": round(large["align"]["seconds"] / large["pandas"]["seconds"], 3),
                "time_vs_oxen": round(large["align"]["seconds"] / large["oxen"]["seconds"], 3),
                "memory_vs_pandas": round(large["align"]["megabytes"] / large["pandas"]["megabytes"], 3),
                "rows": found,
                "versions": versions,
            }
        )
    )


if __name__ == "__main__":
    main()
