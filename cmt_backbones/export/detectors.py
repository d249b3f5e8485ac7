"""Detectors as modules that torch.export can trace: images in, a fixed number of boxes out.

Backbone, neck and heads are the model's own. What mmdet does after them in Python, with as many boxes as
there happen to be, is written here once more for arrays of a fixed size; `verify.py` compares the two.
"""
from typing import List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import operators  # noqa: F401  (registers what is called as torch.ops.cmt_backbones)
from .predictor import ExportError

SUPPORTED = 'RetinaNet, Faster R-CNN, Mask R-CNN, Cascade R-CNN and Cascade Mask R-CNN'


class Found(NamedTuple):
    """What an exported detector returns, K places for each of N images."""
    boxes: Tensor  # (N, K, 4) in pixels of the image: x1, y1, x2, y2
    scores: Tensor  # (N, K), descending; 0 where there is no box
    labels: Tensor  # (N, K), int64; -1 where there is no box
    masks: Optional[Tensor] = None  # (N, K, 28, 28), how sure each cell of the box is


class Detector(nn.Module):
    """What RetinaNet and the two-stage detectors share.

    Args:
        model (nn.Module): mmdet's, in eval mode.
        max_det (int): K.
        nms (bool): Whether to suppress what overlaps; otherwise the K best candidates are returned.
    """

    def __init__(self, model: nn.Module, max_det: int, nms: bool) -> None:
        super().__init__()
        self.model, self.max_det, self.nms = model, max_det, nms
        cfg = head_of(model).test_cfg
        self.iou = cfg.nms.iou_threshold
        # A buffer, and thereby an array of the file, which may be set to another value. Of two dimensions: one of one
        # would be taken for NMS's overlap where both are the same number, and be set with it.
        self.register_buffer('score_threshold', torch.tensor([[cfg.score_thr]], dtype=torch.float32))

    def best(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Found:
        """The K best of candidates (N, M, 4), (N, M) and (N, M)."""
        scores = torch.where(scores > self.score_threshold, scores, torch.zeros_like(scores))
        if self.nms:
            scores = suppressed(boxes, scores, labels, self.iou, self.max_det)
        scores, places = top(scores, self.max_det)
        there = scores > 0
        labels = torch.where(there, labels.gather(1, places), torch.full_like(places, -1))
        return Found(take(boxes, places) * there[..., None], scores * there, labels)


class RetinaNet(Detector):
    """One stage: a score for each class and a box for each anchor of five levels."""

    def forward(self, images: Tensor, size: Tensor) -> Tuple[Tensor, ...]:
        """Normalised images (N, 3, H, W), padded to `size` (2, ) plus what 32 leaves over -> :class:`Found`."""
        head = self.model.bbox_head
        cfg = head.test_cfg
        levels = []
        for level, (logits, deltas) in enumerate(zip(*head(self.model.extract_feat(images)))):
            scores, places = top(by_anchor(logits, 1)[..., 0], cfg.nms_pre)  # over anchors and classes
            anchors, labels = places // head.num_classes, places % head.num_classes
            priors = grid_anchors(head.prior_generator, level, logits)[anchors]
            boxes = decode(head.bbox_coder, priors, take(by_anchor(deltas, 4), anchors), size)
            levels.append((boxes, scores.sigmoid() * large(boxes, cfg), labels))
        return tuple(self.best(*(torch.cat(parts, dim=1) for parts in zip(*levels)))[:3])


class TwoStage(Detector):
    """A region proposal network, then boxes and masks from the maps within its proposals."""

    def forward(self, images: Tensor, size: Tensor) -> Tuple[Tensor, ...]:
        """Normalised images (N, 3, H, W), padded to `size` (2, ) plus what 32 leaves over -> :class:`Found`."""
        maps = self.model.extract_feat(images)
        proposals, there = self.propose(maps, size)
        boxes, scores = self.refine(maps, proposals, size)  # (N, R, C, 4), (N, R, C)
        classes = scores.shape[2]
        labels = torch.arange(classes, device=scores.device).expand(scores.shape)
        scores = scores * there[..., None]
        found = self.best(boxes.flatten(1, 2), scores.flatten(1), labels.flatten(1))
        if not self.model.roi_head.with_mask:
            return tuple(found[:3])
        return tuple(found._replace(masks=self.segment(maps, found)))

    def propose(self, maps: Sequence[Tensor], size: Tensor) -> Tuple[Tensor, Tensor]:
        """Proposals (N, R, 4), and which of the R places have one (N, R)."""
        head = self.model.rpn_head
        cfg = head.test_cfg
        levels = []
        for level, (logits, deltas) in enumerate(zip(*head(maps))):
            scores, places = top(by_anchor(logits, 1)[..., 0], cfg.nms_pre)
            priors = grid_anchors(head.prior_generator, level, logits)[places]
            boxes = decode(head.bbox_coder, priors, take(by_anchor(deltas, 4), places), size)
            levels.append((boxes, scores.sigmoid() * large(boxes, cfg), torch.full_like(places, level)))
        boxes, scores, levels = (torch.cat(parts, dim=1) for parts in zip(*levels))
        scores = suppressed(boxes, scores, levels, cfg.nms.iou_threshold, cfg.max_per_img)
        scores, places = top(scores, cfg.max_per_img)
        there = scores > 0
        return take(boxes, places) * there[..., None], there

    def refine(self, maps: Sequence[Tensor], proposals: Tensor, size: Tensor) -> Tuple[Tensor, Tensor]:
        """Boxes (N, R, C or 1, 4) and scores (N, R, C) of proposals (N, R, 4)."""
        roi_head = self.model.roi_head
        heads, extractors = roi_head.bbox_head, roi_head.bbox_roi_extractor
        if not isinstance(heads, nn.ModuleList):
            heads, extractors = [heads], [extractors]
        logits = []
        for stage, (head, extractor) in enumerate(zip(heads, extractors)):
            scores, deltas = head(roi_features(extractor, maps, proposals))
            logits.append(scores.unflatten(0, proposals.shape[:2]))  # (N, R, C + 1)
            deltas = deltas.unflatten(1, (-1, 4)).unflatten(0, proposals.shape[:2])
            if stage < len(heads) - 1:  # Cascade R-CNN refines the boxes of the best class
                if not head.reg_class_agnostic:
                    label = logits[-1][..., :-1].argmax(-1)[..., None, None]
                    deltas = deltas.gather(2, label.expand(-1, -1, -1, 4))
                proposals = decode(head.bbox_coder, proposals, deltas[:, :, 0], size)
        classes = heads[-1].num_classes
        boxes = decode(heads[-1].bbox_coder, proposals[:, :, None], deltas, size)
        scores = (sum(logits) / float(len(logits))).softmax(-1)[..., :classes]
        return boxes.expand(-1, -1, classes, -1), scores

    def segment(self, maps: Sequence[Tensor], found: Found) -> Tensor:
        """Masks (N, K, 28, 28) of the boxes."""
        roi_head = self.model.roi_head
        heads, extractors = roi_head.mask_head, roi_head.mask_roi_extractor
        if not isinstance(heads, nn.ModuleList):
            heads, extractors = [heads], [extractors]
        label = found.labels.clamp(min=0).flatten()[:, None, None, None]
        masks = 0
        for head, extractor in zip(heads, extractors):
            logits = head(roi_features(extractor, maps, found.boxes))  # (N K, C, 28, 28)
            if not head.class_agnostic:
                logits = logits.gather(1, label.expand(-1, -1, *logits.shape[2:]))
            masks = masks + logits.sigmoid() / len(heads)
        masks = masks[:, 0].unflatten(0, found.labels.shape)
        return masks * (found.labels >= 0)[..., None, None]


def by_anchor(maps: Tensor, numbers: int) -> Tensor:
    """(N, A numbers, H, W) -> (N, H W A, numbers), in the order of mmdet's anchors."""
    return maps.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, numbers))


