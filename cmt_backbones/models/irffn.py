"""CMT's feed-forward up to its second product: what lies between the two is cheap, and wide.

    project(norm2(gelu(dwconv(norm1(gelu(x))))))        x = expand(map); dwconv with its shortcut

Training would keep five maps, each as wide as x; here it keeps x, and of the norms mean and inverse
deviation. The backward pass computes the other maps again from these: no statistics of a batch a second
time, hence none to exchange between GPUs and no running average to put back.
"""
from typing import Any, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .casting import cast
from .cpu import gelu_of, gelu_of_convolution
from .depthwise import convolution_backward, with_shortcut
from .kept_norm import KeptNorm, count_batch, gelu_backward, may_keep_less
from .tracing import differentiable_gradients


def between_products(x: Tensor, expand: nn.Module, norm1: nn.Module, dwconv: nn.Conv2d, norm2: nn.Module,
                     project: nn.Conv2d) -> Tensor:
    """``project(norm2(gelu(dwconv(norm1(gelu(expand(x)))))))``.

    Args:
        x (Tensor): (N, C, H, W).
        expand (nn.Conv2d): 1x1, from C to hidden.
        norm1 (nn.Module): A BatchNorm of any kind.
        dwconv (ShortcutDepthwise): A depthwise 3x3 convolution that knows whether it has a shortcut around it.
        norm2 (nn.Module): As norm1, or what a fold left of it.
        project (nn.Conv2d): 1x1, from hidden to C.

    Returns:
        Tensor: (N, C, H, W).
    """
    if not may_keep_less(x, (expand, norm1, dwconv, norm2, project), (norm1, norm2)):
        weight = with_shortcut(dwconv.weight) if dwconv.shortcut else dwconv.weight
        x = gelu_of_convolution(norm1(gelu_of(expand, x)), weight, dwconv.bias, 1, dwconv.groups)
        return project(norm2(x))
    x = expand(x)
    count_batch(norm1, norm2)
    norms = [KeptNorm(norm1, x), KeptNorm(norm2, x)]
    return BetweenProducts.apply(norms, dwconv.shortcut, x, norm1.weight, norm1.bias, *dwconv.weights(),
                                 norm2.weight, norm2.bias, project.weight, project.bias)


class BetweenProducts(torch.autograd.Function):
    """:func:`between_products` of an expanded x, for which the backward pass keeps one wide map."""

    @staticmethod
    def forward(ctx: Any, norms: list, shortcut: bool, x: Tensor, *parameters: Tensor) -> Tensor:
        scale1, offset1, depthwise, offset, scale2, offset2, weight, bias = parameters
        # Under autocast x is in half precision already, and the norms stay in float32.
        depthwise, offset, weight, bias = cast([depthwise, offset, weight, bias], x.dtype)
        if shortcut:
            depthwise = depthwise.clone() if depthwise is parameters[2] else depthwise
            depthwise[:, :, 1, 1].add_(1)
        ctx.norms, ctx.shortcut = norms, shortcut
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
        needs_x, *needs = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():  # a second derivative is wanted
            return (None, None, *differentiable(ctx.norms, ctx.shortcut, (kept1, kept2), (x, *parameters),
                                                (needs_x, *needs), grad))
        scale1, offset1, _, _, scale2, offset2, *_ = parameters
        groups = len(depthwise)

        activated1 = F.gelu(x)
        y1 = norm1.again(activated1, scale1, offset1, kept1)
        mixed = F.conv2d(y1, depthwise, offset, padding=1, groups=groups)
        activated2 = F.gelu(mixed)

        grad, of_weight, of_bias = convolution_backward(grad, activated2, weight)
        # Of the product behind the norm, a x + b: sum(grad (a x + b)) = a sum(grad x) + b sum(grad).
        a, b = norm2.slope_and_offset(scale2, offset2, kept2)
        of_weight = torch.addcmul(of_weight.flatten(1) * a, of_bias[:, None], b).view_as(weight)
        grad, *of_norm2 = norm2.backward(grad, activated2, scale2, needs[4:6], kept2)
        del activated2
        grad = gelu_backward(grad, mixed)
        del mixed
        grad, *of_dwconv = convolution_backward(grad, y1, depthwise, padding=1, groups=groups)
        del y1
        grad, *of_norm1 = norm1.backward(grad, activated1, scale1, needs[:2], kept1)
        del activated1
        grad = gelu_backward(grad, x) if needs_x else None
        *of_dwconv, of_bias = cast([*of_dwconv, of_bias], parameters[2].dtype)
        return (None, None, grad, *of_norm1, *of_dwconv, *of_norm2, of_weight, of_bias)


def differentiable(norms: Sequence[KeptNorm], shortcut: bool, kept: Sequence[tuple], inputs: Sequence[Tensor],
                   needs: Sequence[bool], grad: Tensor) -> Tuple[Optional[Tensor], ...]:
    """The gradients of the inputs as functions that can be differentiated again."""
    x, scale1, offset1, depthwise, offset, scale2, offset2, weight, bias = inputs
    depthwise, offset, weight, bias = (t.to(x.dtype) for t in (depthwise, offset, weight, bias))
    y = norms[0].plain(F.gelu(x), scale1, offset1, kept[0])
    mixed = F.conv2d(y, depthwise, offset, padding=1, groups=len(depthwise))
    y = F.gelu(y + mixed if shortcut else mixed)
    out = F.conv2d(norms[1].plain(y, scale2, offset2, kept[1]), weight, bias)
    return differentiable_gradients(out, inputs, needs, grad)
