"""RoIAlign (He et al. 2017) by torchvision's kernels, and RoIPool (Girshick 2015) as mmcv rounds it.

Maps are (N, C, H, W), regions (R, 5) as image, x1, y1, x2, y2 in pixels of the image. 16-bit numbers are
computed in float32 and rounded once; torchvision has no bfloat16 kernels.
"""
from typing import Tuple

import torch
from torch import Tensor

from cmt_backbones.openmmlab.operators.casting import at_least_float32


def roi_align_forward(input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor,
                      aligned_height: int, aligned_width: int, spatial_scale: float, sampling_ratio: int,
                      pool_mode: int, aligned: bool) -> None:
    """Writes the mean of bilinear samples in each bin, (R, C, height, width), into `output`.

    Raises:
        NotImplementedError: For `pool_mode='max'`.
        ValueError: For a region of negative size, or one that is not finite, on a CPU.
    """
    if pool_mode == 0:
        raise NotImplementedError(
            "RoIAlign(pool_mode='max') is compiled code, which torchvision does not have: take 'avg', or build mmcv "
            '(`make setup OPERATORS=compiled`, or mmcv in place of mmcv-lite)')
    if rois.device.type == 'cpu' and not rois.isfinite().all():  # which torchvision's kernel takes for places
        raise ValueError('RoIAlign got a region with NaN or infinity')
    if aligned and rois.device.type == 'cpu' and (rois[:, 3:] < rois[:, 1:3]).any():
        raise ValueError('RoIAlign got a region whose x2 or y2 lies before its x1 or y1')
    output.copy_(torch.ops.torchvision.roi_align(
        at_least_float32(input), at_least_float32(rois), spatial_scale, aligned_height, aligned_width, sampling_ratio,
        aligned))


def roi_align_backward(grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor,
                       aligned_height: int, aligned_width: int, spatial_scale: float, sampling_ratio: int,
                       pool_mode: int, aligned: bool) -> None:
    grad_input.copy_(torch.ops.torchvision._roi_align_backward(
        at_least_float32(grad_output), at_least_float32(rois), spatial_scale, aligned_height, aligned_width,
        *grad_input.shape, sampling_ratio, aligned))


def roi_pool_forward(input: Tensor, rois: Tensor, output: Tensor, argmax: Tensor, pooled_height: int,
                     pooled_width: int, spatial_scale: float) -> None:
    """Writes the maximum of each bin into `output` and its place y * W + x, -1 for none, into `argmax`.

    torchvision's roi_pool rounds the corners of a region to pixels first; mmcv's does not, and its bins end
    one pixel of the image later. One region at a time: on a GPU this is for inference of old models.
    """
    output.zero_()
    argmax.fill_(-1)
    rois = at_least_float32(rois)
    height, width = input.shape[2:]
    top, bottom = _bins(rois[:, 2], rois[:, 4], spatial_scale, pooled_height, height)
    left, right = _bins(rois[:, 1], rois[:, 3], spatial_scale, pooled_width, width)
    has_area = ((rois[:, 3:] + 1) * spatial_scale > rois[:, 1:3] * spatial_scale).all(1)
    for n in has_area.nonzero().flatten().tolist():
        rows, empty_rows = _pixels(top[n], bottom[n], height)  # (pooled_height, most rows in a bin)
        columns, empty_columns = _pixels(left[n], right[n], width)
        bins = input[int(rois[n, 0])][:, rows.flatten()][:, :, columns.flatten()]
        bins = bins.view(-1, *rows.shape, *columns.shape).transpose(2, 3).flatten(3)
        values, places = bins.max(3)  # (C, pooled_height, pooled_width)
        y = rows[torch.arange(pooled_height, device=rois.device)[:, None], places // columns.shape[1]]
        x = columns[torch.arange(pooled_width, device=rois.device), places % columns.shape[1]]
        empty = empty_rows[:, None] | empty_columns
        output[n] = values.masked_fill(empty, 0)
        argmax[n] = (y * width + x).masked_fill(empty, -1)


def _bins(start: Tensor, end: Tensor, scale: float, bins: int, limit: int) -> Tuple[Tensor, Tensor]:
    """First pixel and the one after the last of each bin of regions (R,) along one axis: (R, bins) each."""
    start, end = start * scale, (end + 1) * scale
    edges = torch.arange(bins + 1, device=start.device) * ((end - start) / bins)[:, None] + start[:, None]
    return edges[:, :-1].floor().clamp(0, limit).long(), edges[:, 1:].ceil().clamp(0, limit).long()


def _pixels(first: Tensor, after: Tensor, limit: int) -> Tuple[Tensor, Tensor]:
    """Pixels of bins (bins, most), the last one of each bin repeated, and which bins are empty (bins,)."""
    most = max(int((after - first).max()), 1)
    pixels = first[:, None] + torch.arange(most, device=first.device)
    return torch.minimum(pixels, after[:, None] - 1).clamp(0, limit - 1), after <= first


def roi_pool_backward(grad_output: Tensor, rois: Tensor, argmax: Tensor, grad_input: Tensor, pooled_height: int,
                      pooled_width: int, spatial_scale: float) -> None:
    images, channels = rois[:, 0].long(), torch.arange(grad_input.shape[1], device=rois.device)
    maps = images[:, None] * grad_input.shape[1] + channels  # (R, C)
    places = maps[:, :, None, None] * grad_input[0, 0].numel() + argmax.clamp(min=0)
    grad_output = at_least_float32(grad_output.masked_fill(argmax < 0, 0).flatten())
    summed = grad_output.new_zeros(grad_input.numel()).index_add_(0, places.flatten(), grad_output)
    grad_input.copy_(summed.view_as(grad_input))
