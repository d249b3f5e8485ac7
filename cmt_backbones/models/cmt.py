"""CMT: Convolutional Neural Networks Meet Vision Transformers (arXiv 2107.06263, CVPR 2022).

Follows the paper and, where they differ, the official code (github.com/ggjy/CMT.pytorch, cmt.py),
whose trained weights fit. Inside, maps are channels-last, so that a map (N, C, H, W) and its
tokens (N, H W, C) are two views of one memory.
"""
from typing import Any, Callable, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from mmengine.model.weight_init import kaiming_init, trunc_normal_init
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..registration import register
from . import folding
from .attention import attention, prepare_bias
from .backbone import Backbone, DropPath, drop_path_rates
from .casting import Conv2d
from .cpu import Linear, in_bands
from .depthwise import plus_depthwise
from .irffn import between_products
from .layer_numbers import cmt_layer_of, cmt_num_layers
from .options import batch_norm, check, check_cmt_arch, check_norm_cfg, choose_arch, is_whole, prepare
from .relative_bias import RelativeBias
from .tracing import product_dtype

# Table 1. The table's R of XS, 3.8, is 3.77 in the official code (its author: "really 3.77").
# `pretrain_img_size` is the resolution of the ImageNet training, whose grid the bias tables have.
ARCHS = dict(
    tiny=dict(stem_channels=16, embed_dims=(46, 92, 184, 368), depths=(2, 2, 10, 2),
              mlp_ratio=3.6, pretrain_img_size=160),
    xsmall=dict(stem_channels=16, embed_dims=(52, 104, 208, 416), depths=(3, 3, 12, 3),
                mlp_ratio=3.77, pretrain_img_size=192),
    small=dict(stem_channels=32, embed_dims=(64, 128, 256, 512), depths=(3, 3, 16, 3),
               mlp_ratio=4, pretrain_img_size=224),
    base=dict(stem_channels=38, embed_dims=(76, 152, 304, 608), depths=(4, 4, 20, 4),
              mlp_ratio=4, pretrain_img_size=256),
)
STRIDES = (4, 8, 16, 32)
NUM_HEADS = (1, 2, 4, 8)
REDUCTIONS = (8, 4, 2, 1)  # of keys and values, k in the paper; k times the stride is always 32


