"""Exact folding for inference: products and norms that follow one another become one product.

Functions return weights of a layer that stands for two. They compute in double precision, so that what
is folded differs by no more than the rounding of float32.
"""
from typing import Iterator, Tuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .depthwise import with_shortcut
from .kept_norm import norm_of_gelu


def fold_norm_after(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Makes `conv` compute ``norm(conv(x))``, with the running statistics."""
    scale, offset = affine(norm)
    weight, bias = conv.weight.double(), conv.bias.double()
    store(conv, weight * scale[:, None, None, None], bias * scale + offset)


def fold_norm_before(norm: nn.BatchNorm2d, conv: nn.Conv2d) -> None:
    """Makes `conv`, which must neither pad nor have groups, compute ``conv(norm(x))``.

    Padding would be a zero behind the norm, and is none before it.
    """
    if conv.padding != (0, 0) or conv.groups != 1:
        raise ValueError('a norm folds exactly only into a convolution without padding and groups')
    scale, offset = affine(norm)
    weight, bias = conv.weight.double(), conv.bias.double()
    bias = bias + torch.einsum('oihw,i->o', weight, offset)
    store(conv, weight * scale[:, None, None], bias)


def fold_layer_norm_before(norm: nn.LayerNorm, layer: nn.Module) -> None:
    """Makes a linear layer, or a convolution without padding, apply a LayerNorm's scale and offset.

    The norm is left with a scale of 1 and an offset of 0, as ``None``.
    """
    scale, offset = norm.weight.double(), norm.bias.double()
    weight, bias = layer.weight.double(), layer.bias.double()
    rest = (None, ) * (weight.dim() - 2)
    bias = bias + torch.einsum('oi...,i->o', weight, offset)
    store(layer, weight * scale[(slice(None), *rest)], bias)
    norm.weight = norm.bias = None


def fold_scale_after(layer: nn.Linear, scale: Tensor) -> None:
    """Makes a linear layer compute ``scale * layer(x)``."""
    scale = scale.double()
    store(layer, layer.weight.double() * scale[:, None], layer.bias.double() * scale)


def fold_shortcut(conv: nn.Conv2d) -> None:
    """Makes a depthwise 3x3 convolution compute ``x + conv(x)``: 1 more at the centre of its kernels."""
    store(conv, with_shortcut(conv.weight.double()), conv.bias.double())


def affine(norm: nn.BatchNorm2d) -> Tuple[Tensor, Tensor]:
    """Scale and offset (C,) of a BatchNorm in eval mode."""
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def store(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    layer.weight.data.copy_(weight)
    layer.bias.data.copy_(bias)


class NormsFirst(nn.Module):
    """A module that tells of its BatchNorms before its other children.

    mmcv's ``fuse_conv_bn`` folds each BatchNorm into the last convolution before it, by the order of
    ``named_children()`` and whatever is computed in between: here a GELU, behind which nothing folds. It leaves
    norms without a convolution before them. State dicts, parameters and ``forward`` go by another order, the
    one in which modules were added.
    """

    norms_behind_gelu: Tuple[str, ...] = ()  # all of a :class:`SequentialNormsFirst`

    def named_children(self) -> Iterator[Tuple[str, nn.Module]]:
        children = dict(super().named_children())
        first = [name for name in self.norms_behind_gelu if name in children]
        for name in first + [name for name in children if name not in first]:
            yield name, children[name]


class SequentialNormsFirst(NormsFirst, nn.Sequential):
    """Convolutions, GELUs and norms in turn; training keeps nothing of the GELUs."""

    def forward(self, x: Tensor) -> Tensor:
        layers = list(self)  # of an iterator three times in one zip, torch 2.1's compiler makes another program
        for conv, norm in zip(layers[::3], layers[2::3]):
            x = norm_of_gelu(conv(x), norm)
        return x

    @property
    def norms_behind_gelu(self) -> Tuple[str, ...]:
        return tuple(name for name, child in self._modules.items() if isinstance(child, _BatchNorm))
