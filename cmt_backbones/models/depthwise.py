"""A depthwise convolution with a shortcut around it, by as few passes over the map as there can be."""
from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .casting import cast
from .cpu import infers_on_cpu
from .tracing import computes_plainly, differentiable_gradients, product_dtype


def plus_depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x + conv(x)``, a depthwise 3x3 convolution with a shortcut around it; x is (N, C, H, W)."""
    dtype = product_dtype(x)
    if infers_on_cpu(x) and dtype == torch.float32:
        return F.conv2d(x, with_shortcut(weight), bias, padding=1, groups=len(weight))
    if dtype == x.dtype or computes_plainly():
        return x + F.conv2d(x, weight, bias, padding=1, groups=len(weight))
    return PlusDepthwise.apply(x, x.to(dtype), weight, bias)


def with_shortcut(weight: Tensor) -> Tensor:
    """Kernels (C, 1, 3, 3) with the shortcut in them, 1 more at the centre: a pass over x less."""
    return weight + (torch.arange(9, device=weight.device) == 4).view(3, 3)


class PlusDepthwise(torch.autograd.Function):
    """:func:`plus_depthwise` under autocast, of x in float32 and the same in half precision.

    Its backward pass adds the gradients of both as they are. Autograd would first turn the second into float32,
    by a pass more over the map.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, half: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        of_weight, of_bias = cast([weight, bias], half.dtype)
        ctx.save_for_backward(half, weight, bias, of_weight)
        return x + F.conv2d(half, of_weight, of_bias, padding=1, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        half, weight, bias, of_weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            out = F.conv2d(half, weight.to(half.dtype), bias.to(half.dtype), padding=1, groups=len(weight))
            return (grad, *differentiable_gradients(out, (half, weight, bias), ctx.needs_input_grad[1:], grad.to(out)))
        of_half, *rest = convolution_backward(grad.to(half.dtype), half, of_weight, padding=1, groups=len(weight))
        return (grad + of_half, None, *cast(rest, weight.dtype))


def convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, padding: int = 0,
                         groups: int = 1) -> Tuple[Tensor, Tensor, Tensor]:
    """The gradients of input, weight and bias of a convolution with stride 1."""
    return torch.ops.aten.convolution_backward.default(grad, x, weight, [len(weight)], [1, 1], [padding] * 2, [1, 1],
                                                       False, [0, 0], groups, [True] * 3)
