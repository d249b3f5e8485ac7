"""Configs that inherit from those of mmdet and mmseg, in whatever distributions these came."""
import importlib.metadata
import os
import threading
from typing import Optional, Union

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE, ConfigParsingError

from .matching import ConfigError

PathLike = Union[str, 'os.PathLike[str]']
lock = threading.Lock()


def config_from_file(path: PathLike) -> Config:
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


def config_with(path: PathLike, options: Optional[dict]) -> Config:
    """A config file with what `--cfg-options` changes.

    Raises:
        ConfigError: There is none, it is not whole, or it and its bases or the options do not fit together.
    """
    try:
        cfg = config_from_file(path)
    except (OSError, SyntaxError, ConfigParsingError, TypeError, KeyError) as error:
        raise ConfigError(f'cannot read the config {path}: {told(error)}') from None
    try:
        cfg.merge_from_dict(options or {})
    except (TypeError, KeyError) as error:
        raise ConfigError(f'--cfg-options do not fit the config {path}: {told(error)}') from None
    return cfg


def told(error: Exception) -> str:
    """What an error says; of a KeyError without the quotes around it."""
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
