"""KTO on the tiny model: the loss and its KL term against their formula, and what the stages do with single replies."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from align.core.files import write_text
from align.core.rows import EvalPrompt, PreferencePair, write_rows
from align.dpo.kto import batched, encode_replies
from align.dpo.settings import DPOSettings
from align.models.loading import load_adapter_weights
from align.models.stack import AdapterStack
from align.run.runtime import RuntimeSettings
from stages.offline_dpo import main as offline
from tests.committed import committed_params, write_params
from tests.dpo.test_training import BETA, PAIRS, dpo

__all__ = ["dpo"]  # a fixture
KTO: dict[str, Any] = {"loss_type": ["kto"], "reference": "m0", "per_device_train_batch_size": 4}
WEIGHTS = {"desirable_weight": 1.3, "undesirable_weight": 0.6}


def settings(**changes: Any) -> DPOSettings:
    return DPOSettings.model_validate(committed_params()["dpo"] | {"loss_type": ["kto"]} | changes)


def logprob(stack: AdapterStack, name: str, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Return the log-probability of a completion in double precision."""
    ids = torch.tensor([prompt + completion])
    with stack.using(name) as model, torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double()
    return logits.log_softmax(-1).gather(-1, torch.tensor(completion)[:, None]).sum()


def log_ratios(stack: AdapterStack, rows: Sequence[dict[str, Any]], key: str) -> torch.Tensor:
    """Return the log-ratio of m1 to m0 for each row's completion `key`, (rows,)."""
    found = {
        name: torch.stack([logprob(stack, name, row["prompt_ids"], row[key]) for row in rows]) for name in ("m0", "m1")
    }
    return found["m1"] - found["m0"]


@pytest.fixture
def stack(dpo: Callable[..., Any], runtime: RuntimeSettings) -> AdapterStack:
    stack = AdapterStack(Path("models/base"), runtime)
    for name in ("m0", "m1"):
        stack.add(name, Path("models") / name)
    return stack


def history(model: str) -> list[dict[str, str]]:
    with Path(f"data/metrics/{model}/dpo_history.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("swapped", [False, True])  # one of them has a KL above 0
@pytest.mark.parametrize("weights", [{}, WEIGHTS])
def test_the_kto_loss_and_its_kl_are_those_of_their_formula(
    weights: dict[str, float], swapped: bool, dpo: Callable[..., Any], stack: AdapterStack
) -> None:
    sign = 1.0
    if swapped:
        first, second = (Path("models") / name for name in ("m0", "m1"))
        targets = first.resolve(), second.resolve()
        for link, target in zip((second, first), targets, strict=True):
            link.unlink()
            link.symlink_to(target, target_is_directory=True)
        sign = -1.0
    loss, _ = dpo(**KTO, **weights)

    rows = batched(
        encode_replies(stack.tokenizer, PAIRS), settings(per_device_train_batch_size=4), committed_params()["seed"]
    )
    ratios, unrelated = (sign * log_ratios(stack, rows, key) for key in ("completion_ids", "KL_completion_ids"))
    kl = unrelated.mean().clamp(min=0)
    desirable = torch.tensor([row["label"] for row in rows])
    gains = torch.where(desirable, ratios - kl, kl - ratios)
    weight = torch.where(desirable, weights.get("desirable_weight", 1.0), weights.get("undesirable_weight", 1.0))
    assert loss == pytest.approx(float((weight * (1 - (BETA * gains).sigmoid())).mean()), abs=1e-4)
    assert float(history("m2")[0]["kl"]) == pytest.approx(float(kl), abs=1e-3)
    assert (kl > 0.1) == (not swapped)  # or a KL of any sign would do
    wrong = torch.where(desirable, kl - ratios, ratios - kl)  # with the labels swapped
    assert abs(loss - float((weight * (1 - (BETA * wrong).sigmoid())).mean())) > 0.01


def test_with_the_previous_model_as_reference_kto_starts_at_one_half_with_no_kl(dpo: Callable[..., Any]) -> None:
    loss, card = dpo(**KTO | {"reference": "previous"})
    assert loss == 0.5
    assert float(history("m2")[0]["kl"]) == 0
    assert card["parents"]["reference"] == card["parents"]["parent"]


REPLIES = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6)), min_size=2, max_size=40).filter(
    lambda rows: len({prompt for prompt, _ in rows}) > 1
)


