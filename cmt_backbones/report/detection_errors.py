"""What a detector does wrong, and what each kind of error costs.

The kinds, and the way to their cost, are those of TIDE (Bolya et al., A General Toolbox for Identifying Object
Detection Errors, ECCV 2020, section 2): of each kind alone, an oracle mends all errors, and AP at an IoU of 0.5 rises
by what they cost. Costs do not add up to what is missing from an AP of 1.
"""
from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np
from pycocotools import mask as coco_mask

from .detection import Matches

FOREGROUND, BACKGROUND = 0.5, 0.1  # the IoUs from which a box is in its place, and near to it
RECALLS = np.linspace(0, 1, 101)  # COCO's
# Of a wrong detection, in the order in which they are tried: what takes the least to mend comes first.
KINDS = ('duplicate', 'class', 'place', 'both', 'background')
MISSED = 'missed'
WORDS = {**{kind: kind for kind in KINDS}, MISSED: MISSED, 'class': 'wrong class', 'place': 'wrong place',
         'both': 'wrong class and place'}
MEANING = {
    'class': 'in the place of an object of another class',
    'place': 'of the right class, but off its object: an IoU from 0.1 to 0.5',
    'both': 'of another class and off the object',
    'duplicate': 'of an object that a surer detection found already',
    'background': 'where there is no object: an IoU of less than 0.1',
    MISSED: 'objects that no detection found, wrong class and place aside',
}


class Errors(NamedTuple):
    """Of each detection its kind (D,), an index into KINDS or -1 for a right one, and the object it was about,
    or -1 (D,); of each object whether it is missed (G,)."""
    kind: np.ndarray
    about: np.ndarray
    missed: np.ndarray


