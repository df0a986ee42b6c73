"""Decoding: the same tokens whatever stands next to a row, and the distribution that was asked for."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.generation.generator import Completion
from align.generation.local import TorchGenerator
from align.generation.sampling import SamplingParams
from align.models.base import load_base, load_tokenizer
from align.models.batching import left_pad
from align.models.tokenization import encode_user
from align.run.runtime import RuntimeSettings
from tests.factories import tiny_gpt2

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
    assert ids(TorchGenerator(model, tokenizer, 4).generate(prompts, GREEDY, SEEDS)) == expected


def test_a_prompt_alone_and_among_longer_ones_gets_the_same_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    together = TorchGenerator(model, tokenizer, len(prompts)).generate(prompts, GREEDY, SEEDS)
    alone = [TorchGenerator(model, tokenizer, 1).generate([prompt], GREEDY, [0])[0] for prompt in prompts]
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
    expected = ids(TorchGenerator(model, tokenizer, 64).generate(prompts, sampling, SEEDS, n=2))
    order = [3, 0, 5, 1, 4, 2]
    found = TorchGenerator(model, tokenizer, batch_size).generate(
        [prompts[i] for i in order], sampling, [SEEDS[i] for i in order], n=2
    )
    assert ids(found) == [expected[i] for i in order]


def test_the_first_samples_do_not_depend_on_how_many_follow(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    two = ids(TorchGenerator(model, tokenizer, 8).generate(prompts, SAMPLED, SEEDS, n=2))
    four = ids(TorchGenerator(model, tokenizer, 8).generate(prompts, SAMPLED, SEEDS, n=4))
    assert [row[:2] for row in four] == two


def test_samples_of_one_prompt_and_of_two_seeds_differ(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    [samples] = ids(TorchGenerator(model, tokenizer, 4).generate(prompts[:1], SAMPLED, [1], n=4))
    [others] = ids(TorchGenerator(model, tokenizer, 4).generate(prompts[:1], SAMPLED, [2], n=4))
    assert len({tuple(sample) for sample in [*samples, *others]}) == 8


def test_a_row_stops_exactly_when_its_last_token_is_the_only_eos(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    completions = [
        completion
        for row in TorchGenerator(model, tokenizer, 8).generate(prompts, SAMPLED, SEEDS, n=4)
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
    for row in TorchGenerator(model, tokenizer, 8).generate(prompts, SAMPLED, SEEDS, n=4):
        for completion in row:
            real = [token for token in completion.token_ids if token not in tokenizer.all_special_ids]
            assert completion.text == tokenizer.decode(real)
            assert str(tokenizer.eos_token) not in completion.text


def test_rows_of_a_batch_end_at_different_steps(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    completions = ids(TorchGenerator(model, tokenizer, 64).generate(prompts, SAMPLED, SEEDS, n=4))
    assert len({len(sample) for row in completions for sample in row}) > 2


def test_a_seed_and_its_sample_number_give_the_tokens_of_the_models_own_distribution(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    prompt, count = prompts[1], 2000
    first = SamplingParams(max_new_tokens=1, temperature=0.7)
    [samples] = TorchGenerator(model, tokenizer, count).generate([prompt], first, [5], n=count)
    with torch.no_grad():
        probs = (model(torch.tensor([prompt])).logits[0, -1].double() / 0.7).softmax(-1)
    drawn = torch.bincount(torch.tensor([s.token_ids[0] for s in samples]), minlength=len(probs)).double()
    expected = count * probs
    assert bool(((drawn - expected).abs() <= 5 * (expected * (1 - probs)).sqrt() + 1).all())


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
    found = TorchGenerator(model, tokenizer, batch_size).next_token_logprobs(rows, choices)
    for row, logprobs in zip(rows, found, strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([row])).logits[0, -1].double().log_softmax(-1)[choices]
        torch.testing.assert_close(torch.tensor(logprobs, dtype=torch.float64), expected, rtol=1e-4, atol=1e-5)
