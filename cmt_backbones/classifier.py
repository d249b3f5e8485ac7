"""The ImageNet classifiers under their short name; they are in :mod:`cmt_backbones.models.classifier`."""
from .models.classifier import CMTClassifier, arch_of, cmt_base, cmt_small, cmt_tiny, cmt_xsmall

__all__ = ['CMTClassifier', 'arch_of', 'cmt_base', 'cmt_small', 'cmt_tiny', 'cmt_xsmall']
