"""Small detectors, exported once for all tests that run them."""
import contextlib
import io
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest

import small_detectors
import tool
from cmt_backbones.data import shapes as drawn_scenes


class Exported(NamedTuple):
    config: str
    weights: str
    file: Path
    said: str  # by the command


def exported(tmp_path_factory, structure: str, backbone: str, *flags: str) -> Exported:
    folder = tmp_path_factory.mktemp(structure)
    config, weights = small_detectors.detector(folder, structure, backbone)
    file = folder / f'{structure}.onnx'
    with contextlib.redirect_stdout(io.StringIO()) as said:
        tool.run('export_onnx', config, weights, '--out', file, *flags)
    return Exported(config, weights, file, said.getvalue())


@pytest.fixture(scope='session')
def mask_rcnn(tmp_path_factory):
    """Mask R-CNN on ConvNeXt of one size, uint8 in."""
    return exported(tmp_path_factory, 'mask_rcnn', 'ConvNeXt', '--normalise', 'inside', '--shape', '96', '128')


@pytest.fixture(scope='session')
def retinanet(tmp_path_factory):
    """RetinaNet on CMT of any size."""
    return exported(tmp_path_factory, 'retinanet', 'CMT', '--dynamic', '--dynamic-batch', '--shape', '96', '128')


@pytest.fixture(scope='session')
def cascade(tmp_path_factory):
    """Cascade Mask R-CNN on CMT, weights of 16 bits."""
    return exported(tmp_path_factory, 'cascade_mask_rcnn', 'CMT', '--fp16', '--shape', '96', '128')


@pytest.fixture(scope='session')
def faster_rcnn(tmp_path_factory):
    """Faster R-CNN on ConvNeXt, candidates that overlap."""
    return exported(tmp_path_factory, 'faster_rcnn', 'ConvNeXt', '--no-nms', '--shape', '96', '128')


@pytest.fixture(scope='session')
def photo(tmp_path_factory):
    """A drawn scene of another size than the files have, as a PNG."""
    path = tmp_path_factory.mktemp('photo') / 'photo.png'
    cv2.imwrite(str(path), drawn_scenes.scene(np.random.default_rng(7), 150, 200)[0])
    return path
