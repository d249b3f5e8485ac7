"""Who is looking at the computation: a compiler, a function transform, autocast."""
from contextvars import ContextVar
from typing import Any, Callable, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ..versions import is_compiling

RECOMPUTED = ContextVar('RECOMPUTED', default=False)
BY_DEVICE = hasattr(torch, 'get_autocast_dtype')  # from PyTorch 2.4 on


def computes_plainly() -> bool:
    """Whether a compiler or a transform of ``torch.func`` looks at the operations, and needs PyTorch's own.

    A compiler decides by itself what to compute again; ``vmap``, ``vjp`` and ``grad`` take no forced memory
    formats, no hooks on what is saved, and no function that writes into its results.
    """
    return is_compiling() or torch.jit.is_tracing() or is_transformed()


def is_transformed() -> bool:
    """Whether ``torch.func`` is at work: ``grad``, ``vjp``, ``vmap``, ``jvp``."""
    return not is_compiling() and torch._C._are_functorch_transforms_active()


def recomputing(function: Callable, *inputs: Any) -> Any:
    """``function(*inputs)``, for a checkpoint, which calls it in the backward pass too: what is within learns of it."""
    token = RECOMPUTED.set(True)
    try:
        return function(*inputs)
    finally:
        RECOMPUTED.reset(token)


def is_recomputed() -> bool:
    """Whether all that is computed now will be again, from the input of a checkpoint."""
    return RECOMPUTED.get()


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which matrix products of x are computed: its own, or autocast's."""
    return x.dtype if x.dtype == torch.double else autocast_dtype(x.device.type) or x.dtype


def autocast_dtype(device: str) -> Optional[torch.dtype]:
    """The dtype of autocast on devices of this type; None where it is off."""
    if device not in ('cpu', 'cuda'):
        return None
    if BY_DEVICE:
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    if device == 'cpu':
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None


def differentiable_gradients(out: Tensor, inputs: Sequence[Tensor], needs: Sequence[bool],
                             grad: Tensor) -> Tuple[Optional[Tensor], ...]:
    """The gradients of those inputs that need one, which can be differentiated again; None for the others."""
    grads = iter(torch.autograd.grad(out, [x for x, need in zip(inputs, needs) if need], grad, create_graph=True))
    return tuple(next(grads) if need else None for need in needs)
