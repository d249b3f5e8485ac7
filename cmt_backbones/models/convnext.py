"""ConvNeXt: A ConvNet for the 2020s (arXiv 2201.03545, CVPR 2022), and V2 (arXiv 2301.00808).

Computes what the official detection backbone does (github.com/facebookresearch/ConvNeXt,
object_detection/mmdet/models/backbones/convnext.py), under its parameter names, so that its
weights and the layer-decay constructors of mmdet and mmseg fit. Inside, maps are channels-last, so
that a map (N, C, H, W) and its pixels (N, H, W, C) are two views of one memory.
"""
from typing import List, Mapping, Optional, Sequence, Tuple, Union

import torch
from mmengine.model.weight_init import trunc_normal_init
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..registration import register
from . import folding
from .backbone import Backbone, DropPath, drop_path_rates
from .casting import Conv2d
from .cpu import Linear, gelu_of, in_bands
from .layer_numbers import convnext_layer_of, convnext_num_layers
from .options import check, check_convnext_arch, choose_arch, is_number, prepare

# Section 3 of the paper; V2: its official code, models/convnextv2.py. `use_grn` is all that V2
# changes in the network: a global response normalisation in each block, and no layer scale.
ARCHS = dict(
    tiny=dict(embed_dims=(96, 192, 384, 768), depths=(3, 3, 9, 3), use_grn=False),
    small=dict(embed_dims=(96, 192, 384, 768), depths=(3, 3, 27, 3), use_grn=False),
    base=dict(embed_dims=(128, 256, 512, 1024), depths=(3, 3, 27, 3), use_grn=False),
    large=dict(embed_dims=(192, 384, 768, 1536), depths=(3, 3, 27, 3), use_grn=False),
    xlarge=dict(embed_dims=(256, 512, 1024, 2048), depths=(3, 3, 27, 3), use_grn=False),
    v2_atto=dict(embed_dims=(40, 80, 160, 320), depths=(2, 2, 6, 2), use_grn=True),
    v2_femto=dict(embed_dims=(48, 96, 192, 384), depths=(2, 2, 6, 2), use_grn=True),
    v2_pico=dict(embed_dims=(64, 128, 256, 512), depths=(2, 2, 6, 2), use_grn=True),
    v2_nano=dict(embed_dims=(80, 160, 320, 640), depths=(2, 2, 8, 2), use_grn=True),
    v2_tiny=dict(embed_dims=(96, 192, 384, 768), depths=(3, 3, 9, 3), use_grn=True),
    v2_base=dict(embed_dims=(128, 256, 512, 1024), depths=(3, 3, 27, 3), use_grn=True),
    v2_large=dict(embed_dims=(192, 384, 768, 1536), depths=(3, 3, 27, 3), use_grn=True),
    v2_huge=dict(embed_dims=(352, 704, 1408, 2816), depths=(3, 3, 27, 3), use_grn=True),
)
STRIDES = (4, 8, 16, 32)


