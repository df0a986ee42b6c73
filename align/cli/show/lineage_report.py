"""A lineage as text: what made the target, and below it the tree of what that was made from."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from align.cli.project.dvc import AS_LOCKED
from align.cli.project.git import Revision
from align.cli.show.lineage import Code, Lineage, Node, Run

SHORT = 12  # characters of a hash
NOT_RECORDED = "not recorded"


def report(lineage: Lineage) -> Iterator[str]:
    """Yield the lines of a lineage."""
    target = lineage.target
    if card := lineage.card:
        yield f"{lineage.name}  made by no stage of dvc.lock; its model card records:"
        yield from _field("stage", card["stage"])
        for source in card["sources"]:
            yield from _field(source["role"], f"{source['path']}  {source['sha256'][:SHORT]}  {source['state']}")
        yield from _field("seed", str(card["params"].get("seed", NOT_RECORDED)))
        yield from _field("environment", _environment(card["environment"]))
    elif target is not None and target.stage is not None:
        run = lineage.runs[target.stage]
        yield f"{target.path}  {target.hash[:SHORT]}  {_state(target)}"
        yield from _field("stage", f"{run.stage}: {run.command}")
        yield from _field("revision", _revision(run.revision))
        yield from _field("code", _code(run.code))
        yield from _params(run.params)
        yield from _field("environment", _environment(run.environment))
        yield "  made from"
        yield from _tree(run.inputs, lineage.runs, {run.stage}, "    ")


def _tree(nodes: Sequence[Node], runs: Mapping[str, Run], shown: set[str], indent: str) -> Iterator[str]:
    for node in nodes:
        line = f"{indent}{node.path}  {node.hash[:SHORT]}  {_state(node)}"
        if node.parts:
            yield f"{line}  a folder of {len(node.parts)} outputs"
            yield from _tree(node.parts, runs, shown, indent + "  ")
        elif node.stage is None:
            yield f"{line}  made by no stage"
        elif node.stage in shown:
            yield f"{line}  <- {node.stage} (above)"
        else:
            run = runs[node.stage]
            shown.add(node.stage)
            code = f", code: {_changed(run.code)}" if run.code.changed else ""
            yield f"{line}  <- {node.stage} ({_revision(run.revision)}{code})"
            yield from _tree(run.inputs, runs, shown, indent + "  ")


def _params(params: Mapping[str, Any]) -> Iterator[str]:
    sections: dict[str, list[str]] = {}
    for key, value in params.items():
        section, _, rest = key.partition(".")
        sections.setdefault(section, []).append(f"{rest}={value}" if rest else str(value))
    for number, (section, values) in enumerate(sections.items()):
        yield from _field("" if number else "params", f"{section}: {' '.join(values)}")


def _field(name: str, text: str) -> list[str]:
    head = f"  {name:<12} "
    wrap = textwrap.TextWrapper(120, head, " " * len(head), break_long_words=False, break_on_hyphens=False)
    return wrap.wrap(text) or [head]


def _revision(revision: Revision) -> str:
    if revision.commit is None:
        return "not committed"
    return revision.commit if revision.committed else f"{revision.commit}; a later run in dvc.lock is not committed"


def _environment(environment: Mapping[str, Any] | None) -> str:
    return NOT_RECORDED if environment is None else ", ".join(f"{key} {value}" for key, value in environment.items())


def _code(code: Code) -> str:
    if not code.paths:
        return "none"
    listed = f": {', '.join(code.changed)}" if code.changed else ""
    return f"{code.hash[:SHORT]}, {_changed(code)}{listed}"


def _changed(code: Code) -> str:
    total = f"{len(code.paths)} files or folders"
    return f"{len(code.changed)} of {total} changed since" if code.changed else f"{total}, unchanged"


def _state(node: Node) -> str:
    if node.newer is None:
        return node.state
    state = "" if node.state == AS_LOCKED else f"{node.state}; "
    return f"{state}from an older run: {node.stage} has since written {node.newer[:SHORT]}"
