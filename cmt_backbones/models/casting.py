"""Autocast by fewer kernels: the weights of a block are cast together.

Autocast casts each weight where it is used, by a kernel that on a GPU takes as long to start as to run, and its
gradient by another. CMT's blocks have twelve such weights each.
"""
from typing import Any, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from .tracing import autocast_dtype, computes_plainly, product_dtype

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
