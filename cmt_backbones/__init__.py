"""CMT and ConvNeXt as backbones for MMDetection 3.x and MMSegmentation 1.x.

Importing this registers ``type='CMT'`` and ``type='ConvNeXt'`` in mmengine's root registry, where
mmdet, mmseg and any other scope find them.
"""
from . import hooks, openmmlab, resuming  # noqa: F401  (registers the hooks)
from .cmt import CMT
from .convnext import ConvNeXt
from .layer_decay import LayerDecayOptimWrapperConstructor

__version__ = '0.1.0'
__all__ = ['CMT', 'ConvNeXt', 'LayerDecayOptimWrapperConstructor']

openmmlab.register()
