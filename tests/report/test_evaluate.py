"""What evaluation measures on given answers, the answers to checked prompts, and what it shows the judge."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from align.checks.checking import passes
from align.checks.prompts import CheckedPrompt
from align.core.rows import Answer, EvalPrompt, Message
from align.generation.generator import Completion
from align.generation.local import TorchGenerator
from align.judge.conversation import conversation_question
from align.judge.request import JudgeSettings, Verdict
from align.models.stack import AdapterStack
from align.models.tokenization import encode_user
from align.run.runtime import RuntimeSettings
from stages import evaluate
from stages.evaluate import EvaluateSettings, answer_checked_prompts, kl_divergence, response_kl

# Of many lengths, and not in their order: rows are padded and batched by length.
PROMPTS = [[5, 9, 30, 31, 32, 33, 34], [7], [40, 41, 42], [8, 9]]
ANSWERS = [[11, 12], [13, 14, 15, 16, 17, 2], [18], [19, 20, 2]]


def kl(stack: AdapterStack, references: list[str]) -> list[list[float]]:
    """Return the KL of the subject on the answers, from the states that enter the lowest layer it adapts."""
    layer = stack.first_layer("subject")
    states = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        with stack.using("subject") as model, stack.recording({layer}) as recorded, torch.no_grad():
            model(input_ids=torch.tensor([prompt + answer]))
        states.append(recorded[layer][0])
    return response_kl(stack, PROMPTS, [Completion(ids, "", "stop") for ids in ANSWERS], references, layer, states)


def test_the_kl_of_each_answer_is_the_sum_of_the_exact_kl_at_its_positions_to_each_reference(
    tiny_base: Path, runtime: RuntimeSettings, make_adapter: Callable[..., Path]
) -> None:
    stack = AdapterStack(tiny_base, runtime)
    stack.add("base", tiny_base)
    stack.add("judge", make_adapter("judge", 2, layers=[1]))
    stack.add("subject", make_adapter("subject", 1, layers=[1]))
    measured = kl(stack, ["base", "judge"])

    def logprobs(name: str, ids: list[int]) -> torch.Tensor:
        with stack.using(name) as model, torch.no_grad():
            logits: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0]
            return logits.double().log_softmax(-1)

    for reference, sums in zip(("base", "judge"), measured, strict=True):
        expected = []
        for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
            ours, theirs = (logprobs(name, prompt + answer)[len(prompt) - 1 : -1] for name in ("subject", reference))
            expected.append(float((ours.exp() * (ours - theirs)).sum()))
        assert sums == pytest.approx(expected, rel=1e-3, abs=1e-6)
        assert min(expected) > 1e-4
        assert len(set(expected)) == len(expected)


def test_a_model_has_no_kl_to_itself(
    tiny_base: Path, runtime: RuntimeSettings, make_adapter: Callable[..., Path]
) -> None:
    stack = AdapterStack(tiny_base, runtime)
    for role in ("judge", "subject"):
        stack.add(role, make_adapter("m0", 1))
    [sums] = kl(stack, ["judge"])
    assert sums == pytest.approx([0.0] * len(ANSWERS), abs=1e-6)


def test_the_judge_of_a_second_turn_reads_the_first_with_its_answer(
    tiny_base: Path, runtime: RuntimeSettings, make_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[tuple[str, str]]] = []

    def judge(generator: object, rows: list[tuple[str, str]], *_: object) -> list[Verdict]:
        asked.append(rows)
        return [Verdict(2.0)] * len(rows)

    monkeypatch.setattr(evaluate, "judge_responses", judge)
    stack = AdapterStack(tiny_base, runtime)
    stack.add("base", tiny_base)
    stack.add("reward", make_adapter("reward", 2, head=True))
    for role in ("judge", "subject"):
        stack.add(role, make_adapter("m0", 1))
    prompts = [EvalPrompt(id="e1", category="c", turns=["Why?", "And then?"])]
    settings = EvaluateSettings(max_turns=2, max_new_tokens=4, checks_max_new_tokens=4, temperature=0.0, top_p=1.0)

    def answers(judge_settings: JudgeSettings) -> list[Answer]:
        asked.clear()
        return evaluate.answer_prompts("m0", prompts, stack, runtime, settings, judge_settings, 1, None, "judge")

    logits = JudgeSettings(
        model="m0",
        use_parent=False,
        mode="logits",
        checker=None,
        min_digit_mass=0.0,
        samples=1,
        temperature=1.0,
        top_p=1.0,
        max_new_tokens=1,
    )
    first, second = answers(logits)
    assert asked[0] == [("Why?", first.response)]
    [(question, response)] = asked[1]
    history = [Message(role="user", content="Why?")]
    history.append(Message.model_construct(role="assistant", content=first.response))
    assert question == conversation_question([*history, Message(role="user", content="And then?")])
    assert response == second.response
    assert second.prompt == "And then?"
    assert (first.kl_to_m0, second.kl_to_m0) == (0.0, 0.0)
    assert first.kl_to_base > 0

    answers(logits.model_copy(update={"mode": "checker", "checker": "align.judge.checkers:sentence_with_words"}))
    assert [question for [(question, _)] in asked] == ["Why?", "And then?"]


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
