"""Names in mmengine's registries. One that is taken stays with its owner."""
import warnings
from typing import Callable

from mmengine.registry import Registry


def register(registry: Registry, dotted_name: str) -> Callable[[type], type]:
    """A class decorator: registers a class under its name, unless somebody else has that name.

    mmengine's own decorator raises then, or with ``force=True`` takes the name away. By its dotted name a
    config finds the class in any case, without a registry.

    Args:
        registry: One of mmengine's root registries.
        dotted_name: From where the class can be imported, such as ``cmt_backbones.CMT``.
    """

    def decorate(cls: type) -> type:
        owner = getattr(registry.module_dict.get(cls.__name__), '__module__', None)
        if owner in (None, cls.__module__):  # free, or of an import before this one
            registry.register_module(module=cls, force=True)
        else:
            warnings.warn(f'type={cls.__name__!r} stays what {owner} registered as that in {registry.name!r}; '
                          f'the one of cmt_backbones is type={dotted_name!r}', stacklevel=2)
        return cls

    return decorate