@register(MODELS, 'cmt_backbones.CMT')
class CMT(Backbone):
    """CMT as a backbone of detectors and segmentors, for images of any size.

    Args:
        arch (str | dict): ``'tiny'``, ``'xsmall'``, ``'small'``, ``'base'``, or a dict with the keys
            ``stem_channels``, ``embed_dims``, ``depths``, ``mlp_ratio`` and ``pretrain_img_size``.
        out_indices (Sequence[int]): The stages whose maps are returned, of 0 to 3. Stages after
            the last one are not built.
        drop_path_rate (float): Stochastic depth of the last block; earlier ones have less.
        bias_interpolation (str): ``'geometric'`` or ``'flat'``, how the position bias is resized;
            see :class:`~cmt_backbones.models.relative_bias.RelativeBias`.
        frozen_stages (int): -1 freezes nothing, 0 the stem, k the stem and the first k stages.
        norm_cfg (dict): ``dict(type='BN')`` or ``dict(type='SyncBN')``; ``requires_grad=False``
            freezes scales and offsets. The LayerNorms of the paper stay.
        norm_eval (bool): Keep all BatchNorms in eval mode, for batches too small for statistics.
        with_cp (bool): Recompute the stem and the blocks in the backward pass, for memory.
        in_channels (int): Channels of the images.
        init_cfg (dict, optional): ``dict(type='Pretrained', checkpoint=FILE_OR_URL)``: an official
            classifier, or a checkpoint of ours.

    Examples:
        >>> CMT('tiny')(torch.rand(1, 3, 800, 1280))[-1].shape
        torch.Size([1, 368, 25, 40])
    """

    def __init__(self,
                 arch: Union[str, Mapping] = 'small',
                 out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.1,
                 bias_interpolation: str = 'geometric',
                 frozen_stages: int = -1,
                 norm_cfg: Mapping = dict(type='BN'),
                 norm_eval: bool = False,
                 with_cp: bool = False,
                 in_channels: int = 3,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        check('in_channels', in_channels, is_whole(in_channels, 1), 'a positive number')
        self.in_channels = in_channels
        self.arch = check_cmt_arch(choose_arch(arch, ARCHS), NUM_HEADS)
        check_norm_cfg(norm_cfg)
        self.embed_dims = tuple(self.arch['embed_dims'])
        rates = drop_path_rates(drop_path_rate, self.arch['depths'])

        self.stem = Stem(in_channels, self.arch['stem_channels'], norm_cfg)
        self.stages = nn.ModuleList()
        channels = self.arch['stem_channels']
        for i in range(self.out_indices[-1] + 1):
            grid = self.arch['pretrain_img_size'] // STRIDES[i]
            self.stages.append(
                Stage(channels, self.embed_dims[i], rates[i], NUM_HEADS[i], REDUCTIONS[i],
                      self.arch['mlp_ratio'], grid, bias_interpolation, norm_cfg))
            channels = self.embed_dims[i]
        self.apply(init_module)
        self.freeze()

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Maps of the chosen stages.

        Args:
            x (Tensor): Images (N, in_channels, H, W), H and W of at least 32.

        Returns:
            tuple[Tensor]: For each of ``out_indices`` a contiguous (N, C_i, ceil(H / s_i),
            ceil(W / s_i)), s_i of 4, 8, 16, 32.

        Raises:
            ValueError: If x has another shape.
        """
        padded = prepare(x, self.in_channels)
        self.check_statistics(x)
        height, width = x.shape[2:]
        x = self.run_part(self.stem, padded)  # (N, C, H/2, W/2)
        outs = []
        for i, stage in enumerate(self.stages):
            x = stage(x, self.run_part)  # (N, C_i, H/s_i, W/s_i)
            if i in self.out_indices:
                out = x[..., :-(-height // STRIDES[i]), :-(-width // STRIDES[i])]
                # RoIAlign reads wrong values from any other layout.
                outs.append(out.contiguous(memory_format=torch.contiguous_format))
        return tuple(outs)

    def stem_and_stages(self) -> List[list]:
        return [[self.stem]] + [[stage] for stage in self.stages]

    def fold(self) -> None:
        # The norms before and within the 3x3 convolutions stay: those pad.
        folding.fold_norm_before(self.stem.layers[-1], self.stages[0].patch_aggregation)
        self.stem.layers[-1] = nn.Identity()
        for stage in self.stages:
            stage.fold()

    def num_layers(self, decay_type: str) -> int:
        """The layer of the last stage; see :mod:`cmt_backbones.training.layer_decay`."""
        return cmt_num_layers(self.arch['depths'], decay_type)

    def layer_of(self, name: str, decay_type: str) -> int:
        """The layer of a parameter; see :mod:`cmt_backbones.training.layer_decay`."""
        return cmt_layer_of(name, self.arch['depths'], decay_type)


class Stem(nn.Module):
    """Three 3x3 convolutions, the first with stride 2 (section 3.1)."""

    def __init__(self, in_channels: int, channels: int, norm_cfg: Mapping) -> None:
        super().__init__()
        self.widest = channels / 4
        self.layers = folding.SequentialNormsFirst()
        for i in range(3):
            self.layers.extend([
                Conv2d(channels if i else in_channels, channels, 3, stride=1 if i else 2, padding=1),
                nn.GELU(),
                batch_norm(channels, norm_cfg),
            ])

    @in_bands(halo=6, stride=2)
    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Stage(nn.Module):
    """Patch aggregation, a bias table that all blocks share, and the blocks."""

    def __init__(self, in_channels: int, channels: int, rates: Sequence[float], num_heads: int,
                 reduction: int, mlp_ratio: float, native_grid: int, bias_interpolation: str,
                 norm_cfg: Mapping) -> None:
        super().__init__()
        self.reduction, self.head_width = reduction, channels // num_heads
        self.patch_aggregation = nn.Conv2d(in_channels, channels, 2, stride=2)
        self.norm = nn.LayerNorm(channels, eps=1e-5)
        self.relative_bias = RelativeBias(num_heads, (native_grid, ) * 2,
                                          (native_grid // reduction, ) * 2, bias_interpolation)
        self.blocks = nn.ModuleList(
            Block(channels, num_heads, reduction, mlp_ratio, rate, norm_cfg) for rate in rates)

    def forward(self, x: Tensor, run_part: Callable[..., Tensor]) -> Tensor:
        x = self.patch_aggregation(x)
        height, width = x.shape[2:]
        x = to_map(self.norm(to_tokens(x)), height, width)
        grids = (height, width), (height // self.reduction, width // self.reduction)
        bias = prepare_bias(self.relative_bias, grids, self.head_width, x)
        for block in self.blocks:
            x = run_part(block, x, bias)
        return x

    def fold(self) -> None:
        for block in self.blocks:
            block.lpu.fold()
            block.ffn.fold()
            if self.reduction > 1:
                folding.fold_norm_after(*block.attn.reduce)
                block.attn.reduce[1] = nn.Identity()


class Block(nn.Module):
    """Local perception unit, lightweight attention, inverted residual FFN (section 3.2)."""

    def __init__(self, channels: int, num_heads: int, reduction: int, mlp_ratio: float,
                 drop_path_rate: float, norm_cfg: Mapping) -> None:
        super().__init__()
        self.lpu = ShortcutDepthwise(channels)
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = LightweightAttention(channels, num_heads, reduction, norm_cfg)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.widest = int(channels * mlp_ratio)
        self.ffn = IRFFN(channels, self.widest, norm_cfg)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, bias: Any) -> Tensor:
        height, width = x.shape[2:]
        of_attention, of_ffn = self.drop_path.draw(x, 2)
        x = to_tokens(self.lpu(x))  # (N, H W, C)
        normalised = self.norm1(x)
        normalised = normalised.to(product_dtype(x))  # once, for queries, keys and values
        x = self.drop_path(x, self.attn(normalised, (height, width), bias), of_attention)
        return self.transform(to_map(x, height, width), scale=of_ffn)

    @in_bands(halo=1)
    def transform(self, x: Tensor, scale: Optional[Tensor] = None) -> Tensor:
        """The feed-forward half; by stochastic depth its branch has a scale."""
        normalised = to_map(self.norm2(to_tokens(x)), *x.shape[2:])
        return self.drop_path(x, self.ffn(normalised), scale)


class LightweightAttention(nn.Module):
    """Attention whose keys and values come from a map that is `reduction` times smaller.

    As the official code has it, one depthwise convolution reduces for keys and values alike
    (the text of the paper writes two), with a BatchNorm behind it.
    """

    def __init__(self, channels: int, num_heads: int, reduction: int, norm_cfg: Mapping) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = Linear(channels, channels)
        self.kv = Linear(channels, 2 * channels)
        self.reduce = nn.Identity() if reduction == 1 else nn.Sequential(
            Conv2d(channels, channels, reduction, stride=reduction, groups=channels),
            batch_norm(channels, norm_cfg))
        self.proj = Linear(channels, channels)

    def forward(self, x: Tensor, grid: Tuple[int, int], bias: Any) -> Tensor:
        reduced = to_tokens(self.reduce(to_map(x, *grid)))  # (N, m, C)
        q = self.q(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (N, heads, n, d)
        kv = self.kv(reduced).unflatten(2, (2, self.num_heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4)  # each (N, heads, m, d)
        return self.proj(attention(q, k, v, bias).transpose(1, 2).flatten(2))  # (N, n, C)


class IRFFN(folding.NormsFirst):
    """Inverted residual FFN: expand, a depthwise convolution with its own shortcut, project."""
    norms_behind_gelu = ('norm1', 'norm2')

    def __init__(self, channels: int, hidden: int, norm_cfg: Mapping) -> None:
        super().__init__()
        self.expand = Conv2d(channels, hidden, 1)
        self.norm1 = batch_norm(hidden, norm_cfg)
        self.dwconv = ShortcutDepthwise(hidden)
        self.norm2 = batch_norm(hidden, norm_cfg)
        self.project = nn.Conv2d(hidden, channels, 1)
        self.norm3 = batch_norm(channels, norm_cfg)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm3(between_products(x, self.expand, self.norm1, self.dwconv, self.norm2, self.project))

    def fold(self) -> None:
        self.dwconv.fold()
        folding.fold_norm_before(self.norm2, self.project)
        folding.fold_norm_after(self.project, self.norm3)
        self.norm2 = self.norm3 = nn.Identity()


class ShortcutDepthwise(Conv2d):
    """``x + conv(x)``, a depthwise 3x3 convolution with a shortcut around it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1, groups=channels)
        self.shortcut = True

    def forward(self, x: Tensor) -> Tensor:
        return plus_depthwise(x, *self.weights()) if self.shortcut else super().forward(x)

    def fold(self) -> None:
        folding.fold_shortcut(self)
        self.shortcut = False


def to_tokens(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H W, C); a view where x is channels-last."""
    return x.flatten(2).transpose(1, 2)


def to_map(x: Tensor, height: int, width: int) -> Tensor:
    """(N, H W, C) -> (N, C, H, W) channels-last; a view."""
    # Permuted last: of one image, unflatten(2) leaves strides by which convolutions take it for NCHW.
    return x.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def init_module(module: nn.Module) -> None:
    """The initialisation of the official code."""
    if isinstance(module, nn.Linear):
        trunc_normal_init(module, std=.02)
    elif isinstance(module, nn.Conv2d):
        kaiming_init(module, mode='fan_out')
