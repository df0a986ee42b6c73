"""Faster CPU inference: linear layers in oneDNN's layout, with the active LoRA adapter merged in."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from align.models.linears import OneDNNLinear, linear, pack


class PackedLinear(nn.Module):
    """A linear layer with a weight in oneDNN's layout, multiplied in the weight's dtype: float32 or bfloat16."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = pack(weight), bias

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., out_features), in the dtype of the input (..., in_features)."""
        return linear(input.to(self.weight.dtype), self.weight, self.bias).to(input.dtype)


@contextmanager
def frozen_linears(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within the block, replace each oneDNN linear layer by a packed one with the active adapter merged in.

    They multiply in `dtype`; all else stays in float32. No gradient flows, and no weight may change.
    """
    adapted = [module for module in model.modules() if isinstance(module, LoraLinear)]
    inside = {id(part) for module in adapted for part in module.modules() if part is not module}
    replaced = [
        (parent, name, module)
        for parent in model.modules()
        for name, module in parent.named_children()
        if id(module) not in inside and isinstance(_base_layer(module), OneDNNLinear)
    ]
    try:
        for parent, name, module in replaced:
            setattr(parent, name, _packed(module, dtype))
        yield
    finally:
        for parent, name, module in replaced:
            setattr(parent, name, module)


def _base_layer(module: nn.Module) -> nn.Module:
    layer: nn.Module = module.get_base_layer() if isinstance(module, LoraLinear) else module
    return layer


def _packed(module: nn.Module, dtype: torch.dtype) -> PackedLinear:
    base = _base_layer(module)
    assert isinstance(base, nn.Linear)
    weight: Tensor = base.weight.detach()
    if isinstance(module, LoraLinear) and not module.disable_adapters:
        for adapter in module.active_adapters:
            if adapter in module.lora_A:
                weight = weight + module.get_delta_weight(adapter).detach()
            if adapter in module.lora_magnitude_vector:  # DoRA: rows of the sum, rescaled to the learned lengths
                lengths: Any = module.lora_magnitude_vector[adapter].weight
                weight = weight * (lengths.detach() / torch.linalg.vector_norm(weight, dim=1)).unsqueeze(1)
    return PackedLinear(weight.to(dtype), None if base.bias is None else base.bias.detach().to(dtype))
