"""What the versions of OpenMMLab's packages need from us; nothing else works around them.

Each part names the version and the fault, so that it can go when the fault does.
"""
import importlib.metadata

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.fileio import register_backend
from mmengine.runner import CheckpointLoader

from .checkpoints import load_from_disk, load_from_web
from .files import WholeFiles
from .options import DeployHook, load_config, show_predictions, use_tta
from .processes import CPUDistributedDataParallel, prepare_cpu_processes

__all__ = ['CPUDistributedDataParallel', 'DeployHook', 'WholeFiles', 'load_config', 'load_from_disk', 'load_from_web',
           'prepare_cpu_processes', 'register', 'show_predictions', 'use_tta']


def register() -> None:
    """What importing the package sets up."""
    register_backend('local', WholeFiles, force=True, prefixes='')
    CheckpointLoader.register_scheme('', load_from_disk, force=True)
    CheckpointLoader.register_scheme(('http://', 'https://'), load_from_web, force=True)
    # mmengine finds `package::config` through a fixed table of packages. Ours is entered by one of its
    # modules: by its own name mmengine 0.10.7 would look for it in site-packages, where an editable
    # installation is not.
    MODULE2PACKAGE.setdefault('cmt_backbones', 'cmt_backbones.classifier')
    if not _is_distribution('mmsegmentation'):  # onedl-mmsegmentation, which the table does not know
        MODULE2PACKAGE['mmseg'] = 'mmseg'


def _is_distribution(name: str) -> bool:
    """As mmengine's `is_installed`, which in 0.10.7 needs pkg_resources."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
