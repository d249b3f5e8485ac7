"""CPUs: the same numbers, in the order and by the kernels that are fast there.

Bands. A block is four times as wide inside as outside. For a whole map at detection sizes, what is in
between fits no cache, and malloc maps every such array anew and clears it, which took three quarters of
the time of CMT-S's first stage. A band of rows goes through all layers within the cache, at inference.

Kernels. PyTorch multiplies float32 matrices by MKL, and convolves by oneDNN, which on AMD's CPUs
is faster, with 512-bit units more than twice, since MKL uses no AVX-512 there. A matrix product is a 1x1
convolution. oneDNN can also take the GELU of what it just computed, which saves a pass over the widest map.
"""
import platform
from functools import lru_cache, partial, wraps
from typing import Any, Callable, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .casting import Conv2d, Product, cast
from .tracing import computes_plainly, product_dtype

BAND_SIZE = 2**21  # numbers in the largest array of a band: 8 MB in float32
# Of PyTorch's compiler for CPUs; builds without oneDNN have none.
GELU_OF_CONVOLUTION = getattr(torch.ops.mkldnn, '_convolution_pointwise', None)


def is_fast(device: str, dtype: torch.dtype) -> bool:
    """Whether a convolution in this dtype goes by oneDNN on a CPU."""
    return device == 'cpu' and (dtype == torch.float32 or dtype == torch.bfloat16 and has_bf16())


@lru_cache(maxsize=None)
def has_bf16() -> bool:
    """Whether this processor multiplies in bfloat16, and oneDNN by it; elsewhere float32 is faster."""
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    # On AVX-512 without bfloat16 oneDNN converts there and back.
    instructions = getattr(torch.cpu, '_is_avx512_bf16_supported', None)  # from PyTorch 2.5 on
    return instructions is None or platform.machine() not in ('x86_64', 'AMD64') or instructions()


def infers_on_cpu(x: Tensor) -> bool:
    """Whether x is on a CPU, outside of traced and compiled graphs, and no gradients are wanted."""
    return is_fast(x.device.type, product_dtype(x)) and not torch.is_grad_enabled() and not computes_plainly()


def in_bands(halo: int = 0, stride: int = 1) -> Callable:
    """Decorates a method from maps to a map, to be computed by :func:`by_bands` in a module that is in eval mode.

    The module has an attribute `widest`; None there, too, says that the method must see all of a map at once.
    """
    def decorate(method: Callable) -> Callable:
        @wraps(method)
        def banded(self: nn.Module, *maps: Tensor, **others: Any) -> Tensor:
            if self.training or self.widest is None or not infers_on_cpu(maps[0]):
                return method(self, *maps, **others)
            return by_bands(partial(method, self, **others), *maps, widest=self.widest, halo=halo, stride=stride)
        return banded
    return decorate


def by_bands(f: Callable[..., Tensor], *maps: Tensor, widest: float, halo: int = 0, stride: int = 1) -> Tensor:
    """``f(*maps)`` in bands of rows, or a few images at a time where those are small.

    Args:
        f (Callable): From maps (N, C, H, W) to maps (N, C', H / stride, W / stride). What it gives for
            a row may depend on `halo` rows above and below, as convolutions that pad with zeros do.
        maps (Tensor): (N, C, H, W), C of each its own; H divides by `stride`.
        widest (float): How many numbers the largest array within `f` has for each pixel of a map.
        halo (int): In rows of a map, a multiple of `stride`.
        stride (int): Of `f`, over all its layers.

    Returns:
        Tensor: ``f(*maps)``, equal up to rounding.
    """
    images, _, height, width = maps[0].shape
    rows = max(int(BAND_SIZE / (widest * width)), 4 * halo, stride) // stride * stride
    if rows >= images * height:
        return f(*maps)
    if rows >= height:
        return torch.cat([f(*some) for some in zip(*(x.split(rows // height) for x in maps))])
    out = None
    for image in range(images):
        for top in range(0, height, rows):
            bottom, first = min(top + rows, height), max(top - halo, 0)
            band = f(*(x[image:image + 1, :, first:bottom + halo] for x in maps))
            band = band[:, :, (top - first) // stride:(bottom - first) // stride]
            if out is None:
                shape = images, band.shape[1], height // stride, band.shape[3]
                out = torch.empty(shape, dtype=band.dtype, memory_format=torch.channels_last)
            out[image:image + 1, :, top // stride:bottom // stride] = band
    return out


def product(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """``x @ weight.T + bias`` as a 1x1 convolution; x is (rows, C), weight (C', C)."""
    return to_rows(F.conv2d(to_pixels(x), weight[:, :, None, None], bias))


def to_pixels(rows: Tensor) -> Tensor:
    """(rows, C) -> (1, C, 1, rows), channels-last; a view."""
    return rows[None, None].permute(0, 3, 1, 2)


def to_rows(pixels: Tensor) -> Tensor:
    """(1, C, 1, rows) -> (rows, C); a view of channels-last pixels."""
    return pixels.permute(0, 2, 3, 1)[0, 0]


def gelu_of_convolution(x: Tensor, weight: Tensor, bias: Tensor, padding: int = 0, groups: int = 1) -> Tensor:
    """``F.gelu(F.conv2d(x, weight, bias, padding=padding, groups=groups))``, a pass less where oneDNN can do both."""
    # Who counts or looks at operations by a dispatch mode is to see those that everybody knows.
    if not infers_on_cpu(x) or GELU_OF_CONVOLUTION is None or torch._C._len_torch_dispatch_stack():
        return F.gelu(F.conv2d(x, weight, bias, padding=padding, groups=groups))
    x, weight, bias = cast([x, weight, bias], product_dtype(x))
    return GELU_OF_CONVOLUTION(x, weight, bias, [padding] * 2, [1, 1], [1, 1], groups, 'gelu', [], 'none')


def gelu_of(layer: nn.Module, x: Tensor) -> Tensor:
    """``F.gelu(layer(x))`` for a Linear or a 1x1 convolution, likewise unless somebody has put another in its place."""
    if type(layer) not in (Conv2d, Linear) or layer._forward_hooks or layer._forward_pre_hooks or (
            not infers_on_cpu(x)):
        return F.gelu(layer(x))
    if type(layer) is Conv2d:
        return gelu_of_convolution(x, *layer.weights())
    weight, bias = layer.weights()
    out = gelu_of_convolution(to_pixels(x.reshape(-1, x.shape[-1])), weight[:, :, None, None], bias)
    return to_rows(out).reshape(*x.shape[:-1], -1)


class Linear(Product, nn.Linear):
    """``nn.Linear``, by the faster kernel on CPUs.

    With a `scale` (C', ) it computes ``scale * linear(x)`` by scaled weights, a pass over the result less.
    """

    def forward(self, x: Tensor, scale: Optional[Tensor] = None) -> Tensor:
        weight, bias = self.weights()
        if scale is not None:
            weight, bias = scale[:, None] * weight, scale * bias
        if x.device.type != 'cpu' or product_dtype(x) != torch.float32 or computes_plainly():
            return F.linear(x, weight, bias)
        out = product(x.reshape(-1, self.in_features), weight, bias)
        return out.reshape(*x.shape[:-1], self.out_features)