def grid_anchors(generator: object, level: int, maps: Tensor) -> Tensor:
    """The anchors (H W A, 4) of a level on the grid of maps (N, C, H, W), rows first."""
    across, down = generator.strides[level]
    x = torch.arange(maps.shape[3], device=maps.device) * float(across)
    y = torch.arange(maps.shape[2], device=maps.device) * float(down)
    x, y = x[None, :].expand(maps.shape[2:]), y[:, None].expand(maps.shape[2:])
    shifts = torch.stack([x, y, x, y], dim=-1)[:, :, None]  # (H, W, 1, 4)
    return (generator.base_anchors[level].to(maps) + shifts).flatten(0, 2)


def decode(coder: object, boxes: Tensor, deltas: Tensor, size: Tensor) -> Tensor:
    """Boxes (..., 4) moved by what a head says, and cut at the border of the image.

    Args:
        coder (DeltaXYWHBBoxCoder): Whose means and deviations the deltas are of.
        boxes (Tensor): (..., 4), x1, y1, x2, y2.
        deltas (Tensor): (..., 4), as in R-CNN (arXiv 1311.2524, appendix C).
        size (Tensor): (2, ), height and width of the image.
    """
    deltas = deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)
    centre, sides = (boxes[..., :2] + boxes[..., 2:]) * .5, boxes[..., 2:] - boxes[..., :2]
    most = float(abs(np.log(16 / 1000)))
    centre = centre + sides * deltas[..., :2]
    sides = sides * deltas[..., 2:].clamp(-most, most).exp()
    out = torch.cat([centre - sides * .5, centre + sides * .5], dim=-1)
    return torch.minimum(out.clamp(min=0), size.flip(0).repeat(2).to(out.dtype))


