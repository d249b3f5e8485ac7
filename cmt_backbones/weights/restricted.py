"""Unpickling that makes tensors, and of other things only those that it is told to. Nothing else runs.

``torch.load(weights_only=True)`` refuses a file that holds anything else, which training checkpoints do, and what
it can be told differs between PyTorch's versions. This is given to ``torch.load(pickle_module=...)``.
"""
import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict
from types import SimpleNamespace
from typing import Any, Callable, Mapping

import torch

REBUILDS = ('_rebuild_tensor', '_rebuild_tensor_v2', '_rebuild_tensor_v3', '_rebuild_parameter',
            '_rebuild_parameter_with_state', '_rebuild_sparse_tensor', '_rebuild_qtensor', '_rebuild_nested_tensor',
            '_rebuild_meta_tensor_no_storage')


def encode(text: str, encoding: str) -> bytes:
    """Stands for `_codecs.encode`, by which protocol 2 writes bytes."""
    if encoding not in ('latin1', 'latin-1'):
        raise pickle.UnpicklingError(f'it encodes as {encoding!r}')
    return text.encode(encoding)


def rebuild_subclass(function: Callable, kind: type, args: tuple, state: Any) -> torch.Tensor:
    """Stands for `torch._tensor._rebuild_from_type_v2`, which calls any function."""
    if not any(function is known for known in CALLED.values()):
        raise pickle.UnpicklingError(f'it calls {str(function)[:80]}')
    kind = kind if issubclass(kind, torch.Tensor) else torch.Tensor  # of a class that is not known here
    return torch._tensor._rebuild_from_type_v2(function, kind, args, state)


# By the name in a file: what may be called, and what is only named.
CALLED: Mapping[str, Callable] = {
    'collections.OrderedDict': OrderedDict, 'collections.Counter': Counter, '_codecs.encode': encode,
    **{f'builtins.{kind.__name__}': kind for kind in (set, frozenset, bytearray, complex)},
    'torch.Size': torch.Size, 'torch.device': torch.device, 'torch.Tensor': torch.Tensor,
    'torch.nn.parameter.Parameter': torch.nn.Parameter,
    'torch.serialization._get_layout': torch.serialization._get_layout,
    'torch._tensor._rebuild_from_type_v2': rebuild_subclass,
    **{f'torch._utils.{name}': getattr(torch._utils, name) for name in REBUILDS if hasattr(torch._utils, name)},
}
NAMED: Mapping[str, Any] = {
    **{str(value): value for value in vars(torch).values()
       if isinstance(value, (torch.dtype, torch.qscheme, torch.memory_format))},
    **{f'{kind.__module__}.{kind.__name__}': kind for kind in torch._storage_classes},
}


class Inert:
    """Stands for an object of a checkpoint that is not a weight; keeps and does nothing."""
    path = ''  # of its class, in the file
    dump_patches = False  # whether PyTorch may write what changed in the code of a pickled module

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def ignore(self, *args: Any) -> None:
        pass

    # What the file puts into it, be it an object, a dict, a list or a set.
    __setstate__ = __setitem__ = append = extend = add = ignore


class Unpickler(pickle._Unpickler):  # the one in Python, whose steps can be restricted
    """Calls, and sets the state of, what it is told to alone; an :class:`Inert` takes the place of all else."""
    called: Mapping[str, Callable] = CALLED
    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.found = {**NAMED, **self.called}
        self.with_state = (Inert, torch.Tensor, *(kind for kind in self.called.values() if isinstance(kind, type)))

    def find_class(self, module: str, name: str) -> Any:
        # Protocol 2 has the names of Python 2.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        path = f'{module}.{name}'
        if path not in self.found:
            self.found[path] = type('Inert', (Inert, ), dict(path=path))
        return self.found[path]

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError(f'it names something by its number, {code}')

    def check_call(self, function: Any) -> None:
        inert = isinstance(function, type) and issubclass(function, Inert)
        if not inert and not any(function is known for known in self.called.values()):
            raise pickle.UnpicklingError(f'it calls {str(function)[:80]}')

    def load_reduce(self) -> None:
        self.check_call(self.stack[-2])
        super().load_reduce()

    def load_newobj(self) -> None:
        self.check_call(self.stack[-2])
        super().load_newobj()

    def load_newobj_ex(self) -> None:
        self.check_call(self.stack[-3])
        super().load_newobj_ex()

    def _instantiate(self, klass: Any, args: Any) -> None:
        self.check_call(klass)
        super()._instantiate(klass, args)

    def load_build(self) -> None:
        if not isinstance(self.stack[-2], self.with_state):  # but not a class or function of this process
            raise pickle.UnpicklingError(f'it changes {str(self.stack[-2])[:80]}')
        super().load_build()

    dispatch.update({pickle.REDUCE[0]: load_reduce, pickle.NEWOBJ[0]: load_newobj,
                     pickle.NEWOBJ_EX[0]: load_newobj_ex, pickle.BUILD[0]: load_build})


def restricted_pickle(restored: Mapping[str, Callable] = {}) -> SimpleNamespace:
    """A ``pickle_module`` for ``torch.load``, which makes tensors, and calls what is `restored`, by name."""
    allowed = {**CALLED, **restored}
    kind = type('Unpickler', (Unpickler, ), dict(called=allowed))
    return SimpleNamespace(__name__=__name__, Unpickler=kind, load=lambda file, **options: kind(file, **options).load())
