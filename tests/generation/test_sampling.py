"""Drawing a token: the distribution that was asked for, from temperature to the nucleus."""

import pytest
import torch
from torch import Tensor

from align.generation import sampling as sampling_module
from align.generation.sampling import SamplingParams, sample_tokens


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
    monkeypatch.setattr(sampling_module, "TOP_TOKENS", (4, 12))
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