def large(boxes: Tensor, cfg: dict) -> Tensor:
    """Which boxes (..., 4) are wider and higher than `min_bbox_size`: mmdet drops the others."""
    return (boxes[..., 2:] - boxes[..., :2]).amin(-1) > cfg.get('min_bbox_size', -1)


def top(scores: Tensor, k: int) -> Tuple[Tensor, Tensor]:
    """The k largest of scores (N, M), descending, and where they are; fewer where M is known to be smaller.

    Of unknown M, which may be less than k, places that are missing have a score of -10,000.
    """
    count = scores.shape[1]
    if isinstance(count, int):
        return scores.topk(min(k, count), dim=1)
    scores, places = F.pad(scores, (0, k), value=-1e4).topk(k, dim=1)
    return scores, places.clamp(max=count - 1)


def take(x: Tensor, places: Tensor) -> Tensor:
    """Of x (N, M, C), the rows at places (N, K): (N, K, C)."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))


def suppressed(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float, most: int) -> Tensor:
    """Scores (N, M), 0 for boxes that a better one of their group overlaps.

    Args:
        boxes (Tensor): (N, M, 4), none negative.
        scores (Tensor): (N, M); 0 or less where there is no box.
        groups (Tensor): (N, M), int64, such as classes.
        iou (float): From which overlap on.
        most (int): How many are kept at most.
    """
    # As mmcv does it, rounding included: groups are moved apart, by the largest coordinate of all boxes.
    largest = (boxes * (scores > 0)[..., None]).flatten(1).amax(1)
    apart = boxes + (groups.to(boxes.dtype) * (largest[:, None] + 1))[..., None]
    kept = torch.ops.cmt_backbones.suppress(apart, scores, iou, most)
    return torch.where(kept, scores, torch.zeros_like(scores))


def roi_features(extractor: nn.Module, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """What mmdet's SingleRoIExtractor finds in boxes (N, R, 4): (N R, C, rows, columns)."""
    layers: List[nn.Module] = list(extractor.roi_layers)
    image = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)
    rois = torch.cat([image[:, None, None].expand(-1, boxes.shape[1], 1), boxes], dim=2).flatten(0, 1)
    sides = rois[:, 3:] - rois[:, 1:3]
    scale = (sides[:, 0] * sides[:, 1]).sqrt() / extractor.finest_scale + 1e-6
    borders = scale.new_tensor([2.**i for i in range(1, len(layers))])
    level = (scale[:, None] >= borders).sum(1)  # the logarithm to base 2 within the levels
    return torch.ops.cmt_backbones.roi_align(
        list(maps[:len(layers)]), rois, level, [layer.spatial_scale for layer in layers],
        list(layers[0].output_size), layers[0].sampling_ratio)