@given(REPLIES, st.integers(2, 5), st.integers(1, 3))
def test_the_kl_takes_completions_of_other_prompts_and_of_the_micro_batch_where_it_has_two(
    drawn: list[tuple[int, int]], size: int, steps: int
) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt_ids": [prompt], "completion_ids": [i] * length, "length": 1 + length}
        for i, (prompt, length) in enumerate(drawn)
    ]
    found = batched(rows, settings(per_device_train_batch_size=size, gradient_accumulation_steps=steps), 3)

    prompts = {tuple(row["completion_ids"]): row["prompt_ids"] for row in rows}
    assert sorted(row["completion_ids"] for row in found) == sorted(row["completion_ids"] for row in rows)
    for start in range(0, len(found), size):
        batch = found[start : start + size]
        own = [row["completion_ids"] for row in batch]
        others = [row["KL_completion_ids"] for row in batch]
        assert all(prompts[tuple(ids)] != row["prompt_ids"] for ids, row in zip(others, batch, strict=True))
        distinct = len({tuple(row["prompt_ids"]) for row in batch})
        if distinct > 1:
            assert all(ids in own for ids in others)
        if distinct == len(batch) > 1:
            assert others == own[-1:] + own[:-1]  # TRL's


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"loss_type": ["kto", "ipo"]}, r"loss_type \[kto\] alone"),
        ({"loss_weights": [1.0]}, "loss_weights null with"),
        ({"ld_alpha": 0.2, "nll_coef": 0.1}, "ld_alpha null, nll_coef 0 with"),
        ({"label_smoothing": 0.1}, "label_smoothing 0 with"),
        ({"use_weighting": True}, "use_weighting false with"),
        ({"per_device_train_batch_size": 1}, "per_device_train_batch_size 2 or more"),
        ({"loss_type": ["sigmoid"], **WEIGHTS}, r"desirable_weight and undesirable_weight 1\.0"),
        ({"desirable_weight": 0.0}, "greater than 0"),
    ],
)
def test_settings_that_kto_does_not_read_are_refused_and_so_are_its_own_with_other_losses(
    changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValidationError, match=says):
        settings(**changes)


@pytest.fixture
def feedback(dpo: Callable[..., Any]) -> Callable[..., str]:
    """Return a function that runs stage offline_dpo with KTO on rows of its own file, and returns what it says."""
    for name in ("ift.jsonl", "known_prompts.jsonl"):
        write_text(Path("data/m1") / name, "{}\n")
    write_rows(
        Path("data/prepared/eval/prompts.jsonl"), [EvalPrompt(id="e", category="c", turns=["Hello?", "Who is she?"])]
    )
    checked = {"id": "c", "prompt": "Count.", "checks": [{"kind": "words", "max": 3}]}
    write_text(Path("data/prepared/eval/checked_prompts.jsonl"), json.dumps(checked) + "\n")

    def stage(rows: Sequence[dict[str, Any]], **changes: Any) -> str:
        write_text(Path("data/own.jsonl"), "".join(json.dumps(row) + "\n" for row in rows))
        own = {"data": "data/own.jsonl", "init": "m1", "num_train_epochs": 1, "learning_rate": 5e-4, "beta": BETA}
        write_params(Path(), {"offline_dpo": KTO | own | {"max_length": 256} | changes})
        result = CliRunner().invoke(offline, catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
        return result.output

    return stage


def unpaired(pair: PreferencePair, chat: bool) -> list[dict[str, Any]]:
    """Return the two replies of a pair in TRL's unpaired layout, as texts or as messages."""
    return [
        {
            "prompt": [turn.model_dump() for turn in pair.messages] if chat else pair.messages[0].content,
            "completion": [{"role": "assistant", "content": reply}] if chat else reply,
            "label": label,
        }
        for reply, label in ((pair.chosen, True), (pair.rejected, False))
    ]


def test_single_replies_as_texts_or_messages_teach_what_the_pairs_teach_that_they_come_from(
    dpo: Callable[..., Any], feedback: Callable[..., str]
) -> None:
    pairs = [pair.model_copy(update={"rejected_finish_reason": "stop"}) for pair in PAIRS]
    write_rows(Path("data/m2/preferences.jsonl"), pairs)
    dpo(**KTO, learning_rate=5e-4, num_train_epochs=3)
    expected, start = (load_adapter_weights(Path("models") / name) for name in ("m2", "m1"))
    assert any(not torch.equal(expected[key], start[key]) for key in start)

    for chat in (False, True):
        said = feedback([row for pair in pairs for row in unpaired(pair, chat)], num_train_epochs=3)
        assert "offline_dpo: 4 replies, 0 rows dropped as prompts of the evaluation, 0 dropped as longer" in said
        found = load_adapter_weights(Path("models/dpo"))
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_rows_whose_prompt_is_one_of_the_evaluation_are_dropped_and_counted(feedback: Callable[..., str]) -> None:
    rows = [row for pair in PAIRS for row in unpaired(pair, chat=False)]
    later = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]
    later.append({"role": "user", "content": "who is she? "})
    leaked = [{"prompt": prompt, "completion": "It is.", "label": True} for prompt in ("hello?", "Count.", later)]

    said = feedback([*leaked, *rows], num_train_epochs=3)

    assert "offline_dpo: 4 replies, 3 rows dropped as prompts of the evaluation" in said
    with_them = load_adapter_weights(Path("models/dpo"))
    feedback(rows, num_train_epochs=3)
    without = load_adapter_weights(Path("models/dpo"))
    assert all(torch.equal(with_them[key], without[key]) for key in without)
