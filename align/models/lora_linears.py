"""LoRA over oneDNN's linear layers on a CPU: PEFT's layer, with product, scale and sum in one step each way."""

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor
from torch.autograd.function import once_differentiable

from align.models.linears import OneDNNLinear, linear


class OneDNNLora(LoraLinear):
    """PEFT's LoRA layer over an `OneDNNLinear`.

    PEFT's own forward multiplies by the scale and adds the product in passes over the whole output, and so does its
    backward; here they are part of the matrix products.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return (..., out_features) for an input (..., in_features)."""
        name = self._plain_adapter(x)
        output: Tensor
        if name is None or args or kwargs:
            output = super().forward(x, *args, **kwargs)
        else:
            function: Any = _LoraLinear
            lora_a, lora_b = self.lora_A[name].weight, self.lora_B[name].weight
            output = function.apply(x, lora_a, lora_b, self.scaling[name], self.base_layer)
        return output

    def _plain_adapter(self, x: Tensor) -> str | None:
        """Return the active adapter, or None where PEFT's own forward is needed, which knows more kinds."""
        base: Any = self.base_layer
        names = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(names) != 1 or base.weight.requires_grad:
            return None
        [name] = names
        factors = self.lora_A[name], self.lora_B[name]
        dropped = self.training and getattr(self.lora_dropout[name], "p", 0.0) > 0
        if dropped or name in self.lora_variant or any(factor.bias is not None for factor in factors):
            return None
        dtypes = {x.dtype, base.weight.dtype, *(factor.weight.dtype for factor in factors)}
        return name if dtypes == {torch.float32} and not torch.is_autocast_enabled("cpu") else None


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float, base_layer: OneDNNLinear
    ) -> Tensor:
        rows = x.flatten(0, -2)
        inner = rows @ lora_a.t()
        output = linear(x, base_layer.weight, base_layer.bias)
        output.view(-1, output.shape[-1]).addmm_(inner, lora_b.t(), alpha=scaling)
        ctx.save_for_backward(rows, inner, lora_a, lora_b)
        ctx.shape, ctx.scaling, ctx.base_layer = x.shape, scaling, base_layer
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        (grad,) = grads
        rows, inner, lora_a, lora_b = ctx.saved_tensors
        grad = grad.flatten(0, -2)
        grad_x = grad_a = grad_b = None
        if ctx.needs_input_grad[2]:
            grad_b = (grad.t() @ inner).mul_(ctx.scaling)
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            grad_inner = (grad @ lora_b).mul_(ctx.scaling)
            if ctx.needs_input_grad[1]:
                grad_a = grad_inner.t() @ rows
            if ctx.needs_input_grad[0]:
                grad_x = linear(grad, ctx.base_layer.turned()).addmm_(grad_inner, lora_a).view(ctx.shape)
        return grad_x, grad_a, grad_b, None, None


def use_onednn_lora(config: LoraConfig) -> LoraConfig:
    """Make the adapters of a configuration use `OneDNNLora` over oneDNN's layers; return it."""
    config._register_custom_module({OneDNNLinear: OneDNNLora})
    return config
