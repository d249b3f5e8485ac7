"""What a model finds in photos: boxes and masks over them, or the colours of classes beside them."""
from glob import glob
from pathlib import Path
from typing import Dict, Optional, Sequence

import cv2
import numpy as np
from PIL import Image

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


def draw_objects(image: np.ndarray, objects: dict, classes: Sequence[str], threshold: float) -> Image.Image:
    """Draws boxes and masks, all as sure as the threshold, over an image (H, W, 3), uint8, RGB."""
    title = f'{len(objects["bboxes"])} with a score of {threshold:g} or more'
    return detections.draw(image, objects, classes, title)


def draw_label_map(image: np.ndarray, labels: np.ndarray, classes: Sequence[str],
                   palette: Optional[Sequence], beside: bool = True) -> Image.Image:
    """Draws labels (H, W) over an image, with a legend.

    Args:
        image: (H, W, 3), uint8, RGB.
        palette: RGB by label; without one, bright colours.
        beside: Whether the image itself stands beside.
    """
    colours = np.array(palette or detections.colours_of(range(len(classes)), apart=False), np.uint8)
    laid_over = (0.4 * image + 0.6 * colours[labels]).astype(np.uint8)
    seen = np.unique(labels)
    pictures = [('image', image), ('classes', laid_over)]
    pictures = [titled(enlarge(picture, cv2.INTER_CUBIC), title) for title, picture in pictures[not beside:]]
    return above_legend(pictures, [classes[label] for label in seen], colours[seen])
