"""The estimate of a run: each stage's cost on a machine, the totals, and the published hours beside them."""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from rich.table import Table

from align.cli.estimate.costs import Machine, Model, StageCost
from align.cli.estimate.facts import gather
from align.cli.estimate.machines import CARDS, Calibration, detect, gpu, load_calibration
from align.cli.estimate.settings import Values
from align.cli.estimate.shapes import base_here, find_shape, model_of
from align.cli.estimate.stages import STAGES, Plan, group_of, stage_costs, trains_adapters
from align.cli.estimate.targets import name_of, stages_of

# Hours that the references name for their own scripts: what of ours does the same work, the card, the hours. A run
# without the stage `of` is another track's, and its `sft` another work.
PUBLISHED = [
    ("self-rewarding", "dpo@m1", ("sft",), "A10", "3-4"),
    ("self-rewarding", "dpo@m1", ("generate_responses@m1",), "A10", "11"),
    ("RLHF", "ppo", ("reward_model", "ppo"), "A100", "12"),
]
LARGE = 3e9  # parameters: the published hours are those of 7B models


@dataclass(frozen=True)
class Estimate:
    """What a run costs on a machine."""

    machine: Machine
    model: Model
    shape_from: str
    stages: list[StageCost]
    notes: list[str]

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(stage.time(self.machine) for stage in self.stages)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values: seconds, bytes, FLOPs."""
        return {
            "device": self.machine.name,
            "measured": self.machine.measured,
            "parameters": self.model.shape.parameters,
            "trained_parameters": self.model.trained_parameters,
            "seconds": self.seconds,
            "flops": sum(stage.flops for stage in self.stages),
            "disk": sum(stage.disk for stage in self.stages),
            "memory": max(stage.memory for stage in self.stages),
            "stages": [self._stage(stage) for stage in self.stages],
            "published": published(self),
            "notes": self.notes,
        }

    def _stage(self, stage: StageCost) -> dict[str, Any]:
        return {
            "stage": stage.name,
            "rows": round(stage.rows),
            "prefill_tokens": round(tokens(stage, "prefill_tokens")),
            "decoded_tokens": round(tokens(stage, "decoded_tokens")),
            "trained_tokens": round(tokens(stage, "trained_tokens")),
            "flops": stage.flops,
            "memory": stage.memory,
            "disk": stage.disk,
            "seconds": stage.time(self.machine),
            "parts": {part.name: self.machine.seconds(part) for part in stage.parts},
        }


def tokens(stage: StageCost, kind: str) -> float:
    """Return the sum of one kind of tokens over a stage's parts."""
    return float(sum(getattr(part, kind) for part in stage.parts))


