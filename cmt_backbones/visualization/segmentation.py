"""Truth beside label maps, from what `tools/test.py CONFIG CHECKPOINT --out FOLDER` writes."""
from pathlib import Path
from typing import Any, Sequence

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from tqdm import tqdm

from .panels import CELL, LONG_SIDE, PAPER, DrawingError, above_legend, enlarge, tile, titled

OPEN = 255  # the label of pixels that do not count, mmseg's ignore_index


def test_data(config: Config) -> Any:
    """The test data set of a segmentor's config."""
    init_default_scope(config.get('default_scope', 'mmseg'))
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


def draw(image: np.ndarray, real: np.ndarray, found: np.ndarray, classes: Sequence[str],
         palette: Sequence, long_side: int = LONG_SIDE) -> Image.Image:
    """Draws an image, its truth, a prediction and a legend.

    Args:
        image: (H, W, 3), uint8, RGB.
        real: The truth, labels (H, W), uint8; `OPEN` for pixels that do not count.
        found: The prediction, likewise.
        classes: Names by label.
        palette: RGB by label.
        long_side: Of each picture, in pixels, at most.
    """
    colours = np.full((256, 3), PAPER, np.uint8)
    colours[:len(palette)] = palette
    counts = real != OPEN
    right = f'{(real == found)[counts].mean():.1%} of pixels right' if counts.any() else 'no truth'
    pictures = [
        titled(enlarge(image, cv2.INTER_CUBIC, long_side), 'image'),
        titled(enlarge(colours[real], cv2.INTER_NEAREST, long_side), 'truth'),
        titled(enlarge(colours[found], cv2.INTER_NEAREST, long_side), f'prediction ({right})')]
    seen = np.union1d(real[counts], found)
    return above_legend(pictures, [classes[label] for label in seen], colours[seen])


def draw_all(dataset: Any, folder: Path, images: int, out: Path) -> int:
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
        image = np.ascontiguousarray(image[..., ::-1])
        draw(image, real, found, classes, palette).save(out / path.name)
        pictures.append(draw(image, real, found, classes, palette, CELL * 2 // 3))
    tile(pictures, 1 if len(pictures) < 3 else 2).save(out / 'sheet.png')
    return len(pictures)
