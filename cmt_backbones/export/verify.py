"""Compares what a file finds with what the model itself predicts, before anyone relies on the file."""
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from .detectors import head_of
from .predictor import ExportError, paste, suppress

BOX, SCORE = 1e-3, 1e-4  # pixels, and probability
# Heads say boxes as parts of an anchor's sides, in float32 to about 1e-6: large boxes are off by more pixels.
BOX_PART = 1e-5
MASK = 2  # of 255: mmdet's soft masks are bytes
LOGIT = 1e-4  # of the largest
ENOUGH = 5  # boxes: fewer say little, and the threshold is lowered
Run = Callable[[np.ndarray], Sequence[np.ndarray]]


class Objects(NamedTuple):
    """What is found in one image, the surest first."""
    boxes: np.ndarray  # (n, 4)
    scores: np.ndarray  # (n, )
    labels: np.ndarray  # (n, )
    masks: Optional[List[np.ndarray]] = None  # each (H, W), 0 to 255


def batch_of(model: nn.Module, images: Sequence[np.ndarray]) -> dict:
    """Images (H, W, 3), uint8, BGR, of one size as a model's `data_preprocessor` gives them to it."""
    if model.cfg.default_scope == 'mmdet':
        from mmdet.structures import DetDataSample as Sample
    else:
        from mmseg.structures import SegDataSample as Sample
    shape = images[0].shape[:2]
    meta = dict(img_shape=shape, ori_shape=shape, scale_factor=(1., 1.), pad_shape=shape)
    data = dict(inputs=[torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))) for image in images],
                data_samples=[Sample(metainfo=dict(meta)) for _ in images])
    return model.data_preprocessor(data, False)


def predicted(model: nn.Module, images: Sequence[np.ndarray]) -> List[Objects]:
    """What a detector itself finds in images (H, W, 3), uint8, BGR, of one size; masks from 0 to 255."""
    roi_head = getattr(model, 'roi_head', None)
    soft = roi_head is not None and roi_head.with_mask
    if soft:
        cut, roi_head.test_cfg.mask_thr_binary = roi_head.test_cfg.mask_thr_binary, -1
    try:
        with torch.no_grad():
            batch = batch_of(model, images)
            samples = model.predict(batch['inputs'], batch['data_samples'], rescale=False)
    finally:
        if soft:
            roi_head.test_cfg.mask_thr_binary = cut
    out = []
    for sample in samples:
        found = sample.pred_instances
        masks = list(found.masks.numpy()) if soft else None
        out.append(Objects(found.bboxes.numpy(), found.scores.numpy(), found.labels.numpy(), masks))
    return out


def found_by(outputs: Sequence[np.ndarray], size: Tuple[int, int], nms: Optional[Tuple[float, int]]) -> List[Objects]:
    """The outputs of a file as objects; without NMS in the file, after it (its threshold, and how many)."""
    out = []
    for image, (boxes, scores, labels) in enumerate(zip(*outputs[:3])):
        chosen = np.flatnonzero(labels >= 0)
        if nms:
            chosen = chosen[suppress(boxes[chosen], labels[chosen], nms[0])[:nms[1]]]
        masks = None
        if len(outputs) > 3:
            masks = []
            for box, mask in zip(boxes[chosen], outputs[3][image, chosen]):
                rows, columns, part = paste(mask, box, size)
                masks.append(np.zeros(size, np.uint8))
                masks[-1][rows, columns] = (part * 255).astype(np.uint8)
        out.append(Objects(boxes[chosen], scores[chosen], labels[chosen], masks))
    return out


def compared(found: Objects, wanted: Objects, threshold: float, full: int, size: Tuple[float, float] = (np.inf, np.inf),
             anchor: float = 0.) -> Tuple[Optional[str], int]:
    """What differs first between what a file and what a model finds in an image, or None; and how many are the same.

    Args:
        threshold (float): Of scores.
        full (int): How many places there are.
        size (tuple[float, float]): Height and width of the image.
        anchor (float): The longest side of an anchor of the model.

    Objects whose score is within the tolerance of the threshold, or of the last one where all `full` places are
    taken, may be in either alone: rounding decides.
    """
    edge = max([threshold] + [float(objects.scores[-1]) for objects in (found, wanted)
                              if len(objects.scores) >= full]) + SCORE
    free = np.ones(len(found.scores), bool)
    for i in range(len(wanted.scores)):
        near = np.flatnonzero(free & (found.labels == wanted.labels[i])
                              & (np.abs(found.scores - wanted.scores[i]) <= SCORE))
        apart = np.abs(found.boxes[near] - wanted.boxes[i]).max(1) if len(near) else np.array([np.inf])
        if apart.min() > allowed(wanted.boxes[i], size, anchor):
            if wanted.scores[i] > edge:
                return (f'the model finds label {wanted.labels[i]} with a score of {wanted.scores[i]:.5f} at '
                        f'{wanted.boxes[i].round(3).tolist()}, the file ' + nearest(found, wanted, i)), 0
            continue
        match = near[apart.argmin()]
        free[match] = False
        if wanted.masks is not None:
            error = np.abs(found.masks[match].astype(int) - wanted.masks[i]).max()
            if error > MASK:
                return (f'the masks of label {wanted.labels[i]} at {wanted.boxes[i].round(1).tolist()} differ by '
                        f'{error / 255:.3f}'), 0
    for i in np.flatnonzero(free & (found.scores > edge)):
        return (f'the file finds label {found.labels[i]} with a score of {found.scores[i]:.5f} at '
                f'{found.boxes[i].round(3).tolist()}, which the model does not'), 0
    return None, int((~free).sum())


