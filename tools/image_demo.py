"""Draws what a model finds in photos: `python tools/image_demo.py IMAGES... CONFIG CHECKPOINT --out DIR`.

IMAGES are files, folders or patterns such as 'photos/*.jpg'. Detectors draw boxes and, where they have
them, masks; segmentors lay the colours of the classes over the photo, with their names below. Each photo
becomes DIR/<name of the image>.png.
"""
import argparse
import sys
from pathlib import Path

import torch
from mmengine.config import DictAction
from tqdm import tqdm

from cmt_backbones.openmmlab.inference import ModelError, build_model, read_config
from cmt_backbones.visualization.panels import DrawingError
from cmt_backbones.visualization.photos import draw_file, find_images


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('images', nargs='+', metavar='IMAGES', help='files, folders or patterns')
    parser.add_argument('config')
    parser.add_argument('checkpoint', help='file or URL')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR')
    parser.add_argument('--score-thr', type=float, default=0.3,
                        help='leave out what a detector is less sure of (default: %(default)s)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu',
                        help='default: %(default)s')
    parser.add_argument('--deploy', action='store_true', help='fold the backbone for inference first')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='changes to the config, as for test.py')
    args = parser.parse_args(argv)
    try:
        images = find_images(args.images)
        cfg = read_config(args.config, args.cfg_options)
        model = build_model(cfg, args.checkpoint, args.device, args.deploy)
        args.out.mkdir(parents=True, exist_ok=True)
        for stem, path in tqdm(images.items(), 'drawing', unit='image'):
            draw_file(model, path, args.score_thr).save(args.out / f'{stem}.png')
    except (ModelError, DrawingError, OSError) as error:
        sys.exit(f'image_demo: {error}')
    print(f'{args.out}: {len(images)} pictures')


if __name__ == '__main__':
    main()
