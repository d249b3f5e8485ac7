"""Files that tools/publish.py makes: ``.safetensors`` whose header says what the weights are."""
import json
from pathlib import Path
from typing import Any, Dict, NamedTuple, Tuple

from torch import Tensor

from .reading import read_safetensors

# Under these names in the header, each as JSON; beside them `format`, which other readers ask for.
KEYS = ('name', 'part', 'arch', 'config', 'dataset_meta', 'epoch', 'iter', 'metrics', 'versions', 'licence', 'sha256')


class Header(NamedTuple):
    """The beginning of a ``.safetensors`` file."""
    shapes: Dict[str, Tuple[int, ...]]  # of its tensors
    dtypes: Dict[str, str]
    published: Dict[str, Any]  # empty for files of other makers


def read_header(path: Path) -> Header:
    """The header of a ``.safetensors`` file, without its weights.

    Raises:
        ValueError: If it has none.
    """
    with path.open('rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        try:
            if length > path.stat().st_size:
                raise ValueError(f'a header of {length} bytes')
            header = json.loads(file.read(length))
            told = header.pop('__metadata__', None) or {}
            shapes = {name: tuple(tensor['shape']) for name, tensor in header.items()}
            dtypes = {name: tensor['dtype'] for name, tensor in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'the file is damaged or no safetensors file ({error})') from None
    published = {key: json.loads(told[key]) for key in KEYS if key in told} if 'cmt_backbones' in told else {}
    return Header(shapes, dtypes, published)


def read_published(path: Path) -> Dict[str, Any]:
    """A ``.safetensors`` file as what mmengine expects of a checkpoint: ``state_dict`` and ``meta``."""
    told = read_header(path).published
    meta = {key: told[key] for key in ('dataset_meta', 'epoch', 'iter', 'metrics') if told.get(key) is not None}
    if told.get('config'):
        meta['cfg'] = told['config']
    state: Dict[str, Tensor] = read_safetensors(path)
    return dict(state_dict=state, meta=meta)
