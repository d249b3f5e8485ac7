"""mmcv's operators without a compiler: torchvision's kernels, under the names that mmcv asks for.

mmcv-lite has all of mmcv but `mmcv._ext`, the compiled module that `mmcv.ops` calls, so that with it alone
mmdet does not import. After `provide()` an import of `mmcv._ext` that nothing else answers finds
`extension.py` of this folder. It is asked last: compiled operators always win, and where they are there but
do not fit this torch their own error is seen.
"""
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from typing import Any, Optional

import torch

from ..matching import ModelError

__all__ = ['check_device', 'compiled', 'provide']

_EXTENSION = Path(__file__).with_name('extension.py')


class _LastResort(importlib.abc.MetaPathFinder):
    """Finds `mmcv._ext` where nobody else did."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Optional[importlib.machinery.ModuleSpec]:
        if fullname != 'mmcv._ext':
            return None
        return importlib.util.spec_from_file_location(fullname, _EXTENSION)


def provide() -> None:
    """Lets `mmcv.ops`, and with it mmdet and mmseg, work on an mmcv without compiled operators."""
    if not any(isinstance(finder, _LastResort) for finder in sys.meta_path):
        sys.meta_path.append(_LastResort())


def compiled() -> bool:
    """Whether mmcv's operators are its compiled ones.

    Raises:
        ImportError: There are none, not ours either; or they belong to another torch.
    """
    return importlib.import_module('mmcv._ext').__file__ != str(_EXTENSION)


def check_device(device: str) -> None:
    """Refuses a GPU for operators that have no CUDA.

    Such an mmcv comes of a build on a machine without a GPU or a toolkit, says nothing, and fails in the
    first loss.

    Raises:
        ModelError: The operators cannot compute there.
    """
    if torch.device(device).type == 'cuda' and \
            importlib.import_module('mmcv._ext').get_compiling_cuda_version() == 'not available':
        source = 'mmcv was built' if compiled() else 'this torchvision is'
        raise ModelError(
            f'{source} without CUDA operators, which a GPU needs: `make setup OPERATORS=torchvision` takes '
            "those of the registry's torchvision, `make setup OPERATORS=compiled` builds mmcv's with the CUDA "
            'toolkit of this machine or of pip; CUDA_VISIBLE_DEVICES= runs on the CPU')
