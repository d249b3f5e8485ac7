"""What the page of tools/web_demo.py shows, without the page: photos in, pictures and tables out.

A model looks at a photo once. What it found and what its backbone computed are kept for the last few photos, so
that another threshold, point or block only draws anew.
"""
import hashlib
import threading
import warnings
from collections import Counter
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..models.cmt import CMT
from ..openmmlab.matching import ModelError
from .attention_maps import Attention, draw
from .feature_maps import STRIDES, principal_colours, stage_maps
from .panels import DrawingError, tile, titled
from .photos import draw_label_map

LONG_SIDE = 2048  # pixels: larger photos are made smaller before models see them
MOST_PIXELS = 120e6  # a photo beyond is not read: it would take a GB
MAP_WIDTH = 508  # pixels of the picture of one stage


class Photo(NamedTuple):
    """A photo as models get it."""
    image: np.ndarray  # (H, W, 3), uint8, BGR
    scale: float  # by which it was made smaller
    key: str  # another one for other pixels
    said: str  # its name and size, and what was done to it


def read_photo(path: str, name: str) -> Photo:
    """Reads a photo, upright, and makes a large one smaller.

    Args:
        path: Of the file.
        name: Of the file where it comes from.

    Raises:
        DrawingError: It is no image, or too large a one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            with Image.open(path) as header:  # reads no pixels
                pixels = header.width * header.height
    except Image.DecompressionBombError:
        pixels = np.inf
    except (UnidentifiedImageError, OSError):
        raise DrawingError(f'{name} is no image: drop a JPEG, PNG, WebP, BMP or TIFF') from None
    if pixels > MOST_PIXELS:
        raise DrawingError(f'{name} has more than {MOST_PIXELS / 1e6:.0f} megapixels: make it smaller first')
    image = cv2.imread(path, cv2.IMREAD_COLOR)
    if image is None:
        raise DrawingError(f'{name} cannot be read by OpenCV, though it may be an image: save it as JPEG or PNG')
    height, width = image.shape[:2]
    scale, said = min(LONG_SIDE / max(height, width), 1), f'{name}: {width} x {height}'
    if scale < 1:
        size = max(round(width * scale), 1), max(round(height * scale), 1)
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        said += f', made smaller to {size[0]} x {size[1]} before the model sees it'
    return Photo(image, scale, hashlib.sha1(image.tobytes() + repr(image.shape).encode()).hexdigest(), said)


class Look(NamedTuple):
    """What a backbone computed for a photo."""
    maps: List[Tensor]  # (C, H_i, W_i) by stage
    attention: Optional[Attention]  # None of a ConvNeXt


class Found(NamedTuple):
    """What a model found in a photo."""
    picture: Image.Image
    headers: List[str]  # of the rows
    rows: List[list]  # an object each, the surest first, or a class and its share
    said: str  # in a line


class Explorer:
    """Models to try, by name, as from :func:`cmt_backbones.load_model`; safe to use from several threads."""

    def __init__(self, models: Dict[str, Any]) -> None:
        self.models = models
        self.keep = len(models) + 1  # masks and queries of a photo may take some 100 MB
        self.kept: Dict[tuple, Any] = {}
        self.lock = threading.Lock()

    def once(self, kind: str, name: str, photo: Photo, compute: Callable[[], Any]) -> Any:
        """What `compute` gives for a model and a photo, computed once while it is among the last ones."""
        key = kind, name, photo.key
        value = self.kept.get(key)
        if value is not None:  # also while a model runs
            return value
        with self.lock:
            value = self.kept.get(key)
            if value is None:
                value = self.kept[key] = compute()
                for old in [other for other in self.kept if other[0] == kind][:-self.keep]:
                    del self.kept[old]
        return value

    def found(self, name: str, photo: Photo) -> Any:
        """The :class:`~cmt_backbones.prediction.Prediction` of a model, of any score."""
        return self.once('found', name, photo, lambda: self.models[name].predict(photo.image, 0.))

    def look(self, name: str, photo: Photo) -> Look:
        """What the backbone of a model computed.

        Raises:
            ModelError: There is none, as of an exported file, or none of this package.
        """
        model = self.models[name].model

        def compute() -> Look:
            if isinstance(model.backbone, CMT):
                attention = Attention(model, photo.image)
                return Look(attention.stage_maps, attention)
            return Look(stage_maps(model, photo.image), None)

        if not hasattr(model, 'backbone'):
            raise ModelError(f'{name} is an exported file, which gives predictions alone. The maps of its stages and '
                             'its attention need the model: start the page with its config and checkpoint')
        return self.once('look', name, photo, compute)

    def depths(self, name: str) -> List[int]:
        """How many blocks with attention each stage of a model has; none without a CMT."""
        backbone = getattr(self.models[name].model, 'backbone', None)
        return [len(stage.blocks) for stage in backbone.stages] if isinstance(backbone, CMT) else []

    # ------------------------------------------------------------------------ pictures

    def predictions(self, name: str, photo: Photo, score_thr: float) -> 'Found':
        """What a model found, of a score or more where it has scores."""
        found = self.found(name, photo)
        if found.label_map is not None:
            rows = [[label, f'{share:.1%}'] for share, label in sorted(zip(found.scores, found.names), reverse=True)]
            rgb = np.ascontiguousarray(photo.image[..., ::-1])
            picture = draw_label_map(rgb, found.label_map, found.classes, found.palette, beside=False)
            return Found(picture, ['class', 'share of the photo'], rows, f'{len(rows)} classes')
        found = found.surer(score_thr)
        counts = ', '.join(f'{count} {label}' for label, count in Counter(found.names).most_common())
        boxes = np.round(found.boxes).astype(int).tolist()
        rows = [[label, round(float(score), 2), *box] for label, score, box in zip(found.names, found.scores, boxes)]
        return Found(found.draw(), ['class', 'score', 'x1', 'y1', 'x2', 'y2'], rows,
                     f'{len(rows)} objects with a score of {score_thr:g} or more{counts and ": " + counts}')

    def stages(self, name: str, photo: Photo) -> Image.Image:
        """The maps of the stages in the colours of :mod:`.feature_maps`."""
        size = MAP_WIDTH, max(round(MAP_WIDTH * photo.image.shape[0] / photo.image.shape[1]), 1)
        pictures = []
        for i, (features, stride) in enumerate(zip(self.look(name, photo).maps, STRIDES)):
            colours = np.nan_to_num(principal_colours(features))  # a map of one pixel has none
            channels, rows, columns = features.shape
            pictures.append(titled(cv2.resize((colours * 255).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST),
                                   f'stage {i + 1}: {channels} channels, {rows} x {columns}, stride {stride}'))
        return tile(pictures, 2)

    def attention(self, name: str, photo: Photo, point: Sequence[float], stage: int,
                  block: Optional[int]) -> Image.Image:
        """Where a model attends from a point (x, y) of the photo; see :func:`.attention_maps.draw`."""
        attention = self.look(name, photo).attention
        if attention is None:
            kind = type(self.models[name].model.backbone).__name__
            raise ModelError(f'the backbone is a {kind}, which has no attention: its maps are under Stages')
        return draw(attention, photo.image, point, stage, block)
