"""Draws truth beside detections: `python tools/draw_detections.py CONFIG PREDICTIONS --out DIR`.

PREDICTIONS is the file that `tools/test.py CONFIG CHECKPOINT --out FILE.pkl` writes; the truth
comes from the test data of the config. Each of the first --images images becomes
DIR/<name of the image>.png, and all of them together DIR/sheet.png.
"""
import argparse
import colorsys
import sys
from pathlib import Path
from pickle import UnpicklingError

import cv2
import matplotlib
import numpy as np
from mmengine.config import Config, DictAction
from mmengine.fileio import load
from mmengine.registry import init_default_scope
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask
from tqdm import tqdm

SHORT_SIDE = 400  # pixels: smaller images are enlarged up to this, and 4 times at most
GAP = 8  # pixels between pictures
PAPER = (255, 255, 255)
FONTS = Path(matplotlib.get_data_path()) / 'fonts' / 'ttf'


class DrawingError(Exception):
    """Why the predictions cannot be drawn, in one line."""


def test_data(config: Config):
    """The test data set of a config; its pipeline is built and not used."""
    init_default_scope(config.get('default_scope', 'mmdet'))
    from mmdet.registry import DATASETS
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


def decode(mask, height: int, width: int) -> np.ndarray:
    """A mask (H, W), bool, from COCO's polygons, or from a run-length code in either form."""
    if isinstance(mask, list):
        mask = coco_mask.merge(coco_mask.frPyObjects(mask, height, width))
    elif isinstance(mask['counts'], list):
        mask = coco_mask.frPyObjects(mask, height, width)
    return coco_mask.decode(mask).astype(bool)


def read_predictions(path: Path) -> list[dict]:
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


def class_colour(label: int) -> tuple[int, int, int]:
    """A bright RGB colour; neighbouring labels get hues far apart."""
    hue = label * 0.618034 % 1
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.75, 1))


def draw(image: np.ndarray, objects: dict, classes: tuple[str, ...], title: str) -> Image.Image:
    """Draws objects over an image.

    Args:
        image: (H, W, 3), uint8, RGB.
        objects: As from `truth` or `detections`.
        classes: Names by label.
        title: Written above the image.
    """
    height, width = image.shape[:2]
    scale = int(np.clip(round(SHORT_SIDE / min(height, width)), 1, 4))
    size = (width * scale, height * scale)
    canvas = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    colours = [class_colour(label) for label in objects['labels']]
    for mask, colour in zip(objects.get('masks', ()), colours):
        large = cv2.resize(mask.astype(np.float32), size) > 0.5
        canvas[large] = 0.55 * canvas[large] + 0.45 * np.array(colour)
        outlines, _ = cv2.findContours(large.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outlines, -1, colour, 1, cv2.LINE_AA)

    font = ImageFont.truetype(str(FONTS / 'DejaVuSans.ttf'), 13)
    bold = ImageFont.truetype(str(FONTS / 'DejaVuSans-Bold.ttf'), 14)
    head = 24
    picture = Image.new('RGB', (size[0], size[1] + head), PAPER)
    picture.paste(Image.fromarray(canvas), (0, head))
    pen = ImageDraw.Draw(picture)
    pen.text((2, 3), title, 'black', bold)
    boxes = objects['bboxes'] * scale + [0, head, 0, head]
    low, high = np.array([0, head]), np.array([size[0] - 1, size[1] + head - 1])
    for (x1, y1, x2, y2), colour in zip(boxes, colours):
        corners = np.clip([[x1, y1], [x2, y2]], low, high)
        corners = np.array([corners.min(0), corners.max(0)])
        # Black on both sides, so that a line of any colour shows on any ground.
        pen.rectangle([*(corners[0] - 1), *(corners[1] + 1)], outline='black', width=4)
        pen.rectangle([*corners.ravel()], outline=colour, width=2)
    taken: list[np.ndarray] = []
    for i, box in enumerate(boxes):  # all names after all boxes, so that none is crossed out
        text = classes[objects['labels'][i]]
        if 'scores' in objects:
            text += f" {objects['scores'][i]:.2f}"
        room = np.array([pen.textlength(text, font) + 6, 17])
        x, y = free_place(box, room, low, high - room, taken)
        pen.rectangle([x, y, *([x, y] + room)], fill=colours[i])
        luma = np.dot(colours[i], [0.299, 0.587, 0.114])
        pen.text((x + 3, y + 1), text, 'black' if luma > 110 else 'white', font)
    return picture


def free_place(box: np.ndarray, room: np.ndarray, low: np.ndarray, high: np.ndarray,
               taken: list[np.ndarray]) -> np.ndarray:
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


def tile(pictures: list[Image.Image], columns: int) -> Image.Image:
    """Pictures in rows, each in a cell of the largest one's size."""
    width = max(p.width for p in pictures) + GAP
    height = max(p.height for p in pictures) + GAP
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new('RGB', (columns * width - GAP, rows * height - GAP), PAPER)
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * width, i // columns * height))
    return sheet


def draw_all(dataset, predictions: list[dict], threshold: float, out: Path,
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
        if alone:
            pair = draw(np.full_like(image, 225), found, classes, title)
        else:
            pair = tile([draw(image, real, classes, 'truth'),
                         draw(image, found, classes, title)], 2)
        pair.save(out / f"{Path(info['img_path']).stem}.png")
        pairs.append(pair)
    columns = 4 if alone else 2
    tile(pairs, 1 if len(pairs) < 3 else columns).save(out / 'sheet.png')


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', type=Path)
    parser.add_argument('predictions', type=Path, help='.pkl file of test.py --out')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR')
    parser.add_argument('--images', type=int, default=12, help='how many (default: %(default)s)')
    parser.add_argument('--score-thr', type=float, default=0.4, help='default: %(default)s')
    parser.add_argument('--alone', action='store_true', help='leave out image and truth, for data '
                        'whose licence forbids to show it')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='changes to the config, as for test.py')
    args = parser.parse_args(argv)
    if args.images < 1:
        parser.error('--images takes at least 1')
    for path in (args.config, args.predictions):
        if not path.is_file():
            sys.exit(f'draw_detections: there is no file {path}')
    config = Config.fromfile(args.config)
    config.merge_from_dict(args.cfg_options or {})
    try:
        predictions = read_predictions(args.predictions)[:args.images]
        draw_all(test_data(config), predictions, args.score_thr, args.out, args.alone)
    except (DrawingError, OSError) as error:
        sys.exit(f'draw_detections: {error}')
    print(f'{args.out}: {len(predictions)} pictures and sheet.png')


if __name__ == '__main__':
    main()
