"""Write the README's results from data/summary, data/metrics and data/eval: `python -m benchmarks.results`.

Run it after `make repro`. The table goes between the `results` markers. One held-out prompt, with the answers of m0 and
of the last iteration, goes between the `sample` markers, and what `benchmarks.learning` found over seeds between the
`learning` markers; a README without those keeps its text.
"""

import csv
import re
from collections.abc import Mapping
from pathlib import Path

import click

from align.core.errors import InputError, printable
from align.core.files import read_json, write_text
from align.core.params import Params
from align.core.rows import Answer, read_rows
from align.report.paired import BETTER, CANNOT_TELL, WORSE

README = Path("README.md")
SOURCES = {"results": "data/summary", "sample": "data/eval", "learning": "benchmarks/learning.json"}
MAX_WORDS = 20
MARKS = {BETTER: BETTER, WORSE: WORSE, CANNOT_TELL: "?"}
COLUMNS = {"model", "checks_passed", "ended_share"} | {
    f"{measure}_difference_vs_m0{end}" for measure in ("judge", "reward", "checks") for end in ("", "_verdict")
}
# What Markdown reads as markup inside a line, and at its beginning (a heading, a list, a number, a rule).
MARKUP = r"([\\`*_<>\[\]&|~$]|^[#+=-]|(?<=^\d)[.)])"


def markers(name: str) -> tuple[str, str]:
    """Return the comments that enclose a block."""
    return f"<!-- {name}: `python -m benchmarks.results`, from {SOURCES[name]} -->", f"<!-- /{name} -->"


def table(root: Path) -> str:
    """Return the results of the last run as Markdown."""
    path = root / "data/summary/models.csv"
    with path.open(encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
    if missing := COLUMNS - set(reader.fieldnames or ()):
        raise InputError(f"{path}: column {', '.join(sorted(missing))} is missing; run `dvc repro summary`")
    lines = [
        "| model | judge vs m0 | reward vs m0, both end | checks passed | answers end |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        by_judge, by_reward = (
            "-" if row["model"] == "m0" else difference(row, key)
            for key in ("judge_difference_vs_m0", "reward_difference_vs_m0")
        )
        checks, ended = (f"{float(row[key]):.2f}" if row[key] else "-" for key in ("checks_passed", "ended_share"))
        if row["model"] != "m0" and row["checks_difference_vs_m0"]:
            checks += f" {MARKS[row['checks_difference_vs_m0_verdict']]}"
        lines.append(f"| {row['model']} | {by_judge} | {by_reward} | {checks} | {ended} |")
    return "\n".join(lines)


def difference(row: Mapping[str, str], key: str) -> str:
    """Return a column's difference, its 95% interval and its verdict."""
    mean, low, high = (f"{float(row[key + end]):+.2f}" if row[key + end] else "-" for end in ("", "_low", "_high"))
    return f"{mean} [{low}, {high}] {MARKS[row[f'{key}_verdict']]}"


def over_seeds(root: Path) -> str:
    """Return the differences to m0 that `benchmarks.learning` found, as a sentence."""
    found = read_json(root / SOURCES["learning"])

    def part(model: str, *keys: str) -> str:
        ends = [[f"{found[key + end]:+.2f}" for end in ("", "_low", "_high")] for key in keys]
        return f"{model} " + ", ".join(f"{mean} [{low}, {high}]" for mean, low, high in ends)

    loop = part("the loop", "loop_gain", "reward_change_loop", "checks_change_loop")
    rlhf = part("ppo", "judge_change_rlhf", "rlhf_gain", "checks_change_rlhf")
    return f"Over {found['seeds']} seeds at {found['commit']} (judge, reward, checks): {loop}; {rlhf}."


def sample(first: list[Answer], last: list[Answer], names: tuple[str, str]) -> str:
    """Return, as Markdown, the first prompt whose two answers end by themselves and differ.

    Only first turns count: a later turn is a question about an answer that the reader does not see.
    """
    others = {answer.id: answer for answer in last if answer.turn == 1}
    for mine in first:
        theirs = others.get(mine.id)
        if mine.turn != 1 or theirs is None or {mine.finish_reason, theirs.finish_reason} != {"stop"}:
            continue
        if mine.response.strip() != theirs.response.strip():
            texts = zip(("Prompt", *names), (mine.prompt, mine.response, theirs.response), strict=True)
            return "\n\n".join(f"{name}:\n\n{quote(text)}" for name, text in texts)
    return f"For no held-out prompt do the answers of {names[0]} and {names[1]} both end by themselves and differ."


def quote(text: str) -> str:
    """Return a text as a Markdown block quote, cut at `MAX_WORDS` words, in which nothing is markup."""
    words = list(re.finditer(r"\S+", text))
    text = f"{text[: words[MAX_WORDS - 1].end()]} …" if len(words) > MAX_WORDS else text
    lines = [re.sub(MARKUP, r"\\\1", printable(" ".join(line.split()))) for line in text.splitlines()]
    return "\n>\n".join(f"> {line}" for line in lines if line)


def replace_block(text: str, name: str, content: str) -> str:
    """Return a README with another content between two markers.

    Raises:
        InputError: a marker is missing.
    """
    begin, end = markers(name)
    missing = [marker for marker in (begin, end) if marker not in text]
    if missing:
        raise InputError(f"{README}: has no line {missing[0]}; add it where the {name} should be")
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise InputError(f"{README}: {end} comes before {begin}; put it behind")
    return f"{before}{begin}\n{content}\n{end}{after}"


@click.command(help=__doc__)
def main() -> None:
    """Replace what is between the README's markers."""
    text = replace_block(README.read_text(encoding="utf-8"), "results", table(Path()))
    if any(marker in text for marker in markers("learning")):
        text = replace_block(text, "learning", over_seeds(Path()))
    if any(marker in text for marker in markers("sample")):
        names = ("m0", list(Params.read().iterations)[-1])
        answers = [read_rows(Path(f"data/eval/{name}.jsonl"), Answer) for name in names]
        text = replace_block(text, "sample", sample(answers[0], answers[1], names))
    else:
        click.echo(f"{README}: no sample written; for one, add the lines\n" + "\n".join(markers("sample")))
    write_text(README, text)


if __name__ == "__main__":
    main()
