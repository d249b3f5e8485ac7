"""Short runs of small detectors and segmentors on drawn scenes, within this process."""
import copy
import functools
import itertools
import os
import signal
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS, TRANSFORMS
from mmengine.runner import Runner

from cmt_backbones.data.shapes import make_shapes
from cmt_backbones.openmmlab import config_from_file

ROOT = Path(__file__).parents[2]
ARCH = dict(stem_channels=4, embed_dims=(8, 16, 24, 32), depths=(1, 1, 2, 1), mlp_ratio=2,
            pretrain_img_size=32)
NUMBERS = itertools.count()


def draw(folder, images=9, val=3):
    make_shapes(folder, images, val, 0, [(96, 64), (64, 96)])
    return folder


@OPTIM_WRAPPERS.register_module(force=True)
class ScaledCPUAmpOptimWrapper(AmpOptimWrapper):
    """mmengine's AMP with a scaler for CPUs; its own is for GPUs alone. The scale changes every 2 steps."""

    def __init__(self, **kwargs):
        OptimWrapper.__init__(self, **kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', growth_interval=2)
        self._scale_update_param, self.cast_dtype = None, torch.bfloat16


@functools.lru_cache
def read(config):
    return config_from_file(ROOT / 'configs' / config)


def base(config, scenes, work_dir):
    cfg = copy.deepcopy(read(config))
    cfg.work_dir, cfg.launcher = str(work_dir), 'none'
    cfg.experiment_name = f'run_{os.getpid()}_{next(NUMBERS)}'  # runs of one second would share their logs
    cfg.visualizer.name = cfg.experiment_name  # else a run writes into the folder of an earlier one in this process
    cfg.merge_from_dict(dict(
        model=dict(backbone=dict(drop_path_rate=.3, norm_eval=True)), log_level='WARNING',
        env_cfg=dict(mp_cfg=dict(mp_start_method='fork')), randomness=dict(seed=3),
        optim_wrapper=dict(type='ScaledCPUAmpOptimWrapper')))
    cfg.model.backbone.arch = ARCH
    cfg.custom_hooks.append(dict(type='EMAHook', momentum=.1))
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.batch_size, loader.dataset.data_root = 2, f'{scenes}/'
    return cfg


def detector(scenes, work_dir, workers=2):
    """RetinaNet, 2 epochs of 5 iterations, validated after each."""
    cfg = base('mmdet/retinanet_cmt_ti_shapes.py', scenes, work_dir)
    cfg.merge_from_dict(dict(
        model=dict(neck=dict(in_channels=[16, 24, 32], out_channels=16, num_outs=3),
                   bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1,
                                  anchor_generator=dict(strides=[8, 16, 32]))),
        train_dataloader=dict(num_workers=workers, persistent_workers=workers > 0),
        val_dataloader=dict(num_workers=0, persistent_workers=False),
        train_cfg=dict(max_epochs=2, val_interval=1), default_hooks=dict(checkpoint=dict(max_keep_ckpts=2))))
    cfg.param_scheduler = [dict(type='LinearLR', start_factor=.1, by_epoch=False, begin=0, end=8),
                           dict(type='MultiStepLR', by_epoch=True, begin=0, end=2, milestones=[1], gamma=.5)]
    cfg.val_evaluator.ann_file = cfg.test_evaluator.ann_file = f'{scenes}/annotations/val.json'
    return cfg


def segmentor(scenes, work_dir, workers=2):
    """UperNet, 7 iterations, validated at the end; its batches go over the set more than once."""
    cfg = base('mmseg/upernet_cmt_ti_shapes.py', scenes, work_dir)
    cfg.merge_from_dict(dict(
        model=dict(data_preprocessor=dict(size=(64, 96)),
                   decode_head=dict(in_channels=[8, 16, 24, 32], channels=16, pool_scales=(1, 2)),
                   auxiliary_head=dict(in_channels=24, channels=16)),
        train_dataloader=dict(num_workers=workers, persistent_workers=workers > 0),
        val_dataloader=dict(num_workers=0, persistent_workers=False),
        train_cfg=dict(max_iters=7, val_interval=7),
        default_hooks=dict(checkpoint=dict(interval=3, save_best=None))))
    cfg.train_dataloader.dataset.pipeline.insert(2, dict(type='RandomCrop', crop_size=(48, 64)))
    cfg.train_dataloader.dataset.pipeline[3].scale = (96, 64)
    return cfg


@TRANSFORMS.register_module(force=True)
class SpoilImages:
    """Sets all pixels of some images to one value."""

    def __init__(self, names, value):
        self.names, self.value = tuple(names), value

    def __call__(self, results):
        results['img'] = results['img'].astype('float32')
        if results['img_path'].endswith(self.names):
            results['img'][:] = self.value
        return results


def spoiled(make, scenes, work_dir, names, value, **options):
    """A run over one image at a time, some of them spoiled, with options for FiniteLossHook."""
    cfg = make(scenes, work_dir, workers=0)
    cfg.train_dataloader.dataset.pipeline.insert(2, dict(type='SpoilImages', names=list(names), value=value))
    cfg.train_dataloader.batch_size = 1
    cfg.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
    cfg.train_cfg.pop('val_interval')
    hook, = [hook for hook in cfg.custom_hooks if hook.type == 'FiniteLossHook']
    hook.update(options)
    return cfg


@HOOKS.register_module(force=True)
class At(Hook):
    """Calls a function at a point of a run, once."""
    priority = 'HIGHEST'

    def __init__(self, point, iteration, function):
        self.iteration, self.function = iteration, function
        setattr(self, point, self.call)

    def call(self, runner, **kwargs):
        if runner.iter == self.iteration:
            self.iteration = None
            self.function(runner)


def sigterm(runner):
    os.kill(os.getpid(), signal.SIGTERM)


def train(cfg, *hooks):
    runner = Runner.from_cfg(cfg)
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()
    return runner


def assert_same(one, other, where='', atol=1e-6):
    """Equal numbers in checkpoints: to 1e-6 where they are real."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.shape == other.shape, where
        assert torch.allclose(one.double(), other.double(), rtol=0, atol=atol), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f'{where}.{key}', atol)
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other)):
            assert_same(*pair, f'{where}[{i}]', atol)
    elif isinstance(one, float):
        assert abs(one - other) <= atol, where
    else:
        assert one == other, where
