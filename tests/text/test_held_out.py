"""The plain-text track with held-out rows."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from align.models.base import load_base
from align.run.runtime import RuntimeSettings
from align.training import trainer as training
from stages.text import data as text_data
from stages.text import sft as text_sft
from tests.text.test_text import linked_base, succeed, workspace

__all__ = ["linked_base", "workspace"]  # fixtures


def test_the_weights_that_are_best_on_held_out_texts_are_saved_and_the_texts_are_not_trained_on(
    workspace: Callable[..., None], linked_base: None, runtime: RuntimeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A rate that grows to where training breaks: later weights are worse.
    rising = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.9, "learning_rate": 3.0}
    workspace(eval_fraction=0.3, eval_steps=1, load_best_model_at_end=True, num_train_epochs=3, **rising)
    succeed(text_data.main)
    evaluate, parts = training.Resumable.evaluate, dict[str, list[dict[str, Any]]]()

    def spy(self: training.Resumable, *args: Any, **kwargs: Any) -> dict[str, float]:
        for name in ("train_dataset", "eval_dataset"):
            parts[name] = list(getattr(self, name))
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(training.Resumable, "evaluate", spy)
    told = succeed(text_sft.main)

    learned, held_out = parts["train_dataset"], parts["eval_dataset"]
    assert f"; {len(held_out)} held out, lowest eval_loss" in told
    assert len(learned) + len(held_out) == 24
    assert not {tuple(one["input_ids"]) for one in learned} & {tuple(one["input_ids"]) for one in held_out}
    with Path("data/text/history.csv").open(encoding="utf-8") as stream:
        losses = [float(entry["eval_loss"]) for entry in csv.DictReader(stream)]
    assert min(losses) < losses[-1] - 1
    model, total, tokens = load_base(Path("models/text"), runtime), 0.0, 0
    with torch.no_grad():
        for one in held_out:
            sequence = torch.tensor([one["input_ids"]])
            logprobs = model(input_ids=sequence).logits[0, :-1].double().log_softmax(-1)
            total -= float(logprobs.gather(1, sequence[0, 1:, None]).sum())
            tokens += sequence.shape[1] - 1
    assert min(losses) == pytest.approx(total / tokens, rel=1e-4)