@register(MODELS, 'cmt_backbones.ConvNeXt')
class ConvNeXt(Backbone):
    """ConvNeXt as a backbone of detectors and segmentors, for images of any size.

    Args:
        arch (str | dict): ``'tiny'``, ``'small'``, ``'base'``, ``'large'``, ``'xlarge'``, for V2
            ``'v2_atto'`` to ``'v2_huge'``, or a dict with the keys ``embed_dims``, ``depths`` and
            ``use_grn``.
        out_indices (Sequence[int]): The stages whose maps are returned, of 0 to 3, each through a
            LayerNorm ``norm{i}`` of its own. Stages after the last one are not built.
        drop_path_rate (float): Stochastic depth of the last block; earlier ones have less.
        layer_scale_init_value (float): Where the layer scale starts; 0 builds none, nor does V2.
        frozen_stages (int): -1 freezes nothing, 0 the stem, k the stem and the first k stages, each
            with its ``norm{i}`` (as mmdet's Swin does).
        with_cp (bool): Recompute blocks in the backward pass, for memory.
        init_cfg (dict, optional): ``dict(type='Pretrained', checkpoint=FILE_OR_URL)``: a checkpoint
            of Facebook, timm, mmpretrain or ours. Facebook's V2 weights are CC-BY-NC.

    Examples:
        >>> ConvNeXt('tiny')(torch.rand(1, 3, 800, 1280))[-1].shape
        torch.Size([1, 768, 25, 40])
    """

    def __init__(self,
                 arch: Union[str, Mapping] = 'tiny',
                 out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.,
                 layer_scale_init_value: float = 1.0,
                 frozen_stages: int = -1,
                 with_cp: bool = False,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(out_indices, frozen_stages, False, with_cp, init_cfg)
        self.arch = check_convnext_arch(choose_arch(arch, ARCHS))
        self.embed_dims = tuple(self.arch['embed_dims'])
        rates = drop_path_rates(drop_path_rate, self.arch['depths'])
        check('layer_scale_init_value', layer_scale_init_value,
              is_number(layer_scale_init_value) and 0 <= layer_scale_init_value < float('inf'),
              'a number of at least 0')

        self.downsample_layers = nn.ModuleList()  # the stem, then what leads from stage to stage
        self.stages = nn.ModuleList()
        for i in range(self.out_indices[-1] + 1):
            channels = self.embed_dims[i]
            self.downsample_layers.append(
                nn.Sequential(LayerNorm2d(self.embed_dims[i - 1]),
                              nn.Conv2d(self.embed_dims[i - 1], channels, 2, stride=2))
                if i else nn.Sequential(nn.Conv2d(3, channels, 4, stride=4), LayerNorm2d(channels)))
            self.stages.append(nn.ModuleList(
                Block(channels, rate, layer_scale_init_value, self.arch['use_grn'])
                for rate in rates[i]))
        for i in self.out_indices:
            self.add_module(f'norm{i}', LayerNorm2d(self.embed_dims[i]))
        self.apply(init_module)
        self.freeze()

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Maps of the chosen stages.

        Args:
            x (Tensor): Images (N, 3, H, W), H and W of at least 32.

        Returns:
            tuple[Tensor]: For each of ``out_indices`` a contiguous (N, C_i, ceil(H / s_i),
            ceil(W / s_i)), s_i of 4, 8, 16, 32.

        Raises:
            ValueError: If x has another shape.
        """
        # The official code drops the rows and columns that a stride leaves over; heads rather
        # expect the ceiling.
        padded = prepare(x)
        height, width = x.shape[2:]
        x = padded
        outs = []
        for i, stage in enumerate(self.stages):
            x = self.downsample_layers[i](x)  # (N, C_i, H/s_i, W/s_i)
            for block in stage:
                x = self.run_part(block, x)
            if i in self.out_indices:
                out = getattr(self, f'norm{i}')(x)
                out = out[..., :-(-height // STRIDES[i]), :-(-width // STRIDES[i])]
                # RoIAlign reads wrong values from any other layout.
                outs.append(out.contiguous(memory_format=torch.contiguous_format))
        return tuple(outs)

    def stem_and_stages(self) -> List[List[nn.Module]]:
        stem, *between = self.downsample_layers
        parts = [[stem]]
        for i, stage in enumerate(self.stages):
            norm = [getattr(self, f'norm{i}')] if i in self.out_indices else []
            parts.append([*between[i - 1:i], stage, *norm])
        return parts

    def fold(self) -> None:
        for norm, conv in self.downsample_layers[1:]:
            folding.fold_layer_norm_before(norm, conv)
        for block in (block for stage in self.stages for block in stage):
            folding.fold_layer_norm_before(block.norm, block.pwconv1)
            if block.gamma is not None:
                folding.fold_scale_after(block.pwconv2, block.gamma)
                block.gamma = None

    def num_layers(self, decay_type: str) -> int:
        """The layer of the last stage; see :mod:`cmt_backbones.training.layer_decay`."""
        return convnext_num_layers(self.arch['depths'])

    def layer_of(self, name: str, decay_type: str) -> int:
        """The layer of a parameter; see :mod:`cmt_backbones.training.layer_decay`."""
        return convnext_layer_of(name, self.arch['depths'], decay_type)


class Block(nn.Module):
    """A depthwise 7x7 convolution, and an MLP on every pixel (figure 4; V2: figure 5)."""

    def __init__(self, channels: int, drop_path_rate: float, layer_scale_init_value: float,
                 use_grn: bool) -> None:
        super().__init__()
        self.dwconv = Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = Linear(channels, 4 * channels)
        self.use_grn = use_grn
        self.widest = None if use_grn else 4 * channels  # GRN sees the whole map
        self.grn = GRN(4 * channels) if use_grn else nn.Identity()
        self.pwconv2 = Linear(4 * channels, channels)
        self.gamma = None
        if layer_scale_init_value > 0 and not use_grn:
            self.gamma = nn.Parameter(torch.full((channels, ), float(layer_scale_init_value)))
        self.pwconv2.cast_before = self.gamma is None
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.gamma is not None:  # under autocast its product would be in float32, and with it the sum
            shortcut = x.to(torch.promote_types(x.dtype, self.gamma.dtype))
        return self.mlp(shortcut, self.dwconv(x))

    @in_bands()
    def mlp(self, shortcut: Tensor, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
        x = self.grn(gelu_of(self.pwconv1, self.norm(x)))  # (N, H, W, 4 C)
        x = self.pwconv2(x, self.gamma).permute(0, 3, 1, 2)  # the layer scale by the product's weights
        return self.drop_path(shortcut, x)


class GRN(nn.Module):
    """Global response normalisation (V2, section 4), on (N, H, W, C).

    It looks at the whole map, padding included.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        # In fp16 the norm of a whole map overflows where its values are still far from it.
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=wide)  # (N, 1, 1, C)
        response = norm / (norm.mean(-1, keepdim=True) + 1e-6)
        scale = 1 + self.gamma * response
        return torch.addcmul(self.beta.to(x.dtype), x, scale.to(x.dtype))


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of each pixel of a map (N, C, H, W).

    As one ``F.layer_norm``: the official mean of squares is beyond fp16 from activations of 256 on.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def init_module(module: nn.Module) -> None:
    """The initialisation of the official code."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        trunc_normal_init(module, std=.02)
