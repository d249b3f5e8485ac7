"""Where CMT attends from one point of an image: all of it, what the content does, and what the position bias does.

A block's attention is ``softmax(q k^T / sqrt(d) + bias)``. Of the query that a point falls into there are shown,
for every head, the softmax of the sum, of the first summand alone, and of the bias alone. Keys lie on a grid of
32 pixels in every stage: the attention of stages 1 to 3 reduces them by 8, 4 and 2.
"""
from contextlib import ExitStack
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

import cv2
import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from ..models.cmt import CMT, STRIDES
from ..models.relative_bias import BiasFactors, Grid
from ..openmmlab.matching import ModelError
from .feature_maps import recorded_maps, run_backbone, without_padding
from .panels import GAP, HEAD, tile, titled

KEY_STRIDE = 32
PARTS = ('both', 'content', 'bias')
BRIGHT = 4  # times even attention have the brightest colour, or more: even attention stays dark
POINT = (0, 230, 255)
WIDTH = 1024  # pixels of a picture
HEAT = (matplotlib.colormaps['inferno'](np.arange(256))[:, :3] * 255).astype(np.uint8)


class PointAttention(NamedTuple):
    """Where the query of a point attends, in one block: each (heads, rows, columns) of keys, float64, sum 1."""
    both: Tensor  # softmax(q k^T / sqrt(d) + bias)
    content: Tensor  # softmax(q k^T / sqrt(d))
    bias: Tensor  # softmax(bias)

    def over_heads(self) -> 'PointAttention':
        """The mean of all heads, as one."""
        return PointAttention(*(part.mean(0, keepdim=True) for part in self))


class Block(NamedTuple):
    """What one block computed for an image."""
    query: Tensor  # (heads, n, d)
    key: Tensor  # (heads, m, d)


class Attention:
    """The attention of all blocks of a CMT on an image, and the maps of its stages, from one pass.

    Args:
        model: A detector or segmentor with a CMT, from :func:`~cmt_backbones.openmmlab.inference.build_model`.
        image: (H, W, 3), uint8, BGR.

    Attributes:
        stage_maps (list[Tensor]): (C, H_i, W_i) by stage, as :func:`.feature_maps.stage_maps` gives them.
        size (tuple[int, int]): Of the image as the backbone gets it, without padding.
        blocks (list[list[Block]]): By stage.

    Raises:
        ModelError: The backbone is another one.
    """

    def __init__(self, model: nn.Module, image: np.ndarray) -> None:
        backbone = model.backbone
        if not isinstance(backbone, CMT):
            raise ModelError(f'the backbone is a {type(backbone).__name__}, which has no attention to look at: '
                             'CMT has')
        self.image_size = image.shape[:2]
        self.blocks: List[List[Block]] = [[] for _ in backbone.stages]
        grids: List[Optional[Grid]] = [None for _ in backbone.stages]
        with ExitStack() as stack:
            maps = stack.enter_context(recorded_maps(model))
            for i, stage in enumerate(backbone.stages):
                for block in stage.blocks:
                    for hook in record(block.attn, self.blocks[i], grids, i):
                        stack.callback(hook.remove)
            self.size = run_backbone(model, image)
        self.stage_maps = without_padding(maps, self.size)
        rows, columns = grids[0]
        self.key_grid = rows * STRIDES[0] // KEY_STRIDE, columns * STRIDES[0] // KEY_STRIDE
        self.grids = grids
        with torch.no_grad():
            self.biases = [BiasFactors(*(factor.float().cpu() for factor in stage.relative_bias(grid, self.key_grid)))
                           for stage, grid in zip(backbone.stages, grids)]

    @property
    def depths(self) -> List[int]:
        """How many blocks each stage has."""
        return [len(stage) for stage in self.blocks]

    def query_at(self, point: Sequence[float], stage: int) -> int:
        """The number of the query of a stage, row by row, that a point (x, y), in pixels of the image, lies in."""
        column, row = (min(max(int(place * size / full / STRIDES[stage]), 0), side - 1) for place, size, full, side in
                       zip(point, self.size[::-1], self.image_size[::-1], self.grids[stage][::-1]))
        return row * self.grids[stage][1] + column

    def at(self, point: Sequence[float], stage: int, block: int) -> PointAttention:
        """Where the query at a point (x, y), in pixels of the image, attends in a block; both count from 0."""
        return self.of_query(self.query_at(point, stage), stage, block)

    def of_query(self, query: int, stage: int, block: int) -> PointAttention:
        """Where a query of a stage, counted row by row, attends in a block."""
        (queries, keys), factors = self.blocks[stage][block], self.biases[stage]
        q, k = queries[:, query].double(), keys.double()
        content = torch.einsum('hd,hmd->hm', q, k) * q.shape[1]**-0.5
        bias = factors.query[:, query].double() @ factors.key.double().T
        return PointAttention(*(scores.softmax(1).unflatten(1, self.key_grid)
                                for scores in (content + bias, content, bias)))

    def over_image(self, weights: Tensor, size: Tuple[int, int]) -> np.ndarray:
        """Attention to keys (rows, columns) as a picture (h, w) of the image, bilinear between the keys."""
        rows, columns = self.key_grid
        large = cv2.resize(weights.float().numpy(), (columns * KEY_STRIDE, rows * KEY_STRIDE))
        height, width = self.size  # what lies beyond is padding
        return cv2.resize(large[:height, :width], size[::-1], interpolation=cv2.INTER_AREA)


