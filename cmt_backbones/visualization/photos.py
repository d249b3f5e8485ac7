"""What a model finds in photos: boxes and masks over them, or the colours of classes beside them."""
from glob import glob
from pathlib import Path
from typing import Dict, Sequence

import cv2
import numpy as np
from mmengine.structures import BaseDataElement
from PIL import Image
from torch import nn

from ..openmmlab.inference import predict
from . import detections
from .panels import DrawingError, above_legend, enlarge, titled

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


def find_images(names: Sequence[str]) -> Dict[str, Path]:
    """The images that files, folders and patterns name, by the stem that their picture will have.

    Raises:
        DrawingError: There is none, or two have one stem.
    """
    found: Dict[str, Path] = {}
    for name in names:
        if Path(name).is_dir():
            paths = sorted(p for p in Path(name).iterdir() if p.suffix.lower() in SUFFIXES)
        else:
            paths = [Path(name)] if Path(name).is_file() else sorted(map(Path, glob(name)))
        if not paths:
            raise DrawingError(f'there is no image {name}: give files, folders with {", ".join(SUFFIXES)}, '
                              'or patterns in quotes')
        for path in paths:
            other = found.setdefault(path.stem, path)
            if other != path:
                raise DrawingError(f'{other} and {path} would both become {path.stem}.png: draw them into '
                                  'folders of their own')
    return found


def draw_instances(image: np.ndarray, sample: BaseDataElement, classes: Sequence[str],
                   threshold: float) -> Image.Image:
    """Draws the boxes and masks of a DetDataSample that are as sure as the threshold over an image.

    Args:
        image: (H, W, 3), uint8, RGB.
    """
    found = sample.pred_instances.cpu()
    found = found[found.scores >= threshold]
    objects = dict(bboxes=found.bboxes.double().numpy(), labels=found.labels.numpy(),
                   scores=found.scores.numpy())
    if 'masks' in found:
        objects['masks'] = list(found.masks.numpy())
    title = f'{len(found)} with a score of {threshold:g} or more'
    return detections.draw(image, objects, classes, title)


def draw_classes(image: np.ndarray, sample: BaseDataElement, classes: Sequence[str],
                 palette: Sequence) -> Image.Image:
    """Draws the label map of a SegDataSample over an image, beside the image, with a legend.

    Args:
        image: (H, W, 3), uint8, RGB.
        palette: RGB by label.
    """
    labels = sample.pred_sem_seg.data[0].cpu().numpy()
    colours = np.array(palette, np.uint8)
    laid_over = (0.4 * image + 0.6 * colours[labels]).astype(np.uint8)
    seen = np.unique(labels)
    pictures = [('image', image), ('classes', laid_over)]
    pictures = [titled(enlarge(picture, cv2.INTER_CUBIC), title) for title, picture in pictures]
    return above_legend(pictures, [classes[label] for label in seen], colours[seen])


def draw(model: nn.Module, image: np.ndarray, threshold: float) -> Image.Image:
    """A picture of what a model finds in an image (H, W, 3), uint8, BGR."""
    sample, meta = predict(model, image), model.dataset_meta
    rgb = np.ascontiguousarray(image[..., ::-1])
    if 'pred_instances' in sample:
        return draw_instances(rgb, sample, meta['classes'], threshold)
    return draw_classes(rgb, sample, meta['classes'], meta['palette'])


def draw_file(model: nn.Module, path: Path, threshold: float) -> Image.Image:
    """:func:`draw` for an image in a file.

    Raises:
        DrawingError: It cannot be read.
    """
    image = cv2.imread(str(path))
    if image is None:
        raise DrawingError(f'{path} cannot be read as an image')
    return draw(model, image, threshold)
