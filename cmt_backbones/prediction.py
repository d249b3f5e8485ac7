"""What a trained model finds in images, in three lines of Python.

    >>> model = load_model('configs/mmdet/mask_rcnn_cmt_s_1x.py', 'epoch_12.pth')
    >>> found = model.predict('photo.jpg')
    >>> found.names, found.boxes, found.draw().save('drawn.png')
"""
import csv
import os
from copy import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, List, Optional, Sequence, Union

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement
from PIL import Image
from torch import nn

from .openmmlab.amp import compute_by_amp
from .openmmlab.checkpoints import load_checkpoint
from .openmmlab.inference import build_model, predict, read_config
from .openmmlab.matching import ModelError, written_config

PathLike = Union[str, 'os.PathLike[str]']
ImageLike = Union[PathLike, np.ndarray]
EXPORTED = ('.onnx', )


class Prediction:
    """What a model found in one image.

    Attributes:
        image (np.ndarray): (H, W, 3), uint8, BGR.
        path (str): Of its file, or ''.
        classes (tuple[str, ...]): All that the model knows.
        boxes (np.ndarray): (n, 4), x1, y1, x2, y2 in pixels of the image, the surest first. Of segmentors,
            one around each class that is there.
        scores (np.ndarray): (n,); of segmentors, the share of the image.
        labels (np.ndarray): (n,), numbers of classes.
        names (list[str]): Of the classes of the boxes.
        masks (np.ndarray | None): (n, H, W), bool.
        label_map (np.ndarray | None): (H, W), of segmentors.
    """

    def __init__(self, image: np.ndarray, path: str, sample: Any, meta: dict, score_thr: float) -> None:
        self.image, self.path, self.score_thr = image, path, score_thr
        self.classes, self.palette = tuple(meta['classes']), meta.get('palette')
        self.label_map: Optional[np.ndarray] = None
        if 'pred_instances' in sample:
            found = sample.pred_instances.cpu()
            found = found[found.scores >= score_thr]
            self.boxes, self.scores = found.bboxes.double().numpy(), found.scores.double().numpy()
            self.labels = found.labels.numpy()
            self.masks = found.masks.numpy().astype(bool) if 'masks' in found else None
        else:
            self.label_map = sample.pred_sem_seg.data[0].cpu().numpy()
            self.labels, counts = np.unique(self.label_map, return_counts=True)
            self.scores = counts / self.label_map.size
            self.masks = np.stack([self.label_map == label for label in self.labels])
            self.boxes = np.array([box_around(mask) for mask in self.masks], float)
        self.names = [self.classes[label] for label in self.labels]

    def surer(self, score_thr: float) -> 'Prediction':
        """The same without what a detector is less sure of; nothing is computed anew."""
        if self.label_map is not None:
            return self
        out, count = copy(self), int((self.scores >= score_thr).sum())  # the surest come first
        out.score_thr = score_thr
        for name in ('boxes', 'scores', 'labels', 'names', 'masks'):
            value = getattr(self, name)
            setattr(out, name, None if value is None else value[:count])
        return out

    def draw(self) -> Image.Image:
        """A picture of it: boxes and masks over the image, or classes beside it."""
        from .visualization import photos
        rgb = np.ascontiguousarray(self.image[..., ::-1])
        if self.label_map is not None:
            return photos.draw_label_map(rgb, self.label_map, self.classes, self.palette)
        objects = dict(bboxes=self.boxes, labels=self.labels, scores=self.scores)
        if self.masks is not None:
            objects['masks'] = list(self.masks)
        return photos.draw_objects(rgb, objects, self.classes, self.score_thr)

    def annotations(self, image_id: int = 1, first_id: int = 1) -> List[dict]:
        """In COCO's form, with a score; categories count from 1, masks are run-length codes."""
        found = []
        for i, ((x1, y1, x2, y2), score, label) in enumerate(zip(self.boxes.tolist(), self.scores, self.labels)):
            one = dict(id=first_id + i, image_id=image_id, category_id=int(label) + 1, score=round(float(score), 5),
                       bbox=[round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)], iscrowd=0,
                       area=round((x2 - x1) * (y2 - y1), 2))
            if self.masks is not None:
                from pycocotools import mask as coco_mask
                code = coco_mask.encode(np.asfortranarray(self.masks[i].astype(np.uint8)))
                one.update(segmentation=dict(size=code['size'], counts=code['counts'].decode()),
                           area=int(self.masks[i].sum()))
            found.append(one)
        return found


