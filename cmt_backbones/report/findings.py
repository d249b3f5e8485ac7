"""What the page says of a run's checkpoint: all numbers and pictures, computed once."""
import math
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from ..analysis.flops import count, model_without_memory
from . import detection, detection_errors, pictures, segmentation
from .errors import ReportError, reason
from .predictions import Data, detector_predictions, read_data, segmentor_predictions
from .runs import Run


class Options(NamedTuple):
    """How runs are evaluated.

    Attributes:
        split: 'val' or 'test'.
        device: Such as 'cuda:0'.
        max_images: That are evaluated, of each run; all without.
        pictures: How many of the best and of the worst images are shown of each run.
        threshold: The score from which detections count in confusions and pictures; without, that of the best F1.
    """
    split: str = 'val'
    device: str = 'cpu'
    max_images: Optional[int] = None
    pictures: int = 6
    threshold: Optional[float] = None


class Findings(NamedTuple):
    """Of a run, a detector's or a segmentor's.

    Attributes:
        classes: Names.
        data: What was evaluated, in words.
        headline: The numbers that people ask for first, by name.
        by_class: Rows of a table, a dict each.
        results: `detection.Evaluation` or `segmentation.Evaluation`.
        confusion: (K + 1, K + 1) of objects or (K, K) of pixels, rows true.
        errors: For a detector, by kind `cost` in AP, `count`, and `sure`, those from `threshold` on.
        threshold: For a detector.
        worst, best: Pictures.
        told: What the page should say, such as images that could not be read.
    """
    classes: List[str]
    data: str
    headline: Dict[str, float]
    by_class: List[dict]
    results: Any
    confusion: np.ndarray
    errors: Dict[str, dict]
    threshold: Optional[float]
    worst: List[dict]
    best: List[dict]
    told: List[str]
    palette: List[List[int]]


def evaluate(run: Run, options: Options, file: Optional[Path] = None) -> Tuple[Findings, Data]:
    """Evaluates a run's checkpoint, or predictions that are there.

    Args:
        run: With a checkpoint, or with `file`.
        options: How.
        file: Of `tools/test.py --out`: a .pkl file of a detector, a folder of label maps of a segmentor.

    Raises:
        ReportError: Checkpoint, data or predictions are not there or do not fit.
    """
    if file is not None and not (file.is_file() if run.task == 'detector' else file.is_dir()):
        kind = 'file (.pkl)' if run.task == 'detector' else 'folder of label maps'
        raise ReportError(f'{run.name}: there is no {kind} {file}, which tools/test.py --out writes')
    data = read_data(run, options.split, options.max_images)
    return (detector if run.task == 'detector' else segmentor)(run, data, options, file), data


def told_of(broken: Dict[str, str], data: Data) -> List[str]:
    shown = ', '.join(f'{path} ({why})' for path, why in list(broken.items())[:3])
    more = f' and {len(broken) - 3} more' if len(broken) > 3 else ''
    noun, are = ('image', 'is') if len(broken) == 1 else ('images', 'are')
    told = [f'{len(broken)} {noun} cannot be read and {are} left out: {shown}{more}'] if broken else []
    if len(data.indices) < len(data.dataset):
        told.append(f'{len(data.indices)} of {len(data.dataset)} {data.split} images were evaluated')
    return told


