"""`ppo.truncated`: what becomes of responses that were cut off."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from align.ppo.advantages import truncated_rewards
from align.ppo.losses import kl_loss, policy_loss, value_loss
from align.ppo.rollout import Rollout
from align.ppo.settings import PPOSettings, TruncatedSettings
from align.ppo.trainer import PPOTrainer
from tests.ppo.tiny import KEEP, SETTINGS, MakeStack, all_parameters, critic, encoded, returns_of, trainer, values_of

MASK = KEEP | {"mode": "mask"}


def reference(score: float, length: int, ended: bool, s: TruncatedSettings, limit: int) -> float:
    """What one response gets, by the definitions; soft_punish is DAPO's equation 13, times the value."""
    match s.mode:
        case "penalty":
            return score if ended else score - (s.value or 0.0)
        case "score":
            return score if ended else (s.value or 0.0)
        case "soft_punish":
            cache = s.soft_punish_cache or 0
            if length <= limit - cache:
                return score
            return score + (s.value or 0.0) * ((limit - cache) - length) / cache
    return score


@given(data=st.data(), mode=st.sampled_from(["keep", "penalty", "score", "mask", "soft_punish"]))
def test_rewards_of_cut_off_responses_are_those_of_a_float64_reference(data: st.DataObject, mode: str) -> None:
    limit = data.draw(st.integers(1, 12))
    value = None if mode in ("keep", "mask") else data.draw(st.floats(0, 5))
    cache = data.draw(st.integers(1, limit)) if mode == "soft_punish" else None
    settings = TruncatedSettings.model_validate({"mode": mode, "value": value, "soft_punish_cache": cache})
    lengths = data.draw(st.lists(st.integers(1, limit), min_size=1, max_size=6))
    ended = [length < limit or data.draw(st.booleans()) for length in lengths]
    scores = [data.draw(st.floats(-5, 5)) for _ in lengths]
    mask = torch.arange(limit) < torch.tensor(lengths).unsqueeze(1)
    found = truncated_rewards(torch.tensor(scores), mask, torch.tensor(ended), settings, limit)
    rows = zip(scores, lengths, ended, strict=True)
    assert found.tolist() == pytest.approx([reference(*row, settings, limit) for row in rows], rel=1e-5, abs=1e-5)


def gradients(ppo: PPOTrainer) -> list[Tensor]:
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in all_parameters(ppo)]
    for optimizer in ppo.optimizers.values():
        optimizer.zero_grad()
    return found


@pytest.mark.parametrize(("advantage", "k"), [("gae", 1), ("rloo", 4), ("grpo", 4)])
def test_masked_responses_stay_in_the_baseline_and_give_no_gradient(
    make_stack: MakeStack, advantage: str, k: int
) -> None:
    stack = make_stack()
    changes: dict[str, Any] = {"advantage": advantage, "num_generations": k, "kl_coef": 0.5, "max_new_tokens": 24}
    ppo, plain = trainer(stack, truncated=MASK, **changes), trainer(stack, truncated=KEEP, **changes)
    ppo.step()
    rollout = ppo.rollout(encoded(stack, 24 // k))
    plain.updates_done = ppo.updates_done
    ended = rollout.ended
    assert set(ended.tolist()) == {True, False}
    assert torch.equal(rollout.loss_mask, rollout.response_mask & ended.unsqueeze(1))
    if advantage != "gae":  # the masked ones are among what the others are compared with
        kept = plain.rollout(encoded(stack, 24 // k))
        assert torch.equal(rollout.advantages, kept.advantages)
    rows = torch.arange(24)[ended]
    ppo._mini_batch(rollout, rows, check=False)
    found = gradients(ppo)
    mask = rollout.response_mask.clone()
    mask[~ended] = False
    logprobs = ppo._logprobs("policy", rollout)
    loss = policy_loss(logprobs, rollout.logprobs, rollout.advantages, mask, 0.2)
    if advantage == "grpo":
        loss = loss + 0.5 * kl_loss(logprobs, rollout.ref_logprobs, mask)
    total = loss.sum() / mask.sum()
    if advantage == "gae":
        error = value_loss(critic(ppo).values(rollout), values_of(rollout), returns_of(rollout), mask, 0.2)
        total = total + error.sum() / mask.sum()
    total.backward()
    for mine, wanted in zip(found, gradients(ppo), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5 + 1e-4 * float(wanted.abs().max()))


def test_an_update_drops_the_masked_rows_of_each_mini_batch(
    make_stack: MakeStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    ppo = trainer(make_stack(), truncated=MASK, mini_batch_size=4, max_new_tokens=24)
    seen: list[Tensor] = []
    rollouts: list[Rollout] = []
    plain, sample = ppo._mini_batch, ppo.rollout

    def mini_batch(rollout: Rollout, rows: Tensor, check: bool) -> dict[str, float]:
        seen.append(rows)
        return plain(rollout, rows, check)

    def keep(*arguments: Any) -> Rollout:
        rollouts.append(sample(*arguments))
        return rollouts[-1]

    monkeypatch.setattr(ppo, "_mini_batch", mini_batch)
    monkeypatch.setattr(ppo, "rollout", keep)
    row = ppo.step()
    [rollout] = rollouts
    assert sorted(torch.cat(seen).tolist()) == rollout.ended.nonzero().squeeze(1).tolist()
    assert 0 < row["eos_rate"] < 1
    assert row["ratio"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("advantage", "k"), [("gae", 1), ("rloo", 4), ("grpo", 4)])
def test_if_all_are_masked_there_is_no_step_and_no_crash(
    make_stack: MakeStack, monkeypatch: pytest.MonkeyPatch, advantage: str, k: int
) -> None:
    stack = make_stack()
    ppo = trainer(stack, truncated=MASK, max_new_tokens=1, advantage=advantage, num_generations=k)
    before = [parameter.detach().clone() for parameter in all_parameters(ppo)]
    sample = ppo.rollout

    def all_cut_off(*arguments: Any) -> Any:
        rollout = sample(*arguments)
        return replace(rollout, ended=rollout.ended & False, loss_mask=rollout.loss_mask & False)

    monkeypatch.setattr(ppo, "rollout", all_cut_off)
    row = ppo.step()
    after = all_parameters(ppo)
    # The critic's bias starts as the mean reward, before any step.
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)].count(False) == (advantage == "gae")
    assert (row["optimizer_steps"], row["stopped_early"], row["clip_fraction"], row["ratio"]) == (0, 0, 0, 1)
    assert all(value == value for value in row.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "keep", "value": 1.0}, "value null otherwise"),
        ({"mode": "mask", "value": 0.0}, "value null otherwise"),
        ({"mode": "penalty"}, "a value where"),
        ({"mode": "penalty", "value": -1.0}, "0 or more"),
        ({"mode": "score", "value": 1.0, "soft_punish_cache": 3}, "null otherwise"),
        ({"mode": "soft_punish", "value": 1.0}, "where mode is soft_punish"),
        ({"mode": "soft_punish", "value": 1.0, "soft_punish_cache": 11}, "at most max_new_tokens"),
    ],
)
def test_settings_that_do_not_fit_the_mode_are_an_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPOSettings.model_validate(SETTINGS | {"truncated": KEEP | changes})
