"""CMT and ConvNeXt as backbones for MMDetection 3.x and MMSegmentation 1.x.

Importing this registers names in mmengine's root registries, where mmdet, mmseg and any other scope find
them: ``CMT`` and ``ConvNeXt``, the constructor for layer decay, and the hooks of :mod:`.training`. It changes
nothing else of the process; what a run may want beyond that is in :mod:`.openmmlab`.
"""
try:
    import mmengine
    import numpy
    import torch
except ImportError as error:
    if (error.name or '').partition('.')[0] not in ('torch', 'numpy', 'mmengine'):
        raise
    # Not requirements by name: see setup.py.
    raise ImportError(f'cmt_backbones needs torch and mmengine 0.9 or later ({error}): `pip install torch '
                      'mmengine`, or onedl-mmengine, and see the README for mmdet and mmseg') from None

from .versions import check_versions

check_versions({module.__name__: module.__version__ for module in (torch, numpy, mmengine)})

import importlib  # noqa: E402
from typing import Any  # noqa: E402

from mmengine.config.utils import MODULE2PACKAGE  # noqa: E402

from .models.cmt import CMT  # noqa: E402
from .models.convnext import ConvNeXt  # noqa: E402
from .models.scaling import scaled_arch  # noqa: E402
from .training import LayerDecayOptimWrapperConstructor  # noqa: E402

__version__ = '0.1.0'
__all__ = ['CMT', 'ConvNeXt', 'LayerDecayOptimWrapperConstructor', 'scaled_arch']

# mmengine finds `package::config` through a fixed table of packages. Ours is entered by one of its modules: by
# its own name mmengine 0.10.7 would look for it in site-packages, where an editable installation is not.
MODULE2PACKAGE.setdefault('cmt_backbones', 'cmt_backbones.registration')


def __getattr__(name: str) -> Any:  # what is heavy to import, and not needed to build a model
    if name == 'load_model':
        return importlib.import_module('.prediction', __name__).load_model
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
