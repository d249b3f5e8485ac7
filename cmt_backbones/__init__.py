"""CMT and ConvNeXt as backbones for MMDetection 3.x and MMSegmentation 1.x.

Importing this registers ``type='CMT'`` in mmengine's root registry, where mmdet, mmseg and any
other scope find it.
"""
from .cmt import CMT

__version__ = '0.1.0'
__all__ = ['CMT']
