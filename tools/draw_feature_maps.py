"""Draws what a backbone sees: `python tools/draw_feature_maps.py CONFIG CHECKPOINT IMAGE --out PNG`.

Beside the image stand the maps that its four stages give (strides 4, 8, 16, 32; those of ConvNeXt before
the output norms, which a detector may lack). The channels of a map become red, green and blue by its
three principal components: places of one colour have similar features.
"""
import argparse
import sys
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import torch
from mmengine.config import DictAction
from torch import Tensor

from cmt_backbones.models.backbone import Backbone
from cmt_backbones.openmmlab.inference import ModelError, build_model, prepare, read_config

matplotlib.use('Agg')
import matplotlib.pyplot as plt

STRIDES = (4, 8, 16, 32)


@torch.no_grad()
def stage_maps(model, image: np.ndarray) -> list[Tensor]:
    """The maps (C, H, W) that the stages of a model's backbone give for an image (H, W, 3), uint8, BGR.

    The whole image, as the test pipeline resizes it; what is padded is left out.

    Raises:
        ModelError: The backbone is not of this package.
    """
    if not isinstance(model.backbone, Backbone):
        raise ModelError(f'the backbone is a {type(model.backbone).__name__}; this draws CMT and ConvNeXt')
    maps: list[Tensor] = []
    hooks = []
    for stage in model.backbone.stages:
        last = getattr(stage, 'blocks', stage)[-1]
        hooks.append(last.register_forward_hook(lambda module, args, out: maps.append(out[0].float().cpu())))
    data = model.data_preprocessor(prepare(model, image), False)
    model.backbone(data['inputs'])
    for hook in hooks:
        hook.remove()
    height, width = data['data_samples'][0].img_shape
    return [m[:, :-(-height // stride), :-(-width // stride)] for m, stride in zip(maps, STRIDES)]


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


def draw(image: np.ndarray, maps: list[Tensor], out: Path) -> None:
    """Draws an image (H, W, 3), uint8, BGR, and maps (C, H, W) into a file."""
    height, width = image.shape[:2]
    side = 3.2
    columns = len(maps) + 1
    figure, axes = plt.subplots(1, columns, layout='constrained',
                                figsize=(side * columns, side * height / width + 0.5))
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
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config')
    parser.add_argument('checkpoint', help='file or URL')
    parser.add_argument('image', type=Path)
    parser.add_argument('--out', type=Path, required=True, metavar='PNG')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu',
                        help='default: %(default)s')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='changes to the config, as for test.py')
    args = parser.parse_args(argv)
    image = cv2.imread(str(args.image))
    if image is None:
        sys.exit(f'draw_feature_maps: {args.image} is not there or no image')
    try:
        model = build_model(read_config(args.config, args.cfg_options), args.checkpoint, args.device)
        draw(image, stage_maps(model, image), args.out)
    except (ModelError, OSError, ValueError) as error:  # a picture format that is none
        sys.exit(f'draw_feature_maps: {error}')
    print(args.out)


if __name__ == '__main__':
    main()
