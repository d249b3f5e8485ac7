"""Draws truth beside label maps: `python tools/draw_segmentation.py CONFIG PRED_DIR --out DIR`.

PRED_DIR is the folder that `tools/test.py CONFIG CHECKPOINT --out PRED_DIR` writes; images and
truth come from the test data of the config. Each of its first --images images becomes
DIR/<name of the image>.png, with the colours of the classes in it below, and all of them together
DIR/sheet.png. Pixels that the truth leaves open are white in it.
"""
import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from draw_detections import FONTS, GAP, PAPER, SHORT_SIDE, DrawingError, tile

OPEN = 255  # the label of pixels that do not count, mmseg's ignore_index


def test_data(config: Config):
    """The test data set of a config."""
    init_default_scope(config.get('default_scope', 'mmseg'))
    from mmseg.registry import DATASETS
    return DATASETS.build(config.test_dataloader.dataset)


def truth(info: dict) -> np.ndarray:
    """The labels (H, W), uint8, of an image, from `dataset.get_data_info`."""
    from mmseg.datasets.transforms import LoadAnnotations
    return LoadAnnotations()(info)['gt_seg_map']


def read_prediction(path: Path, reduce_zero_label: bool) -> np.ndarray:
    """The labels (H, W), uint8, in a file of mmseg's IoUMetric.

    Args:
        path: The file.
        reduce_zero_label: Whether the data set leaves out a class 0; the files then count from 1.
    """
    if not path.is_file():
        raise DrawingError(f'there is no prediction {path}: the folder belongs to other test data '
                           'or to a test that was cut short.')
    labels = np.array(Image.open(path))
    # Unsigned: a 0 where it cannot be becomes 255, which no class has.
    return labels - np.uint8(reduce_zero_label)


def enlarge(picture: np.ndarray, interpolation: int) -> np.ndarray:
    """A picture (H, W, 3) at the size to be drawn at."""
    scale = int(np.clip(round(SHORT_SIDE / min(picture.shape[:2])), 1, 4))
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=interpolation)


def titled(picture: np.ndarray, title: str) -> Image.Image:
    """A picture (H, W, 3), uint8, RGB, with a title above it."""
    head = 24
    out = Image.new('RGB', (picture.shape[1], picture.shape[0] + head), PAPER)
    out.paste(Image.fromarray(picture), (0, head))
    font = ImageFont.truetype(str(FONTS / 'DejaVuSans-Bold.ttf'), 14)
    ImageDraw.Draw(out).text((2, 3), title, 'black', font)
    return out


def legend(classes: list[str], colours: np.ndarray, width: int) -> Image.Image:
    """Names behind squares of their colours (n, 3), uint8, in as many lines as the width needs."""
    font = ImageFont.truetype(str(FONTS / 'DejaVuSans.ttf'), 13)
    line, square = 20, 14
    places, x, y = [], 0, 0
    for name in classes:
        room = square + 5 + int(font.getlength(name)) + 14
        if x and x + room > width:
            x, y = 0, y + line
        places.append((x, y))
        x += room
    out = Image.new('RGB', (width, y + line), PAPER)
    pen = ImageDraw.Draw(out)
    for (x, y), name, colour in zip(places, classes, colours):
        pen.rectangle([x, y + 2, x + square, y + 2 + square], tuple(colour.tolist()), 'black')
        pen.text((x + square + 5, y + 1), name, 'black', font)
    return out


def above_legend(pictures: list[Image.Image], classes: list[str], colours: np.ndarray) -> Image.Image:
    """Pictures side by side over the names of classes and their colours (n, 3), uint8."""
    row = tile(pictures, len(pictures))
    names = legend(classes, colours, row.width)
    out = Image.new('RGB', (row.width, row.height + GAP + names.height), PAPER)
    out.paste(row, (0, 0))
    out.paste(names, (0, row.height + GAP))
    return out


def draw(image: np.ndarray, real: np.ndarray, found: np.ndarray, classes: tuple[str, ...],
         palette: list) -> Image.Image:
    """Draws an image, its truth, a prediction and a legend.

    Args:
        image: (H, W, 3), uint8, RGB.
        real, found: Labels (H, W), uint8; `OPEN` in the truth for pixels that do not count.
        classes, palette: Names and RGB colours by label.
    """
    colours = np.full((256, 3), PAPER, np.uint8)
    colours[:len(palette)] = palette
    counts = real != OPEN
    right = f'{(real == found)[counts].mean():.1%} of pixels right' if counts.any() else 'no truth'
    pictures = [
        titled(enlarge(image, cv2.INTER_CUBIC), 'image'),
        titled(enlarge(colours[real], cv2.INTER_NEAREST), 'truth'),
        titled(enlarge(colours[found], cv2.INTER_NEAREST), f'prediction ({right})')]
    seen = np.union1d(real[counts], found)
    return above_legend(pictures, [classes[label] for label in seen], colours[seen])


def draw_all(dataset, folder: Path, images: int, out: Path) -> int:
    """Draws the first images and their predictions in `folder` into `out`; returns how many.

    Raises:
        DrawingError: The predictions are not those of a segmentor on this data set.
    """
    classes, palette = dataset.metainfo['classes'], dataset.metainfo['palette']
    pictures = []
    out.mkdir(parents=True, exist_ok=True)
    for i in tqdm(range(min(images, len(dataset))), 'drawing', unit='image', mininterval=1):
        info = dataset.get_data_info(i)
        path = folder / f"{Path(info['img_path']).stem}.png"
        real, found = truth(info), read_prediction(path, dataset.reduce_zero_label)
        image = cv2.imread(info['img_path'])
        if image is None:
            raise DrawingError(f"{info['img_path']} cannot be read.")
        if found.shape != real.shape:
            raise DrawingError(f'{path} is {found.shape[1]}x{found.shape[0]} and its image '
                               f'{real.shape[1]}x{real.shape[0]}: it belongs to other test data.')
        for labels, whose in ((real[real != OPEN], 'truth'), (found, 'prediction')):
            if labels.max(initial=0) >= len(classes):
                raise DrawingError(f'the {whose} of {path.name} has other labels than the '
                                   f'{len(classes)} classes of the config.')
        pictures.append(draw(np.ascontiguousarray(image[..., ::-1]), real, found, classes, palette))
        pictures[-1].save(out / path.name)
    tile(pictures, 1 if len(pictures) < 3 else 2).save(out / 'sheet.png')
    return len(pictures)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', type=Path)
    parser.add_argument('predictions', type=Path, help='folder of test.py --out')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR')
    parser.add_argument('--images', type=int, default=12, help='how many (default: %(default)s)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='changes to the config, as for test.py')
    args = parser.parse_args(argv)
    if args.images < 1:
        parser.error('--images takes at least 1')
    if not args.config.is_file():
        sys.exit(f'draw_segmentation: there is no file {args.config}')
    if not args.predictions.is_dir():
        sys.exit(f'draw_segmentation: there is no folder {args.predictions}')
    config = Config.fromfile(args.config)
    config.merge_from_dict(args.cfg_options or {})
    try:
        count = draw_all(test_data(config), args.predictions, args.images, args.out)
    except (DrawingError, OSError) as error:
        sys.exit(f'draw_segmentation: {error}')
    print(f'{args.out}: {count} pictures and sheet.png')


if __name__ == '__main__':
    main()
