"""What the commands have in common that draw an image as the backbone of a model sees it."""
import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import DictAction

from .panels import DrawingError


def parser_of_one_image(description: str) -> argparse.ArgumentParser:
    """A parser of CONFIG CHECKPOINT IMAGE --out PNG, to which a command may add what it alone has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config')
    parser.add_argument('checkpoint', help='file or URL')
    parser.add_argument('image', type=Path)
    parser.add_argument('--out', type=Path, required=True, metavar='PNG')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu',
                        help='default: %(default)s')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='changes to the config, as for test.py')
    return parser


def read_image(path: Path) -> np.ndarray:
    """An image (H, W, 3), uint8, BGR; DrawingError if it cannot be read."""
    image = cv2.imread(str(path))
    if image is None:
        raise DrawingError(f'{path} is not there or no image')
    return image
