"""CMT and ConvNeXt as backbones for MMDetection 3.x and MMSegmentation 1.x.

Importing this registers names in mmengine's root registries, where mmdet, mmseg and any other scope find
them: ``CMT`` and ``ConvNeXt``, the constructor for layer decay, and the hooks of :mod:`.training`. It changes
nothing else of the process; what a run may want beyond that is in :mod:`.openmmlab`.
"""
from importlib import import_module
from importlib.util import find_spec
from typing import Any

__version__ = '0.1.0'
__all__ = ['CMT', 'ConvNeXt', 'LayerDecayOptimWrapperConstructor', 'scaled_arch']

try:
    import mmengine
    import numpy
    import torch
except ImportError as error:
    if (error.name or '').partition('.')[0] not in ('torch', 'numpy', 'mmengine'):
        raise
    # Not requirements by name: see setup.py.
    message = (f'cmt_backbones needs torch and mmengine 0.9 or later ({error}): `pip install torch '
               'mmengine`, or onedl-mmengine, and see the README for mmdet and mmseg')
    if find_spec('torch') or find_spec('mmengine'):
        raise ImportError(message) from None

    # Neither is there: a machine for exported files, which `cmt_backbones.export` runs without them.
    def __getattr__(name: str) -> Any:
        if name in (*__all__, 'load_model'):
            raise ImportError(message)
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
else:
    from .versions import check_versions

    check_versions({module.__name__: module.__version__ for module in (torch, numpy, mmengine)})

    from mmengine.config.utils import MODULE2PACKAGE

    from .models.cmt import CMT
    from .models.convnext import ConvNeXt
    from .models.scaling import scaled_arch
    from .training import LayerDecayOptimWrapperConstructor

    # mmengine finds `package::config` through a fixed table of packages. Ours is entered by one of its modules: by
    # its own name mmengine 0.10.7 would look for it in site-packages, where an editable installation is not.
    MODULE2PACKAGE.setdefault('cmt_backbones', 'cmt_backbones.registration')

    def __getattr__(name: str) -> Any:  # what is heavy to import, and not needed to build a model
        if name == 'load_model':
            return import_module('.prediction', __name__).load_model
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
