"""The options that the commands of tools/ share, applied to a config."""
import importlib
import logging
import os
import shutil
import sysconfig
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Iterator, Optional

import mmengine
import torch
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.utils import digit_version

from ..models.backbone import switch_to_deploy
from ..registration import register
from . import operators
from .configs import config_with
from .matching import ConfigError, ModelError
from .processes import prepare_cpu_processes
from .terminal import without_warnings_of_others


def load_config(args: SimpleNamespace) -> Config:
    """The config of a command of tools/, after the options that train and test share."""
    if not _has_pkg_resources():
        raise SystemExit('mmengine needs pkg_resources, which setuptools 81 was the last to have: '
                         'pip install "setuptools<81"')
    try:
        cfg = config_with(args.config, args.cfg_options)
        if cfg.get('default_scope') in ('mmdet', 'mmseg'):
            importlib.import_module('mmcv.ops')  # which compiled operators for another torch break
            importlib.import_module(cfg.default_scope)
    except ImportError as error:
        reason = str(error).strip().split('\n')[0]
        raise SystemExit(
            f'{args.config}: {reason}. Our configs need torchvision, mmcv (mmcv-lite will do) and mmdet or '
            'mmsegmentation, in versions that fit each other, or the onedl-* forks of the three: '
            '`make setup` installs those of requirements/') from None
    use_tf32(not getattr(args, 'no_tf32', False))
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(args.config).stem)
    if cfg.launcher != 'none' and not torch.cuda.is_available():
        prepare_cpu_processes(cfg)
    return cfg


def _has_pkg_resources() -> bool:
    try:
        with without_warnings_of_others():
            import pkg_resources  # noqa: F401
    except ImportError:
        # Fixed on mmengine's main branch and in onedl-mmengine.
        return digit_version(mmengine.__version__) > digit_version('0.10.7')
    return True


def use_tf32(wanted: bool) -> None:
    """Lets GPUs multiply float32 by their TF32 units, or forbids it, for products and convolutions alike.

    PyTorch by itself lets convolutions use them and products not. With them float32 has 10 bits of mantissa
    in a product, and two runs of different kernels differ by some 1e-3.
    """
    torch.set_float32_matmul_precision('high' if wanted else 'highest')
    torch.backends.cudnn.allow_tf32 = wanted


@contextmanager
def tf32(wanted: bool) -> Iterator[None]:
    """:func:`use_tf32` for a while: comparisons are made without."""
    precision, allowed = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    use_tf32(wanted)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """What a user can mend ends a command with what it says, and Ctrl-C without a word."""
    try:
        yield
    except (ConfigError, ModelError) as error:
        raise SystemExit(f'{command}: {error}') from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None  # what a shell reports for a process that Ctrl-C ended


def fit_to_device(cfg: Config) -> Optional[str]:
    """Lets a recipe of mixed precision train where there is no GPU, and tells how; refuses a GPU without operators.

    mmengine's AmpOptimWrapper asserts a GPU. On CPUs bf16 autocast is possible (:func:`~.amp.use_amp`), and faster than
    float32 on processors that have it (docs/training.md). A recipe of mixed precision does not say which, and is
    trained in float32.

    Raises:
        ModelError: There is a GPU, and mmcv's operators have no CUDA.
    """
    if torch.cuda.is_available():
        operators.check_device('cuda')
        return None
    if cfg.get('optim_wrapper', {}).get('type') != 'AmpOptimWrapper':
        return None
    cfg.optim_wrapper.type = 'OptimWrapper'
    for key in ('loss_scale', 'dtype', 'use_fsdp'):
        cfg.optim_wrapper.pop(key, None)
    return 'no GPU here: training in float32 instead of mixed precision; --amp bf16 is for processors that have it'


def use_tta(cfg: Config) -> None:
    """Makes a config test with the augmentations of its `tta_pipeline`.

    Detectors without one are tested as they are and flipped, as mmdet's own test.py does.
    """
    if cfg.default_scope == 'mmdet' and 'tta_pipeline' not in cfg:
        print_log('the config has no tta_pipeline: testing plain and flipped', 'current', logging.WARNING)
        cfg.tta_model = dict(type='DetTTAModel',
                             tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
        pack = deepcopy(cfg.test_dataloader.dataset.pipeline[-1])
        pack.meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip',
                          'flip_direction')
        flips = [dict(type='RandomFlip', prob=prob) for prob in (1., 0.)]
        cfg.tta_pipeline = [*cfg.test_dataloader.dataset.pipeline[:-1],
                            dict(type='TestTimeAug', transforms=[flips, [pack]])]
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def show_predictions(cfg: Config, folder: Optional[str]) -> None:
    """Makes a test draw its predictions into a folder."""
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise ValueError("--show-dir needs a visualization hook in the config's default_hooks, such "
                         "as dict(type='DetVisualizationHook')")
    hook.draw = True
    if cfg.default_scope == 'mmdet':
        hook.test_out_dir = folder
    else:
        cfg.visualizer.save_dir = folder


@register(HOOKS, 'cmt_backbones.openmmlab.DeployHook')
class DeployHook(Hook):
    """Tests backbones in their deployed form, once the checkpoint is loaded."""

    def before_test(self, runner: Runner) -> None:
        if not switch_to_deploy(runner.model):
            raise ValueError('--deploy needs a backbone of cmt_backbones, and the model has none')


class CompileHook(Hook):
    """Compiles the backbones of a model in place, for images of all sizes; the weights keep their names.

    Raises:
        ConfigError: PyTorch would write code for the CPU, and there is nothing to compile it with.
    """

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            compiler, header = os.environ.get('CXX', 'g++'), Path(sysconfig.get_path('include')) / 'Python.h'
            missing = [f'a C++ compiler ({compiler})'] * (shutil.which(compiler) is None)
            missing += [f'the headers of Python ({header})'] * (not header.exists())
            if missing:
                raise ConfigError(f'--compile needs {" and ".join(missing)} on CPUs: apt-get install g++ python3-dev')

    def before_train(self, runner: Runner) -> None:
        if not torch.cuda.is_available():
            import torch._inductor.config as inductor
            inductor.layout_optimization = False  # pytorch#172204: no code for training at dynamic sizes
        self.compile(runner)

    def compile(self, runner: Runner) -> None:
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        model.backbone.compile(dynamic=True)

    before_test = compile
