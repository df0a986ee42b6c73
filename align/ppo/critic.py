"""The value function of PPO with `advantage: gae`."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from align.core.errors import InputError
from align.models.stack import AdapterStack
from align.ppo.rollout import Batch


class Critic:
    """Adapter `value` of a stack, which starts as the reward model, and a linear head of its own.

    It trains its `value_layers` uppermost layers (None: all); below `layer` it stays the reward model. It starts as a
    constant. With the reward model's head, which is meaningless before the EOS, or with 0, last tokens would look much
    worse (or better) than those before, and the policy would unlearn (or overdo) ending its replies.

    Raises:
        InputError: the base has fewer layers than `value_layers`.
    """

    def __init__(self, stack: AdapterStack, value_layers: int | None) -> None:
        depth = len(stack.layers)
        value_layers = depth if value_layers is None else value_layers
        if value_layers > depth:
            raise InputError(f"params.yaml: ppo.value_layers is {value_layers}, the base has {depth} layers; lower it")
        self.stack = stack
        self.layer = max(stack.first_layer("value"), depth - value_layers)
        self.head = nn.Parameter(torch.zeros_like(stack.heads["reward"].weight))
        self.bias = nn.Parameter(torch.zeros(1, device=stack.device))
        self.parameters = [*stack.parameters("value", self.layer), self.head, self.bias]

    def values(self, batch: Batch) -> Tensor:
        """Return the value of the state before each response token, (B, R)."""
        length, states = batch.response_mask.shape[1], batch.value_states
        begin = nullcontext() if states is None else self.stack.entering(self.layer, states, "value")
        with self.stack.using("value") as model, begin:
            hidden = model.base_model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                use_cache=False,
            ).last_hidden_state[:, -length - 1 : -1]
        values: Tensor = (hidden.float() @ self.head.T).squeeze(-1) + self.bias
        return values
