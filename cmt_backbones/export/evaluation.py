"""COCO AP or mIoU of an exported file, by the data set and the metric of a config."""
from typing import Dict, Union

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from tqdm import tqdm

from .predictor import Detections, ExportError, Predictor, Segmentation


def evaluate(predictor: Predictor, cfg: Config, limit: int = 0) -> Dict[str, float]:
    """The metrics of a config's test set for what an exported file finds in its photos.

    The photos are read from their files, not through the config's pipeline: the file's metadata say how they are
    resized and normalised.

    Args:
        predictor (Predictor): As from :func:`~cmt_backbones.export.load`.
        cfg (Config): Its `test_dataloader` and `test_evaluator` are used.
        limit (int): Look at the first photos only; 0 takes all.

    Raises:
        ExportError: The file is of other classes, or of another task.
    """
    task = dict(mmdet='detection', mmseg='segmentation')[cfg.default_scope]
    if predictor.info['task'] != task:
        raise ExportError(f'{predictor.path} is for {predictor.info["task"]}, and the config for {task}')
    init_default_scope(cfg.default_scope)
    data = dict(cfg.test_dataloader.dataset)
    if limit:
        data['indices'] = limit
    data = DATASETS.build(data)
    if list(data.metainfo['classes']) != predictor.info['classes']:
        raise ExportError(f'{predictor.path} knows {len(predictor.info["classes"])} classes that are not the '
                          f'{len(data.metainfo["classes"])} of the config: give the config it was exported by')
    evaluator = Evaluator(cfg.test_evaluator)
    evaluator.dataset_meta = data.metainfo
    for index in tqdm(range(len(data)), 'testing', unit='image'):
        path = data.get_data_info(index)['img_path']
        truth = data[index]['data_samples']  # the size of the photo, and for segmentors the labels
        evaluator.process(data_samples=[with_found(truth, predictor(path))], data_batch=None)
    return evaluator.evaluate(len(data))


def with_found(sample: object, found: Union[Detections, Segmentation]) -> object:
    """A data sample of mmdet or mmseg, with what a predictor finds in its image."""
    if isinstance(found, Segmentation):
        sample.pred_sem_seg = PixelData(data=torch.from_numpy(found.labels)[None])
        return sample
    objects = InstanceData(bboxes=torch.from_numpy(np.ascontiguousarray(found.boxes)),
                           scores=torch.from_numpy(found.scores), labels=torch.from_numpy(found.labels))
    if found.masks is not None:
        objects.masks = torch.from_numpy(found.masks)
    sample.pred_instances = objects
    return sample
