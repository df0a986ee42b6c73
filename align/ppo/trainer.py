"""Proximal policy optimization (arXiv 1707.06347) with a KL penalty against a reference, on LoRA adapters.

Policy, reference and reward are adapters over one base, and so is the value function that `advantage: gae` has. One
update: sample responses over the full vocabulary; recompute their log-probabilities with training's forward; score
them (`align.ppo.rewards`); compute advantages; then epochs of clipped updates. A loss is a mean over the tokens of the
whole mini-batch, however it is cut into micro-batches.

What `advantage` chooses:
- gae: reward of a token = -kl_coef * log-ratio, plus the score at the last token; GAE with a critic; whiten.
- rloo: reward of a response = score - kl_coef * its log-ratio, less the mean of the prompt's other responses.
- grpo: score less the prompt's mean, over the prompt's deviation; kl_coef * KL is a term of the loss.

An update computes its constant layers once: those below the lowest layer that policy, reference or reward model adapt,
and those of the reward model below the ones that the critic trains (`value_layers`). The forward that scores the
responses keeps their output states, where every other forward begins; without a reward model, the reference's does.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from align.core.errors import InputError
from align.generation.local import TorchGenerator
from align.generation.sampling import SamplingParams
from align.models.batching import place
from align.models.stack import AdapterStack
from align.ppo.advantages import gae, grpo, rloo, sequence_rewards, token_rewards, truncated_rewards, whiten
from align.ppo.critic import Critic
from align.ppo.losses import kl_loss, policy_loss, token_entropies, token_logprobs, value_loss
from align.ppo.rewards import Rewards, Task
from align.ppo.rollout import Batch, Rollout
from align.ppo.schedules import kl_coef_factor, rate_factor
from align.ppo.settings import PPOSettings
from align.reward.scoring import score_and_record
from align.run.runtime import row_seed
from align.training.optimizers import adamw

# Mean nats per token. Far above the rounding error on SmolLM2 (2e-7 in float32, 4e-3 in bfloat16, where a single token
# may be off by 0.4) and below that of a mistake (0.3 for a wrong mask, 0.02 for a LoRA dropout of 0.05).
SELF_TEST_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.5e-2}


class PPOTrainer:
    """Trains adapter `policy` of a stack that also has `reference`, and by the settings `reward` and `value`.

    Args:
        stack: these adapters; policy and reference must be equal, which the first rollout checks.
        prompts: token ids of the conversations to answer, drawn in shuffled passes.
        settings: section `ppo`.
        seed: that of the run.
        batch_size: rows decoded or scored together.
        tasks: what checkers get of each prompt; needed if a reward is a checker.
    """

    def __init__(
        self,
        stack: AdapterStack,
        prompts: Sequence[list[int]],
        settings: PPOSettings,
        seed: int,
        batch_size: int,
        tasks: Sequence[Task] = (),
    ) -> None:
        self.rewards, self._tasks = Rewards(settings.rewards), tasks
        self.stack, self.settings, self.seed, self.batch_size = stack, settings, seed, batch_size
        self.critic = Critic(stack, settings.value_layers) if settings.advantage == "gae" else None
        # Where the policy's forwards begin: below, policy, reference and reward model are equal.
        used = ("policy", "reference", "reward") if settings.uses_model else ("policy", "reference")
        self.policy_layer = min(stack.first_layer(name) for name in used)
        self.parameters = {"policy": stack.parameters("policy")}  # by optimizer
        self.learning_rates = {"policy": settings.learning_rate}
        if self.critic is not None:
            self.parameters["value"] = self.critic.parameters
            self.learning_rates["value"] = settings.value_learning_rate
        for parameter in (parameter for group in self.parameters.values() for parameter in group):
            parameter.requires_grad_(True)
        kind, options = adamw(stack.optim)
        # eps 1e-5 as in the original implementation.
        self.optimizers = {
            name: kind(group, lr=self.learning_rates[name], eps=1e-5, weight_decay=0.0, **options)
            for name, group in self.parameters.items()
        }
        self.tolerance = SELF_TEST_TOLERANCE[stack.compute_dtype]
        self._prompts = prompts
        self.updates_done = 0
        self.kl_coef = settings.kl_coef

    def step(self) -> dict[str, float]:
        """Run one update and return its row of the history."""
        settings = self.settings
        numbers = sorted(self._next_prompts(), key=lambda i: len(self._prompts[i]))  # similar lengths: little padding
        tasks = [self._tasks[i] for i in numbers] if self.rewards.checkers else []
        rollout = self.rollout([self._prompts[i] for i in numbers], tasks)
        if self.updates_done == 0:
            self._check_reference(rollout)
        metrics = {"update": self.updates_done + 1.0} | self._describe(rollout) | self._optimize(rollout)
        if settings.adaptive_kl_target is not None:
            share = settings.rollout_batch_size / settings.adaptive_kl_horizon
            self.kl_coef *= kl_coef_factor(metrics["kl"], settings.adaptive_kl_target, share)
        self.updates_done += 1
        return metrics

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and plain values with which `load_state_dict` resumes to the same bytes.

        There is no random state: seeds and prompts follow from the run's seed and the update's number.
        """
        tensors: dict[str, Tensor] = {}
        for name, parameters in self.parameters.items():
            optimizer = self.optimizers[name]
            for i, parameter in enumerate(parameters):
                tensors[f"{name}.{i}"] = parameter
                for key, value in optimizer.state[parameter].items():
                    # All parameters share the maps of 8-bit states, and safetensors refuses shared tensors.
                    tensors[f"{name}.{i}.{key}"] = value.clone() if key.startswith("qmap") else torch.as_tensor(value)
        return tensors, {"updates_done": self.updates_done, "kl_coef": self.kl_coef}

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        moments: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            parameter_name, _, part = key.rpartition(".")
            moments.setdefault(parameter_name, {})[part] = tensor
        for name, parameters in self.parameters.items():
            optimizer = self.optimizers[name]
            for i, parameter in enumerate(parameters):
                parameter.copy_(tensors[f"{name}.{i}"])
                state_of = moments[f"{name}.{i}"]
                step = state_of.pop("step")  # a CPU tensor in torch's AdamW, a number in that of bitsandbytes
                optimizer.state[parameter] = {
                    "step": step if isinstance(optimizer, torch.optim.AdamW) else int(step),
                    **{part: tensor.to(parameter.device) for part, tensor in state_of.items()},
                }
        self.updates_done, self.kl_coef = state["updates_done"], state["kl_coef"]

    @torch.no_grad()
    def rollout(self, prompts: Sequence[list[int]], tasks: Sequence[Task] = ()) -> Rollout:
        """Answer each prompt `num_generations` times, and evaluate the answers; `tasks` are for checkers."""
        settings, tokenizer = self.settings, self.stack.tokenizer
        with self.stack.using("policy") as model:
            sampled = TorchGenerator(model, tokenizer, self.batch_size).generate(
                prompts,
                SamplingParams(settings.max_new_tokens, settings.temperature),  # no top-p: ratios are over all tokens
                [row_seed(self.seed, "ppo", self.updates_done, i) for i in range(len(prompts))],
                n=settings.num_generations,
            )
        prompts = [prompt for prompt in prompts for _ in range(settings.num_generations)]
        tasks = [task for task in tasks for _ in range(settings.num_generations)]
        completions = [completion for samples in sampled for completion in samples]
        responses = [completion.token_ids for completion in completions]
        batch = Batch.collate(prompts, responses, int(tokenizer.pad_token_id or 0), self.stack.device)
        tokens = [prompt + completion.token_ids for prompt, completion in zip(prompts, completions, strict=True)]
        layers = {self.policy_layer} if self.critic is None else {self.policy_layer, self.critic.layer}
        model_scores, ref_logprobs = None, None
        if settings.uses_model:
            model_scores, states = score_and_record(
                self.stack, "reward", tokens, layers, batch_size=settings.per_device_train_batch_size
            )
        else:
            ref_logprobs, states = self._reference(batch)
        parts = self.rewards.parts(model_scores, tasks, [(c.text.strip(), c.finish_reason) for c in completions])
        scores = torch.tensor(self.rewards.totals(parts), device=self.stack.device)
        columns = [entry.column for entry in settings.rewards]
        means = {
            column: float(torch.tensor(part, device=scores.device).mean())
            for column, part in zip(columns, parts, strict=True)
        }
        batch = replace(batch, policy_states=place(states[self.policy_layer], batch.attention_mask))
        if self.critic is not None:
            batch = replace(batch, value_states=place(states[self.critic.layer], batch.attention_mask))
        logprobs, entropies = self._map_rows(batch, self._logprobs_and_entropies).unbind(-1)
        if ref_logprobs is None:
            ref_logprobs = self._map_rows(batch, lambda part: self._logprobs("reference", part))
        ended = torch.tensor([c.finish_reason == "stop" for c in completions], device=self.stack.device)
        mask = batch.response_mask
        rewards = self._rewarded(scores, mask, ended)
        loss_mask = mask & ended.unsqueeze(1) if settings.truncated.mode == "mask" else mask
        evaluated = {"loss_mask": loss_mask, "logprobs": logprobs, "entropies": entropies, "ref_logprobs": ref_logprobs}
        if self.critic is not None:
            if self.updates_done == 0:  # before training, the mean reward is the best guess
                self.critic.bias.fill_(rewards.mean())
            values = self._map_rows(batch, self.critic.values)
            per_token = token_rewards(logprobs, ref_logprobs, rewards, mask, self.kl_coef)
            advantages, returns = gae(per_token, values, mask, settings.gamma, settings.lam)
            evaluated |= {"advantages": whiten(advantages, loss_mask), "values": values, "returns": returns}
        else:
            if settings.advantage == "rloo":
                rewards = sequence_rewards(logprobs, ref_logprobs, rewards, mask, self.kl_coef)
                advantages = rloo(rewards, settings.num_generations)
            else:
                advantages = grpo(rewards, settings.num_generations)
            evaluated["advantages"] = advantages.unsqueeze(1) * mask
        return Rollout(**vars(batch), **evaluated, scores=scores, ended=ended, reward_means=means)

    def _optimize(self, rollout: Rollout) -> dict[str, float]:
        settings = self.settings
        generator = torch.Generator().manual_seed(row_seed(self.seed, "ppo minibatches", self.updates_done))
        totals: dict[str, float] = {}
        steps, stopped = 0, False
        each = settings.num_ppo_epochs * settings.rollout_batch_size // settings.mini_batch_size  # steps an update
        for _ in range(settings.num_ppo_epochs):
            order = torch.randperm(settings.rollout_batch_size, generator=generator).to(self.stack.device)
            for rows in order.split(settings.mini_batch_size):
                rows = rows[rollout.loss_mask[rows].any(1)]
                if len(rows) == 0:  # all are masked: there is nothing to learn
                    continue
                metrics = self._mini_batch(rollout, rows, check=self.updates_done == 0 and steps == 0)
                # The policy is now too far from the one that wrote these responses.
                stopped = settings.target_kl is not None and metrics["approx_kl"] > 1.5 * settings.target_kl
                if not stopped:
                    step, total = self.updates_done * each + steps, settings.num_updates * each
                    factor = rate_factor(step, total, settings.warmup_steps)
                    for name, optimizer in self.optimizers.items():
                        optimizer.param_groups[0]["lr"] = self.learning_rates[name] * factor
                        nn.utils.clip_grad_norm_(self.parameters[name], settings.max_grad_norm)
                        optimizer.step()
                    steps += 1
                    totals = {key: totals.get(key, 0.0) + value for key, value in metrics.items()}
                for optimizer in self.optimizers.values():
                    optimizer.zero_grad()
                if stopped:
                    break
            if stopped:
                break
        means = {key: value / steps for key, value in totals.items()}
        if steps == 0:
            means = {"policy_loss": 0.0, "ratio": 1.0, "clip_fraction": 0.0, "approx_kl": 0.0}
        rate = self.optimizers["policy"].param_groups[0]["lr"]
        return means | {"optimizer_steps": float(steps), "stopped_early": float(stopped), "learning_rate": rate}

    def _mini_batch(self, rollout: Rollout, rows: Tensor, check: bool) -> dict[str, float]:
        """Accumulate the gradients of the rows of one optimizer step, micro-batch by micro-batch."""
        tokens = rollout.loss_mask[rows].sum()
        totals: dict[str, float] = {}
        for part in self._micro_batches(rollout, rows):
            for key, value in self._backward(rollout.rows(part), tokens, check).items():
                totals[key] = totals.get(key, 0.0) + value
        return totals

    def _backward(self, part: Rollout, tokens: Tensor, check: bool) -> dict[str, float]:
        """Accumulate the gradients of a micro-batch, as its share of a mini-batch of `tokens` response tokens."""
        settings, mask = self.settings, part.loss_mask
        with self._checkpointing("policy"):
            logprobs = self._logprobs("policy", part)
        log_ratio = torch.where(mask, logprobs.detach() - part.logprobs, 0.0)
        if check and not (gap := float(log_ratio[mask].abs().mean())) <= self.tolerance:
            raise InputError(
                f"ppo: before the first update the ratio is not 1 (log-ratios of {gap:.3g} nats on average): two "
                "forwards of the same policy differ; check for dropout, another mask or another temperature"
            )
        loss = policy_loss(logprobs, part.logprobs, part.advantages, mask, settings.cliprange).sum() / tokens
        losses = {"policy_loss": float(loss.detach())}
        if settings.advantage == "grpo":
            divergence = kl_loss(logprobs, part.ref_logprobs, mask).sum() / tokens
            losses["kl_loss"] = float(divergence.detach())
            loss = loss + self.kl_coef * divergence
        loss.backward()
        if self.critic is not None:
            assert part.values is not None
            assert part.returns is not None
            with self._checkpointing("value"):
                values = self.critic.values(part)
            error = value_loss(values, part.values, part.returns, mask, settings.cliprange_value).sum() / tokens
            error.backward()
            losses["value_loss"] = float(error.detach())
        ratio = log_ratio.exp()
        clipped = ((ratio - 1).abs() > settings.cliprange) & mask
        return losses | {
            "ratio": float(torch.where(mask, ratio, 0.0).sum() / tokens),
            "clip_fraction": float(clipped.sum() / tokens),
            # k3 = ratio - 1 - log(ratio): never negative, for display only
            "approx_kl": float(torch.where(mask, ratio - 1 - log_ratio, 0.0).sum() / tokens),
        }

    def _describe(self, rollout: Rollout) -> dict[str, float]:
        mask = rollout.response_mask
        kl = torch.where(mask, rollout.logprobs - rollout.ref_logprobs, 0.0).sum(1).mean()
        reward = self._rewarded(rollout.scores, mask, rollout.ended).mean()
        measures = {
            "mean_reward": float(reward),
            "mean_score": float(rollout.scores.mean()),  # where the reward model is a reward, its own, by the next line
            **rollout.reward_means,
            "kl": float(kl),
            "kl_coef": self.kl_coef,
            "objective": float(reward - self.kl_coef * kl),
            "eos_rate": float(rollout.ended.float().mean()),
            "entropy": float(rollout.entropies[mask].mean()),
            "response_tokens": float(mask.sum() / len(mask)),
        }
        if rollout.values is not None and rollout.returns is not None:
            returns, values = rollout.returns[mask], rollout.values[mask]
            variance, rest = returns.var(correction=0), (returns - values).var(correction=0)
            measures["mean_value"] = float(values.mean())
            measures["explained_variance"] = float(1 - rest / variance) if variance > 0 else 0.0
        return measures

    def _rewarded(self, scores: Tensor, mask: Tensor, ended: Tensor) -> Tensor:
        return truncated_rewards(scores, mask, ended, self.settings.truncated, self.settings.max_new_tokens)

    def _check_reference(self, rollout: Rollout) -> None:
        gap = float((rollout.logprobs - rollout.ref_logprobs)[rollout.response_mask].abs().mean())
        if not gap <= self.tolerance:
            raise InputError(
                f"ppo: before the first update the KL to the reference is not 0 (log-ratios of {gap:.3g} nats on "
                "average): policy and reference must start from the same model, ppo.init"
            )

    def _logprobs(self, name: str, batch: Batch) -> Tensor:
        """Return the log-probabilities of the response tokens, (B, R)."""
        return token_logprobs(self._logits(name, batch), batch.responses, self.settings.temperature)

    def _logprobs_and_entropies(self, batch: Batch) -> Tensor:
        """Return both for the response tokens under the policy, (B, R, 2)."""
        logits, temperature = self._logits("policy", batch), self.settings.temperature
        return torch.stack(
            [token_logprobs(logits, batch.responses, temperature), token_entropies(logits, temperature)], dim=-1
        )

    def _logits(self, name: str, batch: Batch) -> Tensor:
        """Return the logits that predict the response tokens, (B, R, V)."""
        states, width = batch.policy_states, batch.input_ids.shape[1]
        # An index, not a number: on a slice the head would do a batched product, with a copy of its weights per row.
        before_each = torch.arange(width - batch.response_mask.shape[1] - 1, width - 1, device=self.stack.device)
        begin = nullcontext() if states is None else self.stack.entering(self.policy_layer, states, name)
        with self.stack.using(name) as model, begin:
            logits: Tensor = model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                logits_to_keep=before_each,
                use_cache=False,
            ).logits
        return logits

    def _reference(self, batch: Batch) -> tuple[Tensor, dict[int, list[Tensor]]]:
        """Return the reference's log-probabilities (B, R) and, as `score_and_record`, the states at `policy_layer`."""
        layer, logprobs = self.policy_layer, torch.zeros(batch.response_mask.shape, device=self.stack.device)
        states = [torch.empty(0)] * len(logprobs)
        for part in self._micro_batches(batch, torch.arange(len(logprobs), device=self.stack.device)):
            rows = batch.rows(part)
            with self.stack.recording({layer}, "reference") as recorded:
                found = self._logprobs("reference", rows)
            logprobs[part, : found.shape[1]] = found
            for i, inputs, mask in zip(part.tolist(), recorded[layer], rows.attention_mask, strict=True):
                states[i] = inputs[mask]
        return logprobs, {layer: states}

    def _checkpointing(self, name: str) -> AbstractContextManager[None]:
        return self.stack.checkpointing(name) if self.settings.gradient_checkpointing else nullcontext()

    def _micro_batches(self, batch: Batch, rows: Tensor) -> tuple[Tensor, ...]:
        """Cut `rows` of the batch into micro-batches of responses with similar lengths."""
        rows = rows.sort().values  # similar prompts, where responses have equal lengths
        rows = rows[batch.response_mask[rows].sum(1).argsort(stable=True)]
        return torch.split(rows, self.settings.per_device_train_batch_size)

    def _map_rows(self, batch: Batch, function: Callable[[Batch], Tensor]) -> Tensor:
        """Apply `function` to micro-batches and join the results (b, r, ...) to (B, R, ...), 0 at padding."""
        parts = self._micro_batches(batch, torch.arange(len(batch.input_ids), device=self.stack.device))
        results = [function(batch.rows(part)) for part in parts]
        together = results[0].new_zeros(*batch.response_mask.shape, *results[0].shape[2:])
        for part, result in zip(parts, results, strict=True):
            together[part, : result.shape[1]] = result
        return together

    def _next_prompts(self) -> list[int]:
        """Return the numbers of this update's prompts: shuffled passes over all of them, cut into batches."""
        count, size = len(self._prompts), self.settings.rollout_batch_size // self.settings.num_generations
        first = self.updates_done * size
        passes = range(first // count, (first + size - 1) // count + 1)
        order = [
            i
            for number in passes
            for i in random.Random(row_seed(self.seed, "ppo prompts", number)).sample(range(count), count)
        ]
        start = first - passes[0] * count
        return order[start : start + size]