def detector(model: nn.Module, max_det: Optional[int] = None, nms: bool = True) -> Detector:
    """A detector of mmdet in eval mode as a module that can be exported.

    Args:
        model (nn.Module): As from ``cmt_backbones.openmmlab.inference.build_model``.
        max_det (int, optional): How many boxes there are at most; what the config says otherwise, and
            without NMS 1000.
        nms (bool): Whether to suppress what overlaps.

    Raises:
        ExportError: It has a part that nothing here can write.
    """
    check(model)
    kind = RetinaNet if type(model).__name__ == 'RetinaNet' else TwoStage
    cfg = head_of(model).test_cfg
    if max_det and nms:
        cfg.max_per_img = max_det  # the model is compared with the file, and returns as many
    return kind(model, max_det or (cfg.max_per_img if nms else 1000), nms).eval()


def head_of(model: nn.Module) -> nn.Module:
    """The head whose `test_cfg` says which boxes are returned."""
    return model.roi_head if getattr(model, 'roi_head', None) is not None else model.bbox_head


def check(model: nn.Module) -> None:
    """Raises ExportError for the first part of a detector that would be written wrongly."""
    parts = [('detector', model, ('RetinaNet', 'FasterRCNN', 'MaskRCNN', 'CascadeRCNN'))]
    if type(model).__name__ == 'RetinaNet':
        parts += [('bbox_head', model.bbox_head, ('RetinaHead', ))]
        generated, tests = [model.bbox_head], [model.bbox_head.test_cfg]
    elif hasattr(model, 'roi_head') and hasattr(model, 'rpn_head'):
        roi_head = model.roi_head
        boxes = as_list(roi_head.bbox_head)
        parts += [('rpn_head', model.rpn_head, ('RPNHead', )),
                  ('roi_head', roi_head, ('StandardRoIHead', 'CascadeRoIHead'))]
        parts += [('bbox_head', head, ('Shared2FCBBoxHead', 'Shared4Conv1FCBBoxHead', 'ConvFCBBoxHead',
                                       'BBoxHead')) for head in boxes]
        extractors = as_list(roi_head.bbox_roi_extractor)
        if roi_head.with_mask:
            parts += [('mask_head', head, ('FCNMaskHead', )) for head in as_list(roi_head.mask_head)]
            extractors += as_list(roi_head.mask_roi_extractor)
        parts += [('roi_extractor', extractor, ('SingleRoIExtractor', )) for extractor in extractors]
        parts += [('roi_layer', extractor.roi_layers[0], ('RoIAlign', )) for extractor in extractors
                  if hasattr(extractor, 'roi_layers')]
        generated, tests = [model.rpn_head, *boxes], [model.rpn_head.test_cfg, roi_head.test_cfg]
    else:
        generated, tests = [], []
    for name, part, known in parts:
        if type(part).__name__ not in known:
            raise ExportError(f'the {name} is a {type(part).__name__}, which is not supported: {SUPPORTED} are, '
                              f'with {" or ".join(known)} here; --backbone-only exports the backbone')
    for head in generated:
        if type(head.bbox_coder).__name__ != 'DeltaXYWHBBoxCoder':
            raise ExportError(f'the bbox_coder is a {type(head.bbox_coder).__name__}, which is not supported: '
                              'DeltaXYWHBBoxCoder is; --backbone-only exports the backbone')
    for cfg in tests:
        if cfg.nms.get('type', 'nms') != 'nms':
            raise ExportError(f'the config suppresses by {cfg.nms.type!r}, which ONNX has no operator for: '
                              "dict(type='nms', iou_threshold=...) is supported")


def as_list(part: nn.Module) -> List[nn.Module]:
    return list(part) if isinstance(part, nn.ModuleList) else [part]
