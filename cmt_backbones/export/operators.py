"""Two operators whose results have a fixed size, so that torch.export can trace what follows them.

PyTorch knows no size of what non-maximum suppression keeps, or of the regions that fall to one level of a
pyramid; ONNX's own operators do not need to. Each is one node to torch.export, torchvision in eager mode,
and ONNX's NonMaxSuppression or RoiAlign in a file.
"""
from typing import Any, Callable, Dict, List

import torch
import torchvision
from torch import Tensor

if not hasattr(torch.library, 'custom_op'):
    raise ImportError(f'whole models are exported with torch 2.6 or later, and this is {torch.__version__}')


@torch.library.custom_op('cmt_backbones::suppress', mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, iou: float, most: int) -> Tensor:
    """Which boxes non-maximum suppression keeps.

    Args:
        boxes (Tensor): (N, M, 4), x1, y1, x2, y2.
        scores (Tensor): (N, M). Boxes with a score of 0 or less are not looked at.
        iou (float): Boxes that overlap a better one by more are dropped.
        most (int): How many are kept in an image at most, the best.

    Returns:
        Tensor: (N, M), bool.
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for image in range(len(boxes)):
        places = (scores[image] > 0).nonzero()[:, 0]
        found = torchvision.ops.nms(boxes[image, places], scores[image, places], iou)[:most]
        kept[image, places[found]] = True
    return kept


@suppress.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float, most: int) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


@torch.library.custom_op('cmt_backbones::roi_align', mutates_args=())
def roi_align(maps: List[Tensor], rois: Tensor, levels: Tensor, scales: List[float], size: List[int],
              sampling_ratio: int) -> Tensor:
    """Aligned RoIAlign, each region on the map of its level.

    Args:
        maps (list[Tensor]): (N, C, H_i, W_i).
        rois (Tensor): (R, 5): which image, and x1, y1, x2, y2 in its pixels.
        levels (Tensor): (R, ), int64, the map of each region.
        scales (list[float]): Of each map, one over its stride.
        size (list[int]): Rows and columns of the result.
        sampling_ratio (int): Samples a cell and axis; 0 takes as many as there are pixels.

    Returns:
        Tensor: (R, C, *size).
    """
    out = maps[0].new_zeros(len(rois), maps[0].shape[1], *size)
    for level, (x, scale) in enumerate(zip(maps, scales)):
        places = (levels == level).nonzero()[:, 0]
        out[places] = torchvision.ops.roi_align(x.contiguous(), rois[places], size, scale, sampling_ratio,
                                                aligned=True)
    return out


@roi_align.register_fake
def _(maps: List[Tensor], rois: Tensor, levels: Tensor, scales: List[float], size: List[int],
      sampling_ratio: int) -> Tensor:
    return maps[0].new_empty(rois.shape[0], maps[0].shape[1], *size)


def onnx_operators() -> Dict[Callable, Callable]:
    """How torch.onnx writes the two, for its `custom_translation_table`."""
    from onnxscript import opset18 as op

    def onnx_suppress(boxes: Any, scores: Any, iou: float, most: int) -> Any:
        found = op.NonMaxSuppression(
            boxes, op.Unsqueeze(scores, op.Constant(value_ints=[1])), op.Constant(value_ints=[most]),
            op.Constant(value_floats=[iou]), op.Constant(value_floats=[0.]))  # (found, 3): image, class, box
        places = op.Gather(found, op.Constant(value_ints=[0, 2]), axis=1)
        count = op.Slice(op.Shape(found), op.Constant(value_ints=[0]), op.Constant(value_ints=[1]))
        ones = op.Expand(op.Constant(value_float=1.), count)
        none = op.ConstantOfShape(op.Shape(scores))
        return op.Cast(op.ScatterND(none, places, ones), to=9)  # bool

    def onnx_roi_align(maps: Any, rois: Any, levels: Any, scales: Any, size: Any, sampling_ratio: int) -> Any:
        images = op.Cast(op.Squeeze(op.Slice(
            rois, op.Constant(value_ints=[0]), op.Constant(value_ints=[1]), op.Constant(value_ints=[1])),
            op.Constant(value_ints=[1])), to=7)  # int64
        boxes = op.Slice(rois, op.Constant(value_ints=[1]), op.Constant(value_ints=[5]),
                         op.Constant(value_ints=[1]))
        parts, order = [], []
        for level, (x, scale) in enumerate(zip(maps, scales)):
            places = op.Squeeze(op.NonZero(op.Equal(levels, op.Constant(value_int=level))),
                                op.Constant(value_ints=[0]))
            parts.append(op.RoiAlign(
                x, op.Gather(boxes, places), op.Gather(images, places),
                coordinate_transformation_mode='half_pixel', mode='avg', output_height=size[0],
                output_width=size[1], sampling_ratio=sampling_ratio, spatial_scale=scale))
            order.append(places)
        # By level, and then back into the order of the regions.
        together, order = op.Concat(*parts, axis=0), op.Concat(*order, axis=0)
        back = op.ScatterElements(order, order, op.Range(
            op.Constant(value_int=0), op.Squeeze(op.Shape(order)), op.Constant(value_int=1)), axis=0)
        return op.Gather(together, back)

    return {torch.ops.cmt_backbones.suppress.default: onnx_suppress,
            torch.ops.cmt_backbones.roi_align.default: onnx_roi_align}