def ious(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU (n, m) of boxes (n, 4) and others (m, 4) as x, y, width, height; (n, m) also if one is 0."""
    if not len(boxes) or not len(others):
        return np.zeros((len(boxes), len(others)))
    return np.asarray(coco_mask.iou(boxes, others, [0] * len(others)))


def classify(matches: Matches) -> Errors:
    """Gives each wrong detection its kind."""
    kind, about = np.full(len(matches.score), -1), np.full(len(matches.score), -1)
    for image in np.unique(matches.image):
        here, = np.nonzero((matches.image == image) & ~matches.right)
        there, = np.nonzero(matches.object_image == image)
        overlap = ious(matches.box[here], matches.object_box[there])
        for at, row in zip(here, overlap):
            kind[at], object_ = kind_of(row, matches.object_label[there] == matches.label[at])
            about[at] = -1 if object_ is None else there[object_]
    missed = np.ones(len(matches.object_label), bool)
    missed[matches.found[matches.right]] = False
    missed[about[np.isin(kind, [KINDS.index('class'), KINDS.index('place')])]] = False
    return Errors(kind, about, missed)


def kind_of(overlap: np.ndarray, same: np.ndarray) -> Tuple[int, Optional[int]]:
    """The kind of a wrong detection, and which object it is about.

    Args:
        overlap (m,): Its IoU with each object of the image.
        same (m,): Whether that object is of its class.
    """
    for name, of_class, least in [('duplicate', True, FOREGROUND), ('class', False, FOREGROUND),
                                  ('place', True, BACKGROUND), ('both', False, BACKGROUND)]:
        near = np.where(same == of_class, overlap, -1)
        if near.size and near.max() >= least:
            return KINDS.index(name), int(near.argmax())
    return KINDS.index('background'), None


def average_precision(score: np.ndarray, right: np.ndarray, objects: int) -> float:
    """COCO's: the mean over 101 recalls of the best precision that is reached there or beyond."""
    order = np.argsort(-score, kind='mergesort')
    hits = np.cumsum(right[order])
    precision = hits / (np.arange(len(hits)) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(hits / objects, RECALLS, side='left')
    return float(np.append(best, 0)[at].mean())


def mean_ap(label: np.ndarray, score: np.ndarray, right: np.ndarray, objects: np.ndarray) -> float:
    """The mean over the classes that have objects, of which there are `objects` (K,); 1 if none has any."""
    found = [average_precision(score[label == k], right[label == k], objects[k]) for k in np.nonzero(objects)[0]]
    return float(np.mean(found)) if found else 1.


def costs(matches: Matches, errors: Errors) -> Dict[str, float]:
    """AP at an IoU of 0.5 that mending each kind alone would add; `false positives` and `false negatives` together."""
    classes = int(max(matches.label.max(initial=-1), matches.object_label.max(initial=-1))) + 1
    objects = np.bincount(matches.object_label, minlength=classes)
    now = mean_ap(matches.label, matches.score, matches.right, objects)
    found = {}
    for number, name in enumerate(KINDS):
        label, right = matches.label.copy(), matches.right.copy()
        of_kind = errors.kind == number
        if name in ('class', 'place'):
            for at in surest(of_kind, matches, errors):
                label[at], right[at], of_kind[at] = matches.object_label[errors.about[at]], True, False
        found[name] = mean_ap(label[~of_kind], matches.score[~of_kind], right[~of_kind], objects) - now
    left = objects - np.bincount(matches.object_label[errors.missed], minlength=classes)
    found[MISSED] = mean_ap(matches.label, matches.score, matches.right, left) - now
    right = matches.right
    found['false positives'] = mean_ap(matches.label[right], matches.score[right], right[right], objects) - now
    hit = np.bincount(matches.label[right], minlength=classes)
    found['false negatives'] = mean_ap(matches.label, matches.score, right, hit) - now
    return found


def surest(of_kind: np.ndarray, matches: Matches, errors: Errors) -> List[int]:
    """Of the errors (D,) about each object that no right detection found, the one of the highest score.

    The others about the object would be duplicates once it is mended.
    """
    taken, chosen = set(matches.found[matches.right].tolist()), []
    for at in np.argsort(-matches.score, kind='mergesort'):
        if of_kind[at] and errors.about[at] not in taken:
            taken.add(errors.about[at])
            chosen.append(int(at))
    return chosen


def counts(matches: Matches, errors: Errors, threshold: float = 0.) -> Dict[str, int]:
    """How many errors there are of each kind if only detections from a score on are looked at."""
    sure = matches.score >= threshold
    found = {name: int((errors.kind[sure] == number).sum()) for number, name in enumerate(KINDS)}
    near = errors.about[sure & np.isin(errors.kind, [KINDS.index('class'), KINDS.index('place')])]
    seen = np.union1d(matches.found[sure & matches.right], near)
    return {**found, MISSED: len(matches.object_label) - len(seen)}


def best_threshold(matches: Matches) -> Tuple[float, float]:
    """The score from which F1 over all classes is highest at an IoU of 0.5, and that F1."""
    if not matches.right.any():
        return 0.5, 0.
    order = np.argsort(-matches.score, kind='mergesort')
    score = matches.score[order]
    f1 = 2 * np.cumsum(matches.right[order]) / (np.arange(len(order)) + 1 + len(matches.object_label))
    f1[:-1][score[:-1] == score[1:]] = 0  # a threshold takes all of a score, or none
    return float(score[f1.argmax()]), float(f1.max())


def pair(matches: Matches, threshold: float) -> Tuple[np.ndarray, np.ndarray]:
    """Pairs sure detections with objects, one with one, at an IoU of 0.5.

    Right detections have their objects. Of what is left, detections and objects of different classes are paired, the
    best overlap first.

    Returns:
        tuple: The objects (D,) of the detections, -1 without; and whether a detection is sure (D,).
    """
    sure = matches.score >= threshold
    paired = np.where(sure, matches.found, -1)
    for image in np.unique(matches.image[sure]):
        here, = np.nonzero((matches.image == image) & sure & (paired < 0))
        there = np.setdiff1d(np.nonzero(matches.object_image == image)[0], paired)
        overlap = ious(matches.box[here], matches.object_box[there])
        while overlap.size and overlap.max() >= FOREGROUND:
            row, column = np.unravel_index(overlap.argmax(), overlap.shape)
            paired[here[row]] = there[column]
            overlap[row], overlap[:, column] = -1, -1
    return paired, sure


def confusion(matches: Matches, classes: int, threshold: float) -> np.ndarray:
    """Pairs of :func:`pair`, (K + 1, K + 1), int: rows are true classes, columns detected ones.

    The last row is the background, on which unpaired detections lie; the last column are the missed objects. A row
    but the last sums to the objects of its class.
    """
    paired, sure = pair(matches, threshold)
    matrix = np.zeros((classes + 1, classes + 1), int)
    truth = np.where(paired >= 0, np.append(matches.object_label, classes)[paired], classes)
    np.add.at(matrix, (truth[sure], matches.label[sure]), 1)
    missed = np.setdiff1d(np.arange(len(matches.object_label)), paired[sure])
    np.add.at(matrix, (matches.object_label[missed], classes), 1)
    return matrix
