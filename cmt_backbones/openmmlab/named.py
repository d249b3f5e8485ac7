"""Checkpoints by their name on a hub, and ``.safetensors`` files, for mmengine's own loader.

``load_from``, ``tools/test.py`` and the inferencers of mmdet and mmseg go through that loader. These are names that
it has no loader for, so nothing of it is replaced.
"""
from mmengine.runner import CheckpointLoader

from .checkpoints import load_checkpoint

# mmengine takes them for regular expressions, the later in the alphabet before the earlier.
NAMES = ('hf-hub:', 'timm:', r'(?!\S*://).*\.safetensors$')


def register_names() -> None:
    """Adds the names; one that somebody else has registered stays theirs."""
    for name in NAMES:
        if name not in CheckpointLoader._schemes:
            CheckpointLoader.register_scheme(name, load_checkpoint)
