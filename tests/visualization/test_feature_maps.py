"""What backbones see, by tools/draw_feature_maps.py."""
import cv2
import numpy as np
import pytest
import torch

import tool
from cmt_backbones.openmmlab.inference import ModelError, build_model, read_config
from cmt_backbones.visualization import feature_maps


def test_maps_of_four_strides(model, photos, tmp_path):
    config, weights = model
    built = build_model(read_config(config), weights)
    image = cv2.imread(str(photos / 'scene 0.png'))
    maps = feature_maps.stage_maps(built, image)
    height, width = (107, 160) if 'mmseg' in config else (64, 96)  # the demo enlarges
    assert [tuple(m.shape) for m in maps] == [
        (channels, -(-height // stride), -(-width // stride))
        for channels, stride in zip((8, 16, 32, 64), (4, 8, 16, 32))]
    out = tmp_path / 'maps.png'
    tool.run('draw_feature_maps', config, weights, photos / 'scene 0.png', '--out', out)
    picture = cv2.imread(str(out))
    assert picture.shape[1] > 3.5 * picture.shape[0] and len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    with pytest.raises(SystemExit, match='is not there or no image'):
        tool.run('draw_feature_maps', config, weights, photos / 'notes.txt', '--out', out)


def test_places_of_one_feature_get_one_colour():
    torch.manual_seed(0)
    kinds = torch.randn(16, 3)
    which = torch.randint(3, (8, 12))
    picture = feature_maps.principal_colours(kinds[:, which])
    assert picture.shape == (8, 12, 3) and 0 <= picture.min() and picture.max() <= 1
    colours = [picture[which.numpy() == kind] for kind in range(3)]
    for one in colours:
        assert np.abs(one - one[0]).max() < 1e-6
    assert all(np.abs(colours[i][0] - colours[i - 1][0]).max() > 0.3 for i in range(3))


def test_only_our_backbones_have_such_maps(photos):
    config = read_config(tool.ROOT / 'benchmarks/configs/camvid_upernet_r18.py')
    built = build_model(config)
    with pytest.raises(ModelError, match='the backbone is a ResNet'):
        feature_maps.stage_maps(built, np.zeros((64, 64, 3), np.uint8))
