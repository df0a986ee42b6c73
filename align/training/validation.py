"""Rows held out of a training stage's own rows, and what their loss says: when to stop, which weights to keep."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from datasets import Dataset

from align.core.split import split_by_group
from align.training.settings import TrainingSettings

GROUP = "group"  # the key of an encoded row that names its conversation
# Part of what is hashed: stage prepare_data splits by the same function and seed, and what it left in the training rows
# has the higher places all.
SALT = "eval_fraction\x1f"


def hold_out(
    rows: Sequence[dict[str, Any]], settings: TrainingSettings, seed: int, section: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Split encoded rows into those to train on and those to measure on, and take `group` off them.

    Rows of a group stay on one side, which depends on the seed and the group alone: with the same `eval_fraction`, all
    sections hold out the same prompts. The rows to measure on are in order of `length`, which saves padding.

    Raises:
        InputError: `eval_fraction` is above 0 and there are fewer than two groups.
    """
    train, held_out = list(rows), list[dict[str, Any]]()
    if settings.eval_fraction:
        train, held_out = split_by_group(
            rows,
            lambda row: f"{SALT}{row[GROUP]}",
            settings.eval_fraction,
            seed,
            f"params.yaml: {section}.eval_fraction",
            "add rows or set it to 0",
        )
    plain = [[{key: value for key, value in row.items() if key != GROUP} for row in part] for part in (train, held_out)]
    return plain[0], sorted(plain[1], key=lambda row: int(row["length"]))


def dataset_of(held_out: Sequence[dict[str, Any]]) -> Dataset | None:
    """Return rows to measure on as a trainer's `eval_dataset`, None if there are none."""
    return Dataset.from_list(list(held_out)) if held_out else None


def described(validation: Mapping[str, Any], name: str = "") -> str:
    """Return what `train` found, for the last line of a stage; empty if nothing was held out."""
    if not validation:
        return ""
    return (
        f"; {name}{validation['eval_rows']} held out, lowest eval_loss {validation['best_eval_loss']:.3f} at step "
        f"{validation['best_step']} of {validation['last_step']}, weights of step {validation['weights_of_step']}"
    )


class Evaluations(NamedTuple):
    """The evaluations of a trainer's log so far: the lowest `eval_loss`, its step, and how many came after it."""

    loss: float
    step: int
    since: int

    @classmethod
    def of(cls, log: Sequence[Mapping[str, Any]]) -> "Evaluations | None":
        """Return those of a log, None if it has none. The first of equal losses counts; NaN is above all numbers."""
        measured = [entry for entry in log if "eval_loss" in entry]
        if not measured:
            return None
        losses = [float(entry["eval_loss"]) for entry in measured]
        best = min(range(len(losses)), key=lambda i: (losses[i] != losses[i], losses[i]))
        return cls(losses[best], int(measured[best]["step"]), len(losses) - 1 - best)
