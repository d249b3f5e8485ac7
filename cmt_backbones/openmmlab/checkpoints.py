"""Training checkpoints of mmengine: read without running what is pickled in them, or by mmengine itself."""
import logging
from argparse import Namespace
from collections import defaultdict, deque
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader

from ..weights.published import read_published
from ..weights.reading import read_torch
from ..weights.restricted import Inert
from ..weights.sources import HUB_PREFIXES, local_file, scheme_of

core = np._core if hasattr(np, '_core') and hasattr(np._core, 'multiarray') else np.core  # NumPy 2 and 1


def history_method(owner: Any, name: str) -> Any:
    """Stands for the `getattr` in a pickled HistoryBuffer, which names its statistics by it."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise ValueError(f'a checkpoint asks for the attribute {name!r} of {owner!r}')
    return getattr(owner, name)


def objects_of_a_run() -> Dict[str, Callable]:
    """What mmengine's own checkpoints hold beside tensors, by the name in the pickle."""
    objects = {
        'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
        'builtins.getattr': history_method,
        'numpy.ndarray': np.ndarray,
        'numpy.dtype': np.dtype,
    }
    for name in ('numpy.core.multiarray', 'numpy._core.multiarray'):  # NumPy 1 and 2
        objects[f'{name}.scalar'] = core.multiarray.scalar
        objects[f'{name}._reconstruct'] = core.multiarray._reconstruct
    return objects


def plain_objects() -> Dict[str, Callable]:
    """What projects put beside that, and which does nothing but hold values."""
    objects = {f'builtins.{kind.__name__}': kind for kind in (bool, int, float, str, list, tuple, dict, slice, range)}
    for module in ('pathlib', 'pathlib._local'):  # the latter in Python 3.13
        for name in ('PosixPath', 'WindowsPath'):
            objects[f'{module}.{name}'] = Path
    return {**objects, 'argparse.Namespace': Namespace, 'collections.defaultdict': defaultdict,
            'collections.deque': deque}


def let_mmengine_resume() -> None:
    """Tells PyTorch that what mmengine's own checkpoints hold may be loaded.

    mmengine 0.10.7 calls torch.load plainly. From torch 2.6 on this refuses its own checkpoints. What a
    project has told PyTorch itself stays as it is.
    """
    if not hasattr(torch.serialization, 'get_unsafe_globals_in_checkpoint'):  # of 2.6, as is what it is for
        return
    told = {item[1] if isinstance(item, tuple) else f'{item.__module__}.{item.__qualname__}'
            for item in torch.serialization.get_safe_globals()}
    objects = {**objects_of_a_run(), **{f'numpy.dtypes.{kind.__name__}': kind for kind in dtype_classes()}}
    torch.serialization.add_safe_globals([(value, name) for name, value in objects.items() if name not in told])


def dtype_classes() -> List[type]:
    """The classes of NumPy's dtypes, which PyTorch asks for one by one."""
    return [type(np.dtype(code)) for code in '?bhilqBHILQefdgU']


def load_from_disk(filename: str, map_location: Any = None, **options: Any) -> Any:
    """Reads a checkpoint for mmengine: tensors and what a run keeps beside them, never code.

    Objects that would need code to be restored are left out, with a warning that names them.
    """
    content = read_run(filename, map_location, **options)
    content, left_out = without_inert(content)
    if left_out:
        print_log(f'{filename}: left out, since no code of a checkpoint is run to restore it: '
                  + ', '.join(f'{place} (a {path})' for place, path in left_out), 'current', logging.WARNING)
    return content


def read_run(filename: str, map_location: Any = None, **options: Any) -> Any:
    """As :func:`load_from_disk`, with an Inert in the place of what is not restored."""
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'{filename} cannot be found')
    if path.suffix == '.safetensors':
        return read_published(path)
    try:
        return read_torch(path, {**plain_objects(), **objects_of_a_run()}, map_location, **options)
    except ValueError as error:
        raise ValueError(f'cannot load {filename!r}: {error}') from None


def without_inert(content: Any, place: str = '') -> Tuple[Any, List[Tuple[str, str]]]:
    """Content without the :class:`Inert` in it, and where they were, each with the class in the file."""
    if isinstance(content, Inert) or isinstance(content, type) and issubclass(content, Inert):
        return None, [(place or 'all of it', content.path)]
    left_out = []
    if isinstance(content, dict):
        for key in list(content):
            value, inside = without_inert(content[key], f'{place}.{key}' if place else str(key))
            if inside and value is None:
                del content[key]
            elif inside:
                content[key] = value
            left_out += inside
    elif type(content) in (list, tuple):
        pairs = [without_inert(value, f'{place}[{i}]') for i, value in enumerate(content)]
        left_out = [found for _, inside in pairs for found in inside]
        if left_out:
            content = type(content)(value for value, _ in pairs)
    elif isinstance(content, (Namespace, HistoryBuffer)):
        left_out = without_inert(vars(content), place)[1]
    return content, left_out


def load_checkpoint(filename: str, map_location: Any = None) -> Any:
    """Reads a checkpoint by any name that ``init_cfg`` takes: a file, URL or name on a hub, never running code."""
    if not scheme_of(filename) and not filename.startswith(HUB_PREFIXES):
        return load_from_disk(filename, map_location)
    with local_file(filename) as path:
        return load_from_disk(str(path), map_location)


def read_without_pickle() -> None:
    """Makes mmengine read checkpoints by :func:`load_checkpoint` from now on, in the whole process.

    For commands, whose process is their own.
    """
    CheckpointLoader.register_scheme('', load_from_disk, force=True)
    CheckpointLoader.register_scheme(('http://', 'https://'), load_checkpoint, force=True)
