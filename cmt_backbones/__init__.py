"""CMT and ConvNeXt as backbones for MMDetection 3.x and MMSegmentation 1.x.

Importing this registers ``type='CMT'`` and ``type='ConvNeXt'`` in mmengine's root registry, where
mmdet, mmseg and any other scope find them.
"""
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
    raise ImportError(f'cmt_backbones needs torch and mmengine 0.10 ({error}): `pip install torch mmengine`, '
                      'or onedl-mmengine, and see the README for mmdet and mmseg') from None

__version__ = '0.1.0'
__all__ = ['CMT', 'ConvNeXt', 'LayerDecayOptimWrapperConstructor', 'scaled_arch']

openmmlab.register()
