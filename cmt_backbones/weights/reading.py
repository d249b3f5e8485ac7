"""The tensors of a file, and nothing else of it: no code of a checkpoint runs."""
import os
import pickle
from pathlib import Path
from typing import Any, Callable, Dict, Mapping

import torch
from torch import Tensor

from .layouts import StateDict
from .restricted import Inert, restricted_pickle
from .sources import HUB_PREFIXES, local_file, scheme_of


def read_checkpoint(checkpoint: str) -> StateDict:
    """The named tensors of a file, and nothing else of it.

    Args:
        checkpoint: Its path or another name of :func:`~cmt_backbones.weights.sources.local_file`.

    Raises:
        WeightsNotFound: If it cannot be had; a ValueError and a FileNotFoundError.
        ValueError: If the file is damaged, not a checkpoint, or holds no tensors.
    """
    with local_file(checkpoint) as path:
        try:
            return tensors_of(read_file(path))
        except ValueError as error:
            if scheme_of(checkpoint) in ('', 'file') and not checkpoint.startswith(HUB_PREFIXES):
                raise
            raise ValueError(f'{error} (its copy is {path}; remove that to fetch it again)') from None


def read_file(path: Path, restored: Mapping[str, object] = {}, map_location: object = 'cpu') -> Any:
    """What a file holds: tensors by name, or what is around them in one of ``torch.save``.

    Raises:
        ValueError: If it is damaged or not a checkpoint.
    """
    with path.open('rb') as file:
        head = file.read(512)
    if head[8:10] == b'{"' or path.suffix == '.safetensors' and not is_text(head):
        return read_safetensors(path)
    if not head:
        raise ValueError('the file is empty; fetch it again')
    if is_text(head) == 'page':
        raise ValueError('the file is a web page, not a checkpoint; fetch it from the link to the '
                         'raw file')
    if is_text(head) == 'pointer':
        raise ValueError('the file is a Git LFS pointer, not a checkpoint; run `git lfs pull`')
    return read_torch(path, restored, map_location)


def is_text(head: bytes) -> str:
    """'page' or 'pointer' for what servers and git give in the place of a file, '' for anything else."""
    head = head.lstrip().lower()
    if head.startswith((b'<!doctype', b'<html', b'<?xml')):
        return 'page'
    return 'pointer' if head.startswith(b'version https://git-lfs') else ''


def tensors_of(content: Any) -> StateDict:
    """The named tensors of what a file held; ValueError if there are none."""
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
