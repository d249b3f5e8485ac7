"""Autocast by fewer kernels: the weights of a block are cast together.

Autocast casts each weight where it is used, by a kernel that on a GPU takes as long to start as to run, and its
gradient by another. CMT's blocks have twelve such weights each.
"""
from typing import Any, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .tracing import autocast_dtype, computes_plainly, differentiable_gradients, product_dtype

Weights = Tuple[Tensor, Optional[Tensor]]


class Product:
    """A layer whose weights may be cast before it is called."""
    cast: Optional[Weights] = None
    cast_before = True  # False: its weights are changed in float32 first

    def weights(self) -> Weights:
        """Weight and bias, cast or as they are."""
        return self.cast or (self.weight, self.bias)


class Conv2d(Product, nn.Conv2d):

    def forward(self, x: Tensor) -> Tensor:
        if self.groups > 1 and self.weight.requires_grad and trains_in_half_on_cpu(x):
            # oneDNN's gradients of wide or strided depthwise kernels take up to fifty times as long in bfloat16.
            with torch.autocast('cpu', enabled=False):
                return self._conv_forward(x.float(), self.weight, self.bias)
        return self._conv_forward(x, *self.weights())


def trains_in_half_on_cpu(x: Tensor) -> bool:
    """Whether x is on a CPU and within autocast, and gradients are wanted."""
    return (x.device.type == 'cpu' and autocast_dtype('cpu') is not None and torch.is_grad_enabled()
            and not computes_plainly())


def call(part: nn.Module, *inputs: Any) -> Any:
    """``part(*inputs)``, under autocast with the weights of its :class:`Product` layers cast together."""
    dtype = product_dtype(inputs[0])
    if dtype not in (torch.float16, torch.bfloat16) or computes_plainly():
        return part(*inputs)
    layers = [layer for layer in part.modules() if isinstance(layer, Product) and layer.cast_before
              and layer.weight.dtype == torch.float32]
    weights = [x for layer in layers for x in (layer.weight, layer.bias) if x is not None]
    together = iter(CastTogether.apply(dtype, *weights) if weights else ())
    try:
        for layer in layers:  # by __dict__, past the checks of nn.Module, which take longer than all else here
            layer.__dict__['cast'] = next(together), None if layer.bias is None else next(together)
        return part(*inputs)
    finally:
        for layer in layers:
            layer.__dict__.pop('cast', None)


class CastTogether(torch.autograd.Function):
    """Tensors in float32 to another dtype, and their gradients back."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> Tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(cast(tensors, dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Optional[Tensor]) -> Tuple[Optional[Tensor], ...]:
        if torch.is_grad_enabled():  # a second derivative is wanted
            return (None, *(None if grad is None else grad.float() for grad in grads))
        together = iter(cast([grad for grad in grads if grad is not None], torch.float32))
        return (None, *(None if grad is None else next(together) for grad in grads))


def cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> List[Tensor]:
    """All of them in a dtype, on a GPU by one kernel."""
    if all(x.dtype == dtype for x in tensors):
        return list(tensors)
    out = [torch.empty_strided(x.shape, x.stride(), dtype=dtype, device=x.device) for x in tensors]
    torch._foreach_copy_(out, tensors)
    return out


def plus_depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x + conv(x)``, a depthwise 3x3 convolution with a shortcut around it; x is (N, C, H, W)."""
    dtype = product_dtype(x)
    if dtype == x.dtype or computes_plainly():
        return x + F.conv2d(x, weight, bias, padding=1, groups=len(weight))
    return PlusDepthwise.apply(x, x.to(dtype), weight, bias)


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
