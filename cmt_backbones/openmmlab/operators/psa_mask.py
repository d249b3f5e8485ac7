"""The map of point-wise spatial attention (PSANet, Zhao et al. 2018, section 3.3), of mmseg's PSAHead."""
from typing import Tuple

import torch
from torch import Tensor


def psamask_forward(input: Tensor, output: Tensor, psa_type: int, num_: int, h_feature: int, w_feature: int,
                    h_mask: int, w_mask: int, half_h_mask: int, half_w_mask: int) -> None:
    """Unfolds the masks of all places into maps of the whole.

    Args:
        input: (N, h_mask * w_mask, H, W), a mask around each place.
        output: (N, H * W, H, W). At a place it has, by row and column of the whole, what the place's mask has
            there (``psa_type=0``, collect), or what the masks of those places have at it (1, distribute); 0 where
            a mask does not reach.
    """
    index, inside = _positions_in_masks(input, h_mask, w_mask, half_h_mask, half_w_mask)
    found = input.gather(1, index.expand(num_, -1, -1, -1)) * inside
    output.copy_(found if psa_type == 0 else _turned(found))


def psamask_backward(grad_output: Tensor, grad_input: Tensor, psa_type: int, num_: int, h_feature: int,
                     w_feature: int, h_mask: int, w_mask: int, half_h_mask: int, half_w_mask: int) -> None:
    """Folds gradients of the maps (N, H * W, H, W) into those of the masks (N, h_mask * w_mask, H, W)."""
    index, inside = _positions_in_masks(grad_input, h_mask, w_mask, half_h_mask, half_w_mask)
    found = grad_output if psa_type == 0 else _turned(grad_output)
    # A place of the whole is at one position of a mask, so no two are added.
    grad_input.scatter_add_(1, index.expand(num_, -1, -1, -1), found * inside)


def _turned(maps: Tensor) -> Tensor:
    """(N, H * W, H, W) with the place that looks and the place that is looked at exchanged."""
    return maps.flatten(2).transpose(1, 2).reshape(maps.shape)


def _positions_in_masks(masks: Tensor, h_mask: int, w_mask: int, half_h_mask: int,
                        half_w_mask: int) -> Tuple[Tensor, Tensor]:
    """Where each place of the whole is in the mask of each place, and whether it is: both (1, H * W, H, W)."""
    height, width = masks.shape[2:]
    y, x = (torch.arange(size, device=masks.device) for size in (height, width))
    row = (y[:, None] - y + half_h_mask)[:, None, :, None]
    column = (x[:, None] - x + half_w_mask)[:, None]
    inside = (row >= 0) & (row < h_mask) & (column >= 0) & (column < w_mask)
    index = row.clamp(0, h_mask - 1) * w_mask + column.clamp(0, w_mask - 1)
    return index.reshape(1, -1, height, width), inside.reshape(1, -1, height, width)
