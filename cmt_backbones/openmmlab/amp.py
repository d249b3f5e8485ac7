"""Mixed precision in training and in tests, on GPUs and on CPUs."""
import re
from contextlib import contextmanager
from functools import wraps
from typing import Any, Callable, Iterator

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModule
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn
from torch.utils._pytree import tree_map

from ..models.cpu import has_bf16

# Not `roi_head`, which holds heads and is none.
PARTS_BY_AMP = re.compile(r'(^|\.)(backbone|neck|(?!roi_)\w*_head)(\.\d+)?$')


def use_amp(cfg: Config, dtype: str) -> None:
    """Makes a config train in mixed precision, ``'bf16'`` or ``'fp16'``; without a GPU in bf16 alone."""
    wrapper = cfg.optim_wrapper
    if wrapper.type not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise SystemExit(f'--amp works with an OptimWrapper, and the config has {wrapper.type}')
    wrapper.dtype = dict(bf16='bfloat16', fp16='float16')[dtype]
    if dtype == 'bf16' and not torch.cuda.is_available():
        wrapper.type = 'cmt_backbones.openmmlab.CPUAmpOptimWrapper'
        for key in ('loss_scale', 'use_fsdp'):
            wrapper.pop(key, None)
        return
    wrapper.type = 'AmpOptimWrapper'
    # The exponents of bf16 are those of float32: no gradient is lost that a scale would save.
    wrapper.setdefault('loss_scale', 'dynamic' if dtype == 'fp16' else 1.)


class CPUAmpOptimWrapper(OptimWrapper):
    """Training by autocast on a CPU, where mmengine's AmpOptimWrapper asserts a GPU; in bf16, without a scale."""

    def __init__(self, dtype: str = 'bfloat16', **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cast_dtype = getattr(torch, dtype)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), torch.autocast('cpu', self.cast_dtype):
            yield


class AmpHook(Hook):
    """Tests by autocast; see :func:`compute_by_amp`."""

    def before_test(self, runner: Runner) -> None:
        if not compute_by_amp(runner.model):
            runner.logger.warning('this processor does not multiply in bfloat16: testing in float32, which is faster')


def compute_by_amp(model: nn.Module) -> bool:
    """Lets backbone, neck and heads of a model compute by autocast, in fp16 on a GPU, in bf16 on a CPU that has it.

    What they return is in float32 again, so that boxes are too: in bf16 those of a large image would be off by pixels.

    Returns:
        bool: Whether it does; on a processor without bf16 float32 is faster, and stays.
    """
    device = next(model.parameters()).device.type
    if device == 'cpu' and not has_bf16():
        return False
    for name, module in model.named_modules():
        if PARTS_BY_AMP.search(name) and isinstance(module, BaseModule):
            module.forward = by_amp(module.forward, device)
    return True


def by_amp(forward: Callable, device: str) -> Callable:
    """A forward method under autocast, whose results are in float32."""
    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device):
            out = forward(*args, **kwargs)
        return tree_map(lambda x: x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x, out)
    return run
