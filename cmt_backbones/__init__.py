"""CMT and ConvNeXt as backbones for MMDetection 3.x and MMSegmentation 1.x.

Importing this registers ``type='CMT'`` and ``type='ConvNeXt'`` in mmengine's root registry, where
mmdet, mmseg and any other scope find them.
"""
from . import openmmlab
from .cmt import CMT
from .convnext import ConvNeXt
from .layer_decay import LayerDecayOptimWrapperConstructor
from .scaling import scaled_arch

__version__ = '0.1.0'
__all__ = ['CMT', 'ConvNeXt', 'LayerDecayOptimWrapperConstructor', 'scaled_arch']

openmmlab.register()
