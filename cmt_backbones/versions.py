"""What the package runs on. Older versions are refused by name, not by an error from somewhere in them."""
import re
import sys
from typing import Mapping, Tuple

import torch

LOWEST = {'torch': '2.1', 'numpy': '1.24', 'mmengine': '0.9'}
LOWEST_PYTHON = (3, 8)

# torch.compiler has it from 2.3 on.
is_compiling = getattr(getattr(torch, 'compiler', None), 'is_compiling', None) or torch._utils.is_compiling


def check_versions(found: Mapping[str, str], python: Tuple[int, ...] = sys.version_info[:2]) -> None:
    """Refuses an installation that the package does not run on.

    Args:
        found: The version of each module of :data:`LOWEST`.
        python: Major and minor version.

    Raises:
        ImportError: With the versions that there are and those that are needed.
    """
    wrong = [f'{name} {found[name]}' for name, lowest in LOWEST.items() if numbers(found[name]) < numbers(lowest)]
    if python < LOWEST_PYTHON:
        wrong.insert(0, 'Python ' + '.'.join(map(str, python)))
    if wrong:
        needed = ', '.join(f'{name} {lowest}' for name, lowest in LOWEST.items())
        raise ImportError(f'cmt_backbones needs Python {".".join(map(str, LOWEST_PYTHON))}, {needed} or later, and '
                          f'here is {", ".join(wrong)}: install a later one')
    if numbers(found['torch']) < (2, 3) and numbers(found['numpy']) >= (2, ):
        raise ImportError(f'torch {found["torch"]} was built for numpy 1 and cannot use numpy {found["numpy"]}: '
                          'pip install "numpy<2", or torch 2.3 or later')


def numbers(version: str) -> Tuple[int, ...]:
    """Major and minor of a version such as ``2.11.0+cpu`` or ``2.1.0a0+git``."""
    return tuple(int(number) for number in re.findall(r'\d+', version)[:2])