class Predictor:
    """A detector or segmentor that takes images as they come. See :func:`load_model`."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @property
    def classes(self) -> tuple:
        return tuple(self.model.dataset_meta['classes'])

    def predict(self, images: Union[ImageLike, Sequence[ImageLike]], score_thr: float = 0.3) -> Any:
        """What the model finds in an image, or in each of a list.

        Args:
            images: A file, an array (H, W, 3), uint8, BGR as OpenCV reads it, or a list of such.
            score_thr: What a detector is less sure of is left out.

        Returns:
            Prediction | list[Prediction]: Of a list, a list.

        Raises:
            ModelError: Something is no image.
        """
        if isinstance(images, (list, tuple)):
            return [self.predict(image, score_thr) for image in images]
        image, path = (images, '') if isinstance(images, np.ndarray) else (cv2.imread(str(images)), str(images))
        if image is None or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            what = path if image is None else f'an array of {image.shape}, {image.dtype},'
            raise ModelError(f'{what} cannot be read as an image: give a file, or an array (H, W, 3) of uint8, BGR')
        return Prediction(image, path, self.find(image), self.model.dataset_meta, score_thr)

    def find(self, image: np.ndarray) -> Any:
        """A data sample of what is in an image (H, W, 3), uint8, BGR."""
        return predict(self.model, image)


class FilePredictor(Predictor):
    """The same of an exported file, which `file` runs."""

    def __init__(self, file: Any) -> None:
        super().__init__(SimpleNamespace(dataset_meta=file.info))
        self.file = file

    def find(self, image: np.ndarray) -> Any:
        from .export.evaluation import with_found
        return with_found(BaseDataElement(), self.file(np.ascontiguousarray(image[..., ::-1])))


def load_model(config: PathLike, checkpoint: Optional[PathLike] = None, device: Optional[str] = None,
               deploy: bool = False, options: Optional[dict] = None, amp: bool = False) -> Any:
    """A trained model to predict with.

    Args:
        config: A config, or alone a checkpoint of a training, which holds its config, or an exported file.
        checkpoint: File or URL.
        device: Such as ``'cuda:0'``; by default a GPU where there is one.
        deploy: Whether to fold the backbone for inference.
        options: Changes to the config, ``{'model.test_cfg.score_thr': 0.1}``.
        amp: Whether to predict by autocast: in fp16 on a GPU, in bf16 on a CPU that has it. Files stay as they are.

    Returns:
        Predictor: Of an exported file too; :func:`cmt_backbones.export.load` is what needs no torch.

    Raises:
        ModelError: There is no such model, or the checkpoint is of another one.
    """
    if checkpoint is None and str(config).endswith(EXPORTED):
        from .export import ExportError, load
        try:
            return FilePredictor(load(config))
        except ExportError as error:
            raise ModelError(str(error)) from None
    if checkpoint is None and not str(config).endswith('.py'):
        config, checkpoint = config_of(config), config
        config.merge_from_dict(options or {})
    else:
        config = read_config(config, options)
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    model = build_model(config, None if checkpoint is None else str(checkpoint), device, deploy)
    if amp:
        compute_by_amp(model)
    return Predictor(model)


def config_of(checkpoint: PathLike) -> Config:
    """The config that mmengine wrote into a checkpoint, read without running it."""
    try:
        found = load_checkpoint(str(checkpoint), 'cpu')
    except (OSError, ValueError) as error:
        raise ModelError(f'cannot read the checkpoint {checkpoint}: {error}') from None
    cfg = written_config(str((found.get('meta') or {}).get('cfg', '')))
    if 'model' not in cfg:
        raise ModelError(f'{checkpoint} holds no config of its training: give that as well')
    return Config(cfg)


def box_around(mask: np.ndarray) -> List[int]:
    """x1, y1, x2, y2 of what is set in a mask (H, W)."""
    (y1, *_, y2), (x1, *_, x2) = (np.flatnonzero(mask.any(axis)).repeat(2) for axis in (1, 0))
    return [x1, y1, x2 + 1, y2 + 1]


# ---------------------------------------------------------------------------- files


class Records:
    """What was found in image after image, kept without the images.

    Args:
        classes: All that the model knows.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.images: List[dict] = []
        self.annotations: List[dict] = []
        self.categories = [dict(id=i, name=name) for i, name in enumerate(classes, 1)]

    def add(self, found: Prediction) -> None:
        height, width = found.image.shape[:2]
        number = len(self.images) + 1
        self.images.append(dict(id=number, file_name=Path(found.path).name, height=height, width=width))
        self.annotations += found.annotations(number, len(self.annotations) + 1)

    def as_coco(self) -> dict:
        """One annotation file in COCO's form, each annotation with a score."""
        return dict(images=self.images, annotations=self.annotations, categories=self.categories)

    def write_csv(self, path: PathLike) -> None:
        """A line for each object: file, class, score, and its box in pixels."""
        with open(path, 'w', newline='', encoding='utf-8') as file:
            writer = csv.writer(file)
            writer.writerow(['file', 'class', 'score', 'x1', 'y1', 'x2', 'y2'])
            for one in self.annotations:
                x, y, width, height = one['bbox']
                writer.writerow([self.images[one['image_id'] - 1]['file_name'],
                                 self.categories[one['category_id'] - 1]['name'], one['score'],
                                 x, y, round(x + width, 2), round(y + height, 2)])
