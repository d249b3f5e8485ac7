"""Configs that inherit from those of mmdet and mmseg, in whatever distributions these came."""
import importlib.metadata
import os
import threading
from typing import Union

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

lock = threading.Lock()


def config_from_file(path: 'Union[str, os.PathLike[str]]') -> Config:
    """``Config.fromfile``, which finds ``mmseg::`` where onedl-mmsegmentation provides it too.

    mmengine finds such configs through a fixed table of packages, in which mmseg is mmsegmentation. Under the
    name of a module that is no distribution, it looks for the module.
    """
    with lock:
        package = MODULE2PACKAGE['mmseg']
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            MODULE2PACKAGE['mmseg'] = 'mmseg'
        try:
            return Config.fromfile(path)
        finally:
            MODULE2PACKAGE['mmseg'] = package
