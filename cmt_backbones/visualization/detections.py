"""Truth beside detections, from what `tools/test.py CONFIG CHECKPOINT --out FILE.pkl` writes."""
import colorsys
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Dict, List, Sequence, Tuple

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from tqdm import tqdm

from .panels import CELL, HEAD, LONG_SIDE, DrawingError, enlarge, font, scale_of, tile, titled


def test_data(config: Config) -> Any:
    """The test data set of a detector's config; its pipeline is built and not used."""
    init_default_scope(config.get('default_scope', 'mmdet'))
    dataset = DATASETS.build(config.test_dataloader.dataset)
    dataset.full_init()
    return dataset


def truth(info: dict) -> dict:
    """The objects of an image, in its own pixels, from `dataset.get_data_info`.

    Returns:
        dict: `bboxes` (n, 4) as x1, y1, x2, y2, `labels` (n,) and, where all have one, `masks`,
        n arrays (H, W) of bool. Crowds are left out.
    """
    objects = [o for o in info['instances'] if not o.get('ignore_flag')]
    found = dict(bboxes=np.array([o['bbox'] for o in objects], float).reshape(-1, 4),
                 labels=np.array([o['bbox_label'] for o in objects], int))
    if objects and all('mask' in o for o in objects):
        found['masks'] = [decode(o['mask'], info['height'], info['width']) for o in objects]
    return found


def decode(mask: Any, height: int, width: int) -> np.ndarray:
    """A mask (H, W), bool, from COCO's polygons, or from a run-length code in either form."""
    if isinstance(mask, list):
        mask = coco_mask.merge(coco_mask.frPyObjects(mask, height, width))
    elif isinstance(mask['counts'], list):
        mask = coco_mask.frPyObjects(mask, height, width)
    return coco_mask.decode(mask).astype(bool)


def read_predictions(path: Path) -> List[dict]:
    """The predictions of all images, in the form of mmdet's DumpDetResults."""
    try:
        predictions = load(path, file_format='pkl')
    except (UnpicklingError, EOFError, ValueError) as error:
        raise DrawingError(f'{path} is not a whole pickle file: {error}') from None
    if not isinstance(predictions, list) or not predictions:
        raise DrawingError(f'{path} holds no list of predictions.')
    return predictions


def detections(prediction: dict, threshold: float) -> dict:
    """What a prediction of mmdet's DumpDetResults is sure of, the surest first, as `truth` has it,
    with `scores` (n,)."""
    found = prediction['pred_instances']
    scores = np.asarray(found['scores'], float)
    keep = [int(i) for i in np.argsort(-scores, kind='stable') if scores[i] >= threshold]
    kept = dict(bboxes=np.asarray(found['bboxes'], float).reshape(-1, 4)[keep],
                labels=np.asarray(found['labels'], int)[keep], scores=scores[keep])
    if 'masks' in found:
        kept['masks'] = [decode(found['masks'][i], *prediction['ori_shape'][:2]) for i in keep]
    return kept


def colours_of(labels: Sequence[int], apart: bool) -> List[Tuple[int, int, int]]:
    """A colour for each object, that of its class; to tell neighbours apart, in shades of it."""
    seen: Dict[int, int] = {}
    found = []
    for label in labels:
        number = seen[int(label)] = seen.get(int(label), -1) + 1
        hue = label * 0.618034 + apart * (0, 0.06, -0.06, 0.11)[number % 4]
        saturation, value = ((0.75, 1), (0.5, 1), (0.9, 0.75))[apart * (number % 3)]
        found.append(tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue % 1, saturation, value)))
    return found


