"""Non-maximum suppression: of `torchvision.ops.nms`, and two kinds that run on CPUs in mmcv as well."""
from typing import List, Tuple

import numpy as np
import torch
from torch import Tensor

from cmt_backbones.openmmlab.operators.casting import at_least_float32


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices (K,) of the boxes (N, 4) that are kept, best first.

    Args:
        offset: 1 where a box from 3 to 5 is 3 pixels wide, 0 where it is 2.
    """
    boxes, scores = at_least_float32(boxes), at_least_float32(scores)
    if offset:
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    # In mmcv's order, which is not torchvision's where scores are equal.
    order = scores.sort(0, descending=True).indices
    # mmcv compares in float32; torchvision in float64, where 3 / 10 is above a threshold of 0.3.
    kept = torch.ops.torchvision.nms(boxes[order], scores[order].to(boxes.dtype), float(np.float32(iou_threshold)))
    return order[kept]


def softnms(boxes: Tensor, scores: Tensor, dets: Tensor, iou_threshold: float, sigma: float, min_score: float,
            method: int, offset: int) -> Tensor:
    """Soft-NMS (Bodla et al. 2017): scores fall with the overlap with better boxes.

    Args:
        boxes: (N, 4), on the CPU, as mmcv hands them over.
        dets: (N, 5), written: the boxes that are kept with their new scores, best first.
        method: 0 scores of 0 above the threshold (plain NMS), 1 linear, 2 Gaussian.

    Returns:
        Indices (K,) of the boxes in `dets`.
    """
    found = np.concatenate([boxes.detach().float().numpy(), scores.detach().float().numpy()[:, None]], axis=1)
    indices = np.arange(len(found))
    count, best = len(found), 0
    while best < count:
        # Of equal scores the first is taken, and a NaN (two boxes without area) stays where it is.
        left = found[best:count, 4]
        if not np.isnan(left[0]):
            first = best + int(np.nanargmax(left))
            found[[best, first]] = found[[first, best]]
            indices[[best, first]] = indices[[first, best]]
        best += 1
        overlap = _iou(found[best - 1], found[best:count], offset)
        if method == 2:
            weight = np.exp(-(overlap * overlap) / np.float32(sigma))
        else:
            weight = np.where(overlap >= np.float32(iou_threshold), 1 - overlap if method == 1 else 0, 1)
        found[best:count, 4] *= weight.astype(np.float32)
        # What falls below the lowest score is replaced from the end, as in mmcv, so that equals keep its order.
        stays = ~(found[best:count, 4] < np.float32(min_score))
        kept = int(stays.sum())
        holes = best + np.flatnonzero(~stays[:kept])
        fillers = best + kept + np.flatnonzero(stays[kept:])[::-1]
        found[holes], indices[holes] = found[fillers], indices[fillers]
        count = best + kept
    dets[:count] = torch.from_numpy(found[:count])
    return torch.from_numpy(indices[:count])


def nms_match(dets: Tensor, iou_threshold: float) -> List[List[int]]:
    """Groups of indices of `dets` (N, 5), on the CPU: a box that is kept, then those that it suppresses."""
    boxes = dets.detach().float().numpy()
    left = torch.sort(dets[:, 4], descending=True).indices.numpy()
    groups = []
    while len(left):
        matched = _iou(boxes[left[0]], boxes[left[1:]], offset=0) >= np.float32(iou_threshold)
        groups.append([int(i) for i in (left[0], *left[1:][matched])])
        left = left[1:][~matched]
    return groups


def _iou(box: np.ndarray, others: np.ndarray, offset: int) -> np.ndarray:
    """Overlaps (N,) of a box (4 or more,) with others (N, 4 or more), float32; NaN where neither has an area."""
    width, height = _sides(box[None], offset)
    widths, heights = _sides(others, offset)
    shared = np.concatenate([np.maximum(box[:2], others[:, :2]), np.minimum(box[2:4], others[:, 2:4])], axis=1)
    shared_widths, shared_heights = _sides(shared, offset)
    inner = np.maximum(shared_widths, 0) * np.maximum(shared_heights, 0)
    with np.errstate(invalid='ignore', divide='ignore'):
        return inner / (width * height + widths * heights - inner)


def _sides(boxes: np.ndarray, offset: int) -> Tuple[np.ndarray, np.ndarray]:
    return boxes[:, 2] - boxes[:, 0] + np.float32(offset), boxes[:, 3] - boxes[:, 1] + np.float32(offset)
