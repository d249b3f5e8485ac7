"""Several processes: how they end, and how they train or test together without GPUs."""
import gc
import threading
from contextlib import contextmanager
from functools import partial
from typing import Any, Iterator, Optional, Tuple

import torch
import torch.distributed
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.registry import MODEL_WRAPPERS
from torch import Tensor, nn

from ..registration import register


@register(MODEL_WRAPPERS, 'cmt_backbones.openmmlab.CPUDistributedDataParallel')
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """mmengine's wrapper for modules on CPUs: no device ids, and no SyncBN, which needs GPUs."""

    def __init__(self, module: nn.Module, **kwargs: Any) -> None:
        kwargs.update(device_ids=None, broadcast_buffers=False)
        super().__init__(revert_sync_batchnorm(module), **kwargs)

    def train(self, mode: bool = True) -> 'CPUDistributedDataParallel':
        """As ever; before an evaluation all processes take the running averages of the first.

        Those are the ones in its checkpoint. Without SyncBN each process has its own, and would
        evaluate its share of the images with them.
        """
        super().train(mode)
        if not mode:
            for buffer in self.module.buffers():
                torch.distributed.broadcast(buffer, 0)
        return self


def give_gradients_the_strides_of_parameters(module: nn.Module) -> None:
    """Keeps DDP from warning of strides that differ in name alone.

    Channels-last convolutions give a weight (O, I, 1, 1) or (C, 1, k, k) a gradient whose axes of length 1
    have other strides than the parameter's. The numbers lie where they should; DDP compares all strides.
    """
    def relabelled(grad: Tensor, shape: torch.Size, strides: Tuple[int, ...]) -> Optional[Tensor]:
        same = all(size == 1 or one == other for size, one, other in zip(shape, grad.stride(), strides))
        return grad.as_strided(shape, strides) if same else None

    for parameter in module.parameters():
        if parameter.requires_grad and 1 in parameter.shape:
            parameter.register_hook(partial(relabelled, shape=parameter.shape, strides=parameter.stride()))


def prepare_cpu_processes(cfg: Config) -> None:
    """Lets several processes without GPUs train or test together over gloo.

    mmengine's own start calls ``torch.cuda.set_device``; it leaves out a process group that is there.
    """
    if cfg.launcher != 'pytorch':
        raise ValueError(f'there is no GPU here, and without GPUs only the pytorch launcher works, not '
                         f'{cfg.launcher}: use tools/dist_train.sh or tools/dist_test.sh')
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    cfg.env_cfg.dist_cfg = dict(backend='gloo')
    cfg.model_wrapper_cfg = dict(type='cmt_backbones.openmmlab.CPUDistributedDataParallel',
                                 find_unused_parameters=cfg.get('find_unused_parameters', False))


@contextmanager
def ended_in_order(patience: float = 10) -> Iterator[None]:
    """Ends the process group, if there is one, when a function or block has ended, however it did.

    Left to the interpreter's own end, a thread of gloo may still have to free a tensor, for which it needs the
    interpreter: a run of two processes that has succeeded then aborts, with exit code 1. As a decorator of the
    function that makes the model, since a model that is still there holds the group.

    Args:
        patience: So many seconds, after an error or SIGTERM, an end of the group may take. Others may be
            waiting in it for what this process will not send, and the error must be told.
    """
    finished = False
    try:
        yield
        finished = True
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gc.collect()  # what holds the group, such as a DistributedDataParallel in a cycle
            if finished:
                torch.distributed.barrier()  # none leaves while others still need it
                torch.distributed.destroy_process_group()
            else:
                ending = threading.Thread(target=torch.distributed.destroy_process_group, daemon=True)
                ending.start()
                ending.join(patience)