def draw(image: np.ndarray, objects: dict, classes: Sequence[str], title: str,
         long_side: int = LONG_SIDE) -> Image.Image:
    """Draws objects over an image.

    Args:
        image: (H, W, 3), uint8, RGB.
        objects: As from `truth` or `detections`.
        classes: Names by label.
        title: Written above the image.
        long_side: Of the picture, in pixels, at most.
    """
    scale = scale_of(image, long_side)
    canvas = enlarge(image, cv2.INTER_CUBIC, long_side)
    size = canvas.shape[1::-1]
    colours = colours_of(objects['labels'], apart='masks' in objects)
    for mask, colour in zip(objects.get('masks', ()), colours):
        large = cv2.resize(mask.astype(np.float32), size) > 0.5
        canvas[large] = 0.55 * canvas[large] + 0.45 * np.array(colour)
        outlines, _ = cv2.findContours(large.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outlines, -1, colour, 1, cv2.LINE_AA)

    picture = titled(canvas, title)
    pen, names = ImageDraw.Draw(picture), font(13)
    boxes = objects['bboxes'] * scale + [0, HEAD, 0, HEAD]
    low, high = np.array([0, HEAD]), np.array([picture.width - 1, picture.height - 1])
    for (x1, y1, x2, y2), colour in zip(boxes, colours):
        corners = np.clip([[x1, y1], [x2, y2]], low, high)
        corners = np.array([corners.min(0), corners.max(0)])
        # Black on both sides, so that a line of any colour shows on any ground.
        pen.rectangle([*(corners[0] - 1), *(corners[1] + 1)], outline='black', width=4)
        pen.rectangle([*corners.ravel()], outline=colour, width=2)
    taken: List[np.ndarray] = []
    for i, box in enumerate(boxes):  # all names after all boxes, so that none is crossed out
        text = classes[objects['labels'][i]]
        if 'scores' in objects:
            text += f" {objects['scores'][i]:.2f}"
        room = np.array([pen.textlength(text, names) + 6, 17])
        x, y = free_place(box, room, low, high - room, taken)
        pen.rectangle([x, y, *([x, y] + room)], fill=colours[i])
        luma = np.dot(colours[i], [0.299, 0.587, 0.114])
        pen.text((x + 3, y + 1), text, 'black' if luma > 110 else 'white', names)
    return picture


def free_place(box: np.ndarray, room: np.ndarray, low: np.ndarray, high: np.ndarray,
               taken: List[np.ndarray]) -> np.ndarray:
    """Where the corner (x, y) of a name of size `room` goes: around its box, within `low` and
    `high`, and on none of the corners and sizes that are `taken`, to which it is added."""
    (x1, y1), (x2, y2), (w, h) = box[:2], box[2:], room
    places = [(x1, y1 - h), (x1, y2), (x2 - w, y1 - h), (x2 - w, y2), (x2, y1), (x1 - w, y1)]
    places = np.clip(places, low, high)
    for place in places:
        if not any(np.all((place < t[:2] + t[2:]) & (t[:2] < place + room)) for t in taken):
            break
    else:
        place = places[0]
    taken.append(np.concatenate([place, room]))
    return place


def draw_all(dataset: Any, predictions: List[dict], threshold: float, out: Path,
             alone: bool = False) -> None:
    """Draws predictions beside the truth into `out`, or alone on grey.

    Raises:
        DrawingError: The predictions are not those of a detector on this data set.
    """
    classes = dataset.metainfo['classes']
    infos = {}
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        infos[info['img_id']] = info
    pairs = []
    out.mkdir(parents=True, exist_ok=True)
    for prediction in tqdm(predictions, 'drawing', unit='image', mininterval=1):
        if 'pred_instances' not in prediction:
            raise DrawingError('the predictions have no pred_instances: are they of a detector?')
        name, number = prediction.get('img_path', ''), prediction.get('img_id')
        info = infos.get(number)
        if info is None or Path(info['img_path']).name != Path(name).name:
            raise DrawingError(f'{name} (image {number}) is not in the test data of the config: '
                               'the predictions belong to another one.')
        image = cv2.imread(info['img_path'])
        if image is None:
            raise DrawingError(f"{info['img_path']} cannot be read.")
        found, real = detections(prediction, threshold), truth(info)
        if found['labels'].max(initial=-1) >= len(classes):
            raise DrawingError(f'the predictions have more than the {len(classes)} classes of the '
                               'config: they belong to another one.')
        if 'masks' not in found:
            real.pop('masks', None)  # like beside like
        image = np.ascontiguousarray(image[..., ::-1])
        title = f'detections (score ≥ {threshold:g})'
        for long_side in (LONG_SIDE, CELL):
            if alone:
                pair = draw(np.full_like(image, 225), found, classes, title, long_side)
            else:
                pair = tile([draw(image, real, classes, 'truth', long_side),
                             draw(image, found, classes, title, long_side)], 2)
            if long_side == LONG_SIDE:
                pair.save(out / f"{Path(info['img_path']).stem}.png")
        pairs.append(pair)
    columns = 4 if alone else 2
    tile(pairs, 1 if len(pairs) < 3 else columns).save(out / 'sheet.png')
