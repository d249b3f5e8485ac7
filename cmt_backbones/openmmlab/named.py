"""Checkpoints by their name on a hub, and ``.safetensors`` files, for mmengine's own loader.

``load_from``, ``tools/test.py`` and the inferencers of mmdet and mmseg go through that loader. These are names that
it has no loader for, so nothing of it is replaced.
"""
from typing import Any

from mmengine.runner import CheckpointLoader

from ..weights import local_file
from ..weights.published import read_published
from .checkpoints import load_from_disk

# mmengine takes them for regular expressions, the longer before the shorter.
NAMES = ('hf-hub:', 'timm:', r'[^:]*\.safetensors$')


def load_by_name(filename: str, map_location: Any = None) -> Any:
    """What such a name stands for, with the config and classes of a published file as its ``meta``."""
    with local_file(filename) as path:
        if path.suffix == '.safetensors':
            return read_published(path)
        return load_from_disk(str(path), map_location)


def register_names() -> None:
    """Adds the names; one that somebody else has registered stays theirs."""
    for name in NAMES:
        if name not in CheckpointLoader._schemes:
            CheckpointLoader.register_scheme(name, load_by_name)
