"""What both backbones share: choosing outputs, freezing, checkpointing, loading weights."""
from contextlib import contextmanager, nullcontext
from typing import Any, Callable, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .pretrained import load_pretrained

NUM_STAGES = 4


class Backbone(BaseModule):
    """A backbone of a stem and four stages.

    Args:
        out_indices (Sequence[int]): The stages whose maps are returned, ascending, of 0 to 3.
            Stages after the last one are not built.
        frozen_stages (int): -1 freezes nothing, 0 the stem, k the stem and the first k stages.
        norm_eval (bool): Keep all BatchNorms in eval mode.
        with_cp (bool): Recompute blocks in the backward pass instead of keeping what they need.
        init_cfg (dict, optional): ``dict(type='Pretrained', checkpoint=FILE_OR_URL)`` loads
            weights in any layout that :mod:`cmt_backbones.pretrained` knows, or raises.
    """

    def __init__(self, out_indices: Sequence[int], frozen_stages: int, norm_eval: bool,
                 with_cp: bool, init_cfg: Optional[dict]) -> None:
        super().__init__(init_cfg)
        self.out_indices = check_out_indices(out_indices)
        if not isinstance(frozen_stages, int) or not -1 <= frozen_stages <= NUM_STAGES:
            raise ValueError(f'frozen_stages must be -1 (nothing), 0 (the stem) or 1 to {NUM_STAGES} '
                             f'(the stem and as many stages), not {frozen_stages!r}')
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.deployed = False

    def stem_and_stages(self) -> List[List[nn.Module]]:
        """The modules of the stem, then those of each stage that is built."""
        raise NotImplementedError

    def init_weights(self) -> None:
        """Weights are initialised where modules are built; this loads ``init_cfg``'s, if any."""
        cfgs = self.init_cfg if isinstance(self.init_cfg, (list, tuple)) else [self.init_cfg or {}]
        if not any(cfg.get('type') == 'Pretrained' for cfg in cfgs):
            return super().init_weights()
        if len(cfgs) > 1:
            raise ValueError('init_cfg of type Pretrained fills every weight and stands alone; got '
                             f'{len(cfgs)} init_cfgs')
        load_pretrained(self, cfgs[0]['checkpoint'], cfgs[0].get('prefix'))
        self._is_init = True

    @torch.no_grad()
    def switch_to_deploy(self) -> 'Backbone':
        """Folds, in place, what folds exactly, for inference with the same outputs to 1e-5."""
        if not self.deployed:
            self.eval()
            self.fold()
            self.requires_grad_(False)
            self.deployed = True
        return self

    def fold(self) -> None:
        raise NotImplementedError

    def freeze(self) -> None:
        """Puts the frozen parts in eval mode and their parameters out of training."""
        for part in self.stem_and_stages()[:self.frozen_stages + 1]:
            for module in part:
                module.eval()
                module.requires_grad_(False)

    def train(self, mode: bool = True) -> 'Backbone':
        if mode and self.deployed:
            raise RuntimeError(f'this {type(self).__name__} was switched to its deployed form, which cannot '
                               'be trained: build it anew and load its checkpoint')
        super().train(mode)
        self.freeze()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def run_block(self, block: nn.Module, *inputs: Any) -> Tensor:
        """Calls a block, recomputing it in the backward pass where ``with_cp`` asks for that."""
        if not (self.with_cp and self.training):
            return block(*inputs)
        return recomputed(block, block, *inputs)


def recomputed(f: Callable[..., Tensor], module: nn.Module, *inputs: Any, random: bool = True) -> Tensor:
    """``f(*inputs)``, computed again in the backward pass instead of keeping what it needs.

    Args:
        f (Callable): What to compute.
        module (nn.Module): The module that it is part of.
        random (bool): Whether random numbers are drawn.
    """
    if torch.compiler.is_compiling():  # counts a batch once by itself
        return checkpoint(f, *inputs, use_reentrant=False)
    if not torch.is_grad_enabled():
        return f(*inputs)
    return checkpoint(f, *inputs, use_reentrant=False, preserve_rng_state=random,
                      context_fn=lambda: (nullcontext(), running_statistics_kept(module)))


@contextmanager
def running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Leaves the running averages of BatchNorms as they were.

    A checkpointed block runs twice on a batch, which must be counted once.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): drops a residual branch for whole samples."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = x.new_empty((len(x), ) + (1, ) * (x.dim() - 1)).bernoulli_(keep)
        return x * mask.div_(keep)

    def extra_repr(self) -> str:
        return f'{self.rate:.3f}'


def drop_path_rates(rate: float, depths: Sequence[int]) -> List[List[float]]:
    """Rates that grow linearly from 0 at the first block to `rate` at the last, by stage."""
    if not 0 <= rate < 1:
        raise ValueError(f'drop_path_rate must be in [0, 1), not {rate!r}')
    return [r.tolist() for r in torch.linspace(0, rate, sum(depths), device='cpu').split(list(depths))]


def choose_arch(arch: Union[str, Mapping], known: Mapping[str, dict]) -> dict:
    """The settings of a named arch, or a dict of settings after a check of its keys."""
    keys = set(next(iter(known.values())))
    if isinstance(arch, str) and arch in known:
        return dict(known[arch])
    if isinstance(arch, Mapping) and set(arch) == keys:
        return dict(arch)
    what = repr(arch) if isinstance(arch, str) else f'a {type(arch).__name__}'
    if isinstance(arch, Mapping):
        what = f'a dict without {sorted(keys - set(arch))} and with unknown {sorted(set(arch) - keys)}'
    raise ValueError(f'arch must be one of {sorted(known)}, or a dict with the keys {sorted(keys)}; '
                     f'it is {what}')


def check_out_indices(out_indices: Sequence[int]) -> Tuple[int, ...]:
    valid = (isinstance(out_indices, Sequence) and len(out_indices) > 0
             and all(i in range(NUM_STAGES) for i in out_indices)
             and list(out_indices) == sorted(set(out_indices)))
    if not valid:
        raise ValueError('out_indices must be ascending stage numbers from 0 to '
                         f'{NUM_STAGES - 1}, such as (1, 2, 3), not {out_indices!r}')
    return tuple(out_indices)


def prepare(x: Tensor, stride: int = 32) -> Tensor:
    """Checks images, pads them with zeros to sides that divide by the stride, makes them channels-last.

    Every grid then divides by the next one. Detectors and segmentors mostly pad so anyway.
    """
    check_image(x)
    # In this form rather than with -width % stride, which torch.compile cannot take for dynamic sizes.
    height, width = ((side + stride - 1) // stride * stride for side in x.shape[2:])
    x = F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]))
    return x.contiguous(memory_format=torch.channels_last)


def check_image(x: Tensor, in_channels: int = 3) -> None:
    """Raises ValueError unless x is (N, 3, H, W) with H and W of at least 32."""
    if x.dim() != 4 or x.shape[1] != in_channels:
        raise ValueError(f'expected images of shape (N, {in_channels}, H, W), got {tuple(x.shape)}')
    if x.shape[2] < 32 or x.shape[3] < 32:
        raise ValueError('images must be at least 32 pixels high and wide, since the last stage has '
                         f'stride 32; got {x.shape[2]}x{x.shape[3]} (HxW): pad or enlarge them')
