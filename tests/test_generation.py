"""Decoding: the same tokens whatever stands next to a row, and the distribution that was asked for."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.lib import generation
from stages.lib.generation import (
    MAX_LENGTH_RATIO,
    Completion,
    SamplingParams,
    generate,
    left_pad,
    like_lengths,
    next_token_logprobs,
    sample_tokens,
)
from stages.lib.models import load_base, load_tokenizer
from stages.lib.runtime import RuntimeSettings
from stages.lib.tokenization import encode_user
from tests.conftest import tiny_gpt2

GREEDY = SamplingParams(max_new_tokens=12, temperature=0.0)
SAMPLED = SamplingParams(max_new_tokens=12, temperature=1.0)
NUCLEUS = SamplingParams(max_new_tokens=12, temperature=1.3, top_p=0.8)
TEXTS = (
    "Hi",
    "What is rust?",
    "Tell me a story about a small dog and 12 cats.",
    "Why?",
    "How long can rice sit",
    "Why?",
)
EOS_SCALE = {"llama": 3, "gpt2": 6}
SEEDS = [11, 12, 13, 14, 15, 16]


def embeddings(model: PreTrainedModel) -> Tensor:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(tiny_base)


@pytest.fixture(scope="module", params=EOS_SCALE)
def model(
    request: pytest.FixtureRequest, tiny_base: Path, runtime: RuntimeSettings, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    model: PreTrainedModel = load_base(tiny_base, runtime) if request.param == "llama" else tiny_gpt2(tokenizer).eval()
    with torch.no_grad():  # an EOS that is likely now and then: rows end at different steps
        embeddings(model)[tokenizer.eos_token_id] *= EOS_SCALE[request.param]
    return model


@pytest.fixture(scope="module")
def prompts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return [encode_user(tokenizer, text) for text in TEXTS]


def ids(completions: Sequence[Sequence[Completion]]) -> list[list[list[int]]]:
    return [[completion.token_ids for completion in row] for row in completions]


def test_greedy_decoding_equals_transformers_own(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    input_ids, mask = left_pad(prompts, int(tokenizer.pad_token_id or 0), model.device)
    theirs = model.generate(  # type: ignore[operator]
        input_ids=input_ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=GREEDY.max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )[:, input_ids.shape[1] :].tolist()
    expected = []
    for row in theirs:
        end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
        expected.append([row[:end]])
    assert ids(generate(model, tokenizer, prompts, GREEDY, SEEDS, batch_size=4)) == expected


def test_a_prompt_alone_and_among_longer_ones_gets_the_same_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    together = generate(model, tokenizer, prompts, GREEDY, SEEDS, batch_size=len(prompts))
    alone = [generate(model, tokenizer, [prompt], GREEDY, [0], batch_size=1)[0] for prompt in prompts]
    assert ids(together) == ids(alone)


@pytest.mark.parametrize("sampling", [SAMPLED, NUCLEUS])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_samples_depend_neither_on_prompt_order_nor_on_batch_size(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    sampling: SamplingParams,
    batch_size: int,
) -> None:
    expected = ids(generate(model, tokenizer, prompts, sampling, SEEDS, n=2, batch_size=64))
    order = [3, 0, 5, 1, 4, 2]
    found = generate(
        model, tokenizer, [prompts[i] for i in order], sampling, [SEEDS[i] for i in order], n=2, batch_size=batch_size
    )
    assert ids(found) == [expected[i] for i in order]


def test_the_first_samples_do_not_depend_on_how_many_follow(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    two = ids(generate(model, tokenizer, prompts, SAMPLED, SEEDS, n=2, batch_size=8))
    four = ids(generate(model, tokenizer, prompts, SAMPLED, SEEDS, n=4, batch_size=8))
    assert [row[:2] for row in four] == two


def test_samples_of_one_prompt_and_of_two_seeds_differ(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    [samples] = ids(generate(model, tokenizer, prompts[:1], SAMPLED, [1], n=4, batch_size=4))
    [others] = ids(generate(model, tokenizer, prompts[:1], SAMPLED, [2], n=4, batch_size=4))
    assert len({tuple(sample) for sample in [*samples, *others]}) == 8


def test_a_row_stops_exactly_when_its_last_token_is_the_only_eos(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    completions = [
        completion
        for row in generate(model, tokenizer, prompts, SAMPLED, SEEDS, n=4, batch_size=8)
        for completion in row
    ]
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}
    for completion in completions:
        assert tokenizer.eos_token_id not in completion.token_ids[:-1]
        stopped = completion.token_ids[-1] == tokenizer.eos_token_id
        assert completion.finish_reason == ("stop" if stopped else "length")
        assert stopped or len(completion.token_ids) == SAMPLED.max_new_tokens


def test_the_text_is_the_tokens_without_the_eos(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    for row in generate(model, tokenizer, prompts, SAMPLED, SEEDS, n=4, batch_size=8):
        for completion in row:
            real = [token for token in completion.token_ids if token not in tokenizer.all_special_ids]
            assert completion.text == tokenizer.decode(real)
            assert str(tokenizer.eos_token) not in completion.text


def test_rows_of_a_batch_end_at_different_steps(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    completions = ids(generate(model, tokenizer, prompts, SAMPLED, SEEDS, n=4, batch_size=64))
    assert len({len(sample) for row in completions for sample in row}) > 2


def test_a_seed_and_its_sample_number_give_the_tokens_of_the_models_own_distribution(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    prompt, count = prompts[1], 2000
    first = SamplingParams(max_new_tokens=1, temperature=0.7)
    [samples] = generate(model, tokenizer, [prompt], first, [5], n=count, batch_size=count)
    with torch.no_grad():
        probs = (model(torch.tensor([prompt])).logits[0, -1].double() / 0.7).softmax(-1)
    drawn = torch.bincount(torch.tensor([s.token_ids[0] for s in samples]), minlength=len(probs)).double()
    expected = count * probs
    assert bool(((drawn - expected).abs() <= 5 * (expected * (1 - probs)).sqrt() + 1).all())


def inverse_cdf(logits: Tensor, sampling: SamplingParams, uniform: float) -> int:
    """Draw a token the slow way: sort everything, keep the nucleus, walk up to the share `uniform` of it."""
    probs = (logits.double() / sampling.temperature).softmax(-1)
    order = probs.argsort(descending=True).tolist()
    nucleus: list[int] = []
    while order and sum(float(probs[token]) for token in nucleus) < sampling.top_p:
        nucleus.append(order.pop(0))
    share, total = 0.0, sum(float(probs[token]) for token in nucleus)
    for token in nucleus:
        share += float(probs[token]) / total
        if uniform < share:
            return token
    return nucleus[-1]


def mixed_rows() -> Tensor:
    """Return peaked and flat rows, 16 of each: a few tokens are enough for the former and not for the latter."""
    logits = torch.randn(32, 30, generator=torch.Generator().manual_seed(4))
    return torch.cat([logits[:16] * 6, logits[16:] * 0.5])


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_top_p_equals_a_full_sort_of_the_vocabulary(monkeypatch: pytest.MonkeyPatch, top_p: float) -> None:
    monkeypatch.setattr(generation, "TOP_TOKENS", 4)
    sampling = SamplingParams(1, 0.8, top_p)
    logits, uniforms = mixed_rows(), torch.rand(32, generator=torch.Generator().manual_seed(5))
    expected = [inverse_cdf(row, sampling, u) for row, u in zip(logits, uniforms.tolist(), strict=True)]
    assert sample_tokens(logits, sampling, uniforms).tolist() == expected
    alone = [int(sample_tokens(logits[[i]], sampling, uniforms[[i]])) for i in range(32)]
    assert alone == expected


def test_sampled_frequencies_are_the_softmax_at_the_temperature() -> None:
    logits, count = torch.tensor([2.0, 1.0, 0.0, -1.0, -5.0]), 20000
    uniforms = torch.rand(count, generator=torch.Generator().manual_seed(6))
    tokens = sample_tokens(logits.expand(count, -1), SamplingParams(1, 0.7), uniforms)
    probs = (logits.double() / 0.7).softmax(-1)
    drawn = torch.bincount(tokens, minlength=5).double() / count
    assert bool(((drawn - probs).abs() < 5 * (probs * (1 - probs) / count).sqrt()).all())


def test_no_token_outside_the_nucleus_is_ever_drawn() -> None:
    probs = torch.tensor([0.05, 0.4, 0.2, 0.3, 0.05], dtype=torch.float64)
    count = 20000
    uniforms = torch.rand(count, generator=torch.Generator().manual_seed(7))
    tokens = sample_tokens(probs.log().expand(count, -1), SamplingParams(1, 1.0, 0.65), uniforms)
    drawn = torch.bincount(tokens, minlength=5).double() / count
    nucleus = torch.tensor([0, 4, 0, 3, 0], dtype=torch.float64) / 7
    assert bool(((drawn - nucleus).abs() <= 5 * (nucleus * (1 - nucleus) / count).sqrt()).all())


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_an_impossible_token_is_not_drawn_even_at_the_ends(uniform: float, top_p: float) -> None:
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 1.0, -torch.inf]])
    token = int(sample_tokens(logits, SamplingParams(1, 1.0, top_p), torch.tensor([uniform])))
    assert token in (1, 3)


def test_temperature_0_takes_the_most_likely_token() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, -1.0, 4.9]])
    assert sample_tokens(logits, SamplingParams(1, 0.0, 0.5), torch.tensor([0.99, 0.99])).tolist() == [1, 0]


PROMPT_SETS = {
    "shared prefix": [[1, 7, 8, 9, 20], [1, 7, 8, 30], [1, 7, 8, 9, 20, 21, 22]],
    "one is a prefix of another": [[1, 7, 8], [1, 7, 8, 9, 10], [1, 7]],
    "nothing shared": [[4, 5, 6], [7], [8, 9]],
    "equal": [[3, 4, 5], [3, 4, 5]],
    "single": [[3, 4, 5, 6]],
    "pad id in the prompt": [[0, 3, 0, 4], [0, 3, 9, 9, 9]],
}


@pytest.mark.parametrize("rows", PROMPT_SETS.values(), ids=PROMPT_SETS)
@pytest.mark.parametrize("batch_size", [1, 8])
def test_next_token_logprobs_are_those_of_each_prompt_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[list[int]], batch_size: int
) -> None:
    choices = [20, 3, 599]
    found = next_token_logprobs(model, tokenizer, rows, choices, batch_size=batch_size)
    for row, logprobs in zip(rows, found, strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([row])).logits[0, -1].double().log_softmax(-1)[choices]
        torch.testing.assert_close(torch.tensor(logprobs, dtype=torch.float64), expected, rtol=1e-4, atol=1e-5)


@given(lengths=st.lists(st.integers(1, 300), max_size=60), batch_size=st.integers(1, 9))
def test_batches_of_like_lengths_hold_each_row_once_in_order_with_little_padding(
    lengths: list[int], batch_size: int
) -> None:
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    batches = list(like_lengths(order, lengths, batch_size))
    assert [i for batch in batches for i in batch] == order
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert all(lengths[batch[-1]] <= MAX_LENGTH_RATIO * lengths[batch[0]] for batch in batches)
    # Full wherever the lengths allow it.
    for batch, following in pairwise(batches):
        assert len(batch) == batch_size or lengths[following[0]] > MAX_LENGTH_RATIO * lengths[batch[0]]
