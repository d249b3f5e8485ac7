"""Photos, and small models to look at them."""
import cv2
import numpy as np
import pytest
import torch

import small_models
from cmt_backbones.data import shapes as drawn_scenes
from cmt_backbones.openmmlab.inference import build_model, read_config


@pytest.fixture(scope='session')
def photos(tmp_path_factory):
    """Two drawn scenes, 96x64, in a folder with something else."""
    folder = tmp_path_factory.mktemp('photos')
    for i in range(2):
        image, *_ = drawn_scenes.scene(np.random.default_rng(i), 64, 96)
        cv2.imwrite(str(folder / f'scene {i}.png'), image)
    (folder / 'notes.txt').write_text('none of the images')
    return folder


@pytest.fixture(scope='session', params=['mmseg', 'mmdet'])
def model(request, tmp_path_factory):
    """The config of a small segmentor or detector and a checkpoint of it."""
    folder = tmp_path_factory.mktemp(request.param)
    config = small_models.segmentor(folder, 'CMT') if request.param == 'mmseg' else small_models.detector(folder)
    torch.manual_seed(0)
    built = build_model(read_config(config))
    torch.save(dict(state_dict=built.state_dict(), meta=dict(dataset_meta=built.dataset_meta)),
               folder / 'weights.pth')
    return config, str(folder / 'weights.pth')
