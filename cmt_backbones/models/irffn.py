"""What lies between the two products of CMT's feed-forward, and the second of them: cheap, and wide.

    project(norm2(gelu(dwconv(norm1(gelu(x))))))        dwconv with its shortcut

Training would keep five maps, each as wide as x; here it keeps x, and of the norms mean and inverse
deviation. The backward pass computes the other maps again from these: no statistics of a batch a second
time, hence none to exchange between GPUs and no running average to put back.
"""
from types import SimpleNamespace
from typing import Any, List, Optional, Sequence, Tuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as SynchronisedNorm

from .tracing import computes_plainly

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def between_products(x: Tensor, norm1: nn.Module, dwconv: nn.Conv2d, norm2: nn.Module,
                     project: nn.Conv2d, recompute: bool = True) -> Tensor:
    """``project(norm2(gelu(dwconv(norm1(gelu(x))))))``.

    Args:
        x (Tensor): (N, hidden, H, W).
        norm1 (nn.Module): A BatchNorm of any kind.
        dwconv (ShortcutDepthwise): A depthwise 3x3 convolution that knows its kernels with the shortcut.
        norm2 (nn.Module): As norm1, or what a fold left of it.
        project (nn.Conv2d): 1x1, from hidden to C.
        recompute (bool): Whether to keep little where a gradient is wanted.

    Returns:
        Tensor: (N, C, H, W).
    """
    layers = norm1, dwconv, norm2, project
    wanted = torch.is_grad_enabled() and (
        x.requires_grad or any(p.requires_grad for layer in layers for p in layer.parameters()))
    if not (recompute and wanted) or computes_plainly() or not all(type(m) in NORMS for m in (norm1, norm2)):
        x = F.conv2d(norm1(F.gelu(x)), dwconv.whole_weight(), dwconv.bias, padding=1, groups=dwconv.groups)
        return project(norm2(F.gelu(x)))
    count_batch(norm1, norm2)
    norms = [KeptNorm(norm1, x), KeptNorm(norm2, x)]
    return BetweenProducts.apply(norms, x, norm1.weight, norm1.bias, dwconv.whole_weight(), dwconv.bias,
                                 norm2.weight, norm2.bias, project.weight, project.bias)


class BetweenProducts(torch.autograd.Function):
    """:func:`between_products`, for which the backward pass keeps one wide map."""

    @staticmethod
    def forward(ctx: Any, norms: list, x: Tensor, *parameters: Tensor) -> Tensor:
        scale1, offset1, depthwise, offset, scale2, offset2, weight, bias = parameters
        # Under autocast x is in half precision already, and the norms stay in float32.
        depthwise, offset, weight, bias = cast([depthwise, offset, weight, bias], x.dtype)
        ctx.norms = norms
        y = norms[0].forward(F.gelu(x), scale1, offset1)
        y = F.gelu(F.conv2d(y, depthwise, offset, padding=1, groups=len(depthwise)))
        out = F.conv2d(norms[1].forward(y, scale2, offset2), weight, bias)
        kept = [t for norm in norms for t in norm.take_kept()]
        ctx.save_for_backward(x, *parameters, *kept, depthwise, offset, weight)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        saved = ctx.saved_tensors  # once: a checkpoint around this gives them no second time
        (x, *parameters), kept1, kept2, (depthwise, offset, weight) = saved[:9], saved[9:11], saved[11:13], saved[13:]
        norm1, norm2 = ctx.norms
        needs_x, *needs = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():  # a second derivative is wanted
            return (None, *differentiable(ctx.norms, (kept1, kept2), (x, *parameters), (needs_x, *needs), grad))
        scale1, offset1, _, _, scale2, offset2, *_ = parameters
        groups = len(depthwise)

        activated1 = F.gelu(x)
        y1 = norm1.again(activated1, scale1, offset1, kept1)
        mixed = F.conv2d(y1, depthwise, offset, padding=1, groups=groups)
        activated2 = F.gelu(mixed)

        grad, of_weight, of_bias = convolution_backward(grad, activated2, weight)
        # Of the product behind the norm, a x + b: sum(grad (a x + b)) = a sum(grad x) + b sum(grad).
        a, b = norm2.slope_and_offset(scale2, offset2, kept2)
        of_weight = torch.addcmul(of_weight * a[:, None, None], of_bias[:, None, None, None], b[:, None, None])
        grad, *of_norm2 = norm2.backward(grad, activated2, scale2, needs[4:6], kept2)
        del activated2
        grad = torch.ops.aten.gelu_backward(grad, mixed)
        del mixed
        grad, *of_dwconv = convolution_backward(grad, y1, depthwise, padding=1, groups=groups)
        del y1
        grad, *of_norm1 = norm1.backward(grad, activated1, scale1, needs[:2], kept1)
        del activated1
        grad = torch.ops.aten.gelu_backward(grad, x) if needs_x else None
        of_dwconv = cast(of_dwconv, parameters[2].dtype)
        return (None, grad, *of_norm1, *of_dwconv, *of_norm2, of_weight, of_bias)


def cast(tensors: List[Tensor], dtype: torch.dtype) -> List[Tensor]:
    """All of them in a dtype, on a GPU by one kernel."""
    if all(x.dtype == dtype for x in tensors):
        return tensors
    out = [x.new_empty(x.shape, dtype=dtype) for x in tensors]
    torch._foreach_copy_(out, tensors)
    return out


def differentiable(norms: Sequence['KeptNorm'], kept: Sequence[tuple], inputs: Sequence[Tensor],
                   needs: Sequence[bool], grad: Tensor) -> Tuple[Optional[Tensor], ...]:
    """The gradients of the inputs as functions that can be differentiated again."""
    x, scale1, offset1, depthwise, offset, scale2, offset2, weight, bias = inputs
    depthwise, offset, weight, bias = (t.to(x.dtype) for t in (depthwise, offset, weight, bias))
    y = norms[0].plain(F.gelu(x), scale1, offset1, kept[0])
    y = F.gelu(F.conv2d(y, depthwise, offset, padding=1, groups=len(depthwise)))
    out = F.conv2d(norms[1].plain(y, scale2, offset2, kept[1]), weight, bias)
    grads = iter(torch.autograd.grad(out, [t for t, need in zip(inputs, needs) if need], grad, create_graph=True))
    return tuple(next(grads) if need else None for need in needs)


def convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, padding: int = 0,
                         groups: int = 1) -> Tuple[Tensor, Tensor, Tensor]:
    """The gradients of input, weight and bias of a convolution with stride 1."""
    return torch.ops.aten.convolution_backward(grad, x, weight, [len(weight)], [1, 1], [padding] * 2, [1, 1],
                                               False, [0, 0], groups, [True] * 3)


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
        if x.is_cuda:
            return torch.batch_norm(x, scale, offset, mean, spread.pow(-2), False, 0., 0., False)
        variance = spread.double().pow(-2) - self.eps  # rounded once, as the forward pass's was
        return torch.batch_norm(x, scale, offset, mean, variance.to(mean.dtype), False, 0., self.eps, False)

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
        return torch.ops.aten._batch_norm_impl_index_backward(
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
