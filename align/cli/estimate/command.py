"""`align estimate`."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import click
from dvc.exceptions import DvcException
from dvc.repo import Repo
from networkx import dfs_postorder_nodes
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from transformers import AutoConfig, MistralConfig, OpenAIGPTConfig

from align.backends.choose import BASE
from align.cli.estimate.calibrate import cpu
from align.cli.estimate.costs import CARDS, gpu
from align.cli.estimate.stages import Plan
from align.cli.project.cards import ModelCard
from align.cli.project.settings import settings_by_section
from align.cli.project.units import show_age, show_size
from align.cli.recipes.recipes import Recipe, recipe
from align.core.errors import InputError, printable, quoted
from align.core.params import PARAMS_FILE, Params
from align.data.hub import hub_errors
from align.models.loading import reading_model
from stages.base_model import ADVICE, locate

# Bases of the recipes, whose configuration needs no download.
KNOWN = {"mistralai/Mistral-7B": MistralConfig(), "openai-community/openai-gpt": OpenAIGPTConfig()}
COLUMNS = ("prefill_tokens", "decoded_tokens", "trained_tokens", "flops", "seconds")


def plan_of(params: Params) -> Plan:
    """Return what the stages' work follows from: every section as its stage reads it, and the base's shape."""
    kinds = settings_by_section()
    settings: Any = SimpleNamespace(
        **{key: params.section(key, kind) for key, kind in kinds.items() if key != "sources"}
    )
    settings.sources = {name: params.source(name, kinds["sources"]) for name in params.values["sources"]}
    source, revision = settings.base_model.source, settings.base_model.revision
    what = f"{params.path}: base_model.source: cannot read the configuration of {source}"
    with reading_model(what, ADVICE), hub_errors(what, source, "model", revision):
        if BASE.is_dir() and ModelCard.read(BASE).params.get("base_model", {}).get("source") == source:
            return Plan(settings, AutoConfig.from_pretrained(BASE))
        for name, config in KNOWN.items():
            if source.startswith(name):
                return Plan(settings, config)
        folder, kwargs = locate(settings.base_model)
        return Plan(settings, AutoConfig.from_pretrained(folder, **kwargs))


def stages_of(targets: Sequence[str], params: Mapping[str, Any], root: Path = Path()) -> dict[str, Any]:
    """Return DVC's stages that `targets` need (none: the pipeline) by name, each after those it depends on.

    The graph is that of the dvc.yaml files in `root`, under params that need not be those of params.yaml.
    """
    with TemporaryDirectory() as folder:
        for file in (*root.glob("dvc.yaml"), *root.glob("*/dvc.yaml")):
            (Path(folder) / file.relative_to(root)).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, Path(folder) / file.relative_to(root))
        YAML().dump(dict(params), Path(folder) / PARAMS_FILE)
        Path(folder, ".dvc").mkdir()
        Path(folder, ".dvc/config").write_text("[core]\n    no_scm = true\n", encoding="utf-8")
        try:
            with Repo(folder) as repo:
                graph = repo.index.graph
        except DvcException as error:
            reason = " ".join(str(error).split()).replace(f"{os.path.relpath(folder)}/", "")
            raise InputError(f"DVC makes no graph of these params: {reason}; fix them or dvc.yaml") from None
    names = {stage: f"{stage.path_in_repo}:{stage.name}".removeprefix("dvc.yaml:") for stage in graph}
    wanted: dict[str, Any] = {}
    for target in targets or ["dvc.yaml"]:
        starts = [stage for stage in names if target in (names[stage], names[stage].split("@")[0], stage.path_in_repo)]
        if not starts:
            raise InputError(f"no stage {quoted(target)} here; `dvc stage list --all` names them")
        wanted |= {names[stage]: stage for start in starts for stage in dfs_postorder_nodes(graph, start)}
    return wanted


def read_params(path: Path, name: str | None, changes: Sequence[str]) -> tuple[Params, list[str]]:
    """Return the params of a file or a recipe, with changes such as `ppo.num_updates=20`, and the stages they name."""
    path = path if name is None else recipe(name).path
    values = Params.read(path).values
    for change in changes:
        key, _, text = change.partition("=")
        *sections, last = key.split(".")
        try:
            reduce(getitem, sections, values)[last] = YAML(typ="safe").load(text)
        except (KeyError, TypeError, YAMLError):
            raise InputError(f"--set {quoted(change)}: expected KEY=VALUE, such as ppo.num_updates=20") from None
    return Params(values, path), Recipe.read(path).command.split()[2:]


@click.command()
@click.argument("targets", nargs=-1)
@click.option("--device", type=click.Choice(("cpu", *CARDS), case_sensitive=False), default="cpu", show_default=True)
@click.option("--params", "path", type=click.Path(path_type=Path), default=PARAMS_FILE, show_default=True)
@click.option("--recipe", "name", metavar="NAME", help="Of recipes/, in place of --params.")
@click.option("--set", "changes", metavar="KEY=VALUE", multiple=True, help="Another value, such as ppo.num_updates=20.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: seconds, bytes, FLOPs.")
def estimate(
    targets: tuple[str, ...], device: str, path: Path, name: str | None, changes: tuple[str, ...], as_json: bool
) -> None:
    """Show before a run what each stage will take: tokens, FLOPs, memory and time.

    TARGETS are stages, as for `dvc repro`, with all that they need. The default is what the params' first lines name
    (`# Run: dvc repro ...`), or the whole pipeline.

    `cpu` is this machine, measured once and kept in .align/; a GPU is computed from its data sheet.
    """
    params, own_targets = read_params(path, name, changes)
    stages = stages_of(targets or own_targets, params.values)
    plan = plan_of(params)
    machine = cpu(plan.config, plan.s.runtime) if device == "cpu" else gpu(device, plan.s.runtime)
    costs = {stage: plan.cost(stage, machine) for stage in stages}
    rows = [row for row in costs.values() if row is not None]
    notes = [*plan.notes, *(f"not estimated: {stage}" for stage, row in costs.items() if row is None)]
    total = {key: sum(row[key] for row in rows) for key in COLUMNS} | {"memory": max(row["memory"] for row in rows)}
    if total["memory"] > machine.memory:
        notes.append(f"{device} has {show_size(machine.memory)} of memory: lower batch sizes, checkpoint, or use nf4")
    if as_json:
        result = {"device": device, **total, "stages": rows, "notes": notes}
        click.echo(printable(json.dumps(result, ensure_ascii=False)))
        return
    line = "{:26}{:>12}{:>12}{:>12}{:>12}{:>12}{:>12}".format
    click.echo(line("stage", "read", "written", "trained", "TFLOP", "memory", "time"))
    for row in (*rows, {"stage": "all", **total}):
        tokens = [f"{row[key]:,}" for key in COLUMNS[:3]]
        cells = (f"{row['flops'] / 1e12:,.1f}", show_size(row["memory"]), show_age(row["seconds"]))
        click.echo(line(row["stage"], *tokens, *cells))
    click.echo(f"{device}: {'measured here' if device == 'cpu' else 'by its data sheet, not measured'}.")
    for note in notes:
        click.echo(printable(f"Note: {note}."))
