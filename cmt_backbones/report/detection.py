"""How well a detector finds objects: COCO's average precision, by class, size and IoU, and its matches.

All of it comes from pycocotools' own evaluation, with its own limits: 100 detections an image and class, crowds
that neither count as objects nor make a detection on them wrong.
"""
import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .predictions import Data

SIZES = ('all', 'small', 'medium', 'large')
ALL_DETECTIONS = 2  # the place of 100 in COCOeval's maxDets
IOU_50, IOU_75 = 0, 5  # places in its IoU thresholds


class Matches(NamedTuple):
    """Detections and objects of all images at an IoU of 0.5, one column a field; the order is pycocotools'.

    Attributes:
        image (D,): Place among the images.
        label (D,), score (D,), box (D, 4): Of a detection; boxes as x, y, width, height in pixels.
        right (D,): Whether it found an object of its class, before any other of a higher score.
        found (D,): The place of that object, or -1.
        number (D,): Its place among the predictions of all images, one after the other.
        objects: The same of the true objects: `object_image` (G,), `object_label` (G,), `object_box` (G, 4), and
            `object_number` (G,), their places among the annotations.
    """
    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    box: np.ndarray
    right: np.ndarray
    found: np.ndarray
    number: np.ndarray
    object_image: np.ndarray
    object_label: np.ndarray
    object_box: np.ndarray
    object_number: np.ndarray


class Evaluation(NamedTuple):
    """What COCOeval found. `precision` (10 IoUs, 101 recalls, K classes, 4 sizes), -1 where a class has no objects;
    `scores`, the same shape, the score at which that recall is reached."""
    precision: np.ndarray
    scores: np.ndarray
    ious: List[float]
    matches: Matches

    def average(self, iou: Any = slice(None), label: Any = slice(None), size: int = 0) -> float:
        """Average precision, as COCOeval.summarize has it; NaN without objects."""
        chosen = self.precision[iou][..., label, size]
        chosen = chosen[chosen > -1]
        return float(chosen.mean()) if chosen.size else float('nan')


def truth(data: Data, places: Sequence[int]) -> COCO:
    """The true objects of images of a data set, classes and images numbered from 1, these in the order of `places`.

    An annotation file of COCO's form is taken as it is, with its areas and crowds; of other data sets the boxes.
    """
    file = getattr(data.dataset, 'ann_file', '')
    infos = [data.dataset.get_data_info(place) for place in places]
    annotations: List[dict] = []
    if hasattr(data.dataset, 'cat_ids') and str(file).endswith('.json'):
        label = {category: i for i, category in enumerate(data.dataset.cat_ids)}
        number = {info['img_id']: i for i, info in enumerate(infos, 1)}
        for one in json.loads(Path(file).read_text(encoding='utf-8'))['annotations']:
            if one['image_id'] in number and one['category_id'] in label:
                annotations.append(dict(one, image_id=number[one['image_id']],
                                        category_id=label[one['category_id']] + 1))
    else:
        for i, info in enumerate(infos, 1):
            for one in info['instances']:
                x1, y1, x2, y2 = one['bbox']
                annotations.append(dict(
                    bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1), image_id=i,
                    category_id=one['bbox_label'] + 1, iscrowd=int(bool(one.get('ignore_flag')))))
    for i, one in enumerate(annotations, 1):  # pycocotools takes an object 0 for none
        one['id'] = i
    return index(dict(
        images=[dict(id=i, width=info['width'], height=info['height']) for i, info in enumerate(infos, 1)],
        categories=[dict(id=i, name=name) for i, name in enumerate(data.classes, 1)], annotations=annotations))


def index(content: dict) -> COCO:
    """pycocotools' index of what else it reads from a file."""
    coco = COCO()
    coco.dataset = dict(content, info={})
    with redirect_stdout(StringIO()):
        coco.createIndex()
    return coco


def results(predictions: Sequence[dict], masks: bool) -> List[dict]:
    """Predictions of images in order, in the form of COCO's results."""
    found = []
    for number, one in enumerate(predictions, 1):
        for i in range(len(one['scores'])):
            x1, y1, x2, y2 = one['bboxes'][i].tolist()
            what = dict(segmentation=one['masks'][i]) if masks else dict(bbox=[x1, y1, x2 - x1, y2 - y1])
            found.append(dict(what, image_id=number, category_id=int(one['labels'][i]) + 1,
                              score=float(one['scores'][i])))
    return found


def evaluate(real: COCO, predictions: Sequence[dict], kind: str = 'bbox') -> Evaluation:
    """COCO's evaluation of what a detector found.

    Args:
        real: Of :func:`truth`.
        predictions: Of the same images in order, each as of :func:`.predictions.detector_predictions`.
        kind: 'bbox' or, of masks, 'segm'.
    """
    found = results(predictions, kind == 'segm')
    with redirect_stdout(StringIO()):
        dt = real.loadRes(found) if found else index({**real.dataset, 'annotations': []})
        coco = COCOeval(real, dt, kind)
        coco.evaluate()
        coco.accumulate()
    return Evaluation(coco.eval['precision'][..., ALL_DETECTIONS], coco.eval['scores'][..., ALL_DETECTIONS],
                      coco.params.iouThrs.tolist(), read_matches(coco))


def read_matches(coco: COCOeval) -> Matches:
    """The matches of an evaluation, without crowds and what was found on them."""
    images, classes, sizes = coco.params.imgIds, coco.params.catIds, len(coco.params.areaRng)
    detections: List[tuple] = []
    objects: Dict[int, tuple] = {}
    for k, category in enumerate(classes):
        for i in range(len(images)):
            entry = coco.evalImgs[k * sizes * len(images) + i]
            if entry is None:
                continue
            ignored = {number for number, ignore in zip(entry['gtIds'], entry['gtIgnore']) if ignore}
            for number in entry['gtIds']:
                if number not in ignored:
                    objects[number] = (i, k, coco.cocoGt.anns[number].get('bbox', [0] * 4))
            for number, match, ignore in zip(entry['dtIds'], entry['dtMatches'][IOU_50], entry['dtIgnore'][IOU_50]):
                if not ignore:
                    one = coco.cocoDt.anns[number]
                    detections.append((i, category - 1, one['score'], one['bbox'], int(match), number - 1))
    place = {number: at for at, number in enumerate(objects)}
    columns = [np.array([one[c] for one in detections]) for c in range(3)]
    found = np.array([place.get(one[4], -1) for one in detections], int)
    return Matches(
        columns[0].astype(int), columns[1].astype(int), columns[2].astype(float),
        np.array([one[3] for one in detections], float).reshape(-1, 4), found >= 0, found,
        np.array([one[5] for one in detections], int),
        np.array([one[0] for one in objects.values()], int), np.array([one[1] for one in objects.values()], int),
        np.array([one[2] for one in objects.values()], float).reshape(-1, 4), np.array([*objects], int) - 1)