def record(attn: nn.Module, blocks: List[Block], grids: List[Any], stage: int) -> List[Any]:
    """Hooks that add the queries and keys of a block's attention to `blocks`, and set the grid of its stage."""
    projected = []

    def keep(module: nn.Module, args: tuple, out: Tensor) -> None:
        projected.append(out[0].unflatten(1, (-1, attn.num_heads, attn.proj.in_features // attn.num_heads)))

    def finish(module: nn.Module, args: tuple, out: Tensor) -> None:
        (q, kv), grids[stage] = projected, tuple(args[1])
        # q is (n, 1, heads, d), kv is (m, 2, heads, d) with the keys first.
        blocks.append(Block(*(x[:, 0].transpose(0, 1).float().cpu() for x in (q, kv))))
        projected.clear()

    return [attn.q.register_forward_hook(keep), attn.kv.register_forward_hook(keep),
            attn.register_forward_hook(finish)]


# ---------------------------------------------------------------------------- pictures


def draw(attention: Attention, image: np.ndarray, point: Sequence[float], stage: int,
         block: Optional[int]) -> Image.Image:
    """Draws where a point attends: a row for each head of a block, or the blocks of a stage.

    Args:
        attention: Of the image.
        image: (H, W, 3), uint8, BGR.
        point: (x, y) in pixels of the image.
        stage: From 0.
        block: From 0; None for the mean over heads of every block of the stage.
    """
    if block is not None:
        parts = attention.at(point, stage, block)
        columns = 3 if len(parts.both) <= 4 else 6
        shown = [(f'head {i + 1}, {kind}', part[i]) for i in range(len(parts.both))
                 for kind, part in zip(PARTS, parts)]
    else:
        blocks = [attention.at(point, stage, i).over_heads() for i in range(attention.depths[stage])]
        columns = 4 if len(blocks) <= 5 else 6
        shown = [(f'block {i + 1}, {kind}', part[0]) for i, parts in enumerate(blocks)
                 for kind, part in zip(PARTS, parts[:2])]
        shown.insert(0, ('bias, all blocks', blocks[0].bias[0]))  # they have one table
    width, letters = (WIDTH - GAP * (columns - 1)) // columns, 14 if columns < 6 else 11
    ground = cv2.cvtColor(resized(image, width), cv2.COLOR_RGB2GRAY)
    panels = [panel(attention, ground, point, *part, letters) for part in shown]
    if block is None:
        panels.insert(0, with_point(attention, titled(resized(image, width), 'the point', letters), point))
    return tile(panels, columns)


def resized(image: np.ndarray, width: int) -> np.ndarray:
    """An image (H, W, 3), uint8, BGR, as RGB of a width."""
    height = max(round(width * image.shape[0] / image.shape[1]), 1)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)[..., ::-1].copy()


def panel(attention: Attention, ground: np.ndarray, point: Sequence[float], title: str, weights: Tensor,
          letters: int) -> Image.Image:
    """Attention to keys (rows, columns) over a grey image (h, w), uint8, with the point in it."""
    times = weights * weights.numel()  # of what even attention is
    most = float(times.max())
    share = np.clip(attention.over_image(times, ground.shape) / max(most, BRIGHT), 0, 1)
    colours, share = HEAT[(share * 255).astype(np.uint8)], share[..., None]
    laid_over = (ground[..., None] * 0.7 * (1 - share) + colours * share).astype(np.uint8)
    return with_point(attention, titled(laid_over, f'{title}: {most:.1f}×', letters), point)


def with_point(attention: Attention, picture: Image.Image, point: Sequence[float]) -> Image.Image:
    """A titled picture of the image with a ring around a point (x, y) of the image."""
    x, y = (place * picture.width / attention.image_size[1] for place in point)
    pen = ImageDraw.Draw(picture)
    for radius, colour, width in ((7, 'black', 4), (6, POINT, 2)):
        pen.ellipse([x - radius, y + HEAD - radius, x + radius, y + HEAD + radius], outline=colour, width=width)
    return picture
