"""BatchNorms whose backward pass is called by hand, so that what they normalised need not be kept."""
from types import SimpleNamespace
from typing import Any, Optional, Sequence, Tuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as SynchronisedNorm

from .tracing import computes_plainly, differentiable_gradients, is_recomputed

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
# Without an overload's name PyTorch looks for the one that fits, at every call.
gelu_backward = torch.ops.aten.gelu_backward.default
batch_norm_backward = torch.ops.aten._batch_norm_impl_index_backward.default


def may_keep_less(x: Tensor, layers: Sequence[nn.Module], norms: Sequence[nn.Module]) -> bool:
    """Whether a gradient of x or of layers is wanted, and norms and whoever looks on let it be computed by hand.

    Not within a part that is computed again as a whole: that keeps nothing of it.
    """
    wanted = torch.is_grad_enabled() and (
        x.requires_grad or any(p.requires_grad for layer in layers for p in layer.parameters()))
    return wanted and not computes_plainly() and not is_recomputed() and all(type(norm) in NORMS for norm in norms)


def norm_of_gelu(x: Tensor, norm: nn.Module) -> Tensor:
    """``norm(gelu(x))``, of which training keeps x and no second map as large."""
    if not may_keep_less(x, (norm, ), (norm, )):
        return norm(F.gelu(x))
    count_batch(norm)
    return NormOfGELU.apply(KeptNorm(norm, x), x, norm.weight, norm.bias)


class NormOfGELU(torch.autograd.Function):
    """:func:`norm_of_gelu`, which computes the GELU again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, norm: 'KeptNorm', x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        out = norm.forward(F.gelu(x), scale, offset)
        ctx.norm = norm
        ctx.save_for_backward(x, scale, offset, *norm.take_kept())
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        x, scale, offset, *kept = ctx.saved_tensors
        needs_x, *needs = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():  # a second derivative is wanted
            out = ctx.norm.plain(F.gelu(x), scale, offset, kept)
            return (None, *differentiable_gradients(out, (x, scale, offset), (needs_x, *needs), grad))
        grad, *of_norm = ctx.norm.backward(grad, F.gelu(x), scale, tuple(needs), tuple(kept))
        return (None, gelu_backward(grad, x) if needs_x else None, *of_norm)


def count_batch(*norms: nn.Module) -> None:
    counted = [norm.num_batches_tracked for norm in norms if norm.training and norm.track_running_stats]
    if counted:
        torch._foreach_add_(counted, 1)


class KeptNorm:
    """One call of a BatchNorm, by PyTorch's own kernels, and its backward pass."""

    def __init__(self, norm: nn.Module, x: Tensor) -> None:
        self.eps, self.by_batch = norm.eps, norm.training or norm.running_mean is None
        tracked = norm.training and norm.track_running_stats
        self.running = (norm.running_mean, norm.running_var) if tracked or not self.by_batch else (None, None)
        self.momentum = 0. if norm.momentum is None else norm.momentum
        if tracked and norm.momentum is None:  # all batches weigh the same
            self.momentum = 1 / norm.num_batches_tracked.item()
        self.group = None  # the processes whose batches are normalised together
        if isinstance(norm, nn.SyncBatchNorm) and norm.training and dist.is_available() and dist.is_initialized():
            self.group = norm.process_group or dist.group.WORLD
            self.processes = dist.get_world_size(self.group)
            if self.processes == 1:
                self.group = None
            elif x.device.type == 'cpu':
                raise ValueError('SyncBN works on GPUs alone: mmengine.model.revert_sync_batchnorm puts BN in its '
                                 'place on CPUs')

    def forward(self, x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        if self.group is not None:
            self.context = Context()
            out = SynchronisedNorm.forward(self.context, x, scale, offset, *self.running, self.eps, self.momentum,
                                           self.group, self.processes)
            _, _, mean, deviation, self.count = self.context.saved_tensors
            self.context.saved_tensors = ()
            self.kept = mean, deviation
            return out
        out, *kept, self.reserve, self.kernel = torch._batch_norm_impl_index(
            x, scale, offset, *self.running, self.by_batch, self.momentum, self.eps, torch.backends.cudnn.enabled)
        self.kept = tuple(kept) if self.by_batch else self.running
        return out

    def take_kept(self) -> Tuple[Tensor, Tensor]:
        """Mean and inverse deviation of each channel in the batch; in eval mode the running averages."""
        kept, self.kept = self.kept, ()
        return kept

    def again(self, x: Tensor, scale: Tensor, offset: Tensor, kept: Tuple[Tensor, Tensor]) -> Tensor:
        """What `forward` returned, from what was kept."""
        mean, spread = kept
        if not self.by_batch:
            return F.batch_norm(x, mean, spread, scale, offset, False, 0., self.eps)
        return torch.batch_norm(x, scale, offset, mean, spread.pow(-2), False, 0., 0., False)

    def slope_and_offset(self, scale: Tensor, offset: Tensor, kept: Tuple[Tensor, Tensor]) -> Tuple[Tensor, Tensor]:
        """The norm as ``a x + b``."""
        mean, spread = kept
        a = scale * (spread if self.by_batch else (spread + self.eps).rsqrt())
        return a, torch.addcmul(offset, mean, a, value=-1)

    def backward(self, grad: Tensor, x: Tensor, scale: Tensor, needs: Tuple[bool, bool],
                 kept: Tuple[Tensor, Tensor]) -> Tuple[Optional[Tensor], ...]:
        """The gradients of input, scale and offset."""
        if self.group is not None:
            self.context.needs_input_grad = (True, *needs)
            self.context.saved_tensors = x, scale, *kept, self.count
            return SynchronisedNorm.backward(self.context, grad)[:3]
        batch, running = (kept, (None, None)) if self.by_batch else ((None, None), kept)
        return batch_norm_backward(
            self.kernel, x, grad, scale, *running, *batch, self.by_batch, self.eps, [True, *needs], self.reserve)

    def plain(self, x: Tensor, scale: Tensor, offset: Tensor, kept: Tuple[Tensor, Tensor]) -> Tensor:
        """What `forward` returned, as a function to differentiate; no running average moves."""
        if self.group is not None:
            raise RuntimeError('SyncBN over several processes has no second derivative: train with norm_cfg of type BN')
        running = (None, None) if self.by_batch else kept
        return F.batch_norm(x, *running, scale, offset, self.by_batch, 0., self.eps)


class Context(SimpleNamespace):
    """Holds what an ``autograd.Function`` saves, for one that is called by another."""

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors
