"""What a model finds in the frames of a video or a webcam, as a video."""
from pathlib import Path
from time import monotonic
from typing import Any, Callable, Iterator, Optional, Union

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from .panels import PAPER, DrawingError

SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v')


def is_video(name: str) -> bool:
    """A video by its suffix, or a webcam by its number."""
    return name.isdigit() or name.lower().endswith(SUFFIXES)


def draw_video(source: str, out: Path, draw: Callable[[np.ndarray], Image.Image],
               frames: Optional[int] = None) -> int:
    """Writes a video of what is drawn of each frame; Ctrl-C ends it in order.

    A webcam goes on while a frame is drawn: its video shows each picture as long as that took, and so takes the
    time that it shows.

    Args:
        source: A file, or the number of a webcam.
        out: File, ``.mp4``.
        draw: Makes a picture of a frame (H, W, 3), uint8, BGR. All are cut to or filled up to the size of the
            first.
        frames: How many at most.

    Returns:
        int: How many were drawn.

    Raises:
        DrawingError: The source cannot be read, or nothing can be written.
    """
    live = source.isdigit()
    capture = opened(int(source) if live else source)
    if not capture.isOpened():
        raise DrawingError(f'{"webcam " * live}{source} cannot be opened as a video')
    rate = capture.get(cv2.CAP_PROP_FPS) or 25
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    total = min(frames or total, total) if total > 0 else frames  # a webcam has none, or a senseless one
    writer: Any = None
    drawn = written = 0
    try:
        for frame in tqdm(read(capture, frames), Path(source).name, total, unit='frame'):
            picture = np.asarray(draw(frame))[..., ::-1]
            if writer is None:
                size = [side - side % 2 for side in picture.shape[1::-1]]  # codecs want even sides
                writer = cv2.VideoWriter(str(out), cv2.VideoWriter_fourcc(*'mp4v'), rate, size)
                if not writer.isOpened():
                    raise DrawingError(f'{out} cannot be written as a video')
                start = monotonic()
            drawn += 1
            due = max(written + 1, round((monotonic() - start) * rate)) if live else drawn
            for _ in range(due - written):
                writer.write(fitted(picture, size))
            written = due
    except KeyboardInterrupt:  # a webcam has no end
        pass
    finally:
        capture.release()
        if writer is not None:
            writer.release()
    if not drawn:
        raise DrawingError(f'{source} has no frame that can be read')
    return drawn


def opened(source: Union[int, str]) -> cv2.VideoCapture:
    """Of a webcam, such that no frames wait that are older than the last; without OpenCV's lines if there is none."""
    set_level = getattr(cv2, 'setLogLevel', None) or cv2.utils.logging.setLogLevel  # OpenCV 4, and 5
    level = set_level(0)
    try:
        capture = cv2.VideoCapture(source)
        if isinstance(source, int):
            capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        return capture
    finally:
        set_level(level)


def read(capture: cv2.VideoCapture, frames: Optional[int]) -> Iterator[np.ndarray]:
    number = 0
    while frames is None or number < frames:
        there, frame = capture.read()
        if not there:
            return
        number += 1
        yield frame


def fitted(picture: np.ndarray, size: Union[list, tuple]) -> np.ndarray:
    """A picture (H, W, 3) cut to a size (width, height), or with paper where it is smaller."""
    width, height = size
    out = np.full((height, width, 3), PAPER[0], np.uint8)
    part = picture[:height, :width]
    out[:part.shape[0], :part.shape[1]] = part
    return out
