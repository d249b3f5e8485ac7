"""What both backbones share: choosing outputs, freezing, checkpointing, loading weights."""
from contextlib import nullcontext
from typing import Any, List, Mapping, Optional, Sequence, Tuple

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..versions import is_compiling
from ..weights import load_pretrained
from .casting import call
from .options import NUM_STAGES, check, check_out_indices, is_number, is_whole
from .tracing import computes_plainly, recomputing


class Backbone(BaseModule):
    """A backbone of a stem and four stages.

    Args:
        out_indices (Sequence[int]): The stages whose maps are returned, ascending, of 0 to 3.
            Stages after the last one are not built.
        frozen_stages (int): -1 freezes nothing, 0 the stem, k the stem and the first k stages.
        norm_eval (bool): Keep all BatchNorms in eval mode.
        with_cp (bool): Recompute parts in the backward pass instead of keeping what they need.
        init_cfg (dict, optional): ``dict(type='Pretrained', checkpoint=FILE_OR_URL)`` loads
            weights in any layout that :mod:`cmt_backbones.weights` knows, or raises.
    """

    def __init__(self, out_indices: Sequence[int], frozen_stages: int, norm_eval: bool,
                 with_cp: bool, init_cfg: Optional[dict]) -> None:
        cfgs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg or {}]
        check('init_cfg', init_cfg, all(isinstance(cfg, Mapping) for cfg in cfgs),
              "a dict such as dict(type='Pretrained', checkpoint=FILE_OR_URL), or None")
        check('frozen_stages', frozen_stages,
              is_whole(frozen_stages, -1) and frozen_stages <= NUM_STAGES,
              f'-1 (nothing), 0 (the stem) or 1 to {NUM_STAGES} (the stem and as many stages)')
        check('norm_eval', norm_eval, isinstance(norm_eval, bool), 'True or False')
        check('with_cp', with_cp, isinstance(with_cp, bool), 'True or False')
        super().__init__(init_cfg)
        self.out_indices = check_out_indices(out_indices)
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

    def check_statistics(self, x: Tensor) -> None:
        """Raises ValueError for images (N, 3, H, W) of which a BatchNorm in training gets one pixel."""
        if x.shape[0] == 1 and max(x.shape[2:]) <= 32 and any(
                isinstance(m, _BatchNorm) and m.training for part in self.stem_and_stages()[1:]
                for stage in part for m in stage.modules()):
            raise ValueError('one image of 32x32 leaves the BatchNorms of the last stages a single value, '
                             'which has no variance: train on more or larger images, or with '
                             'norm_eval=True')

    def run_part(self, part: nn.Module, *inputs: Any) -> Tensor:
        """Calls a stem or a block, recomputing it in the backward pass where ``with_cp`` asks for that."""
        if not (self.with_cp and self.training and part.training):  # frozen parts keep nothing
            return call(part, *inputs)
        return recomputed(part, *inputs)


def switch_to_deploy(model: nn.Module) -> bool:
    """Switches all backbones of this package within a model; tells whether there are any."""
    backbones = [module for module in model.modules() if isinstance(module, Backbone)]
    for backbone in backbones:
        backbone.switch_to_deploy()
    return bool(backbones)


def recomputed(part: nn.Module, *inputs: Any) -> Tensor:
    """``part(*inputs)``, computed again in the backward pass instead of keeping what it needs."""
    if is_compiling():  # counts a batch once by itself
        return checkpoint(part, *inputs, use_reentrant=False)
    if not torch.is_grad_enabled() or computes_plainly():
        return part(*inputs)
    return checkpoint(recomputing, call, part, *inputs, use_reentrant=False,
                      context_fn=lambda: (nullcontext(), RunningStatisticsKept(part)))


class RunningStatisticsKept:
    """A context that leaves the running averages of a module's BatchNorms as they were.

    A checkpointed block runs twice on a batch, which must be counted once. Entered once for each
    backward pass over the same graph.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __enter__(self) -> None:
        norms = [m for m in self.module.modules() if isinstance(m, _BatchNorm) and m.training]
        self.kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]

    def __exit__(self, *error: object) -> None:
        for buffer, value in self.kept:
            # By .data: other forwards, whose backward is to come, may hold the buffer for themselves.
            buffer.data.copy_(value)


class DropPath(nn.Module):
    """``shortcut + x`` with stochastic depth (arXiv 1603.09382): whole samples of x are dropped."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def draw(self, x: Tensor, times: int = 1) -> Sequence[Optional[Tensor]]:
        """What so many branches are multiplied by, each a (N, ) for the samples of x; None where all stay."""
        if not self.training or self.rate == 0:
            return (None, ) * times
        keep, dtype = 1 - self.rate, torch.promote_types(x.dtype, torch.float32)
        return x.new_empty((times, len(x)), dtype=dtype).bernoulli_(keep).div_(keep).unbind()

    def forward(self, shortcut: Tensor, x: Tensor, scale: Optional[Tensor] = None) -> Tensor:
        """``shortcut + scale * x``, by a scale of :meth:`draw` or a new one."""
        scale = self.draw(shortcut)[0] if scale is None else scale
        if scale is None:
            return shortcut + x
        scale = scale.view(-1, *(1, ) * (x.dim() - 1))
        if shortcut.dtype == x.dtype:
            return torch.addcmul(shortcut, x, scale.to(x.dtype))  # a pass over x less
        if computes_plainly():
            return shortcut + x * scale
        return ScaledSum.apply(shortcut, x, scale)

    def extra_repr(self) -> str:
        return f'{self.rate:.3f}'


class ScaledSum(torch.autograd.Function):
    """``shortcut + x * scale`` in the dtype of the shortcut, for x of another: a pass less in either direction."""

    @staticmethod
    def forward(ctx: Any, shortcut: Tensor, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        ctx.dtype = x.dtype
        with torch.autocast(x.device.type, enabled=False):  # which would cast x by a kernel of its own
            return torch.addcmul(shortcut, x, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, Tensor, None]:
        scale, = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            return grad, (grad * scale).to(ctx.dtype), None
        return grad, torch.mul(grad, scale, out=torch.empty_strided(
            grad.shape, grad.stride(), dtype=ctx.dtype, device=grad.device)), None


def drop_path_rates(rate: float, depths: Sequence[int]) -> List[List[float]]:
    """Rates that grow linearly from 0 at the first block to `rate` at the last, by stage."""
    check('drop_path_rate', rate, is_number(rate) and 0 <= rate < 1, 'in [0, 1)')
    return [r.tolist() for r in torch.linspace(0, rate, sum(depths), device='cpu').split(list(depths))]
