"""The KL divergence between two models on given answers, and the answers to checked prompts."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from align.checks.checking import passes
from align.checks.prompts import CheckedPrompt
from align.generation.generator import Completion
from align.generation.local import TorchGenerator
from align.models.stack import AdapterStack
from align.models.tokenization import encode_user
from align.run.runtime import RuntimeSettings
from stages.evaluate import EvaluateSettings, answer_checked_prompts, kl_divergence, kl_to_base

# Of many lengths, and not in their order: rows are padded and batched by length.
PROMPTS = [[5, 9, 30, 31, 32, 33, 34], [7], [40, 41, 42], [8, 9]]
ANSWERS = [[11, 12], [13, 14, 15, 16, 17, 2], [18], [19, 20, 2]]


def test_the_kl_of_each_answer_is_the_mean_of_the_exact_kl_at_its_positions(
    tiny_base: Path, runtime: RuntimeSettings, make_adapter: Callable[..., Path]
) -> None:
    stack = AdapterStack(tiny_base, runtime)
    stack.add("base", tiny_base)
    stack.add("subject", make_adapter("subject", 1))
    found = kl_to_base(stack, PROMPTS, [Completion(ids, "", "stop") for ids in ANSWERS])

    def logprobs(name: str, ids: list[int]) -> torch.Tensor:
        with stack.using(name) as model, torch.no_grad():
            logits: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0]
            return logits.double().log_softmax(-1)

    expected = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        ours, base = (logprobs(name, prompt + answer)[len(prompt) - 1 : -1] for name in ("subject", "base"))
        expected.append(float((ours.exp() * (ours - base)).sum(-1).mean()))
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert min(expected) > 1e-4
    assert len(set(expected)) == len(expected)


def test_kl_divergence_has_the_value_computed_by_hand() -> None:
    p, q = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.25, 0.75]]]).log()
    assert float(kl_divergence(p, q)) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-5)
    assert float(kl_divergence(q, p)) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), rel=1e-5)


def test_kl_divergence_is_0_between_equal_distributions_and_positive_otherwise() -> None:
    logits, other = torch.randn(2, 6, 5, 9, generator=torch.Generator().manual_seed(1))
    assert float(kl_divergence(logits, logits + 3.0).abs().max()) < 1e-6
    assert float(kl_divergence(logits, other).min()) > 0.05


def test_checked_answers_are_the_greedy_completions_up_to_their_own_cap_with_what_each_check_says(
    tiny_base: Path, runtime: RuntimeSettings, make_adapter: Callable[..., Path]
) -> None:
    stack = AdapterStack(tiny_base, runtime)
    stack.add("subject", make_adapter("subject", 1))
    settings = EvaluateSettings(max_turns=1, max_new_tokens=3, checks_max_new_tokens=6, temperature=0.0, top_p=1.0)
    values = [{"kind": "words", "min": 2}, {"kind": "upper_case"}]
    prompts = [
        CheckedPrompt.model_validate({"id": f"c{i}", "prompt": f"Say {word}.", "checks": values[: i % 2 + 1]})
        for i, word in enumerate(("yes", "no", "please"))
    ]
    with stack.using("subject") as model:
        generator = TorchGenerator(model, stack.tokenizer, batch_size=2)
        answers = answer_checked_prompts("m0", prompts, generator, settings, seed=1)
        ids = torch.tensor([encode_user(stack.tokenizer, "Say no.")])
        for _ in range(6):
            with torch.no_grad():
                ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    assert [(row.id, row.prompt) for row in answers] == [(row.id, row.prompt) for row in prompts]
    assert answers[1].response == str(stack.tokenizer.decode(ids[0, -6:])).strip()
    assert [(row.num_tokens, row.finish_reason) for row in answers] == [(6, "length")] * 3
    for row, answer in zip(prompts, answers, strict=True):
        assert answer.strict == [passes(check, answer.response, "length") for check in row.checks]
        assert len(answer.loose) == len(row.checks)
