"""Stage dpo on the tiny model: its loss against the formula, for each reference and with the NLL term."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch.nn.functional import logsigmoid

from align.core.rows import Message, PreferencePair, write_rows
from align.models.base import load_tokenizer
from align.models.stack import AdapterStack
from align.models.tokenization import encode_completion, encode_prompt
from align.run.runtime import RuntimeSettings
from stages.dpo import main
from tests.committed import write_params

PAIRS = [
    PreferencePair(
        id=f"p{i}",
        messages=[Message(role="user", content=question)],
        chosen=chosen,
        rejected=rejected,
        rejected_finish_reason="length" if i else "stop",
        margin=1.0,
    )
    for i, (question, chosen, rejected) in enumerate(
        [("Name a fruit.", "A pear, or an apple.", "No."), ("Why is it dark?", "It is night.", "Dark is dark is")]
    )
]
BETA = 0.5


@pytest.fixture
def dpo(
    tmp_path: Path, tiny_base: Path, make_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Return a function that runs stage dpo for m2, child of m1, and returns the first loss and the model card."""
    monkeypatch.chdir(tmp_path)
    models = tmp_path / "models"
    models.mkdir()
    for name, target in {"base": tiny_base, "m0": make_adapter("a", 1), "m1": make_adapter("b", 2)}.items():
        (models / name).symlink_to(target, target_is_directory=True)
    write_rows(Path("data/m2/preferences.jsonl"), PAIRS)

    def stage(**changes: Any) -> tuple[float, dict[str, Any]]:
        dpo = {"beta": BETA, "per_device_train_batch_size": 2, "num_train_epochs": 1, **changes}
        write_params(Path(), {"dpo": dpo})
        result = CliRunner().invoke(main, ["m2", "m1"], catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
        with Path("data/m2/dpo_history.csv").open(encoding="utf-8") as stream:
            first = next(csv.DictReader(stream))
        return float(first["loss"]), json.loads(Path("models/m2/model_card.json").read_text(encoding="utf-8"))

    return stage


def logprobs(stack: AdapterStack, name: str) -> torch.Tensor:
    """Return the log-probability of each pair's chosen and rejected reply, (pairs, 2), and the chosen tokens' mean."""
    tokenizer = stack.tokenizer
    found = []
    for pair in PAIRS:
        prompt = encode_prompt(tokenizer, pair.messages)
        for text, reason in ((pair.chosen, pair.chosen_finish_reason), (pair.rejected, pair.rejected_finish_reason)):
            ids = torch.tensor([prompt + encode_completion(tokenizer, text, reason)])
            with stack.using(name) as model, torch.no_grad():
                all_logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            found.append(all_logprobs.gather(-1, ids[0, 1:, None])[len(prompt) - 1 :].sum())
    return torch.stack(found).view(len(PAIRS), 2)


@pytest.fixture
def expected(dpo: Callable[..., Any], runtime: RuntimeSettings) -> Callable[..., float]:
    """Return a function that computes the DPO loss of m1 against a reference (arXiv 2305.18290, equation 7).

    With label smoothing it is that of robust DPO (arXiv 2403.00409).
    """
    stack = AdapterStack(Path("models/base"), runtime)
    for name in ("m0", "m1"):
        stack.add(name, Path("models") / name)

    def loss(reference: str, smoothing: float = 0.0) -> float:
        ratios = logprobs(stack, "m1") - logprobs(stack, reference)
        margins = BETA * (ratios[:, 0] - ratios[:, 1])
        losses = (1 - smoothing) * -logsigmoid(margins) - smoothing * -logsigmoid(-margins)
        return float(losses.mean()) / (1 - 2 * smoothing)

    return loss


def test_with_the_previous_model_as_reference_dpo_starts_at_log_2(dpo: Callable[..., Any]) -> None:
    loss, card = dpo(reference="previous")
    assert loss == pytest.approx(math.log(2), abs=1e-4)
    assert card["parents"]["reference"] == card["parents"]["parent"]


def test_with_m0_as_reference_the_loss_is_that_of_the_parent_against_m0(
    dpo: Callable[..., Any], expected: Callable[..., float]
) -> None:
    loss, card = dpo(reference="m0")
    assert loss == pytest.approx(expected("m0"), abs=1e-3)
    assert abs(loss - math.log(2)) > 0.01
    assert card["parents"]["reference"]["path"] == "models/m0"


def test_label_smoothing_gives_the_loss_of_robust_dpo(dpo: Callable[..., Any], expected: Callable[..., float]) -> None:
    loss, _ = dpo(reference="m0", label_smoothing=0.3)
    assert loss == pytest.approx(expected("m0", 0.3), abs=1e-3)
    assert abs(loss - expected("m0")) > 0.01


def test_the_nll_term_adds_the_mean_over_the_chosen_tokens(dpo: Callable[..., Any], runtime: RuntimeSettings) -> None:
    loss, _ = dpo(nll_coef=0.5)
    stack = AdapterStack(Path("models/base"), runtime)
    stack.add("m1", Path("models/m1"))
    tokens = sum(len(encode_completion(stack.tokenizer, pair.chosen)) for pair in PAIRS)
    nll = -float(logprobs(stack, "m1")[:, 0].sum()) / tokens
    assert loss == pytest.approx(math.log(2) + 0.5 * nll, abs=1e-3)


@pytest.mark.parametrize(("rows", "steps"), [(2, 1), (1, 2)])
def test_the_nll_term_is_the_same_however_a_step_is_cut_into_micro_batches(
    rows: int, steps: int, dpo: Callable[..., Any], runtime: RuntimeSettings
) -> None:
    cut = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": steps}
    (loss, _), stack = dpo(nll_coef=0.5, **cut), AdapterStack(Path("models/base"), runtime)
    stack.add("m1", Path("models/m1"))
    lengths = [len(encode_completion(stack.tokenizer, pair.chosen)) for pair in PAIRS]
    means = -logprobs(stack, "m1")[:, 0] / torch.tensor(lengths)
    over_tokens, over_pairs = float((means * torch.tensor(lengths)).sum()) / sum(lengths), float(means.mean())
    assert loss == pytest.approx(math.log(2) + 0.5 * over_tokens, abs=1e-3)
    assert abs(over_tokens - over_pairs) > 0.01  # what a mean of the micro-batches' means would be


def test_the_tokenizer_of_the_model_is_the_bases(dpo: Callable[..., Any], tiny_base: Path) -> None:
    dpo()
    assert load_tokenizer(Path("models/m2")).get_vocab() == load_tokenizer(tiny_base).get_vocab()
