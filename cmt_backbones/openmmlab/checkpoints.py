"""Training checkpoints of mmengine, read without running what is pickled in them."""
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer

from ..weights.downloads import download
from ..weights.published import read_published
from ..weights.reading import read_torch

# mmengine 0.10.7 calls torch.load plainly. From torch 2.6 on this refuses its own checkpoints, whose
# message hub holds more than tensors; and from an URL it still unpickles anything.


def history_method(owner: Any, name: str) -> Any:
    """Stands for the `getattr` in a pickled HistoryBuffer, which names its statistics by it."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise ValueError(f'a checkpoint asks for the attribute {name!r} of {owner!r}')
    return getattr(owner, name)


def objects_of_a_run() -> dict:
    """What may be restored from a training checkpoint beside tensors, by the name in the pickle."""
    restored = {
        'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
        'builtins.getattr': history_method,
        'numpy.ndarray': np.ndarray,
        'numpy.dtype': np.dtype,
    }
    for core in ('numpy.core.multiarray', 'numpy._core.multiarray'):  # NumPy 1 and 2
        restored[f'{core}.scalar'] = np._core.multiarray.scalar
        restored[f'{core}._reconstruct'] = np._core.multiarray._reconstruct
    for code in '?bhilqBHILQefdgU':
        kind = type(np.dtype(code))
        restored[f'numpy.dtypes.{kind.__name__}'] = kind
    return restored


def load_from_disk(filename: str, map_location: Any = None, **options: Any) -> Any:
    """Reads a checkpoint for mmengine: tensors and what a run keeps beside them, never code."""
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'{filename} cannot be found')
    if path.suffix == '.safetensors':
        return read_published(path)
    try:
        return read_torch(path, objects_of_a_run(), map_location, **options)
    except ValueError as error:
        raise ValueError(f'cannot load {filename!r}: {error}') from None


def load_from_web(filename: str, map_location: Any = None) -> Any:
    return load_from_disk(str(download(filename)), map_location)