def detector(run: Run, data: Data, options: Options, file: Optional[Path]) -> Findings:
    found, broken = detector_predictions(run, data, options.device, file)
    infos = {place: data.dataset.get_data_info(place) for place in found}
    places = sorted(found, key=lambda place: infos[place]['img_id'])  # the order of pycocotools, which ties go by
    predictions = [found[place] for place in places]
    real = detection.truth(data, places)
    results = detection.evaluate(real, predictions)
    matches = results.matches
    errors = detection_errors.classify(matches)
    best_threshold, f1 = detection_errors.best_threshold(matches)
    threshold = best_threshold if options.threshold is None else options.threshold
    costs = detection_errors.costs(matches, errors)
    counts, sure = (detection_errors.counts(matches, errors, least) for least in (0., threshold))
    headline = {'AP': results.average(), 'AP50': results.average(iou=detection.IOU_50),
                'AP75': results.average(iou=detection.IOU_75),
                **{f'AP {size}': results.average(size=i) for i, size in enumerate(detection.SIZES) if i}}
    with_masks = all('masks' in one for one in predictions) and \
        all('segmentation' in one for one in real.dataset['annotations'])
    shapes: Dict[str, list] = {}
    if with_masks:
        masks = detection.evaluate(real, predictions, 'segm')
        headline.update({'mask AP': masks.average(), 'mask AP50': masks.average(iou=detection.IOU_50),
                         'mask AP75': masks.average(iou=detection.IOU_75)})
        shapes = dict(masks=[mask for one in predictions for mask in one['masks']],
                      object_masks=[one['segmentation'] for one in real.dataset['annotations']])
    headline['best F1'] = f1

    def show(ranked: dict) -> dict:
        info = infos[places[ranked['image']]]
        return pictures.detection_picture(ranked, info['img_path'], (info['height'], info['width']), matches, errors,
                                          data.classes, threshold, **shapes)

    worst, best = pictures.chosen(pictures.rank_images(matches, len(places), threshold), options.pictures)
    objects = np.bincount(matches.object_label, minlength=len(data.classes))
    by_class = [dict(name=name, objects=int(objects[k]), AP=results.average(label=k),
                     AP50=results.average(detection.IOU_50, k), AP75=results.average(detection.IOU_75, k),
                     **{size: results.average(label=k, size=i) for i, size in enumerate(detection.SIZES) if i},
                     **({'mask AP': masks.average(label=k)} if with_masks else {}))
                for k, name in enumerate(data.classes)]
    return Findings(
        data.classes, f'{len(places)} {data.split} images, {len(matches.object_label)} objects', headline, by_class,
        results, detection_errors.confusion(matches, len(data.classes), threshold),
        {name: dict(cost=cost, count=counts.get(name), sure=sure.get(name)) for name, cost in costs.items()}, threshold,
        [show(one) for one in worst], [show(one) for one in best], told_of(broken, data), [])


def segmentor(run: Run, data: Data, options: Options, file: Optional[Path]) -> Findings:
    pairs = segmentor_predictions(run, data, options.device, file)
    found, broken = segmentation.evaluate(pairs, len(data.classes), options.pictures)
    mean_boundary = float(np.nanmean(found.boundary_iou))
    headline = {'mIoU': float(np.nanmean(found.iou)), 'mAcc': float(np.nanmean(found.accuracy)),
                'aAcc': found.pixel_accuracy, 'boundary IoU': mean_boundary}
    pixels = found.confusion.sum(1)
    by_class = [dict(name=name, pixels=float(pixels[k] / max(1, pixels.sum())), IoU=float(found.iou[k]),
                     accuracy=float(found.accuracy[k]), **{'boundary IoU': float(found.boundary_iou[k])})
                for k, name in enumerate(data.classes)]
    palette = [list(map(int, colour)) for colour in data.dataset.metainfo['palette']]
    shown = {one.path for one in found.worst}
    best = [one for one in found.best if one.path not in shown]
    return Findings(
        data.classes, f'{found.images} {data.split} images, {int(pixels.sum()):,} pixels', headline, by_class, found,
        found.confusion, {}, None, [pictures.segmentation_picture(one, palette) for one in found.worst],
        [pictures.segmentation_picture(one, palette) for one in best], told_of(broken, data), palette)


def size_of_model(run: Run, data: Optional[Data]) -> Dict[str, str]:
    """Parameters, and multiply-adds for an image as the run's pipeline makes it, in words."""
    try:
        model = model_without_memory(run.config)
    except Exception as error:  # of a model that is not ours
        return {'Parameters': f'not counted: {reason(error)}'}
    backbone = sum(weight.numel() for weight in model.backbone.parameters()) / 1e6
    total = sum(weight.numel() for weight in model.parameters()) / 1e6
    found = {'Parameters': f'{total:.2f} million, {backbone:.2f} of them in the backbone'}
    try:
        shape = tuple(data.dataset[data.indices[0]]['inputs'].shape[-2:]) if data else None
    except Exception:  # an image that cannot be read, which the evaluation tells
        shape = None
    if shape:
        shape = tuple(32 * math.ceil(side / 32) for side in shape)
        try:
            found['Multiply-adds'] = f'{count(model, shape)["gmacs"]:.2f} GMACs for an image of {shape[0]}x{shape[1]}'
        except Exception as error:  # of a model whose heads cannot run without data
            found['Multiply-adds'] = f'not counted: {reason(error)}'
    return found
