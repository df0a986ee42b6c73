"""`align estimate`."""

import json
from collections.abc import Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from transformers import AutoConfig, MistralConfig, OpenAIGPTConfig

from align.backends.choose import BASE
from align.cli.estimate.calibrate import cpu
from align.cli.estimate.costs import CARDS, gpu
from align.cli.estimate.stages import Plan
from align.cli.project.cards import ModelCard
from align.cli.project.graph import stages_of
from align.cli.project.settings import settings_by_section
from align.cli.project.units import show_age, show_size
from align.cli.recipes.recipes import Recipe, merged, recipe
from align.core.errors import InputError, printable, quoted
from align.core.params import OPTIONAL, PARAMS_FILE, Params
from align.models.loading import reading_model
from stages.base_model import ADVICE, locate

# Bases of the recipes, whose configuration needs no download.
KNOWN = {"mistralai/Mistral-7B": MistralConfig(), "openai-community/openai-gpt": OpenAIGPTConfig()}
COLUMNS = ("prefill_tokens", "decoded_tokens", "trained_tokens", "flops", "seconds")


def plan_of(params: Params) -> Plan:
    """Return what the stages' work follows from: every section as its stage reads it, and the base's shape."""
    kinds = settings_by_section()
    sources = {name: params.source(name, kinds["sources"]) for name in params.values["sources"]}
    sections = {
        name: (params.optional_section if name in OPTIONAL else params.section)(name, kind)
        for name, kind in kinds.items()
        if name != "sources"
    }
    settings: Any = SimpleNamespace(**sections, sources=sources)
    source = settings.base_model.source
    config: Any = next((known for name, known in KNOWN.items() if source.startswith(name)), None)
    with reading_model(f"{params.path}: base_model.source: cannot read the configuration of {source}", ADVICE):
        if BASE.is_dir() and ModelCard.read(BASE).params.get("base_model", {}).get("source") == source:
            config = AutoConfig.from_pretrained(BASE)
        elif config is None:
            folder, kwargs = locate(settings.base_model)
            config = AutoConfig.from_pretrained(folder, **kwargs)
    return Plan(settings, config)


def read_params(path: Path, name: str, changes: Sequence[str]) -> tuple[Params, list[str]]:
    """Return the params of a file or a recipe, with changes such as `ppo.num_updates=20`, and the stages they name."""
    chosen = recipe(name) if name else Recipe.read(path)
    values = merged(name) if name else Params.read(path).values
    for change in changes:
        try:
            key, text = change.split("=", 1)
            *sections, last = key.split(".")
            reduce(getitem, sections, values)[last] = YAML(typ="safe").load(text)
        except (KeyError, TypeError, ValueError, YAMLError):
            raise InputError(f"--set {quoted(change)}: expected KEY=VALUE, such as ppo.num_updates=20") from None
    return Params(values, chosen.path), chosen.command.split()[2:]


@click.command()
@click.argument("targets", nargs=-1)
@click.option("--device", type=click.Choice(("cpu", *CARDS), case_sensitive=False), default="cpu", show_default=True)
@click.option("--params", "path", type=click.Path(path_type=Path), default=PARAMS_FILE, show_default=True)
@click.option("--recipe", "name", default="", metavar="NAME", help="Of recipes/, in place of --params.")
@click.option("--set", "changes", metavar="KEY=VALUE", multiple=True, help="Another value, such as ppo.num_updates=20.")
@click.option("--json", "raw", is_flag=True, help="Print one JSON object: seconds, bytes, FLOPs.")
def estimate(targets: Sequence[str], device: str, path: Path, name: str, changes: Sequence[str], raw: bool) -> None:
    """Show before a run what each stage will take: tokens, FLOPs, memory and time.

    TARGETS are stages, as for `dvc repro`, with all that they need; the default is what the params' first lines name
    (`# Run: dvc repro ...`), or the whole pipeline. `cpu` is this machine, measured once and kept in .align/.
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
    if raw:
        click.echo(json.dumps({"device": device, **total, "stages": rows, "notes": notes}))
        return
    click.echo(f"{'stage':26}        read     written     trained       TFLOP      memory        time")
    for row in (*rows, {"stage": "all", **total}):
        numbers = "".join(f"{row[key]:12,}" for key in COLUMNS[:3]) + f"{row['flops'] / 1e12:12,.1f}"
        click.echo(f"{row['stage']:26}{numbers}{show_size(row['memory']):>12}{show_age(row['seconds']):>12}")
    click.echo(f"{device}: {'measured here' if device == 'cpu' else 'by its data sheet, not measured'}.")
    for note in notes:
        click.echo(printable(f"Note: {note}."))
