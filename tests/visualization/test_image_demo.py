"""The pictures of tools/image_demo.py, tools/draw_feature_maps.py and tools/draw_position_bias.py."""
import sys

import cv2
import numpy as np
import pytest
import torch

import small_models
import tool
from cmt_backbones.data import shapes as drawn_scenes

# As for the commands, whose folder is on the path.
for name in ('draw_detections', 'draw_segmentation', 'trained_model'):
    sys.modules.setdefault(name, tool.load(name))
image_demo = tool.load('image_demo')
draw_feature_maps = tool.load('draw_feature_maps')
draw_position_bias = tool.load('draw_position_bias')


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Two drawn scenes, 96x64, in a folder with something else."""
    folder = tmp_path_factory.mktemp('photos')
    for i in range(2):
        image, *_ = drawn_scenes.scene(np.random.default_rng(i), 64, 96)
        cv2.imwrite(str(folder / f'scene {i}.png'), image)
    (folder / 'notes.txt').write_text('none of the images')
    return folder


@pytest.fixture(scope='module', params=['mmseg', 'mmdet'])
def model(request, tmp_path_factory):
    """The config of a small segmentor or detector and a checkpoint of it."""
    folder = tmp_path_factory.mktemp(request.param)
    config = small_models.segmentor(folder, 'CMT') if request.param == 'mmseg' else small_models.detector(folder)
    torch.manual_seed(0)
    built = image_demo.build_model(image_demo.read_config(config))
    torch.save(dict(state_dict=built.state_dict(), meta=dict(dataset_meta=built.dataset_meta)),
               folder / 'weights.pth')
    return config, str(folder / 'weights.pth')


def test_photos_become_pictures(model, photos, tmp_path):
    config, weights = model
    image_demo.main([str(photos), config, weights, '--out', str(tmp_path), '--score-thr', '0'])
    assert {path.name for path in tmp_path.iterdir()} == {'scene 0.png', 'scene 1.png'}
    for i in range(2):
        scene, picture = (cv2.imread(str(folder / f'scene {i}.png')) for folder in (photos, tmp_path))
        plain = cv2.resize(scene, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
        height, width = plain.shape[:2]
        left, right = picture[24:24 + height, :width], picture[24:24 + height, -width:]
        assert 0.01 < np.any(right != plain, axis=2).mean()
        if 'mmseg' in config:
            assert np.array_equal(left, plain) and picture.shape[1] > 2 * width
        else:
            assert picture.shape[1] == width


def test_the_deployed_form_gives_the_same_pictures(model, photos, tmp_path):
    config, weights = model
    for name, flags in dict(plain=[], deployed=['--deploy']).items():
        image_demo.main([str(photos / '*0.png'), config, weights, '--out', str(tmp_path / name),
                         '--score-thr', '0', '--device', 'cpu', *flags])
    plain, deployed = (cv2.imread(str(tmp_path / name / 'scene 0.png')) for name in ('plain', 'deployed'))
    assert np.mean(np.any(plain != deployed, axis=2)) < 0.01


def test_a_threshold_that_nothing_reaches(model, photos, tmp_path):
    config, weights = model
    if 'mmseg' in config:
        pytest.skip('segmentors have no threshold')
    photo = str(photos / 'scene 1.png')
    image_demo.main([photo, config, weights, '--out', str(tmp_path), '--score-thr', '1.1'])
    scene, picture = (cv2.imread(str(folder / 'scene 1.png')) for folder in (photos, tmp_path))
    assert np.array_equal(picture[24:], cv2.resize(scene, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC))


def test_what_cannot_be_drawn_is_refused_with_a_reason(model, photos, tmp_path):
    config, weights = model

    def refusal(*arguments):
        with pytest.raises(SystemExit) as error:
            image_demo.main([*map(str, arguments), '--out', str(tmp_path / 'out')])
        return str(error.value)

    assert 'there is no image' in refusal(photos / '*.gif', config, weights)
    assert 'there is no image' in refusal(tmp_path, config, weights)
    assert 'notes.txt cannot be read as an image' in refusal(photos / 'notes.txt', config, weights)
    cv2.imwrite(str(tmp_path / 'scene 0.jpg'), np.zeros((64, 64, 3), np.uint8))
    assert 'would both become scene 0.png' in refusal(photos, tmp_path / 'scene 0.jpg', config, weights)
    assert 'cannot read the config' in refusal(photos, tmp_path / 'nowhere.py', weights)
    (tmp_path / 'half.py').write_text('model = dict(')
    assert 'cannot read the config' in refusal(photos, tmp_path / 'half.py', weights)
    schedule = tool.ROOT / 'configs/mmdet/_base_/schedule_1x.py'
    assert 'is not the config of a detector or a segmentor' in refusal(photos, schedule, weights)
    assert 'cannot read the checkpoint' in refusal(photos, config, tmp_path / 'nowhere.pth')
    (tmp_path / 'torn.pth').write_bytes(open(weights, 'rb').read()[:-2000])
    assert 'cannot read the checkpoint' in refusal(photos, config, tmp_path / 'torn.pth')
    torch.save(dict(state_dict={'backbone.x': torch.zeros(1)}), tmp_path / 'other.pth')
    assert 'is not of this config' in refusal(photos, config, tmp_path / 'other.pth')


# ---------------------------------------------------------------------------- feature maps


def test_maps_of_four_strides(model, photos, tmp_path):
    config, weights = model
    built = draw_feature_maps.build_model(draw_feature_maps.read_config(config), weights)
    image = cv2.imread(str(photos / 'scene 0.png'))
    maps = draw_feature_maps.stage_maps(built, image)
    height, width = (107, 160) if 'mmseg' in config else (64, 96)  # the demo enlarges
    assert [tuple(m.shape) for m in maps] == [
        (channels, -(-height // stride), -(-width // stride))
        for channels, stride in zip((8, 16, 32, 64), (4, 8, 16, 32))]
    out = tmp_path / 'maps.png'
    draw_feature_maps.main([config, weights, str(photos / 'scene 0.png'), '--out', str(out)])
    picture = cv2.imread(str(out))
    assert picture.shape[1] > 3.5 * picture.shape[0] and len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    with pytest.raises(SystemExit, match='is not there or no image'):
        draw_feature_maps.main([config, weights, str(photos / 'notes.txt'), '--out', str(out)])


def test_places_of_one_feature_get_one_colour():
    torch.manual_seed(0)
    kinds = torch.randn(16, 3)
    which = torch.randint(3, (8, 12))
    picture = draw_feature_maps.principal_colours(kinds[:, which])
    assert picture.shape == (8, 12, 3) and 0 <= picture.min() and picture.max() <= 1
    colours = [picture[which.numpy() == kind] for kind in range(3)]
    for one in colours:
        assert np.abs(one - one[0]).max() < 1e-6
    assert all(np.abs(colours[i][0] - colours[i - 1][0]).max() > 0.3 for i in range(3))


def test_only_our_backbones_have_such_maps(photos):
    config = draw_feature_maps.read_config(tool.ROOT / 'benchmarks/configs/camvid_upernet_r18.py')
    built = draw_feature_maps.build_model(config)
    with pytest.raises(draw_feature_maps.ModelError, match='the backbone is a ResNet'):
        draw_feature_maps.stage_maps(built, np.zeros((64, 64, 3), np.uint8))


# ---------------------------------------------------------------------------- the position bias


def test_geometric_and_flat(tmp_path, capsys):
    draw_position_bias.main(['--out', str(tmp_path / 'bias.png'), '--shape', '320', '448'])
    printed = capsys.readouterr().out.splitlines()
    numbers = {line[:12].strip(): [float(number) for number in line[12:].split()] for line in printed[1:4]}
    assert {*numbers} == {'near', 'same row', 'same column'}
    assert all(geometric > 0.98 for geometric, _ in numbers.values())
    assert numbers['same column'][1] < 0.3 and numbers['near'][1] < 0.6
    assert cv2.imread(str(tmp_path / 'bias.png')).shape[1] > 1000
