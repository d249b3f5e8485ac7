"""CMT as its authors compute it, to compare with: `cmt-s:plain` of :mod:`.named_models`.

A plain reading of the official blocks (github.com/ggjy/CMT.pytorch, cmt.py) in this project's words:
maps in NCHW, tokens as copies of them, keys and values in two products, attention as an array
(N, heads, n, m), norms and shortcuts as written. The official code knows one image size; here every
forward resizes the bias tables, as arrays (heads, n, m), by the same four bicubics as ours.
"""
from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.cmt import CMT, NUM_HEADS, REDUCTIONS, STRIDES
from ..weights import StateDict


class PlainCMT(nn.Module):
    """Computes what a :class:`cmt_backbones.CMT` computes, with its weights."""

    def __init__(self, model: CMT) -> None:
        super().__init__()
        arch, dims = model.arch, model.embed_dims
        stem = arch['stem_channels']
        self.stem = nn.Sequential(*[
            layer for i in range(3) for layer in (
                nn.Conv2d(stem if i else 3, stem, 3, 1 if i else 2, 1), nn.GELU(), nn.BatchNorm2d(stem))])
        self.stages = nn.ModuleList()
        for i, (depth, heads, reduction) in enumerate(zip(arch['depths'], NUM_HEADS, REDUCTIONS)):
            grid = arch['pretrain_img_size'] // STRIDES[i]
            stage = nn.Module()
            stage.embed = nn.Conv2d(dims[i - 1] if i else stem, dims[i], 2, 2)
            stage.norm = nn.LayerNorm(dims[i])
            stage.table = nn.Parameter(torch.empty(heads, grid**2, (grid // reduction)**2))
            stage.grid, stage.reduction = grid, reduction
            stage.blocks = nn.ModuleList(
                PlainBlock(dims[i], heads, reduction, int(dims[i] * arch['mlp_ratio'])) for _ in range(depth))
            self.stages.append(stage)
        self.load_state_dict(plain_names(model.state_dict()))
        self.train(model.training)

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        x = self.stem(x)
        outs = []
        for stage in self.stages:
            x = stage.embed(x)
            height, width = x.shape[2:]
            x = stage.norm(x.flatten(2).transpose(1, 2))
            bias = resized(stage.table, stage.grid, stage.reduction, height, width)
            for block in stage.blocks:
                x = block(x, height, width, bias)
            x = x.transpose(1, 2).reshape(len(x), -1, height, width).contiguous()
            outs.append(x)
        return tuple(outs)


class PlainBlock(nn.Module):

    def __init__(self, dim: int, heads: int, reduction: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.lpu = nn.Conv2d(dim, dim, 3, 1, 1, groups=dim)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.q, self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.reduce = nn.Identity() if reduction == 1 else nn.Sequential(
            nn.Conv2d(dim, dim, reduction, reduction, groups=dim), nn.BatchNorm2d(dim))
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.expand, self.bn1 = nn.Conv2d(dim, hidden, 1), nn.BatchNorm2d(hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.project, self.bn3 = nn.Conv2d(hidden, dim, 1), nn.BatchNorm2d(dim)

    def forward(self, x: Tensor, height: int, width: int, bias: Tensor) -> Tensor:
        def to_map(tokens: Tensor) -> Tensor:
            return tokens.transpose(1, 2).reshape(len(tokens), -1, height, width)

        def to_heads(tokens: Tensor) -> Tensor:
            return tokens.reshape(len(tokens), tokens.shape[1], self.heads, -1).transpose(1, 2)

        x = to_map(x)
        x = (x + self.lpu(x)).flatten(2).transpose(1, 2)

        tokens = self.norm1(x)
        reduced = self.reduce(to_map(tokens)).flatten(2).transpose(1, 2)
        q, k, v = to_heads(self.q(tokens)), to_heads(self.k(reduced)), to_heads(self.v(reduced))
        logits = q @ k.transpose(2, 3) * q.shape[3]**-0.5 + bias
        x = x + self.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))

        y = self.bn1(F.gelu(self.expand(to_map(self.norm2(x)))))
        y = self.bn2(F.gelu(y + self.dwconv(y)))
        return x + self.bn3(self.project(y)).flatten(2).transpose(1, 2)


def resized(table: Tensor, grid: int, reduction: int, height: int, width: int) -> Tensor:
    """A bias table on another grid: its query axes by one 2-D bicubic, its key axes by another."""
    heads, n0, m0 = table.shape
    if (height, width) == (grid, grid):
        return table
    key0, key = grid // reduction, (height // reduction, width // reduction)
    table = table.transpose(1, 2).reshape(heads, m0, grid, grid)
    table = F.interpolate(table, size=(height, width), mode='bicubic', align_corners=False)
    table = table.flatten(2).transpose(1, 2).reshape(heads, height * width, key0, key0)
    return F.interpolate(table, size=key, mode='bicubic', align_corners=False).flatten(2)


def plain_names(state: StateDict) -> StateDict:
    """A state dict of :class:`cmt_backbones.CMT` under the names of this file."""
    out = {}
    for name, value in state.items():
        name = name.replace('stem.layers', 'stem').replace('.attn.', '.')
        for ours, theirs in [('patch_aggregation', 'embed'), ('relative_bias.table', 'table'),
                             ('ffn.norm', 'bn'), ('ffn.', '')]:
            name = name.replace(ours, theirs)
        if '.kv.' in name:
            out[name.replace('.kv.', '.k.')], out[name.replace('.kv.', '.v.')] = value.chunk(2)
        else:
            out[name] = value
    return out
