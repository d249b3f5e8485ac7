"""Runs exported files: `cmt_backbones.export.load('detector.onnx')('photo.jpg')`.

Needs NumPy, onnxruntime (or OpenVINO) and Pillow or OpenCV, and nothing else: neither torch nor a package of
OpenMMLab, nor another file of this package, so that it may be copied beside an exported file.
"""
import contextlib
import json
import os
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

RUNTIMES = ('onnxruntime', 'openvino')
PathLike = Union[str, 'os.PathLike[str]']
Image = Union[PathLike, np.ndarray, Any]  # a file, (H, W, 3) uint8 RGB, or one of Pillow's


class ExportError(Exception):
    """Why a file cannot be written or run, in one line."""


class Detections(NamedTuple):
    """What a detector finds in an image, the surest first."""
    boxes: np.ndarray  # (n, 4), x1, y1, x2, y2 in pixels of the image
    scores: np.ndarray  # (n, )
    labels: np.ndarray  # (n, ), int64
    names: List[str]  # of the labels
    masks: Optional[np.ndarray] = None  # (n, H, W), bool


class Segmentation(NamedTuple):
    """The class of each pixel of an image."""
    labels: np.ndarray  # (H, W), int64
    classes: List[str]


def load(path: PathLike, runtime: str = 'onnxruntime', threads: int = 0) -> 'Predictor':
    """The predictor of a file that tools/export_onnx.py has written.

    Args:
        runtime (str): 'onnxruntime' or 'openvino'.
        threads (int): How many it may use; 0 leaves that to it.

    Raises:
        ExportError: It is not there or not ours, or a package is missing.
    """
    return Predictor(path, runtime, threads)