def allowed(box: np.ndarray, size: Tuple[float, float], anchor: float) -> float:
    """How far a side of a box (4, ) may be off, in pixels; see :func:`compared`."""
    side = float((box[2:] - box[:2]).max())
    if (box[:2] <= 0).any() or (box[2:] >= size[::-1]).any():  # cut at the border: of how large a box is not known
        side = max(side, anchor)
    return max(BOX, BOX_PART * side)


def longest_anchor(model: nn.Module) -> float:
    head = model.rpn_head if getattr(model, 'rpn_head', None) is not None else model.bbox_head
    return max(float((anchors[:, 2:] - anchors[:, :2]).max()) for anchors in head.prior_generator.base_anchors)


def nearest(found: Objects, wanted: Objects, i: int) -> str:
    """What a file has that is most like object i of a model."""
    if not len(found.scores):
        return 'nothing at all'
    j = np.abs(found.boxes - wanted.boxes[i]).max(1).argmin()
    return (f'at the nearest place label {found.labels[j]} with {found.scores[j]:.5f} at '
            f'{found.boxes[j].round(3).tolist()}')


def lower_threshold(model: nn.Module, batches: Sequence[Sequence[np.ndarray]]) -> float:
    """A threshold of scores above which a detector that finds too few by its own finds some."""
    cfg = head_of(model).test_cfg
    own, cfg.score_thr = cfg.score_thr, 0.
    try:
        scores = [objects.scores for batch in batches for objects in predicted(model, batch)]
    finally:
        cfg.score_thr = own
    scores = np.sort(np.concatenate(scores))[::-1][:41]
    if len(scores) < 2:
        return 0.
    # Where the gap is widest, so that rounding takes nothing over it.
    cut = ENOUGH + int((scores[ENOUGH:-1] - scores[ENOUGH + 1:]).argmax()) if len(scores) > ENOUGH + 1 else -2
    return float((scores[cut] + scores[cut + 1]) / 2)


def check_detector(start: Callable[[float], Run], model: nn.Module, images: Sequence[np.ndarray],
                   to_input: Callable[[Sequence[np.ndarray]], np.ndarray], together: bool, nms: bool) -> str:
    """Compares the file with the model on images (H, W, 3), uint8, BGR, of one size.

    Args:
        start: Gives what runs the file at a threshold of scores.
        to_input: From images to the input of the file.
        together: Whether the file takes all images at once.
        nms: Whether NMS is in the file.

    Returns:
        str: What was compared.

    Raises:
        ExportError: The first difference.
    """
    cfg = head_of(model).test_cfg
    size, own, anchor = images[0].shape[:2], cfg.score_thr, longest_anchor(model)
    batches = [images] if together else [[image] for image in images]
    wanted, threshold = [predicted(model, batch) for batch in batches], own
    if sum(len(objects.scores) for batch in wanted for objects in batch) < ENOUGH:
        threshold = lower_threshold(model, batches)
        cfg.score_thr = threshold
        try:
            wanted = [predicted(model, batch) for batch in batches]
        finally:
            cfg.score_thr = own
    run = start(threshold)
    outside = None if nms else (cfg.nms.iou_threshold, cfg.max_per_img)
    same = 0
    for batch, theirs in zip(batches, wanted):
        found = found_by(run(to_input(batch)), size, outside)
        for one, other in zip(found, theirs):
            difference, count = compared(one, other, threshold, cfg.max_per_img, size, anchor)
            if difference:
                raise ExportError(f'the file differs from the model at {size[0]}x{size[1]}: {difference}')
            same += count
    if not same:
        raise ExportError('the file and the model have no box in common, as where all scores are the same, and nothing '
                          'is compared: give --images with photos of what it knows')
    lowered = '' if threshold == own else f', at a threshold of {threshold:.2g} since at {own:g} there are few'
    return f'{same} boxes{" and masks" if found[0].masks is not None else ""} are those of the model{lowered}'


@torch.no_grad()
def check_segmentor(run: Run, model: nn.Module, images: Sequence[np.ndarray],
                    to_input: Callable[[Sequence[np.ndarray]], np.ndarray], together: bool, logits: bool) -> str:
    """The same for a segmentor: logits to 1e-4 of the largest, classes wherever two are not that close."""
    worst = 0.
    for batch in [images] if together else [[image] for image in images]:
        data = batch_of(model, batch)
        metas = [sample.metainfo for sample in data['data_samples']]
        wanted = model.encode_decode(data['inputs'], metas).numpy()
        found, = run(to_input(batch))
        if logits:
            error = np.abs(found - wanted)
        elif wanted.shape[1] == 1:
            error = np.where(found == (wanted[:, 0] > 0), 0, np.abs(wanted[:, 0]))
        else:
            error = wanted.max(1) - np.take_along_axis(wanted, found[:, None], 1)[:, 0]
        worst = max(worst, float(error.max() / np.abs(wanted).max()))
    if not worst <= LOGIT:
        raise ExportError(f'the file differs from the model at {images[0].shape[0]}x{images[0].shape[1]}: by '
                          f'{worst:.1e} of the largest logit, where {LOGIT:g} is allowed')
    return f'{"logits" if logits else "classes"} are those of the model, to {worst:.1e} of the largest logit'


@torch.no_grad()
def difference(run: Callable[[Tensor], Sequence[Tensor]], model: nn.Module, shape: Tuple[int, int]) -> float:
    """The largest difference of the outputs of a backbone for a random image, over the largest output."""
    image = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(0))
    worst = 0.
    for found, wanted in zip(run(image), model(image)):
        if found.shape != wanted.shape:
            return float('inf')
        worst = max(worst, ((found - wanted).abs().max() / wanted.abs().max()).item())
    return worst
