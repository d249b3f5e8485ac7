"""Videos of what models find, by tools/image_demo.py."""
import os
import signal
import threading
import time

import cv2
import numpy as np
import pytest
from PIL import Image

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


@pytest.fixture
def camera(tmp_path, monkeypatch):
    """Webcam 0: JPEG after JPEG through a pipe that OpenCV opens, of which nobody knows the number of frames. What
    is not real is the pipe in the place of a device."""
    os.mkfifo(tmp_path / 'camera.mjpeg')

    def film():
        try:
            with open(tmp_path / 'camera.mjpeg', 'wb') as stream:
                for number in range(10_000):
                    stream.write(cv2.imencode('.jpg', np.full((64, 96, 3), number % 200, np.uint8))[1].tobytes())
        except BrokenPipeError:  # it was closed
            pass

    thread = threading.Thread(target=film, daemon=True)
    thread.start()
    capture = cv2.VideoCapture
    monkeypatch.setattr(cv2, 'VideoCapture', lambda source: capture(
        str(tmp_path / 'camera.mjpeg') if source == 0 else source))
    yield thread
    thread.join(20)
    assert not thread.is_alive()  # it was closed


def test_a_webcam_until_ctrl_c(camera, tmp_path):
    seen = []

    def draw(frame):
        seen.append(frame)
        time.sleep(.2)  # 5 frames at 25 a second
        if len(seen) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return Image.fromarray(frame)

    assert videos.draw_video('0', tmp_path / 'out.mp4', draw) == 3  # the fourth was broken off
    written = cv2.VideoCapture(str(tmp_path / 'out.mp4'))
    frames = [*videos.read(written, None)]
    assert written.get(cv2.CAP_PROP_FPS) == 25 and frames[0].shape == (64, 96, 3)
    assert len(frames) >= 5 + 5  # the later two as long as they took


def test_a_webcam_by_the_command(camera, model, tmp_path, capfd):
    tool.run('image_demo', '0', *model, '--out', tmp_path / 'out', '--frames', '2')
    assert cv2.VideoCapture(str(tmp_path / 'out/webcam_0.mp4')).isOpened()
    assert '0 pictures, 1 videos' in capfd.readouterr().out


def test_without_a_webcam_there_is_one_line(model, tmp_path, capfd):
    with pytest.raises(SystemExit) as ended:
        tool.run('image_demo', '97', *model, '--out', tmp_path / 'out')
    assert ended.value.code == 'image_demo: webcam 97 cannot be opened as a video'
    assert 'video97' not in capfd.readouterr().err  # of OpenCV


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
