"""What the versions of OpenMMLab's packages need from us; nothing else works around them.

Each part names the version and the fault, so that it can go when the fault does. Importing this adds to mmengine
and PyTorch what our configs name, and replaces nothing: the backend ``'whole'`` for files that are written whole,
a model wrapper for CPU processes, a loader for ``hf-hub:`` and ``timm:`` names and ``.safetensors`` files, and, from
torch 2.6 on, that mmengine's own checkpoints may be loaded.
"""
import warnings

from mmengine.fileio import register_backend

from .checkpoints import let_mmengine_resume, load_from_disk, load_from_web, read_without_pickle
from .configs import config_from_file
from .files import BACKEND, WholeFiles
from .named import register_names
from .options import DeployHook, load_config, show_predictions, use_tta
from .processes import CPUDistributedDataParallel, ended_in_order, prepare_cpu_processes

__all__ = ['CPUDistributedDataParallel', 'DeployHook', 'WholeFiles', 'config_from_file', 'ended_in_order',
           'load_config', 'load_from_disk', 'load_from_web', 'prepare_cpu_processes', 'read_without_pickle',
           'show_predictions', 'use_tta']

try:
    register_backend(BACKEND, WholeFiles)
except ValueError:  # of another package, or of an import before this one
    warnings.warn(f'the file backend {BACKEND!r} stays what was registered under that name before', stacklevel=2)
let_mmengine_resume()
register_names()
