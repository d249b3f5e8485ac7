"""The tensors of a file, and nothing else of it: no code of a checkpoint runs."""
import os
import pickle
from pathlib import Path
from typing import Any, Callable, Dict, Mapping
from urllib.parse import urlparse

import torch
from torch import Tensor

from .downloads import download
from .layouts import StateDict
from .restricted import Inert, restricted_pickle


def read_checkpoint(checkpoint: str) -> StateDict:
    """The named tensors of a file or URL, and nothing else of it.

    Raises:
        ValueError: If the file is missing, damaged, not a checkpoint, or holds no tensors.
    """
    if urlparse(checkpoint).scheme in ('http', 'https'):
        path = download(checkpoint)
        try:
            return read_checkpoint(str(path))
        except ValueError as error:
            raise ValueError(f'{error} (its copy is {path}; remove that to fetch it again)') from None
    path = Path(checkpoint).expanduser()
    if not path.is_file():
        raise ValueError('there is no such file' + (', it is a folder' if path.is_dir() else ''))
    with path.open('rb') as file:
        head = file.read(512).lstrip().lower()
    if not head:
        raise ValueError('the file is empty; fetch it again')
    if head.startswith((b'<!doctype', b'<html', b'<?xml')):
        raise ValueError('the file is a web page, not a checkpoint; fetch it from the link to the '
                         'raw file')
    if head.startswith(b'version https://git-lfs'):
        raise ValueError('the file is a Git LFS pointer, not a checkpoint; run `git lfs pull`')
    content = read_safetensors(path) if path.suffix == '.safetensors' else read_torch(path)
    for key in ('state_dict', 'model'):  # of mmengine, and of the official training scripts
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        kind = content.path if isinstance(content, Inert) else type(content).__name__
        raise ValueError(f'the file holds a {kind}, not a dict of tensors')
    state = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not state:
        raise ValueError(f'the file holds no tensors; its keys are {list(content)[:5]}')
    return state


def read_safetensors(path: Path) -> Dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise ValueError('reading .safetensors needs `pip install safetensors`') from None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f'the file is damaged or no safetensors file ({error})') from None


def read_torch(path: Path, restored: Mapping[str, Callable] = {}, map_location: object = 'cpu',
               **options: Any) -> Any:
    """What ``torch.save`` wrote, with an :class:`~.restricted.Inert` in the place of all that is no weight.

    Training checkpoints hold more than tensors (an argparse Namespace, mmengine's HistoryBuffers),
    which ``weights_only=True`` refuses. Their classes are neither imported nor called here, but for
    those in `restored`, by the name that the file has for them.
    """
    if os.environ.get('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '').lower() in ('1', 'y', 'yes', 'true'):
        options['weights_only'] = True  # PyTorch then takes no other reader than its own
    else:
        options.update(pickle_module=restricted_pickle(restored), weights_only=False)
    try:
        if is_torchscript(path):  # for which torch.load runs the code in it
            raise pickle.UnpicklingError('it is a TorchScript program')
        return torch.load(str(path), map_location=map_location, **options)
    except Exception as error:
        # Of PyTorch's several lines, the one that is about this file.
        reason = str(error).split('WeightsUnpickler error:')[-1].strip().split('\n')[0][:200]
        raise ValueError('the file is damaged, no checkpoint of PyTorch, or holds code '
                         f'({reason or type(error).__name__})') from None


def is_torchscript(path: Path) -> bool:
    try:
        return 'constants.pkl' in torch._C.PyTorchFileReader(str(path)).get_all_records()
    except RuntimeError:  # no zip file
        return False
