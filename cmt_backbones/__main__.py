"""What a bug report should say about an installation: `python -m cmt_backbones`.

With a file, `python -m cmt_backbones FILE`: what weights it holds, and which networks and configs it fits.
"""
import importlib
import importlib.util
import platform
import sys
from collections import Counter, defaultdict
from importlib import metadata
from typing import Dict, List, Mapping, Sequence

import torch

from . import __version__

# What is not installed, or does not import, is told and not an error.
MODULES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'timm', 'torchvision', 'cv2', 'numpy', 'setuptools')


def module_line(module: str, distributions: Mapping[str, List[str]]) -> str:
    """The version of a module, the distribution that it comes from, and why it does not import.

    Args:
        module: For example ``mmseg``, which mmsegmentation or onedl-mmsegmentation may provide.
        distributions: The distributions that provide a module, by its name.
    """
    if importlib.util.find_spec(module) is None:
        return 'not installed'
    names = sorted(set(distributions.get(module, [])))
    line = ', '.join(f'{metadata.version(name)} ({name})' for name in names) or 'not from a distribution'
    return line + import_error(module)


def distributions_by_module() -> Mapping[str, List[str]]:
    """The names of the distributions that provide a module, as Python itself tells from 3.10 on."""
    if hasattr(metadata, 'packages_distributions'):
        return metadata.packages_distributions()
    found: Dict[str, List[str]] = defaultdict(list)
    for distribution in metadata.distributions():
        told = (distribution.read_text('top_level.txt') or '').split()
        for module in told or {file.parts[0] for file in distribution.files or []}:
            found[module].append(distribution.metadata['Name'])
    return found


def import_error(module: str) -> str:
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever a broken installation raises
        reason = (str(error).strip().splitlines() or [''])[0]
        return f'; cannot be imported: {type(error).__name__}: {reason}'
    return ''


def mmcv_operators() -> str:
    """Whose operators mmcv has, and for which CUDA they were compiled."""
    if importlib.util.find_spec('mmcv') is None:
        return 'not installed'
    from .openmmlab import operators
    operators.provide()
    error = import_error('mmcv.ops')
    if error:
        return 'of another torch, or torchvision is missing' + error
    from mmcv.ops import get_compiler_version, get_compiling_cuda_version
    return f'compiler {get_compiler_version()}; CUDA {get_compiling_cuda_version()}'


def gpus() -> str:
    if not torch.cuda.is_available():
        return 'none'
    names = Counter(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return ', '.join(f'{count} x {name}' for name, count in names.items())


def report() -> str:
    """One line for each part."""
    distributions = distributions_by_module()
    lines = {
        'cmt_backbones': __version__,
        'Python': f'{platform.python_version()} on {platform.platform()}',
        'torch': f'{torch.__version__}, {torch.get_num_threads()} threads',
        'CUDA': f'{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}',
        'GPU': gpus(),
    }
    for module in MODULES:
        lines[module] = module_line(module, distributions)
        if module == 'mmcv':
            lines['mmcv.ops'] = mmcv_operators()
    return '\n'.join(f'{name:14} {line}' for name, line in lines.items())


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1 or argv and argv[0].startswith('-'):
        sys.exit('usage: python -m cmt_backbones [FILE], a file, URL or name on a hub of weights')
    if not argv:
        return print(report())
    from .models.recognition import describe
    try:
        print(describe(argv[0]))
    except ValueError as error:
        sys.exit(f'{argv[0]}: {error}')


if __name__ == '__main__':
    main(sys.argv[1:])
