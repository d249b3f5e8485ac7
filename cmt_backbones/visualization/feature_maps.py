"""What a backbone sees: the maps of its four stages beside the image.

They are those at strides 4, 8, 16, 32; of ConvNeXt before the output norms, which a detector may lack. The
channels of a map become red, green and blue by its three principal components: places of one colour have
similar features.
"""
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, List, Tuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..models.backbone import Backbone
from ..openmmlab.inference import ModelError, prepare

STRIDES = (4, 8, 16, 32)


def stage_maps(model: nn.Module, image: np.ndarray) -> List[Tensor]:
    """The maps (C, H, W) that the stages of a model's backbone give for an image (H, W, 3), uint8, BGR.

    The whole image, as the test pipeline resizes it; what is padded is left out.

    Raises:
        ModelError: The backbone is not of this package.
    """
    with recorded_maps(model) as maps:
        size = run_backbone(model, image)
    return without_padding(maps, size)


@contextmanager
def recorded_maps(model: nn.Module) -> Iterator[List[Tensor]]:
    """A list to which each stage adds its map (C, H, W), padding and all, when the backbone runs."""
    if not isinstance(model.backbone, Backbone):
        raise ModelError(f'the backbone is a {type(model.backbone).__name__}; this draws CMT and ConvNeXt')
    maps: List[Tensor] = []
    last_blocks = [getattr(stage, 'blocks', stage)[-1] for stage in model.backbone.stages]
    hooks = [block.register_forward_hook(lambda module, args, out: maps.append(out[0].float().cpu()))
             for block in last_blocks]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def run_backbone(model: nn.Module, image: np.ndarray) -> Tuple[int, int]:
    """Runs a model's backbone on an image (H, W, 3), uint8, BGR, resized by the test pipeline.

    Returns:
        tuple[int, int]: Height and width of the resized image; what the backbone gets beyond is padding.
    """
    data = model.data_preprocessor(prepare(model, image), False)
    model.backbone(data['inputs'])
    sample = data['data_samples'][0]
    columns, rows = sample.get('scale_factor', (np.inf, np.inf))
    # A Pad in the pipeline has changed img_shape.
    return tuple(int(min(side, round(full * scale))) if np.isfinite(scale) else side
                 for side, full, scale in zip(sample.img_shape, image.shape, (rows, columns)))


def without_padding(maps: List[Tensor], size: Tuple[int, int]) -> List[Tensor]:
    """Of the maps of four stages the part that an image of a size fills."""
    return [m[:, :-(-size[0] // stride), :-(-size[1] // stride)] for m, stride in zip(maps, STRIDES)]


def principal_colours(features: Tensor) -> np.ndarray:
    """The three principal components of a map (C, H, W) as a picture (H, W, 3) from 0 to 1."""
    pixels = features.flatten(1).T.double()  # (H W, C)
    pixels = pixels - pixels.mean(0)
    _, vectors = torch.linalg.eigh(pixels.T @ pixels)  # ascending
    axes = vectors[:, -3:].flip(1)
    # The sign of an axis is arbitrary: its largest entry decides, so that a map has one picture.
    axes = axes * torch.sign(axes.gather(0, axes.abs().argmax(0, keepdim=True)))
    components = pixels @ axes
    some = components[::max(1, len(components) // 10000)]  # quantile takes no more than 16 million numbers
    low, high = torch.quantile(some, torch.tensor([.01, .99]).to(some), dim=0)
    return ((components - low) / (high - low)).clamp(0, 1).unflatten(0, features.shape[1:]).numpy()


def draw(image: np.ndarray, maps: List[Tensor], out: Path) -> None:
    """Draws an image (H, W, 3), uint8, BGR, and maps (C, H, W) into a file."""
    height, width = image.shape[:2]
    side = 3.2
    columns = len(maps) + 1
    figure = Figure(layout='constrained', figsize=(side * columns, side * height / width + 0.5))
    axes = figure.subplots(1, columns)
    axes[0].imshow(image[..., ::-1])
    axes[0].set_title(f'image, {height} x {width}', fontsize='medium')
    for axis, features, stride in zip(axes[1:], maps, STRIDES):
        axis.imshow(principal_colours(features), interpolation='nearest')
        channels, rows, cols = features.shape
        axis.set_title(f'stride {stride}: {channels} channels, {rows} x {cols}', fontsize='medium')
    for axis in axes:
        axis.axis('off')
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
