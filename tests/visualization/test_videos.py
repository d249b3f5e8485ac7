"""Videos of what models find, by tools/image_demo.py."""
import cv2
import numpy as np
import pytest

import tool
from cmt_backbones.visualization import videos
from cmt_backbones.visualization.panels import DrawingError


@pytest.fixture
def video(photos, tmp_path):
    """Five frames of 96x64."""
    writer = cv2.VideoWriter(str(tmp_path / 'street.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 10, (96, 64))
    for i in range(5):
        writer.write(cv2.imread(str(photos / f'scene {i % 2}.png')))
    writer.release()
    return tmp_path / 'street.mp4'


def test_a_video_becomes_a_video(model, video, tmp_path):
    config, weights = model
    tool.run('image_demo', video, config, weights, '--out', tmp_path / 'out', '--score-thr', '0', '--frames', '2')
    drawn = cv2.VideoCapture(str(tmp_path / 'out/street.mp4'))
    frames = [*videos.read(drawn, None)]
    assert len(frames) == 2 and drawn.get(cv2.CAP_PROP_FPS) == 10
    assert frames[0].shape[1] >= 384 and frames[0].std() > 20


def test_pictures_of_other_sizes_are_fitted():
    picture = np.zeros((4, 6, 3), np.uint8)
    assert videos.fitted(picture, (4, 6)).shape == (6, 4, 3)
    assert videos.fitted(picture, (4, 6))[4:].min() == 255 and videos.fitted(picture, (4, 6))[:4].max() == 0


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / 'x.mp4').write_bytes(b'<html>')
    for source in (str(tmp_path / 'x.mp4'), '97'):
        with pytest.raises(DrawingError, match='cannot be opened as a video'):
            videos.draw_video(source, tmp_path / 'out.mp4', lambda frame: frame)
    assert videos.is_video('0') and videos.is_video('A.MOV') and not videos.is_video('photo.jpg')
