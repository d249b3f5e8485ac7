"""Draws what a backbone sees: `python tools/draw_feature_maps.py CONFIG CHECKPOINT IMAGE --out PNG`.

Beside the image stand the maps of the four stages; what their colours mean is told in
cmt_backbones/visualization/feature_maps.py.
"""
import argparse
import sys
from pathlib import Path

import cv2
import torch
from mmengine.config import DictAction

from cmt_backbones.openmmlab.inference import ModelError, build_model, read_config
from cmt_backbones.visualization.feature_maps import draw, stage_maps


def main(argv=None):
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
