"""CMT and ConvNeXt as backbones for MMDetection 3.x and MMSegmentation 1.x.

Importing this registers ``type='CMT'`` and ``type='ConvNeXt'`` in mmengine's root registry, where
mmdet, mmseg and any other scope find them.
"""
from importlib.util import find_spec

__version__ = '0.1.0'
__all__ = ['CMT', 'ConvNeXt', 'LayerDecayOptimWrapperConstructor', 'scaled_arch']

try:
    from . import openmmlab
    from .models.cmt import CMT
    from .models.convnext import ConvNeXt
    from .models.scaling import scaled_arch
    from .training import LayerDecayOptimWrapperConstructor
except ImportError as error:
    if (error.name or '').partition('.')[0] not in ('torch', 'mmengine'):
        raise
    # Not requirements by name: see setup.py.
    message = (f'cmt_backbones needs torch and mmengine 0.10 ({error}): `pip install torch mmengine`, '
               'or onedl-mmengine, and see the README for mmdet and mmseg')
    if find_spec('torch') or find_spec('mmengine'):
        raise ImportError(message) from None

    # Neither is there: a machine for exported files, which `cmt_backbones.export` runs without them.
    def __getattr__(name: str) -> None:
        if name in __all__:
            raise ImportError(message)
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
else:
    openmmlab.register()
