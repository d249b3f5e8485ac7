"""Focal loss (Lin et al. 2017) and its gradient in closed form: nothing is kept between the two but the logits.

The logarithms are those of the logits. The CUDA kernels of mmcv take them of float32 probabilities, so that
a wrong score of 20 costs 87 there and 20 here, as in mmdet's own form for CPUs. 16-bit logits are computed in float32.
"""
from typing import Iterator, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cmt_backbones.openmmlab.operators.casting import at_least_float32

_AT_ONCE = 2**22  # logits; bounds what is computed on the way


def sigmoid_focal_loss_forward(input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float,
                               alpha: float) -> None:
    """Writes the losses (N, C) of logits (N, C) into `output`.

    Args:
        target: (N,), the class of each row; any other number is background.
        weight: (C,), weights of rows by their class, or empty. A row of background weighs 1.
    """
    for logits, classes, written in _in_parts(input, target, output):
        loss = (1 - alpha) * logits.sigmoid().pow_(gamma).mul_(F.softplus(logits))
        x, is_class, at = _of_the_class(logits, classes)
        of_class = alpha * torch.sigmoid(-x) ** gamma * F.softplus(-x)
        _write(loss, torch.where(is_class, of_class, loss.gather(1, at)), at, is_class, weight, written)


def sigmoid_focal_loss_backward(input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float,
                                alpha: float) -> None:
    """Writes the derivative of each loss by its logit, (N, C), into `grad_input`."""
    for logits, classes, written in _in_parts(input, target, grad_input):
        p = logits.sigmoid()
        slope = F.softplus(logits).mul_(1 - p).mul_(gamma).add_(p).mul_(p.pow_(gamma)).mul_(1 - alpha)
        x, is_class, at = _of_the_class(logits, classes)
        p, q = torch.sigmoid(x), torch.sigmoid(-x)
        of_class = -alpha * q ** gamma * (q + gamma * p * F.softplus(-x))
        _write(slope, torch.where(is_class, of_class, slope.gather(1, at)), at, is_class, weight, written)


def _in_parts(input: Tensor, target: Tensor, output: Tensor) -> Iterator[Tuple[Tensor, Tensor, Tensor]]:
    rows = max(_AT_ONCE // max(input.shape[1], 1), 1)
    for logits, classes, written in zip(input.split(rows), target.split(rows), output.split(rows)):
        yield at_least_float32(logits), classes[:, None], written


def _of_the_class(logits: Tensor, classes: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """The logit of each row's class (N, 1), whether there is one, and its column; nothing waits for a GPU."""
    is_class = (classes >= 0) & (classes < logits.shape[1])
    at = classes.clamp(0, logits.shape[1] - 1)
    return logits.gather(1, at), is_class, at


def _write(values: Tensor, of_class: Tensor, at: Tensor, is_class: Tensor, weight: Tensor, output: Tensor) -> None:
    values.scatter_(1, at, of_class)
    if weight.numel():
        values *= torch.where(is_class, weight.to(values.dtype)[at], 1.)
    output.copy_(values)


def softmax_focal_loss_forward(input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float,
                               alpha: float) -> None:
    """Writes the losses (N,) of probabilities (N, C) into `output`.

    Args:
        target: (N,), the class of each row; a negative one costs nothing.
        weight: (C,), weights of the classes, or empty.
    """
    p, label = _of_the_label(input, target)
    loss = -alpha * (1 - p) ** gamma * p.clamp(min=torch.finfo(p.dtype).tiny).log()
    output.copy_(_of_labels(loss, target, label, weight))


def softmax_focal_loss_backward(input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor,
                                gamma: float, alpha: float) -> None:
    """Writes the derivatives by the logits, (N, C), into `grad_input` and what they share in a row into `buff`."""
    p, label = _of_the_label(input, target)
    log_p = p.clamp(min=torch.finfo(p.dtype).tiny).log()
    shared = alpha * (gamma * (1 - p) ** (gamma - 1) * p * log_p - (1 - p) ** gamma)
    buff.copy_(_of_labels(shared, target, label, weight))
    torch.mul(input, -buff[:, None], out=grad_input)
    grad_input.scatter_add_(1, label[:, None], buff[:, None])


def _of_the_label(input: Tensor, target: Tensor) -> Tuple[Tensor, Tensor]:
    label = target.clamp(min=0)
    p = input.gather(1, label[:, None])[:, 0]
    return at_least_float32(p), label


def _of_labels(values: Tensor, target: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    if weight.numel():
        values = values * weight.to(values.dtype)[label]
    return values.masked_fill(target < 0, 0)
