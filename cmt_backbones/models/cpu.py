"""CPUs: the same numbers, in the order and by the kernels that are fast there.

Bands. A block is four times as wide inside as outside. For a whole map at detection sizes, what is in
between fits no cache, and malloc maps every such array anew and clears it, which took three quarters of
the time of CMT-S's first stage. A band of rows goes through all layers within the cache, at inference.

Kernels. PyTorch multiplies float32 matrices by MKL, and convolves by oneDNN, which on AMD's CPUs
is more than twice as fast, since MKL uses no AVX-512 there. A matrix product is a 1x1 convolution.
"""
from typing import Callable, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..versions import is_compiling
from .casting import Product

BAND_SIZE = 2**21  # numbers in the largest array of a band: 8 MB in float32


def on_cpu(x: Tensor) -> bool:
    """Whether x is in float32 on a CPU, outside of traced and compiled graphs."""
    return (x.device.type == 'cpu' and x.dtype == torch.float32
            and not torch.jit.is_tracing() and not is_compiling())


def infers_on_cpu(x: Tensor) -> bool:
    """The same, where no gradients are wanted."""
    return not torch.is_grad_enabled() and on_cpu(x)


def by_bands(f: Callable[[Tensor], Tensor], x: Tensor, widest: int, halo: int = 0,
             stride: int = 1, whole: bool = False) -> Tensor:
    """``f(x)``, at inference on CPUs in bands of rows, or a few images at a time where those are small.

    Args:
        f (Callable): From maps (N, C, H, W) to maps (N, C', H / stride, W / stride). What it gives for
            a row may depend on `halo` rows above and below, as convolutions that pad with zeros do.
        x (Tensor): (N, C, H, W); H divides by `stride`.
        widest (int): How many numbers the largest array within `f` has for each pixel of `x`.
        halo (int): In rows of `x`, a multiple of `stride`.
        stride (int): Of `f`, over all its layers.
        whole (bool): Whether `f` must see all of `x` at once, for batch statistics or random numbers.

    Returns:
        Tensor: ``f(x)``, equal up to rounding.
    """
    if whole or not infers_on_cpu(x):
        return f(x)
    images, _, height, width = x.shape
    rows = max(BAND_SIZE // (widest * width), 4 * halo, stride) // stride * stride
    if rows >= images * height:
        return f(x)
    if rows >= height:
        return torch.cat([f(some) for some in x.split(rows // height)])
    out = None
    for image in range(images):
        for top in range(0, height, rows):
            bottom, first = min(top + rows, height), max(top - halo, 0)
            band = f(x[image:image + 1, :, first:bottom + halo])
            band = band[:, :, (top - first) // stride:(bottom - first) // stride]
            if out is None:
                shape = images, band.shape[1], height // stride, band.shape[3]
                out = torch.empty(shape, dtype=band.dtype, memory_format=torch.channels_last)
            out[image:image + 1, :, top // stride:bottom // stride] = band
    return out


def product(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """``x @ weight.T + bias`` as a 1x1 convolution; x is (rows, C), weight (C', C)."""
    pixels = x[None, None].permute(0, 3, 1, 2)  # (1, C, 1, rows), channels-last
    return F.conv2d(pixels, weight[:, :, None, None], bias).permute(0, 2, 3, 1)[0, 0]


class Linear(Product, nn.Linear):
    """``nn.Linear``, by the faster kernel on CPUs.

    With a `scale` (C', ) it computes ``scale * linear(x)`` by scaled weights, a pass over the result less.
    """

    def forward(self, x: Tensor, scale: Optional[Tensor] = None) -> Tensor:
        weight, bias = self.weights()
        if scale is not None:
            weight, bias = scale[:, None] * weight, scale * bias
        if not on_cpu(x):
            return F.linear(x, weight, bias)
        out = product(x.reshape(-1, self.in_features), weight, bias)
        return out.reshape(*x.shape[:-1], self.out_features)
