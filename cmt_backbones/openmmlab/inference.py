"""The model of a config with the weights of a checkpoint, for the commands that look at one."""
import os
from typing import Optional, Union

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.structures import BaseDataElement
from torch import nn

from ..models.backbone import switch_to_deploy
from .checkpoints import load_checkpoint
from .configs import config_with
from .matching import ConfigError, ModelError, check_weights
from .operators import check_device

PathLike = Union[str, 'os.PathLike[str]']


def read_config(path: PathLike, options: Optional[dict] = None) -> Config:
    """The config of a detector or segmentor, after changes to it.

    Raises:
        ModelError: It is not there, cannot be read, or is of something else.
    """
    try:
        cfg = config_with(path, options)
    except ConfigError as error:
        raise ModelError(str(error)) from None
    if cfg.get('default_scope') not in ('mmdet', 'mmseg') or 'backbone' not in cfg.get('model', {}):
        raise ModelError(f'{path} is not the config of a detector or a segmentor: it needs a `model` with a '
                         "`backbone`, and default_scope='mmdet' or 'mmseg'")
    return cfg


def build_model(cfg: Config, checkpoint: Optional[str] = None, device: str = 'cpu',
                deploy: bool = False) -> nn.Module:
    """A detector or segmentor in eval mode, with its config as `cfg`.

    Args:
        cfg: As from :func:`read_config`.
        checkpoint: File or URL of a training; without one the weights are random.
        device: Such as `cuda:0`.
        deploy: Whether to fold the backbone for inference.

    Raises:
        ModelError: The checkpoint cannot be read or does not fill the model, nothing can be folded, or the device is
            a GPU and mmcv's operators have no CUDA.
    """
    check_device(device)
    init_default_scope(cfg.default_scope)
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    meta = load_weights(model, checkpoint, cfg.model) if checkpoint else {}
    if 'dataset_meta' not in meta:
        meta['dataset_meta'] = DATASETS.build(dict(cfg.test_dataloader.dataset, lazy_init=True)).metainfo
    model.cfg, model.dataset_meta = cfg, meta['dataset_meta']
    if deploy and not switch_to_deploy(model):
        raise ModelError('the deployed form is one of the backbones of cmt_backbones, and the model has none')
    return model.to(device)


def load_weights(model: nn.Module, checkpoint: str, cfg: Optional[dict] = None) -> dict:
    """Fills a model, wholly, and returns what the checkpoint holds beside the weights as `meta`.

    Args:
        cfg: Of the model, for an error to say what differs in the checkpoint's.
    """
    try:
        found = load_checkpoint(checkpoint, 'cpu')
    except (OSError, ValueError) as error:
        raise ModelError(f'cannot read the checkpoint {checkpoint}: {error}') from None
    check_weights(model, found, checkpoint, cfg or {})
    model.load_state_dict(found.get('state_dict', found), strict=False)
    return dict(found.get('meta', {}))


def prepare(model: nn.Module, image: np.ndarray) -> dict:
    """A batch of one image (H, W, 3), uint8, BGR, as the test pipeline of the model's config gives it."""
    init_default_scope(model.cfg.default_scope)
    steps = model.cfg.test_dataloader.dataset.pipeline[1:]  # after the one that reads a file
    steps = [step for step in steps if 'Annotations' not in step['type']]
    data = Compose([dict(type='LoadImageFromNDArray'), *steps])(dict(img=image, img_id=0))
    return dict(inputs=[data['inputs']], data_samples=[data['data_samples']])


@torch.no_grad()
def predict(model: nn.Module, image: np.ndarray) -> BaseDataElement:
    """What a model of :func:`build_model` predicts for an image (H, W, 3), uint8, BGR.

    Returns:
        DetDataSample | SegDataSample: In the pixels of the image.
    """
    sample, = model.test_step(prepare(model, image))
    return sample
