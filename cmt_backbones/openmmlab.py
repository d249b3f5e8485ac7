"""What the versions of OpenMMLab's packages need from us; nothing else works around them.

Each part names the version and the fault, so that it can go when the fault does.
"""
import importlib
import importlib.metadata
import logging
import os
import warnings
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional, Union

import mmengine
import numpy as np
import torch
import torch.distributed
from mmengine.config import Config, ConfigDict
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import HistoryBuffer, print_log
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import CheckpointLoader
from mmengine.utils import digit_version
from torch import nn

from .pretrained import download, read_torch

# ---------------------------------------------------------------------------- checkpoints
# mmengine 0.10.7 calls torch.load plainly. From torch 2.6 on this refuses its own checkpoints, whose
# message hub holds more than tensors; and from an URL it still unpickles anything.


def history_method(owner: Any, name: str) -> Any:
    """Stands for the `getattr` in a pickled HistoryBuffer, which names its statistics by it."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise ValueError(f'a checkpoint asks for the attribute {name!r} of {owner!r}')
    return getattr(owner, name)


def objects_of_a_run() -> dict:
    """What may be restored from a training checkpoint beside tensors, by the name in the pickle."""
    restored = {
        'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
        'builtins.getattr': history_method,
        'numpy.ndarray': np.ndarray,
        'numpy.dtype': np.dtype,
    }
    for core in ('numpy.core.multiarray', 'numpy._core.multiarray'):  # NumPy 1 and 2
        restored[f'{core}.scalar'] = np._core.multiarray.scalar
        restored[f'{core}._reconstruct'] = np._core.multiarray._reconstruct
    for code in '?bhilqBHILQefdgU':
        kind = type(np.dtype(code))
        restored[f'numpy.dtypes.{kind.__name__}'] = kind
    return restored


def load_from_disk(filename: str, map_location: Any = None, **options: Any) -> Any:
    """Reads a checkpoint for mmengine: tensors and what a run keeps beside them, never code."""
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'{filename} cannot be found')
    try:
        return read_torch(path, objects_of_a_run(), map_location, **options)
    except ValueError as error:
        raise ValueError(f'cannot load {filename!r}: {error}') from None


def load_from_web(filename: str, map_location: Any = None) -> Any:
    return load_from_disk(str(download(filename)), map_location)


class WholeFiles(LocalBackend):
    """mmengine's files on the disk, but that one is either written whole or not there.

    mmengine 0.10.7 writes a checkpoint in its place: killed meanwhile, it leaves a torn one.
    """

    def put(self, obj: bytes, filepath: Union[str, Path]) -> None:
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
        with open(partial, 'wb') as file:
            file.write(obj)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)

    def put_text(self, obj: str, filepath: Union[str, Path], encoding: str = 'utf-8') -> None:
        self.put(obj.encode(encoding), filepath)


def register() -> None:
    """What importing the package sets up."""
    register_backend('local', WholeFiles, force=True, prefixes='')
    CheckpointLoader.register_scheme('', load_from_disk, force=True)
    CheckpointLoader.register_scheme(('http://', 'https://'), load_from_web, force=True)
    # mmengine finds `package::config` through a fixed table of packages. Ours is entered by one of its
    # modules: by its own name mmengine 0.10.7 would look for it in site-packages, where an editable
    # installation is not.
    MODULE2PACKAGE.setdefault('cmt_backbones', 'cmt_backbones.openmmlab')
    if not _is_distribution('mmsegmentation'):  # onedl-mmsegmentation, which the table does not know
        MODULE2PACKAGE['mmseg'] = 'mmseg'


def _is_distribution(name: str) -> bool:
    """As mmengine's `is_installed`, which in 0.10.7 needs pkg_resources."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


# ---------------------------------------------------------------------------- processes on CPUs


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """mmengine's wrapper for modules on CPUs: no device ids, and no SyncBN, which needs GPUs."""

    def __init__(self, module: nn.Module, **kwargs: Any) -> None:
        kwargs.update(device_ids=None, broadcast_buffers=False)
        super().__init__(revert_sync_batchnorm(module), **kwargs)

    def train(self, mode: bool = True) -> 'CPUDistributedDataParallel':
        """As ever; before an evaluation all processes take the running averages of the first.

        Those are the ones in its checkpoint. Without SyncBN each process has its own, and would
        evaluate its share of the images with them.
        """
        super().train(mode)
        if not mode:
            for buffer in self.module.buffers():
                torch.distributed.broadcast(buffer, 0)
        return self


def prepare_cpu_processes(cfg: Config) -> None:
    """Lets several processes without GPUs train or test together over gloo.

    mmengine's own start calls ``torch.cuda.set_device``; it leaves out a process group that is there.
    """
    if cfg.launcher != 'pytorch':
        raise ValueError(f'there is no GPU here, and without GPUs only the pytorch launcher works, not '
                         f'{cfg.launcher}: use tools/dist_train.sh or tools/dist_test.sh')
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    cfg.env_cfg.dist_cfg = dict(backend='gloo')
    cfg.model_wrapper_cfg = dict(type='CPUDistributedDataParallel',
                                 find_unused_parameters=cfg.get('find_unused_parameters', False))


# ---------------------------------------------------------------------------- tools


def load_config(args: SimpleNamespace) -> Config:
    """The config of a command of tools/, after the options that train and test share."""
    if not _has_pkg_resources():
        raise SystemExit('mmengine needs pkg_resources, which setuptools 81 was the last to have: '
                         'pip install "setuptools<81"')
    try:
        cfg = Config.fromfile(args.config)
        if cfg.get('default_scope') in ('mmdet', 'mmseg'):
            importlib.import_module('mmcv.ops')  # which mmcv-lite lacks, and a build for another torch
            importlib.import_module(cfg.default_scope)
    except ImportError as error:
        reason = str(error).strip().split('\n')[0]
        raise SystemExit(
            f'{args.config}: {reason}. Our configs need mmcv with its compiled operators and mmdet or '
            'mmsegmentation, in versions that fit each other, or the onedl-* forks of the three: '
            '`make setup` installs those of requirements/') from None
    cfg.launcher = args.launcher
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(args.config).stem)
    if cfg.launcher != 'none' and not torch.cuda.is_available():
        prepare_cpu_processes(cfg)
    return cfg


def _has_pkg_resources() -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            import pkg_resources  # noqa: F401
    except ImportError:
        # Fixed on mmengine's main branch and in onedl-mmengine.
        return digit_version(mmengine.__version__) > digit_version('0.10.7')
    return True


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
