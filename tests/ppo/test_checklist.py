"""Lines of the PPO checklist (docs/PPO.md has them all) that no other test of PPO shows."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from align.core.errors import InputError
from align.generation.local import TorchGenerator
from align.generation.sampling import SamplingParams
from align.models.adapters import LoraSettings, save_adapter
from align.models.base import copy_tokenizer, load_base, load_tokenizer
from align.models.stack import AdapterStack
from align.ppo import trainer as ppo_trainer
from align.ppo.advantages import token_rewards
from align.ppo.losses import policy_loss, token_logprobs
from align.ppo.rewards import Task
from align.ppo.rollout import Rollout
from align.ppo.schedules import kl_coef_factor
from align.ppo.trainer import PPOTrainer
from align.run.runtime import RuntimeSettings
from tests.factories import tiny_gpt2
from tests.ppo.tiny import (
    MakeStack,
    all_parameters,
    critic,
    encoded,
    randomize,
    real_rows,
    returns_of,
    trainer,
    values_of,
)


def test_responses_are_sampled_from_the_whole_vocabulary_whatever_the_models_generation_config(
    make_stack: MakeStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[SamplingParams] = []

    class Recording(TorchGenerator):
        def generate(self, prompts: Any, sampling: SamplingParams, *args: Any, **kwargs: Any) -> Any:
            asked.append(sampling)
            return super().generate(prompts, sampling, *args, **kwargs)

    monkeypatch.setattr(ppo_trainer, "TorchGenerator", Recording)
    stack, strange = make_stack(), make_stack()
    config = strange.causal_lm.generation_config
    assert config is not None
    config.top_k, config.top_p, config.temperature, config.repetition_penalty = 1, 0.1, 0.2, 3.0
    first, second = (trainer(s, temperature=0.8).rollout(encoded(s)) for s in (stack, strange))
    assert asked == [SamplingParams(10, 0.8, top_p=1.0)] * 2
    assert torch.equal(first.input_ids, second.input_ids)


def test_nothing_follows_the_first_eos_of_a_response_and_a_cut_off_one_has_none(make_stack: MakeStack) -> None:
    stack = make_stack()
    rollout = trainer(stack).rollout(encoded(stack, 16))
    eos = stack.tokenizer.eos_token_id
    assert set(rollout.ended.tolist()) == {True, False}
    for (ids, count), ended in zip(real_rows(rollout), rollout.ended.tolist(), strict=True):
        response = ids[-count:]
        assert response.count(eos) == (1 if ended else 0)
        assert (response[-1] == eos) == ended
        assert ended or count == 10


def test_a_base_whose_pad_token_is_eos_is_refused_before_any_rollout(
    tiny_base: Path, runtime: RuntimeSettings, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match="the pad token is the EOS token"):
        AdapterStack(folder, runtime)


def test_no_gradient_flows_through_anything_that_a_rollout_holds(make_stack: MakeStack) -> None:
    stack = make_stack()
    rollout = trainer(stack).rollout(encoded(stack))
    tensors = [value for value in vars(rollout).values() if isinstance(value, Tensor)]
    assert len(tensors) == len(vars(rollout)) - 1 == 14  # all but the means
    assert not any(tensor.requires_grad for tensor in tensors)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_only_k1_in_the_reward_gives_the_gradient_of_the_kl_divergence(estimator: str) -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(6, dtype=torch.float64, generator=generator).requires_grad_(True)
    logq = torch.randn(6, dtype=torch.float64, generator=generator).log_softmax(-1)
    logp = logits.log_softmax(-1)
    [exact] = torch.autograd.grad((logp.exp() * (logp - logq)).sum(), logits)

    logp = logits.log_softmax(-1)
    if estimator == "k1":  # what `token_rewards` takes off, for each of the six tokens as a response of its own
        mask = torch.ones(6, 1, dtype=torch.bool)
        penalty = -token_rewards(logp.detach()[:, None], logq[:, None], torch.zeros(6), mask, 1.0).squeeze(1)
    else:
        ratio = logp.detach() - logq
        penalty = {"k2": 0.5 * ratio**2, "k3": (-ratio).exp() - 1 + ratio}[estimator]
    # The expectation over all tokens of REINFORCE's gradient.
    [found] = torch.autograd.grad((logp.exp().detach() * penalty * logp).sum(), logits)
    same = torch.allclose(found, exact, rtol=1e-9, atol=1e-12)
    assert same == (estimator == "k1")


@pytest.mark.parametrize("impossible", [-math.inf, math.inf, -1e30])
def test_a_token_that_one_model_finds_impossible_leaves_reward_and_loss_finite(impossible: float) -> None:
    mask = torch.ones(1, 2, dtype=torch.bool)
    usual, odd = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.0, impossible]])
    for pair in ((usual, odd), (odd, usual)):
        rewards = token_rewards(*pair, torch.tensor([1.0]), mask, 0.1)
        assert bool(rewards.isfinite().all())
        logprobs = pair[0].clone().requires_grad_(True)
        loss = policy_loss(logprobs, pair[1], torch.tensor([[1.0, -1.0]]), mask, 0.2).sum()
        loss.backward()
        assert math.isfinite(float(loss.detach()))
        assert logprobs.grad is not None
        assert bool(logprobs.grad.isfinite().all())


def test_a_cut_off_response_gets_the_score_for_it_and_a_finished_one_its_own(make_stack: MakeStack) -> None:
    stack = make_stack()
    truncated = {"mode": "score", "value": -7.0, "soft_punish_cache": None}
    changes: dict[str, Any] = {"lam": 1.0, "kl_coef": 0.0, "truncated": truncated}
    rollout = trainer(stack, **changes).rollout(encoded(stack, 16))
    assert set(rollout.ended.tolist()) == {True, False}
    expected = torch.where(rollout.ended, rollout.scores, -7.0).unsqueeze(1).expand_as(rollout.response_mask)
    torch.testing.assert_close(returns_of(rollout)[rollout.response_mask], expected[rollout.response_mask])


def test_the_optimizers_are_adam_with_an_eps_of_1e_5_and_no_weight_decay(make_stack: MakeStack) -> None:
    for optimizer in trainer(make_stack()).optimizers.values():
        [group] = optimizer.param_groups
        assert (group["eps"], group["weight_decay"], group["betas"]) == (1e-5, 0.0, (0.9, 0.999))


def adapter_with_dropout(base: Path, runtime: RuntimeSettings, folder: Path) -> Path:
    torch.manual_seed(4)
    lora = LoraSettings(r=4, lora_alpha=8, lora_dropout=0.5, target_modules="all-linear", layers_to_transform=None)
    model = get_peft_model(load_base(base, runtime, AutoModelForCausalLM), lora.config(task_type="CAUSAL_LM"))
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(model, folder)
    return folder


def test_dropout_of_an_adapter_is_off_so_that_two_forwards_are_equal(
    make_stack: MakeStack, tiny_base: Path, runtime: RuntimeSettings, tmp_path: Path
) -> None:
    folder = adapter_with_dropout(tiny_base, runtime, tmp_path / "dropout")
    stack = AdapterStack(tiny_base, runtime)
    make_stack()  # writes the reward model's folder
    for name in ("policy", "reference"):
        stack.add(name, folder)
    for name in ("reward", "value"):
        stack.add(name, tmp_path / "reward")
    row = trainer(stack).step()
    assert row["kl"] == pytest.approx(0, abs=1e-5)
    assert row["ratio"] == pytest.approx(1, abs=1e-5)
    stack.causal_lm.train()  # what the start-up check is for
    with pytest.raises(InputError, match="before the first update"):
        trainer(stack).step()


def test_logprobs_do_not_depend_on_padding_in_a_model_with_learned_positions(
    tiny_base: Path, runtime: RuntimeSettings, tmp_path: Path
) -> None:
    base = tmp_path / "gpt2"
    tiny_gpt2(load_tokenizer(tiny_base)).save_pretrained(base)
    copy_tokenizer(tiny_base, base)
    lora = LoraSettings(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=["c_attn"], layers_to_transform=None)
    for name, auto_class, task in (
        ("policy", AutoModelForCausalLM, "CAUSAL_LM"),
        ("reward", AutoModelForSequenceClassification, "SEQ_CLS"),
    ):
        kwargs = {"num_labels": 1} if task == "SEQ_CLS" else {}
        extra = {"modules_to_save": ["score"]} if task == "SEQ_CLS" else {}
        config = lora.config(task_type=task, fan_in_fan_out=True, **extra)
        save_adapter(get_peft_model(load_base(base, runtime, auto_class, **kwargs), config), tmp_path / name)
    stack = AdapterStack(base, runtime)
    for name in ("policy", "reference", "reward", "value"):
        stack.add(name, tmp_path / {"reference": "policy", "value": "reward"}.get(name, name))
    ppo = trainer(stack, temperature=0.7)
    rollout = ppo.rollout(encoded(stack))
    for i, (ids, count) in enumerate(real_rows(rollout)):
        with stack.using("policy") as model, torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[:, -count - 1 : -1]
        expected = token_logprobs(logits, torch.tensor([ids[-count:]]), 0.7)
        torch.testing.assert_close(rollout.logprobs[i][rollout.response_mask[i]], expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kl", "factor"), [(12.0, 1.2), (6.6, 1.1), (6.0, 1.0), (5.4, 0.9), (0.0, 0.8), (-3.0, 0.8), (1e9, 1.2)]
)
def test_the_adaptive_kl_coefficient_follows_the_kl_by_at_most_a_fifth(kl: float, factor: float) -> None:
    assert kl_coef_factor(kl, target=6.0, share=1.0) == pytest.approx(factor)
    assert kl_coef_factor(kl, target=6.0, share=0.25) == pytest.approx(1 + (factor - 1) / 4)


def test_the_adapted_kl_coefficient_is_that_of_the_next_update(make_stack: MakeStack) -> None:
    fixed, adaptive = (
        [ppo.step()["kl_coef"] for _ in range(2)]
        for ppo in (
            trainer(make_stack()),
            trainer(make_stack(), adaptive_kl_target=1e-9 + 1.0, adaptive_kl_horizon=8),
        )
    )
    assert fixed == [0.05, 0.05]
    assert adaptive == pytest.approx([0.05, 0.05 * 0.8])  # the first KL is 0, far below the target


class Counting(PPOTrainer):
    """Counts how often each row of a rollout is trained on."""

    uses: list[int]

    def _mini_batch(self, rollout: Rollout, rows: Tensor, check: bool) -> dict[str, float]:
        self.uses = [*getattr(self, "uses", []), *rows.tolist()]
        return super()._mini_batch(rollout, rows, check)


def test_every_response_is_used_once_an_epoch_in_mini_batches_of_another_order(make_stack: MakeStack) -> None:
    stack = make_stack()
    plain = trainer(stack, mini_batch_size=4, per_device_train_batch_size=2, num_ppo_epochs=3)
    ppo = Counting(stack, encoded(stack), plain.settings, 17, batch_size=8)
    row = ppo.step()
    epochs = [ppo.uses[i : i + 8] for i in range(0, 24, 8)]
    assert len(ppo.uses) == 24
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    assert row["optimizer_steps"] == 6
    assert row["stopped_early"] == 0


def test_an_update_that_moves_too_far_stops_before_the_next_optimizer_step_and_says_so(make_stack: MakeStack) -> None:
    changes: dict[str, Any] = {"learning_rate": 1.0, "num_ppo_epochs": 4}
    far = trainer(make_stack(), **changes, target_kl=0.1).step()
    assert (far["stopped_early"], far["optimizer_steps"]) == (1, 1)
    assert trainer(make_stack(), **changes).step()["optimizer_steps"] == 4


def test_a_stopped_update_leaves_no_gradient_for_the_next_one(make_stack: MakeStack) -> None:
    ppo = trainer(make_stack(), learning_rate=1.0, num_ppo_epochs=4, target_kl=0.1)
    ppo.step()
    assert all(p.grad is None for p in all_parameters(ppo))


def test_the_value_adapter_and_its_head_get_a_gradient_and_survive_a_checkpoint(make_stack: MakeStack) -> None:
    stack = make_stack()
    ppo = trainer(stack)
    randomize(critic(ppo).head)
    ppo.step()
    again = trainer(make_stack())
    again.load_state_dict(*ppo.state_dict())
    prompts = encoded(stack)
    assert torch.equal(values_of(ppo.rollout(prompts)), values_of(again.rollout(prompts)))
    fresh = trainer(make_stack())
    fresh.updates_done = 1
    assert not torch.allclose(values_of(ppo.rollout(prompts)), values_of(fresh.rollout(prompts)))


def test_a_run_that_goes_on_from_its_state_ends_in_the_same_bytes(make_stack: MakeStack) -> None:
    changes: dict[str, Any] = {
        "mini_batch_size": 4,
        "num_ppo_epochs": 2,
        "adaptive_kl_target": 0.5,
        "adaptive_kl_horizon": 40,
    }
    whole = trainer(make_stack(), **changes)
    history = [whole.step() for _ in range(4)]
    first = trainer(make_stack(), **changes)
    cut = [first.step() for _ in range(2)]
    tensors, state = first.state_dict()
    tensors = {key: value.detach().clone() for key, value in tensors.items()}
    second = trainer(make_stack(), **changes)
    second.load_state_dict(tensors, state)
    assert [*cut, *(second.step() for _ in range(2))] == history
    expected, found = whole.state_dict(), second.state_dict()
    assert expected[1] == found[1]
    assert expected[0].keys() == found[0].keys()
    assert all(torch.equal(value, found[0][key]) for key, value in expected[0].items())
    assert len(expected[0]) == 4 * len(all_parameters(whole))


class Keeping(PPOTrainer):
    """Keeps the last rollout."""

    last: Rollout

    def rollout(self, prompts: Sequence[list[int]], tasks: Sequence[Task] = ()) -> Rollout:
        self.last = super().rollout(prompts, tasks)
        return self.last


def test_the_history_has_every_measure_and_its_means_are_over_real_tokens(make_stack: MakeStack) -> None:
    stack = make_stack()
    plain = trainer(stack, rollout_batch_size=16, mini_batch_size=4, per_device_train_batch_size=2)
    ppo = Keeping(stack, encoded(stack), plain.settings, 17, batch_size=8)
    row = ppo.step()
    rollout = ppo.last
    mask = rollout.response_mask
    assert row.keys() == {
        *("update", "mean_reward", "mean_score", "kl", "kl_coef", "objective", "eos_rate", "response_tokens"),
        *("mean_value", "explained_variance", "policy_loss", "value_loss", "entropy", "ratio", "clip_fraction"),
        *("approx_kl", "optimizer_steps", "stopped_early", "learning_rate"),
    }
    lengths = [count for _, count in real_rows(rollout)]
    assert len(set(lengths)) > 1
    assert row["response_tokens"] == pytest.approx(sum(lengths) / len(lengths))
    assert row["eos_rate"] == pytest.approx(float(rollout.ended.float().mean()))
    assert row["mean_value"] == pytest.approx(float(values_of(rollout)[mask].mean()))
    assert row["objective"] == pytest.approx(row["mean_reward"] - 0.05 * row["kl"])
