"""Who names the weights of these backbones how, and each layout converted to our names by a pure function."""
import re
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

StateDict = Dict[str, Tensor]


class Layout(NamedTuple):
    """How somebody names the weights of a backbone."""
    name: str
    family: str  # the class of ours that it fits
    marker: str  # a key that this layout has and no other
    convert: Callable[[StateDict], StateDict]  # to our names, without the file's prefix


def convert(state: StateDict, prefix: Optional[str] = None) -> Tuple[StateDict, Layout]:
    """Weights under our names, and the layout that they were in.

    Raises:
        ValueError: If no layout, or more than one backbone, is recognised.
    """
    found = [(layout, key[:-len(layout.marker)]) for layout in LAYOUTS for key in state
             if key.endswith(layout.marker) and prefix in (None, key[:-len(layout.marker)])]
    # 'stem.0.weight' also ends 'my_stem.0.weight': a prefix is empty or ends with a dot.
    found = [(layout, before) for layout, before in found if before == '' or before.endswith('.')]
    if not found:
        some = ', '.join(list(state)[:3])
        raise ValueError(
            f'no known layout{f" under the prefix {prefix!r}" if prefix else ""} among its '
            f'{len(state)} tensors ({some}, ...); known: {"; ".join(x.name for x in LAYOUTS)}')
    if len(found) > 1:
        raise ValueError('it holds more than one backbone; choose one by prefix= in init_cfg, of '
                         f'{sorted(before for _, before in found)}')
    (layout, before), = found
    return layout.convert({k[len(before):]: v for k, v in state.items() if k.startswith(before)}), layout


def renamed(state: StateDict, rules: List[Tuple[str, str]]) -> StateDict:
    """Keys after each of the (pattern, replacement) rules in turn."""
    out = {}
    for key, value in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        out[key] = value
    return out


def from_official_cmt(state: StateDict) -> StateDict:
    """github.com/ggjy/CMT.pytorch: stages a to d, and separate products for keys and values."""
    state = renamed(state, [
        (r'^stem_(conv|norm)(\d)', lambda m: f'stem.layers.{3 * int(m[2]) - 3 + 2 * (m[1] == "norm")}'),
        (r'^(patch_embed|relative_pos|blocks)_([abcd])',
         lambda m: f'stages.{"abcd".index(m[2])}.{m[1]}'),
        (r'\.patch_embed\.proj', '.patch_aggregation'),
        (r'\.patch_embed\.norm', '.norm'),
        (r'\.relative_pos$', '.relative_bias.table'),
        (r'\.(\d+)\.proj\.', r'.\1.lpu.'),
        (r'\.attn\.sr\.', '.attn.reduce.'),
        (r'\.mlp\.conv1\.0', '.ffn.expand'),
        (r'\.mlp\.conv1\.2', '.ffn.norm1'),
        (r'\.mlp\.proj\.', '.ffn.dwconv.'),
        (r'\.mlp\.proj_bn', '.ffn.norm2'),
        (r'\.mlp\.conv2\.0', '.ffn.project'),
        (r'\.mlp\.conv2\.1', '.ffn.norm3'),
        (r'^head\.', 'head.fc.'),  # the rest is the classifier's
        (r'^_fc\.', 'head.conv.'),
        (r'^_bn\.', 'head.norm.'),
    ])
    for key in [k for k in state if '.attn.k.' in k]:
        value_key = key.replace('.attn.k.', '.attn.v.')
        if value_key in state:
            state[key.replace('.attn.k.', '.attn.kv.')] = torch.cat([state.pop(key), state.pop(value_key)])
    return state


def from_timm_convnext(state: StateDict) -> StateDict:
    """timm's ConvNeXt, with its features_only form (``stem_0``, ``stages_0``)."""
    state = renamed(state, [
        (r'^(stem|stages)_(\d)', r'\1.\2'),
        (r'^stem\.', 'downsample_layers.0.'),
        (r'^stages\.(\d)\.downsample\.', r'downsample_layers.\1.'),
        (r'^stages\.(\d)\.blocks\.', r'stages.\1.'),
        (r'\.conv_dw\.', '.dwconv.'),
        (r'\.mlp\.fc(\d)\.', r'.pwconv\1.'),
        (r'\.mlp\.grn\.weight', '.grn.gamma'),
        (r'\.mlp\.grn\.bias', '.grn.beta'),
    ])
    return as_linear(state)


def from_mmpretrain_convnext(state: StateDict) -> StateDict:
    return as_linear(renamed(state, [(r'\.depthwise_conv\.', '.dwconv.'),
                                     (r'\.pointwise_conv(\d)\.', r'.pwconv\1.')]))


def as_linear(state: StateDict) -> StateDict:
    """1x1 convolutions and (1, 1, 1, C) response normalisations as the matrices and vectors of ours."""
    out = {}
    for key, value in state.items():
        if '.pwconv' in key and value.dim() == 4:
            value = value.flatten(1)
        elif '.grn.' in key:
            value = value.flatten()
        out[key] = value
    return out


LAYOUTS = [
    Layout('a checkpoint of our CMT', 'CMT', 'stages.0.patch_aggregation.weight', dict),
    Layout('an official CMT classifier', 'CMT', 'patch_embed_a.proj.weight', from_official_cmt),
    Layout("a ConvNeXt under Facebook's names, which are ours", 'ConvNeXt',
           'stages.0.0.dwconv.weight', as_linear),
    Layout('a ConvNeXt of mmpretrain', 'ConvNeXt', 'stages.0.0.depthwise_conv.weight',
           from_mmpretrain_convnext),
    Layout('a ConvNeXt of timm', 'ConvNeXt', 'stages.0.blocks.0.conv_dw.weight', from_timm_convnext),
    Layout('the features of a ConvNeXt of timm', 'ConvNeXt', 'stages_0.blocks.0.conv_dw.weight',
           from_timm_convnext),
]