class Predictor:
    """Finds in images of any size what an exported file finds in its own; `info` is what the file says of itself."""

    def __init__(self, path: PathLike, runtime: str, threads: int) -> None:
        self.path = os.fspath(path)
        if runtime not in RUNTIMES:
            raise ExportError(f'the runtime is one of {", ".join(RUNTIMES)}, not {runtime!r}')
        if not os.path.isfile(self.path):
            raise ExportError(f'there is no file {self.path}: tools/export_onnx.py writes one')
        start = start_onnxruntime if runtime == 'onnxruntime' else start_openvino
        try:
            self.run, metadata = start(self.path, threads)
        except ImportError as error:
            raise ExportError(f'{error.name} is missing: pip install {error.name}') from None
        except Exception as error:  # each runtime has its own
            raise ExportError(f'{self.path} is no ONNX file that {runtime} can run: '
                              f'{str(error).strip().splitlines()[0]}') from None
        if 'cmt_backbones' not in metadata:
            raise ExportError(f'{self.path} has no metadata of cmt_backbones: it was not written by '
                              'tools/export_onnx.py, or as a backbone alone')
        self.info = read_metadata(metadata)

    def __call__(self, image: Image, score_threshold: float = 0.) -> Union[Detections, Segmentation]:
        """What there is in an image.

        Args:
            image: A file, an array (H, W, 3), uint8, RGB, or an image of Pillow.
            score_threshold (float): Leave out what a detector is less sure of; the file has one of its own.

        Raises:
            ExportError: It is no image.
        """
        image = read_image(image)
        if self.info['task'] == 'segmentation':
            return self.segment(image)
        return self.detect(image, score_threshold)

    def detect(self, image: np.ndarray, score_threshold: float) -> Detections:
        inputs, (height, width) = self.prepare(image)
        outputs = self.run(inputs)
        boxes, scores, labels = (output[0] for output in outputs[:3])
        chosen = np.flatnonzero((labels >= 0) & (scores >= score_threshold))
        if not self.info['nms']:
            chosen = chosen[suppress(boxes[chosen], labels[chosen], self.info['iou_threshold'])]
            chosen = chosen[:self.info['max_per_image']]
        limit = np.array([width, height] * 2, np.float32)
        scale = limit / np.array(image.shape[1::-1] * 2, np.float32)
        boxes = np.minimum(boxes[chosen], limit) / scale
        masks = None
        if len(outputs) > 3:
            masks = np.zeros((len(chosen), *image.shape[:2]), bool)
            for out, box, mask in zip(masks, boxes, outputs[3][0, chosen]):
                rows, columns, part = paste(mask, box, image.shape[:2])
                out[rows, columns] = part >= self.info['mask_threshold']
        labels = labels[chosen].astype(np.int64)
        return Detections(boxes, scores[chosen], labels, [self.info['classes'][i] for i in labels], masks)

    def segment(self, image: np.ndarray) -> Segmentation:
        windows = self.info.get('windows')
        if windows:
            logits = self.in_windows(image, windows)
        else:
            inputs, (height, width) = self.prepare(image)
            out, = self.run(inputs)
            logits = out[0, ..., :height, :width]
        size = image.shape[:2]
        if logits.ndim == 2:  # labels already
            rows, columns = (np.minimum((np.arange(n) + .5) * m / n, m - 1).astype(int)
                             for n, m in zip(size, logits.shape))
            labels = logits[rows[:, None], columns]
        else:
            labels = bilinear(logits.transpose(1, 2, 0), *size).argmax(2)
        return Segmentation(labels.astype(np.int64), self.info['classes'])

    def in_windows(self, image: np.ndarray, windows: dict) -> np.ndarray:
        """The logits (classes, H, W) of a resized image, averaged over windows that overlap."""
        (rows, columns), (down, across) = windows['size'], windows['stride']
        resized = resize(image, *self.resized(*image.shape[:2]))
        height, width = resized.shape[:2]
        if self.info['output'] == 'labels':
            if height > rows or width > columns:
                raise ExportError(f'{self.path} gives labels, and its config averages logits over windows of '
                                  f'{rows}x{columns}: export it with --logits for larger images')
            return self.run(self.normalise(resized, (rows, columns)))[0][0, :height, :width]
        total = np.zeros((len(self.info['classes']), height, width), np.float32)
        count = np.zeros((height, width), np.float32)
        for top in starts(height, rows, down):
            for left in starts(width, columns, across):
                place = slice(top, top + rows), slice(left, left + columns)
                window = resized[place]
                out, = self.run(self.normalise(window, (rows, columns)))
                total[(slice(None), *place)] += out[0, :, :window.shape[0], :window.shape[1]]
                count[place] += 1
        return total / count

    def prepare(self, image: np.ndarray) -> Tuple[np.ndarray, Tuple[int, int]]:
        """An image (H, W, 3) as the file takes it, and which part of that it fills, from the top left."""
        size = self.resized(*image.shape[:2])
        resized = resize(image, *size)
        if not self.info['dynamic']:
            return self.normalise(resized, self.info['size']), size
        step = self.info['multiple_of']
        return self.normalise(resized, [max(-(-side // step) * step, self.info['least']) for side in size]), size

    def resized(self, height: int, width: int) -> Tuple[int, int]:
        """The height and width that an image is brought to, as the config does, or to fit the file."""
        rule, fixed = self.info['resize'], None
        if not self.info['dynamic'] and 'windows' not in self.info:
            fixed = self.info['size']
        if rule is None:
            size = height, width
        elif not rule['keep_ratio']:
            size = tuple(rule['scale'][::-1])
        else:
            size = scaled(height, width, min(max(rule['scale']) / max(height, width),
                                             min(rule['scale']) / min(height, width)))
        if fixed and (size[0] > fixed[0] or size[1] > fixed[1]):
            size = scaled(height, width, min(fixed[0] / height, fixed[1] / width))
            size = min(size[0], fixed[0]), min(size[1], fixed[1])
        return size

    def normalise(self, image: np.ndarray, size: Sequence[int]) -> np.ndarray:
        """(H, W, 3), uint8, RGB, -> (1, 3, *size), with what is missing below and to the right as 0."""
        height, width = image.shape[:2]
        if self.info['input'] == 'uint8 RGB':
            mean = np.array(self.info['mean'][::1 if self.info['channel_order'] == 'RGB' else -1])
            out = np.broadcast_to(mean.round().astype(np.uint8)[:, None, None], (3, *size)).copy()
            out[:, :height, :width] = image.transpose(2, 0, 1)
            return out[None]
        if self.info['channel_order'] == 'BGR':
            image = image[..., ::-1]
        mean, std = (np.array(self.info[name], np.float32) for name in ('mean', 'std'))
        out = np.zeros((1, 3, *size), np.float32)
        out[0, :, :height, :width] = ((image - mean) / std).transpose(2, 0, 1)
        return out


def start_onnxruntime(path: str, threads: int) -> Tuple[Any, Dict[str, str]]:
    """How onnxruntime runs a file, from an array to a list of arrays, and the metadata of the file."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # what it folds and drops is no concern of a user
    session = onnxruntime.InferenceSession(path, options, providers=onnxruntime.get_available_providers())
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images}), session.get_modelmeta().custom_metadata_map


def start_openvino(path: str, threads: int, precision: str = 'f32') -> Tuple[Any, Dict[str, str]]:
    """The same by OpenVINO, on a CPU."""
    import openvino
    model = openvino.Core().read_model(path)
    metadata = {}
    if model.has_rt_info(['framework']):
        metadata = {key: str(value) for key, value in model.get_rt_info(['framework']).value.items()}
    config = dict(INFERENCE_PRECISION_HINT=precision, **(dict(INFERENCE_NUM_THREADS=threads) if threads else {}))
    compiled = openvino.Core().compile_model(model, 'CPU', config)
    return lambda images: [np.array(out) for out in compiled(images).values()], metadata


def read_metadata(metadata: Dict[str, str]) -> dict:
    """The metadata of a file: JSON, or a word."""
    out: dict = dict(metadata)
    for key, value in metadata.items():
        with contextlib.suppress(ValueError):
            out[key] = json.loads(value)
    return out


def read_image(image: Image) -> np.ndarray:
    """An image as (H, W, 3), uint8, RGB.

    Raises:
        ExportError: It cannot be read, or has another shape or type.
    """
    if isinstance(image, (str, os.PathLike)):
        path = os.fspath(image)
        image = read_file(path)
        if image is None:
            raise ExportError(f'{path} is not there or no image')
    elif not isinstance(image, np.ndarray) and hasattr(image, 'convert'):
        image = np.array(image.convert('RGB'))
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 \
            or not image.size:
        raise ExportError('an image is a file, an array (H, W, 3) of uint8 in RGB, or one of Pillow, not '
                          f'{getattr(image, "dtype", type(image).__name__)} {getattr(image, "shape", "")}')
    return image


def read_file(path: str) -> Optional[np.ndarray]:
    """An image file as (H, W, 3), uint8, RGB, turned upright; by OpenCV, which OpenMMLab reads with, or Pillow."""
    try:
        import cv2
    except ImportError:
        pass
    else:
        image = cv2.imread(path, cv2.IMREAD_COLOR)
        return None if image is None else np.ascontiguousarray(image[..., ::-1])
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise ExportError('neither Pillow nor OpenCV is there to read images: pip install pillow') from None
    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert('RGB'))
    except OSError:
        return None


def scaled(height: int, width: int, factor: float) -> Tuple[int, int]:
    """A size times a factor, rounded as mmcv does."""
    return max(int(height * factor + .5), 1), max(int(width * factor + .5), 1)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image (H, W, 3), uint8, in another size, by OpenCV where it is there."""
    if image.shape[:2] == (height, width):
        return image
    try:
        import cv2
    except ImportError:
        return (bilinear(image.astype(np.float32), height, width) + .5).astype(np.uint8)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def bilinear(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes (H, W, C) by two bilinear steps, as OpenCV and PyTorch do: without antialiasing."""
    for axis, size in enumerate((height, width)):
        old = x.shape[axis]
        if old == size:
            continue
        at = np.clip((np.arange(size, dtype=np.float32) + .5) * (old / size) - .5, 0, old - 1)
        low = at.astype(int)
        part = (at - low).reshape((-1, ) + (1, ) * (2 - axis)).astype(x.dtype)
        first, second = np.take(x, low, axis), np.take(x, np.minimum(low + 1, old - 1), axis)
        x = first + part * (second - first)
    return x


def starts(length: int, window: int, stride: int) -> List[int]:
    """Where windows begin along a side, the last at its end."""
    count = max(length - window + stride - 1, 0) // stride + 1
    return sorted({max(min(i * stride, length - window), 0) for i in range(count)})


def paste(mask: np.ndarray, box: np.ndarray, size: Tuple[int, int]) -> Tuple[slice, slice, np.ndarray]:
    """A mask (28, 28) of a box, in pixels: which rows and columns of an image, and how sure each pixel is.

    Bilinear between the centres of the cells, and 0 outside of them, as mmdet does it.
    """
    places, weights = [], []
    for low, high, side, cells in zip(box[1::-1], box[:1:-1], size, mask.shape):
        first, last = max(int(np.floor(low)) - 1, 0), min(int(np.ceil(high)) + 1, side)
        at = (np.arange(first, max(last, first)) + .5 - low) / max(high - low, 1e-6) * cells - .5
        places.append(slice(first, max(last, first)))
        weights.append(np.maximum(1 - np.abs(at[:, None] - np.arange(cells)), 0).astype(np.float32))
    return places[0], places[1], weights[0] @ mask @ weights[1].T


def suppress(boxes: np.ndarray, labels: np.ndarray, iou: float) -> np.ndarray:
    """Which boxes (n, 4), the surest first, are left when each class is thinned out."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    left, kept = np.arange(len(boxes)), []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        sides = np.minimum(boxes[best, 2:], boxes[left, 2:]) - np.maximum(boxes[best, :2], boxes[left, :2])
        inside = np.maximum(sides, 0).prod(1)
        overlap = inside / np.maximum(areas[best] + areas[left] - inside, 1e-9)
        left = left[(labels[left] != labels[best]) | (overlap <= iou)]
    return np.array(kept, np.int64)