def estimate(
    values: Values,
    root: Path,
    device: str,
    targets: Sequence[str] = (),
    *,
    config: Path | None = None,
    fresh: bool = False,
    calibrate: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Estimate:
    """Estimate a run of `values` in `root`.

    Args:
        values: the params.
        root: of the repository.
        device: one of `DEVICES`.
        targets: stages, as `dvc repro` takes them, of which all that they need is counted; none: the whole pipeline.
        config: the base's config.json, where it is nowhere else.
        fresh: as if nothing had been built.
        calibrate: measure this machine's CPU, even if it was measured before.
        say: is told what takes a while.
    """
    names = [name_of(stage) for stage in stages_of(targets, values.tree, root)]
    shape, shape_from = find_shape(values, root, config)
    model = model_of(values, shape, trains_adapters(names))
    texts = any(name.startswith("text/") for name in names)
    facts = gather(values, root, base_here(values, root), fresh, texts)
    stages = stage_costs(Plan(values, facts, model), names)
    name = detect() if device == "auto" else device
    machine = gpu(name, model) if name in CARDS else _cpu(values, model, calibrate, say)
    notes = list(facts.notes)
    if unknown := [name for name in names if group_of(name) not in STAGES]:
        notes.append(f"not estimated: {', '.join(unknown)}")
    if values.get("generation.backend") not in ("transformers", "bfloat16"):
        notes.append(f"generation.backend is {values.get('generation.backend')}; times are those of transformers")
    if machine.memory is not None and max(stage.memory for stage in stages) > machine.memory:
        notes.append("a stage needs more memory than there is: lower batch sizes, or set gradient_checkpointing or nf4")
    if values.get("base_model.source", "").count("/") == 1 and base_here(values, root) is None:
        notes.append("the time of a download is not counted")
    return Estimate(machine, model, shape_from, stages, notes)


def _cpu(values: Values, model: Model, again: bool, say: Callable[[str], None]) -> Machine:
    key = {
        "machine": [platform.machine(), _processor(), os.cpu_count()],
        "threads": values.size("runtime.num_threads"),
        "batch_size": values.size("runtime.batch_size"),
        "shape": vars(model.shape),
        "torch": metadata.version("torch"),
    }
    found: Calibration | None = None if again else load_calibration(key)
    if found is None:
        # torch and transformers take seconds to import.
        found = import_module("align.cli.estimate.calibrate").calibrate(values, model, key, say)
        found.save()
    return found.machine()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    kept = [text for text in lines if text.startswith(("model name", "model\t", "cpu family", "stepping"))]
    return "; ".join(" ".join(text.split()) for text in dict.fromkeys(kept))


def published(found: Estimate) -> list[dict[str, Any]]:
    """Return the references' hours beside this estimate's, where the base is of their size and the card theirs."""
    rows = []
    stages = {stage.name: stage for stage in found.stages}
    for track, of, names, card, hours in PUBLISHED:
        if found.model.shape.parameters < LARGE or not {of, *names} <= stages.keys():
            continue
        rows.append(
            {
                "work": f"{track}: {' + '.join(names)}",
                "published_hours": hours,
                "published_device": card,
                "estimated_hours": sum(stages[name].time(gpu(card, found.model)) for name in names) / 3600,
            }
        )
    return rows


def table(found: Estimate) -> Table:
    """Return the stages and their totals as a table."""
    result = Table(box=None, pad_edge=False, header_style="bold")
    result.add_column("stage", no_wrap=True)
    for heading in ("rows", "prefill", "decoded", "trained", "FLOPs", "memory", "disk", "time"):
        result.add_column(heading, justify="right", no_wrap=True)

    def cells(rows: str, stages: Sequence[StageCost], seconds: float) -> list[str]:
        kinds = ("prefill_tokens", "decoded_tokens", "trained_tokens")
        return [
            rows,
            *(count(sum(tokens(stage, kind) for stage in stages)) for kind in kinds),
            count(sum(stage.flops for stage in stages)),
            size(max(stage.memory for stage in stages)),
            size(sum(stage.disk for stage in stages)),
            duration(seconds),
        ]

    for stage in found.stages:
        result.add_row(stage.name, *cells(count(stage.rows), [stage], stage.time(found.machine)))
    result.add_row("all", *cells("", found.stages, found.seconds), style="bold")
    return result


def remarks(found: Estimate) -> list[str]:
    """Return what is to be read with the table."""
    machine, model = found.machine, found.model
    basis = "measured here" if machine.measured else "by its data sheet and assumed utilisation, not measured here"
    lines = [
        f"{machine.name}: {basis}. {count(model.shape.parameters)} parameters ({found.shape_from}), "
        f"{count(model.trained_parameters)} trained, {model.dtype}"
        + (f", base in {model.quantization}" if model.quantization != "none" else "")
        + ". Disk is that of outs; DVC's cache holds them again where the file system makes no reflinks.",
        *(f"Note: {note}." for note in found.notes),
    ]
    for row in published(found):
        lines.append(
            f"{row['work']}: {row['estimated_hours']:.1f} h on an {row['published_device']} by this estimate; "
            f"published for the reference's scripts: {row['published_hours']} h."
        )
    return lines


def count(value: float) -> str:
    """Return a number with its magnitude: 1.2k, 3.4M; nothing for 0."""
    if value < 0.5:
        return ""
    for unit in ("", "k", "M", "G", "T", "P", "E"):
        if value < 999.5:
            return f"{value:.0f}{unit}" if not unit or value >= 99.5 else f"{value:.1f}{unit}"
        value /= 1000
    return f"{value:.0f}Z"


def size(value: float) -> str:
    """Return bytes in decimal units."""
    return f"{count(value)}B" if value >= 0.5 else ""


def duration(seconds: float) -> str:
    """Return seconds as 12 s, 3.4 min or 5.6 h."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
