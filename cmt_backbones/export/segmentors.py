"""Segmentors and backbones as modules that torch.export can trace, also for images of any size."""
from typing import Tuple

import torch
from torch import Tensor, nn

from .predictor import ExportError


class Segmentor(nn.Module):
    """The classes of normalised images (N, 3, H, W): (N, H, W), int64, or logits (N, classes, H, W).

    Args:
        model (nn.Module): An EncoderDecoder of mmseg, in eval mode.
        logits (bool): Whether to return the logits.
    """

    def __init__(self, model: nn.Module, logits: bool = False) -> None:
        super().__init__()
        head = type(getattr(model, 'decode_head', model)).__name__
        if type(model).__name__ != 'EncoderDecoder' or head not in ('UPerHead', 'FCNHead'):
            raise ExportError(f'the decode_head is a {head}, which is not supported: UPerHead and FCNHead are, in an '
                              'EncoderDecoder; --backbone-only exports the backbone')
        self.model, self.logits = model, logits
        self.out_channels = model.decode_head.out_channels

    def forward(self, images: Tensor) -> Tuple[Tensor, ...]:
        logits = self.model.encode_decode(images, [dict(img_shape=images.shape[2:])])
        if self.logits:
            return logits,
        if self.out_channels == 1:
            return (logits.sigmoid() > self.model.decode_head.threshold)[:, 0].long(),
        return logits.argmax(1),


class Backbone(nn.Module):
    """The maps of a backbone alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.backbone

    def forward(self, images: Tensor) -> Tuple[Tensor, ...]:
        return tuple(self.model(images))


class AdaptiveAvgPool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two products, since ONNX has no such pooling of maps of unknown size."""

    def __init__(self, size: Tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (averages(side, out, x) for side, out in zip(x.shape[2:], self.size))
        return rows @ x @ columns.T


def averages(side: int, out: int, like: Tensor) -> Tensor:
    """The matrix (out, side) that averages `side` numbers in `out` cells, as adaptive pooling cuts them."""
    cell = torch.arange(out, device=like.device)[:, None]
    place = torch.arange(side, device=like.device)
    inside = (place >= cell * side // out) & (place < ((cell + 1) * side + out - 1) // out)
    inside = inside.to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def replace_pooling(module: nn.Module) -> None:
    """Puts :class:`AdaptiveAvgPool` in the place of PyTorch's, everywhere within a module."""
    for name, child in module.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d):
            size = child.output_size
            size = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
            setattr(module, name, AdaptiveAvgPool(size))
        else:
            replace_pooling(child)
