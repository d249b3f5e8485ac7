"""What models find in photos, by tools/image_demo.py."""
import cv2
import numpy as np
import pytest
import torch

import tool


def test_photos_become_pictures(model, photos, tmp_path):
    config, weights = model
    tool.run('image_demo', photos, config, weights, '--out', tmp_path, '--score-thr', '0')
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
        tool.run('image_demo', photos / '*0.png', config, weights, '--out', tmp_path / name, '--score-thr', '0',
                 '--device', 'cpu', *flags)
    plain, deployed = (cv2.imread(str(tmp_path / name / 'scene 0.png')) for name in ('plain', 'deployed'))
    assert np.mean(np.any(plain != deployed, axis=2)) < 0.01


def test_a_threshold_that_nothing_reaches(model, photos, tmp_path):
    config, weights = model
    if 'mmseg' in config:
        pytest.skip('segmentors have no threshold')
    photo = str(photos / 'scene 1.png')
    tool.run('image_demo', photo, config, weights, '--out', tmp_path, '--score-thr', '1.1')
    scene, picture = (cv2.imread(str(folder / 'scene 1.png')) for folder in (photos, tmp_path))
    assert np.array_equal(picture[24:], cv2.resize(scene, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC))


def test_what_cannot_be_drawn_is_refused_with_a_reason(model, photos, tmp_path):
    config, weights = model

    def refusal(*arguments):
        with pytest.raises(SystemExit) as error:
            tool.run('image_demo', *arguments, '--out', tmp_path / 'out')
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
