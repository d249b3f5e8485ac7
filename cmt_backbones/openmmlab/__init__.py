"""What the versions of OpenMMLab's packages need from us; nothing else works around them.

Each part names the version and the fault, so that it can go when the fault does. Importing this adds to mmengine
and PyTorch what our configs name, and replaces nothing: the backend ``'whole'`` for files that are written whole,
a model wrapper for CPU processes, a loader for ``hf-hub:`` and ``timm:`` names and ``.safetensors`` files, from torch
2.6 on that mmengine's own checkpoints may be loaded, and torchvision's operators for an mmcv that has none.
"""
import warnings

from mmengine.fileio import register_backend

from .amp import AmpHook, CPUAmpOptimWrapper, use_amp
from .checkpoints import let_mmengine_resume, load_from_disk, read_without_pickle
from .configs import config_from_file, config_with
from .files import BACKEND, WholeFiles
from .matching import CheckpointMatches, ConfigError, ModelError
from .named import register_names
from .operators import provide as provide_operators
from .options import (
    CompileHook,
    DeployHook,
    fit_to_device,
    load_config,
    one_line_errors,
    show_predictions,
    use_tf32,
    use_tta,
)
from .processes import CPUDistributedDataParallel, ended_in_order, prepare_cpu_processes
from .services import LOGGERS, log_to
from .terminal import BriefRunner, LoggedImages, Progress, without_warnings_of_others

__all__ = ['LOGGERS', 'AmpHook', 'BriefRunner', 'CPUAmpOptimWrapper', 'CPUDistributedDataParallel', 'CheckpointMatches',
           'CompileHook', 'ConfigError', 'DeployHook', 'LoggedImages', 'ModelError', 'Progress', 'WholeFiles',
           'config_from_file', 'config_with', 'ended_in_order', 'fit_to_device', 'load_config',
           'load_from_disk', 'log_to', 'one_line_errors', 'prepare_cpu_processes', 'provide_operators',
           'read_without_pickle', 'show_predictions', 'use_amp', 'use_tf32', 'use_tta', 'without_warnings_of_others']

try:
    register_backend(BACKEND, WholeFiles)
except ValueError:  # of another package, or of an import before this one
    warnings.warn(f'the file backend {BACKEND!r} stays what was registered under that name before', stacklevel=2)
let_mmengine_resume()
register_names()
provide_operators()
