"""How well a segmentor labels pixels: IoU by class, of whole regions and of their boundaries, and its confusions."""
from typing import Any, Dict, Iterable, List, NamedTuple, Tuple

import cv2
import numpy as np

from ..visualization.segmentation import OPEN, truth
from .errors import ReportError, reason

WIDTH = 0.02  # of a boundary, as a share of the image's diagonal


class Shown(NamedTuple):
    """An image and how well it was labelled: `iou` is its mean over the classes that are there or were seen."""
    iou: float
    right: float
    path: str
    real: np.ndarray
    found: np.ndarray


class Evaluation(NamedTuple):
    """Of all pixels that count: `confusion` (K, K), rows true; `boundary` (3, K), pixels of boundaries that agree,
    true ones, predicted ones. `worst` and `best` images, each the most telling first."""
    confusion: np.ndarray
    boundary: np.ndarray
    images: int
    worst: List[Shown]
    best: List[Shown]

    @property
    def iou(self) -> np.ndarray:
        """By class (K,), from 0 to 1; NaN where a class is neither there nor seen."""
        return iou_of(self.confusion)

    @property
    def accuracy(self) -> np.ndarray:
        """By class (K,): the share of its pixels that are right; NaN without any."""
        return divided(np.diag(self.confusion), self.confusion.sum(1))

    @property
    def boundary_iou(self) -> np.ndarray:
        """By class (K,): IoU of what lies within some pixels of a boundary."""
        agree, real, found = self.boundary
        return divided(agree, real + found - agree)

    @property
    def pixel_accuracy(self) -> float:
        return float(np.trace(self.confusion) / max(1, self.confusion.sum()))


def divided(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The quotient of arrays; NaN where the divisor is 0."""
    return np.divide(one, other, out=np.full(len(one), np.nan), where=other > 0)


def iou_of(confusion: np.ndarray) -> np.ndarray:
    agree = np.diag(confusion)
    return divided(agree, confusion.sum(0) + confusion.sum(1) - agree)


def count_pixels(real: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """The confusion (K, K) of labels (H, W), rows true, where the truth is not `OPEN`."""
    counts = real != OPEN
    pairs = real[counts].astype(np.int64) * classes + found[counts]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def near_boundary(labels: np.ndarray, left_open: np.ndarray, width: int) -> np.ndarray:
    """Pixels (H, W), bool, of which another label or the image's border is no farther than `width` pixels.

    These are the inner boundaries of Boundary IoU (Cheng et al., CVPR 2021, section 4), of all classes at once: a
    mask is eroded by a square where its smallest and its largest label differ.

    Args:
        labels: (H, W), uint8, less than 254.
        left_open: (H, W), bool: pixels that do not count, and bound nothing.
        width: In pixels.
    """
    square = np.ones((2 * width + 1, ) * 2, np.uint8)
    smallest = cv2.erode(np.where(left_open, np.uint8(255), labels + np.uint8(1)), square,
                         borderType=cv2.BORDER_CONSTANT, borderValue=0)
    largest = cv2.dilate(np.where(left_open, np.uint8(0), labels + np.uint8(1)), square)
    return (smallest != largest) & ~left_open


def count_boundaries(real: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """Pixels (3, K) near boundaries: those that agree, of the truth, of the prediction."""
    left_open = real == OPEN
    width = max(1, round(WIDTH * float(np.hypot(*real.shape))))
    of_truth, of_found = near_boundary(real, left_open, width), near_boundary(found, left_open, width)
    agree = of_truth & of_found & (real == found)
    return np.stack([np.bincount(labels, minlength=classes) for labels in
                     (real[agree], real[of_truth], found[of_found])])


def evaluate(pairs: Iterable[Tuple[dict, Any]], classes: int, images: int) -> Tuple[Evaluation, Dict[str, str]]:
    """Counts what :func:`.predictions.segmentor_predictions` yields.

    Args:
        pairs: What the data set knows of an image, and its labels or why there are none.
        classes: How many.
        images: How many of the best and of the worst are kept.

    Returns:
        tuple: The evaluation, and by the path of each image that cannot be read, why.

    Raises:
        ReportError: Predictions are of other images or classes, or there is none.
    """
    confusion, boundary = np.zeros((classes, classes), np.int64), np.zeros((3, classes), np.int64)
    worst: List[Shown] = []
    best: List[Shown] = []
    broken: Dict[str, str] = {}
    count = 0
    for info, found in pairs:
        path = info['img_path']
        try:
            real = truth(info)
        except Exception as error:  # decoders have no common class of errors
            broken[info['seg_map_path']] = reason(error)
            continue
        if isinstance(found, str):
            broken[path] = found
            continue
        check(real, found, path, classes)
        here = count_pixels(real, found, classes)
        confusion += here
        boundary += count_boundaries(real, found, classes)
        count += 1
        if here.any():
            shown = Shown(float(np.nanmean(iou_of(here))), float(np.trace(here) / here.sum()), path, real, found)
            worst = sorted([*worst, shown], key=lambda one: one.iou)[:images]
            best = sorted([*best, shown], key=lambda one: -one.iou)[:images]
    if not count:
        path, why = next(iter(broken.items()))
        raise ReportError(f'none of the {len(broken)} images can be read: {path} ({why}). --curves-only leaves the '
                          'evaluation out')
    return Evaluation(confusion, boundary, count, worst, best), broken


def check(real: np.ndarray, found: np.ndarray, path: str, classes: int) -> None:
    if found.shape != real.shape:
        raise ReportError(f'{path}: its prediction is {found.shape[1]}x{found.shape[0]} and its truth '
                          f'{real.shape[1]}x{real.shape[0]} pixels: it belongs to other data')
    for labels, whose in ((real[real != OPEN], 'truth'), (found, 'prediction')):
        if labels.max(initial=0) >= classes:
            raise ReportError(f'{path}: its {whose} has the label {labels.max()}, and the config {classes} classes')
